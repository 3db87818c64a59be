"""The messages of split learning: the task, and of a batch h up, u down, ∂ℓ/∂u up, ∂ℓ/∂h down."""

from collections.abc import Mapping

import torch
from torch import Tensor

from triskel.config.sections import Train
from triskel.errors import LimitError, MessageError
from triskel.model.shared import SharedModel
from triskel.modes.split.cut import Cut, labels_section, lengths_in, packed, unpacked
from triskel.numerics.tensors import indices, select
from triskel.training.evaluate import BATCH_TOKENS
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import Batch, ClientId, Fact, Message, MessageKind, Reply, Section
from triskel.wire import is_finite
from triskel.wire.adapters import adapter_of, integers, same_round


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


def ask_forward(
    h: Tensor, batch: Batch, cut: Cut, where: StepId, step: int, body: SharedModel
) -> Message:
    """Return hidden states at the first cut as an ask, with labels where they are shared."""
    sections = {"activations": packed(h, indices(batch.lengths), pooled=False)}
    facts = {"round": where.round, "step": step}
    if cut.shared:
        sections["labels"] = labels_section(batch, body)
        facts["labelled"] = int((batch.targets >= 0).sum())
    return Message(kind="ask", topic="forward", sections=sections, facts=facts)


def ask_backward(u: Tensor, batch: Batch, cut: Cut, where: StepId) -> Message:
    """Return the gradient at the head's cut as an ask: ∂ℓ/∂u, and how many labels it rests on."""
    slope = torch.zeros_like(u) if u.grad is None else u.grad
    return Message(
        kind="ask",
        topic="backward",
        sections={"gradient": packed(slope, indices(batch.lengths), pooled=cut.pooled)},
        facts={"round": where.round, "labelled": int((batch.targets >= 0).sum())},
    )


def received(reply: Reply, where: StepId) -> Message:
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
    body: SharedModel,
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


def opened(task: Message, worker: Worker, cut: Cut) -> dict[str, Tensor]:
    """Return the client's tensors, once the server's cut is the client's own.

    Raises:
        MessageError: It is another.
    """
    if integers(task.facts, "cut") != [cut.low, cut.high] or task.facts.get("shared") != cut.shared:
        raise MessageError(
            f"the server cuts at {task.facts.get('cut')} and client {worker.client!r} at "
            f"{[cut.low, cut.high]}; both need the same job"
        )
    template = select(worker.body.initial, cut.mine)
    return adapter_of(task, template, worker.body.layout, kind="task")


def moderate(ask: Message, training: Train, ahead: int = 0) -> None:
    """Refuse a batch that no client of this job has, before memory is taken for it.

    Clients share a graph: where one's numbers overflow, the others' gradients are lost as well.

    Args:
        ask: What a client asks.
        training: The job's batches and lengths.
        ahead: How many virtual tokens each text begins with.

    Raises:
        LimitError: It is such a batch.
    """
    for name, section in ask.sections.items():
        values = section.tensors.get("values")
        if values is not None and not is_finite(values.float().square().sum()):
            raise LimitError(f"section {name!r} has numbers too large to be squared")
    if ask.topic != "forward":
        return
    lengths, most = lengths_in(ask), training.length + ahead
    longest = max(lengths)
    texts = training.batch if ask.kind == "ask" else max(1, BATCH_TOKENS // longest)
    if longest > most or len(lengths) > texts:
        raise LimitError(
            f"a batch has {len(lengths)} texts of up to {longest} tokens, the job's has at most "
            f"{texts} of up to {most}"
        )
