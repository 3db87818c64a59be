"""A fresh seed every step: the log of all pairs is the model, and whoever comes late reads it.

One round t, w0 of the job's seed, clients i of the cohort with nᵢ examples:

    server                                    client
    sends the log of pairs (s, g)
                                              w ← w0 - η Σ_{pairs of the log} g z_s
                                              τ times, with a seed s of client, round and step:
                                                g ← (ℓ(w + ε z_s) - ℓ(w - ε z_s)) / 2ε
                                                w ← w - η g z_s
                                              sends τ pairs (s, g), nᵢ
    adds (s, nᵢ g / Σ nᵢ) to the log, for every pair

FedMeZO (Ling et al. 2024, arXiv:2402.05926): MeZO's steps (arXiv:2305.17333, Algorithm 1) on
adapter and head, clients averaged. The mean of clients' tensors is w0 minus the mean of their sums,
so pairs are enough and no tensor travels. The whole log goes to every client, every round: it needs
no memory at clients and no book at the server of who has what, and a client that comes late, or
lost its disk, rebuilds what everybody has. One that remembers the last log adds only what is new
(`numerics.replay`). The log grows by 8 bytes a step and client; where that is too much,
`fedkseed` has a bound.

What leaves a client: slopes of its loss along public directions, and how many examples they rest
on (docs/threats.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triskel.errors import MessageError, RoundError
from triskel.modes.params.along_seeds import (
    STEPS,
    Pairs,
    check_scalars,
    check_start,
    pairs_of,
    replay_of,
    round_of,
    scored,
    trained,
)
from triskel.modes.params.exchange import Exchange
from triskel.numerics.replay import Replay, Steps, scalars_of
from triskel.numerics.rng import derive
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import ClientId, ClientState, Message, Mode, Section, Talk, Tensors
from triskel.wire import expect
from triskel.wire.adapters import number, same_round

SEEDS = 1 << 31
"""Seeds are smaller, so that one takes four bytes."""


@dataclass(frozen=True)
class LogState:
    """The server between rounds.

    Attributes:
        log: All pairs so far, as `seeds` and `scalars`.
        closed: Rounds closed so far.
    """

    log: Tensors
    closed: int = 0


@dataclass(frozen=True, eq=False)
class LogTotal:
    """A running total of updates.

    Attributes:
        pairs: Of each client.
        weights: nᵢ.
    """

    pairs: Mapping[ClientId, Pairs] = field(default_factory=dict[ClientId, Pairs])
    weights: Mapping[ClientId, float] = field(default_factory=dict[ClientId, float])


@dataclass(frozen=True)
class FedMeZO(Mode[LogState, LogTotal, Worker]):
    """FedMeZO.

    Attributes:
        exchange: τ, η and ε.
        replay: Rebuilds tensors.
    """

    exchange: Exchange
    replay: Replay

    def start(self) -> LogState:
        """Return the server's state before round 1."""
        return LogState({"seeds": torch.zeros(0, dtype=torch.int32), "scalars": torch.zeros(0)})

    def task(self, state: LogState, client: ClientId) -> Message:
        """Send the log."""
        del client  # everyone gets the same
        return Message(
            kind="task",
            sections={STEPS: Section(kind="seeds", tensors=state.log)},
            facts={"round": state.closed + 1, "start": self.replay.sha256},
        )

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Rebuild w and take τ steps; the server is asked nothing."""
        replay = replay_of(worker, self.replay, self.exchange.lr)
        steps, where = _received(task, replay), StepId(worker.client, round_of(task))
        seeds = [
            derive(worker.seed, *where.path(step), "seed") % SEEDS
            for step in range(self.exchange.steps)
        ]
        update = yield from trained(worker, self.exchange, replay, steps, seeds, where)
        return update, client_state

    def zero(self, state: LogState) -> LogTotal:
        """Return the total of no updates."""
        del state
        return LogTotal()

    def add(self, state: LogState, total: LogTotal, client: ClientId, update: Message) -> LogTotal:
        """Take a client's pairs."""
        same_round(update, state.closed + 1)
        pairs = pairs_of(update, self.exchange.steps, SEEDS)
        weight = number(update.facts, "examples", least=1)
        return LogTotal({**total.pairs, client: pairs}, {**total.weights, client: weight})

    def merge(self, state: LogState, left: LogTotal, right: LogTotal) -> LogTotal:
        """Return the total of both totals."""
        del state
        return LogTotal({**left.pairs, **right.pairs}, {**left.weights, **right.weights})

    def close(self, state: LogState, total: LogTotal) -> LogState:
        """Return the log with the round's pairs, each with its client's share.

        Raises:
            RoundError: Nobody sent anything.
        """
        if not total.pairs:
            raise RoundError("no client returned an update; every client of the cohort failed")
        whole = sum(total.weights[client] for client in sorted(total.weights))
        seeds, scalars = [state.log["seeds"]], [state.log["scalars"]]
        for client, pairs in sorted(total.pairs.items()):
            share = total.weights[client] / whole
            seeds.append(pairs.seeds)
            scalars.append(scalars_of((pairs.ticks * share).round()))
        log = {"seeds": torch.cat(seeds), "scalars": torch.cat(scalars)}
        return LogState(log, state.closed + 1)

    def server_model(self, state: LogState) -> Tensors:
        """Return w."""
        return self.replay.tensors(Pairs(state.log["seeds"], state.log["scalars"]).steps)

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate w on the client's own test share."""
        replay = replay_of(worker, self.replay, self.exchange.lr)
        return scored(worker, replay, _received(task, replay)), client_state
        yield  # a Talk that asks nothing


def _received(task: Message, replay: Replay) -> Steps:
    """Return the steps that a task says lead to w.

    Raises:
        MessageError: It says anything else, or is of another start.
    """
    like: Mapping[str, Tensor] = task.sections[STEPS].tensors if STEPS in task.sections else {}
    length = len(like.get("scalars", ()))
    wanted = {"seeds": torch.zeros(length, dtype=torch.int32), "scalars": torch.zeros(length)}
    expect(task, kind="task", sections={STEPS: wanted}, kinds={STEPS: "seeds"})
    check_start(task, replay)
    found = task.sections[STEPS].tensors
    if length and int(found["seeds"].min()) < 0:
        raise MessageError(f"section {STEPS!r} has seed {int(found['seeds'].min())}, below 0")
    check_scalars(found["scalars"])
    return Pairs(found["seeds"], found["scalars"]).steps
