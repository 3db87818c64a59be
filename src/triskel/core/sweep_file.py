"""What `sweep.json` holds, in types, and the one place where it is written and read.

The rules are those of `result_file`: a later version's keys are kept, and damage is refused in a
sentence with the place of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from triskel.core.files import write_text
from triskel.core.result_file import hold
from triskel.core.result_parts import CHECKED, About, Figures
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError

NAME = "sweep.json"


class Spent(TypedDict):
    """What all clients sent, received and computed, and the server; `seconds` are of rounds."""

    up_bytes: int
    down_bytes: int
    client_flops: int
    server_flops: int
    seconds: float


class BothColumns(TypedDict):
    """Figures on everybody's texts and on clients' own."""

    everybody: NotRequired[Figures]
    own: NotRequired[Figures]


class Reached(BothColumns):
    """What a setting reached in a row on validation texts, after so many rounds, and its cost."""

    rounds: NotRequired[int]
    client_flops: NotRequired[int]
    server_flops: NotRequired[int]
    bytes: NotRequired[int]


class SettingRecord(TypedDict):
    """A setting: what it sets, what its rows reached, and why others did not.

    `spent` is what each closed round of a row cost, of rows that failed too.
    """

    name: str
    set: dict[str, Any]
    folder: str
    job_sha256: str
    rows: dict[str, Reached]
    skipped: dict[str, str]
    diverged: dict[str, str]
    failed: dict[str, str]
    spent: NotRequired[dict[str, list[Spent]]]


class Winner(TypedDict):
    """What was chosen for a row, its figures on validation texts, and then on test texts."""

    setting: str
    validation: BothColumns
    test: NotRequired[BothColumns]


class HalvingRecord(TypedDict):
    """The best 1/`eta` of a rung go on to the next; `rungs` are rounds."""

    eta: int
    rungs: list[int]


class SamplingRecord(TypedDict):
    """How settings are drawn; `space` are ranges and values by key, as they were given."""

    sampler: str
    samples: int
    seed: int
    space: dict[str, str]
    root: str


class SweepAsked(TypedDict):
    """What was asked of a sweep."""

    modes: list[str]
    baselines: list[str]
    halving: NotRequired[HalvingRecord]
    sampling: NotRequired[SamplingRecord]


class RungRecord(TypedDict):
    """One rung of a row: what each setting reached after so many rounds, and which went on."""

    rounds: int
    reached: dict[str, float | None]
    on: list[str]


class RungCost(Spent):
    """What the settings of one rung spent since the rung before."""

    rounds: int
    settings: int


class RowCost(TypedDict):
    """What all settings spent in a row, by rung, and what the full grid would have."""

    rungs: NotRequired[list[RungCost]]
    total: Spent
    grid: NotRequired[Spent]


class SearchCost(TypedDict):
    """What a whole sweep spent, and what the full grid would have."""

    rows: dict[str, RowCost]
    total: Spent
    grid: NotRequired[Spent]


@with_config(CHECKED)
class SweepRecord(TypedDict):
    """`sweep.json`."""

    schema: Literal[1]
    triskel: str
    about: NotRequired[dict[str, About]]
    job: dict[str, Any]
    request: SweepAsked
    figure: str
    settings: list[SettingRecord]
    winners: dict[str, Winner]
    rungs: NotRequired[dict[str, list[RungRecord]]]
    cost: NotRequired[SearchCost]


def save(folder: Path, record: SweepRecord) -> None:
    """Write the record as it stands, whole or not at all.

    Raises:
        CheckpointError: It is not what a sweep's is, or the disk is full.
    """
    told = cast("Mapping[str, Any]", record)
    hold(SweepRecord, told, f"{NAME} as it would be written", "resume the sweep")
    write_text(folder / NAME, json.dumps(record, indent=1))


def read_record(folder: Path) -> SweepRecord:
    """Return what `sweep.json` of a sweep folder holds.

    Raises:
        CheckpointError: There is none, or it cannot be read, or is damaged.
    """
    try:
        found: object = json_in(folder / NAME)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a sweep folder: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / NAME} must hold a JSON object")
    raw = cast("dict[str, Any]", found)
    hold(SweepRecord, raw, str(folder / NAME), "put back the file that the sweep wrote")
    return cast("SweepRecord", raw)


def schema_of() -> dict[str, Any]:
    """Return the JSON schema of `sweep.json`."""
    return {**TypeAdapter(SweepRecord).json_schema(), "title": f"{NAME} of triskel"}
