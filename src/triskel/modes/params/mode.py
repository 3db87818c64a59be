"""Parameter exchange: every client trains a copy of the adapter, the server averages the copies.

One round t, adapter and head θ, clients i of the cohort with nᵢ examples:

    server                                    client
    sends θ
                                              θᵢ ← θ;  per batch:  θᵢ ← AdamW(θᵢ, ∇ℓ(θᵢ; batch))
                                              sends θᵢ, nᵢ
    θ̄ = Σ nᵢ θᵢ / Σ nᵢ
    m ← β m + (θ̄ - θ);  θ ← θ + λ m

With λ = 1 and β = 0 this is FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1) on adapter
parameters (FedLLMs of arXiv:2501.04436); with β > 0, FedAvgM (Hsu et al. 2019, arXiv:1909.06335).

What leaves a client: the trained adapter and head, and how many examples they rest on. Never texts
or labels; but an adapter can reveal texts it was trained on (docs/threats.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from triskel.aggregate.mean import Mean, MeanTotal
from triskel.errors import RoundError
from triskel.evaluate import probe_joined
from triskel.exchange import adapter_of, adapter_sections, number, same_round
from triskel.model.body import Layout
from triskel.model.train import Where
from triskel.modes.params.spec import SPEC, ParamsOptions
from triskel.setting import ModeSetting
from triskel.tensors import blend
from triskel.types import AskStyle, ClientId, ClientState, Message, Talk, Tensors
from triskel.worker import Worker

MEAN = Mean()


@dataclass(frozen=True)
class ParamsState:
    """The server between rounds.

    Attributes:
        adapter: θ, adapter and head.
        velocity: m, empty while β = 0.
        closed: Rounds closed so far.
    """

    adapter: Tensors
    velocity: Tensors = field(default_factory=dict[str, Tensor])
    closed: int = 0


@dataclass(frozen=True)
class Params:
    """Parameter exchange.

    Attributes:
        options: The server's λ and β.
        initial: θ before round 1.
        layout: Which tensors are the head's.
    """

    options: ParamsOptions
    initial: Tensors
    layout: Layout
    asks: Mapping[str, AskStyle] = field(default_factory=dict[str, AskStyle])
    in_flight: int = 0

    @classmethod
    def build(cls, setting: ModeSetting) -> "Params":
        """Return the mode of a job."""
        body = setting.body
        options = SPEC.of(setting.job)
        return cls(options=options, initial=body.initial, layout=body.layout)

    def start(self) -> ParamsState:
        """Return the server's state before round 1."""
        return ParamsState(adapter=self.initial)

    def task(self, state: ParamsState, client: ClientId) -> Message:
        """Send θ."""
        del client  # everyone gets the same
        return Message(
            kind="task",
            sections=adapter_sections(state.adapter, self.layout),
            facts={"round": state.closed + 1},
        )

    def work(self, task: Message, worker: Worker, mine: ClientState) -> Talk:
        """Train a copy of θ; the server is asked nothing."""
        body = worker.body
        received = adapter_of(task, body.initial, body.layout, kind="task")
        where = Where(worker.client, int(number(task.facts, "round", least=1)))
        learner, loss = yield from worker.train_on(received, where)
        update = Message(
            kind="update",
            sections=adapter_sections(learner.parameters, body.layout),
            facts={"round": where.round, "examples": len(worker.train), "loss": loss},
        )
        return update, mine

    def answer(
        self, state: ParamsState, asks: Mapping[ClientId, Message]
    ) -> tuple[ParamsState, Mapping[ClientId, Message]]:
        """Refuse: no client asks in this mode.

        Raises:
            RoundError: Always.
        """
        del state
        raise RoundError(f"clients {sorted(asks)} asked; parameter exchange has no questions")

    def zero(self, state: ParamsState) -> MeanTotal:
        """Return the total of no updates."""
        del state
        return MEAN.zero()

    def add(
        self, state: ParamsState, total: MeanTotal, client: ClientId, update: Message
    ) -> MeanTotal:
        """Fold nᵢ θᵢ in."""
        del client
        same_round(update, state.closed + 1)
        theirs = adapter_of(update, state.adapter, self.layout, kind="update")
        return MEAN.add(total, theirs, number(update.facts, "examples", least=1))

    def close(self, state: ParamsState, total: MeanTotal) -> ParamsState:
        """Return θ + λ m; with λ = 1 and β = 0 exactly θ̄."""
        options = self.options
        mean = MEAN.value(total)
        velocity: Tensors = {}
        if options.server_momentum:
            velocity = {
                n: options.server_momentum * state.velocity.get(n, 0 * w) + (mean[n] - w)
                for n, w in state.adapter.items()
            }
            mean = {n: w + velocity[n] for n, w in state.adapter.items()}
        adapter = blend(state.adapter, mean, options.server_lr)
        return ParamsState(adapter=adapter, velocity=velocity, closed=state.closed + 1)

    def served(self, state: ParamsState) -> Tensors:
        """Return θ."""
        return state.adapter

    def own(self, mine: ClientState) -> None:
        """Return None: clients use θ."""

    def probe(self, task: Message, worker: Worker, mine: ClientState) -> Talk:
        """Evaluate θ on the client's own test share."""
        received = adapter_of(task, worker.body.initial, worker.body.layout, kind="task")
        return probe_joined(worker, received), mine
        yield  # a Talk that asks nothing
