r"""Rows set aside before anyone owns the rest: a test share and a public set.

A test share of `s` takes round(s n_g) rows of each group g (a silo; one group when there are
none), at least one and never all, spread over the group's labels by largest remainder:

    t_{g,y} ~ s n_{g,y}    with    sum_y t_{g,y} = round(s n_g)    and    t_{g,y} < n_{g,y}

A validation share does the same to the training rows of every client, once they are dealt; a client
that holds no label twice gives none.

A public set of P rows takes as evenly as possible from every group, P / G each, and leaves each
group at least one row. Labels play no part in it. Which rows go is decided by streams named after
group and label, so that a change in one silo moves no row of another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from triskel.data.rows import Rows
from triskel.errors import DataError
from triskel.numerics.rng import stream


def permutation(count: int, source: torch.Generator) -> list[int]:
    """Return the numbers below `count` in random order."""
    order = cast("Any", torch.randperm(count, generator=source))
    return cast("list[int]", order.tolist())


def shuffled(members: Sequence[int], seed: int, *path: str | int) -> list[int]:
    """Return `members` in the random order named by `path` under `seed`."""
    return [members[i] for i in permutation(len(members), stream(seed, *path))]


def apportion(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Return whole numbers that add up to `total`, near proportional to `weights`, within `caps`.

    >>> apportion(7, [1.0, 1.0, 1.0], [9, 1, 9])
    [3, 1, 3]

    Raises:
        ValueError: The caps leave no room for `total`.
    """
    if total > sum(caps):
        raise ValueError(f"caps must leave room for {total}, got {sum(caps)}")
    counts = [0] * len(caps)
    free = [i for i, cap in enumerate(caps) if cap > 0]
    while (left := total - sum(counts)) > 0:
        mass = sum(weights[i] for i in free) or 1.0
        ideal = {i: left * weights[i] / mass for i in free}
        for i in free:
            counts[i] += min(int(ideal[i]), caps[i] - counts[i])
        if total - sum(counts) == left:
            free.sort(key=lambda i: -ideal[i])
            for i in free[:left]:
                counts[i] += 1
        free = [i for i in sorted(free) if counts[i] < caps[i]]
    return counts


def hold_out(rows: Rows, *, share: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into training and test rows, group by group and label by label.

    Raises:
        DataError: No group has two rows of one label, so nothing can be held out.
    """
    chosen = _spread(rows, share=share, seed=seed, name="holdout")
    if not chosen and 2 < len(rows) == len(set(rows.label)):  # noqa: PLR2004 - not for want of rows
        raise DataError(
            f"all {len(rows):,} rows have labels of their own ({rows.label[0]!r}, "
            f"{rows.label[1]!r}, ...), so that none can be held out to test with; name a column of "
            "classes as data.label"
        )
    if not chosen:
        raise DataError(
            f"{len(rows)} rows are too few to hold out a test share; name a test file as data.test"
        )
    return _parted(rows, chosen)


def validation_from(rows: Rows, *, share: float, seed: int, client: str) -> tuple[Rows, Rows]:
    """Split one client's training rows into those it trains on and those settings are chosen by.

    Its streams are named after the client and the label, so that what one client holds moves no
    row of another, nor any test or public row. A share of 0 holds out none.
    """
    if not share:
        return rows, rows.take(())
    own = replace(rows, group=(client,) * len(rows))
    return _parted(rows, _spread(own, share=share, seed=seed, name="validation"))


def _spread(rows: Rows, *, share: float, seed: int, name: str) -> list[int]:
    """Return the rows that a share takes of every group, spread over the group's labels."""
    chosen: list[int] = []
    strata = rows.strata("group", "label")
    for group in dict.fromkeys(name[0] for name in strata):
        labels = {key: rows_of for key, rows_of in strata.items() if key[0] == group}
        sizes = [len(members) for members in labels.values()]
        caps = [size - 1 for size in sizes]
        want = min(max(round(share * sum(sizes)), 1), sum(caps))
        for (key, members), count in zip(
            labels.items(), apportion(want, [float(s) for s in sizes], caps), strict=True
        ):
            chosen += shuffled(members, seed, name, *key)[:count]
    return chosen


def public_from(rows: Rows, *, count: int, seed: int, keep: int) -> tuple[Rows, Rows]:
    """Split rows into training rows and `count` public ones, taken evenly from every group.

    Args:
        rows: The training rows.
        count: Size of the public set.
        seed: The job's seed.
        keep: Rows that must remain for training, beside one for every group.

    Raises:
        DataError: Too few rows would remain.
    """
    strata = rows.strata("group")
    caps = [len(members) - 1 for members in strata.values()]
    room = min(sum(caps), len(rows) - keep)
    if count > room:
        raise DataError(
            f"data.public_count asks for {count} texts and {len(rows)} training rows can spare "
            f"{max(room, 0)}; lower it, or name a file of texts as data.public"
        )
    chosen: list[int] = []
    for (key, members), number in zip(
        strata.items(), apportion(count, [1.0] * len(caps), caps), strict=True
    ):
        chosen += shuffled(members, seed, "public", *key)[:number]
    return _parted(rows, chosen)


def _parted(rows: Rows, chosen: Sequence[int]) -> tuple[Rows, Rows]:
    aside = set(chosen)
    rest = [i for i in range(len(rows)) if i not in aside]
    return rows.take(rest), rows.take(sorted(aside))
