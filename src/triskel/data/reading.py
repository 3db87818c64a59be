"""Rows as they lie in a job's source: opinions, hub datasets, files, one file per client.

Nothing is held out or dealt here, and torch is not needed, so that a column that there is not is
said before anything slow begins.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.config.job import Job
from triskel.config.sections import FILES
from triskel.core.dialect import Dialect
from triskel.core.registry import TASKS
from triskel.core.task_spec import Column, Filled, joined, names_of
from triskel.data import assets
from triskel.data.columnar import arrow_from, columns_of_dataset
from triskel.data.file_formats import COLUMNAR, FORMATS, SAVED, SPLITS, format_of, stem_of
from triskel.data.files import LINES, Columns, Role, Wanted, load, no_file, read_rows, select
from triskel.data.rows import Rows, join
from triskel.errors import DataError

TEST_SUFFIX = ".test"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where one party keeps what a job knows by a name.

    Attributes:
        paths: Its files, read one after the other.
        columns: What the job calls a column = what the files do; the others are not read.
        dialect: How they are written.
    """

    paths: Sequence[Path]
    columns: Mapping[str, str]
    dialect: Dialect = field(default_factory=Dialect)


def named_rows(name: str, datasets: Mapping[str, Dataset], wanted: Wanted) -> Rows:
    """Return the rows of a dataset that is known by a name.

    Raises:
        DataError: There is none, or its files are not what they must be.
    """
    if name not in datasets:
        raise DataError(f"there is no dataset {name!r} here; there are {', '.join(datasets)}")
    one, parts = datasets[name], list[Rows]()
    for path in one.paths:
        columns = load(path, dialect=one.dialect, wanted=set(one.columns.values()))
        own = {job: columns[file] for job, file in one.columns.items() if file in columns}
        parts.append(select(own, wanted, where=f"dataset {name} in {path.name}"))
    return join(parts)


WRITTEN = frozenset({"csv", "jsonl", "text", "clients"})
"""Sources whose files are text."""
TABLES = frozenset({"csv", "excel", "clients"})
"""Sources whose files may have a header."""
UNREAD = "{key} is given and is not read {why}; leave it out, or change that"


def columns_of(job: Job, *, labelled: bool) -> Wanted:
    """Return what plays each role in this job: a column, or a text with columns in it.

    Args:
        job: The job.
        labelled: Whether label and group are wanted too; the public set has neither.
    """
    data = job.data
    opinions = data.source == "opinions"
    found = cast("Mapping[Role, Column]", TASKS.spec(data.task).columns(data))
    wanted: dict[Role, str | Filled] = {
        role: one if isinstance(one, Filled) else joined(one) for role, one in found.items()
    }
    if labelled and (data.label or opinions):
        wanted["label"] = data.label or "label"
    by = job.clients.by or ("silo" if opinions else "")
    if labelled and by and data.source != "clients":
        wanted["group"] = by
    return wanted


def refuse_unused(job: Job) -> None:
    """Refuse keys that this source or task would leave unread."""
    data = job.data
    source = f'when data.source is "{data.source}"'
    for key, value, used, why in (
        ("data.train", data.train, data.source != "opinions", source),
        ("data.test", data.test, data.source != "opinions", source),
        ("data.hub", data.hub, data.source == "hub", source),
        ("data.config", data.config, data.source == "hub", source),
        ("data.delimiter", data.delimiter, data.source in {"csv", "clients"}, source),
        ("data.encoding", data.encoding, data.source in WRITTEN, source),
        ("data.header", data.header is not None, data.source in TABLES, source),
        ("clients.by", job.clients.by, data.source != "clients", source),
    ):
        if value and not used:
            raise DataError(UNREAD.format(key=key, why=why))
    spec = TASKS.spec(data.task)
    for key, why in spec.unread(data):
        raise DataError(UNREAD.format(key=key, why=why))
    if data.source == "clients" and spec.head == "classes" and not data.classes:
        raise DataError(
            'data.classes must list the labels when data.source is "clients", because no party '
            "sees all of them"
        )


