"""The dtypes that travel, the bytes they take, and numbers that are numbers."""

import math
import reprlib
from collections.abc import Mapping, Sequence

import torch

from triskel.core.codec_spec import CHANGE
from triskel.errors import MessageError
from triskel.types import Section

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "BOOL": torch.bool,
}
"""The only dtypes that travel, by their safetensors names."""

DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

Shape = Sequence[int]


def tensor_bytes(dtype: torch.dtype, shape: Shape) -> int:
    """Return the bytes a tensor takes on the wire: its own, and a bit for each bool."""
    entries = math.prod(shape)
    return (entries + 7) // 8 if dtype == torch.bool else entries * dtype.itemsize


def section_bytes(section: Section) -> int:
    """Return the bytes the section's tensors take on the wire as they are now, table left out."""
    return sum(tensor_bytes(x.dtype, x.shape) for x in section.tensors.values())


def payload_bytes(section: Section) -> int:
    """Return the bytes a mode wants to send, before codecs.

    A float, a label and a count take 4 bytes, any other integer its own size, a mask one bit an
    entry, rounded up to bytes for each tensor. A change counts as what it is the change of.

    Raises:
        MessageError: The section is encoded already.
    """
    if section.codec not in {(), (CHANGE,)}:
        raise MessageError(
            f"payload is what a mode sends before codecs, and this {section.kind} section "
            f"carries {'+'.join(section.codec)}; count it before codec.encode"
        )
    return sum(
        4 * x.numel()
        if x.is_floating_point() or section.kind in {"labels", "counts"}
        else tensor_bytes(x.dtype, x.shape)
        for x in section.tensors.values()
    )


def show(value: object) -> str:
    """Return a short form of a value that a peer chose; its length and depth are bounded."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
