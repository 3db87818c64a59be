"""What one run or several seeds of it amount to: figures with intervals, and paired differences.

    summary = {"figure": ..., "level": 0.95,
               <row>: {"everybody": {"mean", "low", "high", "n"}, "own": {...},
                       "worst": {"client", "own"}},
               <mode>: ... and "better_off": {"clients", "more", "gain", "lose"},
               "differences": [{"left", "right", "column", "figure", "primary", "difference",
                                "low", "high", "p", "beyond"}],
               "clients": {<mode>: {<client>: {"difference", "low", "high", "p", "verdict"}}}}

Rows are baselines and modes. `everybody` is the common model on everybody's test texts (the mean
over clients of their own models where there is none), `own` each client's own model, where it has
one, on its own. Differences are paired over seeds and texts (`significance`). `beyond` is corrected
for the number of pairs: in each column those that a report puts into words are one family
(`primary`), all others another; a client's verdict is corrected for the clients. For `causal` the
figure of a row is perplexity, and differences are of the loss in nats a token. `worst` is the
client with the worst figure on its own texts; of all `clients`, `more` do better on them than
trained alone, `gain` of these beyond chance, and `lose` do worse beyond chance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from triskel.core.result_file import RunResult, ended_with
from triskel.core.result_parts import (
    Amounts,
    BesideAlone,
    BetterOff,
    Figures,
    Gap,
    Interval,
    LostByDropping,
    Summary,
    Worst,
)
from triskel.experiment import records
from triskel.experiment.records import COLUMNS, DROPS, Record
from triskel.numerics.metrics import LARGEST_LOG
from triskel.report.conclusions import ALIKE
from triskel.report.descriptions import task_in
from triskel.report.readings import readings
from triskel.report.seed_mean import mean_perplexity
from triskel.statistics.outcomes import Figure, Outcomes
from triskel.statistics.significance import Difference, difference, judged, mean_of
from triskel.types import ClientId

ORDER = ("base", "local", "local_equal", "central")
"""Baselines, as they stand before the modes."""
ALONE = "local"
ASKED: Mapping[str, tuple[str, ...]] = {
    "everybody": ("base", "central"),
    "own": (ALONE, "local_equal"),
}
"""The baselines that each column sets modes beside; on everybody's texts modes also meet."""
MOST = 1000
"""Up to how many clients each is tested by itself."""
LEVEL = 0.95

Runs = Sequence[Mapping[str, Record]]
"""Of each run, the record of each row."""


def amounts(results: Sequence[RunResult], folders: Sequence[Path]) -> Amounts:
    """Return what runs of one job amount to, as keys of their result.

    These are `summary`, where texts were kept, and `readings`, with what drop-outs cost.
    """
    found, told = summary(results, folders), readings(results)
    if lost := _robustness(results, folders):
        told["robustness"] = lost
    return {"readings": told} if found is None else {"summary": found, "readings": told}


def summary(results: Sequence[RunResult], folders: Sequence[Path]) -> Summary | None:
    """Return what runs of one job amount to, or None where no run kept what it got right by text.

    Args:
        results: The result of each run, one a seed.
        folders: Their run folders, in the same order.
    """
    names = [n for n in ORDER if all(n in one["baselines"] for one in results)]
    names += [n for n in results[0]["modes"] if all(n in one["modes"] for one in results)]
    modes = [n for n in names if n in results[0]["modes"]]
    runs = [_read(folder, names) for folder in folders]
    there = [n for n in names if all(n in run for run in runs)]
    if not there:
        return None
    named = str(task_in(results[0]).get("figure"))
    by_loss = named == "perplexity"
    figure: Figure = "loss" if by_loss else "accuracy"
    found: dict[str, Any] = {"figure": named, "level": LEVEL}
    for name in there:
        found[name] = {
            column: told
            for column in COLUMNS
            if (told := _mean(runs, name, column, by_loss=by_loss)) is not None
        }
        if (worst := _worst(results, name, found["figure"])) is not None:
            found[name]["worst"] = worst
    found["differences"] = [one for c in COLUMNS for one in _differences(runs, there, c, figure)]
    if ALONE in there:
        found["clients"] = {m: _clients(runs, m, figure) for m in modes if m in there}
        for mode, each in found["clients"].items():
            if each:
                found[mode]["better_off"] = _better_off(each, figure)
    return found


