"""What each kind of section holds, and what a receiver checks before using it.

`SECTIONS` is the schema of sections as computed. A section that still carries a codec has other
tensors (packed codes, scales), so `pack` and `unpack` leave it alone and `codec.decode` checks it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from triskel.errors import MessageError
from triskel.types import Message, Section, SectionKind, Tensors
from triskel.wire.dtypes import Shape, show

_PAIR = re.compile(r"(?P<before>(?:.*\.)?lora_)(?P<side>[AB])(?P<after>(?:\..*)?)")


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


def unlike(x: Tensor, like: Tensor | Shape) -> str | None:
    """Return in what `x` differs from a tensor, or from a shape in which -1 is any size."""
    if isinstance(like, Tensor) and x.shape == like.shape and x.dtype == like.dtype:
        return None
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    fits = len(shape) == x.dim() and all(w in (-1, n) for w, n in zip(shape, x.shape, strict=True))
    if not fits:
        return f"shape is {list(x.shape)}, expected {list(shape)}"
    if isinstance(like, Tensor) and x.dtype != like.dtype:
        return f"holds {_dtype(x)}, expected {_dtype(like)}"
    return None


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def sort_of(x: Tensor) -> str:
    """Return whether a tensor holds floats, integers or bools."""
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
        if sort_of(x) != sort:
            yield f"tensor {name!r} holds {sort_of(x)}s, expected {sort}s"


def _is(section: Section, name: str, sort: str, shape: Shape) -> Iterator[str]:
    x = section.tensors[name]
    yield from _all({name: x}, sort)
    problem = unlike(x, shape)
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


def _counts(section: Section) -> Iterator[str]:
    """Integers of any name and shape, none below 0."""
    yield from _all(section.tensors, "integer")
    for name, x in section.tensors.items():
        least = int(x.to(torch.int64).min()) if x.numel() and x.dtype.is_signed else 0
        if least < 0:
            yield f"tensor {name!r} counts {least}, and nothing is counted below 0"


def _lowrank(section: Section) -> Iterator[str]:
    """Float pairs `*.lora_A*` [rank, in] and `*.lora_B*` [out, rank]; fact `scale` above 0."""
    yield from _all(section.tensors, "float")
    for name, x in section.tensors.items():
        twin, side = twin_of(name)
        if not twin:
            yield f"tensor {name!r} is neither a lora_A nor a lora_B"
            return
        y = section.tensors.get(twin)
        if y is None:
            yield f"tensor {name!r} lacks its other half {twin!r}"
            return
        if x.dim() != 2 or y.dim() != 2:  # noqa: PLR2004  a matrix
            yield f"pair {name!r} and {twin!r} must be matrices, got {x.dim()} and {y.dim()} axes"
        if side == "A" and x.shape[0] != y.shape[1]:
            yield f"pair {name!r} and {twin!r} has ranks {x.shape[0]} and {y.shape[1]}"
    scale = section.facts.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        yield f"fact 'scale' must be a number above 0, got {show(scale)}"


@lru_cache(maxsize=4096)
def twin_of(name: str) -> tuple[str, str]:
    """Return the name of a factor's other half and which half it is; nothing for other names."""
    found = _PAIR.fullmatch(name)
    if found is None:
        return "", ""
    side = found["side"]
    return found["before"] + ("B" if side == "A" else "A") + found["after"], side


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
        yield f"fact 'size' must be the entries of the whole vector, got {show(size)}"
        return
    at = at.to(torch.int64)
    if kept and (int(at[0]) < 0 or int(at[-1]) >= size or not bool((at[1:] > at[:-1]).all())):
        yield f"indices must rise within 0-{size - 1}"


def _seeds(section: Section) -> Iterator[str]:
    """Float `scalars` [n] of integer `seeds` [n]; without these, of seeds 0 to n - 1."""
    yield from _tensors(section, ("scalars",), ("seeds",))
    yield from _is(section, "scalars", "float", (-1,))
    if "seeds" in section.tensors:
        yield from _is(section, "seeds", "integer", section.tensors["scalars"].shape)


def _knowledge(section: Section) -> Iterator[str]:
    """Float `values` [positions, classes or k] and `tail` [positions], or what `_shares` has.

    With top-k also `ids` [positions, k], uint8, uint16 or int32 and not negative.
    """
    if "shares" in section.tensors:
        yield from _shares(section)
    else:
        yield from _tensors(section, ("values",), ("ids", "tail"))
        yield from _is(section, "values", "float", (-1, -1))
        if "tail" in section.tensors:
            yield from _is(section, "tail", "float", section.tensors["values"].shape[:1])
    shape = section.tensors["shares" if "shares" in section.tensors else "values"].shape
    ids = section.tensors.get("ids")
    if ids is None:
        return
    yield from _is(section, "ids", "integer", shape)
    if ids.dtype not in (torch.uint8, torch.uint16, torch.int32):
        yield (
            f"ids are {ids.dtype}, expected uint8 (vocabulary up to 256), uint16 (up to 65,536) "
            "or int32"
        )
    if ids.dtype == torch.int32 and ids.numel() and int(ids.min()) < 0:
        yield f"ids must not be negative, got {int(ids.min())}"


def _shares(section: Section) -> Iterator[str]:
    """Uint8 `shares` [positions, classes or k] of uint16 `peak` [positions], which is not 0."""
    yield from _tensors(section, ("shares", "peak"), ("ids",))
    yield from _is(section, "shares", "integer", (-1, -1))
    yield from _is(section, "peak", "integer", section.tensors["shares"].shape[:1])
    for name, wanted in (("shares", torch.uint8), ("peak", torch.uint16)):
        if (found := section.tensors[name].dtype) != wanted:
            yield f"{name} are {found}, expected {wanted}"
    if bool((section.tensors["peak"].to(torch.int32) == 0).any()):
        yield "a peak is 0, and there is no share of nothing"


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
        yield f"fact 'lengths' must be a list of integers, got {show(lengths)}"
        return
    for n in lengths:
        if type(n) is not int or n < 1:
            yield f"fact 'lengths' must hold integers of at least 1, got {show(n)}"
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
    "counts": _counts,
}
"""For each kind, the rule that yields what is wrong with a section."""
