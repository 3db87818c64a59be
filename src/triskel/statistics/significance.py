"""How sure a figure or a difference is, over texts and over seeds, and what may be claimed.

A difference is paired: left minus right of the same run and the same text.

| runs | figure | p | interval |
|---|---|---|---|
| one, each text right or wrong | accuracy | exact McNemar (1947) | Bonett and Price (2012) |
| one, fractions or tokens | accuracy | Student's t over texts | the same t |
| one | loss | Student's t over texts | the same t |
| several | either | t over seeds and texts (`crossed_variance`) | the same t |

With one run a claim speaks of other texts and the same seed. Student's t stands for the paired
bootstrap over texts because it keeps its level with few texts: with 10, intervals of a paired loss
hold the truth in 96 % of draws, the percentile bootstrap's in 87 % (`docs/statistics.md`, with the
coverage of everything here).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from triskel.errors import DataError
from triskel.statistics import crossed_variance
from triskel.statistics.crossed_variance import LEVEL, Columns
from triskel.statistics.outcomes import Figure, Outcomes


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and its 95 % interval.

    Attributes:
        mean: Mean of the runs' own figures.
        low: Lower bound.
        high: Upper bound; infinite for the loss of a single text, which bounds nothing.
        n: Runs, one a seed.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference, left minus right, its 95 % interval and its test.

    Attributes:
        mean: Mean over the runs.
        low: Lower bound of this one difference; 0 lies inside wherever p is 5 % or more.
        high: Upper bound; infinite both ways for the loss of a single text.
        n: Runs, one a seed.
        p: Two-sided, of this one difference.
        beyond: Whether it is beyond chance at 5 %, corrected for the number of differences where
            `judged` returned it.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float
    beyond: bool


def mean_of(runs: Sequence[Outcomes], figure: Figure) -> Interval:
    """Return a figure with its interval, over texts and, with several runs, over seeds.

    Raises:
        DataError: No run.
    """
    if not runs:
        raise DataError("a mean needs at least one run, got none: keep the outcomes of a run")
    found = crossed_variance.spread([(one.texts, one.summed(figure), one.scored) for one in runs])
    if figure == "loss":
        low, high = crossed_variance.of_size(found)
    elif len(runs) == 1 and runs[0].binary:
        low, high = crossed_variance.of_count(int(runs[0].right.sum()), found.distinct)
    else:
        low, high = crossed_variance.of_share(found)
    return Interval(mean=found.mean, low=low, high=high, n=len(runs))


def difference(left: Sequence[Outcomes], right: Sequence[Outcomes], figure: Figure) -> Difference:
    """Return the difference of two models, paired run by run and text by text.

    No p is below 2 of 2ⁿ, the least that flipping the signs of the n texts that differ can give,
    so one text alone never shows anything.

    Args:
        left: One record a run.
        right: One record a run: the same runs in the same order, on the same texts.
        figure: What to compare.

    Raises:
        DataError: No run, another number of runs, or other texts.
    """
    pairs = _paired(left, right, figure)
    found = crossed_variance.spread(pairs)
    gaps = np.concatenate([gap for _, gap, _ in pairs])
    won, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
    binary = figure == "accuracy" and all(one.binary for one in (*left, *right))
    if binary and (len(left) == 1 or won == lost == 0):
        p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
        low, high = crossed_variance.of_pairs(won, lost, found.distinct)
    else:
        extra = 2 / found.distinct**2 if binary else 0.0  # as one text more won, and one more lost
        differ = len(np.unique(np.concatenate([texts[gap != 0] for texts, gap, _ in pairs])))
        p = min(1.0, max(found.p(extra), 2.0 ** (1 - differ)))
        low, high = crossed_variance.plain(found, extra)
    if p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    if figure == "accuracy":
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(mean=found.mean, low=low, high=high, n=len(left), p=p, beyond=p < LEVEL)


def difference_if_kept(
    left: Sequence[Outcomes | None], right: Sequence[Outcomes | None], figure: Figure
) -> Difference | None:
    """Return the difference, or None where a run kept no outcomes: nothing can be claimed then.

    Raises:
        DataError: As `difference`.
    """
    mine = [one for one in left if one is not None]
    yours = [one for one in right if one is not None]
    if not left or len(mine) < len(left) or len(yours) < len(right):
        return None
    return difference(mine, yours, figure)


def holm(ps: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which of several tests stand, with any false claim in at most `level` of draws.

    From the smallest p on, the i-th of m stands while p < level / (m + 1 - i) (Holm 1979), however
    the tests depend on each other.

    >>> holm([0.06, 0.001, 0.02])
    [False, True, True]

    Raises:
        DataError: A p outside 0 to 1.
    """
    strange = [p for p in ps if not 0 <= p <= 1]
    if strange:
        raise DataError(f"p must lie between 0 and 1, got {strange[0]}")
    stands = [False] * len(ps)
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if ps[place] >= level / (len(ps) - rank):
            break
        stands[place] = True
    return stands


def judged(found: Sequence[Difference]) -> list[Difference]:
    """Return differences with `beyond` corrected for their number, as `of N clients` needs."""
    stands = holm([one.p for one in found])
    return [replace(one, beyond=is_) for one, is_ in zip(found, stands, strict=True)]


def _paired(left: Sequence[Outcomes], right: Sequence[Outcomes], figure: Figure) -> list[Columns]:
    """Return left minus right of each run, text by text."""
    if not left or len(left) != len(right):
        raise DataError(
            f"a difference needs the same runs of both, got {len(left)} and {len(right)}: compare "
            "what was run with the same seeds"
        )
    found: list[Columns] = []
    for place, (one, other) in enumerate(zip(left, right, strict=True)):
        mine, yours = np.argsort(one.texts), np.argsort(other.texts)
        texts, scored = one.texts[mine], one.scored[mine]
        if not np.array_equal(texts, other.texts[yours]):
            raise DataError(
                f"a difference needs the same texts on both sides, but those of run {place} differ "
                f"({len(mine)} and {len(yours)} texts): score both models on the same test texts"
            )
        if not np.array_equal(scored, other.scored[yours]):
            raise DataError(
                f"a difference needs as many predictions of a text on both sides, but those of run "
                f"{place} differ: score both models on the same tokens"
            )
        found.append((texts, one.summed(figure)[mine] - other.summed(figure)[yours], scored))
    return found
