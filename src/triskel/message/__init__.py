"""A message as bytes, and back; `docs/wire.md` has the layout byte by byte.

A fixed prefix, a deflated JSON header whose table lists every section and tensor, and one
safetensors payload in which the tensors of one section and dtype lie end to end. Nothing here can
run code found in the bytes, and no claim in them is believed before it is held against the bytes
that are there: a refusal costs a bounded amount of memory.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triskel.errors import LimitError, MessageError
from triskel.message.dtypes import (
    DTYPE_NAMES,
    DTYPES,
    Shape,
    is_finite,
    payload_bytes,
    section_bytes,
    show,
    tensor_bytes,
)
from triskel.message.header import (
    MAX_HEADER_BYTES,
    Entry,
    bound,
    dump,
    header_of,
    parse,
    read_header,
)
from triskel.message.receive import Template, expect, fact
from triskel.message.sections import SECTIONS, check, check_section
from triskel.types import Message, Section

__all__ = [
    "DTYPES",
    "DTYPE_NAMES",
    "LIMIT_BYTES",
    "MAGIC",
    "SECTIONS",
    "VERSION",
    "Shape",
    "Template",
    "check",
    "check_section",
    "expect",
    "fact",
    "is_finite",
    "pack",
    "payload_bytes",
    "section_bytes",
    "show",
    "tensor_bytes",
    "unpack",
]

MAGIC = b"TRSK"
VERSION = 1
PREFIX = struct.Struct("<4sIQ")
"""Magic, version, bytes of the deflated header."""

LIMIT_BYTES = 256_000_000

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies, in bytes from the start of the payload's data."""

    section: str
    tensor: str
    begin: int
    end: int

    def __str__(self) -> str:
        return f"section {self.section!r}, tensor {self.tensor!r}"


def pack(message: Message) -> bytes:
    """Return the message as bytes that `unpack` accepts.

    Raises:
        MessageError: A name, fact, dtype, shape or section is not one that can travel, or a
            number is not finite; the sentence names it.
    """
    header = read_header(header_of(message))
    check(message)
    text = dump(header)
    deflated = zlib.compress(text)
    inner, places = _layout(header.sections)
    body = [_bytes_of(message.sections[p.section].tensors[p.tensor], p) for p in places]
    return b"".join([PREFIX.pack(MAGIC, VERSION, len(deflated)), deflated, inner, *body])


def unpack(data: bytes | bytearray, *, limit_bytes: int = LIMIT_BYTES) -> Message:
    """Read what `pack` wrote; every tensor owns fresh memory, lists of facts become tuples.

    Args:
        data: One whole message.
        limit_bytes: The largest message this receiver reads.

    Raises:
        LimitError: The message or its header is larger than allowed.
        MessageError: The bytes are not a message; the sentence says where and why.
    """
    if len(data) > limit_bytes:
        raise LimitError(
            f"message has {len(data)} bytes, the limit is {limit_bytes}; raise wire.max_mb or "
            "choose a smaller codec"
        )
    text, start = _inflate(data)
    header = read_header(parse(text))
    inner, places = _layout(header.sections)
    size = places[-1].end if places else 0
    if len(data) - start != len(inner) + size:
        raise MessageError(
            f"payload has {len(data) - start} bytes, and the table claims {len(inner) + size}; "
            "the message was cut or lengthened on its way"
        )
    there = bytes(data[start : start + len(inner)])
    if there != inner:
        at = next(i for i, (got, own) in enumerate(zip(there, inner, strict=True)) if got != own)
        raise MessageError(
            f"payload header has {there[at : at + 20]!r} at byte {at}, and the table implies "
            f"{inner[at : at + 20]!r}"
        )
    whole = np.frombuffer(data, np.uint8)[start + len(inner) :]
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in header.sections}
    for place in places:
        dtype, shape = header.sections[place.section].tensors[place.tensor]
        tensors[place.section][place.tensor] = _tensor(whole, place, DTYPES[dtype], shape)
    message = Message(
        kind=header.kind,
        topic=header.topic,
        facts=header.facts,
        sections={
            name: Section(
                kind=entry.kind,
                tensors={n: tensors[name][n] for n in entry.tensors},
                facts=entry.facts,
                codec=entry.codec,
            )
            for name, entry in header.sections.items()
        },
    )
    check(message)
    return message


# --- Tensors and their bytes ------------------------------------------------------------------


def _layout(sections: Mapping[str, Entry]) -> tuple[bytes, list[_Place]]:
    """Return the payload's header, length included, and where each tensor lies, in order."""
    spans: dict[str, object] = {}
    places: list[_Place] = []
    end = 0
    for section, entry in sections.items():
        for dtype in dict.fromkeys(dtype for dtype, _ in entry.tensors.values()):
            begin = end
            for tensor, (own, shape) in entry.tensors.items():
                if own == dtype:
                    size = tensor_bytes(DTYPES[dtype], shape)
                    places.append(_Place(section, tensor, end, end + size))
                    end += size
            stored = "U8" if dtype == "BOOL" else dtype  # bools travel as bits
            spans[f"{section}/{dtype}"] = {
                "dtype": stored,
                "shape": [(end - begin) // DTYPES[stored].itemsize],
                "data_offsets": [begin, end],
            }
    text = json.dumps(spans, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _bytes_of(x: Tensor, place: _Place) -> memoryview:
    flat = x.detach().reshape(-1)
    if not is_finite(flat):
        raise MessageError(
            f"{place} holds NaN or infinity, which would spoil every sum it enters; "
            "look for what made it, or leave this client's round out"
        )
    if x.dtype == torch.bool:
        return np.packbits(flat.numpy(), bitorder="little").data
    return flat.contiguous().view(torch.uint8).numpy().data


def _tensor(
    whole: Bytes,
    place: _Place,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> Tensor:
    there = whole[place.begin : place.end]
    x = torch.empty(shape, dtype=dtype)
    own = x.reshape(-1).view(torch.uint8).numpy()  # the same memory
    if dtype == torch.bool:
        if x.numel() % 8 and there[-1] >> x.numel() % 8:
            raise MessageError(f"{place} has bits set past its {x.numel()} entries")
        own[:] = np.unpackbits(there, count=x.numel(), bitorder="little")
        return x
    own[:] = there
    if not is_finite(x):
        raise MessageError(f"{place} holds NaN or infinity; leave this peer's round out")
    return x


# --- The prefix and the header ----------------------------------------------------------------


def _inflate(data: bytes | bytearray) -> tuple[bytes, int]:
    """Return the header's JSON and where the payload starts."""
    if len(data) < PREFIX.size:
        raise MessageError(f"a message has at least {PREFIX.size} bytes, this one has {len(data)}")
    magic, version, size = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MessageError(f"a message starts with {MAGIC!r}, this one with {magic!r}")
    if version != VERSION:
        raise MessageError(
            f"message is of wire version {version}, this side reads {VERSION}; "
            "run the same release of triskel on both sides"
        )
    if size > MAX_HEADER_BYTES:
        raise LimitError(f"header claims {size} bytes, the limit is {MAX_HEADER_BYTES}")
    start = PREFIX.size + size
    if start > len(data):
        raise MessageError(
            f"header claims {size} bytes, and {len(data) - PREFIX.size} follow the prefix"
        )
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data[PREFIX.size : start], MAX_HEADER_BYTES + 1)
    except zlib.error as error:
        raise MessageError(f"header cannot be inflated: {error}") from error
    bound(text)
    if not stream.eof or stream.unused_data:
        raise MessageError(f"header is not one deflated stream of {size} bytes")
    return text, start
