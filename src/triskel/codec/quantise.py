"""Floats as small integers and a scale shared by neighbours.

    s = max|x| / L        over a row (int8, L = 127) or a group of 32 in a row (int4, L = 7)
    q = round(x / s)      an integer in [-L, L]
    x ≈ s·q               |x - s·q| <= s / 2

A row is the last axis: hidden states have a few rows a hundred times larger than the rest, and one
scale for all would lose the small ones. s is never below 2^-126, so that rows of zeros and
subnormals keep the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float, Float32, UInt8
from jaxtyping import Int8 as Int8Array
from torch import Tensor

from triskel.codec.rows import coded, finite32, without
from triskel.errors import MessageError
from triskel.types import Fact, Facts, Tensors
from triskel.wire import show

TINY = torch.finfo(torch.float32).tiny
SCALE8, SCALE4 = ":scale8", ":scale4"
"""What a scale is called; each codec its own, so that they may be chained."""
GROUP = 32
SCALAR = -1
"""Stands for the last axis of a tensor that has none."""


@dataclass(frozen=True)
class Int8:
    """One byte a number and one float32 a row; 3.97 times smaller at 576 numbers a row."""

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return for each tensor int8 codes of its shape and `name:scale8` of shape[:-1].

        Raises:
            CodecError: A number is not finite in float32.
        """
        found: dict[str, Tensor] = {}
        for name, x in tensors.items():
            found[name], found[name + SCALE8] = to_int8(finite32(name, x))
        return found, {}

    def decode(self, tensors: Tensors, _facts: Facts, _most_bytes: int, /) -> Tensors:
        """Return s·q for every tensor that has a scale.

        Raises:
            MessageError: Codes and scale do not fit each other.
        """
        decoded = without(tensors, SCALE8)
        for name, q, s in coded(SCALE8, tensors, torch.int8, torch.float32):
            if s.shape != q.shape[:-1]:
                raise MessageError(
                    f"tensor {name!r} has codes {list(q.shape)} and scales {list(s.shape)}"
                )
            decoded[name] = from_int8(q, s)
        return decoded


@dataclass(frozen=True)
class Int4:
    """Half a byte a number and one bfloat16 a group of 32; 7.1 times smaller."""

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return for each tensor packed codes and `name:scale4`; fact `last` keeps its last axis.

        Raises:
            CodecError: A number is not finite in float32.
        """
        found: dict[str, Tensor] = {}
        for name, x in tensors.items():
            found[name], found[name + SCALE4] = to_int4(finite32(name, x))
        last = [x.shape[-1] if x.dim() else SCALAR for x in tensors.values()]
        return found, {"last": last}

    def decode(self, tensors: Tensors, facts: Facts, _most_bytes: int, /) -> Tensors:
        """Return s·q for every tensor that has a scale.

        Raises:
            MessageError: Codes, scale and fact `last` do not fit each other.
        """
        decoded = without(tensors, SCALE4)
        found = list(coded(SCALE4, tensors, torch.uint8, torch.bfloat16))
        for (name, q, s), n in zip(found, _lasts(facts.get("last"), len(found)), strict=True):
            lead, size = q.shape[:-1], 1 if n == SCALAR else n
            fits = q.shape == (*lead, -(-size // 2)) and s.shape == (*lead, -(-size // GROUP))
            if not q.dim() or not fits or (n == SCALAR and lead):
                raise MessageError(
                    f"tensor {name!r} has codes {list(q.shape)}, scales {list(s.shape)} and a "
                    f"last axis of {n}"
                )
            x = from_int4(q, s, size)
            decoded[name] = x.reshape(()) if n == SCALAR else x
        return decoded


def to_int8(
    x: Float32[Tensor, "*shape"],
) -> tuple[Int8Array[Tensor, "*shape"], Float[Tensor, "..."]]:
    """Return codes q and row scales s with |x - s·q| <= s / 2.

    >>> q, s = to_int8(torch.tensor([[1.0, -127.0], [0.0, 0.5]]))
    >>> q.tolist(), s.tolist()
    ([[1, -127], [0, 127]], [1.0, 0.003937...])
    """
    rows = x if x.dim() else x.reshape(1)
    most = rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[:-1])
    s = (most / 127).clamp(min=TINY)
    q = (rows / s.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    return q.reshape(x.shape), s


def from_int8(
    q: Int8Array[Tensor, "*shape"], s: Float32[Tensor, "..."]
) -> Float32[Tensor, "*shape"]:
    """Return s·q, within the range of float32."""
    x = q.to(torch.float32) * (s.unsqueeze(-1) if q.dim() else s)
    return x.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)


def to_int4(
    x: Float32[Tensor, "..."],
) -> tuple[UInt8[Tensor, "*lead bytes"], BFloat16[Tensor, "*lead groups"]]:
    """Return codes q + 8, the even ones of a row in the low half of a byte, and group scales s.

    A row of n numbers has (n + 1) // 2 bytes and (n + 31) // 32 scales; |x - s·q| <= s / 2 with
    max|x| / 7 <= s <= (1 + 2^-7) max|x| / 7, rounded up to bfloat16.
    """
    rows = x if x.dim() else x.reshape(1)
    n = rows.shape[-1]
    groups = rows.new_zeros((*rows.shape[:-1], -(-n // GROUP), GROUP))
    groups.flatten(-2)[..., :n] = rows
    s = _up((groups.abs().amax(-1) / 7).clamp(min=TINY))
    q = (groups / s.to(torch.float32).unsqueeze(-1)).round().clamp(-7, 7)
    codes = (q + 8).to(torch.uint8).flatten(-2)[..., : n + n % 2]
    return codes[..., 0::2] | (codes[..., 1::2] << 4), s


def from_int4(
    codes: UInt8[Tensor, "*lead bytes"], s: BFloat16[Tensor, "*lead groups"], n: int
) -> Float32[Tensor, "*lead {n}"]:
    """Return s·q for rows of n numbers, within the range of float32."""
    q = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :n].to(torch.float32) - 8
    x = q * s.to(torch.float32).repeat_interleave(GROUP, -1)[..., :n]
    return x.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)


def _up(s: Float32[Tensor, "..."]) -> BFloat16[Tensor, "..."]:
    """Return the smallest bfloat16 that is not below s; s is positive."""
    near = s.to(torch.bfloat16)
    # Positive floats are ordered as their bits are, so the next one is one bit pattern on.
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.to(torch.float32) < s, above, near)


def _lasts(value: Fact, count: int) -> list[int]:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count:
        lasts = [n for n in value if type(n) is int and n >= SCALAR]
        if len(lasts) == count:
            return lasts
    raise MessageError(f"fact 'last' must hold {count} integers from -1, got {show(value)}")


INT8, INT4 = Int8(), Int4()
