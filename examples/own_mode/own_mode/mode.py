"""Sign exchange: clients train a copy of the adapter θ and send the direction in which it moved.

    server                                client
    sends θ
                                          θᵢ ← θ;  per batch:  θᵢ ← AdamW(θᵢ, ∇ℓ(θᵢ; batch))
                                          for each tensor:  sᵢ = mean |θᵢ - θ|
                                          sends [θᵢ > θ], sᵢ, nᵢ
    θ ← θ + λ Σ nᵢ sᵢ sign(θᵢ - θ) / Σ nᵢ

What leaves a client: one bit for each trained number, one scale a tensor, and nᵢ. After signSGD
with a scale (Karimireddy et al. 2019, arXiv:1901.09847, without its error feedback).
"""

from dataclasses import dataclass

from own_mode import SignOptions
from triskel.aggregate.mean import Mean, MeanTotal
from triskel.model.shared import SharedModel
from triskel.numerics.tensors import blend, flat
from triskel.training.evaluate import probe_joined
from triskel.training.loop import StepId
from triskel.training.mode_setting import ModeSetting
from triskel.training.worker import Worker
from triskel.types import ClientId, ClientState, ClientUpdate, Message, Mode, Section, Talk, Tensors
from triskel.wire import expect
from triskel.wire.adapters import adapter_of, adapter_sections, number, same_round


@dataclass(frozen=True)
class SignState:
    """The server between rounds: θ, and how many rounds are closed."""

    adapter: Tensors
    closed: int = 0


@dataclass(frozen=True)
class Sign(Mode[SignState, MeanTotal, Worker]):
    """Sign exchange; what it leaves out (asks, models of clients' own) has `Mode`'s defaults."""

    options: SignOptions
    body: SharedModel

    @classmethod
    def build(cls, setting: ModeSetting[SignOptions]) -> "Sign":
        return cls(options=setting.options, body=setting.body)

    def start(self) -> SignState:
        return SignState(self.body.initial)

    def task(self, state: SignState, client: ClientId) -> Message:
        sections = adapter_sections(state.adapter, self.body.layout)
        return Message(kind="task", sections=sections, facts={"round": state.closed + 1})

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        body = worker.body
        before = adapter_of(task, body.initial, body.layout, kind="task")
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer, loss = yield from worker.train_on(before, where)
        moved = {n: p.detach().cpu() - before[n] for n, p in trainer.parameters.items()}
        scales = {n: x.abs().mean().reshape(1) for n, x in moved.items()}
        sections = {
            "signs": Section(kind="mask", tensors={n: x > 0 for n, x in moved.items()}),
            "scales": Section(kind="dense", tensors=scales),
        }
        facts = {"round": where.round, "examples": len(worker.train), "loss": loss}
        return Message(kind="update", sections=sections, facts=facts), client_state

    def zero(self, state: SignState) -> MeanTotal:
        return Mean().zero()

    def add(
        self, state: SignState, total: MeanTotal, client: ClientId, update: Message
    ) -> MeanTotal:
        """Fold θ + sᵢ sign(θᵢ - θ) in, once the update is what this round waits for."""
        same_round(update, state.closed + 1)
        shapes = {n: tuple(x.shape) for n, x in state.adapter.items()}
        wanted = {"signs": shapes, "scales": dict.fromkeys(shapes, (1,))}
        kinds = {"signs": "mask", "scales": "dense"}
        expect(update, kind="update", sections=wanted, kinds=kinds)
        signs, scales = (update.sections[name].tensors for name in wanted)
        moved = {n: x + scales[n] * (2 * signs[n].float() - 1) for n, x in state.adapter.items()}
        sections = adapter_sections(moved, self.body.layout)
        weight = number(update.facts, "examples", least=1)
        return Mean().add(total, ClientUpdate(client=client, sections=sections, weight=weight), {})

    def merge(self, state: SignState, left: MeanTotal, right: MeanTotal) -> MeanTotal:
        return Mean().merge(left, right)

    def close(self, state: SignState, total: MeanTotal) -> SignState:
        """Return θ, moved by λ of the way to the mean."""
        mean = Mean().value(total, adapter_sections(state.adapter, self.body.layout))
        adapter = blend(state.adapter, flat(mean), self.options.step)
        return SignState(adapter, state.closed + 1)

    def server_model(self, state: SignState) -> Tensors:
        return state.adapter

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        received = adapter_of(task, worker.body.initial, worker.body.layout, kind="task")
        return probe_joined(worker, received), client_state
        yield  # a Talk that asks nothing
