"""The local loop without gradients: two forward passes a step, at the memory of inference.

    ℓ± = ℓ(w ± ε z_s; batch)
    g = (ℓ+ - ℓ-) / 2ε, to a multiple of 2^-16
    w ← w - η g z_s

The simultaneous perturbation of MeZO (Malladi et al. 2023, arXiv:2305.17333, Algorithm 1): z_s is
made anew from its seed for each of its three uses. No graph is built and no activation kept.
Beside the tensors that the model runs there are their start and the sum of all steps, which is
exact (`numerics.replay`): w is never moved forth and back, so nothing is left behind by rounding.
"""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.errors import TrainingError
from triskel.model.shared import SharedModel
from triskel.model.side_factors import side_rank
from triskel.numerics.normals import UNIT, normals
from triskel.numerics.objective import label_loss
from triskel.numerics.replay import MOST, TICK, Replay, moved, parted, pieces
from triskel.numerics.rng import derive
from triskel.numerics.tensors import wide
from triskel.training.loop import StepId, worth_joining
from triskel.types import Batch, Local, Work

SUM_BYTES = 8


class Walk:
    """One party's tensors while they are taken along seeds.

    Attributes:
        body: The model they belong to.
        model: What the model runs: w, or w moved along a seed.
        epsilon: ε.
        held: Bytes beside what inference holds: the start, and the sum.
    """

    def __init__(
        self,
        body: SharedModel,
        replay: Replay,
        sums: Float64[Tensor, " numbers"],
        *,
        lr: float,
        epsilon: float,
    ) -> None:
        """Begin where a sum leads; the sum is copied.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        self.body, self.epsilon, self._lr = body, epsilon, lr
        self._start = replay.flat.to(body.device)
        self._sums = sums.to(body.device, copy=True)
        self.model = body.parameters(replay.start)
        self._flat = torch.empty_like(self._start)
        for name, view in parted(self._flat, replay.start, copy=False).items():
            self.model[name].data = view
        self.held = self._start.nbytes + self._sums.nbytes

    def move(self, seed: int, sign: int) -> None:
        """Put w + sign ε z_s into the model; with a sign of 0, w."""
        for piece in pieces(self._flat):
            w = moved(self._start[piece], self._sums[piece], self._lr)
            if sign:
                z = normals(seed, piece.start, len(w), w.device)
                w = (w.to(torch.float64) + z * (sign * self.epsilon * UNIT)).to(w.dtype)
            self._flat[piece] = w

    def take(self, seed: int, a: float) -> None:
        """Take a step of so many ticks along a seed."""
        for piece in pieces(self._sums):
            here = self._sums[piece]
            here.add_(normals(seed, piece.start, len(here), here.device), alpha=a)


@dataclass(eq=False)
class WalkStep:
    """One step of one party, alone or in one pass with other parties'; is a `types.Work`.

    Attributes:
        walk: What is moved.
        batch: What the loss is of.
        where: Names client and round in errors.
        step: Which step of its phase it is.
        along: The seed.
        seed: Of the adapter's dropout, the same in both passes.
        value: The mean of both losses in nats, once it ran.
        ticks: How far the step went, an integer.
    """

    walk: Walk
    batch: Batch
    where: StepId
    step: int
    along: int
    seed: int
    value: float = math.nan
    ticks: float = math.nan

    @property
    def kind(self) -> Hashable:
        """Parties with the same model go together."""
        body = self.walk.body
        return ("forward", id(body)) if body.joins else None

    @property
    def size(self) -> int:
        """Padded tokens."""
        return self.batch.ids.numel()

    def beside(self, others: Sequence[Work]) -> bool:
        """Return whether one pass with these is cheaper, as in training."""
        all_ = [self, *(work for work in others if isinstance(work, WalkStep))]
        body = self.walk.body
        rank = body.adapter.rank + side_rank(self.walk.model)
        return worth_joining(body, rank, [[work.batch.ids.shape for work in all_]])

    def run(self, others: Sequence[Work] = ()) -> None:
        """Run the model twice, and take the step of every party.

        Raises:
            TrainingError: A loss is not finite, or differs too much; no party took its step.
        """
        together = [self, *(work for work in others if isinstance(work, WalkStep))]
        ahead, behind = self._losses(together, 1), self._losses(together, -1)
        found = [
            work.found(up, down) for work, up, down in zip(together, ahead, behind, strict=True)
        ]
        for work, up, down, a in zip(together, ahead, behind, found, strict=True):
            work.value, work.ticks = (up + down) / 2, a
            work.walk.take(work.along, a)

    def found(self, ahead: float, behind: float) -> float:
        """Return how many ticks a step goes.

        Raises:
            TrainingError: That is no number, or too many; names client, round and step.
        """
        slope = (ahead - behind) / (2 * self.walk.epsilon)
        if not abs(slope) <= MOST:  # NaN is not
            raise TrainingError(
                f"losses {ahead:.6g} and {behind:.6g} make a slope of {slope:.6g}, beyond "
                f"{MOST:g}, at client {self.where.client!r}, round {self.where.round}, step "
                f"{self.step}; lower params.exchange.lr, or look for broken rows in that client's "
                "data"
            )
        return float(round(slope / TICK))

    def _losses(self, together: Sequence["WalkStep"], sign: int) -> list[float]:
        """Return everybody's loss on one side of w."""
        for work in together:
            work.walk.move(work.along, sign)
        body = self.walk.body
        body.dropout(self.seed)  # who has dropout runs alone
        with torch.no_grad():
            parties, batches = [w.walk.model for w in together], [w.batch for w in together]
            return [float(loss) for loss in _losses(body, parties, batches)]


def _losses(body: SharedModel, parties: Sequence[Any], batches: Sequence[Batch]) -> list[Tensor]:
    """Return each party's loss, without all logits over a vocabulary at once."""
    loss = body.objective.loss
    if loss is not label_loss:
        logits = body.together(parties, batches)
        return [loss(z, batch) for z, batch in zip(logits, batches, strict=True)]
    found = body.label_losses(parties, batches)
    if found is not None:
        return found
    if len(parties) > 1:
        logits = body.together(parties, batches)
        return [label_loss(z, batch) for z, batch in zip(logits, batches, strict=True)]
    ((party,), (batch,)) = parties, batches
    sums = [
        cross_entropy(
            z.to(wide(z.dtype)),
            batch.targets[part].to(z.device),
            ignore_index=-1,
            reduction="sum",
        )
        for part, z in body.logits_by_part(party, batch)
    ]
    return [torch.stack(sums).sum() / max(int((batch.targets >= 0).sum()), 1)]


def walk(
    one: Walk,
    work: Iterable[tuple[int, Batch]],
    *,
    seed: int,
    where: StepId,
    after: Callable[[Batch, float], None],
) -> Generator[Local, Any, tuple[list[float], float]]:
    """Take one step per item of `work`; whoever drives the generator runs the steps.

    Args:
        one: What is moved, in place.
        work: The seed and the batch of each step, in order.
        seed: The job's seed, for the adapter's dropout.
        where: Names client and round in errors.
        after: Called with each step's batch and loss once the step is taken.

    Returns:
        The ticks of each step, and the mean loss over steps.

    Raises:
        TrainingError: A loss is not finite, or differs too much.
    """
    taken: list[float] = []
    total = 0.0
    for step, (along, batch) in enumerate(work):
        now = WalkStep(one, batch, where, step, along, derive(seed, *where.path(step)))
        yield Local(now)
        taken.append(now.ticks)
        total += now.value
        after(batch, now.value)
    one.body.dropout(None)
    return taken, total / max(len(taken), 1)
