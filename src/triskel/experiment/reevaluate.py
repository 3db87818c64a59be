"""A run's saved adapters, evaluated once more: on the run's own test shares, or on another file.

On the run's own shares the stage's own evaluation runs, so the figures are those of the result to
the last bit, on the machine and with the threads that made it. The shares of a federation's run are
at its sites, and only another file can be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from triskel.config.job import Job
from triskel.config.read import moved
from triskel.config.sections import Judge, is_name
from triskel.core import events
from triskel.core.crash import during
from triskel.core.registry import MODES, TASKS
from triskel.data.batches import tokenise
from triskel.data.files import load, select
from triskel.data.reading import columns_of
from triskel.data.rows import Rows
from triskel.errors import DataError, JobError
from triskel.experiment import data_record
from triskel.experiment.baselines import local_row
from triskel.experiment.compare import read_run
from triskel.experiment.folder import safe
from triskel.experiment.resources import LocalResources, prepare
from triskel.experiment.rounds import Scores, pooled
from triskel.experiment.stages import everywhere, own_everywhere, scored
from triskel.experiment.starts import begun
from triskel.experiment.trained import with_model, without_texts
from triskel.export.adapters import read_adapter
from triskel.export.saved import ADAPTERS, saved
from triskel.model.shared import SharedModel
from triskel.numerics.metrics import Score
from triskel.report.catalogue import one_run
from triskel.training.evaluate import evaluate
from triskel.types import ClientId, Tensors, Watch

FILE = "file"
"""The one part of a file that is not dealt to clients."""


def assess(  # noqa: PLR0913 - what is evaluated, and where it lies
    run: Path,
    *,
    mode: str | None = None,
    data: Path | None = None,
    model: Path | None = None,
    judge: Judge | None = None,
    settings: Sequence[str] = (),
    watch: Watch,
) -> dict[str, Any]:
    """Evaluate what a run trained.

    Args:
        run: A run folder, finished or not.
        mode: A mode, `central` or `local`; the job's own mode if left out and there, else the only
            one there is.
        data: A file with the columns of the job's data. Where the job deals rows by a column and
            the file has it, each client's row counts for it; else all rows are one part.
        model: Where the job's model lies here, if not where the job says.
        judge: Which of the run's own rows; those the run itself was scored on if left out.
        settings: Where the run's data lie by now, as `config.read.moved` has it.
        watch: Told about whatever a user should know.

    Returns:
        `mode`, the pooled figures as a result holds them, `examples`, `per_client`, the columns
        `everybody` and `own` as far as there are such texts, and of the run's own rows `judge`.

    Raises:
        CheckpointError: It is not a run folder.
        JobError: It is several runs, or the run has no such adapter.
        DataError: The file does not fit the job; or there is none, and the texts are elsewhere or
            not those that the run began with.
        ModelError: The job's model is not here, or a saved adapter does not fit it.
    """
    one_run(run)
    asked, request = read_run(run, imports=())
    job = moved(asked, settings)
    stage = _stage_named(run, mode, job.mode)
    if model is not None:
        job = with_model(job, path=str(model.resolve()))
    if data is not None:  # nothing is kept of texts that run once
        job = with_model(job, cache_mb=0)
    away = _away(run, job, texts=data is None)
    resources = (
        _without_shares(run, job, stage, watch)
        if away
        else prepare(  # nothing is trained
            job, watch, modes=(), judge=judge or request.judge, starts=begun(run)
        )
    )
    _hold(run, resources, watch, texts=data is None)
    watch(events.stage_start(stage, 0))
    with during(f"while evaluating {stage}"):
        if data is None:
            found = _local(run, resources) if stage == "local" else _again(run, resources, stage)
            found["judge"] = judge or request.judge
        else:
            found = _on_file(run, resources, stage, data)
    watch(events.stage_end(stage, {"accuracy": found["accuracy"]}))
    return {"mode": stage, **found}


def _away(run: Path, job: Job, *, texts: bool) -> bool:
    """Return whether a run's texts are at sites.

    Raises:
        DataError: They are, and are wanted.
    """
    away = job.data.source == "clients" and is_name(job.data.train)
    if away and texts:
        raise DataError(
            f"the test texts of {run} are at the sites of its federation, and what they scored "
            "there is in its report; --data FILE evaluates on texts that are here"
        )
    return away


def _hold(run: Path, resources: LocalResources, watch: Watch, *, texts: bool) -> None:
    """Hold texts, where they are the run's own, and tokenizers against what the run began with."""
    known = texts and data_record.hold(run, resources.job, resources.federation, write=False)
    if texts and not known:
        watch(events.warning(data_record.unsaid(run)))
    data_record.hold_tokenizers(run, resources.tokenizers(), write=False)


def _without_shares(run: Path, job: Job, stage: str, watch: Watch) -> LocalResources:
    """Return the resources of a federation's job: its model, and nobody's texts."""
    named = next((name for name, (one, _) in saved(run).items() if one == stage), stage)
    return without_texts(run, job, named, watch)


def _stage_named(run: Path, mode: str | None, own: str) -> str:
    """Return the stage that is meant; clients' own models of one stage count as one."""
    there: dict[str, str] = {str(stage): stage for stage, _ in saved(run).values()}
    named = own if mode is None and own in there else mode
    chosen: list[str] = [stage for name, stage in there.items() if named in {None, name}]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(sorted(there)) or "none yet"
    asked = f" of mode {mode}" if mode else ""
    what = "no adapter" if not chosen else "more than one adapter"
    raise JobError(f"run {run} has {what}{asked}; it has {listed}: name the mode")


# --- the run's own test shares ----------------------------------------------------------------


