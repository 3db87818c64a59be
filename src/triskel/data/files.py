"""Tables out of files: CSV, JSON lines, JSON arrays and Parquet, as columns of plain values."""

import csv
import difflib
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from triskel.core.task_spec import Filled
from triskel.data.rows import Rows
from triskel.errors import DataError

Columns = Mapping[str, Sequence[object]]
"""A file's columns by name, equally long."""

Role = Literal["text", "label", "prompt", "response", "group"]
"""What a column is used as: a field of `Rows`."""

FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
"""Format by file name; a JSON file may hold one array or one object a line."""

LONGEST_CELL = 2**31 - 1
HEADER_BYTES = 1 << 16
"""A header is no longer."""


def load(path: Path, fallback: str | None = None) -> Columns:
    """Read one file.

    Args:
        path: The file; its extension says the format.
        fallback: Format of a file whose extension says nothing.

    Raises:
        DataError: The file is missing, empty, damaged, or of no known format.
    """
    kind = FORMATS.get(path.suffix.lower(), fallback)
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    if kind == "csv":
        columns = _csv(path)
    elif kind == "jsonl":
        columns = _json(path)
    elif kind == "parquet":
        columns = _parquet(path)
    else:
        raise DataError(f"data file {path} has no known format; use {', '.join(sorted(FORMATS))}")
    if not columns or not next(iter(columns.values())):
        raise DataError(f"data file {path} holds no rows")
    return columns


Wanted = Mapping[Role, str | Filled]
"""The column that plays a role, or the text that columns are filled into."""


def select(columns: Columns, wanted: Wanted, *, where: str) -> Rows:
    """Return the wanted columns as rows of text.

    Args:
        columns: What a file or a hub dataset holds.
        wanted: What plays each role.
        where: Name of the file or dataset, for errors.

    Raises:
        DataError: A column is missing, or holds rows without a value or with a structure.
    """
    return Rows(
        **{role: _texts(columns, name, role=role, where=where) for role, name in wanted.items()}
    )


def _texts(columns: Columns, wanted: str | Filled, *, role: Role, where: str) -> tuple[str, ...]:
    if isinstance(wanted, str):
        return _column(columns, wanted, role=role, where=where)
    before = [text for text, _ in wanted.parts]
    held = [_column(columns, name, role=role, where=where) for _, name in wanted.parts]
    return tuple(
        "".join(part for pair in zip(before, row, strict=True) for part in pair) + wanted.tail
        for row in zip(*held, strict=True)
    )


def _column(columns: Columns, name: str, *, role: Role, where: str) -> tuple[str, ...]:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        present = ", ".join(map(str, columns))
        raise DataError(f"{where} has no column {name!r}{hint} (columns: {present})")
    values = columns[name]
    empty = [
        number
        for number, value in enumerate(values, 1)
        if value is None
        or (isinstance(value, float) and math.isnan(value))
        or (role in {"label", "group"} and value == "")
    ]
    if empty:
        raise DataError(
            f"{where} has {len(empty)} rows of {len(values)} without a value in column {name!r}, "
            f"the first is row {empty[0]}; fill or remove them"
        )
    for number, value in enumerate(values, 1):
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise DataError(
                f"{where} row {number} holds a {kind} in column {name!r}, and a text or a number "
                "is needed; name a column of texts"
            )
    if role in {"label", "group"}:  # few values, each held once
        known: dict[str, str] = {}
        return tuple(known.setdefault(value, value) for value in map(str, values))
    return tuple(map(str, values))


def header(path: Path, fallback: str | None = None) -> list[str] | None:
    """Return the names of a file's columns, without reading its rows; None where only rows say it.

    Args:
        path: The file; its extension says the format.
        fallback: Format of a file whose extension says nothing.

    Raises:
        DataError: It is empty, damaged, or of no known format.
    """
    kind = FORMATS.get(path.suffix.lower(), fallback)
    if kind == "csv":
        with _opened(path) as file:
            start = file.read(HEADER_BYTES)
        lines = csv.reader(io.StringIO(start.decode("utf-8-sig", "replace"), newline=""))
        try:
            return next(lines, list[str]()) or None
        except csv.Error:
            return None  # reading it says more
    if kind == "parquet":
        parquet = cast("Any", import_module("pyarrow.parquet"))  # untyped, slow, seldom needed
        arrow = cast("Any", import_module("pyarrow"))
        try:
            return list(parquet.read_schema(path).names)
        except (arrow.ArrowException, OSError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"data file {path} is not Parquet: {why}") from None
    return None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}") from None


def text_of(path: Path) -> str:
    """Return a UTF-8 file's text.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}") from None


def _csv(path: Path) -> Columns:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = next(reader, list[str]())
        rows: list[list[str]] = []
        for row in reader:
            if len(row) not in {0, len(header)}:
                raise DataError(
                    f"data file {path} line {reader.line_num} has {len(row)} cells and the header "
                    f"has {len(header)}; quote cells that hold commas"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"data file {path} line {reader.line_num} is not CSV: {error}") from None
    if len(set(header)) < len(header):
        raise DataError(f"data file {path} names a column twice in its header")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _json(path: Path) -> Columns:
    text = text_of(path)
    records: list[object]
    if text.lstrip()[:1] == "[":
        records = cast("list[object]", _parsed(text, str(path)))
        places = [f"{path} entry {number}" for number in range(1, len(records) + 1)]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [f"{path} line {number}" for number, _ in lines]
        records = [_parsed(line, where) for (_, line), where in zip(lines, places, strict=True)]
    names: dict[str, None] = {}
    objects: list[Mapping[str, object]] = []
    for record, where in zip(records, places, strict=True):
        if not isinstance(record, dict):
            raise DataError(f"data file {where} is not a JSON object with columns by name")
        named = cast("dict[str, object]", record)
        names.update(dict.fromkeys(named))
        objects.append(named)
    return {name: [record.get(name) for record in objects] for name in names}


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"data file {where} is not JSON: {error}") from None


def _parquet(path: Path) -> Columns:
    parquet = cast("Any", import_module("pyarrow.parquet"))  # untyped, slow, seldom needed
    arrow = cast("Any", import_module("pyarrow"))
    failures = (arrow.ArrowException, OSError)
    try:
        table = parquet.read_table(path)
    except failures as error:
        raise DataError(f"data file {path} is not Parquet: {str(error).splitlines()[0]}") from None
    return cast("Columns", table.to_pydict())
