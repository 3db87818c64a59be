"""A job for a federation: whether it can run in one, and the folder that is sent.

The folder holds configuration only: no code travels, and each site builds the classes that its own
kit allows. Datasets are names here; a site's policy says which files they are.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from triskel.config.job import Job, ModeName, unfederated, unsupported
from triskel.config.read import load, parse, to_toml
from triskel.config.sections import is_name
from triskel.core.registry import MODES, TASKS
from triskel.errors import JobError
from triskel.federation.harden import CLIENT_CLASS, CONTROLLER, EXECUTOR, SERVER_CLASS
from triskel.policy.limits import quorum_of

SCHEMA = 1
SYNC_S = 60
"""Seconds in which every site must have started its process."""
FEWEST, EACH = 100, 4
"""Threads for calls at the server, each way: at least, and for each site. A site holds one while it
waits for an answer, and a call that was repeated may hold another one."""


@dataclass(frozen=True)
class Request:
    """What is asked of a federation.

    Attributes:
        job: The job; its datasets are names.
        modes: Which modes, in this order.
        sites: Which sites; without any, those that are connected.
        run: Twelve hex digits that all submissions of one run share.
    """

    job: Job
    modes: tuple[ModeName, ...]
    sites: tuple[str, ...]
    run: str


def request(job: Job, modes: Sequence[ModeName], sites: Sequence[str]) -> Request:
    """Return a request of its own run.

    Raises:
        JobError: The job cannot run in a federation.
    """
    chosen = tuple(dict.fromkeys(modes)) or (job.mode,)
    for mode in chosen:
        why = unfit(job.model_copy(update={"mode": mode}))
        if why is not None:
            raise JobError(f"{job.name} cannot run in a federation: {why}")
    return Request(job.playing(chosen), chosen, tuple(dict.fromkeys(sites)), uuid.uuid4().hex[:12])


def read_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file, leaving its datasets names.

    Raises:
        JobError: The file is missing, is not TOML, or does not describe a job that can run.
    """
    load(path, overrides)  # says what cannot be read
    return parse(path.read_text(encoding="utf-8"), overrides=overrides, where=str(path))


def unfit(job: Job) -> str | None:
    """Return why a federation cannot run a job in its mode, or None when it can.

    >>> from triskel.config.read import parse
    >>> unfit(parse("rounds = 1"))
    'data.source must be "clients", got "opinions"; each site brings a dataset of its own'
    """
    data = job.data
    if data.source != "clients":
        return (
            f'data.source must be "clients", got "{data.source}"; each site brings a dataset of '
            "its own"
        )
    for key in ("train", "test", "public"):
        name = str(getattr(data, key))
        if not is_name(name):
            return (
                f"data.{key} must be the name of a dataset in the sites' policies, got {name!r}; "
                "write the file into the policy (`triskel site init`)"
            )
    needs_public = MODES.spec(job.mode).carries(job).needs_public_data
    for wrong, why in (
        (
            TASKS.spec(data.task).head == "classes" and not data.classes,
            'data.classes must list the classes, such as ["no", "yes"]; no site sees them all',
        ),
        (
            job.train.max_tokens is None,
            "train.max_tokens must be set for this task; --set train.max_tokens=512, for example",
        ),
        (
            needs_public and not data.public,
            f"data.public must name a dataset that all parties hold; {job.mode} predicts on it",
        ),
        (
            not data.public and job.public_count > 0,
            "data.public_count must be 0 without data.public; --set data.public_count=0",
        ),
    ):
        if wrong:
            return why
    return unfederated(job, job.mode) or unsupported(job, job.mode)


def spec(asked: Request) -> dict[str, Any]:
    """Return what the engine's classes are built with on every node."""
    return {
        "schema": SCHEMA,
        "run": asked.run,
        "job": to_toml(asked.job),
        "modes": list(asked.modes),
        "sites": list(asked.sites),
    }


def asked_in(told: Mapping[str, Any]) -> Request:
    """Return the request that a spec was made of.

    Raises:
        JobError: Its job is none.
        KeyError: Something is missing.
    """
    return Request(parse(told["job"]), tuple(told["modes"]), tuple(told["sites"]), told["run"])


def write(folder: Path, asked: Request, on: Sequence[str]) -> Path:
    """Write the folder that is sent.

    Args:
        folder: Where; it must not hold a job.
        asked: What is asked.
        on: The sites it is deployed to.
    """
    sent = {"on": list(on), "submission": uuid.uuid4().hex, "at": datetime.now(UTC).isoformat()}
    args = {"spec": spec(asked) | sent}
    threads = max(FEWEST, EACH * len(on))
    server = {
        "format_version": 2,
        "workflows": [
            {
                "id": "controller",
                "path": CONTROLLER,
                "args": {
                    "server_obj_id": "_server",
                    "sync_task_timeout": SYNC_S,
                    "max_call_threads": threads,
                },
            }
        ],
        "components": [{"id": "_server", "path": SERVER_CLASS, "args": args}],
    }
    executor = {"path": EXECUTOR, "args": {"client_obj_id": "_client"}}
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "_client", "path": CLIENT_CLASS, "args": args}],
    }
    meta = {
        "name": asked.job.name,
        "resource_spec": {},
        # With fewer FLARE does not start a job, and ends it a minute after it missed one's process.
        "min_clients": quorum_of(asked.job, len(on)),
        "deploy_map": {"app": ["server", *on]},
    }
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    for path, value in (
        (folder / "meta.json", meta),
        (config / "config_fed_server.json", server),
        (config / "config_fed_client.json", client),
    ):
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return folder
