"""A message as bytes, and back; `docs/wire.md` has the layout byte by byte.

A fixed prefix, a deflated JSON header whose table lists every section and tensor, and one
safetensors payload in which the tensors of one section and dtype lie end to end. Nothing here can
run code found in the bytes, and no claim in them is believed before it is held against the bytes
that are there: a refusal costs a bounded amount of memory.
"""

import json
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triskel.errors import LimitError, MessageError
from triskel.numerics.tensors import is_finite
from triskel.types import Message, Section
from triskel.wire.dtypes import (
    DTYPE_NAMES,
    DTYPES,
    Shape,
    payload_bytes,
    section_bytes,
    show,
    tensor_bytes,
)
from triskel.wire.header import (
    MAX_HEADER_BYTES,
    Entry,
    Header,
    bound,
    dump,
    head_of,
    joined,
    parse,
    parted,
    read_head,
    read_header,
    read_table,
)
from triskel.wire.receive import Template, expect, fact
from triskel.wire.sections import SECTIONS, check, check_section

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
TABLES, MOST_KEPT = 16, 1 << 16
"""Tables of sections that are remembered, and the bytes that one may have."""

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class _Span:
    """Where the tensors of one section and dtype lie, end to end.

    Attributes:
        section: Its section.
        dtype: Their dtype.
        begin: First byte, from the start of the payload's data.
        end: One past the last.
        shapes: Shape of each tensor by name, in order.
    """

    section: str
    dtype: torch.dtype
    begin: int
    end: int
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def likes(self) -> Sequence[Tensor]:
        """Tensors of these shapes, without numbers."""
        return [torch.empty(shape, device="meta") for shape in self.shapes.values()]

    def named(self, tensor: str) -> str:
        """Return how an error names one of the tensors."""
        return f"section {self.section!r}, tensor {tensor!r}"


def pack(message: Message) -> bytes:
    """Return the message as bytes that `unpack` accepts.

    Raises:
        MessageError: A name, fact, dtype, shape or section is not one that can travel, or a
            number is not finite; the sentence names it.
    """
    head = head_of(message)
    read_head(head)
    table = _table_of(_outline(message))
    check(message)
    deflated = zlib.compress(joined(dump(head), table.text))
    body = [part for s in table.spans for part in _bytes_of(message.sections[s.section], s)]
    return b"".join([PREFIX.pack(MAGIC, VERSION, len(deflated)), deflated, table.inner, *body])


def unpack(data: bytes | bytearray, *, limit_bytes: int = LIMIT_BYTES) -> Message:
    """Read what `pack` wrote; tensors lie in fresh memory, lists of facts become tuples.

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
    header, table = _read(text)
    inner, spans = table.inner, table.spans
    size = spans[-1].end if spans else 0
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
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in table.sections}
    for span in spans:
        tensors[span.section] |= _tensors(whole[span.begin : span.end], span)
    message = Message(
        kind=header.kind,
        topic=header.topic,
        facts=header.facts,
        sections={
            name: Section(
                kind=entry.kind,
                tensors={n: tensors[name][n] for n in entry.tensors},
                facts=dict(entry.facts),
                codec=entry.codec,
            )
            for name, entry in table.sections.items()
        },
    )
    check(message)
    return message


# --- The table of sections, read once ---------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What the table of a header says, and what follows from it; shared, so nobody writes to it.

    Attributes:
        text: The table as it travels.
        sections: Its sections, checked.
        inner: The payload's header.
        spans: Where tensors lie.
    """

    text: bytes
    sections: Mapping[str, Entry]
    inner: bytes
    spans: Sequence[_Span]


_Outline = tuple[tuple[str, str, tuple[str, ...], str, tuple[tuple[object, ...], ...]], ...]
"""What a table is made of, section by section: name, kind, codec, facts, and tensors' looks."""


def _outline(message: Message) -> tuple[_Outline, Mapping[str, Section]]:
    """Return what tells one table from another, and the sections it is of.

    Raises:
        MessageError: A tensor is not a plain one on the CPU.
    """
    found: list[tuple[str, str, tuple[str, ...], str, tuple[tuple[object, ...], ...]]] = []
    for name, section in message.sections.items():
        looks: list[tuple[object, ...]] = []
        for tensor, x in section.tensors.items():
            if not x.is_cpu or x.layout is not torch.strided:
                raise MessageError(
                    f"section {name!r}, tensor {tensor!r} is {x.layout} on {x.device}; "
                    "send a plain tensor on the CPU"
                )
            looks.append((tensor, x.dtype, x.shape))
        # as text, since 1, 1.0 and True are equal and not alike
        found.append((name, section.kind, section.codec, repr(section.facts), tuple(looks)))
    return tuple(found), message.sections


