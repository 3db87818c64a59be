"""What one client brings to a round: its name, its own data, a model to run, and a meter."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from triskel.config.sections import Train
from triskel.core import events
from triskel.data.batches import batch_of, lengths_of, plan
from triskel.model.flops import Piece
from triskel.model.meter import Meter
from triskel.model.reparametrisation import PLAIN, Form
from triskel.model.shared import SharedModel
from triskel.numerics.rng import derive
from triskel.training.loop import LossTerm, StepId, fit
from triskel.training.optimizer import Moments, learning_rate
from triskel.training.trainer import Correct, Trainer
from triskel.types import Batch, ClientId, Examples, Local, Tensors, Watch

WHOLE = Piece("train")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One client, for one round.

    Attributes:
        client: Who this is.
        training: How it trains.
        rounds: How many rounds there are.
        seed: The job's seed.
        body: The client's model; in a simulation many clients share one.
        train: Its training examples; they never leave it whole.
        test: Its own test share.
        public: The public set, tokenised for this client's model.
        meter: Its account of compute.
        watch: Told of every training step.
    """

    client: ClientId
    training: Train
    rounds: int
    seed: int
    body: SharedModel
    train: Examples
    test: Examples
    public: Examples
    meter: Meter
    watch: Watch

    def plan(self, examples: Examples, where: StepId, epochs: int) -> list[list[int]]:
        """Return which examples go together; a function of seed, client, round and phase."""
        lengths, batch = lengths_of(examples), self.training.batch
        plans = (
            plan(lengths, batch=batch, seed=self.seed, path=(*where.path(epoch), "plan"))
            for epoch in range(epochs)
        )
        return [rows for one in plans for rows in one]

    def batch(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Return these examples side by side."""
        return batch_of(examples, rows, pool=self.body.blocks.pool, ahead=self.body.blocks.ahead)

    def batches(self, where: StepId, epochs: int) -> Iterator[Batch]:
        """Return batches of the private examples."""
        return (self.batch(self.train, rows) for rows in self.plan(self.train, where, epochs))

    def dropout(self, where: StepId, step: int) -> None:
        """Switch the adapter's dropout on for one step, from the step's own stream."""
        self.body.dropout(derive(self.seed, *where.path(step)))

    def trainer(
        self,
        tensors: Tensors,
        where: StepId,
        *,
        form: Form = PLAIN,
        moments: Moments | None = None,
        correct: Correct | None = None,
    ) -> Trainer:
        """Return a copy of these tensors to be trained as the round of this step has it.

        Args:
            tensors: Where training starts.
            where: Names the round.
            form: Which of the tensors train, and what the model takes of them.
            moments: The optimiser's, of an earlier round.
            correct: Changes gradients before every step.
        """
        rate = self.rate(where.round)
        return Trainer(
            self.body, tensors, self.training, rate, form=form, moments=moments, correct=correct
        )

    def rate(self, round_: int) -> float:
        """Return the learning rate of a round."""
        return learning_rate(self.training, round_, self.rounds)

    def train_on(
        self, trainer: Trainer | Tensors, where: StepId
    ) -> Generator[Local, Any, tuple[Trainer, float]]:
        """Train on the private examples, as the job has it in this round.

        Args:
            trainer: What trains, or tensors of which a copy does.
            where: Names client, round and phase.

        Returns:
            The trainer, whose `parameters` are the trained copy, and the mean loss of its steps.
        """
        if not isinstance(trainer, Trainer):
            trainer = self.trainer(trainer, where)
        loss_ = self.body.objective.loss
        steps = ([LossTerm(batch, loss_)] for batch in self.batches(where, self.training.epochs))
        loss = yield from self.fit(trainer, steps, where)
        return trainer, loss

    def fit(
        self, trainer: Trainer, work: Iterable[Sequence[LossTerm]], where: StepId
    ) -> Generator[Local, Any, float]:
        """Train, step by step, with every batch metered and told of; return the mean loss."""

        def after(terms: Sequence[LossTerm], loss: float) -> None:
            for term in terms:
                self.meter.ran(term.batch, WHOLE, training=trainer.leaves)
            self.report_step(where, terms[0].batch, loss)

        loss = yield from fit(trainer, work, seed=self.seed, where=where, after=after)
        self.body.dropout(None)
        return loss

    def report_step(self, where: StepId, batch: Batch, loss: float) -> None:
        """Tell whoever watches that a step was taken."""
        tokens = int(batch.lengths.sum())
        self.watch(
            events.step(
                where.client, round_=where.round, phase=where.phase, loss=loss, tokens=tokens
            )
        )