def _worst(results: Sequence[RunResult], row: str, figure: str) -> Worst | None:
    """Return the client whose figure on its own texts is worst; of several runs, whose mean is."""
    each: dict[ClientId, list[float]] = {}
    for one in results:
        told = one["modes"].get(row) or one["baselines"][row]
        scores = ended_with(told) if "rounds" in told else told
        for client, score in scores.get("per_client", {}).items():
            if score.get("examples"):
                each.setdefault(client, []).append(cast("Mapping[str, float]", score)[figure])
    means = {c: _over(v, figure) for c, v in each.items() if len(v) == len(results)}
    if not means:
        return None
    client = (max if figure == "perplexity" else min)(means, key=lambda c: means[c])
    return {"client": client, "own": means[client]}


def _over(values: Sequence[float], figure: str) -> float:
    """Return the mean over runs; of a perplexity, e to the mean loss."""
    if figure == "perplexity":
        return mean_perplexity(values)
    return sum(values) / len(values)


def _better_off(each: Mapping[ClientId, BesideAlone], figure: Figure) -> BetterOff:
    """Return how many clients do better than alone, and how many differ beyond chance."""
    known = [one["difference"] for one in each.values() if one["difference"] is not None]
    gains = [-one if figure == "loss" else one for one in known]
    verdicts = [one["verdict"] for one in each.values()]
    return {
        "clients": len(each),
        "more": sum(gain > ALIKE for gain in gains),
        "gain": verdicts.count("gain"),
        "lose": verdicts.count("lose"),
    }


def _robustness(results: Sequence[RunResult], folders: Sequence[Path]) -> dict[str, LostByDropping]:
    """Return what each mode reaches with drop-outs, against itself without; means over runs.

    `beyond` is corrected for the number of modes.
    """
    found: dict[str, LostByDropping] = {}
    gaps: dict[str, Difference] = {}
    asked = [one.get("robustness", {}) for one in results]
    for mode in (m for m in asked[0] if all(m in one for one in asked)):
        rows = [one[mode] for one in asked]
        told: LostByDropping = {
            "drop_share": rows[0]["drop_share"],
            "everybody": _mean_figures([one["everybody"] for one in rows]),
            "own": _mean_figures([one["own"] for one in rows]),
        }
        figure: Figure = "loss" if "perplexity" in rows[0]["everybody"] else "accuracy"
        runs = [_read(folder, (mode, f"{mode}{DROPS}")) for folder in folders]
        if all(len(run) > 1 for run in runs):
            one = _between(runs, f"{mode}{DROPS}", mode, "everybody", figure)
            if one is not None:
                gaps[mode] = one
        found[mode] = told
    for mode, one in zip(gaps, judged(list(gaps.values())), strict=True):
        told = found[mode]
        told["difference"] = _finite(one.mean)
        told["low"], told["high"] = _finite(one.low), _finite(one.high)
        told["p"], told["beyond"] = one.p, one.beyond
    return found


def _mean_figures(scores: Sequence[Figures]) -> Figures:
    """Return the mean over runs of each figure that all of them have, over as many texts."""
    told = [cast("Mapping[str, float | None]", one) for one in scores]
    found: dict[str, float | int | None] = {}
    for name in told[0]:
        values = [value for one in told if (value := one.get(name)) is not None]
        if name == "n":
            found[name] = round(fmean(values))
        else:
            found[name] = _over(values, name) if len(values) == len(told) else None
    return cast("Figures", found)


def _read(folder: Path, rows: Iterable[str]) -> dict[str, Record]:
    kept = {row: records.read(folder, row) for row in rows}
    return {row: one for row, one in kept.items() if one is not None}