_known: OrderedDict[_Outline, _Table] = OrderedDict()
_seen: OrderedDict[bytes, _Table] = OrderedDict()
"""Tables written and read last. Clients of a round send the same table with other numbers, and
checking one costs as much as all the rest of a small message."""


def _table_of(outlined: tuple[_Outline, Mapping[str, Section]]) -> _Table:
    """Return the table of a message that is to be packed."""
    outline, sections = outlined
    found = _known.get(outline)
    if found is None:
        value: dict[str, object] = {
            name: {
                "kind": section.kind,
                "codec": list(section.codec),
                "facts": dict(section.facts),
                "tensors": {
                    n: [DTYPE_NAMES.get(x.dtype, str(x.dtype)), *x.shape]
                    for n, x in section.tensors.items()
                },
            }
            for name, section in sections.items()
        }
        entries = read_table(value)
        found = _Table(dump(value), entries, *_layout(entries))
        _remember(_known, outline, found)
    return found


def _read(text: bytes) -> tuple[Header, _Table]:
    """Return what a header says; a table that was read before is not read again."""
    parts = parted(text)
    if parts is not None:
        head, table = parts
        try:
            header = read_head(parse(head))
            known = _seen.get(table)
            if known is None:
                entries = read_table(parse(table))
                known = _Table(table, entries, *_layout(entries))
                _remember(_seen, table, known)
        except MessageError:
            pass  # the whole is read below, and says what is wrong with it
        else:
            return header, known
    header, entries = read_header(parse(text))
    return header, _Table(b"", entries, *_layout(entries))


def _remember(tables: "OrderedDict[Any, _Table]", key: object, table: _Table) -> None:
    """Keep a table of moderate size, and let go of the one kept longest."""
    if len(table.text) <= MOST_KEPT:
        tables[key] = table
        while len(tables) > TABLES:
            tables.popitem(last=False)


# --- Tensors and their bytes ------------------------------------------------------------------


def _layout(sections: Mapping[str, Entry]) -> tuple[bytes, list[_Span]]:
    """Return the payload's header, length included, and where tensors lie, in order."""
    table: dict[str, object] = {}
    spans: list[_Span] = []
    end = 0
    for section, entry in sections.items():
        for dtype in dict.fromkeys(dtype for dtype, _ in entry.tensors.values()):
            begin, own = end, DTYPES[dtype]
            shapes = {n: shape for n, (name, shape) in entry.tensors.items() if name == dtype}
            end += sum(tensor_bytes(own, shape) for shape in shapes.values())
            spans.append(_Span(section, own, begin, end, shapes))
            stored = "U8" if dtype == "BOOL" else dtype  # bools travel as bits
            table[f"{section}/{dtype}"] = {
                "dtype": stored,
                "shape": [(end - begin) // DTYPES[stored].itemsize],
                "data_offsets": [begin, end],
            }
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, spans


def _bytes_of(section: Section, span: _Span) -> list[memoryview]:
    parts = [section.tensors[name] for name in span.shapes]
    if span.dtype == torch.bool:
        return [np.packbits(x.reshape(-1).numpy(), bitorder="little").data for x in parts]
    with torch.no_grad():  # one call of torch for many small tensors
        whole: Tensor = torch.ops.aten.flatten_dense_tensors(parts)
    if not is_finite(whole):
        name = next(n for n, x in zip(span.shapes, parts, strict=True) if not is_finite(x))
        raise MessageError(
            f"{span.named(name)} holds NaN or infinity, which would spoil every sum it enters; "
            "look for what made it, or leave this client's round out"
        )
    return [whole.view(torch.uint8).numpy().data]


def _tensors(there: Bytes, span: _Span) -> dict[str, Tensor]:
    if span.dtype == torch.bool:
        return _bools(there, span)
    whole = torch.empty(len(there) // span.dtype.itemsize, dtype=span.dtype)
    whole.view(torch.uint8).numpy()[:] = there  # the same memory
    parts: Sequence[Tensor] = torch.ops.aten.unflatten_dense_tensors(whole, span.likes)
    if not is_finite(whole):
        name = next(n for n, x in zip(span.shapes, parts, strict=True) if not is_finite(x))
        raise MessageError(f"{span.named(name)} holds NaN or infinity; leave this peer's round out")
    return dict(zip(span.shapes, parts, strict=True))


def _bools(there: Bytes, span: _Span) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    start = 0
    for name, shape in span.shapes.items():
        x = torch.empty(shape, dtype=torch.bool)
        bits = there[start : start + tensor_bytes(torch.bool, shape)]
        start += len(bits)
        if x.numel() % 8 and bits[-1] >> x.numel() % 8:
            raise MessageError(f"{span.named(name)} has bits set past its {x.numel()} entries")
        own = x.reshape(-1).view(torch.uint8).numpy()  # the same memory
        own[:] = np.unpackbits(bits, count=x.numel(), bitorder="little")
        found[name] = x
    return found


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
