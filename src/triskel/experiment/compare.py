"""The main job: baselines and modes on one model, one data split, one seed and one meter.

A comparison is a list of stages, each played by `rounds.play` and written to the run folder as soon
as it ends, so that a killed comparison goes on where it was. A run folder holds

    job.toml  request.json  choices.json  data.json  events.jsonl  result.json  report.html
    start/                  the adapter that training started from, where there is one
    adapters/<stage>/       PEFT folders
    stages/<stage>/         checkpoints, and done.json once the stage is over
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, cast, get_args

from triskel.config.job import MODE_NAMES, Job, ModeName, unsupported
from triskel.config.read import dump, moved, parse, to_toml
from triskel.config.sections import Judge
from triskel.core import events
from triskel.core.events import Log
from triskel.core.files import alone, write_text
from triskel.core.registry import CODECS, MODES
from triskel.core.result_file import ONE, RunResult
from triskel.core.result_parts import Asked, BaselineRow, DroppedRow
from triskel.core.source import VERSION
from triskel.core.untrusted import TOML_MOST, json_in, table_of, text_of
from triskel.errors import CheckpointError, JobError
from triskel.experiment.baselines import BASELINES, BaselineName, baseline, equal_compute
from triskel.experiment.folder import environment, save
from triskel.experiment.more_rounds import asked_since, more_rounds
from triskel.experiment.opening import opening, same_data, same_start, skipped_in, warnings
from triskel.experiment.records import COLUMNS, DROPS
from triskel.experiment.resources import Resources, prepare
from triskel.experiment.rounds import Engine, Stage
from triskel.experiment.stages import complete, stage_of
from triskel.experiment.starts import starting
from triskel.report.catalogue import taken
from triskel.report.descriptions import about_of, task_about
from triskel.types import Watch

UNBEGUN = {"job.toml", "job.toml.part", "request.json.part"}
"""What a kill can leave before a run is one that can be resumed."""


Row = TypeVar("Row")
"""Of a result: of a baseline, a mode, or a mode with drop-outs."""
R = TypeVar("R", bound=Resources)
EVERY: tuple[BaselineName, ...] = get_args(BaselineName)
JUDGES: tuple[Judge, ...] = get_args(Judge)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a run folder.

    Attributes:
        modes: Modes to run, in order.
        baselines: Baselines to run, in order.
        strict: Whether a mode that cannot run the job is an error rather than skipped.
        judge: Which rows models are scored on; with `validation` no test row is read.
        drop_share: Where above 0, each mode is played once more with this `clients.drop_share`.
        until: Rows that stop for now before the job's last round, and after which. They are the
            beginning of the whole run to the last bit, and go on when asked for more.
    """

    modes: tuple[ModeName, ...] = MODE_NAMES
    baselines: tuple[BaselineName, ...] = BASELINES
    strict: bool = False
    judge: Judge = "test"
    drop_share: float = 0.0
    until: Mapping[str, int] = field(default_factory=dict[str, int])

    def asked(self) -> Asked:
        """Return it as JSON values."""
        found: Asked = {
            "modes": list(self.modes),
            "baselines": list(self.baselines),
            "strict": self.strict,
            "judge": self.judge,
        }
        if self.drop_share:
            found["drop_share"] = self.drop_share
        if self.until:
            found["until"] = dict(self.until)
        return found


def _apart(*_given: object) -> NoReturn:
    raise JobError("baselines need everybody's texts in one place; ask for modes only")


@dataclass(frozen=True)
class Baselines(Generic[R]):
    """What a federation is measured against, where everybody's texts are in one place.

    Attributes:
        play: Plays one that needs no other result, to its last round or the one that is given.
        equal_compute: Plays clients alone for as many FLOPs as the costliest mode takes.
    """

    play: Callable[[BaselineName, R, Engine, Path, Watch, int | None], BaselineRow]
    equal_compute: Callable[[RunResult, R, Engine, Path, Watch], BaselineRow | str]


@dataclass(frozen=True, kw_only=True)
class Venue(Generic[R]):
    """Where a job is played: in one process, or between organisations.

    Attributes:
        prepare: Reads what the job needs here, called as `resources.prepare`.
        stage: What a mode is here.
        find: Returns where the folder is that a job's `adapter.start` names.
        baselines: What a federation is measured against here; refused where it cannot be.
    """

    prepare: Callable[..., R]
    stage: Callable[[ModeName, R, Watch], Stage[Any, Any]]
    baselines: Baselines[R] = Baselines(_apart, _apart)
    find: Callable[[str], Path] = Path


