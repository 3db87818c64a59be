"""What an administrator submitted: a line of JSON for each job, and what each run was asked to be.

Both lie in the administrator's kit, so that a run can be taken up again from there at any time.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.errors import JobError
from triskel.federation.job_folder import Request, asked_in, spec
from triskel.federation.kits import Kit


@dataclass(frozen=True)
class Entry:
    """One submission.

    Attributes:
        job: FLARE's number of it.
        run: The run that it belongs to; a restart is a new submission of the same run.
        name: The job's name.
        at: When, in seconds since 1970.
        sites: The sites that it was deployed to.
    """

    job: str
    run: str
    name: str
    at: float
    sites: tuple[str, ...]


def keep(kit: Kit, asked: Request) -> None:
    """Keep what a run was asked to be."""
    place = _request(kit, asked.run)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(spec(asked), indent=1) + "\n")


def asked_of(kit: Kit, run: str) -> Request:
    """Return what a run was asked to be.

    Raises:
        JobError: It was not submitted from this kit, or what was kept of it is damaged.
    """
    place = _request(kit, run)
    try:
        return asked_in(json_in(place))
    except FileNotFoundError:
        raise JobError(f"{place} is missing: run {run} was not submitted from this kit") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{place} does not say what was submitted: {error}") from error


def _request(kit: Kit, run: str) -> Path:
    return kit.own / "requests" / f"{run}.json"


def note(kit: Kit, job: str, asked: Request, sites: Sequence[str]) -> Entry:
    """Add a submission."""
    entry = Entry(job, asked.run, asked.job.name, time.time(), tuple(sites))
    kit.own.mkdir(exist_ok=True)
    with _file(kit).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry)) + "\n")
    return entry


def entries(kit: Kit) -> list[Entry]:
    """Return all submissions, the last one last."""
    if not _file(kit).is_file():
        return []
    lines = _file(kit).read_text(encoding="utf-8").splitlines()
    try:
        return [_entry(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise JobError(f"{_file(kit)} is damaged: {error}; move it away") from error


def _entry(*, sites: Sequence[str], **rest: Any) -> Entry:  # noqa: ANN401 - as JSON has it
    return Entry(sites=tuple(sites), **rest)


def sites_of(kit: Kit, run: str) -> tuple[str, ...]:
    """Return the sites that a run was first deployed to, none where it never was."""
    return next((entry.sites for entry in entries(kit) if entry.run == run), ())


def count(kit: Kit, run: str) -> int:
    """Return how often a run was submitted."""
    return sum(entry.run == run for entry in entries(kit))


def find(kit: Kit, text: str | None) -> Entry:
    """Return the last submission whose number or run begins with a text; without one, the last.

    Raises:
        JobError: There is none.
    """
    for entry in reversed(entries(kit)):
        if text is None or entry.job.startswith(text) or entry.run.startswith(text):
            return entry
    if text is None:
        raise JobError("no job was submitted yet; `triskel federation submit FOLDER JOB`")
    raise JobError(f"no submitted job begins with {text!r}; {_file(kit)} lists them")


def _file(kit: Kit) -> Path:
    return kit.own / "jobs.jsonl"
