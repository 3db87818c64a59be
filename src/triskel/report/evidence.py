"""What the tests of a result allow to be said: above, level or below, and never more.

`summary.differences` has, for every pair of rows and each column, the difference and whether it is
beyond chance after correction for the number of pairs. A pair that is not in it was not tested, and
nothing is said about it.
"""

from collections.abc import Sequence
from typing import Literal

from triskel.report.names import figure_of
from triskel.report.result import ModeRun, Result

Standing = Literal["above", "level", "below"]


def stands(result: Result, row: str, other: str, column: str) -> Standing | None:
    """Return where a row stands beside another on a column, or None where that was not tested.

    `above` is better beyond chance, also where less is better (a loss).
    """
    if result.summary is None:
        return None
    for one in result.summary.differences:
        if one.column == column and {one.left, one.right} == {row, other}:
            if not one.beyond or one.difference == 0:
                return "level"
            ahead = one.difference > 0 if one.left == row else one.difference < 0
            return "above" if ahead != one.lower_is_better else "below"
    return None


def ranked(result: Result) -> list[ModeRun]:
    """Return the modes that have a figure on everybody's texts, best first."""
    scored = [
        (value, run)
        for run in result.modes.values()
        if (value := figure_of(result, run, "everybody")) is not None
    ]
    scored.sort(key=lambda pair: pair[0] if result.by_loss else -pair[0])
    return [run for _, run in scored]


def leaders(result: Result, order: Sequence[ModeRun]) -> list[ModeRun]:
    """Return the best mode and those that are level with it and with each other.

    Tests are paired, so that a mode may be level with the best while one between is not: whoever is
    level with the best keeps it from coming first.
    """
    found = list(order[:1])
    for run in order[1:]:
        told = [stands(result, run.name, other.name, "everybody") for other in found]
        if all(one == "level" for one in told):
            found.append(run)
    return found


def tested(result: Result, order: Sequence[ModeRun]) -> bool:
    """Return whether every pair of these modes was tested on everybody's texts."""
    names = [run.name for run in order]
    return all(
        stands(result, a, b, "everybody") is not None
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )
