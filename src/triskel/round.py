"""Rounds of one stage: who takes part, what is kept, what is written down; no mode by name.

A stage is one mode on one set of clients. After every round the server's state, the clients' states
and the rows of figures are checkpointed; a resumed stage starts at the last closed round and gives
the same bits, as all randomness is derived from names.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, runtime_checkable

import torch

from triskel.checkpoint import Saved, freeze, read, thaw, write
from triskel.errors import RoundError
from triskel.job import Job
from triskel.ledger import Ledger, totals
from triskel.metrics import Score, empty, merge
from triskel.model.body import Body
from triskel.rng import stream
from triskel.types import A, ClientId, ClientState, Mode, S, Watch
from triskel.worker import Worker


@runtime_checkable
class Engine(Protocol):
    """A driver of a mode's generators; `engines.local` is one."""

    def round(  # noqa: PLR0913 - what a round is made of
        self,
        mode: Mode[S, A, Worker],
        state: S,
        cohort: Sequence[ClientId],
        *,
        worker: Callable[[ClientId], Worker],
        mine: Mapping[ClientId, ClientState],
        keep: Callable[[ClientId, ClientState], None],
        ledger: Ledger,
        watch: Watch,
    ) -> S:
        """Play one round and close it; `keep` takes each client's next state as it is done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a state reaches: pooled over test examples, and on each client's own share."""

    pooled: Score
    each: Mapping[ClientId, Score]


def _nothing(_state: object) -> Mapping[str, Any]:
    """Take no figures."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S, A]):
    """One mode on one set of clients.

    Attributes:
        name: `params`, `local:bank`, ...
        mode: The algorithm.
        clients: Who holds training examples.
        worker: Makes a client's worker; the watch it is given knows stage and round.
        evaluate: Scores a state.
        body: The model that what the server ends with fits.
        closing: Figures taken once, when the last round is over.
    """

    name: str
    mode: Mode[S, A, Worker]
    clients: Sequence[ClientId]
    worker: Callable[[ClientId, Watch], Worker]
    evaluate: Callable[[S, Mapping[ClientId, ClientState]], Scores]
    body: Body
    closing: Callable[[S], Mapping[str, Any]] = _nothing


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[S]):
    """Where a stage ended.

    Attributes:
        state: The server's last state.
        clients: The clients' last states.
        rows: One row of figures a round.
    """

    state: S
    clients: Mapping[ClientId, ClientState] = field(default_factory=dict[ClientId, ClientState])
    rows: list[dict[str, Any]]


def cohort(job: Job, clients: Sequence[ClientId], round_: int) -> list[ClientId]:
    """Return who takes part in a round: a share of the clients, at least one, drawn by name.

    Raises:
        RoundError: No client holds a training example.
    """
    if not clients:
        raise RoundError("no client holds a training example; look at clients.partition")
    count = max(1, math.ceil(job.clients.cohort * len(clients) - 1e-9))
    order = torch.randperm(len(clients), generator=stream(job.seed, "cohort", round_))
    names = sorted(clients)
    return sorted(names[int(i)] for i in order[:count])


def play(stage: Stage[S, A], engine: Engine, job: Job, *, folder: Path, watch: Watch) -> Outcome[S]:
    """Play a stage to its last round, from its last checkpoint if there is one.

    Raises:
        TriskelError: Whatever stopped a round; closed rounds are on disk.
    """
    state, mine, rows = stage.mode.start(), dict[ClientId, ClientState](), list[dict[str, Any]]()
    if (saved := read(folder)) is not None:
        state, mine, rows = thaw(state, saved.state), dict(saved.clients), saved.rows
    for round_ in range(len(rows) + 1, job.rounds + 1):
        here = _named(watch, stage.name, round_)
        chosen = cohort(job, stage.clients, round_)
        here({"event": "round_start", "clients": chosen})
        ledger, start = Ledger(), time.perf_counter()
        after = dict[ClientId, ClientState]()
        state = engine.round(
            stage.mode,
            state,
            chosen,
            worker=lambda client, told=here: _hand(stage, client, told, rows),
            mine=mine,
            keep=after.__setitem__,
            ledger=ledger,
            watch=here,
        )
        mine |= after
        seconds = time.perf_counter() - start
        here({"event": "evaluate"})
        scores = stage.evaluate(state, mine)
        rows.append(_row(round_, scores, ledger, seconds))
        write(folder, Saved(closed=round_, state=freeze(state), clients=mine, rows=rows))
        here(_summary(rows[-1]))
    return Outcome(state=state, clients=mine, rows=rows)


def _hand(
    stage: Stage[Any, Any], client: ClientId, watch: Watch, rows: Sequence[Mapping[str, Any]]
) -> Worker:
    """Return a client's worker, whose meter knows whether the client took part before."""
    hand = stage.worker(client, watch)
    hand.meter.returning = any(client in row["clients"] for row in rows)
    return hand


def pooled(each: Mapping[ClientId, Score], classes: int) -> Scores:
    """Return scores on each client's share with their sum over clients."""
    total = empty(classes)
    for client in sorted(each):
        total = merge(total, each[client])
    return Scores(pooled=total, each=each)


def summary(outcome: Outcome[Any]) -> dict[str, Any]:
    """Return a stage as it stands in a result: rounds, totals and the final figures."""
    last = outcome.rows[-1]
    final = {
        k: last[k]
        for k in ("accuracy", "macro_f1", "token_accuracy", "perplexity", "loss")
        if k in last
    }
    return {"rounds": outcome.rows, "totals": totals(outcome.rows), "final": final}


def _row(round_: int, scores: Scores, ledger: Ledger, seconds: float) -> dict[str, Any]:
    return {
        "round": round_,
        **scores.pooled.row(),
        "per_client": {
            client: {**score.row(), "examples": score.count}
            for client, score in sorted(scores.each.items())
        },
        "clients": ledger.rows(),
        "seconds": seconds,
    }


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    note: dict[str, Any] = {"event": "round_end"}
    note |= {k: v for k, v in row.items() if isinstance(v, int | float)}
    for way in ("up", "down"):
        note[f"{way}_bytes"] = sum(c[way]["message_bytes"] for c in row["clients"].values())
    note["flops"] = sum(c["flops"] for c in row["clients"].values())
    return note


def _named(watch: Watch, stage: str, round_: int) -> Watch:
    def here(event: Mapping[str, Any]) -> None:
        watch({**event, "stage": stage, "round": round_})

    return here
