"""An aggregate of your own, in a mode in which clients share factor A of LoRA, and keep factor B.

One round, with s for the shared tensors (all factors A, and the head):

    server                                     client
    sends s
                                               sᵢ ← s;  Bᵢ as it was left in its last round
                                               per batch:  (sᵢ, Bᵢ) ← AdamW(∇ℓ(sᵢ, Bᵢ; batch))
                                               sends sᵢ, nᵢ;  keeps Bᵢ
    s ← median or mean of the sᵢ

Sharing A and keeping B is FedSA-LoRA (arXiv:2410.01463); the median is here to show an aggregate.

    python examples/own_aggregate.py             # the demo's model, 50 texts a client
    python examples/own_aggregate.py rounds=3    # any key of a job

What leaves a client: the trained factors A, the head, and how many examples they rest on.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

import torch
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.bench import Bench, prepare
from triskel.engines.local import LocalEngine
from triskel.errors import RoundError
from triskel.evaluate import evaluate, probe_joined
from triskel.exchange import number, same_round
from triskel.job import Job, parse
from triskel.message import expect
from triskel.model.train import Learner, Term, Where, learning_rate
from triskel.round import Scores, Stage, play, pooled, summary
from triskel.types import (
    A,
    Aggregate,
    AskStyle,
    ClientId,
    ClientState,
    Message,
    Section,
    Talk,
    Tensors,
)
from triskel.worker import Worker

JOB = """
[clients]
examples = 50
test_examples = 50
"""
OWN = "own"


@dataclass(frozen=True)
class Median:
    """The middle of each number; one client that sends nonsense cannot move it far.

    It must see every update, so its running total is all of them: `needs_individual_uploads`.
    """

    def zero(self) -> tuple[Tensors, ...]:
        """Return the total of no updates."""
        return ()

    def add(
        self, total: tuple[Tensors, ...], tensors: Tensors, weight: float
    ) -> tuple[Tensors, ...]:
        """Return the total with one client's tensors; a median knows no weights."""
        del weight
        return (*total, tensors)

    def merge(self, left: tuple[Tensors, ...], right: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
        """Return the total of both totals."""
        return left + right

    def value(self, total: tuple[Tensors, ...]) -> dict[str, Tensor]:
        """Return the medians."""
        return {n: torch.stack([one[n] for one in total]).quantile(0.5, dim=0) for n in total[0]}


@dataclass(frozen=True)
class KeepBState:
    """The server between rounds.

    Attributes:
        shared: s, all factors A and the head.
        closed: Rounds closed so far.
    """

    shared: Tensors
    closed: int = 0


@dataclass(frozen=True)
class KeepB(Generic[A]):
    """Share A, keep B.

    Attributes:
        job: Learning rates and rounds.
        initial: Everything that trains, before round 1.
        aggregate: How the sᵢ become s.
    """

    job: Job
    initial: Tensors
    aggregate: Aggregate[A]
    asks: Mapping[str, AskStyle] = field(default_factory=dict[str, AskStyle])
    in_flight: int = 0

    def start(self) -> KeepBState:
        """Return the server's state before round 1."""
        return KeepBState(shared={n: t for n, t in self.initial.items() if not kept(n)})

    def task(self, state: KeepBState, client: ClientId) -> Message:
        """Send s."""
        del client  # everyone gets the same
        shared = Section(kind="dense", tensors=state.shared)
        return Message(kind="task", sections={"shared": shared}, facts={"round": state.closed + 1})

    def work(self, task: Message, worker: Worker, mine: ClientState) -> Talk:
        """Train s and the client's own B together; the server is asked nothing."""
        body, train = worker.body, worker.job.train
        where = Where(worker.client, int(number(task.facts, "round", least=1)))
        rate = learning_rate(train, where.round, worker.job.rounds)
        learner = Learner(body, _all_of(task, worker, mine), train, rate)
        steps = ([Term(batch)] for batch in worker.batches(where, train.epochs))
        yield from worker.fit(learner, steps, where)
        trained = {n: p.detach().cpu().clone() for n, p in learner.parameters.items()}
        shared = Section(kind="dense", tensors={n: t for n, t in trained.items() if not kept(n)})
        facts = {"round": where.round, "examples": len(worker.train)}
        update = Message(kind="update", sections={"shared": shared}, facts=facts)
        return update, ClientState(groups={OWN: trained})

    def answer(
        self, state: KeepBState, asks: Mapping[ClientId, Message]
    ) -> tuple[KeepBState, Mapping[ClientId, Message]]:
        """Refuse: no client asks in this mode."""
        del state
        raise RoundError(f"clients {sorted(asks)} asked, and this mode has no questions")

    def zero(self, state: KeepBState) -> A:
        """Return the total of no updates."""
        del state
        return self.aggregate.zero()

    def add(self, state: KeepBState, total: A, client: ClientId, update: Message) -> A:
        """Fold sᵢ in, once it is what this round waits for."""
        del client
        same_round(update, state.closed + 1)
        expect(update, kind="update", sections={"shared": state.shared})
        weight = number(update.facts, "examples", least=1)
        return self.aggregate.add(total, update.sections["shared"].tensors, weight)

    def close(self, state: KeepBState, total: A) -> KeepBState:
        """Return the state with the new s."""
        return KeepBState(shared=self.aggregate.value(total), closed=state.closed + 1)

    def served(self, state: KeepBState) -> Tensors | None:
        """Return nothing: without a client's B there is no whole model."""
        del state

    def own(self, mine: ClientState) -> Tensors | None:
        """Return a client's model as its last round left it."""
        return mine.groups.get(OWN)

    def probe(self, task: Message, worker: Worker, mine: ClientState) -> Talk:
        """Evaluate s with the client's own B on the client's own test share."""
        return probe_joined(worker, _all_of(task, worker, mine)), mine
        yield  # a Talk that asks nothing


def kept(name: str) -> bool:
    """Return whether a tensor stays with its client."""
    return ".lora_B." in name


def _all_of(task: Message, worker: Worker, mine: ClientState) -> dict[str, Tensor]:
    shared = {n: t for n, t in worker.body.initial.items() if not kept(n)}
    expect(task, kind="task", sections={"shared": shared})
    own = mine.groups.get(OWN, worker.body.initial)
    return {**own, **task.sections["shared"].tensors}


def keep_b_stage(bench: Bench, aggregate: Aggregate[Any]) -> Stage[Any, Any]:
    """Return the stage: the mode, who takes part, and how a state is scored."""
    body = bench.body()

    def scores(state: KeepBState, mine: Mapping[ClientId, ClientState]) -> Scores:
        def own(client: ClientId) -> Tensors:
            return {**mine.get(client, ClientState()).groups.get(OWN, body.initial), **state.shared}

        each = ((c, evaluate(body, own(c), bench.share(c).test)) for c in bench.clients)
        return pooled(each, body.classes)

    return Stage(
        name="keep-b",
        mode=KeepB(job=bench.job, initial=body.initial, aggregate=aggregate),
        clients=bench.active,
        worker=bench.worker,
        evaluate=scores,
        body=body,
        job=bench.job,
    )


def main(settings: Sequence[str] = ()) -> None:
    """Print one line per aggregate: bytes a client sends in a round, and the accuracy reached."""
    job = parse(JOB, overrides=settings)
    bench = prepare(job, watch)
    print(f"{'aggregate':>9} {'up':>12} {'accuracy':>9}")
    for aggregate in (Mean(), Median()):
        with TemporaryDirectory() as folder:
            stage = keep_b_stage(bench, aggregate)
            outcome = play(stage, LocalEngine(job), folder=Path(folder), watch=watch)
        found = summary(outcome)
        up = next(iter(found["rounds"][-1]["clients"].values()))["up"]["message_bytes"]
        name = type(aggregate).__name__
        print(f"{name:>9} {up:12,} {found['final']['accuracy']:9.3f}")


def watch(event: Mapping[str, Any]) -> None:
    """Show warnings; every step and message comes by here too."""
    if event["event"] == "warning":
        print(event["text"], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
