"""Prediction exchange: clients send what they predict on public text, and learn from each other.

One round, public texts X, temperature τ, mixing weight μ, clients i with their own models fᵢ:

    server                                    client
    sends the round
                                              trains fᵢ on its private examples
                                              sends zᵢ = fᵢ(X), each row in the order of X
    z̄ = combine(z₁, z₂, ...)
    sends z̄
                                              per public batch x and private batch (x', y'):
                                              fᵢ ← AdamW(μ τ² KL(softmax(z̄/τ) ‖ softmax(fᵢ(x)/τ))
                                                         + (1 - μ) CE(fᵢ(x'), y'))
    the student g learns on X the same way, with μ = 1

Labels of public texts are never used. A round trip is one exchange. For `causal`, zᵢ is the k
largest log-probabilities of every scored position with token ids and the log of the left-over mass,
and KL runs over these k + 1 outcomes. The vocabulary is the tokenizer's: models of one tokenizer
with heads padded to different lengths teach each other. Distillation: Hinton et al. 2015,
arXiv:1503.02531, section 2; in federations FedMD, Li and Wang 2019, arXiv:1910.03581; KD-FedLLMs
of arXiv:2501.04436.

What leaves a client: predictions on public texts, never texts, labels or parameters. Predictions
can still betray whether a text was trained on (docs/threats.md).
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from triskel.data.batches import lengths_of
from triskel.errors import MessageError, RoundError
from triskel.model.flops import Piece
from triskel.model.shared import Parameters
from triskel.modes.logits.combine import combine
from triskel.modes.logits.knowledge import Knowledge, dense, outcomes, stack, top
from triskel.modes.logits.spec import NARROW_IDS, LogitsOptions
from triskel.numerics.tensors import eval_plan, wide
from triskel.training.conversation import alone
from triskel.training.evaluate import probe_joined
from triskel.training.loop import LossTerm, StepId
from triskel.training.mode_setting import ModeSetting
from triskel.training.trainer import Trainer
from triskel.training.worker import Worker
from triskel.types import (
    Ask,
    AskStyle,
    Batch,
    ClientId,
    ClientState,
    Examples,
    Local,
    Message,
    MessageKind,
    Section,
    Talk,
    Tensors,
)
from triskel.wire import expect
from triskel.wire.adapters import number, same_round

AHEAD = Piece("forward")
PREDICT_TOKENS = 2048
ABOVE = 1e-3
"""What rounding may add to a log-probability of 0."""
OWN = "own"
SERVER = "server"


@dataclass(frozen=True)
class LogitsState:
    """The server between rounds.

    Attributes:
        student: The server's own adapter and head; as they started where there is no student.
        closed: Rounds closed so far.
        teacher: What the clients of the open round know together.
    """

    student: Tensors
    closed: int = 0
    teacher: Knowledge | None = field(default=None, metadata={"open": True})


@dataclass(frozen=True)
class Logits:
    """Prediction exchange.

    Attributes:
        server: The server as a worker: its model and the public set; it has no private examples.
        options: What the job says of this mode.
    """

    server: Worker
    options: LogitsOptions
    asks: Mapping[str, AskStyle] = field(
        default_factory=lambda: dict[str, AskStyle](knowledge="barrier")
    )
    in_flight: int = 0
    weighted: bool = False

    @classmethod
    def build(cls, setting: ModeSetting[LogitsOptions]) -> "Logits":
        """Return the mode, its server a worker with nothing private."""
        nothing = Examples(ids=(), labels=())
        server = Worker(
            client=SERVER,
            training=setting.training,
            rounds=setting.rounds,
            seed=setting.seed,
            body=setting.body,
            train=nothing,
            test=nothing,
            public=setting.public(),
            meter=setting.meter,
            watch=setting.watch,
        )
        return cls(server=server, options=setting.options)

    @staticmethod
    def unfit(setting: ModeSetting[Any]) -> str | None:
        """Return why these models cannot teach each other with these texts, or None if they can."""
        if not len(setting.public()):
            return (
                "no public text is left to predict on: within train.max_tokens = "
                f"{setting.training.length} none has a token of its response; raise it, or "
                "give shorter public texts"
            )
        return None if setting.body.classes else _other_tokens(setting)

    def start(self) -> LogitsState:
        """Return the server's state before round 1."""
        return LogitsState(student=self.server.body.initial)

    def task(self, state: LogitsState, client: ClientId) -> Message:
        """Open the round; both sides already hold the public set, in the same order."""
        del client  # everyone gets the same
        facts = {"round": state.closed + 1, "public": len(self.server.public)}
        return Message(kind="task", facts=facts)

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Train alone, ask once (predictions up, teacher down), learn from the teacher."""
        body, options = worker.body, self.options
        expect(task, kind="task", sections={})
        if int(number(task.facts, "public")) != len(worker.public):
            raise MessageError(
                f"the server speaks of {task.facts['public']} public texts and client "
                f"{worker.client!r} holds {len(worker.public)}"
            )
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer, loss = yield from worker.train_on(
            client_state.groups.get(OWN, body.initial), where
        )
        known = predict(worker, trainer.parameters, options)
        answer = yield Ask(knowledge_message(known, "ask", where.round))
        if not isinstance(answer, Message):
            raise RoundError("an ask was answered with nothing")
        same_round(answer, where.round)
        teacher = read_knowledge(answer, known, kind="answer")
        trainer = yield from distil(worker, trainer.parameters, teacher, where, options)
        own = {n: p.detach().cpu().clone() for n, p in trainer.parameters.items()}
        update = Message(
            kind="update",
            facts={"round": where.round, "examples": len(worker.train), "loss": loss},
        )
        return update, replace(client_state, groups={**client_state.groups, OWN: own})

    def answer(
        self, state: LogitsState, asks: Mapping[ClientId, Message]
    ) -> tuple[LogitsState, Mapping[ClientId, Message]]:
        """Make one teacher of everybody's predictions and send it to everybody."""
        options = self.options
        template = self._template()
        parties: list[Knowledge] = []
        for client in sorted(asks):
            same_round(asks[client], state.closed + 1)
            parties.append(read_knowledge(asks[client], template, kind="ask"))
        teacher = combine(parties, options.aggregate, options.temperature)
        answer = knowledge_message(teacher, "answer", state.closed + 1)
        return replace(state, teacher=teacher), dict.fromkeys(asks, answer)

    def zero(self, state: LogitsState) -> int:
        """Return the total of no updates: nobody has finished yet."""
        del state
        return 0

    def add(self, state: LogitsState, total: int, client: ClientId, update: Message) -> int:
        """Count a client that finished; its update carries no tensors."""
        del client
        same_round(update, state.closed + 1)
        expect(update, kind="update", sections={})
        return total + 1

    def merge(self, state: LogitsState, left: int, right: int) -> int:
        """Return how many finished in both."""
        del state
        return left + right

    def close(self, state: LogitsState, total: int) -> LogitsState:
        """Teach the student, where there is one.

        Raises:
            RoundError: No client sent predictions.
        """
        if not total or state.teacher is None:
            raise RoundError("no client sent predictions; every client of the cohort failed")
        student = state.student
        if self.options.student:
            where = StepId(self.server.client, state.closed + 1)
            steps = distil(self.server, student, state.teacher, where, self.options)
            trainer = alone(steps, where.client)
            student = {n: p.detach().cpu().clone() for n, p in trainer.parameters.items()}
        return LogitsState(student=student, closed=state.closed + 1)

    def server_model(self, state: LogitsState) -> Tensors | None:
        """Return the student, where there is one."""
        return state.student if self.options.student else None

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return fᵢ, once it took part in a round."""
        return client_state.groups.get(OWN)

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate the client's own model on its own test share."""
        del task
        return probe_joined(worker, client_state.groups.get(OWN, worker.body.initial)), client_state
        yield  # a Talk that asks nothing

    def _template(self) -> Knowledge:
        """Return the shapes that predictions must have; the numbers are not used."""
        body, public = self.server.body, self.server.public
        dtype = wide(body.dtype)
        if body.classes:
            return dense(torch.zeros(len(public), body.classes, dtype=dtype))
        positions = sum(int(scored.sum()) for scored in public.scored)
        k = min(self.options.top_k, body.vocabulary)
        return Knowledge(
            values=torch.zeros(positions, k, dtype=dtype),
            ids=torch.zeros(positions, k, dtype=torch.int64),
            tail=torch.zeros(positions, dtype=dtype),
            vocabulary=body.vocabulary,
        )


