"""All that can be said of a job before it runs, at once: `triskel check`.

torch is not needed: texts are read, and no model is loaded.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triskel.config.job import Job
from triskel.config.read import faults_of
from triskel.config.sections import is_name
from triskel.core.faults import Fault, refused
from triskel.data.assets import ASSETS
from triskel.data.check import odd, unreadable
from triskel.data.reading import client_rows, hub_rows, local_rows, public_rows
from triskel.data.rows import Rows
from triskel.errors import TriskelError
from triskel.model.files import lacking


def checked(path: Path | None, settings: Sequence[str] = ()) -> list[Fault]:
    """Return everything that is wrong with a job, or odd about its data.

    Args:
        path: A job file; None is the demonstration.
        settings: `section.key=value` pairs, applied in order.
    """
    job, faults = faults_of(path, settings)
    if job is None:
        return faults
    faults = [*faults, *early(job)]
    return faults if refused(faults) else [*faults, *_rows(job)]


def early(job: Job) -> list[Fault]:
    """Return files, columns and models that are not there; it takes no time."""
    if job.data.source == "clients" and is_name(job.data.train):
        return []  # the data of a federation are at its sites
    paths = [job.model.path, *(own.model for own in job.clients.each.values() if own.model)]
    models = [fault for path in dict.fromkeys(paths) for fault in lacking(path, ASSETS)]
    return [*unreadable(job), *models]


def _rows(job: Job) -> Iterator[Fault]:
    try:
        train, test, public = _read(job)
    except TriskelError as error:
        yield Fault("data", str(error))
        return
    yield from odd(job, train, test, public, _clients(job, train))


def _read(job: Job) -> tuple[Rows, Rows, Rows]:
    """Return training, test and public rows as files hold them; nothing is held out."""
    data, none = job.data, Rows()
    if data.source == "clients":
        train, test = client_rows(job, tests=True)
    elif data.source == "hub":
        train, test = hub_rows(job, data.train or "train"), None
        if data.test:
            test = hub_rows(job, data.test)
    else:
        train, test = local_rows(job, tests=True)
    return train, test or none, public_rows(job) or none


def _clients(job: Job, train: Rows) -> Mapping[str, int]:
    """Return how many rows each client has, where that is known before they are dealt."""
    if job.partition == "natural":
        return Counter(train.group)
    return {}
