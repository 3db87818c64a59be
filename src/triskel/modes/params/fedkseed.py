"""Scalars along K seeds: what travels does not grow with the model, and who comes late is exact.

One round t, K seeds that everybody knows, an accumulated scalar a_s for each, w0 of the job's seed,
clients i of the cohort with nᵢ examples:

    server                                    client
    sends a (and p)
                                              w ← w0 - η Σ_s a_s z_s
                                              τ times, with a seed s drawn evenly (or by p):
                                                g ← (ℓ(w + ε z_s) - ℓ(w - ε z_s)) / 2ε
                                                w ← w - η g z_s
                                              sends τ pairs (s, g), nᵢ
    a_s ← a_s + Σ nᵢ Σ_{pairs of i along s} g / Σ nᵢ
    p = softmax(minmax(mean |g| along s))

FedKSeed, and FedKSeed-Pro with p (Qin et al. 2024, arXiv:2312.06353, Algorithm 1), on adapter and
head. A seed that nobody drew yet counts with the mean of the others in p. z_s is
`numerics.normals`, and all sums are exact (`numerics.replay`), so tensors rebuilt from a are those
of the server bit by bit.

What leaves a client: slopes of its loss along public directions, and how many examples they rest
on (docs/threats.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from triskel.errors import MessageError, RoundError
from triskel.modes.params.along_seeds import (
    STEPS,
    check_scalars,
    check_start,
    pairs_of,
    replay_of,
    round_of,
    scored,
    trained,
)
from triskel.modes.params.exchange import Exchange
from triskel.numerics.replay import EXACT, TICK, Replay, Steps, scalars_of, ticks
from triskel.numerics.rng import stream
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import (
    ClientId,
    ClientState,
    Message,
    Mode,
    Section,
    Talk,
    Tensors,
)
from triskel.wire import expect
from triskel.wire.adapters import number, same_round


@dataclass(frozen=True)
class KSeedState:
    """The server between rounds.

    Attributes:
        scalars: a, as `scalars`.
        history: Σ |g| along each seed, as `size`, and how often it was drawn, as `drawn`; empty
            where seeds are drawn evenly.
        closed: Rounds closed so far.
    """

    scalars: Tensors
    history: Tensors = field(default_factory=dict[str, Tensor])
    closed: int = 0


@dataclass(frozen=True, eq=False)
class KSeedTotal:
    """A running total of updates.

    Attributes:
        sums: Σ nᵢ g along each seed, in ticks.
        size: Σ |g| along each seed, in ticks.
        drawn: Pairs along each seed.
        weight: Σ nᵢ.
    """

    sums: Float64[Tensor, " seeds"]
    size: Float64[Tensor, " seeds"]
    drawn: Int64[Tensor, " seeds"]
    weight: float = 0.0


@dataclass(frozen=True)
class FedKSeed(Mode[KSeedState, KSeedTotal, Worker]):
    """FedKSeed.

    Attributes:
        exchange: K, τ, η and ε.
        replay: Rebuilds tensors.
    """

    exchange: Exchange
    replay: Replay

    def start(self) -> KSeedState:
        """Return the server's state before round 1."""
        count = self.exchange.seeds
        history: Tensors = {}
        if self.exchange.probabilities:
            history = {
                "size": torch.zeros(count, dtype=torch.float64),
                "drawn": torch.zeros(count, dtype=torch.int64),
            }
        return KSeedState(scalars={"scalars": torch.zeros(count)}, history=history)

    def task(self, state: KSeedState, client: ClientId) -> Message:
        """Send a, and p where seeds are drawn by it."""
        del client  # everyone gets the same
        sections = {STEPS: Section(kind="seeds", tensors=state.scalars)}
        if state.history:
            p = probabilities(state.history["size"], state.history["drawn"])
            sections["probabilities"] = Section(kind="dense", tensors={"probabilities": p})
        return Message(
            kind="task",
            sections=sections,
            facts={"round": state.closed + 1, "start": self.replay.sha256},
        )

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Rebuild w and take τ steps; the server is asked nothing."""
        replay = replay_of(worker, self.replay, self.exchange.lr)
        steps, p = self._received(task, replay)
        where = StepId(worker.client, round_of(task))
        seeds = self._drawn(p, worker.seed, where)
        update = yield from trained(worker, self.exchange, replay, steps, seeds, where)
        return update, client_state

    def zero(self, state: KSeedState) -> KSeedTotal:
        """Return the total of no updates."""
        del state
        none = torch.zeros(self.exchange.seeds, dtype=torch.float64)
        return KSeedTotal(none, none, none.to(torch.int64))

    def add(
        self, state: KSeedState, total: KSeedTotal, client: ClientId, update: Message
    ) -> KSeedTotal:
        """Fold a client's pairs in."""
        del client
        same_round(update, state.closed + 1)
        pairs = pairs_of(update, self.exchange.steps, self.exchange.seeds)
        weight = number(update.facts, "examples", least=1)
        along, found = pairs.seeds.to(torch.int64), pairs.ticks
        return KSeedTotal(
            sums=total.sums.index_add(0, along, weight * found),
            size=total.size.index_add(0, along, found.abs()),
            drawn=total.drawn + along.bincount(minlength=self.exchange.seeds),
            weight=total.weight + weight,
        )

    def merge(self, state: KSeedState, left: KSeedTotal, right: KSeedTotal) -> KSeedTotal:
        """Return the total of both totals."""
        del state
        return KSeedTotal(
            sums=left.sums + right.sums,
            size=left.size + right.size,
            drawn=left.drawn + right.drawn,
            weight=left.weight + right.weight,
        )

    def close(self, state: KSeedState, total: KSeedTotal) -> KSeedState:
        """Return a with the weighted mean of the round added.

        Raises:
            RoundError: Nobody sent anything.
        """
        if not total.weight:
            raise RoundError("no client returned an update; every client of the cohort failed")
        a = ticks(state.scalars["scalars"]) + (total.sums / total.weight).round()
        history = state.history
        if history:
            history = {
                "size": history["size"] + total.size,
                "drawn": history["drawn"] + total.drawn,
            }
        return KSeedState({"scalars": scalars_of(a)}, history, state.closed + 1)

    def server_model(self, state: KSeedState) -> Tensors:
        """Return w."""
        return self.replay.tensors(steps_of(state.scalars["scalars"]))

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate w on the client's own test share."""
        replay = replay_of(worker, self.replay, self.exchange.lr)
        steps, _ = self._received(task, replay)
        return scored(worker, replay, steps), client_state
        yield  # a Talk that asks nothing

    def _drawn(self, p: Tensor | None, seed: int, where: StepId) -> list[int]:
        """Return the seed of each step: a function of the job's seed, client and round, and p."""
        source, count = stream(seed, *where.path(0), "seeds"), self.exchange.steps
        if p is None:
            return torch.randint(self.exchange.seeds, (count,), generator=source).tolist()
        ends = p.to(torch.float64).cumsum(0)
        at = torch.rand(count, generator=source, dtype=torch.float64) * ends[-1]
        return torch.searchsorted(ends, at, right=True).clamp(max=len(p) - 1).tolist()

    def _received(self, task: Message, replay: Replay) -> tuple[Steps, Tensor | None]:
        """Return what a task says: the steps that lead to w, and p.

        Raises:
            MessageError: It says anything else, or is of another start.
        """
        like = torch.zeros(self.exchange.seeds)
        sections: dict[str, Mapping[str, Tensor]] = {STEPS: {"scalars": like}}
        if self.exchange.probabilities:
            sections["probabilities"] = {"probabilities": like}
        expect(task, kind="task", sections=sections, kinds={STEPS: "seeds"})
        check_start(task, replay)
        scalars = task.sections[STEPS].tensors["scalars"]
        check_scalars(scalars, EXACT * TICK)
        if not self.exchange.probabilities:
            return steps_of(scalars), None
        p = task.sections["probabilities"].tensors["probabilities"]
        if not bool((p >= 0).all() and p.sum() > 0 and p.sum().isfinite()):
            raise MessageError("section 'probabilities' must hold numbers from 0 on, not all 0")
        return steps_of(scalars), p


def steps_of(scalars: Float32[Tensor, " seeds"]) -> Steps:
    """Return how far a leads along each seed."""
    return Steps.of(torch.arange(len(scalars)), ticks(scalars))


def probabilities(
    size: Float64[Tensor, " seeds"], drawn: Int64[Tensor, " seeds"]
) -> Float32[Tensor, " seeds"]:
    """Return how often each seed is drawn: more, the larger its scalars are on average.

    >>> probabilities(torch.tensor([3.0, 1.0, 0.0]).double(), torch.tensor([1, 1, 0])).tolist()
    [0.506..., 0.186..., 0.307...]
    """
    mean = size / drawn.clamp(min=1)
    known = drawn > 0
    if not bool(known.any()):
        return torch.full_like(size, 1 / len(size)).to(torch.float32)
    mean = torch.where(known, mean, mean[known].mean())
    least, most = mean.min(), mean.max()
    scaled = (mean - least) / (most - least) if most > least else torch.zeros_like(mean)
    return scaled.softmax(0).to(torch.float32)
