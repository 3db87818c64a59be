"""What is asked of a sweep folder, and the record in it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from triskel.config.grid import Setting
from triskel.config.job import MODE_NAMES, Job, ModeName
from triskel.config.read import dump, parse, to_toml
from triskel.core.files import write_text
from triskel.core.registry import TASKS
from triskel.core.source import VERSION
from triskel.core.untrusted import TOML_MOST, json_in, text_of
from triskel.data.federate import UNSHARED
from triskel.errors import CheckpointError, JobError
from triskel.experiment.baselines import BaselineName
from triskel.report.descriptions import about_of

RECORD = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is asked of a sweep folder.

    Attributes:
        job: The job without what the settings change.
        settings: The settings, in order.
        modes: Modes to run in each.
        baselines: Baselines to run in each, such as have something to choose.
    """

    job: Job
    settings: tuple[Setting, ...]
    modes: tuple[ModeName, ...] = MODE_NAMES
    baselines: tuple[BaselineName, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """What is chosen for: baselines, then modes."""
        return (*self.baselines, *self.modes)

    def playing(self) -> "Sweep":
        """Return the sweep with a section for each of its modes in every job."""
        settings = tuple(replace(one, job=one.job.playing(self.modes)) for one in self.settings)
        return replace(self, job=self.job.playing(self.modes), settings=settings)


def read_sweep(folder: Path) -> Sweep:
    """Return what was asked of a sweep folder.

    Raises:
        CheckpointError: It is not one.
    """
    record = read_record(folder)
    try:
        return Sweep(
            job=Job.model_validate(record["job"]),
            settings=tuple(
                Setting(
                    name=one["name"],
                    set=one["set"],
                    job=_job(folder / one["folder"] / "job.toml", one["job_sha256"]),
                )
                for one in record["settings"]
            ),
            modes=tuple(record["request"]["modes"]),
            baselines=tuple(record["request"]["baselines"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / RECORD} is no sweep that this version can read: {error}"
        ) from error


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `sweep.json` of a sweep folder holds.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    try:
        found: object = json_in(folder / RECORD)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a sweep folder: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / RECORD} must hold a JSON object")
    return cast("dict[str, Any]", found)


def begun(asked: Sweep, folder: Path) -> dict[str, Any]:
    """Return the record of a folder, which is begun where there is none.

    Raises:
        JobError: Nothing is held out to choose by, settings differ in task, or the folder holds
            something else.
        CheckpointError: A job in the folder is not what the sweep left.
    """
    for setting in asked.settings:
        if not setting.job.data.validation_share:
            raise JobError(UNSHARED)
        if setting.job.data.task != asked.job.data.task:
            raise JobError(
                "a sweep chooses between settings of one task; leave data.task out of --set"
            )
    fresh = _fresh(asked)
    if (folder / RECORD).exists():
        record = read_record(folder)
        if _identity(record) != _identity(json.loads(json.dumps(fresh))):
            raise JobError(
                f"{folder} holds another sweep; choose another --out, or go on with that one: "
                f"triskel sweep --resume {folder}"
            )
    else:
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir())):
            raise JobError(f"{folder} is not an empty folder; choose another --out")
        record = fresh
        save(folder, record)
    for setting, entry in zip(asked.settings, record["settings"], strict=True):
        if (file := folder / entry["folder"] / "job.toml").exists():
            _job(file, entry["job_sha256"])
        else:
            write_text(file, to_toml(setting.job))
    return record


def _fresh(asked: Sweep) -> dict[str, Any]:
    return {
        "schema": 1,
        "triskel": VERSION,
        "about": {mode: about_of(asked.job, mode) for mode in asked.modes},
        "job": dump(asked.job),
        "request": {"modes": asked.modes, "baselines": asked.baselines},
        "figure": TASKS.spec(asked.job.data.task).figure,
        "settings": [
            {
                "name": one.name,
                "set": dict(one.set),
                "folder": one.name,
                "job_sha256": digest_of(to_toml(one.job)),
                "rows": {},
                "skipped": {},
                "diverged": {},
                "failed": {},
            }
            for one in asked.settings
        ],
        "winners": {},
    }


def _identity(record: Mapping[str, Any]) -> object:
    told = [(one.get("name"), one.get("job_sha256")) for one in record.get("settings", ())]
    return record.get("schema"), record.get("request"), told


def _job(file: Path, digest: str) -> Job:
    """Return the job of a setting, which must be the one that the sweep began with."""
    try:
        text = text_of(file, most=TOML_MOST)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; put it back") from error
    if digest_of(text) != digest:
        raise CheckpointError(f"{file} is not the job this sweep began with; put it back")
    return parse(text, where=str(file))


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record as it stands, whole or not at all."""
    write_text(folder / RECORD, json.dumps(record, indent=1))
