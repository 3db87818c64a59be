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

from triskel.errors import RoundError
from triskel.experiment.resources import LocalResources
from triskel.experiment.rounds import Scores, Stage, pooled
from triskel.numerics.tensors import flat
from triskel.training.evaluate import evaluate, probe_joined
from triskel.training.loop import LossTerm, StepId
from triskel.training.worker import Worker
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
from triskel.wire import expect
from triskel.wire.adapters import number, same_round

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
        initial: Everything that trains, before round 1.
        aggregate: How the sᵢ become s.
    """

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

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Train s and the client's own B together; the server is asked nothing."""
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer = worker.trainer(_all_of(task, worker, client_state), where)
        steps = ([LossTerm(batch)] for batch in worker.batches(where, worker.training.epochs))
        yield from worker.fit(trainer, steps, where)
        trained = {n: p.detach().cpu().clone() for n, p in trainer.parameters.items()}
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

    def server_model(self, state: KeepBState) -> Tensors | None:
        """Return nothing: without a client's B there is no whole model."""
        del state

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return a client's model as its last round left it."""
        return client_state.groups.get(OWN)

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate s with the client's own B on the client's own test share."""
        return probe_joined(worker, _all_of(task, worker, client_state)), client_state
        yield  # a Talk that asks nothing


def _shared(state: KeepBState) -> dict[str, Section]:
    return {"shared": Section(kind="dense", tensors=state.shared)}


def kept(name: str) -> bool:
    """Return whether a tensor stays with its client."""
    return ".lora_B." in name


def _all_of(task: Message, worker: Worker, client_state: ClientState) -> dict[str, Tensor]:
    shared = {n: t for n, t in worker.body.initial.items() if not kept(n)}
    expect(task, kind="task", sections={"shared": shared})
    own = client_state.groups.get(OWN, worker.body.initial)
    return {**own, **task.sections["shared"].tensors}


def keep_b_stage(resources: LocalResources, aggregate: Aggregate[Any]) -> Stage[Any, Any]:
    """Return the stage: the mode, who takes part, and how a state is scored."""
    body = resources.body()

    def scores(state: KeepBState, client_states: Mapping[ClientId, ClientState]) -> Scores:
        def own(client: ClientId) -> Tensors:
            return {
                **client_states.get(client, ClientState()).groups.get(OWN, body.initial),
                **state.shared,
            }

        each = (
            (c, evaluate(body, own(c), resources.tokens.share(c).test)) for c in resources.clients
        )
        return pooled(each, body.classes)

    return Stage(
        name="keep-b",
        mode=KeepB(initial=body.initial, aggregate=aggregate),
        clients=resources.active(),
        worker=resources.worker,
        evaluate=scores,
        body=body,
        job=resources.job,
    )
