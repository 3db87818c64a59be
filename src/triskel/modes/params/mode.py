"""Parameter exchange: every client trains a copy of the adapter, the server averages the copies.

One round t, adapter and head θ, clients i of the cohort with nᵢ examples:

    server                                    client
    sends θ (and S, c)
                                              θᵢ ← θ;  per batch:  θᵢ ← AdamW(θᵢ, ∇ℓ(θᵢ; batch))
                                              sends θᵢ, nᵢ (and what cᵢ changed by)
    θ̄ = Σ nᵢ θᵢ / Σ nᵢ
    m ← β m + (θ̄ - θ);  θ ← θ + λ m

With λ = 1 and β = 0 this is FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1) on adapter
parameters (FedLLMs of arXiv:2501.04436). Each line may be another one: which tensors train and
travel (`sharing`), how a client trains them (`local`), how updates become one (`aggregate`), and
the server's step (`aggregate.server_optimizer`).

S are frozen side factors, which an aggregate may make beside θ̄ and the mean does not; they stay
until the next round closes (model/side_factors.py). c is the mean of control variates (`control`).

What leaves a client: the trained adapter and head, and how many examples they rest on. Never texts
or labels; but an adapter can reveal texts it was trained on (docs/threats.md).
"""

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from torch import Tensor

from triskel.aggregate.server_optimizer import Momentum, optimizer_of
from triskel.core.choice import name_of, options_of
from triskel.errors import RoundError
from triskel.model.side_factors import parted
from triskel.model.slots import Layout
from triskel.modes.params.control import (
    CONTROL,
    CORRECTIONS,
    SQUARES,
    Control,
    Correction,
    Told,
    told_in,
)
from triskel.modes.params.core import joined
from triskel.modes.params.fedkseed import FedKSeed
from triskel.modes.params.fedmezo import FedMeZO
from triskel.modes.params.held import PARTS, STARTED, TOPIC, Held, fact, lacked, named
from triskel.modes.params.local import OWN, Rule, plain, rule_of
from triskel.modes.params.memory import after, begun
from triskel.modes.params.sharing import Part, Sharing
from triskel.modes.params.spec import LOCAL, ParamsOptions, common, last_rounds
from triskel.numerics.replay import Replay
from triskel.numerics.tensors import flat
from triskel.training.evaluate import probe_joined
from triskel.training.loop import IN_FLIGHT, StepId
from triskel.training.mode_setting import ModeSetting
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
    Mode,
    Reply,
    Section,
    ServerOptimizer,
    Step,
    Talk,
    Tensors,
)
from triskel.wire.adapters import (
    adapter_of,
    adapter_sections,
    aggregated,
    number,
    same_round,
    sections_of,
)

ALONG_SEEDS = {"fedkseed": FedKSeed, "fedmezo": FedMeZO}
"""What is played where scalars along seeds travel in the place of tensors."""


@dataclass(frozen=True)
class ParamsState:
    """The server between rounds.

    Attributes:
        adapter: θ, adapter and head, and S.
        moments: What the server's optimiser remembers: m, empty while β = 0.
        closed: Rounds closed so far.
        control: What goes with θ (`control`).
        held: Which round left which part of θ.
    """

    adapter: Tensors
    moments: Tensors = field(default_factory=dict[str, Tensor])
    closed: int = 0
    control: Control = field(default_factory=Control)
    held: Held = field(default_factory=Held)


@dataclass(frozen=True)
class Total(Generic[A]):
    """A round's updates, as far as they came.

    Attributes:
        updates: The aggregate's total.
        control: What they add to what goes with θ.
        clients: How many sent an update.
    """

    updates: A
    control: Control = field(default_factory=Control)
    clients: int = 0