HERE = Venue(prepare=prepare, stage=stage_of, baselines=Baselines(baseline, equal_compute))


def run(
    job: Job,
    request: Request,
    folder: Path,
    engine: Engine,
    watch: Watch,
    venue: Venue[Any] = HERE,
) -> RunResult:
    """Play a job in a new run folder, and return its result.

    Raises:
        TriskelError: The job cannot run, or a stage failed; what was finished stays on disk.
    """
    if folder.exists() and not folder.is_dir():
        raise JobError(f"{folder} is a file; name another folder")
    job = job.playing(request.modes)
    text = to_toml(job)
    if folder.exists() and used(folder, text):
        raise JobError(taken(folder))
    for mode in request.modes:
        if request.strict and (reason := unsupported(job, mode)):
            raise JobError(f"mode {mode} cannot run this job: {reason}")
    asked = {
        **request.asked(),
        "job_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_text(folder / "job.toml", text)
    write_text(folder / "request.json", json.dumps(asked, indent=1))
    return _run(job, request, folder, engine, watch, venue)


def used(folder: Path, text: str) -> bool:
    """Return whether a folder holds more than a run of this very job leaves that never began."""
    job = folder / "job.toml"
    if {path.name for path in folder.iterdir()} - UNBEGUN:
        return True
    return job.exists() and job.read_text(encoding="utf-8", errors="replace") != text


def resume(
    folder: Path,
    engine: Callable[[Job], Engine],
    watch: Watch,
    venue: Venue[Any] = HERE,
    *,
    settings: Sequence[str] = (),
    rounds: int | None = None,
) -> RunResult:
    """Go on with a run folder from its last checkpoint, and return its result.

    Args:
        folder: The run.
        engine: Returns what plays a job.
        watch: Told about whatever a user should know.
        venue: Where the job is played.
        settings: Where its data lie by now, as `config.read.moved` has it.
        rounds: How many rounds it shall have, where these are more than it has.

    Raises:
        CheckpointError: It is not a run folder.
        JobError: It cannot have so many rounds.
        DataError: Its data are not those that it began with.
        TriskelError: A stage failed.
    """
    job, request = read_run(folder)
    job = more_rounds(folder, job, rounds)
    return _run(job, request, folder, engine(job), watch, venue, settings)


def read_run(folder: Path, *, imports: Collection[str] | None = None) -> tuple[Job, Request]:
    """Return the job of a run folder and what was asked of it.

    Args:
        folder: The run.
        imports: What of other packages may be imported, as `config.read.parse` has it.

    Raises:
        CheckpointError: It is not a run folder.
        PluginError: A mode is of a package that is not here, or is broken.
    """
    try:
        text = text_of(folder / "job.toml", most=TOML_MOST)
        asked = table_of(json_in(folder / "request.json"))
        request = _request(asked, imports=imports)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not a run folder: {error}; it needs job.toml and request.json"
        ) from error
    if asked.get("job_sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise CheckpointError(
            f"{folder / 'job.toml'} is not the job this run began with; put it back, or start a "
            "new run with --out"
        )
    job = parse(text, where=str(folder / "job.toml"), imports=imports)
    try:
        return asked_since(job, asked), request
    except ValueError as error:
        raise CheckpointError(f"{folder} is not a run folder: {error}") from error


def _request(asked: Mapping[str, Any], *, imports: Collection[str] | None) -> Request:
    """Return what a run was asked for, as it was written down.

    Raises:
        ValueError: It names what there is not.
        PluginError: A mode is not here, or its package is broken.
    """
    modes, baselines = list(asked["modes"]), list(asked["baselines"])
    judge, share = asked.get("judge", "test"), float(asked.get("drop_share", 0.0))
    until: dict[str, int] = dict(asked.get("until", {}))
    for mode in modes if imports is None else ():
        MODES.spec(mode)
    for names, known in ((baselines, EVERY), ([judge], JUDGES)):
        if strange := [name for name in names if name not in known]:
            raise ValueError(f"request.json names {strange[0]!r}")
    if not 0 <= share < 1:
        raise ValueError(f"request.json has drop_share = {share}")
    if wrong := {n: r for n, r in until.items() if type(r) is not int or r < 1}:
        raise ValueError(f"request.json has until = {wrong}")
    return Request(
        modes=tuple(modes),
        baselines=tuple(baselines),
        strict=bool(asked["strict"]),
        judge=judge,
        drop_share=share,
        until=until,
    )


