"""The JSON header of a message: what it says, and every check of it before it is believed.

The same reader checks a header that is about to be packed and one that arrived, so that `pack`
writes nothing that `unpack` refuses.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast, get_args

from triskel.core.codec_spec import CHANGE
from triskel.core.registry import CODECS
from triskel.errors import LimitError, MessageError
from triskel.types import Fact, Facts, Message, MessageKind, SectionKind
from triskel.wire.dtypes import DTYPES, show

MAX_HEADER_BYTES = 4 << 20
MAX_VALUES = 1 << 18
MAX_SECTIONS = 256
MAX_FACTS = 256
MAX_TEXT = 4096
MAX_AXES = 8
MAX_ENTRIES = 1 << 40
MAX_CODECS = 4

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")
TENSOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
CODED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}(?::[a-z0-9]{1,15}){0,4}")
"""Names in a section that a codec has written to; the colon is the codecs' own."""
SECTIONS = b',"sections":'
"""What stands between the head of a header and its table."""
HALF = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can spell and nobody can write."""


@dataclass(frozen=True)
class Entry:
    """One section as the table has it; `tensors` maps names to dtype name and shape."""

    kind: SectionKind
    codec: tuple[str, ...]
    facts: Facts
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Header:
    """What the JSON header says before its table of sections, checked."""

    kind: MessageKind
    topic: str
    facts: Facts


def dump(value: object) -> bytes:
    """Return a value as the JSON that travels."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def joined(head: bytes, table: bytes) -> bytes:
    """Return a header out of its head and its table.

    Raises:
        LimitError: It is larger than a receiver would read.
    """
    text = head[:-1] + SECTIONS + table + b"}"
    bound(text)
    return text


def parted(text: bytes) -> tuple[bytes, bytes] | None:
    """Return the head and the table of a header, or None where it is not written as `joined` does.

    If the head is an object without the key `sections` and the table an object, both without fault,
    then what they are parts of is the object of both: nothing else need be looked at.
    """
    at = text.find(SECTIONS)
    if at < 0 or not text.endswith(b"}}"):
        return None
    return text[:at] + b"}", text[at + len(SECTIONS) : -1]


def bound(text: bytes) -> None:
    """Refuse a header whose bytes or values are too many to be read.

    Raises:
        LimitError: There are more than `MAX_HEADER_BYTES` or about `MAX_VALUES`.
    """
    # A JSON value costs up to a hundred bytes of memory and needs at least one of these.
    values = sum(text.count(sign) for sign in (b"[", b"{", b","))
    if len(text) > MAX_HEADER_BYTES or values > MAX_VALUES:
        raise LimitError(
            f"header has {len(text)} bytes and about {values} values, the limits are "
            f"{MAX_HEADER_BYTES} and {MAX_VALUES}; send fewer tensors or shorter lists"
        )


