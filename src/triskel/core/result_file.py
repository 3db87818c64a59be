"""What `result.json` holds, in types, and the one place where it is written and read.

A result is JSON from end to end: tables that pydantic checks when they are written and when they
are read, and never converts, so that what is read and written again is the same to the byte.
Schema 1 is one run, schema 2 one of several seeds. Reading has four rules:

    another schema     is refused; the sentence names it and those that this version reads
    damage             is refused; the sentence names the file, the place, and what belongs there
    a part not there   is not there: early results lack columns, and a run that goes on lacks rows
    an unknown key     is of a later version with the same schema: passed over, kept in its place

A figure that diverged may be NaN or infinite; a whole number may not.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Field, TypeAdapter, ValidationError, with_config

from triskel.core.result_data import Data
from triskel.core.result_parts import (
    CHECKED,
    About,
    Amounts,
    Asked,
    BaselineRow,
    DroppedRow,
    StageRow,
    TaskAbout,
)
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError

NAME = "result.json"
DONE = "done.json"
"""In the folder of a stage that is over: its part of the result."""
ONE: Literal[1] = 1
"""The schema of a run."""
SEVERAL: Literal[2] = 2
"""The schema of several seeds of one job."""
SCHEMAS = (ONE, SEVERAL)
EXPLAINED = 1000
"""Up to how many faults of a file are looked at; each takes a kilobyte."""
LONGEST = 100
"""Characters of a value or place in a sentence."""


@with_config(CHECKED)
class RunResult(Amounts):
    """`result.json` of one run."""

    schema: Literal[1]
    triskel: str
    job: dict[str, Any]
    about: NotRequired[dict[str, About]]
    task: NotRequired[TaskAbout]
    request: NotRequired[Asked]
    environment: dict[str, str | int | float | None]
    data: Data
    baselines: dict[str, BaselineRow]
    skipped: dict[str, str]
    modes: dict[str, StageRow]
    robustness: NotRequired[dict[str, DroppedRow]]
    interrupted: NotRequired[str | bool]


@with_config(CHECKED)
class SeedsResult(Amounts):
    """`result.json` of several seeds of one job."""

    schema: Literal[2]
    triskel: str
    job: NotRequired[dict[str, Any]]
    request: NotRequired[Asked]
    seeds: list[int]
    runs: list[RunResult]
    interrupted: NotRequired[str | bool]


Result = RunResult | SeedsResult


def ended_with(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the round that a stage of a result ends with: the one kept, else the last.

    >>> ended_with({"rounds": [{"round": 1}, {"round": 2}], "kept": 1})
    {'round': 1}
    """
    rounds: list[Mapping[str, Any]] = stage.get("rounds") or [{}]
    kept = stage.get("kept")
    return next((one for one in rounds if one.get("round") == kept), rounds[-1])


# --- Writing and reading ----------------------------------------------------------------------


def dump(result: Result) -> str:
    """Return the text of `result.json`.

    Raises:
        CheckpointError: This is not what a result is, so whoever read it would be misled.
    """
    checked(result, where=f"{NAME} as it would be written")
    return json.dumps(result, indent=1)


def result_in(folder: Path) -> Result:
    """Return the result in a folder.

    Raises:
        CheckpointError: There is none, or it is of another schema, or damaged.
    """
    found = _in(folder)
    if found is None:
        raise CheckpointError(
            f"{folder / NAME} does not exist; give the folder of a run that finished a baseline or "
            "a mode, or let a stopped one go on: triskel run --resume"
        )
    return found


def _in(folder: Path) -> Result | None:
    place = folder / NAME
    raw = _json(place)
    return None if raw is None else checked(raw, where=str(place))


