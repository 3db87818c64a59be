"""Where examples come from: the fetched opinions, hub datasets, files, one file per client.

`read` returns every row of the job's source as text with its label and group; nothing is dealt to
clients here. Class names are `data.classes` in the order given, otherwise the sorted labels of the
training rows. Source `clients` must be given `data.classes`, since no party sees all labels.
"""

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.config.job import Job
from triskel.core.registry import TASKS
from triskel.core.task_spec import Column, Filled, joined, names_of
from triskel.data import assets
from triskel.data.files import FORMATS, Columns, Role, Wanted, load, select
from triskel.data.holdout import hold_out, shuffled
from triskel.data.rows import Rows, Table, join
from triskel.errors import DataError

TEST_SUFFIX = ".test"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where one party keeps what a job knows by a name.

    Attributes:
        paths: Its files, read one after the other.
        columns: What the job calls a column = what the files do; the others are not read.
    """

    paths: Sequence[Path]
    columns: Mapping[str, str]


def read(job: Job, *, tests: bool = True) -> Table:
    """Read the job's source.

    Args:
        job: The job.
        tests: Whether test rows are wanted. If not, no file of test rows is opened, and those that
            are held out of the training rows are dropped.

    Raises:
        DataError: A file, column, label or row is not what the job says.
    """
    data = job.data
    _refuse_unused(job)
    if data.source == "clients":
        train, test = _clients(job, tests=tests)
    elif data.source == "hub":
        train, test = _hub(job, data.train or "train"), None
        if data.test:
            test = _hub(job, data.test) if tests else Rows()
    else:
        train, test = _local(job, tests=tests)
    if test is None:
        train, test = hold_out(train, share=data.test_share, seed=job.seed)
    if not tests:
        test = Rows()
    classes = _classes(job, train)
    _check_labels(test, classes, where="the test rows", given=bool(data.classes))
    return Table(train=train, test=test, public=_public(job), classes=classes)


def read_own(job: Job, client: str, datasets: Mapping[str, Dataset], seed: int) -> Table:
    """Read what one party holds of a job whose data are named; nobody else's are there.

    What it holds is dealt as `read` deals one file per client, and held out by another seed.

    Args:
        job: The job; `data.train`, `data.test` and `data.public` are names.
        client: Whose rows these are.
        datasets: Where the names lie here.
        seed: By which the party holds out a test share, where it has no test file.

    Raises:
        DataError: A dataset, column, label or row is not what the job says.
    """
    data, wanted = job.data, columns_of(job, labelled=True)
    _refuse_unused(job)

    def rows(name: str) -> Rows:
        found = _named_rows(name, datasets, wanted)
        return replace(found, group=(client,) * len(found))

    train = rows(data.train)
    if data.test:
        test = rows(data.test)
    else:
        train, test = hold_out(train, share=data.test_share, seed=seed)
    classes = _classes(job, train)
    _check_labels(test, classes, where="the test rows", given=True)
    return Table(train=train, test=test, public=named_public(job, datasets), classes=classes)


def named_public(job: Job, datasets: Mapping[str, Dataset]) -> Rows:
    """Return the public set of a job whose data are named; empty where the job has none."""
    if not job.data.public:
        return Rows()
    rows = _named_rows(job.data.public, datasets, columns_of(job, labelled=False))
    return _drawn(rows, job)


def _named_rows(name: str, datasets: Mapping[str, Dataset], wanted: Wanted) -> Rows:
    if name not in datasets:
        raise DataError(f"there is no dataset {name!r} here; there are {', '.join(datasets)}")
    one, parts = datasets[name], list[Rows]()
    for path in one.paths:
        columns = load(path)
        own = {job: columns[file] for job, file in one.columns.items() if file in columns}
        parts.append(select(own, wanted, where=f"dataset {name} in {path.name}"))
    return join(parts)


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


def _refuse_unused(job: Job) -> None:
    """Refuse keys that this source or task would leave unread."""
    data = job.data
    source = f'when data.source is "{data.source}"'
    for key, value, used, why in (
        ("data.train", data.train, data.source != "opinions", source),
        ("data.test", data.test, data.source != "opinions", source),
        ("data.hub", data.hub, data.source == "hub", source),
        ("data.config", data.config, data.source == "hub", source),
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


def _local(job: Job, *, tests: bool) -> tuple[Rows, Rows | None]:
    data = job.data
    wanted = columns_of(job, labelled=True)
    if data.source == "opinions":
        file = assets.folder("opinions") / "opinions.csv"
        return select(load(file), wanted, where="the opinions asset"), None

    def rows(name: str) -> Rows:
        named = FORMATS.get(Path(name).suffix.lower(), data.source)
        if named != data.source:
            raise DataError(
                f'data file {name} is named like {named} and data.source is "{data.source}"; '
                "change one of them"
            )
        return select(load(Path(name), data.source), wanted, where=f"data file {name}")

    if not data.test:
        return rows(data.train), None
    if tests:
        return rows(data.train), rows(data.test)
    _there(data.test)
    return rows(data.train), Rows()


def _there(name: str) -> None:
    """Refuse a file of test rows that is not there, without opening it."""
    if not Path(name).exists():
        raise DataError(f"data file {name} cannot be read: it does not exist; mend data.test")


# --- The hub ----------------------------------------------------------------------------------


def _hub(job: Job, split: str) -> Rows:
    return _hub_rows(job, split, columns_of(job, labelled=True))


def _hub_rows(job: Job, split: str, wanted: Wanted) -> Rows:
    where = f"dataset {job.data.hub} split {split}"
    names = {name for column in wanted.values() for name in names_of(column)}
    return select(_hub_columns(job, split, names), wanted, where=where)


def _hub_columns(job: Job, split: str, wanted: Collection[str]) -> Columns:
    """Return the wanted columns of a split; of the others, only their names."""
    data = job.data
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
    return {
        name: _named(list(table[name]), getattr(table.features[name], "names", None))
        if name in wanted
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


# --- One file per client ----------------------------------------------------------------------


def _no_folder(there: Path) -> str:
    """Say that there is no folder of clients, and where a job runs whose datasets are names."""
    why = f"data.train must be a folder with one file per client, got {there}"
    if there.exists():
        return why
    return (
        f"{why}; where it is a dataset's name at the sites of a federation, the job runs there: "
        "`triskel federation submit`, or `resume`"
    )


def _clients(job: Job, *, tests: bool) -> tuple[Rows, Rows | None]:
    """Return training and test rows; test rows of a single file belong to no group."""
    data = job.data
    folder = Path(data.train)
    wanted = columns_of(job, labelled=True)
    if not folder.is_dir():
        raise DataError(_no_folder(folder))
    mine = {n: p for n, p in _files(folder).items() if not n.endswith(TEST_SUFFIX)}
    beside = {
        name.removesuffix(TEST_SUFFIX): path
        for name, path in _files(folder).items()
        if name.endswith(TEST_SUFFIX)
    }
    shared: Rows | None = None
    if data.test and Path(data.test).is_dir():
        beside = _files(Path(data.test))
    elif data.test:
        mine = {n: p for n, p in mine.items() if p.resolve() != Path(data.test).resolve()}
        beside = {}
        _there(data.test)
        shared = Rows()
        if tests:
            shared = select(load(Path(data.test)), wanted, where=f"data file {data.test}")
    if not mine:
        known = ", ".join(sorted(FORMATS))
        raise DataError(f"folder {folder} holds no client files; name them CLIENT{known}")
    strangers = sorted(beside.keys() - mine.keys())
    if strangers:
        raise DataError(
            f"test file {beside[strangers[0]]} has no training file of the same name in {folder}"
        )
    train = join([_own(path, wanted, name) for name, path in mine.items()])
    if shared is not None or not beside:
        return train, shared
    missing = sorted(mine.keys() - beside.keys())
    if missing:
        raise DataError(
            f"client {missing[0]} has no test file and others have; add one, or remove all of them "
            "to hold out data.test_share"
        )
    return train, join([_own(p, wanted, n) for n, p in beside.items()]) if tests else Rows()


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in FORMATS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{found[path.stem].name} and {path.name} in {folder} name the same client; "
                "keep one"
            )
        found[path.stem] = path
    return found


def _own(path: Path, wanted: Wanted, name: str) -> Rows:
    rows = select(load(path), wanted, where=f"data file {path}")
    return replace(rows, group=(name,) * len(rows))


# --- Classes and the public set ---------------------------------------------------------------


def _classes(job: Job, train: Rows) -> tuple[str, ...]:
    data = job.data
    if TASKS.spec(data.task).head != "classes":
        return ()
    if not data.classes:
        classes = tuple(sorted(set(train.label)))
    else:
        classes = data.classes
        if len(set(classes)) < len(classes):
            raise DataError("data.classes names a label twice")
        _check_labels(train, classes, where="the training rows", given=True)
    if len(classes) < 2:  # noqa: PLR2004 - a choice needs two
        raise DataError(f"a {data.task} task needs two classes or more, got {list(classes)}")
    return classes


def _check_labels(rows: Rows, classes: Sequence[str], *, where: str, given: bool) -> None:
    strange = sorted(set(rows.label) - set(classes))
    if not (classes and strange):
        return
    label = strange[0]
    count = rows.label.count(label)
    near = difflib.get_close_matches(label, classes, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"{where} hold the label {label!r} ({count} rows), which is not in data.classes{hint}"
        if given
        else f"{where} hold the label {label!r} ({count} rows), which no training row has; list "
        "all labels in data.classes"
    )


def _public(job: Job) -> Rows | None:
    data = job.data
    if not data.public:
        return None
    wanted = columns_of(job, labelled=False)
    if data.source == "hub" and not Path(data.public).exists():
        rows = _hub_rows(job, data.public, wanted)
    else:
        fallback = data.source if data.source in {"csv", "jsonl", "parquet"} else None
        rows = select(load(Path(data.public), fallback), wanted, where=f"data file {data.public}")
    return _drawn(rows, job)


def _drawn(rows: Rows, job: Job) -> Rows:
    """Return as many public rows as the job asks for, drawn by its seed."""
    count = job.public_count
    if len(rows) < count:
        raise DataError(
            f"data.public holds {len(rows)} rows and data.public_count asks for {count}; lower it"
        )
    return rows.take(sorted(shuffled(range(len(rows)), job.seed, "public", "file")[:count]))