def _mean(runs: Runs, row: str, column: str, *, by_loss: bool) -> Interval | None:
    """Return a row's figure in one column; None where a run did not measure it."""
    taken = [_outcomes(run[row], column, _measured(run[row], column)) for run in runs]
    known = [one for one in taken if one is not None]
    if len(known) < len(runs):
        return None
    interval = mean_of(known, "loss" if by_loss else "accuracy")
    ends = [interval.mean, interval.low, interval.high]
    if by_loss:
        ends = [math.exp(min(end, LARGEST_LOG)) if end < math.inf else end for end in ends]
    mean, low, high = map(_finite, ends)
    return {"mean": mean, "low": low, "high": high, "n": interval.n}


def _differences(runs: Runs, rows: Sequence[str], column: str, figure: Figure) -> list[Gap]:
    """Return every pair of rows in one column; `beyond` is corrected within primary and others."""
    found: list[tuple[str, str, Difference]] = []
    for left, right in combinations(rows, 2):
        one = _between(runs, left, right, column, figure)
        if one is not None:
            found.append((left, right, one))
    family = [_primary(left, right, column) for left, right, _ in found]
    told: dict[int, Difference] = {}
    for kind in (True, False):
        places = [place for place, primary in enumerate(family) if primary == kind]
        told |= zip(places, judged([found[place][2] for place in places]), strict=True)
    return [
        {
            "left": left,
            "right": right,
            "column": column,
            "figure": figure,
            "primary": family[place],
            "difference": _finite(one.mean),
            "low": _finite(one.low),
            "high": _finite(one.high),
            "p": one.p,
            "beyond": told[place].beyond,
        }
        for place, (left, right, one) in enumerate(found)
    ]


def _primary(left: str, right: str, column: str) -> bool:
    """Return whether a report puts this pair into words, in this column."""
    floors = [row for row in (left, right) if row in ORDER]
    if not floors:
        return column == "everybody"
    return len(floors) == 1 and floors[0] in ASKED[column]


def _clients(runs: Runs, mode: str, figure: Figure) -> dict[ClientId, BesideAlone]:
    """Return how each client fares on its own texts in a mode, against training alone."""
    clients = [c for c in runs[0][mode].clients if all(c in run[mode].clients for run in runs)]
    found: dict[ClientId, Difference] = {}
    for client in clients if len(clients) <= MOST else ():
        one = _between(runs, mode, ALONE, "own", figure, client=client)
        if one is not None:
            found[client] = one
    told = dict(zip(found, judged(list(found.values())), strict=True))
    return {
        client: {
            "difference": _finite(one.mean),
            "low": _finite(one.low),
            "high": _finite(one.high),
            "p": one.p,
            "verdict": _verdict(one, figure),
        }
        for client, one in told.items()
    }


def _finite(end: float) -> float | None:
    """Return a bound as JSON has it: one that bounds nothing is null."""
    return end if math.isfinite(end) else None


def _verdict(one: Difference, figure: Figure) -> str:
    if not one.beyond:
        return "even"
    better = one.mean > 0 if figure == "accuracy" else one.mean < 0
    return "gain" if better else "lose"


def _between(
    runs: Runs,
    left: str,
    right: str,
    column: str,
    figure: Figure,
    *,
    client: ClientId | None = None,
) -> Difference | None:
    """Return left minus right on the texts that both were measured on; None where there are none.

    `client` narrows them to one client's.
    """
    ours: list[Outcomes] = []
    theirs: list[Outcomes] = []
    for run in runs:
        mine, yours = run[left], run[right]
        both = _measured(mine, column) & _measured(yours, column)
        if client is not None:
            both &= mine.of(client)
        pair = _outcomes(mine, column, both), _outcomes(yours, column, both)
        if pair[0] is None or pair[1] is None:
            return None
        ours.append(pair[0])
        theirs.append(pair[1])
    return difference(ours, theirs, figure)


def _measured(record: Record, column: str) -> Tensor:
    """Return which texts were measured, and to a number."""
    one = record.columns[column]
    return (one.scored > 0) & one.loss.isfinite() & one.right.isfinite()


def _outcomes(record: Record, column: str, which: Tensor) -> Outcomes | None:
    if not bool(which.any()):
        return None
    one = record.columns[column].at(which)
    return Outcomes(
        texts=record.texts[which].numpy(),
        right=one.right.numpy(),
        loss=one.loss.numpy(),
        scored=one.scored.to(torch.float64).numpy(),
    )
