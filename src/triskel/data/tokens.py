"""Token ids of many texts, end to end.

A tensor costs about 700 bytes beside its numbers: with thousands of clients of a few short texts,
several times the tokens. NumPy arrays cost 112, and rows are made tensors when they are read.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triskel.types import Examples, Lost


class Ragged(Sequence[Tensor]):
    """Rows of unequal length, kept end to end; a row reads as a new tensor.

    Args:
        values: All rows, one after the other.
        lengths: How long each is.
        dtype: What a row reads as.
    """

    __slots__ = ("_dtype", "_ends", "_values")

    def __init__(self, values: NDArray[Any], lengths: Iterable[int], dtype: torch.dtype) -> None:
        self._values, self._dtype = values, dtype
        self._ends = np.cumsum([0, *lengths], dtype=np.int64)

    @classmethod
    def ids(cls, rows: Sequence[Sequence[int]]) -> Self:
        """Return rows of token ids: four bytes each, int64 when read.

        >>> Ragged.ids([[5, 6, 7], [8]])[0]
        tensor([5, 6, 7])
        """
        flat = np.fromiter((token for row in rows for token in row), dtype=np.int32)
        return cls(flat, map(len, rows), torch.int64)

    @classmethod
    def marks(cls, rows: Sequence[Sequence[bool]]) -> Self:
        """Return rows of marks, a byte each.

        >>> Ragged.marks([[False, True]])[0]
        tensor([False,  True])
        """
        flat = np.fromiter((mark for row in rows for mark in row), dtype=np.bool_)
        return cls(flat, map(len, rows), torch.bool)

    @property
    def lengths(self) -> list[int]:
        """How long each row is."""
        return np.diff(self._ends).tolist()

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return a row, or the rows of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        row = self._values[self._ends[place] : self._ends[place + 1]]
        return torch.tensor(row, dtype=self._dtype)

    def __iter__(self) -> Iterator[Tensor]:
        """Return one row after the other."""
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._ends) - 1

    def take(self, places: Sequence[int]) -> "Ragged":
        """Return some of the rows, in the order named.

        >>> Ragged.ids([[5, 6], [7], [8, 9]]).take([2, 0])[0]
        tensor([8, 9])
        """
        parts = [self._values[self._ends[i] : self._ends[i + 1]] for i in places]
        values = np.concatenate([self._values[:0], *parts])
        return Ragged(values, map(len, parts), self._dtype)

    def hits(self) -> list[int]:
        """Return how many marks each row has.

        >>> Ragged.marks([[False, True], [], [True, True]]).hits()
        [1, 0, 2]
        """
        sums = np.concatenate([[0], np.cumsum(self._values, dtype=np.int64)])
        return (sums[self._ends[1:]] - sums[self._ends[:-1]]).tolist()

    def followed(self, parts: "Sequence[Ragged]") -> "Ragged":
        """Return these rows, then those of the parts."""
        values = np.concatenate([self._values, *(part._values for part in parts)])  # noqa: SLF001 - its own class
        lengths = [length for part in (self, *parts) for length in part.lengths]
        return Ragged(values, lengths, self._dtype)


def concatenated(parts: Sequence[Examples]) -> Examples:
    """Return the examples of all parts, one part after the other; at least one part."""
    return Examples(
        ids=_joined([p.ids for p in parts]),
        labels=[label for p in parts for label in p.labels],
        scored=_joined([p.scored for p in parts]),
        lost=sum((p.lost for p in parts), Lost()),
    )


def _joined(parts: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    ragged = [part for part in parts if isinstance(part, Ragged)]
    if len(ragged) == len(parts):
        return ragged[0].followed(ragged[1:]) if ragged else ()
    return [row for part in parts for row in part]
