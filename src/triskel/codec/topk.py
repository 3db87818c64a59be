"""The largest entries of a tensor, and where they stand.

Of N entries the k = max(1, ⌈share · N⌉) largest in magnitude travel; of equal ones the first. Each
takes a byte, with a scale for every 256 of them (as `int8` has it). Where they stand is written as
Elias and Fano do (Elias 1974, doi:10.1145/321812.321820): with r = ⌊log₂(N / k)⌋, each index i
gives its r low bits as they are, and its high bits as a 1 at place ⌊i / 2^r⌋ + (how many stand
before it). So the bits are k r + k + ⌊(N - 1) / 2^r⌋, whatever the indices are: about
2 + log₂(N / k) an entry. While k is at most N / 4 that is never more than the N bits of a mask.

    |x - x̂| <= s / 2 of an entry that travels; x̂ = 0 of the others, none of which is larger

It keeps few entries, so it is for changes whose error is fed back (Stich et al. 2018,
arXiv:1809.07599).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from triskel.codec.quantise import from_int8, to_int8
from triskel.codec.rows import coded, finite32, without
from triskel.core.codecs import TopKOptions
from triskel.errors import LimitError, MessageError
from triskel.types import Fact, Facts, Tensors
from triskel.wire import show

SCALE, LOW, HIGH = ":scalek", ":low", ":high"
TOGETHER = 256
"""Entries that share a scale."""
AXES = 8
"""Axes of a tensor, at most."""
WIDTH = 4
"""Bytes of an entry, decoded."""


def kept(entries: int, share: float) -> int:
    """Return how many entries travel.

    >>> kept(460_800, 0.01), kept(7, 0.01), kept(0, 0.01)
    (4608, 1, 0)
    """
    return min(entries, max(1, math.ceil(entries * share - 1e-9)))


def low_bits(entries: int, k: int) -> int:
    """Return r."""
    return (entries // k).bit_length() - 1 if k else 0


@dataclass(frozen=True)
class TopK:
    """A byte and about 2 + log₂(1 / share) bits an entry that travels.

    Attributes:
        options: How many do.
    """

    options: TopKOptions

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return for each tensor int8 codes of what travels, scales, and bits of where they stand.

        Raises:
            CodecError: A number is not finite in float32.
        """
        found: dict[str, Tensor] = {}
        for name, x in tensors.items():
            flat = finite32(name, x).reshape(-1)
            k = kept(flat.numel(), self.options.share)
            at = largest(flat, k)
            low, high = indices_as_bits(at, flat.numel())
            codes, scales = to_int8(_rows(flat[at]))
            found[name], found[name + SCALE] = codes.reshape(-1)[:k], scales
            found[name + LOW], found[name + HIGH] = low, high
        shapes = [list(x.shape) for x in tensors.values()]
        axes, sizes = [len(s) for s in shapes], [n for s in shapes for n in s]
        return found, {"axes": axes, "shape": sizes}

    def decode(self, tensors: Tensors, facts: Facts, most_bytes: int, /) -> Tensors:
        """Return tensors of their shape, zero but for what travelled.

        Raises:
            MessageError: Codes, scales, bits and facts do not fit each other.
            LimitError: The tensors would take more than `most_bytes`.
        """
        decoded = without(tensors, SCALE, LOW, HIGH)
        found = list(coded(SCALE, tensors, torch.int8, torch.float32, beside=(LOW, HIGH)))
        shapes = _shapes(facts, len(found))
        whole = WIDTH * sum(map(math.prod, shapes))
        if whole > most_bytes:
            raise LimitError(
                f"few entries stand for {whole} bytes, the limit is {most_bytes} (wire.max_mb)"
            )
        for (name, q, s), shape in zip(found, shapes, strict=True):
            entries = math.prod(shape)
            at = _indices(name, tensors, q.shape, entries)
            if s.shape != (-(-q.numel() // TOGETHER),):
                raise MessageError(
                    f"tensor {name!r} has {q.numel()} codes and scales {list(s.shape)}"
                )
            flat = torch.zeros(entries)
            flat[at] = from_int8(_rows(q), s).reshape(-1)[: q.numel()]
            decoded[name] = flat.reshape(shape)
        return decoded


def largest(flat: Float32[Tensor, " entries"], k: int) -> Int64[Tensor, " kept"]:
    """Return where the k largest in magnitude stand, rising; of equal ones the first.

    >>> largest(torch.tensor([1.0, -3.0, 3.0, 0.0, -1.0]), 3).tolist()
    [0, 1, 2]
    """
    size = flat.abs()
    if not k:
        return torch.zeros(0, dtype=torch.int64)
    least = size.topk(k, sorted=False).values.min()
    chosen = size > least
    ties = (size == least).nonzero().squeeze(-1)[: k - int(chosen.sum())]
    chosen[ties] = True
    return chosen.nonzero().squeeze(-1)


def indices_as_bits(
    at: Int64[Tensor, " kept"], entries: int
) -> tuple[Bool[Tensor, "kept low"], Bool[Tensor, " high"]]:
    """Return rising indices below `entries` as their low bits, and their high bits in unary.

    >>> low, high = indices_as_bits(torch.tensor([2, 5, 6]), 8)
    >>> low.int().tolist(), high.int().tolist()
    ([[0], [1], [0]], [0, 1, 0, 1, 0, 1])
    """
    k = at.numel()
    r = low_bits(entries, k)
    low = (at.unsqueeze(-1) >> torch.arange(r)) & 1
    high = torch.zeros(high_bits(entries, k), dtype=torch.bool)
    high[(at >> r) + torch.arange(k)] = True
    return low.to(torch.bool), high


def high_bits(entries: int, k: int) -> int:
    """Return how many bits the high halves of k indices take."""
    return k + ((entries - 1) >> low_bits(entries, k)) if k else 0


def _indices(
    name: str, tensors: Tensors, codes: Sequence[int], entries: int
) -> Int64[Tensor, " kept"]:
    """Return where the entries of a tensor stand.

    Raises:
        MessageError: The bits are not those of as many rising indices within the tensor.
    """
    low, high, k = tensors[name + LOW], tensors[name + HIGH], math.prod(codes)
    if len(codes) != 1 or k > entries or bool(k) != bool(entries):
        raise MessageError(f"tensor {name!r} of {entries} entries has codes {list(codes)}")
    r, wanted = low_bits(entries, k), (high_bits(entries, k),)
    fits = low.dtype == high.dtype == torch.bool
    if not fits or low.shape != (k, r) or high.shape != wanted or int(high.sum()) != k:
        raise MessageError(f"tensor {name!r} does not say where its {k} entries stand")
    at = ((high.nonzero().squeeze(-1) - torch.arange(k)) << r) + (
        low.to(torch.int64) << torch.arange(r)
    ).sum(-1)
    if k and (int(at[-1]) >= entries or not bool((at[1:] > at[:-1]).all())):
        raise MessageError(f"tensor {name!r}: indices must rise within 0-{entries - 1}")
    return at


def _rows(x: Tensor) -> Tensor:
    """Return entries in rows of those that share a scale, zeros at the end."""
    rows = -(-x.numel() // TOGETHER)
    padded = x.new_zeros(rows * TOGETHER)
    padded[: x.numel()] = x
    return padded.reshape(rows, TOGETHER)


def _shapes(facts: Facts, count: int) -> list[tuple[int, ...]]:
    axes, sizes = _counts(facts, "axes"), _counts(facts, "shape")
    if len(axes) != count or any(n > AXES for n in axes) or sum(axes) != len(sizes):
        raise MessageError(
            f"facts 'axes' and 'shape' must be the shapes of {count} tensors, got "
            f"{show(list(axes))} and {show(list(sizes))}"
        )
    return list(_cut(axes, sizes))


def _cut(axes: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    start = 0
    for n in axes:
        yield tuple(sizes[start : start + n])
        start += n


def _counts(facts: Facts, name: str) -> Sequence[int]:
    value: Fact = facts.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        found = [n for n in value if type(n) is int and n >= 0]
        if len(found) == len(value):
            return found
    raise MessageError(f"fact {name!r} must hold integers from 0, got {show(value)}")
