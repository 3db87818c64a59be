"""Columns of files that hold columns: Parquet, Arrow, folders of `save_to_disk`, hub datasets.

Only the columns that a job needs are read; of the others, only the names.
"""

import io
from collections import Counter
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.data.encoding import data_of
from triskel.data.file_formats import SPLITS
from triskel.errors import DataError


def parquet_from(
    path: Path, wanted: Collection[str] | None, *, names_only: bool = False
) -> dict[str, Sequence[object]]:
    """Return the columns of a Parquet file.

    Args:
        path: The file; it may be in an archive.
        wanted: Names of the columns to read; None is all.
        names_only: Whether no row is wanted.

    Raises:
        DataError: It is not Parquet, or names a column twice.
    """
    parquet = cast("Any", import_module("pyarrow.parquet"))  # untyped, slow, seldom needed
    arrow = cast("Any", import_module("pyarrow"))
    try:
        with path.open("rb") as file:
            plain = file.read(4) == b"PAR1"
        source = path if plain else io.BytesIO(data_of(path))
        with parquet.ParquetFile(source) as file:
            names = _once(list(file.schema_arrow.names), path)
            if names_only:
                return dict.fromkeys(names, ())
            read = [name for name in names if wanted is None or name in wanted]
            held = file.read(columns=read or names[:1]).to_pydict()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"data file {path} is not Parquet: {_reason(error)}") from None
    return {name: held.get(name, ()) for name in names}


def arrow_from(
    path: Path, wanted: Collection[str] | None, *, names_only: bool = False
) -> dict[str, Sequence[object]]:
    """Return the columns of an Arrow file, or of a folder that `datasets` saved.

    Args:
        path: The file or folder.
        wanted: Names of the columns to read; None is all.
        names_only: Whether no row is wanted.

    Raises:
        DataError: It is not Arrow, or the folder holds several datasets.
    """
    arrow = cast("Any", import_module("pyarrow"))
    if (path / SPLITS).is_file():
        splits = ", ".join(sorted(one.name for one in path.iterdir() if one.is_dir()))
        raise DataError(f"folder {path} holds several datasets ({splits}); name one: {path}/NAME")
    try:
        if path.is_dir():
            return columns_of_dataset(_saved(path), () if names_only else wanted)
        table = _opened(data_of(path), arrow)
        names = _once(list(table.column_names), path)
        read = [] if names_only else [n for n in names if wanted is None or n in wanted]
        held = table.select(read or names[:1]).to_pydict()
        return {name: held.get(name, ()) for name in names}
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"data file {path} is not Arrow: {_reason(error)}") from None


def _opened(data: bytes, arrow: Any) -> Any:  # noqa: ANN401 - pyarrow's
    """Return the table of an Arrow file, which may be a stream."""
    ipc = cast("Any", import_module("pyarrow.ipc"))
    try:
        return ipc.open_file(io.BytesIO(data)).read_all()
    except arrow.ArrowInvalid:
        return ipc.open_stream(io.BytesIO(data)).read_all()


def _saved(folder: Path) -> Any:  # noqa: ANN401 - a dataset of `datasets`
    datasets = cast("Any", import_module("datasets"))  # untyped, slow to import, seldom needed
    return datasets.load_from_disk(str(folder))


def columns_of_dataset(table: Any, wanted: Collection[str] | None) -> dict[str, Sequence[object]]:  # noqa: ANN401
    """Return the wanted columns of a dataset of `datasets`; of the others, only their names.

    Class numbers become class names.
    """
    return {
        name: _named(list(table[name]), getattr(table.features[name], "names", None))
        if wanted is None or name in wanted
        else ()
        for name in table.column_names
    }


def _named(values: Sequence[object], names: Sequence[str] | None) -> Sequence[object]:
    """Return class names in place of their numbers; -1 means that there is none."""
    if names is None:
        return values
    return [
        names[value] if isinstance(value, int) and 0 <= value < len(names) else None
        for value in values
    ]


def _once(names: list[str], path: Path) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"data file {path} names the column {twice[0]!r} twice; rename one of them")
    return names


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
