"""Rounds of one stage: who takes part, what is kept, what is written down; no mode by name.

A stage is one mode on one set of clients. After every round the server's state, the clients' states
and the rows of figures are checkpointed; a resumed stage starts at the last closed round and gives
the same bits, as all randomness is derived from names. What clients keep goes to the disk one by
one, and comes back one by one.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, cast, runtime_checkable

from triskel.config.job import Job
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.registry import TASKS
from triskel.core.result_parts import (
    FIGURES,
    ClientFigures,
    Final,
    RoundRow,
    StageRow,
)
from triskel.core.task_spec import Figure
from triskel.experiment import best_round
from triskel.experiment.checkpoint import Saved, freeze, named, read, thaw, write
from triskel.experiment.client_store import Store
from triskel.experiment.crowd import crowd
from triskel.experiment.records import ByClient
from triskel.experiment.sampling import Sampling
from triskel.model.meter import Meter
from triskel.model.shared import SharedModel
from triskel.numerics.metrics import PerText, Score, empty, merge
from triskel.training.worker import Worker
from triskel.types import A, ClientId, ClientState, Event, Examples, Mode, S, Watch
from triskel.wire.ledger import Ledger, costs, totals


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
        client_states: Mapping[ClientId, ClientState],
        keep: Callable[[ClientId, ClientState], None],
        ledger: Ledger,
        watch: Watch,
        gone: Collection[ClientId] = (),
        weights: Mapping[ClientId, int] | None = None,
    ) -> S:
        """Play one round and close it; `keep` takes each client's next state as it is done.

        `gone` are clients of the cohort that get a task and are not heard of again; `weights` is
        what their updates count in the place of examples.
        """
        ...


CLIENTS = "clients"
"""Folder of a stage with what its clients keep."""
EACH = 100
"""Up to how many clients a round's row holds what each of them spent. Beyond, it holds the sum and
the slowest, what each spent is a table of its own, and only the last round has all scores."""
ROWS = 10_000
"""Clients times rounds up to which rounds hold what each client spent: what a run leaves must stay
within what is read of a file (`untrusted.VALUES_MOST`)."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a state reaches: on everybody's test texts, and each client's model on its own.

    Attributes:
        pooled: The common model on everybody's texts; where there is none, as `own`.
        own: Each client's own model where it has one, else the common one, on its own texts; all
            texts count alike.
        each: The figures of each client's own texts as a result holds them, `examples` among them.
        everybody_texts: Text by text, by whose they are: the common model's.
        own_texts: Text by text: each client's own model's.
    """

    pooled: Score
    own: Score
    each: Mapping[ClientId, ClientFigures]
    everybody_texts: ByClient = field(default_factory=dict[ClientId, PerText])
    own_texts: ByClient = field(default_factory=dict[ClientId, PerText])


def _nothing(_state: object, _mine: Mapping[ClientId, ClientState]) -> None:
    """Do nothing at the end."""


def _none(_state: object, _mine: Mapping[ClientId, ClientState]) -> None:
    """Know of no other figures for everybody's texts."""


