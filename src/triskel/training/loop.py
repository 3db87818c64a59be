"""The local loop: one party's tensors are trained batch after batch, alone or beside others."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triskel.errors import TrainingError
from triskel.numerics.objective import Loss, label_loss
from triskel.numerics.rng import derive
from triskel.training.joining import worth_joining
from triskel.training.trainer import Trainer
from triskel.types import Batch, Local, Work

IN_FLIGHT = 16
"""Clients that train side by side where nobody asks; fewer run in one pass when the model says."""


@dataclass(frozen=True)
class StepId:
    """Which step of a run this is, for streams of randomness and for error messages."""

    client: str
    round: int
    phase: str = "train"

    def path(self, step: int) -> tuple[str | int, ...]:
        """Return the name of this step's random stream."""
        return ("round", self.round, self.phase, self.client, step)


def finite(loss: Tensor, where: StepId, step: int) -> float:
    """Return the loss as a number.

    Raises:
        TrainingError: It is NaN or infinite; names client, round and step.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"loss became {value} at client {where.client!r}, round {where.round}, "
            f"{where.phase} step {step}; lower train.lr, set train.max_grad_norm = 1, "
            "or look for broken rows in that client's data"
        )
    return value


@dataclass(frozen=True)
class LossTerm:
    """A part of a step's loss.

    Attributes:
        batch: What the model runs on.
        loss: A function of its logits.
        weight: What the loss is multiplied by before terms are added.
    """

    batch: Batch
    loss: Loss = label_loss
    weight: float = 1.0


@dataclass(eq=False)
class TrainStep:
    """One AdamW step of one party, alone or in one pass with other parties'; is a `types.Work`.

    Attributes:
        trainer: What trains.
        terms: The loss.
        where: Names client and round in errors.
        step: Which step of its phase it is.
        seed: Of the adapter's dropout.
        value: The loss in nats, once it ran.
    """

    trainer: Trainer
    terms: Sequence[LossTerm]
    where: StepId
    step: int
    seed: int
    value: float = math.nan

    @property
    def kind(self) -> Hashable:
        """Parties with the same model, of one rank and with as many terms go together."""
        trainer = self.trainer
        return (id(trainer.body), trainer.rank, len(self.terms)) if trainer.body.joins else None

    @property
    def size(self) -> int:
        """Padded tokens of all terms."""
        return sum(term.batch.ids.numel() for term in self.terms)

    def beside(self, others: Sequence[Work]) -> bool:
        """Return whether one pass with these is cheaper: all small, and little padding between."""
        all_ = [work for work in (self, *others) if isinstance(work, TrainStep)]
        shapes = [
            [work.terms[place].batch.ids.shape for work in all_] for place in range(len(self.terms))
        ]
        return worth_joining(self.trainer.body, self.trainer.rank, shapes)

    def run(self, others: Sequence[Work] = ()) -> None:
        """Run the model forward and back, and take the step of every party.

        Raises:
            TrainingError: A loss is not finite; no party took its step.
        """
        together = [self, *(work for work in others if isinstance(work, TrainStep))]
        self.trainer.body.dropout(self.seed)  # who has dropout runs alone
        total = self._forward(together)
        if len(together) > 1 and not all(bool(loss.isfinite()) for loss in total):
            total = [loss for work in together for loss in self._forward([work])]  # whose is it?
        for work, loss in zip(together, total, strict=True):
            work.value = finite(loss, work.where, work.step)
        torch.autograd.backward(total)
        if len(together) > 1 and not all(work.trainer.sound for work in together):
            for work in together:  # an infinite gradient of one is NaN in all: take each alone
                work.trainer.forget()
                work.run()
            return
        for work in together:
            work.trainer.step()

    def _forward(self, together: Sequence["TrainStep"]) -> list[Tensor]:
        """Return everybody's loss."""
        total: list[Tensor] = []
        for place in range(len(self.terms)):
            terms = [work.terms[place] for work in together]
            losses = self._losses(together, terms)
            parts = [
                loss if term.weight == 1 else term.weight * loss
                for term, loss in zip(terms, losses, strict=True)
            ]
            total = [x + y for x, y in zip(total, parts, strict=True)] if place else parts
        return total

    def _losses(
        self, together: Sequence["TrainStep"], terms: Sequence[LossTerm]
    ) -> Sequence[Tensor]:
        body = self.trainer.body
        parties = [work.trainer.model for work in together]
        batches = [term.batch for term in terms]
        if all(term.loss is label_loss for term in terms):
            found = body.label_losses(parties, batches)
            if found is not None:
                return found
        logits = body.together(parties, batches)
        return [term.loss(z, term.batch) for term, z in zip(terms, logits, strict=True)]


def fit(
    trainer: Trainer,
    work: Iterable[Sequence[LossTerm]],
    *,
    seed: int,
    where: StepId,
    after: Callable[[Sequence[LossTerm], float], None] | None = None,
) -> Generator[Local, Any, float]:
    """Take one AdamW step per item of `work`; whoever drives the generator runs the steps.

    Args:
        trainer: What trains, in place.
        work: The terms of each step's loss, in order.
        seed: The job's seed, for the adapter's dropout.
        where: Names client and round in errors.
        after: Called with each step's terms and loss once the step is taken.

    Returns:
        The mean loss over steps; 0 without any.

    Raises:
        TrainingError: A loss is not finite.
    """
    steps, total = 0, 0.0
    for step, terms in enumerate(work):
        one = TrainStep(trainer, terms, where, step, derive(seed, *where.path(step)))
        yield Local(one)
        steps, total = steps + 1, total + one.value
        if after is not None:
            after(terms, one.value)
    return total / max(steps, 1)
