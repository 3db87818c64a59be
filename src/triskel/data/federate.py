"""The whole of data before tokens: read, set the public set aside, deal the rest to clients.

The public set is held out of the training rows in every mode, before anything is dealt, so that
all modes and baselines train on the same rows. Its labels are dropped here and used nowhere.
Caps come last: `clients.examples` and `clients.test_examples` keep a random sample of each client.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from triskel.data.holdout import public_from, shuffled
from triskel.data.partition import partition
from triskel.data.rows import Rows
from triskel.data.sources import Dataset, named_public, read, read_own
from triskel.errors import DataError
from triskel.job import Job
from triskel.types import ClientId

EACH = 100
"""More clients than this are many."""
SHOWN = 12
"""Client ids listed in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """What one client holds, as text; `train` may be empty, and then it never joins a cohort."""

    train: Rows
    test: Rows


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Who holds what.

    Attributes:
        clients: Holdings by client id, in the order of the ids.
        public: Rows that everyone may read, without labels.
        classes: Class names in the order of their index; empty for `causal`.
    """

    clients: Mapping[ClientId, Holding]
    public: Rows
    classes: tuple[str, ...]


def federate(job: Job) -> Federation:
    """Return what every client of this job holds.

    Raises:
        DataError: The data are not what the job says, or too few for it.
    """
    table = read(job)
    train, public = table.train, table.public
    if public is None:
        keep = 0 if job.partition == "natural" else job.clients.count
        train, public = public_from(train, count=job.logits.public, seed=job.seed, keep=keep)
    shares = partition(job, train, table.test)
    clients = {
        name: Holding(
            train=_capped(job, train.take(share.train), job.clients.examples, name, "train"),
            test=_capped(job, table.test.take(share.test), job.clients.test_examples, name, "test"),
        )
        for name, share in sorted(shares.items())
    }
    _check_each(job, clients)
    unlabelled = replace(public, label=())
    return Federation(clients=clients, public=unlabelled, classes=table.classes)


def federate_own(job: Job, client: ClientId, datasets: Mapping[str, Dataset]) -> Federation:
    """Return what one party holds of a job whose data are named, and the public set.

    Raises:
        DataError: The data are not what the job says, or too few for it.
    """
    table = read_own(job, client, datasets)
    holding = Holding(
        train=_capped(job, table.train, job.clients.examples, client, "train"),
        test=_capped(job, table.test, job.clients.test_examples, client, "test"),
    )
    public = table.public or Rows()
    return Federation(
        clients={client: holding}, public=replace(public, label=()), classes=table.classes
    )


def federate_none(
    job: Job, clients: Iterable[ClientId], datasets: Mapping[str, Dataset]
) -> Federation:
    """Return what a server knows of a job whose data are named: who there is, and the public set.

    Raises:
        DataError: The public set is not what the job says.
    """
    empty = Holding(train=Rows(), test=Rows())
    classes = job.data.classes if job.data.task == "classify" else ()
    return Federation(
        clients=dict.fromkeys(sorted(clients), empty),
        public=replace(named_public(job, datasets), label=()),
        classes=classes,
    )


def describe(federation: Federation) -> dict[str, Any]:
    """Return a table, as JSON values, of what every client holds.

    `words` is the mean number of words of a training text, prompt and response together; `labels`
    counts training rows; where clients are many, labels that one does not hold are left out.
    """
    held = federation.clients
    seen = sorted({label for h in held.values() for label in h.train.label})
    return {
        "classes": list(federation.classes),
        "public": len(federation.public),
        "clients": {
            name: {
                "train": len(holding.train),
                "test": len(holding.test),
                "labels": _counts(
                    holding.train, federation.classes or tuple(seen), held_only=len(held) > EACH
                ),
                "words": _mean_words(holding.train),
            }
            for name, holding in held.items()
        },
    }


def _check_each(job: Job, clients: Mapping[ClientId, Holding]) -> None:
    strange = sorted(job.clients.each.keys() - clients.keys())
    if strange:
        raise DataError(
            f"clients.each names {strange[0]!r}, and there is no such client; there are "
            f"{', '.join(list(clients)[:SHOWN])}{', ...' if len(clients) > SHOWN else ''}"
        )


def _capped(job: Job, rows: Rows, cap: int, *path: str) -> Rows:
    if cap == 0 or len(rows) <= cap:
        return rows
    return rows.take(sorted(shuffled(range(len(rows)), job.seed, "cap", *path)[:cap]))


def _counts(rows: Rows, names: tuple[str, ...], *, held_only: bool) -> dict[str, int]:
    counted = Counter(rows.label)
    return {name: counted[name] for name in names if counted[name] or not held_only}


def _mean_words(rows: Rows) -> float:
    columns = (rows.text, rows.prompt, rows.response)
    words = sum(len(value.split()) for column in columns for value in column)
    return round(words / len(rows), 2) if len(rows) else 0.0
