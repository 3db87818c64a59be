r"""Who holds which rows: six stated definitions of non-IID text.

With n rows, K clients, and rows of class (or length bin) y shuffled by a stream of their own:

    natural     client = value of the column `clients.by`, or the file the row came from
    iid         all rows shuffled, cut into K pieces whose sizes differ by at most one
    dirichlet   p_y ~ Dir(alpha 1_K) for every label y; client k gets p_{y,k} of y's rows
    quantity    p ~ Dir(alpha 1_K); all rows shuffled; client k gets p_k of them
    shards      rows sorted by label, cut into K S pieces; each client gets S random pieces
    length      as dirichlet, with y one of 10 equally filled bins of the text's characters

Proportions become rows by cutting at round(n_y (p_1 + ... + p_k)), so every row has exactly one
client. Test rows are dealt by the same p (for `shards`: by each client's share of y's training
rows), so that a client's test share follows its training share. A client that the draw leaves
without training rows is given one by the client that has most. Dirichlet: McMahan et al.'s
shards and Hsu, Qi and Brown (arXiv:1909.06335); length: SplitFT's length-based Dirichlet.
"""

import bisect
import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from triskel.config.job import Job
from triskel.data.holdout import shuffled
from triskel.data.rows import Rows
from triskel.errors import DataError
from triskel.numerics.rng import derive
from triskel.types import ClientId

LENGTH_BINS = 10
LONGEST_ID = 64

