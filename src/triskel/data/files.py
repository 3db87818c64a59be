"""Tables out of files, as columns of plain values, and columns as rows of text."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from triskel.core.dialect import Dialect
from triskel.core.task_spec import Filled, names_of
from triskel.core.untrusted import mistyped
from triskel.data.cells import cells_of, columns_from, first_row, names_in
from triskel.data.columnar import arrow_from, parquet_from
from triskel.data.encoding import WESTERN, data_of, encoding_of, start_of, text_of
from triskel.data.file_formats import FORMATS, format_of
from triskel.data.json_rows import records_from
from triskel.data.rows import Rows
from triskel.data.spreadsheet import cells_in
from triskel.errors import DataError

Columns = Mapping[str, Sequence[object]]
"""A file's columns by name, equally long; one that was not asked for may be empty."""

Role = Literal["text", "label", "prompt", "response", "group"]
"""What a column is used as: a field of `Rows`."""

HEADER_CHARACTERS = 1 << 16
"""A header is no longer."""
LINES = "text"
"""The column of a file of plain text: its lines."""
SHOWN = 40
"""Characters of a column's name that an error repeats."""
COLUMNS_SHOWN = 40
"""Columns that it names."""


def load(
    path: Path,
    fallback: str | None = None,
    *,
    dialect: Dialect = Dialect(),  # noqa: B008 - frozen
    wanted: Collection[str] | None = None,
) -> Columns:
    """Read one file, or one folder that `datasets` saved.

    Args:
        path: The file; its name says the format.
        fallback: Format of a file whose name does not say it; also of one that is named `.txt`.
        dialect: How it is written, as far as that is said.
        wanted: Names of the columns that are needed; None is all.

    Raises:
        DataError: The file is missing, empty, damaged, or of no known format.
    """
    kind, where = _kind(path, fallback), f"data file {path}"
    columns: Columns
    if kind == "csv":
        cells = cells_of(text_of(path, dialect.encoding), dialect, wanted, where=where)
        columns = columns_from(cells, dialect, wanted, where=where)
    elif kind == "excel":
        columns = columns_from(cells_in(path), dialect, wanted, where=where)
    elif kind == "jsonl":
        columns = records_from(text_of(path, dialect.encoding), wanted, where=where)
    elif kind == "text":
        lines = text_of(path, dialect.encoding).split("\n")
        columns = {LINES: [line.rstrip("\r") for line in lines if line.strip()]}
    elif kind == "parquet":
        columns = parquet_from(path, wanted)
    elif kind == "arrow":
        columns = arrow_from(path, wanted)
    else:
        raise DataError(f"data file {path} has no known format; use {', '.join(sorted(FORMATS))}")
    if not any(map(len, columns.values())):
        raise DataError(f"data file {path} holds no rows")
    return columns


def no_file(path: Path) -> str:
    """Say that a file does not exist, which is named much like it, or what hides in its name."""
    if why := mistyped(str(path)):
        return f"data file {why}"
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return f"data file {path} does not exist: there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"data file {path} does not exist" + (f"; did you mean {near[0]!r}?" if near else "")


def _kind(path: Path, fallback: str | None) -> str | None:
    """Return a file's format; plain text may be anything that a job says it is.

    Raises:
        DataError: There is no such file, or it is a folder that nobody saved as a table.
    """
    kind = format_of(path)
    if not path.exists():
        raise DataError(no_file(path))
    if path.is_dir() and kind != "arrow":
        raise DataError(f"data file {path} is a folder, and a file is needed")
    return fallback or kind if kind in {None, "text"} else kind


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


def read_rows(
    path: Path,
    wanted: Wanted,
    fallback: str | None = None,
    *,
    dialect: Dialect = Dialect(),  # noqa: B008 - frozen
) -> Rows:
    """Return the wanted columns of one file as rows of text.

    Args:
        path: As of `load`.
        wanted: What plays each role.
        fallback: As of `load`.
        dialect: As of `load`.

    Raises:
        DataError: As of `load` and `select`.
    """
    names = {name for column in wanted.values() for name in names_of(column)}
    columns = load(path, fallback, dialect=dialect, wanted=names)
    return select(columns, wanted, where=f"data file {path}")


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
        raise DataError(no_column(name, list(columns), where=where))
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
        if not isinstance(value, str | int | float | Decimal):
            kind = type(value).__name__
            raise DataError(
                f"{where} row {number} holds a {kind} in column {name!r}, and a text or a number "
                "is needed; name a column of texts"
            )
    texts = tuple(map(str, values))
    _refuse_odd(texts, name, where)
    if role in {"label", "group"}:  # few values, each held once
        known: dict[str, str] = {}
        return tuple(known.setdefault(value, value) for value in texts)
    return texts


def _refuse_odd(texts: Sequence[str], name: str, where: str) -> None:
    """Refuse texts with what is no character, or ends a text for other programs."""
    for number, text in enumerate(texts, 1):
        if "\0" in text:
            raise DataError(
                f"{where} row {number} holds a zero character (NUL) in column {name!r}; remove it"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"\\u{ord(text[error.start]):04x}"
            raise DataError(
                f"{where} row {number} holds half a character ({what}, a lone surrogate) in column "
                f"{name!r}; remove it"
            ) from None


def no_column(name: str, names: Sequence[str], *, where: str) -> str:
    """Say that there is no column of a name, which there are, and which may be meant."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = [
        "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in one[:SHOWN])
        + ("..." if len(one) > SHOWN else "")
        for one in names
    ]
    if not near and any(len(one) > SHOWN or one.strip().isdecimal() for one in names):
        hint = (
            "; where its first row is no header, set data.header = false and name columns by "
            "number, the first by 1"
        )
    more = ", ..." if len(shown) > COLUMNS_SHOWN else ""
    present = ", ".join(shown[:COLUMNS_SHOWN]) + more
    return f"{where} has no column {name!r}{hint} (columns: {present})"


def header(
    path: Path,
    fallback: str | None = None,
    *,
    dialect: Dialect = Dialect(),  # noqa: B008 - frozen
    wanted: Collection[str] | None = None,
) -> list[str] | None:
    """Return the names of a file's columns, without reading its rows; None where only rows say it.

    Args:
        path: The file; its name says the format.
        fallback: As of `load`.
        dialect: As of `load`.
        wanted: As of `load`.

    Raises:
        DataError: It is empty, damaged, or of no known format.
    """
    kind = _kind(path, fallback)
    if kind == "csv":
        start = start_of(path, HEADER_CHARACTERS, dialect.encoding)
        first = first_row(start, dialect, wanted)
        names = names_in(first, dialect, wanted) if first else None
        return [name for name in names if name] if names else None
    if kind == "parquet":
        return list(parquet_from(path, None, names_only=True))
    if kind == "arrow":
        return list(arrow_from(path, None, names_only=True))
    return [LINES] if kind == "text" else None


def guessed(path: Path, fallback: str | None, encoding: str = "") -> str:
    """Return how a file is read that is in an old encoding which nobody named; else nothing.

    Raises:
        DataError: It cannot be told.
    """
    if encoding or _kind(path, fallback) not in {"csv", "jsonl", "text"}:
        return ""
    found = encoding_of(data_of(path, HEADER_CHARACTERS), path)
    return "Windows-1252 (Latin-1)" if found == WESTERN else ""
