"""Hidden states below the first block that trains, computed once for all of a party's examples.

Where adapters sit in the upper blocks only, what enters the first of them is a function of the
text alone: the base is frozen and never has dropout. Keeping it costs 2 d bytes a token in
bfloat16, and saves the lower blocks from the second epoch on.

A text rounds a little differently with the texts it is batched with. So all examples of a party run
at the first use of one of them, in batches that depend on nothing else: what is kept of a text does
not tell which batch asked first, and a run that was stopped finds after it what it had before.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triskel.numerics.tensors import eval_plan
from triskel.types import Examples

MEMORY = 1_000_000_000
"""Bytes kept in memory; what comes later lies in files."""
TOKENS = 2048
"""Padded tokens of a batch in which hidden states to keep are computed."""


@runtime_checkable
class Source(Protocol):
    """What hidden states come from: a body."""

    def below(
        self, ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"], depth: int, /
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what enters block `depth`; nothing below trains."""
        ...


@dataclass(frozen=True)
class _Shelf:
    """One party's examples at one depth of one body.

    Attributes:
        source: What ran.
        examples: Whose hidden states; both are held, so that their identity stays theirs.
        ends: For each example one past its last row.
        values: [tokens, width]; None where there was no room for them.
    """

    source: Source
    examples: Examples
    ends: Sequence[int]
    values: Tensor | None

    def padded(self, indices: Sequence[int]) -> Float[Tensor, "batch tokens width"] | None:
        """Return these examples side by side, if they are there."""
        if self.values is None:
            return None
        starts = [self.ends[i - 1] if i else 0 for i in indices]
        rows = [self.values[s : self.ends[i]] for s, i in zip(starts, indices, strict=True)]
        return pad_sequence(rows, batch_first=True)


class HiddenCache:
    """Hidden states of examples at a depth, of all bodies that share it.

    Args:
        limit: Most bytes kept at once.
        memory: The first so many of them lie in memory, the rest in files.
        say: Told, once, where there is no room.
    """

    def __init__(
        self,
        limit: float = math.inf,
        *,
        memory: int = MEMORY,
        say: Callable[[str], None] = print,
    ) -> None:
        """Keep nothing yet."""
        self._limit, self._memory, self._say = limit, memory, say
        self._shelves: dict[tuple[int, int, int], _Shelf] = {}
        self._size, self._told = 0, False

    @property
    def size(self) -> int:
        """Bytes kept, in memory and in files."""
        return self._size

    def forget(self) -> None:
        """Let go of everything."""
        self._shelves.clear()
        self._size = 0

    def get(
        self, source: Source, examples: Examples, indices: Sequence[int], depth: int
    ) -> Float[Tensor, "batch tokens width"] | None:
        """Return what enters block `depth` for these of a party's examples, side by side.

        None where there is no room: then they run in their own batch, every time.
        """
        key = (id(source), id(examples), depth)
        if key not in self._shelves:
            shelf = self._shelves[key] = self._filled(source, examples, depth)
            self._size += 0 if shelf.values is None else shelf.values.nbytes
        return self._shelves[key].padded(indices)

    def _filled(self, source: Source, examples: Examples, depth: int) -> _Shelf:
        """Run all examples, in batches that are a function of their lengths."""
        lengths = [len(ids) for ids in examples.ids]
        ends, values = list(accumulate(lengths)), None
        for rows in eval_plan(lengths, tokens=TOKENS):
            ids = pad_sequence([examples.ids[i] for i in rows], batch_first=True)
            h = source.below(ids, torch.tensor([lengths[i] for i in rows]), depth).cpu()
            if values is None and (values := self._room(ends[-1], h)) is None:
                break
            for states, i in zip(h, rows, strict=True):
                values[ends[i] - lengths[i] : ends[i]] = states[: lengths[i]]
        return _Shelf(source, examples, ends, values)

    def _room(self, tokens: int, like: Tensor) -> Float[Tensor, "tokens width"] | None:
        """Return a place for hidden states of so many tokens, or None where there is none."""
        shape = (tokens, like.shape[-1])
        size = math.prod(shape) * like.element_size()
        if self._size + size <= min(self._memory, self._limit):
            return torch.empty(shape, dtype=like.dtype)
        why = f"model.cache_mb allows {self._limit / 1e6:.0f} MB"
        if self._size + size <= self._limit:
            try:
                return _on_disk(math.prod(shape), like.dtype).view(shape)
            except OSError as error:
                why = f"the folder for temporary files has no room ({error})"
        if not self._told:
            self._told = True
            self._say(
                f"{size / 1e6:.0f} MB of hidden states cannot be kept: {why}; they are computed "
                "again in every batch, which takes longer and rounds otherwise than where they "
                "are kept; set TMPDIR to a larger place, or model.cache_mb = 0"
            )
        return None


def _on_disk(count: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor that lies in a file without a name, gone when the tensor is.

    Raises:
        OSError: There is no room for it.
    """
    size = count * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="triskel-") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk would kill us at a write
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype)
