"""Predictions as messages, and back."""

import torch
from torch import Tensor

from triskel.errors import MessageError
from triskel.modes.logits.knowledge import Knowledge
from triskel.modes.logits.spec import NARROW_IDS
from triskel.types import Message, MessageKind, Section
from triskel.wire import expect
from triskel.wire.adapters import number

ABOVE = 1e-3
"""What rounding may add to a log-probability of 0."""


def knowledge_message(known: Knowledge, kind: MessageKind, round_: int) -> Message:
    """Return predictions as a message; ids travel in 2 bytes where the vocabulary allows."""
    tensors: dict[str, Tensor] = {"values": known.values.cpu()}
    if known.ids is not None and known.tail is not None:
        narrow = known.vocabulary <= NARROW_IDS
        tensors["ids"] = known.ids.cpu().to(torch.uint16 if narrow else torch.int32)
        tensors["tail"] = known.tail.cpu()
    section = Section(kind="knowledge", tensors=tensors, facts={"vocabulary": known.vocabulary})
    return Message(
        kind=kind, topic="knowledge", sections={"knowledge": section}, facts={"round": round_}
    )


def read_knowledge(message: Message, template: Knowledge, *, kind: MessageKind) -> Knowledge:
    """Return the predictions a message carries.

    Raises:
        MessageError: Their shapes or vocabulary are not the template's, or an id is beyond it.
    """
    like = knowledge_message(template, kind, 1).sections["knowledge"]
    expect(message, kind=kind, topic="knowledge", sections={"knowledge": like.tensors})
    found = message.sections["knowledge"]
    vocabulary = int(number(found.facts, "vocabulary", least=1))
    ids = found.tensors.get("ids")
    ids = None if ids is None else ids.to(torch.int64)
    if vocabulary != template.vocabulary or (
        ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary
    ):
        raise MessageError(
            f"predictions speak of {vocabulary} classes or tokens, expected {template.vocabulary} "
            "and ids below that"
        )
    if ids is not None and ids.numel() and bool((ids.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise MessageError("predictions name a token twice on one position")
    tail = found.tensors.get("tail")
    if tail is not None and tail.numel() and max(found.tensors["values"].max(), tail.max()) > ABOVE:
        raise MessageError("log-probabilities above 0 would count for more than all there is")
    return Knowledge(
        values=found.tensors["values"],
        ids=ids,
        tail=tail,
        vocabulary=vocabulary,
    )