def _json(place: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None where there is no file.

    Raises:
        CheckpointError: It holds something else, or cannot be read.
    """
    try:
        raw: object = json_in(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{place} must hold a JSON object, got {_kind(raw)}")
    return cast("dict[str, Any]", raw)


def run_in(folder: Path) -> RunResult | None:
    """Return the result in the folder of one run, or None where nothing was finished yet.

    Raises:
        CheckpointError: It is one of several seeds, or of another schema, or damaged.
    """
    found = _in(folder)
    if found is None or found["schema"] == ONE:
        return found
    raise CheckpointError(f"{folder / NAME} is of several seeds; name the folder of one of them")


def several_in(folder: Path) -> SeedsResult | None:
    """Return the result in the folder of several seeds, or None where none was finished yet.

    Raises:
        CheckpointError: It is one of a single run, or of another schema, or damaged.
    """
    found = _in(folder)
    if found is None or found["schema"] == SEVERAL:
        return found
    raise CheckpointError(f"{folder / NAME} is of one run, and this folder is of several seeds")


def stage_in(folder: Path) -> StageRow | None:
    """Return what a stage left in its folder once it was over, or None where it goes on.

    Raises:
        CheckpointError: It is damaged.
    """
    place = folder / DONE
    raw = _json(place)
    if raw is not None:
        hold(StageRow, raw, str(place), "delete it, and a resumed run writes it anew")
    return cast("StageRow | None", raw)


def checked(raw: Mapping[str, Any], *, where: str = NAME) -> Result:
    """Return JSON values as they are, once they are a result.

    Args:
        raw: What a file holds.
        where: The file, for the sentence of an error.

    Raises:
        CheckpointError: They are of another schema, or damaged.
    """
    kind = RunResult if version_of(raw, where=where) == ONE else SeedsResult
    hold(kind, raw, where, "put back the file that the run wrote")
    return cast("Result", raw)


def version_of(raw: Mapping[str, Any], *, where: str = NAME) -> int:
    """Return the schema of a result, which this version can read.

    Raises:
        CheckpointError: It is another.
    """
    schema: object = raw.get("schema")
    if type(schema) is int and schema in SCHEMAS:
        return schema
    raise CheckpointError(
        f"{where} has schema {_kind(schema)}, and this version of triskel reads {ONE} and "
        f"{SEVERAL}; use the version that wrote it"
    )


def schema_of() -> dict[str, Any]:
    """Return the JSON schema of `result.json`."""
    told = TypeAdapter[Result](Annotated[Result, Field(discriminator="schema")])
    return {"title": f"{NAME} of triskel", **told.json_schema()}


def hold(kind: Any, raw: Mapping[str, Any], where: str, way_out: str) -> None:  # noqa: ANN401 - a table
    """Refuse JSON values that are not a table of a kind.

    Args:
        kind: The table's type.
        raw: What a file holds.
        where: The file, for the sentence of an error.
        way_out: What to do then, for the same.

    Raises:
        CheckpointError: They are damaged.
    """
    try:
        _checker(kind)(raw)
    except ValidationError as error:
        raise CheckpointError(_sentence(where, error, way_out)) from error


@cache
def _checker(kind: Any) -> Callable[[object], object]:  # noqa: ANN401 - a table
    """Return what checks a table of a kind; made once, as that takes some milliseconds."""
    return TypeAdapter[Any](kind).validate_python


def _sentence(where: str, error: ValidationError, way_out: str) -> str:
    """Return what is wrong with a file, of several faults the first.

    Places within are written as `modes.params.rounds[0].seconds`.
    """
    many = error.error_count()
    if many > EXPLAINED:
        return f"{where} is damaged in {many:,} places; {way_out}"
    first = error.errors(include_url=False, include_context=False)[0]
    place = "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        fault = f"lacks {_clipped(place)}"
    else:
        wanted = first["msg"].removeprefix("Input should be ").partition(" or instance of")[0]
        fault = f"has {_kind(first['input'])} at {_clipped(place)}, which should be {wanted}"
    rest = many - 1
    more = f", and has {rest:,} more fault{'' if rest == 1 else 's'}" if rest else ""
    return f"{where} is damaged: it {fault}{more}; {way_out}"


def _kind(value: object) -> str:
    """Return what a JSON value is, so short that it fits a line."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return "null" if value is None else _clipped(repr(value))


def _clipped(text: str) -> str:
    """Return what somebody else wrote as one short line."""
    line = "".join(one if one.isprintable() else "?" for one in text[:LONGEST])
    return line if len(text) <= LONGEST else f"{line}..."
