"""Predictions as messages, and back.

As floats, values and tail travel as the wire's codecs have them. As bytes, a row's probabilities
are shares of its largest, which is a multiple of 1/65535; what they leave is the tail's:

    p̂ = P/65535 · s/255,    P = ⌈65535 max p⌉,    s = round(255 · 65535 p / P)

A share of 0 is no more named than a token that is not: what the others leave is spread evenly over
all of these, at most half a step each, so that nothing is impossible. |p̂ - p| ≤ P/65535 · 1/510.
"""

import torch
from torch import Tensor

from triskel.errors import MessageError
from triskel.modes.logits.knowledge import TINY, Knowledge
from triskel.modes.logits.spec import LogitsOptions, bytes_of_id
from triskel.numerics.tensors import is_finite, wide
from triskel.types import Message, MessageKind, Section
from triskel.wire import expect
from triskel.wire.adapters import number

ABOVE = 1e-3
"""What rounding may add to a log-probability of 0."""
IDS = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}
PARTS, STEPS = 65_535, 255


def knowledge_message(
    known: Knowledge, kind: MessageKind, round_: int, options: LogitsOptions
) -> Message:
    """Return predictions as a message; ids take as few bytes as the vocabulary allows."""
    if options.values == "bytes":
        tensors = _shares(known, options.temperature)
    else:
        tensors = {"values": known.values.cpu()}
        if known.tail is not None:
            tensors["tail"] = known.tail.cpu()
    if known.ids is not None:
        tensors["ids"] = known.ids.cpu().to(IDS[bytes_of_id(known.vocabulary)])
    section = Section(kind="knowledge", tensors=tensors, facts={"vocabulary": known.vocabulary})
    return Message(
        kind=kind, topic="knowledge", sections={"knowledge": section}, facts={"round": round_}
    )


def read_knowledge(
    message: Message, template: Knowledge, options: LogitsOptions, *, kind: MessageKind
) -> Knowledge:
    """Return the predictions a message carries.

    Raises:
        MessageError: Their shapes or vocabulary are not the template's, or an id is beyond it.
    """
    like = knowledge_message(template, kind, 1, options).sections["knowledge"]
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
    if options.values == "bytes":
        values, tail = _of_shares(found, template, options.temperature)
        return Knowledge(values, ids, None if ids is None else tail, vocabulary)
    tail = found.tensors.get("tail")
    if tail is not None and tail.numel() and max(found.tensors["values"].max(), tail.max()) > ABOVE:
        raise MessageError("log-probabilities above 0 would count for more than all there is")
    return Knowledge(values=found.tensors["values"], ids=ids, tail=tail, vocabulary=vocabulary)


def _shares(known: Knowledge, temperature: float) -> dict[str, Tensor]:
    """Return probabilities as shares of each row's largest."""
    sent = known.values if known.tail is None else torch.cat([known.values, known.tail[:, None]], 1)
    if not is_finite(sent):  # a byte holds no NaN by which the wire would know
        raise MessageError(
            "predictions hold NaN or infinity, and no byte does; look for what made it, or leave "
            "this client's round out"
        )
    p = torch.softmax(sent.cpu().double() / temperature, dim=1)[:, : known.values.shape[1]]
    parts = (PARTS * p.amax(dim=1)).ceil().clamp(1, PARTS)
    shares = (STEPS * PARTS * p / parts[:, None]).round().clamp(0, STEPS)
    return {"shares": shares.to(torch.uint8), "peak": parts.to(torch.uint16)}


def _of_shares(section: Section, like: Knowledge, temperature: float) -> tuple[Tensor, Tensor]:
    """Return τ·log p of shares, and of what they leave."""
    shares = section.tensors["shares"].double()
    step = (section.tensors["peak"].double() / (STEPS * PARTS))[:, None]
    p = shares * step
    rest = (1 - p.sum(1, keepdim=True)).clamp(min=TINY)
    small = rest / (like.vocabulary - (shares > 0).sum(1, keepdim=True)).clamp(min=1)
    p = torch.where(shares > 0, p, torch.minimum(small, step / 2))
    left = (1 - p.sum(1)).clamp(min=TINY)
    dtype = wide(like.values.dtype)
    return (temperature * p.log()).to(dtype), (temperature * left.log()).to(dtype)
