"""What one model got right in one run, text by text: the records that every claim rests on.

A figure without its texts cannot be compared with another: two models are tested on the same texts,
so their figures rise and fall together, and only the record tells how far. Kept beside the scores
of a run; `significance` computes with them.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from triskel.errors import DataError

Figure: TypeAlias = Literal["accuracy", "loss"]
"""`accuracy`: right predictions of all scored; `loss`: nats a scored prediction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What one model (or one row of a table) got right in one run, that is, with one seed.

    Attributes:
        texts: Which text, by a number that is the same in every run; each at most once.
        right: Right predictions of each text: 0 or 1 for `classify`, right tokens for `causal`; a
            fraction where it is the mean over several models.
        loss: Summed loss of each text, in nats.
        scored: Predictions of each text: 1 for `classify`, scored tokens for `causal`.

    Raises:
        DataError: Empty, of unequal lengths, a text twice, or figures that cannot be.
    """

    texts: Int64[np.ndarray, " _"]
    right: Float64[np.ndarray, " _"]
    loss: Float64[np.ndarray, " _"]
    scored: Float64[np.ndarray, " _"]

    def __post_init__(self) -> None:
        lengths = [len(self.texts), len(self.right), len(self.loss), len(self.scored)]
        if min(lengths) != max(lengths):
            raise DataError(
                f"outcomes must have one entry a text, got {lengths} for texts, right, loss, scored"
            )
        if not len(self.texts):
            raise DataError("outcomes must hold at least one text, got none: score some texts")
        twice = _twice(self.texts)
        if twice is not None:
            raise DataError(f"outcomes must hold a text once, got text {twice} again")
        for name in ("right", "loss", "scored"):
            bad = np.flatnonzero(~np.isfinite(getattr(self, name)))
            if len(bad):
                raise DataError(
                    f"{name} must be finite, got {getattr(self, name)[bad[0]]} for text "
                    f"{self.texts[bad[0]]}: a model that diverged has no figure to compare"
                )
        if (self.scored < 0).any() or not self.scored.any():
            raise DataError("scored must be >= 0 and not 0 for all texts: leave out empty texts")
        if (self.right < 0).any() or (self.right > self.scored).any():
            raise DataError("right must lie between 0 and scored: count right predictions only")

    @property
    def binary(self) -> bool:
        """Whether every text has one prediction, right or wrong."""
        return bool((self.scored == 1).all() and ((self.right == 0) | (self.right == 1)).all())

    def summed(self, figure: Figure) -> Float64[np.ndarray, " texts"]:
        """Return what the figure adds up, text by text."""
        return self.right if figure == "accuracy" else self.loss


def _twice(texts: Int64[np.ndarray, " texts"]) -> int | None:
    """Return a text that is there twice."""
    ordered = np.sort(texts)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    return int(again[0]) if len(again) else None
