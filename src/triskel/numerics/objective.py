"""What is made small, and how predictions are counted: cross-entropy, unless a task has its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.numerics.metrics import Score, Tally
from triskel.numerics.tensors import wide
from triskel.types import Batch

Loss = Callable[[Float[Tensor, "scored classes"], Batch], Float[Tensor, ""]]
"""What is made small: a function of a batch's logits, in nats."""


def label_loss(logits: Float[Tensor, "scored classes"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats over positions whose target is known."""
    targets = batch.targets.to(logits.device)
    known = int((batch.targets >= 0).sum())
    sums = logits.to(wide(logits.dtype))
    total = cross_entropy(sums, targets, ignore_index=-1, reduction="sum")
    return total / max(known, 1)


@runtime_checkable
class Counts(Protocol):
    """Predictions as they are counted, batch by batch; `metrics.Tally` is one."""

    def add(
        self,
        logits: Float[Tensor, "scored classes"],
        targets: Int[Tensor, " scored"],
        texts: Int[Tensor, " scored"] | None = None,
    ) -> None:
        """Count predictions; targets of -1 are left out."""
        ...

    def score(self) -> Score:
        """Return the sums so far, and what each text adds to them."""
        ...


@dataclass(frozen=True)
class Objective:
    """What a task makes small, and how its predictions are counted.

    Attributes:
        loss: Of a batch's logits. Another one than `label_loss` is computed from all logits.
        counts: Of the number of classes (0 over the vocabulary) and of texts told apart.
    """

    loss: Loss = label_loss
    counts: Callable[[int, int], Counts] = Tally
