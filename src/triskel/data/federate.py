"""The whole of data before tokens: read, set the public set aside, deal the rest to clients.

The public set is held out of the training rows in every mode, before anything is dealt, so that
all modes and baselines train on the same rows. Its labels are dropped here and used nowhere.
A validation share is then held out of what each client trains on, whoever judges: test rows, or
validation rows in their place, and then no test row is read.
Caps come last: `clients.examples` and `clients.test_examples` keep a random sample of each client.
Draws are by the job's seed in one process. A party of a federation brings its own: `Seeds`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.core.registry import TASKS
from triskel.core.result_data import Data
from triskel.data.digest import Digest, digest_of
from triskel.data.holdout import public_from, shuffled, validation_from
from triskel.data.partition import partition
from triskel.data.reading import Dataset
from triskel.data.rows import Rows, Table
from triskel.data.sources import named_public, read, read_own
from triskel.errors import DataError
from triskel.types import ClientId

UNSHARED = (
    "data.validation_share is 0, so no rows are held out to choose settings by; set it in the job "
    "file or with --set data.validation_share=0.2"
)
Seeds = Callable[..., int]
"""Returns the seed of a draw, given a word and the numbers that the draw depends on."""
EACH = 100
"""More clients than this are many."""
SHOWN = 12
"""Client ids listed in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """What one client holds, as text.

    Attributes:
        train: What it trains on; may be empty, and then it never joins a cohort.
        test: What models are judged on.
        validation: How many rows are held out of its training rows to choose settings by.
        held_out: Those of them that models are scored on, where something is chosen by them.
        digests: What its rows are known by, share by share: `train`, `validation` and, where test
            rows are read, `test`.
    """

    train: Rows
    test: Rows
    validation: int = 0
    held_out: Rows = field(default_factory=Rows)
    digests: Mapping[str, Digest] = field(default_factory=dict[str, Digest])


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


def federate(
    job: Job, judge: Judge = "test", seen: Callable[[Table], None] | None = None
) -> Federation:
    """Return what every client of this job holds.

    Args:
        job: The job.
        judge: Which rows are dealt as `Holding.test`: test rows, or validation rows, and then no
            test row is read. Training and public rows are the same either way.
        seen: Called with what was read, before anything of it is dealt.

    Raises:
        DataError: The data are not what the job says, or too few for it.
    """
    if judge == "validation" and not job.data.validation_share:
        raise DataError(UNSHARED)
    table = read(job, tests=judge == "test")
    if seen is not None:
        seen(table)
    train, public = table.train, table.public
    if public is None:
        keep = 0 if job.partition == "natural" else job.clients.count
        train, public = public_from(train, count=job.public_count, seed=job.seed, keep=keep)
    shares = partition(job, train, table.test)
    clients = {
        name: _holding(job, name, train.take(share.train), table.test.take(share.test), judge)
        for name, share in sorted(shares.items())
    }
    _check_each(job, clients)
    if job.data.validation_share and not any(held.validation for held in clients.values()):
        raise DataError(
            f"data.validation_share = {job.data.validation_share} finds no client that holds two "
            "training rows of one label; set it to 0, or give more rows"
        )
    unlabelled = replace(public, label=())
    return Federation(clients=clients, public=unlabelled, classes=table.classes)


def federate_own(
    job: Job, client: ClientId, datasets: Mapping[str, Dataset], seeds: Seeds
) -> Federation:
    """Return what one party holds of a job whose data are named, and the public set.

    Args:
        job: The job.
        client: Which party.
        datasets: Where the names lie here.
        seeds: By what the party draws rows; nobody else knows it.

    Raises:
        DataError: The data are not what the job says, or too few for it.
    """
    data = job.data
    table = read_own(job, client, datasets, seeds("test", data.test or data.test_share))
    holding = _holding(job, client, table.train, table.test, seeds=seeds)
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
    classes = job.data.classes if TASKS.spec(job.data.task).head == "classes" else ()
    return Federation(
        clients=dict.fromkeys(sorted(clients), empty),
        public=replace(named_public(job, datasets), label=()),
        classes=classes,
    )


def describe(federation: Federation) -> Data:
    """Return a table, as JSON values, of what every client holds.

    `drawn_by` says by what rows were held out and capped: the job's `seed` here, and where `sites`
    draw, a secret of each. `words` is the mean number of words of a training text, prompt and
    response together; `labels` counts training rows, and `validation` those that are held out of
    them; where clients are many, labels that one does not hold are left out.
    """
    held = federation.clients
    seen = sorted({label for h in held.values() for label in h.train.label})
    return {
        "classes": list(federation.classes),
        "public": len(federation.public),
        "drawn_by": "seed",
        "validation": sum(holding.validation for holding in held.values()),
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


def _holding(
    job: Job,
    client: ClientId,
    train: Rows,
    test: Rows,
    judge: Judge = "test",
    *,
    seeds: Seeds | None = None,
) -> Holding:
    """Return what a client holds of the rows that are dealt to it."""

    def by(*question: str | float) -> int:
        return seeds(*question) if seeds else job.seed

    data, caps = job.data, job.clients
    share, dealt = data.validation_share, (data.test or data.test_share, data.validation_share)
    mine, aside = validation_from(train, share=share, seed=by("validation", *dealt), client=client)

    def capped(rows: Rows, cap: int, what: str) -> Rows:
        if cap == 0 or len(rows) <= cap:
            return rows
        order = shuffled(range(len(rows)), by("cap", what, cap, *dealt), "cap", client, what)
        return rows.take(sorted(order[:cap]))

    kept = capped(mine, caps.examples, "train")
    choosing = judge == "validation" or job.train.keep == "best"
    held_out = capped(aside, caps.test_examples, "validation") if choosing else Rows()
    judged = capped(test, caps.test_examples, "test") if judge == "test" else held_out
    shares = {"train": kept, "validation": aside} | ({"test": judged} if judge == "test" else {})
    return Holding(
        train=kept,
        test=judged,
        validation=len(aside),
        held_out=held_out,
        digests={share: digest_of(rows) for share, rows in shares.items()},
    )


def _counts(rows: Rows, names: tuple[str, ...], *, held_only: bool) -> dict[str, int]:
    counted = Counter(rows.label)
    return {name: counted[name] for name in names if counted[name] or not held_only}


def _mean_words(rows: Rows) -> float:
    columns = (rows.text, rows.prompt, rows.response)
    words = sum(len(value.split()) for column in columns for value in column)
    return round(words / len(rows), 2) if len(rows) else 0.0
