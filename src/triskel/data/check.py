"""What is odd about texts and labels as people have them, before anybody trains on them.

Nothing here needs torch. `unreadable` looks at names of files and columns only, which takes no
time; `odd` looks at all rows once they are read.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from triskel.config.job import Job
from triskel.config.sections import FILES, Judge
from triskel.core.faults import Fault
from triskel.core.formats import percent
from triskel.core.registry import TASKS
from triskel.core.task_spec import names_of
from triskel.data.files import guessed, header, no_column, no_file
from triskel.data.reading import (
    TEST_SUFFIX,
    client_files,
    columns_of,
    no_clients,
    no_folder,
    refuse_other_format,
    refuse_unused,
)
from triskel.data.rows import Rows
from triskel.errors import DataError

MISSING = frozenset({"", "-", "?", "n/a", "na", "nan", "nil", "none", "null", "unknown", "#n/a"})
"""How people write that there is no label."""
FEW = 5
"""Rows of a class, below which it is hardly learnt."""
PUBLIC = 1 / 3
"""Share of the rows above which a public set takes too much."""
SHOWN = 5
"""Names in a sentence."""


# --- names of files and columns ---------------------------------------------------------------


def unreadable(job: Job, *, tests: bool = True) -> Iterator[Fault]:
    """Return files and columns that are not there, without reading a row.

    Args:
        job: The job.
        tests: Whether files of test rows may be opened.
    """
    data = job.data
    try:
        refuse_unused(job)
    except DataError as error:
        yield Fault("data", str(error))
    if data.source in {"opinions", "hub"}:
        return
    labelled, plain = _wanted(job, labelled=True), _wanted(job, labelled=False)
    for key, named, columns in (
        ("data.train", data.train, labelled),
        ("data.test", data.test if tests else "", labelled),
        ("data.public", data.public, plain),
    ):
        if named:
            yield from _file(job, key, Path(named), columns, tests=tests)


def _wanted(job: Job, *, labelled: bool) -> list[str]:
    found = columns_of(job, labelled=labelled).values()
    return list(dict.fromkeys(name for column in found for name in names_of(column)))


def _file(
    job: Job, key: str, place: Path, wanted: Sequence[str], *, tests: bool
) -> Iterator[Fault]:
    folder = job.data.source == "clients" and key == "data.train"
    if not place.exists() or (folder and not place.is_dir()):
        yield Fault(key, no_folder(place) if folder else no_file(place))
        return
    try:
        files = _files(job, key, place, tests=tests)
    except DataError as error:
        yield Fault(key, str(error))
        return
    if not files:
        yield Fault(key, no_clients(place))
    source = job.data.source if job.data.source in FILES else None
    for file in files:
        try:
            if source and key != "data.public":
                refuse_other_format(job, file)
            names = header(file, source, dialect=job.data.dialect, wanted=wanted)
            guess = guessed(file, source, job.data.encoding)
        except DataError as error:
            yield Fault(key, str(error))
            continue
        if guess:
            yield Fault(
                key,
                f"data file {file} is not UTF-8 and is read as {guess}; data.encoding says what it "
                "is",
                refuses=False,
            )
        for name in wanted:
            if names is not None and name not in names:
                yield Fault(key, no_column(name, names, where=f"data file {file}"))


def _files(job: Job, key: str, place: Path, *, tests: bool) -> list[Path]:
    """Return the files that are read: of a folder of clients, or one."""
    if not place.is_dir() or job.data.source != "clients" or key == "data.public":
        return [place]
    own = not tests or (key == "data.train" and job.data.test)  # no test rows are read from it
    found = client_files(place).items()
    return [path for name, path in found if not (own and name.endswith(TEST_SUFFIX))]


# --- rows -------------------------------------------------------------------------------------


def odd(
    job: Job,
    train: Rows,
    test: Rows,
    public: Rows,
    clients: Mapping[str, int],
    judge: Judge = "test",
) -> Iterator[Fault]:
    """Return what is odd about rows that were read.

    Args:
        job: The job.
        train: All training rows.
        test: All test rows; may be empty.
        public: The public set.
        clients: How many training rows each client has, as far as that is known.
        judge: What the test rows are.
    """
    if TASKS.spec(job.data.task).labelled:
        yield from _labels(train.label, given=bool(job.data.classes))
    yield from _constant(train)
    yield from _overlap(train, test, judge, "what is measured on them is no proof")
    yield from _overlap(train, public, "public", "what clients say of them is of their own texts")
    whole = len(train) + (0 if job.data.public else len(public))
    if len(public) > PUBLIC * whole:
        yield Fault(
            "data.public_count",
            f"the public set has {len(public):,} texts and {whole:,} rows are there to train on: "
            "lower data.public_count",
            refuses=False,
        )
    small = [client for client, rows in clients.items() if 0 < rows < job.train.batch]
    if small:
        yield Fault(
            "train.batch",
            f"{len(small)} clients have fewer rows than a batch of {job.train.batch}: "
            f"{_listed(small)}",
            refuses=False,
        )


def _labels(labels: Sequence[str], *, given: bool) -> Iterator[Fault]:
    counts = Counter(labels)
    if len(counts) == 1:
        (only,) = counts
        text = f"all {len(labels):,} training rows have the one label {only!r}"
        yield Fault("data.label", text, refuses=not given)
    if len(counts) == len(labels) > 1 and all(map(_number, counts)):
        yield Fault(
            "data.label",
            f"the label column holds {len(counts):,} different numbers in {len(labels):,} rows: it "
            "counts or measures something, and is no class; name another column as data.label",
            refuses=not given,
        )
        return
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        alike[_folded(label)].append(label)
    for group in alike.values():
        if len(group) > 1:
            told = " and ".join(f"{label!r} ({counts[label]:,} rows)" for label in group)
            yield Fault(
                "data.label",
                f"labels differ in case, blanks or Unicode form only, and are learnt apart: {told}",
                refuses=False,
            )
    for label in sorted(counts):
        if label.strip().casefold() in MISSING:
            yield Fault(
                "data.label",
                f"the label {label!r} ({counts[label]:,} rows) looks like a missing value, and is "
                "learnt as a class",
                refuses=False,
            )
    few = [label for label, count in sorted(counts.items()) if count < FEW]
    if few:
        yield Fault(
            "data.label",
            f"{len(few)} classes have fewer than {FEW} training rows: {_listed(few)}",
            refuses=False,
        )


def _folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _constant(train: Rows) -> Iterator[Fault]:
    for role in ("text", "prompt", "response"):
        values: Sequence[str] = getattr(train, role)
        if len(values) > 1 and len(set(values)) == 1:
            yield Fault(
                f"data.{role}",
                f"all {len(values):,} training rows have the same {role}, {values[0][:40]!r}: "
                "nothing can be learnt from it",
                refuses=role == "text",
            )


def _overlap(train: Rows, other: Rows, what: str, why: str) -> Iterator[Fault]:
    seen = set(_read(train))
    found = sum(text in seen for text in _read(other)) if len(other) else 0
    if found:
        yield Fault(
            f"data.{what}",
            f"{found:,} of {len(other):,} {what} texts ({percent(found / len(other))}) occur in "
            f"training as well: {why}",
            refuses=False,
        )


def _read(rows: Rows) -> Iterable[tuple[str, ...]]:
    columns = [column for column in (rows.text, rows.prompt, rows.response) if column]
    return zip(*columns, strict=True)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
