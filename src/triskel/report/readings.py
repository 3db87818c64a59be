"""Three readings of one comparison, computed from its runs: what `result.json` holds as `readings`.

    budget      the best figure of the rounds that closed within a budget, for each mode
    target      what a mode had spent at the end of its first round that reached a figure
    stragglers  the time on a link if in every round the client that computed longest took
                `slowdown` times as long

Spent are bytes (messages of all clients, both ways), the FLOPs of all clients, and the seconds of
the rounds on a stated link (`links`). The figure is that on everybody's texts: accuracy, or for
`causal` perplexity, where less is better. Over several seeds a figure is the mean (of perplexities,
e to the mean loss); it is None where a seed has none, since a mean over fewer seeds stands beside
nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from triskel.core.result_parts import Readings
from triskel.report.links import LINKS, Link, wait_of
from triskel.report.names import figure_of
from triskel.report.reading import read
from triskel.report.result import Baseline, Json, ModeRun, Result, Round, mark
from triskel.report.seed_mean import mean_perplexity

SLOWDOWN = 4.0
"""How much longer a straggler computes, unless told otherwise."""
SHARE = 0.9
"""The share of what training in one place reaches that a target asks for."""
CLOSE = 0.95
"""The share of what the best mode reaches that a target asks for."""
BUDGETS = 4
"""How many budgets a quantity gets, where its modes lie far enough apart."""
APART = 1.5
"""Budgets closer than this ratio say the same."""

_Sum = Callable[[Round], float | None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a mode stood when a round had closed: its figure, and what it had spent by then."""

    round: int
    figure: float
    spent: Mapping[str, float]


def readings(runs: Sequence[Json], *, slowdown: float = SLOWDOWN) -> Readings:
    """Return `budget`, `target` and `stragglers` of runs of one job, one run a seed.

    Args:
        runs: Results of schema 1.
        slowdown: How many times as long a straggler computes.
    """
    seen = [read(run) for run in runs]
    names = [name for name in seen[0].modes if all(name in one.modes for one in seen)]
    paths = {name: [steps(one, one.modes[name]) for one in seen] for name in names}
    paths = {name: each for name, each in paths.items() if all(each)}
    lower = seen[0].by_loss
    return {
        "budget": _by_budget(paths, lower=lower),
        "target": [_at_target(what, at, paths, lower=lower) for what, at in targets(seen)],
        "stragglers": _stragglers(seen, names, slowdown),
    }


def steps(result: Result, run: ModeRun) -> list[Step]:
    """Return where a mode stood after each of its rounds that was scored."""
    sums: dict[str, _Sum] = {"bytes": _bytes, "client_flops": _flops}
    sums |= {f"seconds:{link.name}": _seconds(link) for link in LINKS}
    spent: dict[str, float | None] = dict.fromkeys(sums, 0.0)
    found: list[Step] = []
    for row in run.rounds:
        for name, more in sums.items():
            before, now = spent[name], more(row)
            spent[name] = None if before is None or now is None else before + now
        figure = mark(result, row.score)
        if figure is not None:
            known = {name: value for name, value in spent.items() if value is not None}
            found.append(Step(round=row.number, figure=figure, spent=known))
    return found


def budgets(totals: Iterable[float], lowest: float) -> list[float]:
    """Return budgets for one quantity: the totals of the modes, rounded up, and some between.

    Args:
        totals: What each mode spent in all.
        lowest: The least that a first round spent; nothing fits below it.

    >>> budgets([37e3, 44.4e6, 380e6], 12e3)
    [37000.0, 1300000.0, 45000000.0, 380000000.0]
    """
    found: list[float] = []
    for total in sorted((_up(total) for total in totals if total > 0), reverse=True):
        if not found or found[-1] / total >= APART:
            found.append(total)
    found.reverse()
    while found and 0 < len(found) < BUDGETS:
        ends = [lowest, *found] if 0 < lowest < found[0] else found
        gaps = [(high / low, low, high) for low, high in pairwise(ends)]
        ratio, low, high = max(gaps, default=(1.0, 0.0, 0.0))
        if ratio < APART**2:
            break
        found = sorted([*found, _up(math.sqrt(low * high))])
    return found