def _other_tokens(setting: ModeSetting[Any]) -> str | None:
    """Return why predictions on tokens cannot be compared, or None when they can."""
    ours = setting.body
    known = ours.tokenizer.get_vocab()
    for client, body in setting.models():
        if body is not ours and body.tokenizer.get_vocab() != known:
            return (
                f"client {client} uses a tokenizer unlike the server's, and predictions on tokens "
                "cannot be averaged across tokenizers; give all clients models of one tokenizer, "
                "or use a classify task"
            )
    return None


# --- learning from predictions ----------------------------------------------------------------


def distil_loss(
    student: Float[Tensor, "scored classes"], teacher: Knowledge, temperature: float
) -> Float[Tensor, ""]:
    """Return τ² KL(teacher ‖ student), both softened by τ, in nats, mean over positions.

    τ² keeps gradients the same size as τ changes. The gradient is zero where they agree. What the
    student's head is padded with beyond the teacher's vocabulary takes no part.
    """
    scaled = student[:, : teacher.vocabulary].to(wide(student.dtype)) / temperature
    if teacher.ids is None or teacher.tail is None:
        logp, sent = torch.log_softmax(scaled, dim=-1), teacher.values
    else:
        logp = outcomes(scaled, teacher.ids.to(scaled.device).long())
        sent = torch.cat([teacher.values, teacher.tail[:, None]], dim=1)
    target = torch.log_softmax(sent.to(logp.device) / temperature, dim=-1)
    rows = kl_div(logp, target, reduction="none", log_target=True).sum(-1)
    return temperature**2 * rows.mean()


