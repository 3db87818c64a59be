"""Hidden states below the first block that trains, computed once per example and kept.

Where adapters sit in the upper blocks only, what enters the first of them is a function of the
text alone: the base is frozen and never has dropout. Keeping it costs 2 d bytes a token in
bfloat16, and saves the lower blocks from the second epoch on.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triskel.types import Batch, Examples

MEMORY = 1_000_000_000
"""Bytes kept in memory; what comes later lies in files of a temporary folder."""


@dataclass(frozen=True)
class _Shelf:
    """One party's examples at one depth.

    Attributes:
        examples: Whose hidden states; held, so that their identity stays theirs.
        ends: For each example one past its last row.
        values: [tokens, width].
        known: Which examples are there.
    """

    examples: Examples
    ends: Sequence[int]
    values: Tensor
    known: Tensor

    def rows(self, index: int) -> slice:
        """Return where an example lies."""
        return slice(self.ends[index - 1] if index else 0, self.ends[index])


class Prefix:
    """Hidden states of examples at a depth."""

    def __init__(self, *, memory: int = MEMORY) -> None:
        """Keep nothing yet."""
        self._memory = memory
        self._used = 0
        self._shelves: dict[tuple[int, int], _Shelf] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, batch: Batch, depth: int) -> Float[Tensor, "batch tokens width"] | None:
        """Return what enters block `depth`, padded as the batch is, where all rows are there."""
        shelf = self._shelves.get((id(batch.examples), depth))
        if shelf is None or not bool(shelf.known[list(batch.indices)].all()):
            return None
        return pad_sequence([shelf.values[shelf.rows(i)] for i in batch.indices], batch_first=True)

    def put(self, batch: Batch, depth: int, h: Float[Tensor, "batch tokens width"]) -> None:
        """Keep what enters block `depth`."""
        if batch.examples is None:
            return
        key = (id(batch.examples), depth)
        if key not in self._shelves:
            self._shelves[key] = self._shelf(batch.examples, h)
        shelf = self._shelves[key]
        kept = h.detach().cpu()
        for row, index in enumerate(batch.indices):
            place = shelf.rows(index)
            shelf.values[place] = kept[row, : place.stop - place.start]
            shelf.known[index] = True

    def _shelf(self, examples: Examples, h: Tensor) -> _Shelf:
        lengths = torch.tensor([len(ids) for ids in examples.ids])
        ends = lengths.cumsum(0).tolist()
        count = ends[-1] * h.shape[-1]
        size = count * h.element_size()
        if self._used + size <= self._memory:
            self._used += size
            values = torch.empty(count, dtype=h.dtype)
        else:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="triskel-prefix-")
            file = Path(self._folder.name) / f"{len(self._shelves)}.bin"
            values = torch.from_file(str(file), shared=True, size=count, dtype=h.dtype)
        known = torch.zeros(len(lengths), dtype=torch.bool)
        return _Shelf(examples, ends, values.view(-1, h.shape[-1]), known)
