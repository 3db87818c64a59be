"""Where examples come from: what a source holds, with test rows held out where it has none.

`read` returns every row of the job's source as text with its label and group; nothing is dealt to
clients here. Class names are `data.classes` in the order given, otherwise the sorted labels of the
training rows. Source `clients` must be given `data.classes`, since no party sees all labels.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from triskel.config.job import Job
from triskel.core.registry import TASKS
from triskel.data.holdout import hold_out, shuffled
from triskel.data.reading import (
    Dataset,
    client_rows,
    columns_of,
    hub_rows,
    local_rows,
    named_rows,
    public_rows,
    refuse_unused,
)
from triskel.data.rows import Rows, Table
from triskel.errors import DataError


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
    refuse_unused(job)
    if data.source == "clients":
        train, test = client_rows(job, tests=tests)
    elif data.source == "hub":
        train, test = hub_rows(job, data.train or "train"), None
        if data.test:
            test = hub_rows(job, data.test) if tests else Rows()
    else:
        train, test = local_rows(job, tests=tests)
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
    refuse_unused(job)

    def rows(name: str) -> Rows:
        found = named_rows(name, datasets, wanted)
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
    rows = named_rows(job.data.public, datasets, columns_of(job, labelled=False))
    return _drawn(rows, job)


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
    rows = public_rows(job)
    return None if rows is None else _drawn(rows, job)


def _drawn(rows: Rows, job: Job) -> Rows:
    """Return as many public rows as the job asks for, drawn by its seed."""
    count = job.public_count
    if len(rows) < count:
        raise DataError(
            f"data.public holds {len(rows)} rows and data.public_count asks for {count}; lower it"
        )
    return rows.take(sorted(shuffled(range(len(rows)), job.seed, "public", "file")[:count]))
