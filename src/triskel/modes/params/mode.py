"""Parameter exchange: every client trains a copy of the adapter, the server averages the copies.

One round t, adapter and head θ, clients i of the cohort with nᵢ examples:

    server                                    client
    sends θ (and S)
                                              θᵢ ← θ;  per batch:  θᵢ ← AdamW(θᵢ, ∇ℓ(θᵢ; batch))
                                              sends θᵢ, nᵢ
    θ̄ = Σ nᵢ θᵢ / Σ nᵢ
    m ← β m + (θ̄ - θ);  θ ← θ + λ m

With λ = 1 and β = 0 this is FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1) on adapter
parameters (FedLLMs of arXiv:2501.04436); with β > 0, FedAvgM (Hsu et al. 2019, arXiv:1909.06335).

S are frozen side factors, which an aggregate may make beside θ̄ and the mean does not; they stay
until the next round closes (model/side_factors.py).

What leaves a client: the trained adapter and head, and how many examples they rest on. Never texts
or labels; but an adapter can reveal texts it was trained on (docs/threats.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from torch import Tensor

from triskel.aggregate.server_optimizer import Momentum
from triskel.errors import RoundError
from triskel.model.side_factors import parted
from triskel.model.slots import Layout
from triskel.modes.params.fedkseed import FedKSeed
from triskel.modes.params.fedmezo import FedMeZO
from triskel.modes.params.spec import ParamsOptions
from triskel.numerics.replay import Replay
from triskel.training.evaluate import probe_joined
from triskel.training.loop import StepId
from triskel.training.mode_setting import ModeSetting
from triskel.training.worker import Worker
from triskel.types import (
    A,
    Aggregate,
    AskStyle,
    ClientId,
    ClientState,
    ClientUpdate,
    Message,
    Mode,
    ServerOptimizer,
    Talk,
    Tensors,
)
from triskel.wire.adapters import (
    SIDE,
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
    """

    adapter: Tensors
    moments: Tensors = field(default_factory=dict[str, Tensor])
    closed: int = 0


@dataclass(frozen=True)
class Params(Generic[A]):
    """Parameter exchange.

    Attributes:
        initial: θ before round 1.
        layout: Which tensors are the head's.
        aggregate: Makes θ̄ of the θᵢ.
        optimizer: Takes the server's step.
    """

    initial: Tensors
    layout: Layout
    aggregate: Aggregate[A]
    optimizer: ServerOptimizer = field(default_factory=Momentum)
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
        return cls(
            initial=body.initial,
            layout=body.layout,
            aggregate=setting.aggregate,
            optimizer=Momentum(lr=options.server_lr, momentum=options.server_momentum),
        )

    def start(self) -> ParamsState:
        """Return the server's state before round 1."""
        return ParamsState(adapter=self.initial, moments=self.optimizer.start())

    def task(self, state: ParamsState, client: ClientId) -> Message:
        """Send θ, and S where there is one."""
        del client  # everyone gets the same
        return Message(
            kind="task",
            sections=adapter_sections(state.adapter, self.layout),
            facts={"round": state.closed + 1},
        )

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Train a copy of θ; the server is asked nothing."""
        body = worker.body
        received = adapter_of(task, body.initial, body.layout, kind="task")
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer, loss = yield from worker.train_on(received, where)
        update = Message(
            kind="update",
            sections=adapter_sections(trainer.parameters, body.layout),
            facts={"round": where.round, "examples": len(worker.train), "loss": loss},
        )
        return update, client_state

    def answer(
        self, state: ParamsState, asks: Mapping[ClientId, Message]
    ) -> tuple[ParamsState, Mapping[ClientId, Message]]:
        """Refuse: no client asks in this mode.

        Raises:
            RoundError: Always.
        """
        del state
        raise RoundError(f"clients {sorted(asks)} asked; parameter exchange has no questions")

    def zero(self, state: ParamsState) -> A:
        """Return the total of no updates."""
        del state
        return self.aggregate.zero()

    def add(self, state: ParamsState, total: A, client: ClientId, update: Message) -> A:
        """Fold nᵢ θᵢ in."""
        same_round(update, state.closed + 1)
        before = adapter_sections(state.adapter, self.layout)
        trained = {name: section for name, section in before.items() if name != SIDE}
        theirs = ClientUpdate(
            client=client,
            sections=sections_of(update, trained, kind="update"),
            weight=number(update.facts, "examples", least=1),
        )
        return self.aggregate.add(total, theirs, before)

    def merge(self, state: ParamsState, left: A, right: A) -> A:
        """Return the total of both totals."""
        del state
        return self.aggregate.merge(left, right)

    def close(self, state: ParamsState, total: A) -> ParamsState:
        """Return θ + λ m, with λ = 1, β = 0 and the mean exactly θ̄; and S."""
        before = adapter_sections(state.adapter, self.layout)
        mean, side = aggregated(self.aggregate.value(total, before), before, self.layout)
        if side and not self.optimizer.takes_over:
            raise RoundError(
                "side factors are the rest of what the updates amount to, and the server's step "
                "ends elsewhere: params.server_lr must be 1 and params.server_momentum 0"
            )
        trained, _ = parted(state.adapter)
        adapter, moments = self.optimizer.step(trained, mean, state.moments)
        return ParamsState(adapter={**adapter, **side}, moments=moments, closed=state.closed + 1)

    def server_model(self, state: ParamsState) -> Tensors:
        """Return θ and S."""
        return state.adapter

    def client_model(self, client_state: ClientState) -> None:
        """Return None: clients use θ."""

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate θ on the client's own test share."""
        received = adapter_of(task, worker.body.initial, worker.body.layout, kind="task")
        return probe_joined(worker, received), client_state
        yield  # a Talk that asks nothing
