"""The four messages of a batch in split learning: h up, u down, ∂ℓ/∂u up, ∂ℓ/∂h down."""

from collections.abc import Mapping

import torch
from torch import Tensor

from triskel.errors import MessageError
from triskel.exchange import same_round
from triskel.model.body import Body
from triskel.model.train import Where
from triskel.modes.split.cut import Cut, labels_section, packed, unpacked
from triskel.tensors import indices
from triskel.types import Batch, ClientId, Fact, Message, MessageKind, Reply, Section


def wanted(ask: Message, client: ClientId, cut: Cut) -> str:
    """Return what an ask wants of the server.

    Raises:
        MessageError: It wants what this mode does not do.
    """
    if ask.kind == "ask" and ask.topic == "backward" and not cut.shared:
        return "backward"
    if ask.kind == "ask" and ask.topic == "forward":
        return "learn" if cut.shared else "forward"
    if ask.kind == "evaluate" and ask.topic == "forward":
        return "score" if cut.shared else "evaluate"
    raise MessageError(
        f"client {client!r} asked for {ask.topic!r} with a message of kind {ask.kind!r}, which "
        "split learning does not answer with this cut"
    )


def ask_forward(h: Tensor, batch: Batch, cut: Cut, where: Where, step: int, body: Body) -> Message:
    """Return hidden states at the first cut as an ask, with labels where they are shared."""
    sections = {"activations": packed(h, indices(batch.lengths), pooled=False)}
    facts = {"round": where.round, "step": step}
    if cut.shared:
        sections["labels"] = labels_section(batch, body)
        facts["labelled"] = int((batch.targets >= 0).sum())
    return Message(kind="ask", topic="forward", sections=sections, facts=facts)


def ask_backward(u: Tensor, batch: Batch, cut: Cut, where: Where) -> Message:
    """Return the gradient at the head's cut as an ask: ∂ℓ/∂u, and how many labels it rests on."""
    slope = torch.zeros_like(u) if u.grad is None else u.grad
    return Message(
        kind="ask",
        topic="backward",
        sections={"gradient": packed(slope, indices(batch.lengths), pooled=cut.pooled)},
        facts={"round": where.round, "labelled": int((batch.targets >= 0).sum())},
    )


def received(reply: Reply, where: Where) -> Message:
    """Return an answer that is one, and is of this round.

    Raises:
        MessageError: It is not.
    """
    if not isinstance(reply, Message):
        raise MessageError("an ask was answered with nothing")
    same_round(reply, where.round)
    return reply


def came_down(  # noqa: PLR0913 - what an answer must be
    answer: Message,
    section: str,
    topic: str,
    batch: Batch,
    body: Body,
    *,
    pooled: bool = False,
    kind: MessageKind = "answer",
) -> Tensor:
    """Return what an answer brought for a batch, padded again.

    Raises:
        MessageError: It brought something else.
    """
    return unpacked(
        answer, section, kind=kind, topic=topic, lengths=indices(batch.lengths), body=body,
        pooled=pooled,
    )  # fmt: skip


def answer_of(
    round_: int,
    topic: str,
    sections: Mapping[str, Section],
    *,
    kind: MessageKind = "answer",
    loss: float | None = None,
) -> Message:
    """Return the server's answer to one client."""
    facts: dict[str, Fact] = {"round": round_}
    if loss is not None:
        facts["loss"] = loss
    return Message(kind=kind, topic=topic, sections=sections, facts=facts)