Deal = list[list[int]]
"""Row numbers of each client, clients in order."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one client holds, as row numbers in increasing order."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def partition(job: Job, train: Rows, test: Rows) -> Mapping[ClientId, Share]:
    """Deal training and test rows to clients; every row goes to exactly one.

    Raises:
        DataError: A column that the partition needs is not there.
    """
    kind, count = job.partition, job.clients.count
    if kind == "natural":
        return _natural(job, train, test)
    if kind in {"dirichlet", "shards"} and not train.label:
        raise DataError(f'clients.partition "{kind}" needs labels; name their column as data.label')
    if kind == "iid":
        even = [1 / count] * count
        mine, theirs = (_cut(_mixed(job, rows, i), even) for i, rows in enumerate((train, test)))
    elif kind == "quantity":
        p = dirichlet(job.clients.alpha, count, job.seed, "partition", kind)
        mine, theirs = (_cut(_mixed(job, rows, i), p) for i, rows in enumerate((train, test)))
    elif kind == "shards":
        mine, theirs = _shards(job, train, test)
    else:
        mine, theirs = _by_kind(job, train, test)
    _mend(mine)
    return {
        name: Share(train=tuple(sorted(a)), test=tuple(sorted(b)))
        for name, a, b in zip(client_names(count), mine, theirs, strict=True)
    }


def client_names(count: int) -> list[ClientId]:
    """Return names whose alphabetical order is their number's.

    >>> client_names(3)
    ['client-01', 'client-02', 'client-03']
    """
    digits = max(2, len(str(count)))
    return [f"client-{number:0{digits}d}" for number in range(1, count + 1)]


def slugs(values: Iterable[str]) -> dict[str, ClientId]:
    """Return a safe client id for every value: letters, digits, `.`, `_` and `-`.

    Values that would share an id, upper and lower case alike, get a suffix made of their own bytes.

    >>> slugs(["São Paulo", "ward 3/b"])
    {'São Paulo': 'Sao-Paulo', 'ward 3/b': 'ward-3-b'}
    """
    plain: dict[str, str] = {}
    for value in sorted(set(values)):
        ascii_only = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-._")[:LONGEST_ID]
        plain[value] = slug or "client"
    taken = [slug.casefold() for slug in plain.values()]
    return {
        value: slug
        if taken.count(slug.casefold()) == 1 and slug != "client"
        else f"{slug}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        for value, slug in plain.items()
    }


def dirichlet(alpha: float, count: int, seed: int, *path: str | int) -> list[float]:
    """Draw `count` proportions from Dir(alpha, ..., alpha).

    Gamma(alpha) is drawn as Gamma(alpha + 1) U^(1/alpha), in logarithms, so that a very small
    alpha gives one client everything instead of dividing zero by zero.
    """
    source = np.random.default_rng(derive(seed, *path))
    gamma, uniform = source.standard_gamma(alpha + 1, count), 1 - source.random(count)
    logs = np.log(gamma) + np.log(uniform) / alpha
    mass = np.exp(logs - logs.max())
    return [float(value) for value in mass / mass.sum()]


def _natural(job: Job, train: Rows, test: Rows) -> Mapping[ClientId, Share]:
    if not train.group:
        raise DataError(
            'clients.partition "natural" needs a column that says whose a row is; name it as '
            "clients.by"
        )
    mine = {group[0]: members for group, members in train.strata("group").items()}
    if test.group:
        theirs = {group[0]: members for group, members in test.strata("group").items()}
    else:
        even = _cut(_mixed(job, test, 1), [1 / len(mine)] * len(mine))
        theirs = dict(zip(mine, even, strict=True))
    ids = slugs(mine | theirs)
    return {
        ids[group]: Share(
            train=tuple(mine.get(group, ())), test=tuple(sorted(theirs.get(group, ())))
        )
        for group in sorted(ids, key=lambda group: ids[group])
    }


def _mixed(job: Job, rows: Rows, part: int) -> list[int]:
    return shuffled(range(len(rows)), job.seed, "partition", job.partition, ("train", "test")[part])


def _cut(members: Sequence[int], proportions: Sequence[float]) -> Deal:
    ends = [round(len(members) * mass) for mass in itertools.accumulate(proportions)]
    ends[-1] = len(members)
    return [list(members[low:high]) for low, high in itertools.pairwise([0, *ends])]


def _by_kind(job: Job, train: Rows, test: Rows) -> tuple[Deal, Deal]:
    """Deal rows of each kind, label or length bin, by proportions of its own."""
    if job.partition == "length":
        edges = _edges(_characters(train))
        kinds = [_numbers(bisect.bisect(edges, n) for n in _characters(r)) for r in (train, test)]
    else:
        kinds = [_numbers(rows.label) for rows in (train, test)]
    count = job.clients.count
    deals: tuple[Deal, Deal] = ([[] for _ in range(count)], [[] for _ in range(count)])
    for kind in sorted({*kinds[0], *kinds[1]}):
        path = ("partition", job.partition, kind)
        p = dirichlet(job.clients.alpha, count, job.seed, *path)
        for name, deal, members in zip(("train", "test"), deals, kinds, strict=True):
            _deal(deal, shuffled(members.get(kind, ()), job.seed, *path, name), p)
    return deals


def _deal(deal: Deal, members: Sequence[int], proportions: Sequence[float]) -> None:
    """Add a piece of `members` to what each client holds."""
    for held, piece in zip(deal, _cut(members, proportions), strict=True):
        held.extend(piece)


def _numbers(kinds: Iterable[str | int]) -> dict[str, list[int]]:
    """Return row numbers by kind."""
    found: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        found.setdefault(str(kind), []).append(number)
    return found


def _characters(rows: Rows) -> list[int]:
    columns = [column for column in (rows.text, rows.prompt, rows.response) if column]
    return [sum(map(len, parts)) for parts in zip(*columns, strict=True)]


def _edges(lengths: Sequence[int]) -> list[int]:
    ordered = sorted(lengths)
    return [ordered[len(ordered) * b // LENGTH_BINS] for b in range(1, LENGTH_BINS)]


def _shards(job: Job, train: Rows, test: Rows) -> tuple[Deal, Deal]:
    count, each = job.clients.count, job.clients.shards
    path = ("partition", "shards")
    line = [
        row
        for (label,), members in train.strata("label").items()
        for row in shuffled(members, job.seed, *path, label, "train")
    ]
    pieces = _cut(line, [1 / (count * each)] * (count * each))
    order = shuffled(range(len(pieces)), job.seed, *path)
    mine: Deal = [
        [row for piece in order[k * each : (k + 1) * each] for row in pieces[piece]]
        for k in range(count)
    ]
    owner = {row: k for k, held in enumerate(mine) for row in held}
    theirs: Deal = [[] for _ in range(count)]
    known = _numbers(train.label)
    for label, members in sorted(_numbers(test.label).items()):
        held_by = Counter(owner[row] for row in known.get(label, ()))
        total = held_by.total()
        p = [held_by[k] / total if total else 1 / count for k in range(count)]
        _deal(theirs, shuffled(members, job.seed, *path, label, "test"), p)
    return mine, theirs


def _mend(deal: Deal) -> None:
    """Give every client without rows one row of the client that has most, while there are any."""
    for held in deal:
        if not held and len(richest := max(deal, key=len)) > 1:
            held.append(richest.pop())
