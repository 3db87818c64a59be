"""Several seeds as one: the mean of their results, and how far a round's figure varies over them.

A number is the mean over the seeds that have it; a perplexity is e to the mean loss. What is no
number (names, reasons) is the first seed's, and lists are taken place by place, so that round 3 is
the mean of third rounds. Where a client was scored on no text, a seed says nothing of it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, cast

from triskel.report.result import Json, Span

LEVEL = 0.95
SCORES = ("accuracy", "macro_f1", "loss", "perplexity")
LARGEST_LOG = 700.0
"""e to more is more than a number can hold."""


def averaged(runs: Sequence[Json]) -> dict[str, Any]:
    """Return one result in which scores and costs are the means over these.

    Job, data and environment are those of the first. A baseline that some seeds lack is left out
    and named under `skipped`: a mean over fewer seeds stands beside nothing.

    >>> averaged([{"modes": {"params": {"loss": 1.0}}}, {"modes": {"params": {"loss": 2.0}}}])
    {'modes': {'params': {'loss': 1.5}}}
    """
    first = dict(runs[0])
    for part in ("baselines", "skipped", "modes"):
        held = [run[part] for run in runs if isinstance(run.get(part), Mapping)]
        if held:
            first[part] = _mean(held)
    floors = [cast("Json", run.get("baselines", {})) for run in runs]
    if len({one["base"].get("what") for one in floors if "base" in one}) > 1:
        first["baselines"]["base"]["what"] = "majority class"  # it varies with the texts
    for name in [n for n in first.get("baselines", {}) if any(n not in one for one in floors)]:
        del first["baselines"][name]
        there, told = sum(name in one for one in floors), first.get("skipped", {})
        why = f"only {there} of {len(runs)} seeds have it"
        why += f"; in the others, {told[name]}" if name in told else ""
        first["skipped"] = {**told, name: why}
    stopped = next((run["interrupted"] for run in runs if run.get("interrupted")), None)
    return first if stopped is None else {**first, "interrupted": stopped}


def band(values: Sequence[float], *, log: bool = False) -> Span | None:
    """Return the mean over seeds with its 95 % interval by Student's t, None for one seed.

    With `log`, mean and interval are those of the logarithms, as perplexities have them.

    >>> found = band([0.6, 0.7, 0.65])
    >>> round(found.mean, 3), round(found.half, 3)
    (0.65, 0.124)
    """
    many = len(values)
    if many < 2:  # noqa: PLR2004 - one value has no spread
        return None
    from scipy.special import stdtrit  # noqa: PLC0415 - help and refusals come sooner without

    taken = [math.log(max(value, 1.0)) for value in values] if log else values
    wide = float(stdtrit(many - 1, (1 + LEVEL) / 2)) * stdev(taken) / math.sqrt(many)
    middle = fmean(taken)
    ends = [middle, middle - wide, middle + wide]
    if log:
        ends = [math.exp(min(end, LARGEST_LOG)) for end in ends]
    return Span(mean=ends[0], low=ends[1], high=ends[2], n=many)


def mean_perplexity(values: Sequence[float]) -> float:
    """Return e to the mean loss of perplexities, which is their geometric mean.

    >>> round(mean_perplexity([2.0, 8.0]), 9)
    4.0
    """
    return math.exp(fmean(math.log(max(value, 1.0)) for value in values))


def _mean(values: Sequence[object], name: str = "") -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the mean of JSON values of one place, by the name that it has there."""
    first = values[0]
    if isinstance(first, Mapping):
        tables = [cast("Json", one) for one in values if isinstance(one, Mapping)]
        names = dict.fromkeys(name for table in tables for name in table)
        scored = [table for table in tables if table.get("examples") != 0] or tables
        return {
            n: _mean([one[n] for one in (scored if n in SCORES else tables) if n in one], n)
            for n in names
        }
    if isinstance(first, list):
        lists = [cast("list[object]", one) for one in values if isinstance(one, list)]
        longest = max(map(len, lists))
        return [_mean([one[i] for one in lists if i < len(one)]) for i in range(longest)]
    numbers = [
        float(one)
        for one in values
        if isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
    ]
    if not numbers:
        return first
    return mean_perplexity(numbers) if name == "perplexity" else fmean(numbers)
