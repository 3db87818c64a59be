"""What is asked of a sweep folder, and the record in it."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from triskel.config.grid import Setting
from triskel.config.job import MODE_NAMES, Job, ModeName
from triskel.config.read import dump, parse, to_toml
from triskel.config.space import Sampler, Sampling
from triskel.core.files import write_text
from triskel.core.registry import TASKS
from triskel.core.source import VERSION
from triskel.core.sweep_file import NAME, SettingRecord, SweepAsked, SweepRecord, read_record, save
from triskel.core.untrusted import TOML_MOST, text_of
from triskel.data.federate import UNSHARED
from triskel.errors import CheckpointError, JobError
from triskel.experiment.baselines import BaselineName
from triskel.report.descriptions import about_of
from triskel.sweep.halving import Halving
from triskel.sweep.sampler import needed


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is asked of a sweep folder.

    Attributes:
        job: The job without what the settings change.
        settings: The settings, in order.
        modes: Modes to run in each.
        baselines: Baselines to run in each, such as have something to choose.
        halving: How settings are halved; None plays all to their last round.
        sampling: How the settings were drawn, where they were; those that are drawn one after the
            other are no part of `settings` before they are.
    """

    job: Job
    settings: tuple[Setting, ...]
    modes: tuple[ModeName, ...] = MODE_NAMES
    baselines: tuple[BaselineName, ...] = ()
    halving: Halving | None = None
    sampling: Sampling | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """What is chosen for: baselines, then modes."""
        return (*self.baselines, *self.modes)

    @property
    def learns(self) -> Sampling | None:
        """How settings are drawn, where each is drawn once those before it have a figure."""
        how = self.sampling
        return how if how is not None and how.sampler is Sampler.TPE else None

    @property
    def count(self) -> int:
        """How many settings there are in the end."""
        return self.learns.samples if self.learns else len(self.settings)

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
    request = record["request"]
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
            modes=tuple(request["modes"]),
            baselines=tuple(cast("list[BaselineName]", request["baselines"])),
            halving=_halving(request),
            sampling=_sampling(request),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / NAME} is no sweep that this version can read: {error}"
        ) from error


def _halving(request: SweepAsked) -> Halving | None:
    told = request.get("halving")
    return None if told is None else Halving(eta=told["eta"], rungs=tuple(told["rungs"]))


def _sampling(request: SweepAsked) -> Sampling | None:
    told = request.get("sampling")
    if told is None:
        return None
    return Sampling(
        sampler=Sampler(told["sampler"]),
        samples=told["samples"],
        seed=told["seed"],
        space=told["space"],
        root=told["root"],
    )


def begun(asked: Sweep, folder: Path) -> SweepRecord:
    """Return the record of a folder, which is begun where there is none.

    Raises:
        JobError: It cannot be searched so, or the folder holds something else.
        CheckpointError: A job in the folder is not what the sweep left.
    """
    _refuse(asked)
    fresh = _fresh(asked)
    if (folder / NAME).exists():
        record = read_record(folder)
        if _identity(asked, record) != _identity(asked, json.loads(json.dumps(fresh))):
            raise JobError(
                f"{folder} holds another sweep; choose another --out, or go on with that one: "
                f"triskel sweep --resume {folder}"
            )
    else:
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir())):
            raise JobError(f"{folder} is not an empty folder; choose another --out")
        record = fresh
        save(folder, record)
    for setting, entry in zip(asked.settings, record["settings"], strict=False):
        placed(folder, setting, entry)
    return record


def _refuse(asked: Sweep) -> None:
    """Refuse what cannot be searched.

    Raises:
        JobError: Nothing is held out to choose by, or settings differ in what they must share.
    """
    for job in (asked.job, *(setting.job for setting in asked.settings)):
        if not job.data.validation_share:
            raise JobError(UNSHARED)
        if job.data.task != asked.job.data.task:
            raise JobError(
                "a sweep chooses between settings of one task; leave data.task out of --set"
            )
        if asked.halving and job.rounds != asked.halving.rungs[-1]:
            raise JobError("--halving deals the rounds out; leave rounds out of what is tried")
    if asked.learns:
        if len(asked.rows) > 1:
            raise JobError(
                f"--sampler tpe learns from one figure, and there are {', '.join(asked.rows)}; "
                "name one of them with --modes or --baselines"
            )
        needed()


def placed(folder: Path, setting: Setting, entry: SettingRecord) -> None:
    """Write the job of a setting into its folder, or hold what lies there to it.

    Raises:
        CheckpointError: It is another.
    """
    if (file := folder / entry["folder"] / "job.toml").exists():
        _job(file, entry["job_sha256"])
    else:
        write_text(file, to_toml(setting.job))


def _fresh(asked: Sweep) -> SweepRecord:
    request: SweepAsked = {"modes": list(asked.modes), "baselines": list(asked.baselines)}
    if asked.halving:
        request["halving"] = {"eta": asked.halving.eta, "rungs": list(asked.halving.rungs)}
    if (how := asked.sampling) is not None:
        request["sampling"] = {
            "sampler": how.sampler.value,
            "samples": how.samples,
            "seed": how.seed,
            "space": dict(how.space),
            "root": how.root,
        }
    return {
        "schema": 1,
        "triskel": VERSION,
        "about": {mode: about_of(asked.job, mode) for mode in asked.modes},
        "job": dump(asked.job),
        "request": request,
        "figure": TASKS.spec(asked.job.data.task).figure,
        "settings": [entry_of(one) for one in asked.settings],
        "winners": {},
    }


def entry_of(setting: Setting) -> SettingRecord:
    """Return what the record says of a setting before it is played."""
    return {
        "name": setting.name,
        "set": dict(setting.set),
        "folder": setting.name,
        "job_sha256": digest_of(to_toml(setting.job)),
        "rows": {},
        "skipped": {},
        "diverged": {},
        "failed": {},
    }


def _identity(asked: Sweep, record: SweepRecord) -> object:
    told = [(one["name"], one["job_sha256"]) for one in record["settings"]]
    return record["schema"], record["request"], record["job"] if asked.learns else told


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
