"""Evaluation, forward only: what a model scores on a set of examples, and as a message."""

import torch

from triskel.data.text import batch_of, eval_plan, lengths_of
from triskel.errors import MessageError
from triskel.exchange import number
from triskel.message import expect
from triskel.metrics import Score, empty, merge, score
from triskel.model.body import Body
from triskel.types import Examples, Message, Section, Tensors
from triskel.worker import Worker

BATCH_TOKENS = 2048
"""Padded tokens of an evaluation batch."""


def evaluate(body: Body, tensors: Tensors, examples: Examples) -> Score:
    """Return the score of a body with these tensors on some examples."""
    total = empty(body.classes)
    if not len(examples):
        return total
    parameters = body.parameters(tensors)
    body.dropout(None)
    with torch.no_grad():
        for rows in eval_plan(lengths_of(examples), tokens=BATCH_TOKENS):
            batch = batch_of(examples, rows, pool=body.blocks.pool)
            logits = body.logits(parameters, batch)
            total = merge(total, score(logits, batch.targets.to(logits.device), body.classes))
    return total


def probe_joined(worker: Worker, tensors: Tensors) -> Message:
    """Return the `evaluate` message of a client that runs the whole model."""
    return score_message(evaluate(worker.body, tensors, worker.test))


def score_message(found: Score) -> Message:
    """Return a score as a message: sums only, never single predictions."""
    sections: dict[str, Section] = {}
    if found.confusion is not None:
        sections["confusion"] = Section(kind="labels", tensors={"counts": found.confusion})
    return Message(
        kind="evaluate",
        topic="score",
        sections=sections,
        facts={"loss_sum": found.loss_sum, "correct": found.correct, "count": found.count},
    )


def score_of(message: Message, classes: int) -> Score:
    """Return the score a client sent.

    Raises:
        MessageError: It is not a score over this many classes.
    """
    shape = {"confusion": {"counts": (classes, classes)}} if classes else {}
    expect(message, kind="evaluate", topic="score", sections=shape)
    count = int(number(message.facts, "count"))
    correct = int(number(message.facts, "correct"))
    if correct > count:
        raise MessageError(f"{correct} correct predictions out of {count} is not a score")
    return Score(
        confusion=message.sections["confusion"].tensors["counts"] if classes else None,
        loss_sum=number(message.facts, "loss_sum"),
        correct=correct,
        count=count,
    )