def _run(  # noqa: PLR0913, PLR0917 - what a run is made of
    job: Job,
    request: Request,
    folder: Path,
    engine: Engine,
    watch: Watch,
    venue: Venue[Any],
    settings: Sequence[str] = (),
) -> RunResult:
    start = time.perf_counter()
    with alone(), Log(folder / events.NAME, watch) as told:
        starts = starting(folder, job, request.modes, venue.find)
        resources: Resources = venue.prepare(
            moved(job, settings),
            told,
            folder / "choices.json",
            modes=request.modes,
            judge=request.judge,
            starts=starts,
        )
        for codec in job.wire.names:
            CODECS.spec(codec)  # what arrives may name no other
        same_data(folder, resources, told)
        same_start(starts, resources, told)
        skipped = skipped_in(resources, request.modes, told)
        if request.strict and skipped:
            mode, reason = next(iter(skipped.items()))
            raise JobError(f"mode {mode} cannot run this job: {reason}")
        result: RunResult = {
            "schema": ONE,
            "triskel": VERSION,
            "job": dump(job),
            "about": {mode: about_of(job, mode) for mode in request.modes},
            "task": task_about(job),
            "request": request.asked(),
            "environment": environment(resources.body()),
            "data": resources.described(),
            "baselines": {},
            "skipped": skipped,
            "modes": {},
        }
        for text in warnings(resources, skipped, result["data"]):
            told(events.warning(text))
        examples = sum(one["train"] for one in result["data"]["clients"].values())
        rows = (request.modes, request.baselines)
        told(opening(resources, *rows, skipped, examples, request.until))
        resources.count()
        _play(result, resources, request, engine, folder, told, venue)
        from triskel.experiment.summary import amounts  # noqa: PLC0415 - tests of figures are slow to import

        result.update(cast("RunResult", amounts([result], [folder])))
        save(folder, result)
        from triskel.report.page import write_report  # noqa: PLC0415 - no site writes one

        write_report(folder)
        told(events.run_end(time.perf_counter() - start))
    return result


def _play(  # noqa: PLR0913, PLR0917 - what a run is made of
    result: RunResult,
    resources: Resources,
    request: Request,
    engine: Engine,
    folder: Path,
    told: Watch,
    venue: Venue[Any],
) -> None:
    """Play every stage, and write the result after each."""

    def keep(rows: dict[str, Row], name: str, row: Row) -> None:
        resources.forget()
        rows[name] = row
        save(folder, result)

    beside = result["baselines"]
    for name in request.baselines:
        if name != "local_equal":  # as costly as the costliest mode, so it runs after the modes
            row = venue.baselines.play(
                name, resources, engine, folder, told, request.until.get(name)
            )
            keep(beside, name, row)
    for name in request.modes:
        if name not in result["skipped"]:
            stage = replace(venue.stage(name, resources, told), until=request.until.get(name))
            keep(result["modes"], name, complete(stage, resources, engine, folder, told))
    for name in request.modes if request.drop_share else ():
        if name not in result["skipped"]:
            stage = _with_drop_outs(venue.stage(name, resources, told), request)
            final = complete(stage, resources, engine, folder, told)["final"]
            keep(result.setdefault("robustness", {}), name, _dropped(final, request))
    if "local_equal" in request.baselines:
        row = venue.baselines.equal_compute(result, resources, engine, folder, told)
        if isinstance(row, str):
            result["skipped"]["local_equal"] = row
        else:
            keep(beside, "local_equal", row)


def _with_drop_outs(stage: Stage[Any, Any], request: Request) -> Stage[Any, Any]:
    """Return a mode's stage in which clients drop out, and which leaves no model."""
    clients = stage.job.clients.model_copy(update={"drop_share": request.drop_share})
    shaky = stage.job.model_copy(update={"clients": clients})
    return replace(stage, name=f"{stage.name}{DROPS}", job=shaky, saves=False)


def _dropped(final: Mapping[str, object], request: Request) -> DroppedRow:
    """Return what a mode reaches with drop-outs, in both columns."""
    both = {column: final[column] for column in COLUMNS}
    return cast("DroppedRow", {"drop_share": request.drop_share, **both})
