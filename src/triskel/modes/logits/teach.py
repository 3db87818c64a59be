"""Giving knowledge and taking it: predictions on the public set, and learning from a teacher's."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor

from triskel.data.batches import lengths_of
from triskel.model.flops import Piece
from triskel.model.shared import Parameters
from triskel.modes.logits.knowledge import Knowledge, dense, stack, top
from triskel.modes.logits.losses import distil_loss
from triskel.modes.logits.spec import LogitsOptions, named
from triskel.numerics.tensors import eval_plan
from triskel.training.loop import LossTerm, StepId
from triskel.training.trainer import Trainer
from triskel.training.worker import Worker
from triskel.types import Batch, Examples, Local, Tensors

AHEAD = Piece("forward")
PREDICT_TOKENS = 2048


def distil(
    worker: Worker, tensors: Tensors, teacher: Knowledge, where: StepId, options: LogitsOptions
) -> Generator[Local, Any, Trainer]:
    """Learn from the teacher on the public set; keep to private labels, if any, by 1 - mix."""
    public, mix = worker.public, options.mix if len(worker.train) else 1.0
    where = replace(where, phase="distil")
    trainer = worker.trainer(tensors, where)
    own = worker.body.objective.loss
    rehearsal = _rehearsal(worker, where) if mix < 1 else None

    def steps() -> Iterator[list[LossTerm]]:
        for rows in worker.plan(public, where, options.epochs):
            wanted = _rows_of(teacher, public, rows)

            def taught(logits: Tensor, _: Batch, wanted: Knowledge = wanted) -> Tensor:
                return distil_loss(logits, wanted, options.temperature)

            batch = worker.batch(public, rows)
            if rehearsal is None:
                yield [LossTerm(batch, taught)]
            else:
                yield [LossTerm(batch, taught, mix), LossTerm(next(rehearsal), own, weight=1 - mix)]

    yield from worker.fit(trainer, steps(), where)
    return trainer


def predict(worker: Worker, parameters: Parameters, options: LogitsOptions) -> Knowledge:
    """Return what these parameters predict on the public set, in its order."""
    body, public = worker.body, worker.public
    body.dropout(None)
    k = named(options, body.classes, body.vocabulary)
    found: dict[int, Knowledge] = {}
    for rows in eval_plan(lengths_of(public, ahead=body.blocks.ahead), tokens=PREDICT_TOKENS):
        batch, known = worker.batch(public, rows), list[Knowledge]()
        for _, logits in body.logits_by_part(parameters, batch):
            mine = logits if body.classes else logits[:, : body.vocabulary]
            known.append(dense(mine) if k is None else top(mine, k, options.temperature))
        worker.meter.ran(batch, AHEAD)
        together = stack(known)
        for place, row in enumerate(rows):
            found[row] = together.rows((batch.rows == place).to(together.values.device))
    return stack([found[row] for row in range(len(public))])


def _rehearsal(worker: Worker, where: StepId) -> Iterator[Batch]:
    """Return batches of private examples without end, epoch after epoch."""
    for epoch in count():
        yield from worker.batches(replace(where, phase=f"rehearse-{epoch}"), 1)


def _rows_of(teacher: Knowledge, public: Examples, rows: Sequence[int]) -> Knowledge:
    """Return the teacher's word on some public examples, in the order of their batch."""
    if not public.scored:
        return teacher.rows(torch.tensor(list(rows)))
    sizes = [int(scored.sum()) for scored in public.scored]
    ends = list(accumulate(sizes))
    return teacher.rows(torch.cat([torch.arange(ends[r] - sizes[r], ends[r]) for r in rows]))