def distil(
    worker: Worker, tensors: Tensors, teacher: Knowledge, where: StepId, options: LogitsOptions
) -> Generator[Local, Any, Trainer]:
    """Learn from the teacher on the public set; keep to private labels, if any, by 1 - mix."""
    public, mix = worker.public, options.mix if len(worker.train) else 1.0
    where = replace(where, phase="distil")
    trainer = worker.trainer(tensors, where)
    own = worker.body.objective.loss
    rehearsal = _rehearsal(worker, where) if mix < 1 else None

    def steps() -> Iterator[list[LossTerm]]:
        for rows in worker.plan(public, where, options.epochs):
            wanted = _rows_of(teacher, public, rows)

            def taught(logits: Tensor, _: Batch, wanted: Knowledge = wanted) -> Tensor:
                return distil_loss(logits, wanted, options.temperature)

            batch = worker.batch(public, rows)
            if rehearsal is None:
                yield [LossTerm(batch, taught)]
            else:
                yield [LossTerm(batch, taught, mix), LossTerm(next(rehearsal), own, weight=1 - mix)]

    yield from worker.fit(trainer, steps(), where)
    return trainer


def predict(worker: Worker, parameters: Parameters, options: LogitsOptions) -> Knowledge:
    """Return what these parameters predict on the public set, in its order."""
    body, public = worker.body, worker.public
    body.dropout(None)
    found: dict[int, Knowledge] = {}
    for rows in eval_plan(lengths_of(public, ahead=body.blocks.ahead), tokens=PREDICT_TOKENS):
        batch, known = worker.batch(public, rows), list[Knowledge]()
        for _, logits in body.logits_by_part(parameters, batch):
            mine = logits[:, : body.vocabulary]
            known.append(
                dense(logits) if body.classes else top(mine, options.top_k, options.temperature)
            )
        worker.meter.ran(batch, AHEAD)
        together = stack(known)
        for place, row in enumerate(rows):
            found[row] = together.rows((batch.rows == place).to(together.values.device))
    return stack([found[row] for row in range(len(public))])


def _rehearsal(worker: Worker, where: StepId) -> Iterator[Batch]:
    """Return batches of private examples without end, epoch after epoch."""
    for epoch in count():
        yield from worker.batches(replace(where, phase=f"rehearse-{epoch}"), 1)


def _rows_of(teacher: Knowledge, public: Examples, rows: Sequence[int]) -> Knowledge:
    """Return the teacher's word on some public examples, in the order of their batch."""
    if not public.scored:
        return teacher.rows(torch.tensor(list(rows)))
    sizes = [int(scored.sum()) for scored in public.scored]
    ends = list(accumulate(sizes))
    return teacher.rows(torch.cat([torch.arange(ends[r] - sizes[r], ends[r]) for r in rows]))


# --- predictions as messages ------------------------------------------------------------------


def knowledge_message(known: Knowledge, kind: MessageKind, round_: int) -> Message:
    """Return predictions as a message; ids travel in 2 bytes where the vocabulary allows."""
    tensors: dict[str, Tensor] = {"values": known.values.cpu()}
    if known.ids is not None and known.tail is not None:
        narrow = known.vocabulary <= NARROW_IDS
        tensors["ids"] = known.ids.cpu().to(torch.uint16 if narrow else torch.int32)
        tensors["tail"] = known.tail.cpu()
    section = Section(kind="knowledge", tensors=tensors, facts={"vocabulary": known.vocabulary})
    return Message(
        kind=kind, topic="knowledge", sections={"knowledge": section}, facts={"round": round_}
    )


def read_knowledge(message: Message, template: Knowledge, *, kind: MessageKind) -> Knowledge:
    """Return the predictions a message carries.

    Raises:
        MessageError: Their shapes or vocabulary are not the template's, or an id is beyond it.
    """
    like = knowledge_message(template, kind, 1).sections["knowledge"]
    expect(message, kind=kind, topic="knowledge", sections={"knowledge": like.tensors})
    found = message.sections["knowledge"]
    vocabulary = int(number(found.facts, "vocabulary", least=1))
    ids = found.tensors.get("ids")
    ids = None if ids is None else ids.to(torch.int64)
    if vocabulary != template.vocabulary or (
        ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary
    ):
        raise MessageError(
            f"predictions speak of {vocabulary} classes or tokens, expected {template.vocabulary} "
            "and ids below that"
        )
    if ids is not None and ids.numel() and bool((ids.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise MessageError("predictions name a token twice on one position")
    tail = found.tensors.get("tail")
    if tail is not None and tail.numel() and max(found.tensors["values"].max(), tail.max()) > ABOVE:
        raise MessageError("log-probabilities above 0 would count for more than all there is")
    return Knowledge(
        values=found.tensors["values"],
        ids=ids,
        tail=tail,
        vocabulary=vocabulary,
    )
