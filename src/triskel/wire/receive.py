"""What a receiver waits for, and what it does when something else comes."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import Tensor

from triskel.errors import MessageError
from triskel.types import Facts, Message, MessageKind, SectionKind
from triskel.wire.dtypes import Shape, show
from triskel.wire.sections import unlike

T = TypeVar("T", bool, int, float, str)
Template = Mapping[str, Tensor] | Mapping[str, Shape] | Mapping[str, Tensor | Shape]
"""Tensor names with what each must look like: a tensor (its shape, and float, integer or bool),
or a shape in which -1 stands for any size."""


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
            problem = unlike(section.tensors[tensor], like)
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
            f"fact {name!r} must be a {kind.__name__}, got {show(value)}"
            if name in facts
            else f"fact {name!r} is missing; the peer must send a {kind.__name__}"
        )
    return kind(value)  # pyright: ignore[reportArgumentType]  the type was just checked


def _same_names(what: str, got: Collection[str], wanted: Collection[str], where: str) -> None:
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    if missing:
        but = f", it has {extra[0]!r} instead" if extra else ""
        raise MessageError(f"{where} lacks {what} {missing[0]!r}{but}")
    if extra:
        raise MessageError(f"{where} has {what} {extra[0]!r}, which nobody asked for")
