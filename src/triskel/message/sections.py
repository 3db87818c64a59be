"""What each kind of section holds, and what a receiver checks before using it.

`SECTIONS` is the schema of sections as computed. A section that still carries a codec has other
tensors (packed codes, scales), so `pack` and `unpack` leave it alone and `codec.decode` checks it.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from triskel.errors import MessageError
from triskel.types import Fact, Facts, Message, MessageKind, Section, SectionKind, Tensors

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

T = TypeVar("T", bool, int, float, str)
Shape = Sequence[int]
Template = Mapping[str, Tensor] | Mapping[str, Shape] | Mapping[str, Tensor | Shape]
"""Tensor names with what each must look like: a tensor (its shape, and float, integer or bool),
or a shape in which -1 stands for any size."""

_PAIR = re.compile(r"(?P<before>(?:.*\.)?lora_)(?P<side>[AB])(?P<after>(?:\..*)?)")


def is_finite(x: Tensor) -> bool:
    """Return whether every entry is a finite number; integers and bools always are."""
    if not x.is_floating_point():
        return True
    # A sum is several times cheaper than a mask, and one infinity or NaN spoils it. Finite
    # entries can spoil it too, by overflow: only then look at each.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return math.isfinite(float(x.sum(dtype=wide))) or bool(torch.isfinite(x).all())


def tensor_bytes(dtype: torch.dtype, shape: Shape) -> int:
    """Return the bytes a tensor takes on the wire: its own, and a bit for each bool."""
    entries = math.prod(shape)
    return (entries + 7) // 8 if dtype == torch.bool else entries * dtype.itemsize


def section_bytes(section: Section) -> int:
    """Return the bytes the section's tensors take on the wire as they are now, table left out."""
    return sum(tensor_bytes(x.dtype, x.shape) for x in section.tensors.values())


def payload_bytes(section: Section) -> int:
    """Return the bytes a mode wants to send, before codecs.

    A float and a label count 4 bytes, any other integer its own size, a mask one bit an entry,
    rounded up to bytes for each tensor.

    Raises:
        MessageError: The section is encoded already.
    """
    if section.codec:
        raise MessageError(
            f"payload is what a mode sends before codecs, and this {section.kind} section "
            f"carries {'+'.join(section.codec)}; count it before codec.encode"
        )
    return sum(
        4 * x.numel()
        if x.is_floating_point() or section.kind == "labels"
        else tensor_bytes(x.dtype, x.shape)
        for x in section.tensors.values()
    )


def check(message: Message) -> None:
    """Refuse a message of which a section, once computed or decoded, is not of its kind.

    Raises:
        MessageError: A tensor is missing, unexpected, of a wrong type or shape, or a fact that
            the section's kind needs is absent or wrong.
    """
    for name, section in message.sections.items():
        if not section.codec:
            check_section(name, section)


def check_section(name: str, section: Section) -> None:
    """Refuse a section that is not of its kind; see `check`."""
    for problem in SECTIONS[section.kind](section):
        raise MessageError(f"section {name!r} ({section.kind}): {problem}")


def expect(
    message: Message,
    *,
    kind: MessageKind,
    topic: str = "",
    sections: Mapping[str, Template],
    kinds: Mapping[str, SectionKind] | None = None,
) -> None:
    """Refuse a decoded message that is not the one its receiver waits for.

    Args:
        message: What arrived, decoded.
        kind: The step of the round.
        topic: What it must be about.
        sections: All sections it must have, and all tensors of each.
        kinds: The kind of each section; by default any that can hold such tensors.

    Raises:
        MessageError: Names the first difference: missing, unexpected, kind, shape or type.
    """
    if (message.kind, message.topic) != (kind, topic):
        raise MessageError(
            f"message is {message.kind!r} about {message.topic!r}, expected {kind!r} about "
            f"{topic!r}; the peer is at another step of the round"
        )
    _same_names("section", message.sections, sections, "message")
    for name, template in sections.items():
        section, place = message.sections[name], f"section {name!r}"
        wanted = (kinds or {}).get(name, section.kind)
        if section.kind != wanted:
            raise MessageError(f"{place} is of kind {section.kind!r}, expected {wanted!r}")
        _same_names("tensor", section.tensors, template, place)
        for tensor, like in template.items():
            problem = _unlike(section.tensors[tensor], like)
            if problem:
                raise MessageError(f"{place}, tensor {tensor!r}: {problem}")


