"""A section as its change against a reference that the receiver holds.

    c = x - r             every tensor of the section, one behind the other in its order
    x ≈ r + ĉ             ĉ is c as the codec has it

A change has no names and no shapes: these are the reference's, and the fact `change:of` is the
SHA-256 of it, so that both sides speak of the same. Its numbers lie in rows of 256 (tensor
`change`), and what is left over in one more (`rest`); where nothing changed, there is none. In
float32, or in float64 where the section holds any. A sum is rounded once to the type of its tensor,
so whoever adds the same ĉ to the same r has the same bits.
"""

import hashlib
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from triskel.core.codec_spec import CHANGE
from triskel.errors import MessageError
from triskel.types import Section, Tensors
from triskel.wire import DTYPE_NAMES, is_finite, show

OF = f"{CHANGE}:of"
BODY, REST = "change", "rest"
ROW = 256


class OtherReferenceError(MessageError):
    """The change is against something else than the receiver holds."""


def is_change(section: Section) -> bool:
    """Return whether a section is a change, whatever codecs lie above it."""
    return section.codec[:1] == (CHANGE,)


def fits(tensors: Tensors, reference: Tensors | None) -> bool:
    """Return whether tensors can be told as a change against these: floats alike by name, in order.

    >>> x = torch.zeros(2)
    >>> fits({"a": x}, {"a": x}), fits({"a": x}, {"b": x}), fits({"a": x}, None)
    (True, False, False)
    """
    return (
        bool(tensors)
        and reference is not None
        and list(tensors) == list(reference)
        and all(
            x.is_floating_point() and (x.shape, x.dtype) == (reference[n].shape, reference[n].dtype)
            for n, x in tensors.items()
        )
    )


def digest(reference: Tensors) -> str:
    """Return the SHA-256 of named tensors: names, dtypes, shapes and bytes, in order."""
    sha = hashlib.sha256()
    for name, x in reference.items():
        sha.update(f"{name}\n{DTYPE_NAMES[x.dtype]} {list(x.shape)}\n".encode())
        sha.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def difference(
    tensors: Tensors, reference: Tensors, more: Tensors | None = None
) -> Float[Tensor, " entries"]:
    """Return the numbers of a change in one row; `more` is added to those of its names."""
    wide = _wide(tensors)
    parts = [
        (x.detach().to(wide) - reference[n].to(wide) + (more or {}).get(n, 0)).reshape(-1)
        for n, x in tensors.items()
    ]
    return torch.cat(parts)


def change(section: Section, reference: Tensors, numbers: Float[Tensor, " entries"]) -> Section:
    """Return a section as these numbers against a reference."""
    whole = numbers.numel() // ROW * ROW
    parts = {BODY: numbers[:whole].reshape(-1, ROW), REST: numbers[whole:]}
    there = bool((numbers != 0).any())
    return Section(
        kind=section.kind,
        tensors={n: x for n, x in parts.items() if there and x.numel()},
        facts={**section.facts, OF: digest(reference)},
        codec=(CHANGE,),
    )


def numbers_of(name: str, section: Section, reference: Tensors) -> Float[Tensor, " entries"]:
    """Return the numbers of a change in one row.

    Args:
        name: The section's, for errors.
        section: The change, codecs above it undone.
        reference: What the receiver holds.

    Raises:
        OtherReferenceError: It is the change of something else.
        MessageError: It has not as many numbers, or not of that type.
    """
    if section.facts.get(OF) != digest(reference):
        raise OtherReferenceError(
            f"section {name!r} is the change of {show(section.facts.get(OF))}, and this side holds "
            "something else"
        )
    entries, wide = sum(x.numel() for x in reference.values()), _wide(reference)
    if not section.tensors:
        return torch.zeros(entries, dtype=wide)
    wanted = {BODY: (entries // ROW, ROW), REST: (entries % ROW,)}
    wanted = {n: shape for n, shape in wanted.items() if shape[0]}
    found = {n: tuple(x.shape) for n, x in section.tensors.items()}
    if found != wanted or any(x.dtype != wide for x in section.tensors.values()):
        raise MessageError(
            f"section {name!r} holds {show(found)}, expected {wanted} in {wide} for a change of "
            f"{entries} numbers"
        )
    return torch.cat([section.tensors[n].reshape(-1) for n in wanted])


def restored(
    name: str, section: Section, base: Mapping[str, Tensor], numbers: Float[Tensor, " entries"]
) -> Section:
    """Return a section as it is once its change is added to `base`.

    Raises:
        MessageError: A sum is not finite.
    """
    pieces = by_name(base, numbers)
    tensors = {n: (x.to(numbers.dtype) + pieces[n]).to(x.dtype) for n, x in base.items()}
    for tensor, x in tensors.items():
        if not is_finite(x):
            raise MessageError(f"section {name!r}, tensor {tensor!r} is not finite once it changes")
    facts = {key: value for key, value in section.facts.items() if key != OF}
    return Section(kind=section.kind, tensors=tensors, facts=facts)


def by_name(like: Mapping[str, Tensor], numbers: Float[Tensor, " entries"]) -> dict[str, Tensor]:
    """Return numbers that lie in one row as tensors of the names and shapes of others."""
    pieces = numbers.split([x.numel() for x in like.values()])
    return {n: piece.reshape(x.shape) for (n, x), piece in zip(like.items(), pieces, strict=True)}


def _wide(tensors: Tensors) -> torch.dtype:
    doubles = any(x.dtype == torch.float64 for x in tensors.values())
    return torch.float64 if doubles else torch.float32
