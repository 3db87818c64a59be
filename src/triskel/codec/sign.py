"""One bit a float, and one scale a row: its sign times the row's mean absolute value.

    s = mean|x|           over a row, the last axis
    x ≈ s                 where x >= 0, and -s elsewhere

The scaled sign of EF-signSGD (Karimireddy et al. 2019, arXiv:1901.09847, Algorithm 1), row by row:
of all vectors of one magnitude it is the nearest to x, and |x - x̂|² = |x|² - n s². It says little
of a single x, so it is for changes whose error is fed back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from triskel.codec.rows import coded, finite32, without
from triskel.errors import MessageError
from triskel.types import Facts, Tensors

SCALE = ":scale1"


@dataclass(frozen=True)
class Sign:
    """One bit a number and one bfloat16 a row; 30 times smaller at 256 numbers a row."""

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return for each tensor bools of its shape and `name:scale1` of shape[:-1].

        Raises:
            CodecError: A number is not finite in float32.
        """
        found: dict[str, Tensor] = {}
        for name, x in tensors.items():
            y = finite32(name, x)
            rows = y if y.dim() else y.reshape(1)
            mean = rows.abs().to(torch.float64).sum(-1) / max(rows.shape[-1], 1)
            found[name] = y >= 0
            found[name + SCALE] = mean.clamp(max=torch.finfo(torch.bfloat16).max).to(torch.bfloat16)
        return found, {}

    def decode(self, tensors: Tensors, _facts: Facts, _most_bytes: int, /) -> Tensors:
        """Return s or -s for every entry of a tensor that has a scale.

        Raises:
            MessageError: Signs and scale do not fit each other.
        """
        decoded = without(tensors, SCALE)
        for name, q, s in coded(SCALE, tensors, torch.bool, torch.bfloat16, zero=True):
            if s.shape != q.shape[:-1]:
                raise MessageError(
                    f"tensor {name!r} has signs {list(q.shape)} and scales {list(s.shape)}"
                )
            most = s.to(torch.float32)
            most = most.unsqueeze(-1) if q.dim() else most
            decoded[name] = torch.where(q, most, -most)
        return decoded


SIGN = Sign()
"""The codec, as a value."""
