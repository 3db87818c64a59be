"""Evaluation, forward only: what a model scores on a set of examples, and as a message."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from triskel.core.crash import during
from triskel.data.batches import batch_of, lengths_of
from triskel.data.tokens import concatenated
from triskel.errors import MessageError
from triskel.model.shared import SharedModel
from triskel.numerics.metrics import Score
from triskel.numerics.tensors import eval_plan
from triskel.training.worker import Worker
from triskel.types import ClientId, Examples, Message, Section, Tensors
from triskel.wire import expect
from triskel.wire.adapters import number

BATCH_TOKENS = 2048
"""Padded tokens of an evaluation batch."""


@during("while scoring texts")
def evaluate(body: SharedModel, tensors: Tensors, examples: Examples) -> Score:
    """Return the score of a body with these tensors on some examples."""
    tally = body.objective.counts(body.classes, len(examples))
    if not len(examples):
        return tally.score()
    parameters = body.parameters(tensors)
    body.dropout(None)
    for rows in eval_plan(lengths_of(examples, ahead=body.blocks.ahead), tokens=BATCH_TOKENS):
        batch = batch_of(examples, rows, pool=body.blocks.pool, ahead=body.blocks.ahead)
        texts = torch.tensor(rows)[batch.rows]
        for part, logits in body.logits_by_part(parameters, batch):
            tally.add(logits, batch.targets[part].to(logits.device), texts[part])
    return tally.score()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Clients whose examples are scored together.

    Attributes:
        clients: Who.
        examples: Everybody's examples, in the order of the clients.
        owners: For each example, whose it is: a place among the clients.
        places: For each example, its place among its owner's.
    """

    clients: tuple[ClientId, ...]
    examples: Examples
    owners: tuple[int, ...]
    places: tuple[int, ...]


def grouped(shares: Mapping[ClientId, Examples]) -> list[Group]:
    """Return clients in groups, in their order: small shares together, up to `BATCH_TOKENS`."""
    found: list[list[ClientId]] = []
    tokens = 0
    for client, examples in shares.items():
        size = sum(lengths_of(examples))
        if not found or tokens + size > BATCH_TOKENS:
            found.append([])
            tokens = 0
        found[-1].append(client)
        tokens += size
    return [_group(tuple(clients), [shares[c] for c in clients]) for clients in found]


def _group(clients: tuple[ClientId, ...], parts: Sequence[Examples]) -> Group:
    owners = tuple(place for place, part in enumerate(parts) for _ in range(len(part)))
    places = tuple(place for part in parts for place in range(len(part)))
    examples = parts[0] if len(parts) == 1 else concatenated(parts)
    return Group(clients=clients, examples=examples, owners=owners, places=places)


def evaluate_each(
    body: SharedModel, tensors: Tensors, groups: Iterable[Group]
) -> Iterator[tuple[ClientId, Score]]:
    """Return the score of a body with these tensors on each client's examples, one by one.

    A group runs in batches of its own, and each client counts its own predictions. A client that
    is a group by itself is scored as in `evaluate`, to the last bit.
    """
    for group in groups:
        if len(group.clients) == 1:
            yield group.clients[0], evaluate(body, tensors, group.examples)
        else:
            yield from zip(group.clients, _together(body, tensors, group), strict=True)


@during("while scoring texts")
def _together(body: SharedModel, tensors: Tensors, group: Group) -> list[Score]:
    held = torch.tensor(group.owners, dtype=torch.int64).bincount(minlength=len(group.clients))
    found = [body.objective.counts(body.classes, int(count)) for count in held]
    if not len(group.examples):
        return [tally.score() for tally in found]
    parameters = body.parameters(tensors)
    body.dropout(None)
    for rows in eval_plan(lengths_of(group.examples, ahead=body.blocks.ahead), tokens=BATCH_TOKENS):
        batch = batch_of(group.examples, rows, pool=body.blocks.pool, ahead=body.blocks.ahead)
        owners = torch.tensor([group.owners[i] for i in rows])[batch.rows]
        texts = torch.tensor([group.places[i] for i in rows])[batch.rows]
        for part, logits in body.logits_by_part(parameters, batch):
            targets = batch.targets[part].to(logits.device)
            for owner in dict.fromkeys(owners[part].tolist()):
                mine = owners[part] == owner
                here = mine.to(logits.device)
                found[owner].add(logits[here], targets[here], texts[part][mine])
    return [tally.score() for tally in found]


def probe_joined(worker: Worker, tensors: Tensors) -> Message:
    """Return the `evaluate` message of a client that runs the whole model."""
    return score_message(evaluate(worker.body, tensors, worker.test))


def score_message(found: Score) -> Message:
    """Return a score as a message: sums only, never single predictions."""
    sections: dict[str, Section] = {}
    if found.confusion is not None:
        sections["confusion"] = Section(kind="counts", tensors={"counts": found.confusion})
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
    counted = bool(classes) and "confusion" in message.sections  # else the table stayed there
    shape = {"confusion": {"counts": (classes, classes)}} if counted else {}
    expect(message, kind="evaluate", topic="score", sections=shape)
    count = int(number(message.facts, "count"))
    correct = int(number(message.facts, "correct"))
    table = message.sections["confusion"].tensors["counts"] if counted else None
    if table is not None and (table.dtype != torch.int64 or bool((table < 0).any())):
        raise MessageError("a table of predictions counts them in int64, none below 0")
    right = correct if table is None else int(table.diagonal().sum())
    if not right == correct <= count or (table is not None and int(table.sum()) != count):
        raise MessageError(f"{correct} correct predictions out of {count} is not this score")
    return Score(
        confusion=table,
        loss_sum=number(message.facts, "loss_sum"),
        correct=correct,
        count=count,
        classes=classes,
    )