def local_rows(job: Job, *, tests: bool) -> tuple[Rows, Rows | None]:
    """Return training rows of files or opinions, and test rows where there is a file of them.

    Raises:
        DataError: A file is not there, or not what the job says.
    """
    data = job.data
    wanted = columns_of(job, labelled=True)
    if data.source == "opinions":
        file = assets.folder("opinions") / "opinions.csv"
        return select(load(file), wanted, where="the opinions asset"), None

    def rows(name: str) -> Rows:
        refuse_other_format(job, Path(name))
        return read_rows(Path(name), wanted, data.source, dialect=data.dialect)

    if not data.test:
        return rows(data.train), None
    if tests:
        return rows(data.train), rows(data.test)
    _there(data.test)
    return rows(data.train), Rows()


def refuse_other_format(job: Job, path: Path) -> None:
    """Refuse a file that is named like another format than the job's; text may be any."""
    source = job.data.source
    named = format_of(path)
    if named not in {None, "text", source}:
        raise DataError(
            f'data file {path} is named like {named} and data.source is "{source}"; change one of '
            "them"
        )


def _there(name: str) -> None:
    """Refuse a file of test rows that is not there, without opening it."""
    if not Path(name).exists():
        raise DataError(f"{no_file(Path(name))}; mend data.test")


# --- The hub ----------------------------------------------------------------------------------


def hub_rows(job: Job, split: str) -> Rows:
    """Return the rows of a split of a dataset on the hub.

    Raises:
        DataError: It cannot be loaded, or lacks a column.
    """
    return _hub_rows(job, split, columns_of(job, labelled=True))


def _hub_rows(job: Job, split: str, wanted: Wanted) -> Rows:
    where = f"dataset {job.data.hub} split {split}"
    names = {name for column in wanted.values() for name in names_of(column)}
    return select(_hub_columns(job, split, names), wanted, where=where)


