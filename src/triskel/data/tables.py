"""Columns of plain values as a file: CSV, JSON lines or Parquet, whole or not at all."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.core.files import private, write_bytes
from triskel.data.files import Columns
from triskel.errors import CheckpointError, DataError, JobError


def writable(place: Path, *, force: bool) -> None:
    """Refuse a table that could not be written, before anything slow begins.

    Raises:
        JobError: The name says no format, or the file is there and `force` is not given.
        CheckpointError: Its folder cannot be made, or written to.
    """
    if place.suffix.lower() not in WRITERS:
        raise JobError(f"{place} has no known format; name it {', '.join(sorted(WRITERS))}")
    if place.is_dir() or (place.exists() and not force):
        raise JobError(f"{place} exists; --force replaces a file")
    trial = place.with_name(f"{place.name}.part")
    try:
        private(place.parent)
        trial.touch(mode=0o600)
        trial.unlink()
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error}") from error


def write_table(place: Path, columns: Columns) -> None:
    """Write a table; its extension says the format.

    Raises:
        JobError: It says none.
        DataError: The values of a column have no common type, which Parquet needs.
        CheckpointError: The disk is full or not writable; a file that was there stays.
    """
    writer = WRITERS.get(place.suffix.lower())
    if writer is None:
        raise JobError(f"{place} has no known format; name it {', '.join(sorted(WRITERS))}")
    write_bytes(place, writer(columns))


def _rows(columns: Columns) -> Iterator[tuple[object, ...]]:
    return zip(*columns.values(), strict=True)


def _csv(columns: Columns) -> bytes:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    out.writerows(_rows(columns))
    return text.getvalue().encode()


def _jsonl(columns: Columns) -> bytes:
    lines = [
        json.dumps(dict(zip(columns, map(_finite, row), strict=True)), ensure_ascii=False,
                   default=str)
        for row in _rows(columns)
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines).encode()


def _finite(value: object) -> object:
    """Return a value as JSON has it: what is no number is nothing."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(columns: Columns) -> bytes:
    arrow = cast("Any", import_module("pyarrow"))  # untyped, slow, seldom needed
    parquet = cast("Any", import_module("pyarrow.parquet"))
    arrays: dict[str, object] = {}
    for name, values in columns.items():
        try:
            arrays[name] = arrow.array(cast("Sequence[Any]", list(values)))
        except arrow.ArrowException as error:
            why = str(error).splitlines()[0]
            raise DataError(
                f"column {name!r} cannot be Parquet: {why}; write CSV or JSON lines"
            ) from None
    out = io.BytesIO()
    parquet.write_table(arrow.table(arrays), out)
    return out.getvalue()


WRITERS: Mapping[str, Callable[[Columns], bytes]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
"""How a table is written, by the name of the file."""