def _all(state: ClientState) -> ClientState:
    """Let a client keep whatever it does."""
    return state


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S, A]):
    """One mode on one set of clients.

    Attributes:
        name: `params`, `local:bank`, ...
        mode: The algorithm.
        clients: Who holds training examples.
        worker: Makes a client's worker; the watch it is given knows stage and round.
        evaluate: Scores a state, after each round that the job tests (`Job.tested`).
        body: The model that what the server ends with fits.
        job: The job as this stage plays it.
        everybody: Scores a last state on everybody's texts, where `evaluate` does not.
        tests: Returns the test texts that scores are of, as the server's tokens; none where these
            are at sites.
        closing: Called with the last state, and what clients keep, when the last round is over.
        kept: Returns what a client keeps of a round, once its mode may have it keep that.
        saves: Whether the models it leaves are saved.
        server: The server's account of compute, where it computes.
        validate: Scores a state on validation texts, where `evaluate` does not.
        party: Returns the model that a client runs; None is that of its own path and rank.
        until: The round that it stops after for now, where that is not the job's last.
        sizes: Returns how many training examples each client holds, as far as that is known here.
    """

    name: str
    mode: Mode[S, A, Worker]
    clients: Sequence[ClientId]
    worker: Callable[[ClientId, Watch], Worker]
    evaluate: Callable[[S, Mapping[ClientId, ClientState]], Scores]
    body: SharedModel
    job: Job
    everybody: Callable[[S, Mapping[ClientId, ClientState]], Scores | None] = _none
    tests: Callable[[], Mapping[ClientId, Examples]] = dict[ClientId, Examples]
    closing: Callable[[S, Mapping[ClientId, ClientState]], None] = _nothing
    kept: Callable[[ClientState], ClientState] = _all
    saves: bool = True
    server: Meter | None = None
    validate: Callable[[S, Mapping[ClientId, ClientState]], Scores] | None = None
    party: Callable[[ClientId], SharedModel] | None = None
    until: int | None = None
    sizes: Callable[[], Mapping[ClientId, int]] = dict[ClientId, int]

    @property
    def sampling(self) -> Sampling:
        """Draws who takes part."""
        return Sampling(self.job, self.clients, self.sizes)

    @property
    def last(self) -> int:
        """The round that it is played to: all that depends on how many there are is the job's."""
        return min(self.until or self.job.rounds, self.job.rounds)

    @property
    def chooses(self) -> Figure | None:
        """By which validation figure the round is chosen that it ends with; None is the last."""
        return TASKS.spec(self.job.data.task).figure if self.job.train.keep == "best" else None


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[S]):
    """Where a stage ended.

    Attributes:
        state: The server's state that is kept: the last, or that of the best round.
        clients: The clients' states of that round, read from the stage's folder when asked for.
        rows: One row of figures a round.
        scores: What that state reaches; None where its round was closed by an earlier process.
        kept: Which round it is, where it was chosen.
    """

    state: S
    clients: Mapping[ClientId, ClientState] = field(default_factory=dict[ClientId, ClientState])
    rows: list[RoundRow]
    scores: Scores | None = None
    kept: int | None = None


def play(stage: Stage[S, A], engine: Engine, *, folder: Path, watch: Watch) -> Outcome[S]:
    """Play a stage to its last round, from its last checkpoint if there is one.

    Of a job that keeps the best round, what that one left is returned.

    Raises:
        TriskelError: Whatever stopped a round; closed rounds are on disk.
    """
    state, rows, store = _begun(stage, folder)
    job, scores, sampling = stage.job, None, stage.sampling
    store.counted |= sampling.counted(rows)
    seen = {c for r in range(1, len(rows) + 1) for c in sampling.stayed(r)}
    for round_ in range(len(rows) + 1, stage.last + 1):
        here = events.stamped(watch, stage=stage.name, round=round_)
        chosen = sampling.cohort(round_)
        here(events.round_start(chosen))
        ledger, start = Ledger(), time.perf_counter()
        before = stage.server.flops if stage.server else 0
        state = engine.round(
            stage.mode,
            state,
            chosen,
            worker=lambda client, told=here: _hand(stage, client, told, seen),
            client_states=store,
            keep=lambda client, mine, now=round_: store.keep(client, stage.kept(mine), now),
            ledger=ledger,
            watch=here,
            gone=sampling.dropped(round_),
            weights=sampling.weights(round_),
        )
        store.counted |= dict.fromkeys(set(chosen) - ledger.absent.keys(), round_)
        seconds = time.perf_counter() - start
        row: RoundRow = {"round": round_}
        if job.tested(round_) or round_ == stage.last:
            here(events.evaluate())
            scores = _tested(stage, state, store, row)
        row["seconds"] = seconds
        row["server"] = {"flops": (stage.server.flops if stage.server else 0) - before}
        seen.update(sampling.stayed(round_))
        rows.append(row)
        if len(stage.clients) > EACH or len(stage.clients) * job.rounds > ROWS:
            write_text(folder / f"costs-{round_:06d}.csv", "".join(ledger.table()))
            _thinned(rows, stage.chooses)
            row["sum"], row["slowest"] = crowd(ledger, len(seen))
        else:
            row["clients"] = ledger.rows()
        _book(row, ledger)
        store.flush()
        saved = Saved(
            closed=round_,
            state=freeze(state),
            clients=store.filed,
            rows=cast("list[dict[str, Any]]", rows),
        )
        write(folder, saved)
        _cleared(stage, folder, saved, store)
        here(_summary(rows[-1]))
    return _ended(stage, Outcome(state=state, clients=store, rows=rows, scores=scores), folder)


def _thinned(rows: Sequence[RoundRow], chooses: Figure | None) -> None:
    """Let only the last round, and the best so far, say what each of many clients reached."""
    best = best_round.best_of(rows, chooses) if chooses else None
    for one in rows[:-1]:
        if one["round"] != best:
            one.pop("per_client", None)


