"""All that can be said of a job before it runs, at once: `triskel check`.

torch is loaded only where nothing is wrong yet and rows are dealt; no model is.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from triskel.config.job import Job, ModeName, unsupported
from triskel.config.read import faults_of
from triskel.config.sections import is_name
from triskel.core.faults import Fault, refused
from triskel.core.registry import TASKS
from triskel.data.assets import ASSETS, cache_folder
from triskel.data.check import unreadable
from triskel.errors import JobError, TriskelError
from triskel.export.start import KEY, differing, sources
from triskel.model.files import lacking

READ = {f"data.{key}" for key in ("source", "task", "text", "prompt", "response", "label")}
"""Keys that say what is read."""
NEAR = re.compile(r"^unknown key .*; did you mean '([\w.-]+)'\?")
UNSAID = (
    "train.max_tokens must be set for this task, as it has no default; a run that lacks it names a "
    "length that would do"
)


def checked(path: Path | None, settings: Sequence[str] = ()) -> list[Fault]:
    """Return everything that is wrong with a job, or odd about its data.

    Args:
        path: A job file; None is the demonstration.
        settings: `section.key=value` pairs, applied in order.
    """
    job, faults = faults_of(path, settings)
    if job is None:
        return faults
    wrong = {key for fault in faults for key in _meant(fault)}
    faults = [fault for fault in faults if not _follows(fault, wrong)]
    faults += [] if wrong & READ else _unreadable(job)
    faults += [] if "data.task" in wrong else _lacking(job)
    if "mode" not in wrong and (why := unsupported(job, job.mode)) is not None:
        faults.append(Fault("mode", f"mode {job.mode} cannot run this job: {why}"))
    if job.train.max_tokens is None and not wrong & {"train.max_tokens", "data.task"}:
        faults.append(Fault("train.max_tokens", UNSAID))
    return faults if refused(faults) else [*faults, *_rows(job)]


def early(job: Job, modes: Sequence[ModeName] = ()) -> list[Fault]:
    """Return files, columns, models and adapters that are not there, or do not fit.

    It takes no time; without modes, the job's own is played.
    """
    return [*_unreadable(job), *_lacking(job), *_start(job, modes or (job.mode,))]


def refuse_early(*jobs: Job, modes: Sequence[ModeName] = ()) -> None:
    """Refuse jobs of which none has all its files, columns and models, before torch is loaded.

    Raises:
        JobError: None has; names the first that is not there.
    """
    found = [refused(early(job, modes)) for job in jobs]
    if found and all(found):
        raise JobError(found[0][0].text)


def _meant(fault: Fault) -> Iterator[str]:
    """Return the key that a fault is of, and the one that a mistyped key was meant to be."""
    if fault.key:
        yield fault.key
    if near := NEAR.search(fault.text):
        section, _, _ = fault.key.rpartition(".")
        yield f"{section}.{near[1]}" if section else near[1]


def _follows(fault: Fault, wrong: Collection[str]) -> bool:
    """Return whether keys contradict each other only because some of them are wrong themselves."""
    if fault.key:
        return False
    kinds = {"data.source", "data.task"} & set(wrong)  # else data are judged as of their defaults
    return any(key in fault.text for key in wrong) or bool(
        kinds and ("data." in fault.text or "clients." in fault.text)
    )


def _unreadable(job: Job) -> list[Fault]:
    return [] if _away(job) else list(unreadable(job))


def _lacking(job: Job) -> list[Fault]:
    if _away(job):
        return []
    each = job.clients.each.items()
    paths = {own.model: f"clients.each.{name}.model" for name, own in each if own.model}
    paths[job.model.path] = "model.path"
    head = TASKS.spec(job.data.task).head
    return [fault for path, key in paths.items() for fault in lacking(path, ASSETS, head, key)]


def _away(job: Job) -> bool:
    """Return whether a job is a federation's, whose data and models are at its sites."""
    return job.data.source == "clients" and is_name(job.data.train)


def _start(job: Job, modes: Sequence[ModeName]) -> Iterator[Fault]:
    """Return why training cannot start from the adapter that the job names."""
    if not job.adapter.start or _away(job):
        return
    try:
        found = sources(Path(job.adapter.start), job, modes)
        for source in found.values():
            yield from (Fault(KEY, text) for text in differing(source, job))
    except TriskelError as error:
        yield Fault(KEY, str(error))


def _rows(job: Job) -> Iterator[Fault]:
    """Deal the rows out, as a run does, and look at who holds what."""
    from triskel.data.federate import federate  # noqa: PLC0415 - it loads torch
    from triskel.experiment.odd_rows import odd_rows  # noqa: PLC0415 - as above

    if job.data.source == "opinions" and not (cache_folder() / "opinions").is_dir():
        yield Fault(
            "data.source", "the opinions are not here yet; a run fetches them", refuses=False
        )
        return
    try:
        federation = federate(job)
    except TriskelError as error:
        yield Fault("data", str(error))
        return
    yield from odd_rows(job, federation, "test")
