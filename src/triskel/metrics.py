"""What a model got right: sums that add up over batches, clients and rounds."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.tensors import wide
from triskel.types import Fact

LARGEST_LOG = 700.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over predictions; `merge` them in any order, divide at the end.

    Attributes:
        confusion: For `classify`, how often class row was predicted as class column. None for
            `causal`, where a table of the whole vocabulary would say little.
        loss_sum: Summed cross-entropy in nats.
        correct: Predictions whose largest logit is the target.
        count: Predictions (examples for `classify`, scored tokens for `causal`).
    """

    confusion: Int[Tensor, "classes classes"] | None
    loss_sum: float
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of predictions that are right; 0 without predictions."""
        return self.correct / self.count if self.count else 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; 0 without predictions."""
        return self.loss_sum / self.count if self.count else 0.0

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss, at most e^700, where float64 ends."""
        return math.exp(min(self.loss, LARGEST_LOG))

    @property
    def macro_f1(self) -> float:
        """Mean over classes of 2 tp / (2 tp + fp + fn).

        Classes that neither occur nor are predicted are left out.
        """
        if self.confusion is None:
            return 0.0
        table = self.confusion.double()
        hits = table.diagonal()
        seen = table.sum(0) + table.sum(1)
        f1 = (2 * hits / seen.clamp(min=1))[seen > 0]
        return float(f1.mean()) if len(f1) else 0.0

    def row(self) -> dict[str, Fact]:
        """Return the figures that a result file holds.

        For `causal`, `accuracy` is the token accuracy.
        """
        if self.confusion is not None:
            return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "loss": self.loss}
        return {
            "accuracy": self.accuracy,
            "token_accuracy": self.accuracy,
            "perplexity": self.perplexity,
            "loss": self.loss,
        }


def empty(classes: int) -> Score:
    """Return the score of no predictions; `classes` is 0 for `causal`."""
    table = torch.zeros(classes, classes, dtype=torch.int64) if classes else None
    return Score(confusion=table, loss_sum=0.0, correct=0, count=0)


def merge(left: Score, right: Score) -> Score:
    """Return the score of both sets of predictions together."""
    table = None
    if left.confusion is not None and right.confusion is not None:
        table = left.confusion + right.confusion
    return Score(
        confusion=table,
        loss_sum=left.loss_sum + right.loss_sum,
        correct=left.correct + right.correct,
        count=left.count + right.count,
    )


def score(
    logits: Float[Tensor, "scored classes"], targets: Int[Tensor, " scored"], classes: int
) -> Score:
    """Return the score of one batch; targets of -1 are left out.

    Args:
        logits: Raw predictions.
        targets: Class index or token id.
        classes: Classes of a `classify` task, or 0 for `causal`.
    """
    known = targets >= 0
    logits, targets = logits[known].to(wide(logits.dtype)), targets[known]
    if not len(targets):
        return empty(classes)
    guess = logits.argmax(-1)
    table = None
    if classes:
        flat = torch.bincount(targets * classes + guess, minlength=classes * classes)
        table = flat.view(classes, classes).cpu()
    return Score(
        confusion=table,
        loss_sum=float(cross_entropy(logits, targets, reduction="sum")),
        correct=int((guess == targets).sum()),
        count=len(targets),
    )
