"""Split learning: the client keeps the first blocks and the last, the server the trunk between.

Cut (a, b) of a model with blocks [0, L). Parameters: client θ = (θ₁ in [0, a), θ₃ in [b, L) and the
head), server φ in [a, b). In a wave every active client i has one batch (xᵢ, yᵢ) with nᵢ labels:

    client                                    server
    h = f₁(θ₁; x)              --- h -->
                                              u = g(φ; h)
                               <-- u ---
    ℓ = CE(f₃(θ₃; u), y)
    θ₃ gets ∂ℓ/∂θ₃             -- ∂ℓ/∂u -->
                                              φ ← AdamW(φ, Σ (nᵢ/Σn) ∂ℓᵢ/∂φ)
                               <-- ∂ℓ/∂h --   only where something in [0, a) trains
    θ ← AdamW(θ, ∂ℓ/∂θ)

With `train.max_grad_norm` client and server clip each on its own side. At the end of a round θ is
averaged over clients, weighted by examples; blocks that only some
clients hold also count the server's copy, by the examples of the others. With `labels = "shared"`
the server has [a, L) and the head: h and y go up, ∂ℓ/∂h comes down. One client and one batch is one
step of the joined model: the chain rule, cut (Gupta and Raskar 2018, arXiv:1810.06060, Algorithm 1
and the U-shape of section 3.4; SplitLoRA, arXiv:2407.00952; Split-FedLLMs of arXiv:2501.04436).
An aggregate may make frozen side factors S beside θ; each side runs those of its own blocks.

What leaves a client: hidden states of its texts and gradients at the cut, from which texts can be
approximated (docs/threats.md); labels only where shared; each round its adapter and head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import torch

from triskel.data.batches import lengths_of
from triskel.errors import MessageError
from triskel.model.shared import SharedModel
from triskel.model.side_factors import parted, side_rank
from triskel.modes.split.cut import Cut, cut_of, lengths_in, packed
from triskel.modes.split.messages import (
    answer_of,
    ask_backward,
    ask_forward,
    came_down,
    moderate,
    opened,
    received,
    wanted,
)
from triskel.modes.split.server import (
    Graph,
    backward,
    bounded,
    forward,
    group,
    learn,
    scored,
    shares_in,
    summed,
)
from triskel.modes.split.spec import SplitOptions
from triskel.numerics.metrics import empty, merge, score
from triskel.numerics.rng import derive
from triskel.numerics.tensors import eval_plan, select
from triskel.training.evaluate import BATCH_TOKENS, score_message, score_of
from triskel.training.loop import StepId, finite
from triskel.training.mode_setting import ModeSetting
from triskel.training.optimizer import Moments, clipped, learning_rate, optimizer_step
from triskel.training.worker import Worker
from triskel.types import (
    A,
    Aggregate,
    Ask,
    AskStyle,
    ClientId,
    ClientState,
    ClientUpdate,
    Message,
    MessageKind,
    Section,
    Talk,
    Tensors,
)
from triskel.wire.adapters import (
    adapter_sections,
    aggregated,
    number,
    same_round,
    sections_of,
)


@dataclass(frozen=True)
class SplitState:
    """The server between rounds, and within one.

    Attributes:
        tensors: θ as last averaged, and φ; beside them S.
        moments: Adam's state of φ; kept from round to round.
        closed: Rounds closed so far.
        graphs: What clients of the open wave wait for; never checkpointed.
    """

    tensors: Tensors
    moments: Moments = field(default_factory=Moments)
    closed: int = 0
    graphs: Mapping[ClientId, Graph] = field(
        default_factory=dict[ClientId, Graph], metadata={"open": True}
    )


@dataclass(frozen=True)
class Split(Generic[A]):
    """Split learning.

    Attributes:
        setting: The cut, the labels, optimiser options; the server's model, of which it runs the
            trunk, and its account of compute.
        aggregate: Makes one θ of the clients'.
    """

    setting: ModeSetting[SplitOptions]
    aggregate: Aggregate[A]
    weighted: bool = True
    asks: Mapping[str, AskStyle] = field(
        default_factory=lambda: dict[str, AskStyle](forward="stream", backward="stream")
    )

    @classmethod
    def build(cls, setting: ModeSetting[SplitOptions]) -> "Split[Any]":
        """Return the mode."""
        return cls(setting=setting, aggregate=setting.aggregate)

    @property
    def body(self) -> SharedModel:
        """The server's model."""
        return self.setting.body

    @property
    def in_flight(self) -> int:
        """How many clients are in a wave: `split.wave`."""
        return self.setting.options.wave

    def cut(self, client: ClientId) -> Cut:
        """Return where a client's model is divided."""
        return cut_of(self.setting.of(client), self.body)

    def start(self) -> SplitState:
        """Return the server's state before round 1."""
        return SplitState(tensors=self.body.initial)

    def task(self, state: SplitState, client: ClientId) -> Message:
        """Send θ, what of S is beside it, and the cut; φ stays."""
        cut = self.cut(client)
        return Message(
            kind="task",
            sections=adapter_sections(cut.held(state.tensors, cut.mine), self.body.layout),
            facts={"round": state.closed + 1, "cut": [cut.low, cut.high], "shared": cut.shared},
        )

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Run the client's blocks batch by batch; ask the server for what lies between."""
        body, cut = worker.body, cut_of(self.setting.of(worker.client), worker.body)
        sent = opened(task, worker, cut)
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer = worker.trainer(sent, where)
        parameters = trainer.leaves
        total, steps = 0.0, 0
        for step, batch in enumerate(worker.batches(where, worker.training.epochs)):
            worker.dropout(where, step)
            h = body.bottom(parameters, batch, cut.low)
            answer = received((yield Ask(ask_forward(h, batch, cut, where, step, body))), where)
            if cut.shared:
                value = number(answer.facts, "loss")
                slope = came_down(answer, "gradient", "forward", batch, body) if cut.below else None
            else:
                u = came_down(answer, "activations", "forward", batch, body, pooled=cut.pooled)
                worker.dropout(replace(where, phase="top"), step)
                u.requires_grad_(cut.inside)
                loss = body.objective.loss(cut.logits(parameters, u, batch, body), batch)
                value, slope = finite(loss, where, step), None
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                if cut.inside:
                    answer = received((yield Ask(ask_backward(u, batch, cut, where))), where)
                    if cut.below:
                        slope = came_down(answer, "gradient", "backward", batch, body)
            if slope is not None:
                h.backward(slope)  # type: ignore[no-untyped-call]
            trainer.step()
            worker.meter.ran(batch, *cut.pieces(body.blocks.count), training=parameters)
            worker.report_step(where, batch, value)
            total, steps = total + value, steps + 1
        body.dropout(None)
        update = Message(
            kind="update",
            sections=adapter_sections(trainer.parameters, body.layout),
            facts={
                "round": where.round,
                "examples": len(worker.train),
                "loss": total / max(steps, 1),
            },
        )
        return update, client_state

    def answer(
        self, state: SplitState, asks: Mapping[ClientId, Message]
    ) -> tuple[SplitState, Mapping[ClientId, Message]]:
        """Answer one wave: all forwards, or all backwards and one trunk step."""
        cuts = {c: self.cut(c) for c in sorted(asks)}
        parts: dict[str, dict[ClientId, Message]] = {}
        for client, cut in cuts.items():
            same_round(asks[client], state.closed + 1)
            moderate(asks[client], self.setting.training, self.body.blocks.ahead)
            parts.setdefault(wanted(asks[client], client, cut), {})[client] = asks[client]
        answers: dict[ClientId, Message] = {}
        for what, answered in (
            ("backward", self._backward), ("learn", self._learn), ("forward", self._forward),
            ("evaluate", self._forward), ("score", self._score),
        ):  # fmt: skip
            if part := parts.get(what):
                state, more = answered(state, part, cuts)
                answers |= more
        return state, answers

    def zero(self, state: SplitState) -> A:
        """Return the total of no updates."""
        del state
        return self.aggregate.zero()

    def add(self, state: SplitState, total: A, client: ClientId, update: Message) -> A:
        """Fold nᵢ θᵢ in."""
        same_round(update, state.closed + 1)
        mine = select(state.tensors, self.cut(client).mine)
        theirs = ClientUpdate(
            client=client,
            sections=sections_of(update, adapter_sections(mine, self.body.layout), kind="update"),
            weight=number(update.facts, "examples", least=1),
        )
        return self.aggregate.add(total, theirs, self._before(state))

    def merge(self, state: SplitState, left: A, right: A) -> A:
        """Return the total of both totals."""
        del state
        return self.aggregate.merge(left, right)

    def close(self, state: SplitState, total: A) -> SplitState:
        """Average θ; the server's copy counts for the examples of those who do not hold it.

        S is as the aggregate makes it.
        """
        before, layout = self._before(state), self.body.layout
        means, side = aggregated(self.aggregate.value(total, before), before, layout)
        tensors = select(means, parted(state.tensors)[0]) | side
        return SplitState(tensors=tensors, moments=state.moments, closed=state.closed + 1)

    def _before(self, state: SplitState) -> dict[str, Section]:
        return adapter_sections(state.tensors, self.body.layout)

    def server_model(self, state: SplitState) -> Tensors:
        """Return θ and φ, together a whole model, and S."""
        return state.tensors

    def client_model(self, client_state: ClientState) -> None:
        """Return None: clients use θ."""

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate on the client's own test share, the trunk running at the server."""
        body = worker.body
        cut = cut_of(self.setting.of(worker.client), worker.body)
        sent = opened(task, worker, cut)
        parameters = body.parameters(sent)
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        body.dropout(None)
        total = empty(body.classes)
        lengths = lengths_of(worker.test, ahead=body.blocks.ahead)
        for step, rows in enumerate(eval_plan(lengths, tokens=BATCH_TOKENS)):
            batch = worker.batch(worker.test, rows)
            with torch.no_grad():
                h = body.bottom(parameters, batch, cut.low)
                ask = replace(ask_forward(h, batch, cut, where, step, body), kind="evaluate")
            answer = received((yield Ask(ask)), where)
            if cut.shared:  # the server has the head, and counts
                total = merge(total, score_of(answer, body.classes))
                continue
            with torch.no_grad():
                u = came_down(
                    answer, "activations", "forward", batch, body, pooled=cut.pooled,
                    kind="evaluate",
                )  # fmt: skip
                logits = cut.logits(parameters, u, batch, body)
            total = merge(total, score(logits, batch.targets.to(logits.device), body.classes))
        return score_message(total), client_state

    # --- the server's answers -----------------------------------------------------------------

    def _forward(
        self, state: SplitState, asks: Mapping[ClientId, Message], cuts: Mapping[ClientId, Cut]
    ) -> tuple[SplitState, dict[ClientId, Message]]:
        graphs, answers = dict(state.graphs), dict[ClientId, Message]()
        for clients in group(asks, cuts):
            cut, some = cuts[clients[0]], {c: asks[c] for c in clients}
            learning = some[clients[0]].kind == "ask"
            self._dropout(state, some, on=learning)
            graph = forward(self.body, state.tensors, some, cut, learn=learning)
            self.body.dropout(None)
            if learning:
                self._computed(state, graph.lengths, cut)
            for client in clients:
                texts = graph.texts(client)
                u = graph.u[graph.rows[client]]
                section = packed(u if cut.pooled else u[:, : max(texts)], texts, pooled=cut.pooled)
                kind: MessageKind = "answer" if learning else "evaluate"
                answers[client] = answer_of(
                    state.closed + 1, "forward", {"activations": section}, kind=kind
                )
                if cut.inside and learning:
                    graphs[client] = graph
        return replace(state, graphs=graphs), answers

    def _dropout(self, state: SplitState, asks: Mapping[ClientId, Message], *, on: bool) -> None:
        """Switch the trunk's dropout on from a stream named by round, clients and their steps."""
        steps = [f"{c}:{int(number(a.facts, 'step'))}" for c, a in asks.items()]
        path = ("round", state.closed + 1, "trunk", *steps)
        self.body.dropout(derive(self.setting.seed, *path) if on else None)

    def _backward(
        self, state: SplitState, asks: Mapping[ClientId, Message], cuts: Mapping[ClientId, Cut]
    ) -> tuple[SplitState, dict[ClientId, Message]]:
        del cuts  # a graph knows its cut
        graphs = dict(state.graphs)
        if strange := sorted(asks.keys() - graphs.keys()):
            raise MessageError(f"client {strange[0]!r} sent a gradient for no open batch")
        texts = {c: graphs[c].texts(c) for c in asks}
        share = shares_in(asks, texts, classes=self.body.classes)
        answers = {c: answer_of(state.closed + 1, "backward", {}) for c in asks}
        slopes: list[Tensors] = []
        for graph in {id(graphs[c]): graphs[c] for c in asks}.values():
            some = {c: asks[c] for c in asks if graphs[c] is graph}
            found = backward(self.body, graph, some, share)
            slopes.append(found.trunk)
            for client, section in found.down.items():
                answers[client] = answer_of(state.closed + 1, "backward", {"gradient": section})
        for client in asks:
            del graphs[client]
        return replace(self._stepped(state, summed(slopes)), graphs=graphs), answers

    def _learn(
        self, state: SplitState, asks: Mapping[ClientId, Message], cuts: Mapping[ClientId, Cut]
    ) -> tuple[SplitState, dict[ClientId, Message]]:
        texts = {c: lengths_in(ask) for c, ask in asks.items()}
        share = shares_in(asks, texts, classes=self.body.classes)
        slopes, answers = list[Tensors](), dict[ClientId, Message]()
        for clients in group(asks, cuts):
            some = {c: asks[c] for c in clients}
            self._dropout(state, some, on=True)
            found, losses = learn(
                self.body, state.tensors, some, cuts[clients[0]],
                share=share, where=lambda client: StepId(client, state.closed + 1),
            )  # fmt: skip
            self.body.dropout(None)
            lengths = [n for ask in some.values() for n in lengths_in(ask)]
            self._computed(state, lengths, cuts[clients[0]], some)
            slopes.append(found.trunk)
            for client in clients:
                down = {"gradient": found.down[client]} if client in found.down else {}
                answers[client] = answer_of(state.closed + 1, "forward", down, loss=losses[client])
        return self._stepped(state, summed(slopes)), answers

    def _score(
        self, state: SplitState, asks: Mapping[ClientId, Message], cuts: Mapping[ClientId, Cut]
    ) -> tuple[SplitState, dict[ClientId, Message]]:
        answers = dict[ClientId, Message]()
        self.body.dropout(None)
        for clients in group(asks, cuts):
            some = {c: asks[c] for c in clients}
            for client, found in scored(self.body, state.tensors, some, cuts[clients[0]]).items():
                told = score_message(found)
                facts = {**told.facts, "round": state.closed + 1}
                answers[client] = replace(told, facts=facts)
        return state, answers

    def _computed(
        self,
        state: SplitState,
        lengths: Sequence[int],
        cut: Cut,
        shared: Mapping[ClientId, Message] | None = None,
    ) -> None:
        """Account for a joined batch, forward and back; `shared` are its asks that bring labels."""
        asks = (shared or {}).values()
        scored = sum(len(ask.sections["labels"].tensors["labels"]) for ask in asks)
        piece = replace(cut.server_piece, side=side_rank(cut.held(state.tensors, cut.theirs)))
        self.setting.meter.computed(piece, len(lengths), max(lengths), scored)

    def _stepped(self, state: SplitState, slopes: Tensors) -> SplitState:
        """Take one AdamW step of φ."""
        train, round_ = self.setting.training, state.closed + 1
        slopes = bounded(clipped(slopes, train), round_)
        rate = learning_rate(train, round_, self.setting.rounds)
        tensors, moments = optimizer_step(state.tensors, slopes, state.moments, train, rate)
        return replace(state, tensors=tensors, moments=moments)
