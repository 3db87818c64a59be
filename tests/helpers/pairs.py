"""Fewer cases than a whole product: every pair of values of two keys stands in one of them.

Faults that need a third value beside a pair are rare (Kuhn, Wallace and Gallo, *Software fault
interactions and implications for software testing*, 2004), and a product grows with every key.
"""

from collections.abc import Hashable, Sequence
from itertools import combinations, product


def pairwise(*keys: Sequence[Hashable]) -> list[tuple[Hashable, ...]]:
    """Return rows of one value a key, so that any two values of two keys stand in a row together.

    The same values give the same rows.

    >>> pairwise("ab", "xy", (1, 2))
    [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    rows = list(product(*keys))
    left = set[tuple[tuple[int, Hashable], ...]]().union(*map(_pairs, rows))
    chosen: list[tuple[Hashable, ...]] = []
    while left:
        new = [len(left & _pairs(row)) for row in rows]
        best = rows[new.index(max(new))]
        left -= _pairs(best)
        chosen.append(best)
    return sorted(chosen, key=rows.index)


def _pairs(row: tuple[Hashable, ...]) -> set[tuple[tuple[int, Hashable], ...]]:
    return set(combinations(enumerate(row), 2))
