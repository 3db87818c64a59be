"""The demonstration, as large as this machine does in minutes: one timed step chooses a rung.

A comparison costs so many passes of padded tokens through blocks, forward or back. How many is
counted here from a rung's texts, as the stages play them; how long one takes is timed on the real
model, on a few training steps. Where bfloat16 is native two cores do the first rung, five seeds;
a slower or a busier machine takes a smaller one, and it is said which and why.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from triskel.config.job import Job
from triskel.config.read import DEMO, parse
from triskel.config.sections import blocks_of
from triskel.experiment.resources import prepare
from triskel.training.loop import LossTerm, StepId, TrainStep
from triskel.training.trainer import Trainer
from triskel.types import Watch

BUDGET_S = 450.0
"""What the comparison may take: ten minutes, less an installation and a quarter for error."""
CLIENTS, ROUNDS, DEPTH = 4, 3, 30
"""Of the demonstration, and the blocks of its model."""
PADDED = 26
"""Padded tokens of a text of the demonstration, on average."""
BACK = 1.3
"""What a backward pass costs beside a forward one: the base is frozen, so no gradient of it."""
ENDS = 6
"""Blocks of `split` that a client runs, below and above the trunk; what enters is kept as well."""
TAUGHT, SPLIT, SCORED = 2.4, 2.0, 0.7
"""What distillation, `split` and scoring take for a pass, a step of `params` being 1: measured by
processor time, stage by stage, in a comparison with adapters in the top 10 blocks."""
STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size of the demonstration.

    Attributes:
        seeds: How often the whole comparison runs.
        texts: Training texts of a client.
        tests: Test texts of a client.
        public: Public texts, for `logits`.
        epochs: Passes over a client's texts in a round.
        blocks: Blocks with adapters, the last ones; what enters them is kept.
    """

    seeds: int
    texts: int
    tests: int
    public: int
    epochs: int
    blocks: int

    @property
    def passes(self) -> float:
        """Padded tokens through one block, forward or back, of all seeds, scoring included.

        Five rows train everybody's texts once (each client alone, central, and the modes); each
        client alone at the FLOPs of `logits` trains as many texts again as `logits` does.
        """
        held, scored = CLIENTS * self.texts, CLIENTS * self.tests
        step = (1 + BACK) * self.blocks
        once = DEPTH * (2 * held + scored + self.public) + ENDS * (held + scored)
        trained = ROUNDS * self.epochs * held * step
        taught = ROUNDS * CLIENTS * self.public * (self.blocks + 2 * step)
        student = ROUNDS * self.public * step
        alone, equal, central, params, split = trained, trained + taught, trained, trained, trained
        logits = trained + TAUGHT * taught + student
        stages = alone + equal + central + params + logits + SPLIT * split
        scoring = SCORED * self.blocks * scored * (6 * (ROUNDS + 1) + ROUNDS + 2 * CLIENTS)
        return self.seeds * PADDED * (once + stages + scoring)

    @property
    def about(self) -> str:
        """What this is, in words."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{seeds}, {self.texts} texts a client, adapters in the top {self.blocks} blocks"

    def job(self, name: str = "opinions") -> Job:
        """Return the job of one seed."""
        return parse(
            DEMO,
            where="the demonstration",
            overrides=[
                f"name={name}",
                f"clients.examples={self.texts}",
                f"clients.test_examples={self.tests}",
                f"logits.public={self.public}",
                f"adapter.blocks=top:{self.blocks}",
                f"train.epochs={self.epochs}",
                f"rounds={ROUNDS}",
            ],
        )


LADDER = (
    Rung(seeds=5, texts=70, tests=70, public=35, epochs=2, blocks=4),
    Rung(seeds=3, texts=70, tests=70, public=35, epochs=2, blocks=4),
    Rung(seeds=2, texts=70, tests=70, public=35, epochs=2, blocks=4),
    Rung(seeds=1, texts=70, tests=70, public=35, epochs=2, blocks=4),
    Rung(seeds=1, texts=60, tests=60, public=30, epochs=2, blocks=4),
    Rung(seeds=1, texts=50, tests=50, public=20, epochs=2, blocks=4),
    Rung(seeds=1, texts=40, tests=40, public=15, epochs=2, blocks=3),
)
"""From the largest to the smallest; the first is the job of `triskel init`."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which rung, and what is to be said of it.

    Attributes:
        rung: What is played.
        place: Its place on the ladder, counted from 1.
        sentence: Its size, and why it is no larger.
    """

    rung: Rung
    place: int
    sentence: str

    @property
    def job(self) -> Job:
        """The job of one seed; a smaller one carries its rung in its name."""
        name = "opinions" if self.place == 1 else f"opinions-rung-{self.place}"
        return self.rung.job(name)


def choose(
    seconds_per_pass: float, budget_s: float = BUDGET_S, ladder: Sequence[Rung] = LADDER
) -> Choice:
    """Return the largest rung that fits into a time, or the smallest of all.

    Args:
        seconds_per_pass: Of a padded token through a block, forward or back.
        budget_s: What the comparison may take.
        ladder: From the largest to the smallest.
    """
    fits = (i for i, rung in enumerate(ladder) if rung.passes * seconds_per_pass <= budget_s)
    place = next(fits, len(ladder) - 1)
    rung, whole = ladder[place], ladder[0].passes * seconds_per_pass
    needs = rung.passes * seconds_per_pass
    sentence = f"the demo: {rung.about}, about {_minutes(needs)}"
    if place:
        sentence = (
            f"a smaller demo, rung {place + 1} of {len(ladder)}: {rung.about}, about "
            f"{_minutes(needs)}; by a timed training step the whole one ({ladder[0].about}) would "
            f"take about {_minutes(whole)} here"
        )
    if needs > budget_s:
        sentence += (
            f"; this is the smallest, and more than the {_minutes(budget_s)} it is meant to take"
        )
    return Choice(rung=rung, place=place + 1, sentence=sentence)


def timed(watch: Watch, job: Job | None = None) -> float:
    """Return the seconds of a padded token through a block, by a few training steps.

    Args:
        watch: Told what is fetched or found out on the way.
        job: Whose steps; the first rung's where none is given.
    """
    resources = prepare(job or LADDER[0].job(), watch)
    body, client = resources.body(), resources.clients[0]
    body.prefix = None  # a step of the first epoch, in which nothing is at hand yet
    worker = resources.worker(client, watch)
    trainer = Trainer(body, body.initial, resources.job.train, resources.job.train.lr)
    trained = len(blocks_of(resources.job.adapter.blocks, body.blocks.count))
    found: list[float] = []
    for step, batch in enumerate(worker.batches(StepId(client, 1), 1)):
        one = TrainStep(trainer, [LossTerm(batch)], StepId(client, 1), step, 0)
        start = time.perf_counter()
        one.run()
        taken = time.perf_counter() - start
        found.append(taken / (batch.ids.numel() * (body.blocks.count + BACK * trained)))
        if step == STEPS:
            break
    return statistics.median(found[1:])  # the first is to warm up


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"  # noqa: PLR2004 - digits