def parse(text: bytes) -> object:
    """Return the JSON value that `text` is.

    Raises:
        MessageError: It is not strict JSON: not ASCII, a key twice, NaN, too deep, or cut.
    """
    if not text.isascii():
        raise MessageError("header has bytes above 127; JSON escapes stand for other characters")
    try:
        return json.loads(text.decode("ascii"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"header is not JSON that can be read: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise MessageError(f"header has the key {show(name)} twice")
        found[name] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise MessageError(f"header has the constant {constant}, which is not JSON")


def head_of(message: Message) -> dict[str, object]:
    """Return what stands before the table, as JSON values, unchecked."""
    return {"kind": message.kind, "topic": message.topic, "facts": dict(message.facts)}


def read_head(value: object) -> Header:
    """Return what the head of a header says, once every field of it is checked.

    Raises:
        MessageError: A field is missing, unknown, or of a wrong type or form.
    """
    header = _record(value, ("kind", "topic", "facts"), "header")
    topic = header["topic"]
    return Header(
        kind=cast("MessageKind", _one_of(header["kind"], get_args(MessageKind), "kind")),
        topic="" if topic == "" else _one_match(topic, NAME, "topic"),
        facts=_read_facts(header["facts"], NAME, "facts"),
    )


def read_header(value: object) -> tuple[Header, Mapping[str, Entry]]:
    """Return what a whole header says, once every field of it is checked.

    Raises:
        LimitError: There are too many of something.
        MessageError: A field is missing, unknown, or of a wrong type or form.
    """
    whole = dict(_record(value, ("kind", "topic", "facts", "sections"), "header"))
    sections = whole.pop("sections")
    table = read_table(sections)
    return read_head(whole), table


def read_table(value: object) -> dict[str, Entry]:
    """Return what the table of a header says, once every field of it is checked.

    Raises:
        LimitError: There are too many of something.
        MessageError: A field is missing, unknown, or of a wrong type or form.
    """
    sections = _named(value, NAME, MAX_SECTIONS, "sections")
    return {name: _read_entry(entry, f"section {name!r}") for name, entry in sections.items()}


def _read_entry(value: object, where: str) -> Entry:
    entry = _record(value, ("kind", "codec", "facts", "tensors"), where)
    codec = _items(entry["codec"], MAX_CODECS, f"codec of {where}")
    pattern = CODED if codec else TENSOR
    tensors = _named(entry["tensors"], pattern, MAX_VALUES, f"tensors of {where}")
    names = (*CODECS.loaded(), CHANGE)
    return Entry(
        kind=cast("SectionKind", _one_of(entry["kind"], get_args(SectionKind), f"kind of {where}")),
        codec=tuple(_one_of(name, names, f"codec of {where}") for name in codec),
        facts=_read_facts(entry["facts"], CODED if codec else NAME, f"facts of {where}"),
        tensors={
            name: _slot(slot) or _read_slot(slot, f"tensor {name!r} of {where}")
            for name, slot in tensors.items()
        },
    )


def _slot(value: object) -> tuple[str, tuple[int, ...]] | None:
    """Return a slot without fault and of moderate size; None for the careful look that says why."""
    if type(value) is not list:
        return None
    dtype, *shape = cast("list[object]", value) or [None]
    if type(dtype) is not str or dtype not in DTYPES or len(shape) > MAX_AXES:
        return None
    entries = 1
    for n in shape:
        if type(n) is not int or not 0 < n <= MAX_ENTRIES:
            return None
        entries *= n
    return (dtype, tuple(cast("list[int]", shape))) if entries <= MAX_ENTRIES else None


def _read_slot(value: object, where: str) -> tuple[str, tuple[int, ...]]:
    dtype, *shape = _items(value, MAX_AXES + 1, where) or [None]
    name = _one_of(dtype, tuple(DTYPES), f"dtype of {where}")
    for n in shape:
        if type(n) is not int or n < 0:
            raise MessageError(f"shape of {where} must hold integers from 0, got {show(n)}")
    sizes = cast("list[int]", shape)
    # Zeros count as ones: torch multiplies the other axes of an empty tensor too.
    if math.prod(max(n, 1) for n in sizes) > MAX_ENTRIES:
        raise LimitError(f"shape of {where} is {show(sizes)}, the limit is {MAX_ENTRIES} entries")
    return name, tuple(sizes)


def _read_facts(value: object, pattern: re.Pattern[str], where: str) -> Facts:
    facts: dict[str, Fact] = {}
    for name, item in _named(value, pattern, MAX_FACTS, where).items():
        place = f"{name!r} of {where}"
        if isinstance(item, list | tuple):
            items = cast("Sequence[object]", item)
            scalars = [_scalar(each, place) for each in items]
            sorts = {str if isinstance(each, str) else type(each) for each in scalars}
            if not (sorts <= {int, float} or sorts == {str}):
                raise MessageError(
                    f"{place} must be a list of numbers or of text, got {show(items)}"
                )
            facts[name] = cast("Fact", tuple(scalars))
        else:
            facts[name] = _scalar(item, place)
    return facts


def _scalar(value: object, where: str) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        if HALF.search(value):
            raise MessageError(f"{where} has half a character, got {show(value)}")
        return value
    raise MessageError(
        f"{where} must be a finite number within 64 bits, text of up to {MAX_TEXT} characters, "
        f"true, false, null or a flat list, got {show(value)}"
    )


def _record(value: object, keys: tuple[str, ...], where: str) -> Mapping[str, object]:
    record = _named(value, NAME, MAX_FACTS, where)
    if set(record) != set(keys):
        raise MessageError(f"{where} must have the fields {', '.join(keys)}, got {show([*record])}")
    return record


def _named(value: object, pattern: re.Pattern[str], most: int, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise MessageError(f"{where} must be an object, got {show(value)}")
    items = cast("dict[str, object]", value)
    if len(items) > most:
        raise LimitError(f"{where} are {len(items)}, the limit is {most}")
    for name in items:
        if not pattern.fullmatch(name):
            _one_match(name, pattern, f"name in {where}")
    return items


def _items(value: object, most: int, where: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise MessageError(f"{where} must be a list, got {show(value)}")
    items = cast("list[object]", value)
    if len(items) > most:
        raise LimitError(f"{where} has {len(items)} entries, the limit is {most}")
    return items


def _one_of(value: object, known: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise MessageError(f"{where} must be one of {', '.join(known)}, got {show(value)}")
    return value


def _one_match(value: object, pattern: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise MessageError(
            f"{where} must be letters, digits and . _ - in the form {pattern.pattern}, "
            f"got {show(value)}"
        )
    return value
