"""Successive halving: all settings play a few rounds, the best go on, until one plays them all.

    rungs       r, r eta, r eta^2, ..., R           rounds, R those of the job
    going on    max(1, floor(n / eta)) of the n settings of a rung, the best on validation texts

Of level settings the first goes on; one without a figure never does. One that is left alone plays
its remaining rounds in one go. A setting that goes on is resumed, so what it reaches at R is what
it would have without a stop. Every row (mode or baseline) has rungs of its own, as its best setting
is another.

Source: Jamieson and Talwalkar, AISTATS 2016 (arXiv:1502.07943), algorithm 1, with budgets by rung
as in Hyperband (Li et al., JMLR 18, 2018), section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triskel.core.sweep_file import RungRecord
from triskel.errors import JobError


@dataclass(frozen=True, kw_only=True)
class Halving:
    """How a sweep is halved.

    Attributes:
        eta: One of so many goes on.
        rungs: After which rounds; the last are those of the job.
    """

    eta: int
    rungs: tuple[int, ...]


def halving_of(eta: int, first: int | None, *, settings: int, rounds: int) -> Halving:
    """Return the rungs of a search.

    Args:
        eta: One of so many goes on from each rung.
        first: Rounds of the first rung; left out, so many that the last one has one setting left
            as nearly as whole rounds allow.
        settings: How many settings there are.
        rounds: Those of the job.

    Raises:
        JobError: There is no rung before the last.

    >>> halving_of(2, None, settings=8, rounds=8).rungs
    (1, 2, 4, 8)
    >>> halving_of(3, 2, settings=9, rounds=10).rungs
    (2, 6, 10)
    """
    if eta < 2:  # noqa: PLR2004 - all would go on
        raise JobError(f"--halving {eta} lets every setting go on; give 2 or more")
    if rounds < 2:  # noqa: PLR2004 - as above
        raise JobError(
            "--halving lets settings go on after some of the rounds, and the job has rounds = 1; "
            "give it more: --set rounds=4"
        )
    halvings, left = 1, settings // eta
    while left >= eta:
        halvings, left = halvings + 1, left // eta
    begin = first or math.ceil(rounds / eta**halvings)
    if not 0 < begin < rounds:
        raise JobError(
            f"--first-rounds {begin} must be above 0 and below the job's rounds = {rounds}, else "
            "no setting would stop early"
        )
    rungs = [begin]
    while rungs[-1] * eta < rounds:
        rungs.append(rungs[-1] * eta)
    return Halving(eta=eta, rungs=(*rungs, rounds))


def best_first(reached: Mapping[str, float | None], figure: str) -> list[str]:
    """Return the settings that have a figure, the best first, of level ones as they stand.

    Args:
        reached: Figures by name.
        figure: `accuracy`, of which more is better, or `perplexity`, of which less is.

    >>> best_first({"a": 0.5, "b": None, "c": 0.7, "d": 0.5}, "accuracy")
    ['c', 'a', 'd']
    """
    known = {n: v for n, v in reached.items() if v is not None and math.isfinite(v)}
    return sorted(known, key=lambda name: -known[name] if figure == "accuracy" else known[name])


def going_on(reached: Mapping[str, float | None], eta: int, figure: str) -> list[str]:
    """Return the settings of a rung that go on, in the order in which they stand.

    Those that have no figure count among the rung's settings.
    """
    best = best_first(reached, figure)[: max(1, len(reached) // eta)]
    return [name for name in reached if name in best]


def rung_now(
    halving: Halving, decided: Sequence[RungRecord], settings: int
) -> tuple[int, list[str] | None]:
    """Return the rounds that a row's settings play to now, and their names; None is all.

    Args:
        halving: The rungs.
        decided: Those of this row that are over.
        settings: How many settings there are.
    """
    over = [rung for rung in decided if rung["rounds"] < halving.rungs[-1]]
    if not over:
        return (halving.rungs[0] if settings > 1 else halving.rungs[-1]), None
    last, on = over[-1]["rounds"], over[-1]["on"]
    if len(on) == 1:
        return halving.rungs[-1], on
    return next(rounds for rounds in halving.rungs if rounds > last), on
