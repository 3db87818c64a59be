"""Floats as they are, or as another float type."""

from dataclasses import dataclass

import torch

from triskel.errors import CodecError, MessageError
from triskel.types import Facts, Tensors
from triskel.wire import is_finite


@dataclass(frozen=True)
class Raw:
    """Every float in its own dtype: no error."""

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return the tensors themselves."""
        return tensors, {}

    def decode(self, tensors: Tensors, _facts: Facts, _most_bytes: int, /) -> Tensors:
        """Return the tensors themselves."""
        return tensors


@dataclass(frozen=True)
class Cast:
    """Every float rounded to the nearest of another type.

    |x - decode(encode(x))| <= eps / 2 · |x| within the normal range of `dtype`, where eps is
    2^-23 for float32, 2^-10 for float16 and 2^-7 for bfloat16.
    """

    dtype: torch.dtype

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return the tensors in `dtype`.

        Raises:
            CodecError: A number is not finite in `dtype`.
        """
        cast = {name: x.to(self.dtype) for name, x in tensors.items() if x.dtype != self.dtype}
        for name, x in cast.items():
            if not is_finite(x):
                raise CodecError(
                    f"tensor {name!r} reaches {float(tensors[name].abs().max()):.6g}, and "
                    f"{self.dtype} ends at {torch.finfo(self.dtype).max:.6g}; choose fp32 or raw"
                )
        return {**tensors, **cast}, {}

    def decode(self, tensors: Tensors, _facts: Facts, _most_bytes: int, /) -> Tensors:
        """Return the tensors as they came; `codec.decode` gives them their dtype back.

        Raises:
            MessageError: A float tensor is not of `dtype`.
        """
        for name, x in tensors.items():
            if x.is_floating_point() and x.dtype != self.dtype:
                raise MessageError(f"tensor {name!r} is {x.dtype}, expected {self.dtype}")
        return tensors


RAW, FP32, BF16, FP16 = Raw(), Cast(torch.float32), Cast(torch.bfloat16), Cast(torch.float16)