@dataclass(frozen=True)
class Params(Generic[A]):
    """Parameter exchange.

    Attributes:
        initial: θ before round 1.
        layout: Which tensors are the head's.
        aggregate: Makes θ̄ of the θᵢ.
        optimizer: Takes the server's step.
        sharing: What trains and travels; None is everything.
        rule: How a client trains.
        rounds: How many rounds there are.
        held: What clients know of θ before round 1.
        whole: Whether the aggregate is of pairs of factors, and may change both.
        counts_steps: Whether the aggregate asks how many steps an update is of.
    """

    initial: Tensors
    layout: Layout
    aggregate: Aggregate[A]
    optimizer: ServerOptimizer = field(default_factory=Momentum)
    sharing: Sharing | None = None
    rule: Rule = plain
    rounds: int = 0
    held: Held = field(default_factory=Held)
    whole: bool = False
    counts_steps: bool = False
    asks: Mapping[str, AskStyle] = field(default_factory=dict[str, AskStyle])
    in_flight: int = 0
    weighted: bool = True

    @classmethod
    def build(cls, setting: ModeSetting[ParamsOptions]) -> Mode[Any, Any, Worker]:
        """Return the mode; where seeds travel, that one."""
        body, options = setting.body, setting.options
        if options.exchange is not None:
            replay = Replay(body.initial, options.exchange.lr)
            return ALONG_SEEDS[options.exchange.name](options.exchange, replay)
        local = name_of(options.local)
        share = Sharing(
            options=options,
            layout=body.layout,
            adapter=body.adapter,
            ranks=setting.ranks,
            beside=setting.aggregate_spec.ranks,
        )
        asks = share.frozen or share.stay
        since = {} if body.fresh is body.initial else dict.fromkeys(PARTS, STARTED)
        return cls(
            initial=body.initial,
            layout=body.layout,
            aggregate=setting.aggregate,
            optimizer=optimizer_of(options),
            sharing=share,
            rule=rule_of(local, options_of(options.local, LOCAL[local])),
            rounds=setting.rounds,
            held=Held(since=since),
            whole=setting.aggregate_spec.lowrank or setting.aggregate_spec.keeps_updates,
            counts_steps=setting.aggregate_spec.steps,
            asks={TOPIC: "stream"} if asks else {},
            in_flight=IN_FLIGHT if asks else 0,
        )

    # --- the server -----------------------------------------------------------------------------

    def start(self) -> ParamsState:
        """Return the server's state before round 1."""
        return ParamsState(adapter=self.initial, moments=self.optimizer.start(), held=self.held)

    def task(self, state: ParamsState, client: ClientId) -> Message:
        """Send θ as the client has room for it, and S and c where there are some."""
        unsent = state.held.unsent(self.share)
        sections = self._down(state, client, without=set(unsent))
        sections |= self.correction.sections(state.control, state.adapter)
        parts = {fact(part): unsent[part] for part in unsent}
        facts = {"round": state.closed + 1, **parts, **self.correction.facts(state.control)}
        return Message(kind="task", sections=sections, facts=facts)

    def trial(self, state: ParamsState, client: ClientId) -> Message:
        """Send the common model to be tested, where there is one."""
        del client  # everyone tests the same
        sections = adapter_sections(self.server_model(state) or {}, self.layout)
        return Message(kind="task", sections=sections, facts={"round": state.closed + 1})

    def answer(
        self, state: ParamsState, asks: Mapping[ClientId, Message]
    ) -> tuple[ParamsState, Mapping[ClientId, Message]]:
        """Send parts of θ that tasks leave out to who lacks them.

        Raises:
            RoundError: Tasks leave nothing out.
        """
        if strange := sorted(c for c, ask in asks.items() if ask.topic not in self.asks):
            raise RoundError(
                f"client {strange[0]!r} asked about {asks[strange[0]].topic!r}, and of that there "
                "are no questions"
            )
        unsent = set(state.held.unsent(self.share))
        others = {self.share.part(n) for n in state.adapter} - unsent
        return state, {
            client: Message(
                kind="answer", topic=TOPIC, sections=self._down(state, client, without=others)
            )
            for client in asks
        }

    def zero(self, state: ParamsState) -> Total[A]:
        """Return the total of no updates."""
        del state
        return Total(self.aggregate.zero())

    def add(
        self, state: ParamsState, total: Total[A], client: ClientId, update: Message
    ) -> Total[A]:
        """Fold nᵢ θᵢ in, and nᵢ times what cᵢ changed by."""
        same_round(update, state.closed + 1)
        weight = number(update.facts, "examples", least=1)
        trained, _ = parted(state.adapter)
        shown = self.share.up(trained, client)
        names = self._sent(state) if self._averages(state.closed + 1) else []
        layout = self.share.laid_out(client)
        beside = self.correction.wanted({n: shown[n] for n in names})
        wanted = adapter_sections({n: shown[n] for n in names}, layout)
        found = sections_of(update, wanted | beside, kind="update")
        theirs_ = flat({n: found.pop(n) for n in beside})
        control = self.correction.told(total.control, update, theirs_, weight)
        if not names:
            return replace(total, clients=total.clients + 1)
        sent = flat(found)
        theirs = ClientUpdate(
            client=client,
            sections=adapter_sections({**shown, **sent} if self.whole else sent, layout),
            weight=weight,
            steps=int(number(update.facts, "steps", least=1)) if "steps" in update.facts else 0,
        )
        before = adapter_sections(state.adapter, self.layout)
        updates = self.aggregate.add(total.updates, theirs, before)
        return Total(updates, control, total.clients + 1)

    def merge(self, state: ParamsState, left: Total[A], right: Total[A]) -> Total[A]:
        """Return the total of both totals."""
        del state
        return Total(
            self.aggregate.merge(left.updates, right.updates),
            left.control.plus(right.control),
            left.clients + right.clients,
        )

    def close(self, state: ParamsState, total: Total[A]) -> ParamsState:
        """Return θ + λ m, with λ = 1, β = 0 and the mean exactly θ̄; and S, and c.

        Raises:
            RoundError: Nobody sent an update, or the server's step is not for side factors.
        """
        closed = state.closed + 1
        if not self._averages(closed) and total.clients:
            return replace(state, closed=closed)
        before = adapter_sections(state.adapter, self.layout)
        mean, side = aggregated(self.aggregate.value(total.updates, before), before, self.layout)
        if side and not self.optimizer.takes_over:
            raise RoundError(
                "side factors are the rest of what the updates amount to, and the server's step "
                "ends elsewhere: params.server_lr must be 1 and params.server_momentum 0"
            )
        trained, _ = parted(state.adapter)
        moves = mean if self.whole else self._sent(state)
        step, mean = {n: trained[n] for n in moves}, {n: mean[n] for n in moves}
        moved, moments = self.optimizer.step(step, mean, state.moments)
        now = self.share.after({**trained, **moved}, closed)
        return ParamsState(
            adapter={**now, **side},
            moments={**state.moments, **moments},
            closed=closed,
            control=self.correction.closed(state.control, total.control, mean, step),
            held=state.held.after(trained, now, self.share, closed),
        )

    def server_model(self, state: ParamsState) -> Tensors | None:
        """Return θ and S; None where a part of it stays with clients."""
        return joined(state.adapter) if self.common else None

    # --- a client -------------------------------------------------------------------------------

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Train a copy of θ, and send what is the server's to know."""
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        received, told = yield from self._received(task, worker, client_state)
        left = self.rounds - where.round
        start = begun(self.share, received, client_state, where, told=told, left=left)
        trained = yield from self.rule(start, worker, where)
        names = self.share.sent(received, where.round) if trained.tensors else []
        layout = self.share.laid_out(worker.client)
        sections = adapter_sections({n: trained.tensors[n] for n in names}, layout)
        for name, tensors in trained.beside.items():
            sections[name] = Section(kind="dense", tensors={n: tensors[n] for n in names})
        about = {"round": where.round, "examples": len(worker.train), "loss": trained.loss}
        facts = {**about, **trained.facts}
        if self.counts_steps:
            facts["steps"] = trained.steps
        kept = after(self.share, received, task.facts, trained, where)
        return Message(kind="update", sections=sections, facts=facts), kept

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return the client's own model once it has one; None where clients use θ."""
        own = client_state.groups.get(OWN)
        return None if own is None else self.share.own_form(own).factors(own)

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate the client's own model, or else θ, on the client's own test share."""
        own = self.client_model(client_state)
        if own is None and task.sections:
            own = adapter_of(task, worker.body.initial, worker.body.layout, kind="task")
        return probe_joined(worker, worker.body.initial if own is None else own), client_state
        yield  # a Talk that asks nothing

    def _received(
        self, task: Message, worker: Worker, kept: ClientState
    ) -> Generator[Step, Reply, tuple[dict[str, Tensor], Told]]:
        """Return θ and S as a client has them, and what came beside; ask for what it lacks.

        Raises:
            MessageError: The task, or what was asked for, does not fit this model.
        """
        share, body, unsent = self.share, worker.body, named(task.facts)
        layout, round_ = share.laid_out(worker.client), int(number(task.facts, "round", least=1))
        template = share.known(share.down(body.initial, worker.client), round_)
        rest = {n: t for n, t in template.items() if share.part(n) in unsent}
        sent = {n: t for n, t in template.items() if n not in rest}
        plain_ = {n: s for n, s in task.sections.items() if n not in {CONTROL, SQUARES}}
        found = adapter_of(replace(task, sections=plain_), sent, layout, kind="task")
        own = kept.groups.get(OWN, {})
        if lacked(unsent, kept.facts, own=bool(own), sharing=share):
            ask = Message(kind="ask", topic=TOPIC, facts={"round": task.facts["round"]})
            answer = yield Ask(ask)
            if not isinstance(answer, Message):
                raise RoundError("the server did not answer what a client asked for")
            found |= adapter_of(answer, rest, layout, kind="answer", topic=TOPIC)
        else:
            held = {**share.down(body.fresh, worker.client), **kept.groups.get(TOPIC, {}), **own}
            found |= {n: held[n] for n in rest}
        return found, told_in(task, found)

    # --- what of it is shared -------------------------------------------------------------------

    @property
    def share(self) -> Sharing:
        """What trains and travels."""
        return self.sharing or Sharing(options=ParamsOptions(), layout=self.layout)

    @property
    def common(self) -> bool:
        """Whether the server ends with a model."""
        return common(self.share.options)

    @property
    def correction(self) -> Correction:
        """What goes with θ."""
        return CORRECTIONS.get(name_of(self.share.options.local), Correction)()

    def _averages(self, round_: int) -> bool:
        """Return whether clients send an adapter in a round."""
        last = last_rounds(self.share.options)
        return not last or self.rounds - round_ >= last

    def _sent(self, state: ParamsState) -> list[str]:
        """Return which of the tensors clients send in the open round."""
        trained, _ = parted(state.adapter)
        return self.share.sent(trained, state.closed + 1)

    def _down(
        self, state: ParamsState, client: ClientId, *, without: Collection[Part]
    ) -> dict[str, Section]:
        """Return sections of θ, as a client has room for it, and S."""
        share = self.share
        some = {n: t for n, t in state.adapter.items() if share.part(n) not in without}
        return adapter_sections(share.down(some, client), share.laid_out(client))
