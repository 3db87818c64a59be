"""What a model got right: sums that add up over batches, clients and rounds."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.core.result_parts import Figures
from triskel.numerics.tensors import wide

LARGEST_LOG = 700.0


@dataclass(frozen=True, kw_only=True)
class PerText:
    """What was reached on each text, in the order of the examples.

    Attributes:
        right: Right predictions (0 or 1 for `classify`); a mean over models may lie between.
        loss: Summed cross-entropy in nats.
        scored: Predictions of each text; 0 where nothing is known.
    """

    right: Float64[Tensor, " texts"]
    loss: Float64[Tensor, " texts"]
    scored: Int64[Tensor, " texts"]

    def at(self, which: Bool[Tensor, " texts"]) -> "PerText":
        """Return some of the texts."""
        return PerText(right=self.right[which], loss=self.loss[which], scored=self.scored[which])


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over predictions; `merge` them in any order, divide at the end.

    Attributes:
        confusion: For `classify`, how often class row was predicted as class column. None for
            `causal`, where a table of the whole vocabulary would say little, and where it stayed
            with whoever counted.
        loss_sum: Summed cross-entropy in nats.
        correct: Predictions whose largest logit is the target.
        count: Predictions (examples for `classify`, scored tokens for `causal`).
        classes: Classes of a `classify` task, or 0 for `causal`.
        texts: The same text by text, where it was kept; sums of scores have none.
    """

    confusion: Int[Tensor, "classes classes"] | None
    loss_sum: float
    correct: int
    count: int
    classes: int = 0
    texts: PerText | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float | None:
        """Share of predictions that are right; None without predictions."""
        return self.correct / self.count if self.count else None

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None without predictions."""
        return self.loss_sum / self.count if self.count else None

    @property
    def perplexity(self) -> float | None:
        """The exponential of the mean loss, at most e^700, where float64 ends; None as `loss`."""
        return perplexity_of(self.loss)

    @property
    def macro_f1(self) -> float | None:
        """Mean over classes of 2 tp / (2 tp + fp + fn).

        Classes that neither occur nor are predicted are left out; None where that is all of them.
        """
        if self.confusion is None:
            return None
        table = self.confusion.double()
        hits = table.diagonal()
        seen = table.sum(0) + table.sum(1)
        f1 = (2 * hits / seen.clamp(min=1))[seen > 0]
        return float(f1.mean()) if len(f1) else None

    def row(self) -> Figures:
        """Return the figures that a result file holds, and over how many predictions they are.

        For `causal`, `accuracy` is the token accuracy. Without a table there is no `macro_f1`.
        """
        n, accuracy, loss = self.count, self.accuracy, self.loss
        if self.confusion is not None:
            return {"accuracy": accuracy, "macro_f1": self.macro_f1, "loss": loss, "n": n}
        if self.classes:
            return {"accuracy": accuracy, "loss": loss, "n": n}
        return {
            "accuracy": accuracy,
            "token_accuracy": accuracy,
            "perplexity": self.perplexity,
            "loss": loss,
            "n": n,
        }


def perplexity_of(loss: float | None) -> float | None:
    """Return the exponential of a mean loss in nats, at most e^700; None for None."""
    return None if loss is None else math.exp(min(loss, LARGEST_LOG))


def empty(classes: int) -> Score:
    """Return the score of no predictions; `classes` is 0 for `causal`."""
    table = torch.zeros(classes, classes, dtype=torch.int64) if classes else None
    return Score(confusion=table, loss_sum=0.0, correct=0, count=0, classes=classes)


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
        classes=max(left.classes, right.classes),
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
    tally = Tally(classes)
    tally.add(logits, targets)
    return tally.score()


class Tally:
    """Predictions as they come, batch by batch; `score` says what they amount to.

    Args:
        classes: Classes of a `classify` task, or 0 for `causal`.
        texts: How many texts are told apart; 0 for none.
    """

    def __init__(self, classes: int, texts: int = 0) -> None:
        self._classes, self._total = classes, empty(classes)
        self._right = torch.zeros(texts, dtype=torch.float64)
        self._loss = torch.zeros(texts, dtype=torch.float64)
        self._scored = torch.zeros(texts, dtype=torch.int64)

    def add(
        self,
        logits: Float[Tensor, "scored classes"],
        targets: Int[Tensor, " scored"],
        texts: Int[Tensor, " scored"] | None = None,
    ) -> None:
        """Count predictions; targets of -1 are left out.

        Args:
            logits: Raw predictions.
            targets: Class index or token id.
            texts: Which text each belongs to, where texts are told apart.
        """
        known = targets >= 0
        logits, targets = logits[known].to(wide(logits.dtype)), targets[known]
        if not len(targets):
            return
        guess, classes = logits.argmax(-1), self._classes
        nats, right = cross_entropy(logits, targets, reduction="none").double(), guess == targets
        table = None
        if classes:
            flat = torch.bincount(targets * classes + guess, minlength=classes * classes)
            table = flat.view(classes, classes).cpu()
        more = Score(
            confusion=table,
            loss_sum=float(nats.sum()),
            correct=int(right.sum()),
            count=len(targets),
            classes=classes,
        )
        self._total = merge(self._total, more)
        if texts is not None:
            whose = texts[known.cpu()]
            self._right.index_add_(0, whose, right.double().cpu())
            self._loss.index_add_(0, whose, nats.cpu())
            self._scored += torch.bincount(whose, minlength=len(self._scored))

    def score(self) -> Score:
        """Return the sums so far, and what each text adds to them."""
        texts = PerText(right=self._right, loss=self._loss, scored=self._scored)
        return replace(self._total, texts=texts) if len(self._scored) else self._total