def targets(runs: Sequence[Result]) -> list[tuple[str, float]]:
    """Return figures worth reaching, with their words; means over the runs.

    Those are a share of what training in one place reaches, a share of what the best mode reaches,
    and what clients reach alone. For `causal` a share is one of the loss that is gained over base.
    """
    first = runs[0]
    ends = [_marks([one.modes.get(name) for one in runs], runs) for name in first.modes]
    known = [end for end in ends if end is not None]
    best = (min(known) if first.by_loss else max(known)) if known else None
    central, alone, base = (
        _marks([one.baselines.get(name) for one in runs], runs)
        for name in ("central", "local", "base")
    )
    found: list[tuple[str, float]] = []
    for words, whole, share in (("centralised", central, SHARE), ("the best mode", best, CLOSE)):
        aim = _part_of(whole, share, base, causal=first.by_loss)
        if aim is not None:
            gain = "the gain of " if first.by_loss else ""
            found.append((f"{share * 100:.0f} % of {gain}{words}", aim))
    return found if alone is None else [*found, ("each client alone", alone)]


# --- Parts ------------------------------------------------------------------------------------


def _by_budget(
    paths: Mapping[str, Sequence[Sequence[Step]]], *, lower: bool
) -> dict[str, list[dict[str, Any]]]:
    over = mean_perplexity if lower else fmean
    names = dict.fromkeys(n for each in paths.values() for path in each for n in path[-1].spent)
    best = min if lower else max
    found: dict[str, list[dict[str, Any]]] = {}
    for quantity in names:
        known = {
            mode: each
            for mode, each in paths.items()
            if all(quantity in path[-1].spent for path in each)
        }
        ends = [max(path[-1].spent[quantity] for path in each) for each in known.values()]
        starts = [path[0].spent[quantity] for each in known.values() for path in each]
        table: list[dict[str, Any]] = []
        for budget in budgets(ends, min(starts)):
            row: dict[str, Any] = {"budget": budget}
            for mode, each in known.items():
                within = [[s.figure for s in p if s.spent[quantity] <= budget] for p in each]
                row[mode] = over(list(map(best, within))) if all(within) else None
            table.append(row)
        found[quantity] = table
    return found


def _at_target(
    what: str, target: float, paths: Mapping[str, Sequence[Sequence[Step]]], *, lower: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"target": target, "what": what}
    for mode, each in paths.items():
        firsts = [
            next((s for s in p if (s.figure <= target if lower else s.figure >= target)), None)
            for p in each
        ]
        reached = [step for step in firsts if step is not None]
        if len(reached) < len(firsts):
            row[mode] = None
            continue
        names = [n for n in reached[0].spent if all(n in step.spent for step in reached)]
        row[mode] = {"round": fmean(step.round for step in reached)} | {
            name: fmean(step.spent[name] for step in reached) for name in names
        }
    return row


def _stragglers(
    runs: Sequence[Result], names: Sequence[str], slowdown: float
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in names:
        row = {"slowdown": slowdown}
        for link in LINKS:
            for key, times in (("seconds", slowdown), ("plain", 1.0)):
                took = [_time(one.modes[name].rounds, link, times) for one in runs]
                known = [value for value in took if value is not None]
                if known and len(known) == len(took):
                    row[f"{key}:{link.name}"] = fmean(known)
        found[name] = row
    return found


def _time(rounds: Sequence[Round], link: Link, slowdown: float) -> float | None:
    took = [_seconds(link, slowdown)(row) for row in rounds]
    known = [value for value in took if value is not None]
    return sum(known) if known and len(known) == len(took) else None


def _seconds(link: Link, slowdown: float = 1.0) -> _Sum:
    def of(row: Round) -> float | None:
        found = wait_of(row, link, slowdown)
        return None if found is None else found.total

    return of


def _bytes(row: Round) -> float | None:
    if row.total is None:
        return None
    up, down = row.total.up.message_bytes, row.total.down.message_bytes
    return None if up is None or down is None else up + down


def _flops(row: Round) -> float | None:
    return row.total.flops if row.total else None


def _part_of(
    whole: float | None, share: float, base: float | None, *, causal: bool
) -> float | None:
    """Return a share of an accuracy, or the perplexity at a share of the loss gained over base."""
    if whole is None or not causal:
        return None if whole is None else share * whole
    if base is None or whole >= base:
        return None
    return math.exp(math.log(base) - share * (math.log(base) - math.log(whole)))


def _marks(rows: Sequence[Baseline | ModeRun | None], runs: Sequence[Result]) -> float | None:
    """Return the mean over runs of a row's figure on everybody's texts, if each run has one."""
    values = [figure_of(one, row, "everybody") for row, one in zip(rows, runs, strict=True) if row]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(runs):
        return None
    return mean_perplexity(known) if runs[0].by_loss else fmean(known)


def _up(value: float) -> float:
    """Return a value rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.2g}")
