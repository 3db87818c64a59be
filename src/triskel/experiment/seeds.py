"""One job with several seeds: a run each, what they share loaded once, and what they amount to.

A seed moves everything that chance decides: head and adapter at the start, who holds which rows,
batches, dropout, cohorts. A folder of several seeds holds

    job.toml  request.json  result.json  report.html
    seed-0/  seed-1/ ...    run folders, each as `compare` writes it

`result.json` (schema 2) is written whenever a seed is done, so a killed comparison goes on with
the seed it was at. Each seed's folder can be resumed, exported and evaluated by itself.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import cast

from triskel.config.job import Job
from triskel.config.read import dump, moved, to_toml
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.result_file import NAME, SEVERAL, RunResult, SeedsResult, several_in
from triskel.core.source import VERSION
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError, JobError
from triskel.experiment.compare import Request, read_run, resume, run, used
from triskel.experiment.folder import save
from triskel.experiment.models import Loaded
from triskel.experiment.more_rounds import more_rounds
from triskel.experiment.one_source import venue_in
from triskel.experiment.rounds import Engine
from triskel.report.catalogue import taken
from triskel.report.page import write_report
from triskel.types import Watch

Engines = Callable[[Job], Engine]


def compare_seeds(
    job: Job,
    request: Request,
    seeds: Sequence[int],
    folder: Path,
    engine: Engines,
    watch: Watch,
) -> SeedsResult:
    """Play a job with each of several seeds in a new folder, and return their result.

    Raises:
        JobError: A seed is named twice, there is none, or the folder holds something else.
        TriskelError: A run failed; what was finished stays on disk.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise JobError(f"seeds must be different whole numbers from 0, got {list(seeds)}")
    job = job.playing(request.modes)
    text = to_toml(job)
    if folder.exists() and (not folder.is_dir() or used(folder, text)):
        raise JobError(taken(folder))
    asked = {
        **request.asked(),
        "seeds": list(seeds),
        "job_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_text(folder / "job.toml", text)
    write_text(folder / "request.json", json.dumps(asked, indent=1))
    return _run(job, request, seeds, folder, engine, watch)


def resume_seeds(
    folder: Path,
    engine: Engines,
    watch: Watch,
    *,
    settings: Sequence[str] = (),
    rounds: int | None = None,
) -> SeedsResult:
    """Go on with a folder of several seeds, and return their result.

    Args:
        folder: Of the seeds.
        engine: Returns what plays a job.
        watch: Told about whatever a user should know.
        settings: Where the data lie by now, as `config.read.moved` has it.
        rounds: How many rounds each run shall have, where these are more than it has.

    Raises:
        CheckpointError: It is not such a folder.
        JobError: A run cannot have so many rounds.
        TriskelError: A run failed.
    """
    seeds = seeds_of(folder)
    if seeds is None:
        raise CheckpointError(f"{folder} holds no comparison over several seeds")
    job, request = read_run(folder)
    for place in (folder / f"seed-{seed}" for seed in seeds):
        if (place / "request.json").exists():
            more_rounds(place, read_run(place)[0], rounds, ask=False)
    job = more_rounds(folder, job, rounds)
    return _run(job, request, seeds, folder, engine, watch, settings)


def seeds_of(folder: Path) -> list[int] | None:
    """Return the seeds that a folder was begun with, or None where it is not one of several."""
    try:
        asked: object = json_in(folder / "request.json")
    except (OSError, ValueError):
        return None
    found = cast("dict[str, object]", asked).get("seeds") if isinstance(asked, dict) else None
    if not isinstance(found, list):
        return None
    seeds = cast("list[object]", found)
    return [s for s in seeds if type(s) is int] if all(type(s) is int for s in seeds) else None


def _run(  # noqa: PLR0913, PLR0917 - what a comparison is made of
    job: Job,
    request: Request,
    seeds: Sequence[int],
    folder: Path,
    engine: Engines,
    watch: Watch,
    settings: Sequence[str] = (),
) -> SeedsResult:
    venue = venue_in(folder, Loaded())
    result: SeedsResult = {
        "schema": SEVERAL,
        "triskel": VERSION,
        "job": dump(job),
        "request": request.asked(),
        "seeds": list(seeds),
        "runs": _finished(folder, seeds, job.rounds),
    }
    for number, seed in enumerate(seeds, 1):
        if number <= len(result["runs"]):
            continue
        watch(events.seed_start(seed, number=number, of=len(seeds)))
        place, here = folder / f"seed-{seed}", moved(job, settings)
        own = here.model_copy(update={"seed": seed})
        if (place / "request.json").exists():
            found = resume(place, engine, watch, venue, settings=settings, rounds=job.rounds)
        else:
            found = run(own, request, place, engine(own), watch, venue)
        result["runs"].append(found)
        save(folder, result)
    from triskel.experiment.summary import amounts  # noqa: PLC0415 - tests of figures are slow to import

    places = [folder / f"seed-{seed}" for seed in seeds]
    result.update(cast("SeedsResult", amounts(result["runs"], places)))
    save(folder, result)
    write_report(folder)
    return result


def _finished(folder: Path, seeds: Sequence[int], rounds: int) -> list[RunResult]:
    """Return the results of the first seeds, as far as they were finished with so many rounds.

    Raises:
        CheckpointError: The folder's result is damaged.
    """
    try:
        found = several_in(folder)
    except CheckpointError as error:
        error.add_note("delete it, and what its seeds finished is read again")
        raise
    runs = found["runs"] if found else []
    begun = [one["job"].get("seed") for one in runs]
    if begun != list(seeds)[: len(begun)]:
        raise CheckpointError(
            f"{folder / NAME} holds seeds {begun}, and this comparison is of {seeds}"
        )
    return list(takewhile(lambda one: one["job"].get("rounds") == rounds, runs))
