"""All that can be said of a job before it runs, at once: `triskel check`.

torch is loaded only where nothing is wrong yet and rows are dealt; no model is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from triskel.config.job import Job, ModeName, unsupported
from triskel.config.read import faults_of
from triskel.config.sections import is_name
from triskel.core.faults import Fault, refused
from triskel.data.assets import ASSETS, cache_folder
from triskel.data.check import unreadable
from triskel.errors import TriskelError
from triskel.export.start import KEY, differing, sources
from triskel.model.files import lacking

READ = {f"data.{key}" for key in ("source", "task", "text", "prompt", "response", "label")}
"""Keys that say what is read."""
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
    named = {fault.key for fault in faults}
    if not named & READ:  # else what they were meant to name is not known
        faults = [*faults, *early(job)]
    if (why := unsupported(job, job.mode)) is not None:
        faults.append(Fault("mode", f"mode {job.mode} cannot run this job: {why}"))
    if job.train.max_tokens is None:
        faults.append(Fault("train.max_tokens", UNSAID))
    return faults if refused(faults) else [*faults, *_rows(job)]


def early(job: Job, modes: Sequence[ModeName] = ()) -> list[Fault]:
    """Return files, columns, models and adapters that are not there, or do not fit.

    It takes no time; without modes, the job's own is played.
    """
    if job.data.source == "clients" and is_name(job.data.train):
        return []  # the data of a federation are at its sites
    each = job.clients.each.items()
    paths = {own.model: f"clients.each.{name}.model" for name, own in each if own.model}
    paths[job.model.path] = "model.path"
    models = [fault for path, key in paths.items() for fault in lacking(path, ASSETS, key)]
    return [*unreadable(job), *models, *_start(job, modes or (job.mode,))]


def _start(job: Job, modes: Sequence[ModeName]) -> Iterator[Fault]:
    """Return why training cannot start from the adapter that the job names."""
    if not job.adapter.start:
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
