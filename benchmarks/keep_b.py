"""A mode that keeps a state with every client: factor A of LoRA is shared, factor B stays.

One round, with s for the shared tensors (all factors A, and the head):

    server                                     client
    sends s
                                               sᵢ ← s;  Bᵢ as it was left in its last round
                                               per batch:  (sᵢ, Bᵢ) ← AdamW(∇ℓ(sᵢ, Bᵢ; batch))
                                               sends sᵢ, nᵢ;  keeps Bᵢ
    s ← Σ nᵢ sᵢ / Σ nᵢ

Sharing A and keeping B is FedSA-LoRA (arXiv:2410.01463). `virtual.py` measures it.

What leaves a client: the trained factors A, the head, and how many examples they rest on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from torch import Tensor

from triskel.bench import Bench
from triskel.config.job import Job
from triskel.errors import RoundError
from triskel.evaluate import evaluate, probe_joined
from triskel.exchange import number, same_round
from triskel.message import expect
from triskel.model.train import Learner, Term, Where, learning_rate
from triskel.round import Scores, Stage, pooled
from triskel.tensors import flat
from triskel.types import (
    A,
    Aggregate,
    AskStyle,
    ClientId,
    ClientState,
    ClientUpdate,
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
    weighted: bool = True

    def start(self) -> KeepBState:
        """Return the server's state before round 1."""
        return KeepBState(shared={n: t for n, t in self.initial.items() if not kept(n)})

    def task(self, state: KeepBState, client: ClientId) -> Message:
        """Send s."""
        del client  # everyone gets the same
        return Message(kind="task", sections=_shared(state), facts={"round": state.closed + 1})

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
        same_round(update, state.closed + 1)
        expect(update, kind="update", sections={"shared": state.shared})
        weight = number(update.facts, "examples", least=1)
        theirs = ClientUpdate(client=client, sections=update.sections, weight=weight)
        return self.aggregate.add(total, theirs, _shared(state))

    def merge(self, state: KeepBState, left: A, right: A) -> A:
        """Return the total of both totals."""
        del state
        return self.aggregate.merge(left, right)

    def close(self, state: KeepBState, total: A) -> KeepBState:
        """Return the state with the new s."""
        return KeepBState(
            shared=flat(self.aggregate.value(total, _shared(state))), closed=state.closed + 1
        )

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


def _shared(state: KeepBState) -> dict[str, Section]:
    return {"shared": Section(kind="dense", tensors=state.shared)}


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
