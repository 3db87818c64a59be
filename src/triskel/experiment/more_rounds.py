"""A run that goes on for more rounds than it began with, as if it had been asked for them.

Each stage goes on from its last checkpoint, so that what comes out is what a run of so many rounds
comes to, to the bit. How many were asked for since stands in `request.json`, in one piece; the job
beside it stays the one that the run began with.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triskel.config.job import Job
from triskel.core.files import write_text
from triskel.core.result_file import DONE
from triskel.core.untrusted import json_in, table_of
from triskel.errors import JobError

ROUNDS = "rounds"
"""In `request.json`: how many rounds there are, where these are not the job's."""


def asked_since(job: Job, asked: Mapping[str, Any]) -> Job:
    """Return a run's job with the rounds that were asked for since it began.

    Raises:
        ValueError: `request.json` holds no such number.
    """
    rounds = asked.get(ROUNDS, job.rounds)
    if type(rounds) is not int or rounds < job.rounds:
        raise ValueError(f"request.json has rounds = {rounds!r}")
    return job.model_copy(update={"rounds": rounds})


def more_rounds(folder: Path, job: Job, rounds: int | None, *, ask: bool = True) -> Job:
    """Return a run's job with so many rounds, and write down that it has them.

    Args:
        folder: The run.
        job: Its job.
        rounds: How many it shall have; None leaves them.
        ask: Whether it is written down, or only looked at.

    Raises:
        JobError: They are fewer than it has, or would not be those of a run of so many.
        CheckpointError: The disk is full or not writable.
    """
    if rounds is None or rounds == job.rounds:
        return job
    if rounds < job.rounds:
        raise JobError(
            f"{folder} has {job.rounds} rounds, and rounds = {rounds} asks for fewer; a round that "
            "was played cannot be taken back, so start a new run"
        )
    anew = f"begin a new run with what this one reached: triskel run JOB --start {folder}"
    if job.train.schedule != "constant":
        raise JobError(
            f'train.schedule = "{job.train.schedule}" falls over all rounds, so a run of {rounds} '
            f"trains otherwise from its first round on; {anew}"
        )
    for spec in job.specs:
        why = spec.counts_back(spec.of(job))
        if why and (folder / "stages" / spec.name).exists():
            raise JobError(f"{why}, so a run of {rounds} trains otherwise; {anew}")
    for done in sorted((folder / "stages").glob(f"*/{DONE}")):
        if not any(done.parent.glob("round-*.safetensors")):
            raise JobError(f"{done.parent} is done and its checkpoints are gone; {anew}")
    if ask:
        place = folder / "request.json"
        asked = {**table_of(json_in(place)), ROUNDS: rounds}
        write_text(place, json.dumps(asked, indent=1))
    return job.model_copy(update={"rounds": rounds})