def _hub_columns(job: Job, split: str, wanted: Collection[str]) -> Columns:
    """Return the wanted columns of a split; of the others, only their names."""
    data = job.data
    if (saved := saved_split(Path(data.hub), split)) is not None:
        return arrow_from(saved, wanted)
    datasets = cast("Any", import_module("datasets"))  # untyped, slow to import, seldom needed
    failures = (datasets.exceptions.DatasetsError, OSError, ValueError)
    bars = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(data.hub, data.config or None, split=split)
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
        hint = " (the hub is switched off by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
        raise DataError(
            f"dataset {data.hub}, configuration {data.config or 'default'}, split {split} could "
            f"not be loaded: {reason}{hint if offline else ''}"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return columns_of_dataset(table, wanted)


def saved_split(folder: Path, split: str) -> Path | None:
    """Return where a split lies in a folder of `save_to_disk`; None where it is no such folder.

    Raises:
        DataError: It is one, and has no such split.
    """
    if (folder / SPLITS).is_file():
        if (folder / split / SAVED).is_file():
            return folder / split
        there = ", ".join(sorted(one.parent.name for one in folder.glob(f"*/{SAVED}")))
        raise DataError(f"folder {folder} has no split {split!r}; it has {there}")
    if not (folder / SAVED).is_file():
        return None
    if split != "train":
        raise DataError(f"folder {folder} holds one dataset without splits, and no {split!r}")
    return folder


# --- Rows that nobody labelled ----------------------------------------------------------------


def unlabelled(path: Path, job: Job) -> Columns | list[str]:
    """Return all columns of a table that a job's model is to be applied to, or lines of plain text.

    Raises:
        DataError: The file is not there, or cannot be read.
    """
    if format_of(path) == "text":
        return [str(line) for line in load(path, dialect=job.data.dialect)[LINES]]
    named = columns_of(job, labelled=False).values()
    names = {name for column in named for name in names_of(column)}
    fallback = job.data.source if job.data.source in FILES else None
    wanted = None if format_of(path) in COLUMNAR else names  # of those only what is wanted is read
    return load(path, fallback, dialect=job.data.dialect, wanted=wanted)


# --- One file per client ----------------------------------------------------------------------


def no_folder(there: Path) -> str:
    """Say that there is no folder of clients, and where a job runs whose datasets are names."""
    why = f"data.train must be a folder with one file per client, got {there}"
    if there.exists():
        return why
    return (
        f"{why}; where it is a dataset's name at the sites of a federation, the job runs there: "
        "`triskel federation submit`, or `resume`"
    )


def client_rows(job: Job, *, tests: bool) -> tuple[Rows, Rows | None]:
    """Return training and test rows; test rows of a single file belong to no group."""
    data = job.data
    folder = Path(data.train)
    wanted = columns_of(job, labelled=True)
    if not folder.is_dir():
        raise DataError(no_folder(folder))
    found = client_files(folder)
    mine = {name: path for name, path in found.items() if not name.endswith(TEST_SUFFIX)}
    beside = {
        name.removesuffix(TEST_SUFFIX): path
        for name, path in found.items()
        if name.endswith(TEST_SUFFIX)
    }
    shared: Rows | None = None
    if data.test and Path(data.test).is_dir():
        beside = client_files(Path(data.test))
    elif data.test:
        mine = {n: p for n, p in mine.items() if p.resolve() != Path(data.test).resolve()}
        beside = {}
        _there(data.test)
        shared = Rows()
        if tests:
            shared = read_rows(Path(data.test), wanted, dialect=data.dialect)
    if not mine:
        raise DataError(no_clients(folder))
    strangers = sorted(beside.keys() - mine.keys())
    if strangers:
        raise DataError(
            f"test file {beside[strangers[0]]} has no training file of the same name in {folder}"
        )
    train = join([_own(path, job, wanted, name) for name, path in mine.items()])
    if shared is not None or not beside:
        return train, shared
    missing = sorted(mine.keys() - beside.keys())
    if missing:
        raise DataError(
            f"client {missing[0]} has no test file and others have; add one, or remove all of them "
            "to hold out data.test_share"
        )
    return train, join([_own(p, job, wanted, n) for n, p in beside.items()]) if tests else Rows()


def no_clients(folder: Path) -> str:
    """Say that a folder holds no file of a client."""
    known = ", ".join(sorted(FORMATS))
    return f"folder {folder} holds no client files; name them CLIENT{known}"


def client_files(folder: Path) -> dict[str, Path]:
    """Return the files of clients by name; plain text counts where there is nothing else.

    Raises:
        DataError: Two name the same client.
    """
    there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    tables = [path for path in there if format_of(path) not in {None, "text"}]
    found: dict[str, Path] = {}
    for path in tables or [path for path in there if format_of(path) == "text"]:
        name = stem_of(path)
        if name in found:
            raise DataError(
                f"{found[name].name} and {path.name} in {folder} name the same client; keep one"
            )
        found[name] = path
    return found


def _own(path: Path, job: Job, wanted: Wanted, name: str) -> Rows:
    rows = read_rows(path, wanted, dialect=job.data.dialect)
    return replace(rows, group=(name,) * len(rows))


def public_rows(job: Job) -> Rows | None:
    """Return all rows of `data.public`; None where the job names no such file.

    Raises:
        DataError: The file is not there, or not what the job says.
    """
    data = job.data
    if not data.public:
        return None
    wanted = columns_of(job, labelled=False)
    if data.source == "hub" and not Path(data.public).exists():
        rows = _hub_rows(job, data.public, wanted)
    else:
        fallback = data.source if data.source in FILES else None
        rows = read_rows(Path(data.public), wanted, fallback, dialect=data.dialect)
    return rows
