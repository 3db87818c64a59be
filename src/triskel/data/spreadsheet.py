"""Excel and OpenDocument tables, by the optional package python-calamine."""

import io
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.data.cells import Cells
from triskel.errors import DataError

MISSING = (
    "a spreadsheet is read by another package: save it as CSV, or pip install 'triskel[excel]'"
)


def cells_in(path: Path) -> Cells:
    """Return the rows of the one sheet that has any; whole numbers are written without a point.

    Raises:
        DataError: The package is not here, the file is no spreadsheet, or several sheets hold rows.
    """
    try:
        calamine = cast("Any", import_module("python_calamine"))  # optional
    except ImportError:
        raise DataError(f"data file {path} cannot be read: {MISSING}") from None
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(path.read_bytes()))
        sheets = {
            name: book.get_sheet_by_name(name).to_python(skip_empty_area=False)
            for name in book.sheet_names
        }
    except (calamine.CalamineError, OSError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"data file {path} is no spreadsheet that can be read: {why}") from None
    filled = {name: rows for name, rows in sheets.items() if any(map(_held, rows))}
    if len(filled) > 1:
        raise DataError(
            f"data file {path} has rows on {len(filled)} sheets ({', '.join(filled)}), and one is "
            "read; save the one that is meant as CSV"
        )
    rows = next(iter(filled.values()), [])
    return [
        (number, [_cell(value) for value in row])
        for number, row in enumerate(rows, 1)
        if _held(row)
    ]


def _held(row: list[object]) -> bool:
    return any(cell != "" for cell in row)


def _cell(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