def fact(facts: Facts, name: str, kind: type[T]) -> T:
    """Return fact `name`, which must be a `kind` (an int will do for a float).

    >>> fact({"examples": 12}, "examples", int)
    12

    Raises:
        MessageError: The fact is missing or of another type.
    """
    value = facts.get(name)
    number = kind is float and type(value) is int
    if type(value) is not kind and not number:
        raise MessageError(
            f"fact {name!r} must be a {kind.__name__}, got {_brief(value)}"
            if name in facts
            else f"fact {name!r} is missing; the peer must send a {kind.__name__}"
        )
    return kind(value)  # pyright: ignore[reportArgumentType]  the type was just checked


def _brief(value: Fact) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004  one line of a log


def _same_names(what: str, got: Collection[str], wanted: Collection[str], where: str) -> None:
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    if missing:
        but = f", it has {extra[0]!r} instead" if extra else ""
        raise MessageError(f"{where} lacks {what} {missing[0]!r}{but}")
    if extra:
        raise MessageError(f"{where} has {what} {extra[0]!r}, which nobody asked for")


def _unlike(x: Tensor, like: Tensor | Shape) -> str | None:
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    fits = len(shape) == x.dim() and all(w in (-1, n) for w, n in zip(shape, x.shape, strict=True))
    if not fits:
        return f"shape is {list(x.shape)}, expected {list(shape)}"
    if isinstance(like, Tensor) and _sort(x) != _sort(like):
        return f"holds {_sort(x)}s, expected {_sort(like)}s"
    return None


def _sort(x: Tensor) -> str:
    if x.is_floating_point():
        return "float"
    return "bool" if x.dtype == torch.bool else "integer"


# --- One rule for each kind -------------------------------------------------------------------
# A rule yields problems; `check_section` raises the first, so a line may rely on those above it.


def _tensors(section: Section, needed: Sequence[str], also: Sequence[str] = ()) -> Iterator[str]:
    for name in needed:
        if name not in section.tensors:
            yield f"lacks tensor {name!r}"
    for name in section.tensors:
        if name not in (*needed, *also):
            yield f"has tensor {name!r}, and only {', '.join((*needed, *also))} may be there"


def _all(tensors: Tensors, sort: str) -> Iterator[str]:
    for name, x in tensors.items():
        if _sort(x) != sort:
            yield f"tensor {name!r} holds {_sort(x)}s, expected {sort}s"


def _is(section: Section, name: str, sort: str, shape: Shape) -> Iterator[str]:
    x = section.tensors[name]
    yield from _all({name: x}, sort)
    problem = _unlike(x, shape)
    if problem:
        yield f"tensor {name!r}: {problem}"


def _dense(section: Section) -> Iterator[str]:
    """Floats of any name and shape."""
    yield from _all(section.tensors, "float")


def _mask(section: Section) -> Iterator[str]:
    """Bools of any name and shape."""
    yield from _all(section.tensors, "bool")


def _labels(section: Section) -> Iterator[str]:
    """Integers of any name and shape."""
    yield from _all(section.tensors, "integer")


def _lowrank(section: Section) -> Iterator[str]:
    """Float pairs `*.lora_A*` [rank, in] and `*.lora_B*` [out, rank]; fact `scale` above 0."""
    yield from _all(section.tensors, "float")
    for name, x in section.tensors.items():
        found = _PAIR.fullmatch(name)
        if found is None:
            yield f"tensor {name!r} is neither a lora_A nor a lora_B"
            return
        twin = found["before"] + ("B" if found["side"] == "A" else "A") + found["after"]
        y = section.tensors.get(twin)
        if y is None:
            yield f"tensor {name!r} lacks its other half {twin!r}"
            return
        if x.dim() != 2 or y.dim() != 2:  # noqa: PLR2004  a matrix
            yield f"pair {name!r} and {twin!r} must be matrices, got {x.dim()} and {y.dim()} axes"
        if found["side"] == "A" and x.shape[0] != y.shape[1]:
            yield f"pair {name!r} and {twin!r} has ranks {x.shape[0]} and {y.shape[1]}"
    scale = section.facts.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        yield f"fact 'scale' must be a number above 0, got {_brief(scale)}"


