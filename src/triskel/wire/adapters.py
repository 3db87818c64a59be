"""Adapters as sections of a message: how they are put in, and how they are read with suspicion."""

import math
from collections.abc import Mapping

from torch import Tensor

from triskel.errors import MessageError, RoundError
from triskel.model.side_factors import is_side, misfit, parted
from triskel.model.slots import Layout
from triskel.numerics.tensors import flat
from triskel.types import Message, MessageKind, Section, Tensors
from triskel.wire import expect
from triskel.wire.sections import twin_of

SIDE = "side"
"""The section of the side factors that an aggregate made."""


def adapter_sections(tensors: Tensors, layout: Layout) -> dict[str, Section]:
    """Return sections `adapter`, `head` and `side` of what is there of them among the tensors.

    LoRA factors and side factors travel as `lowrank`, with the scale of their product; other
    adapters as `dense`.
    """
    adapter, head, factors = dict[str, Tensor](), dict[str, Tensor](), True
    side = dict[str, Tensor]()
    for name, t in tensors.items():
        plain = t if t.is_cpu and not t.requires_grad else t.detach().cpu()
        if name in layout.head:
            head[name] = plain
        elif is_side(name):
            side[name] = plain
        else:
            adapter[name] = plain
            factors = factors and twin_of(name)[0] in tensors
    sections: dict[str, Section] = {}
    if adapter:
        sections["adapter"] = (
            Section(kind="lowrank", tensors=adapter, facts={"scale": layout.scale})
            if factors
            else Section(kind="dense", tensors=adapter)
        )
    if head:
        sections["head"] = Section(kind="dense", tensors=head)
    if side:
        sections[SIDE] = Section(kind="lowrank", tensors=side, facts={"scale": layout.scale})
    return sections


def adapter_of(
    message: Message, template: Tensors, layout: Layout, *, kind: MessageKind, topic: str = ""
) -> dict[str, Tensor]:
    """Return the adapter and head that the server sent, and the side factors beside them.

    Args:
        message: From the server.
        template: The tensors that must be there by shape; beside them only side factors may be.
        layout: Which of them are the head's.
        kind: What the message must be.
        topic: What it must be about.

    Raises:
        MessageError: The message is of another kind, a name, shape or scale differs, or a side
            factor does not fit.
    """
    wanted = adapter_sections(template, layout)
    if (side := message.sections.get(SIDE)) is not None:
        if (why := misfit(side.tensors, template)) is not None:
            raise MessageError(f"section {SIDE!r}: {why}")
        wanted |= adapter_sections(side.tensors, layout)
    return flat(sections_of(message, wanted, kind=kind, topic=topic))


def sections_of(
    message: Message, wanted: Mapping[str, Section], *, kind: MessageKind, topic: str = ""
) -> dict[str, Section]:
    """Return the sections of a message that must be like these, and no others.

    Raises:
        MessageError: The message is of another kind, or a name, shape or scale differs.
    """
    parts = {name: section.tensors for name, section in wanted.items()}
    expect(message, kind=kind, topic=topic, sections=parts)
    for name, section in wanted.items():
        found = message.sections[name]
        if found.kind != section.kind or dict(found.facts) != dict(section.facts):
            raise MessageError(
                f"section {name!r} is {found.kind} with {dict(found.facts)}, "
                f"expected {section.kind} with {dict(section.facts)}"
            )
    return {name: message.sections[name] for name in wanted}


def aggregated(
    found: Mapping[str, Section], before: Mapping[str, Section], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what an aggregate made of a round: the tensors that train, and side factors.

    Args:
        found: Its value.
        before: The sections it was given; of its value all but the side factors must be like them.
        layout: Which tensors are the head's.

    Raises:
        RoundError: A section, name, shape or scale is another, or a side factor does not fit.
    """
    template, _ = parted(flat(before))
    plain = {name: section for name, section in found.items() if section.tensors or name != SIDE}
    message = Message(kind="state", sections=plain)
    try:
        tensors = adapter_of(message, template, layout, kind="state")
    except MessageError as error:
        raise RoundError(f"the aggregate's value does not fit what was sent: {error}") from error
    return parted({name: t.detach().cpu() for name, t in tensors.items()})


def number(facts: Mapping[str, object], name: str, *, least: float = 0) -> float:
    """Return a fact that must be a number.

    Raises:
        MessageError: It is missing, not a number, or too small.
    """
    value = facts.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not least <= value < math.inf
    ):
        raise MessageError(f"fact {name!r} must be a number of at least {least}, got {value!r}")
    return float(value)


def integers(facts: Mapping[str, object], name: str) -> list[int]:
    """Return a fact that must be a list of integers.

    Raises:
        MessageError: It is missing or is anything else.
    """
    value = facts.get(name)
    if not isinstance(value, list | tuple):
        raise MessageError(f"fact {name!r} must be a list of integers, got {value!r}")
    found: list[int] = []
    for item in value:  # pyright: ignore[reportUnknownVariableType]
        if isinstance(item, bool) or not isinstance(item, int):
            raise MessageError(f"fact {name!r} must hold integers only, got {item!r}")
        found.append(item)
    return found


def same_round(message: Message, now: int) -> None:
    """Check that a message belongs to the round that is open.

    Raises:
        MessageError: It belongs to another one.
    """
    found = int(number(message.facts, "round", least=1))
    if found != now:
        raise MessageError(f"message belongs to round {found}, and round {now} is open")
