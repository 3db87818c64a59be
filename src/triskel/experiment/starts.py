"""What the stages of a run start from: `adapter.start`, copied into the run's folder.

A run keeps what it started from (`start/`), so that it goes on, and is evaluated, whatever became
of the folder that its job names. `start/start.json` is written last; until then there is none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triskel.config.job import Job, ModeName
from triskel.core.files import write_bytes, write_text
from triskel.core.result_parts import Started
from triskel.core.untrusted import data_of, json_in, table_of
from triskel.errors import CheckpointError, JobError
from triskel.export.start import (
    ANY,
    FILES,
    Source,
    differing,
    other_classes,
    sha256_of,
    sources,
    unsure,
)
from triskel.model.peft_folder import fingerprint
from triskel.model.shared import SharedModel
from triskel.model.start_folder import start_in
from triskel.types import Tensors

FOLDER = "start"
RECORD = "start.json"
SHARED = "all"
"""Name of the copy that is for every stage without one of its own."""
MOST = 8 << 30
"""Bytes of an adapter's tensors."""
Find = Callable[[str], Path]
"""Returns where the folder is that a job names."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One copy.

    Attributes:
        source: Where it is, and what results call it.
        sha256: Of its tensors.
    """

    source: Source
    sha256: str


@dataclass(frozen=True)
class Starts:
    """What each stage of a run starts from.

    Attributes:
        each: By mode; under `ANY` what every other stage does.
    """

    each: Mapping[ModeName, Start]

    def of(self, stage: str) -> Start:
        """Return what a stage starts from."""
        return self.each.get(stage.partition("~")[0], self.each[ANY])

    def told(self, stage: str) -> Started:
        """Return what a result says of it."""
        start = self.of(stage)
        return {"name": start.source.name, "sha256": start.sha256}

    def tensors(self, stage: str, body: SharedModel) -> Tensors:
        """Return the tensors that a stage starts from.

        Raises:
            JobError: They are not those that the job trains.
            CheckpointError: The copy is damaged.
        """
        start = self.of(stage)
        _whole(start)
        manifest = start.source.manifest
        if manifest is not None and manifest.fingerprint != fingerprint(body):
            raise JobError(
                f"adapter.start {start.source.name} was trained on another base model "
                f"({Path(manifest.base).name}) than model.path {Path(body.path).name}: their "
                "numbers differ"
            )
        return start_in(start.source.folder, body, start.source.name)

    def fit(self, classes: Sequence[str]) -> None:
        """Hold the classes of every adapter against those of the data.

        Raises:
            JobError: They are others, or in another order.
        """
        for start in self.each.values():
            if (why := other_classes(start.source, classes)) is not None:
                raise JobError(why)

    def unsure(self, job: Job) -> list[str]:
        """Return what nobody can tell of adapters that Triskel did not write."""
        lines = (text for start in self.each.values() for text in unsure(start.source, job))
        return list(dict.fromkeys(lines))


def begun(folder: Path) -> Starts | None:
    """Return what a run started from; None where its folder holds no such adapter.

    Raises:
        CheckpointError: What it holds is damaged.
    """
    here = folder / FOLDER
    if not (here / RECORD).exists():
        return None
    try:
        told = table_of(json_in(here / RECORD))
        each = {
            mode: Start(
                source=Source(folder=here / (mode or SHARED), name=str(one["name"])),
                sha256=str(one["sha256"]),
            )
            for mode, one in table_of(told["adapters"]).items()
        }
        each[ANY]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{here / RECORD} is damaged: {error}") from error
    return Starts(each)


def starting(folder: Path, job: Job, modes: Sequence[ModeName], find: Find) -> Starts | None:
    """Return what a run starts from, of its folder, where a copy is made at first.

    Args:
        folder: The run.
        job: Its job.
        modes: What it plays.
        find: Returns where the folder is that a job names.

    Raises:
        JobError: There is no such adapter, or it is not one that the job trains.
        CheckpointError: What the folder holds is damaged, or the disk is full.
    """
    if not job.adapter.start:
        return None
    if (there := begun(folder)) is not None:
        return there
    found = sources(find(job.adapter.start), job, modes)
    for source in found.values():
        for why in differing(source, job):
            raise JobError(why)
    each = {
        mode: _copied(source, folder / FOLDER / (mode or SHARED)) for mode, source in found.items()
    }
    told = {mode: {"name": one.source.name, "sha256": one.sha256} for mode, one in each.items()}
    write_text(folder / FOLDER / RECORD, json.dumps({"adapters": told}, indent=1))
    return Starts(each)


def _copied(source: Source, target: Path) -> Start:
    """Copy a PEFT folder's files, and what Triskel wrote beside them."""
    try:
        for name in FILES:
            if (source.folder / name).exists():
                write_bytes(target / name, data_of((source.folder / name).resolve(), most=MOST))
        return Start(source=Source(folder=target, name=source.name), sha256=sha256_of(target))
    except (OSError, ValueError) as error:
        raise JobError(f"adapter.start {source.name} cannot be read: {error}") from error


def _whole(start: Start) -> None:
    try:
        now = sha256_of(start.source.folder)
    except OSError as error:
        raise CheckpointError(f"what the run started from cannot be read: {error}") from error
    if now != start.sha256:
        raise CheckpointError(
            f"{start.source.folder} is not what the run started from: its SHA-256 does not match"
        )