def _sparse(section: Section) -> Iterator[str]:
    """Entries `values` [kept] of a flat vector, and where they stand in it.

    Either `indices` [kept], rising, below the fact `size`; or `mask` [size] with as many set.
    """
    where = "mask" if "mask" in section.tensors else "indices"
    yield from _tensors(section, ("values", where))
    yield from _is(section, "values", "float", (-1,))
    kept = section.tensors["values"].numel()
    at = section.tensors[where]
    if where == "mask":
        yield from _is(section, "mask", "bool", (-1,))
        if int(at.sum()) != kept:
            yield f"mask keeps {int(at.sum())} entries, and there are {kept} values"
        return
    yield from _is(section, "indices", "integer", (kept,))
    size = section.facts.get("size")
    if type(size) is not int or size < 0:
        yield f"fact 'size' must be the entries of the whole vector, got {_brief(size)}"
        return
    at = at.to(torch.int64)
    if kept and (int(at[0]) < 0 or int(at[-1]) >= size or not bool((at[1:] > at[:-1]).all())):
        yield f"indices must rise within 0-{size - 1}"


def _seeds(section: Section) -> Iterator[str]:
    """Integer `seeds` [n] and float `scalars` [n]."""
    yield from _tensors(section, ("seeds", "scalars"))
    yield from _is(section, "seeds", "integer", (-1,))
    yield from _is(section, "scalars", "float", section.tensors["seeds"].shape)


def _knowledge(section: Section) -> Iterator[str]:
    """Float `values` [positions, classes] or [positions, k].

    With top-k also `ids` [positions, k], uint16 or int32 and not negative, and `tail` [positions].
    """
    yield from _tensors(section, ("values",), ("ids", "tail"))
    yield from _is(section, "values", "float", (-1, -1))
    positions, k = section.tensors["values"].shape
    if "tail" in section.tensors:
        yield from _is(section, "tail", "float", (positions,))
    ids = section.tensors.get("ids")
    if ids is None:
        return
    yield from _is(section, "ids", "integer", (positions, k))
    if ids.dtype not in (torch.uint16, torch.int32):
        yield f"ids are {ids.dtype}, expected uint16 (vocabulary up to 65,536) or int32"
    if ids.dtype == torch.int32 and ids.numel() and int(ids.min()) < 0:
        yield f"ids must not be negative, got {int(ids.min())}"


def _activations(section: Section) -> Iterator[str]:
    """Float `values` [tokens, width] without padding.

    Fact `lengths` has each example's tokens, in order; without it each row is one example.
    """
    yield from _tensors(section, ("values",))
    yield from _is(section, "values", "float", (-1, -1))
    tokens = section.tensors["values"].shape[0]
    lengths = section.facts.get("lengths")
    if lengths is None:
        return
    if isinstance(lengths, str) or not isinstance(lengths, Sequence):
        yield f"fact 'lengths' must be a list of integers, got {_brief(lengths)}"
        return
    for n in lengths:
        if type(n) is not int or n < 1:
            yield f"fact 'lengths' must hold integers of at least 1, got {_brief(n)}"
    total = sum(n for n in lengths if type(n) is int)
    if total != tokens:
        yield f"fact 'lengths' sums to {total}, and there are {tokens} rows"


SECTIONS: Mapping[SectionKind, Callable[[Section], Iterator[str]]] = {
    "dense": _dense,
    "lowrank": _lowrank,
    "sparse": _sparse,
    "mask": _mask,
    "seeds": _seeds,
    "knowledge": _knowledge,
    "activations": _activations,
    "labels": _labels,
}
"""For each kind, the rule that yields what is wrong with a section."""
