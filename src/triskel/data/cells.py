"""Rows of cells as columns by name: CSV, and spreadsheets once they are opened.

A header names columns; where there is none, columns are numbered from 1. Columns without a name, as
an index or what trails behind, cannot be named by a job and are left out.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress

from triskel.core.dialect import Dialect
from triskel.errors import DataError

LONGEST_CELL = 2**31 - 1
DELIMITERS = (",", ";", "\t", "|")
"""What is looked for where a job does not say it; the first where several would do."""
LOOKED_AT = 1 << 16
"""Characters that tell the delimiter."""
SEP = "sep="
"""How Excel says the delimiter, in a line before the header."""

Cells = Sequence[tuple[int, Sequence[object]]]
"""Rows that are not empty, each with the number of the line where it ends."""


def columns_from(
    rows: Cells, dialect: Dialect, wanted: Collection[str] | None, *, where: str
) -> dict[str, Sequence[object]]:
    """Return rows of cells as columns by name.

    Args:
        rows: The rows, the header among them where there is one.
        dialect: Whether there is a header.
        wanted: Names of the columns that are needed, where they are known.
        where: Name of the file, for errors.

    Raises:
        DataError: Rows are of unequal length, or a column's name stands there twice.
    """
    if not rows:
        return {}
    names, body = names_in(list(rows[0][1]), dialect, wanted), rows[1:]
    if names is None:
        body = rows
        names = [str(number) for number in range(1, len(_stripped(rows[0][1])) + 1)]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(f"{where} names the column {twice[0]!r} twice; rename one of them")
    needed = len(_stripped(names))
    for line, row in body:
        if len(row) < needed or (len(row) > len(names) and len(_stripped(row)) > len(names)):
            what = "header" if body is not rows else "first row"
            raise DataError(
                f"{where} line {line} has {len(row)} cells and the {what} has {len(names)}; quote "
                "cells that hold the delimiter"
            )
    return {
        name: [row[place] if place < len(row) else "" for _, row in body]
        for place, name in enumerate(names)
        if name
    }


def names_in(
    first: Sequence[object], dialect: Dialect, wanted: Collection[str] | None
) -> list[str] | None:
    """Return the names of columns out of a first row; None where it is no header."""
    names = [str(cell) for cell in first]
    header = dialect.header
    if header is None:
        numbers = bool(wanted) and all(name.isdecimal() for name in wanted or ())
        header = not numbers or set(wanted or ()) <= set(names)
    return names if header else None


def _stripped(row: Sequence[object]) -> Sequence[object]:
    """Return a row without the empty cells at its end."""
    end = len(row)
    while end and row[end - 1] == "":
        end -= 1
    return row[:end]


# --- CSV --------------------------------------------------------------------------------------


def cells_of(text: str, dialect: Dialect, wanted: Collection[str] | None, *, where: str) -> Cells:
    """Return the rows of CSV; those without anything in a cell are left out.

    Python's own reader is used, strictly: it says at which line quotes do not close, where that of
    pyarrow makes one cell of `"a"b` and takes the last column of a name that stands there twice.

    Raises:
        DataError: It is not CSV.
    """
    body, said = _said(text)
    divide = dialect.delimiter or said or delimiter_of(body[:LOOKED_AT], wanted)
    skipped = text.count("\n", 0, len(text) - len(body))
    if divide == "\t" and (plain := _unquoted(body)) is not None:
        return [(number + skipped, row) for number, row in plain if any(row)]
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=divide, strict=True)
    try:
        return [(reader.line_num + skipped, row) for row in reader if any(row)]
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DataError(f"{where} line {line} is not CSV: {error}; mend its quotes") from None


def first_row(text: str, dialect: Dialect, wanted: Collection[str] | None) -> list[str]:
    """Return the first row of CSV that begins so; empty where it cannot be read."""
    body, said = _said(text)
    divide = dialect.delimiter or said or delimiter_of(body, wanted)
    return next((row for row in _some(body, divide) if any(row)), [])


def delimiter_of(start: str, wanted: Collection[str] | None = None) -> str:
    """Return what divides the cells of CSV, of which this is the start.

    It is the one by which most rows have as many cells as the first, among those by which the first
    has several; or by which the first names all wanted columns.
    """
    best, share = DELIMITERS[0], -1.0
    for divide in DELIMITERS:
        rows = [row for row in _some(start, divide) if any(row)]
        if not rows or (len(rows[0]) == 1 and divide != best):
            continue
        if wanted and len(rows[0]) > 1 and set(wanted) <= set(rows[0]):
            return divide
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if len(rows[0]) > 1 and alike > share:
            best, share = divide, alike
    return best


def _some(start: str, divide: str) -> list[list[str]]:
    """Return the rows at the start of CSV, as far as they can be read; the last may be cut."""
    csv.field_size_limit(LONGEST_CELL)
    rows: list[list[str]] = []
    with suppress(csv.Error):  # reading all of it says more
        rows.extend(csv.reader(io.StringIO(start, newline=""), delimiter=divide))
    return rows[:-1] if len(rows) > 1 and len(start) >= LOOKED_AT else rows


def _said(text: str) -> tuple[str, str]:
    """Return CSV without the line that says its delimiter, and that."""
    first, _, rest = text.partition("\n")
    first = first.rstrip("\r").strip('"')
    if first.lower().startswith(SEP) and len(first) == len(SEP) + 1:
        return rest, first[-1]
    return text, ""


def _quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _unquoted(text: str) -> list[tuple[int, list[str]]] | None:
    """Return rows of cells between tabs whose quotes mean nothing; None where they do.

    Many a file with tabs knows no quoting, so that a cell may begin with a quote and not end with
    one. Such a one has as many cells in each line as in the first, whose cells are not all quoted.
    """
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(number, line.split("\t")) for number, line in lines if line]
    if not rows or len({len(row) for _, row in rows}) > 1 or all(map(_quoted, rows[0][1])):
        return None
    odd = any(
        cell.startswith('"') != (cell.endswith('"') and len(cell) > 1)
        for _, row in rows
        for cell in row
        if '"' in cell
    )
    return rows if odd else None