def _again(run: Path, resources: LocalResources, stage: str) -> dict[str, Any]:
    """Run the stage's own evaluation on what it saved."""
    own = _own(run, resources, stage)
    resources.models.begin(stage)  # whoever never took part is where it started
    shared = _shared(run, resources, stage) if _is_saved(run, stage) else None
    party = partial(resources.party, stage)
    one = stage in MODES.loaded() and MODES.spec(stage).carries(resources.job).one_body
    alike = shared if one else None
    scores = scored(resources, shared, own.get, party, alike)
    everybody = scores
    if shared is None:
        everybody = own_everywhere(resources, own.get, party) or scores
    return _row(scores, everybody=everybody.pooled, own=scores.own)


def _local(run: Path, resources: LocalResources) -> dict[str, Any]:
    """Weigh each client's figures on its own share, by the sums of the result's own row."""
    each: dict[str, Any] = {}
    for client, tensors in _own(run, resources, "local").items():
        body = resources.body(client)
        own = evaluate(body, tensors, resources.tokens.share(client).test)
        everybody = everywhere(resources, body, tensors).pooled.row()
        each[client] = {
            **own.row(),
            "examples": own.count,
            "everybody": everybody,
            "global_accuracy": everybody["accuracy"],
        }
    count = sum(one["examples"] for one in each.values())
    found = local_row(each, resources.body().classes)
    return {**found, "examples": count}


# --- another file -----------------------------------------------------------------------------


def _on_file(run: Path, resources: LocalResources, stage: str, data: Path) -> dict[str, Any]:
    """Score on a file; one that is not dealt has no own texts."""
    parts = _dealt(resources, data)
    classes, dealt = resources.body().classes, FILE not in parts
    own_models, common = _owners(run, stage), _is_saved(run, stage)
    if not own_models:
        scores = pooled(_each_shared(resources, _shared(run, resources, stage), parts), classes)
        return _row(scores, everybody=scores.pooled, own=scores.own if dealt else None)
    mine = pooled(_each_own(run, resources, stage, parts), classes)
    own = mine.own if dealt else None
    if not common:
        return _row(mine, everybody=None if dealt else mine.pooled, own=own)
    together = pooled(_each_shared(resources, _shared(run, resources, stage), parts), classes)
    return _row(replace(together, each=mine.each), everybody=together.pooled, own=own)


def _each_shared(
    resources: LocalResources, tensors: Tensors, parts: Mapping[ClientId, Rows]
) -> dict[ClientId, Score]:
    return {c: _score(resources, resources.body(), tensors, rows) for c, rows in parts.items()}


def _each_own(
    run: Path, resources: LocalResources, stage: str, parts: Mapping[ClientId, Rows]
) -> dict[ClientId, Score]:
    """Score clients' own models: on their part of the file, or all of it where it is not dealt."""
    own = _own(run, resources, stage)
    if FILE in parts:
        parts = dict.fromkeys(own, parts[FILE])
    strange = sorted(parts.keys() - own.keys())
    if strange:
        raise DataError(
            f"the file holds rows of {strange[0]!r}, which has no model of its own in this run; "
            f"there are {', '.join(own)}"
        )
    party = partial(resources.party, stage)
    return {c: _score(resources, party(c), own[c], rows) for c, rows in parts.items()}


def _score(resources: LocalResources, body: SharedModel, tensors: Tensors, rows: Rows) -> Score:
    classes = resources.federation.classes
    return evaluate(
        body, tensors, tokenise(rows, body.tokenizer, job=resources.job, classes=classes)
    )


def _dealt(resources: LocalResources, data: Path) -> dict[ClientId, Rows]:
    """Return a file's rows by client, where a column says whose they are."""
    job = resources.job
    columns = load(data, dialect=job.data.dialect)
    wanted = dict(columns_of(job, labelled=True))
    for role in ("group", "label"):
        unused = role == "group" or not TASKS.spec(job.data.task).labelled
        if unused and wanted.get(role) not in columns:
            wanted.pop(role, None)
    rows = select(columns, wanted, where=f"data file {data}")
    if job.partition != "natural" or not rows.group:
        return {FILE: rows}
    held = resources.federation.clients.items()
    owner = {g: c for c, h in held for part in (h.train, h.test) for g in set(part.group)}
    return {owner.get(key, key): rows.take(mine) for (key,), mine in rows.strata("group").items()}


# --- what was saved ---------------------------------------------------------------------------


def _shared(run: Path, resources: LocalResources, stage: str) -> Tensors:
    return read_adapter(run / ADAPTERS / stage, resources.body())


def _is_saved(run: Path, stage: str) -> bool:
    """Return whether a stage left a model that is everybody's."""
    return (stage, None) in saved(run).values()


def _owners(run: Path, stage: str) -> set[str]:
    """Return whose own models a stage left, by the names of their folders."""
    return {owner for kind, owner in saved(run).values() if kind == stage and owner is not None}


def _own(run: Path, resources: LocalResources, stage: str) -> dict[ClientId, Tensors]:
    """Return the tensors of every client that has a model of its own."""
    owners = _owners(run, stage)
    return {
        client: read_adapter(
            run / ADAPTERS / f"{stage}-{safe(client)}", resources.party(stage, client)
        )
        for client in resources.clients
        if safe(client) in owners
    }


def _row(scores: Scores, *, everybody: Score | None, own: Score | None) -> dict[str, Any]:
    columns = {"everybody": everybody, "own": own}
    return {
        **scores.pooled.row(),
        **{name: score.row() for name, score in columns.items() if score is not None},
        "examples": scores.pooled.count,
        "per_client": scores.each,
    }
