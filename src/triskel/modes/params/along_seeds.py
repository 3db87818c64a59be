"""What both exchanges of seeds share: pairs as a section and back, and a client's round."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32, Float64, Int32
from torch import Tensor

from triskel.errors import MessageError
from triskel.model.flops import Piece
from triskel.modes.params.exchange import Exchange
from triskel.numerics.replay import MOST, Replay, Steps, scalars_of, ticks
from triskel.training.evaluate import probe_joined
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.training.zeroth_order import Walk, walk
from triskel.types import Batch, Local, Message, Section
from triskel.wire import expect, fact
from triskel.wire.adapters import number

STEPS = "steps"
"""The section of a message that holds pairs."""
FORWARD = Piece("forward")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Seeds and scalars as they travel.

    Attributes:
        seeds: A seed for each scalar.
        scalars: Multiples of 2^-16, where they are finite and not large.
    """

    seeds: Int32[Tensor, " n"]
    scalars: Float32[Tensor, " n"]

    @property
    def section(self) -> Section:
        """As a section of a message."""
        return Section(kind="seeds", tensors={"seeds": self.seeds, "scalars": self.scalars})

    @property
    def steps(self) -> Steps:
        """How far they lead along each seed."""
        return Steps.of(self.seeds, self.ticks)

    @property
    def ticks(self) -> Float64[Tensor, " n"]:
        """The scalars as integers."""
        return ticks(self.scalars)


def pairs_of(message: Message, count: int, below: int) -> Pairs:
    """Return the pairs of a client's update.

    Args:
        message: From the client.
        count: How many there must be.
        below: All seeds are smaller.

    Raises:
        MessageError: There are more or fewer, a seed is none of those that there are, or a scalar
            is not finite or beyond what any step takes.
    """
    wanted = {"seeds": torch.zeros(count, dtype=torch.int32), "scalars": torch.zeros(count)}
    expect(message, kind="update", sections={STEPS: wanted}, kinds={STEPS: "seeds"})
    found = message.sections[STEPS].tensors
    seeds, scalars = found["seeds"], found["scalars"]
    least, most = int(seeds.min()), int(seeds.max())
    if least < 0 or most >= below:
        raise MessageError(
            f"section {STEPS!r} has seed {least if least < 0 else most}, and seeds go from 0 to "
            f"{below - 1}"
        )
    check_scalars(scalars)
    return Pairs(seeds, scalars)


def check_scalars(scalars: Float32[Tensor, " n"], most: float = MOST) -> None:
    """Refuse scalars that no sum of steps can be made of.

    Raises:
        MessageError: One is not finite, or too large.
    """
    if not bool((scalars.abs() <= most).all()):  # NaN is not
        worst = next(float(x) for x in scalars if not abs(x) <= most)
        raise MessageError(f"section {STEPS!r} has the scalar {worst:g}; none is beyond {most:g}")


def check_start(message: Message, replay: Replay) -> None:
    """Refuse to rebuild tensors from another start than the server's.

    Raises:
        MessageError: They start from other numbers here.
    """
    if fact(message.facts, "start", str) != replay.sha256:
        raise MessageError(
            "the tensors that training starts from are other numbers here than at the server, so "
            "scalars would lead elsewhere; use the same model and release of torch and the same "
            'kind of processor (ATEN_CPU_CAPABILITY), or params.exchange = "tensors"'
        )


def replay_of(worker: Worker, known: Replay, lr: float) -> Replay:
    """Return what rebuilds a client's tensors: the server's own where they are one process."""
    start = worker.body.initial
    return known if start is known.start else Replay(start, lr)


def trained(
    worker: Worker,
    exchange: Exchange,
    replay: Replay,
    steps: Steps,
    seeds: Sequence[int],
    where: StepId,
) -> Generator[Local, Any, Message]:
    """Take the local steps of a round, and return the update.

    Args:
        worker: The client.
        exchange: How many steps, and of what size.
        replay: Rebuilds its tensors.
        steps: Those that lead to where the round begins.
        seeds: Of each step.
        where: Client and round.
    """
    sums = replay.sums(steps)
    one = Walk(worker.body, replay, sums, lr=exchange.lr, epsilon=exchange.epsilon)

    def after(batch: Batch, loss: float) -> None:
        for _ in range(2):
            worker.meter.ran(batch, FORWARD, held=one.held)
        worker.meter.tokens += batch.ids.numel()
        worker.report_step(where, batch, loss)

    batches = _batches(worker, where, exchange.steps)
    work = zip(seeds, batches, strict=True)
    taken, loss = yield from walk(one, work, seed=worker.seed, where=where, after=after)
    found = torch.tensor(taken, dtype=torch.float64)
    pairs = Pairs(torch.tensor(seeds, dtype=torch.int32), scalars_of(found))
    return Message(
        kind="update",
        sections={STEPS: pairs.section},
        facts={"round": where.round, "examples": len(worker.train), "loss": loss},
    )


def scored(worker: Worker, replay: Replay, steps: Steps) -> Message:
    """Return the score of rebuilt tensors on the client's own test share."""
    return probe_joined(worker, replay.tensors(steps))


def round_of(task: Message) -> int:
    """Return which round a task opens."""
    return int(number(task.facts, "round", least=1))


def _batches(worker: Worker, where: StepId, steps: int) -> Iterator[Batch]:
    """Return as many batches as there are steps, in as many passes as that takes."""
    each = len(worker.plan(worker.train, where, 1))
    plan = worker.plan(worker.train, where, -(-steps // each))
    return (worker.batch(worker.train, rows) for rows in plan[:steps])
