"""What codecs share that write codes, and a scale for each row or group of them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float32
from torch import Tensor

from triskel.errors import CodecError, MessageError
from triskel.types import Tensors


def finite32(name: str, x: Tensor) -> Float32[Tensor, "..."]:
    """Return a tensor in float32.

    Raises:
        CodecError: A number is not finite there.
    """
    y = x.to(torch.float32)
    if not bool(torch.isfinite(y).all()):
        raise CodecError(
            f"tensor {name!r} holds numbers that are not finite in float32; choose raw, "
            "or look for what made them"
        )
    return y


def without(tensors: Tensors, *suffixes: str) -> dict[str, Tensor]:
    """Return the tensors, a codec's own left out, in order; codes are still to be replaced."""
    return {name: x for name, x in tensors.items() if not name.endswith(suffixes)}


def coded(
    suffix: str,
    tensors: Tensors,
    codes: torch.dtype,
    scales: torch.dtype,
    *,
    beside: tuple[str, ...] = (),
    zero: bool = False,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield every tensor that has a scale: its name, its codes and its scales.

    Args:
        suffix: What a scale is called.
        tensors: Those of a section.
        codes: Type of the codes.
        scales: Type of the scales.
        beside: What else must be there for each, by its suffix.
        zero: Whether a scale may be 0.

    Raises:
        MessageError: A scale is of nothing, something lacks, or a type or a scale is not right.
    """
    for key, s in tensors.items():
        if not key.endswith(suffix):
            owner = next((key.removesuffix(end) for end in beside if key.endswith(end)), None)
            if owner is not None and owner + suffix not in tensors:
                raise MessageError(f"tensor {key!r} is of no tensor with a scale")
            if s.is_floating_point():
                raise MessageError(f"tensor {key!r} is {s.dtype}, expected {codes} codes")
            continue
        name = key.removesuffix(suffix)
        q = tensors.get(name)
        if q is None:
            raise MessageError(f"tensor {key!r} is the scale of no tensor")
        if q.dtype != codes or s.dtype != scales:
            raise MessageError(
                f"tensor {name!r} has {q.dtype} codes and {s.dtype} scales, "
                f"expected {codes} and {scales}"
            )
        if lacks := [end for end in beside if name + end not in tensors]:
            raise MessageError(f"tensor {name!r} lacks {name + lacks[0]!r}")
        if not bool(((s >= 0 if zero else s > 0) & torch.isfinite(s)).all()):
            least = "from 0" if zero else "above 0"
            raise MessageError(f"tensor {key!r} must hold finite numbers {least}")
        yield name, q, s
