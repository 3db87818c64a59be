"""Hidden states below the first block that trains, computed once per example and kept.

Where adapters sit in the upper blocks only, what enters the first of them is a function of the
text alone: the base is frozen and never has dropout. Keeping it costs 2 d bytes a token in
bfloat16, and saves the lower blocks from the second epoch on.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triskel.errors import ModelError
from triskel.types import Batch, Examples

MEMORY = 1_000_000_000
"""Bytes kept in memory; what comes later lies in files."""


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

    @property
    def size(self) -> int:
        """Bytes kept, in memory and in files."""
        return sum(shelf.values.nbytes for shelf in self._shelves.values())

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
            values = _on_disk(count, h.dtype)
        known = torch.zeros(len(lengths), dtype=torch.bool)
        return _Shelf(examples, ends, values.view(-1, h.shape[-1]), known)


def _on_disk(count: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor that lies in a file without a name, gone when the tensor is.

    Raises:
        ModelError: There is no room for it.
    """
    size = count * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="triskel-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk would kill us at a write
        except OSError as error:
            raise ModelError(
                f"{size / 1e6:.0f} MB of hidden states do not fit into {tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a larger place, or model.cache_mb = 0"
            ) from error
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype)