def _cleared(stage: Stage[Any, Any], folder: Path, saved: Saved, store: Store) -> None:
    """Keep what a round left that is the best so far, and drop states that nothing names."""
    if stage.chooses is not None:
        best_round.keep(folder, saved, stage.chooses)
    store.sweep([*named(folder), *named(folder / best_round.FOLDER)])


def _ended(stage: Stage[S, A], last: Outcome[S], folder: Path) -> Outcome[S]:
    """Return the outcome of a stage that was played to its last round: of that or the best."""
    if stage.chooses is None:
        return last
    round_ = best_round.best_of(last.rows, stage.chooses)
    if round_ is None or round_ == len(last.rows):
        return replace(last, kept=len(last.rows))
    saved = best_round.kept(folder, round_)
    clients = Store(folder / CLIENTS, saved.clients)
    state = thaw(last.state, saved.state)
    return Outcome(state=state, clients=clients, rows=last.rows, kept=round_)


def _hand(
    stage: Stage[Any, Any], client: ClientId, watch: Watch, seen: Collection[ClientId]
) -> Worker:
    """Return a client's worker, whose meter knows whether the client took part before."""
    hand = stage.worker(client, watch)
    hand.meter.returning = client in seen
    return hand


def pooled(
    each: Mapping[ClientId, Score] | Iterable[tuple[ClientId, Score]], classes: int
) -> Scores:
    """Return the figures of each client's share, and of all shares together.

    Args:
        each: Scores by client, or one after the other in the order of their names.
        classes: Classes of a `classify` task, or 0 for `causal`.
    """
    if isinstance(each, Mapping):
        each = sorted(cast("Mapping[ClientId, Score]", each).items())
    total, rows = empty(classes), dict[ClientId, ClientFigures]()
    texts = dict[ClientId, PerText]()
    for client, one in each:
        total = merge(total, one)
        rows[client] = {**one.row(), "examples": one.count}
        if one.texts is not None:
            texts[client] = one.texts
    return Scores(pooled=total, own=total, each=rows, everybody_texts=texts, own_texts=texts)


def summary(outcome: Outcome[Any]) -> StageRow:
    """Return a stage as it stands in a result: rounds, totals and the final figures."""
    kept = outcome.rows[(outcome.kept or 0) - 1]
    ends = cast("Mapping[str, Any]", kept)
    final = cast("Final", {k: ends[k] for k in (*FIGURES, "n", "own") if k in ends})
    found: StageRow = {"rounds": outcome.rows, "totals": totals(outcome.rows), "final": final}
    return found if outcome.kept is None else {**found, "kept": outcome.kept}


def _begun(stage: Stage[S, A], folder: Path) -> tuple[S, list[RoundRow], Store]:
    """Return where a stage stands: as its last checkpoint left it, or before round 1."""
    state, store = stage.mode.start(), Store(folder / CLIENTS)
    saved = read(folder, lambda one: store.check(one.clients))
    if saved is None:
        return state, [], store
    store, rows = Store(folder / CLIENTS, saved.clients), cast("list[RoundRow]", saved.rows)
    _cleared(stage, folder, saved, store)  # a kill may have come before it
    return thaw(state, saved.state), rows, store


def _book(row: RoundRow, ledger: Ledger) -> None:
    """Put into a round's row what was counted beside what each client spent, where there is any."""
    if ledger.wire_bytes:
        row["wire_bytes"] = ledger.wire_bytes
    if ledger.scoring:
        row["scoring"] = ledger.scoring
    if ledger.absent:
        row["absent"] = dict(sorted(ledger.absent.items()))


def _tested(stage: Stage[S, A], state: S, store: Store, row: RoundRow) -> Scores:
    """Score what a round left, and give the figures to its row."""
    scores = stage.evaluate(state, store)
    row |= cast("RoundRow", scores.pooled.row())
    row["own"] = scores.own.row()
    row["per_client"] = dict(scores.each)
    if stage.chooses:
        judged = stage.validate(state, store) if stage.validate else scores
        row["validation"] = judged.pooled.row()
    return scores


def _summary(row: RoundRow) -> Event:
    spent = costs(row)
    return events.round_end(
        {k: v for k, v in row.items() if isinstance(v, int | float)},
        up_bytes=sum(one["up"]["message_bytes"] for one in spent),
        down_bytes=sum(one["down"]["message_bytes"] for one in spent),
        flops=sum(one["flops"] for one in spent),
    )
