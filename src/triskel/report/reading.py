"""`result.json`, read once and typed.

A run may be interrupted, a mode skipped, a baseline left out. Reading never invents a number and
never fails over a missing one; it refuses only what is not a result at all. Schema 1 is one run,
schema 2 one a seed; early results of schema 1 have no columns, which are worked out where they can
be, and no tests, so that nothing is said about differences.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from triskel.core.mode_spec import NAME
from triskel.core.registry import MODES
from triskel.core.result_file import ONE, version_of
from triskel.errors import CheckpointError
from triskel.report.descriptions import about_in, task_in
from triskel.report.reading_rows import (
    read_about,
    read_baseline,
    read_holding,
    read_mode,
    whole_number,
)
from triskel.report.result import (
    Asked,
    Difference,
    Json,
    ModeRun,
    Result,
    Span,
    Summary,
    inner,
    items,
    mark,
    number,
)
from triskel.report.seed_mean import averaged, band

BASELINES = ("base", "local", "central", "local_equal")
FLOORS = ("base", "local", "local_equal", "central")
"""Rows beside the modes, in their order."""
COLUMNS = ("everybody", "own")
LOSSES = ("loss", "perplexity")
"""Figures of which less is better."""


def read(raw: Json) -> Result:
    """Read a result, of one run or of several seeds.

    Raises:
        CheckpointError: This is not a result of a schema that this version can read.
    """
    return _one(raw) if version_of(raw) == ONE else _several(raw)


def _several(raw: Json) -> Result:
    """Read a result of several seeds: means, their bands, and each run by itself."""
    runs = [cast("Json", one) for one in items(raw.get("runs")) if isinstance(one, Mapping)]
    if not runs:
        raise CheckpointError("result.json of several seeds holds no run; resume the comparison")
    each = tuple(_one(one) for one in runs)
    stated = [int(seed) for seed in items(raw.get("seeds")) if isinstance(seed, int)]
    seeds = stated or [int(number(one.job, "seed") or 0) for one in each]
    whole = _one(averaged(runs))
    asked = _asked(inner(raw, "request")) or whole.asked
    missing = f"{len(runs)} of {len(seeds)} seeds are there" if len(runs) < len(seeds) else ""
    return replace(
        whole,
        version=str(raw.get("triskel", whole.version)),
        modes={name: _banded(whole, mode, each) for name, mode in whole.modes.items()},
        summary=_summary(raw),
        readings=inner(raw, "readings"),
        seeds=tuple(seeds[: len(runs)]),
        runs=each,
        stopped=str(raw.get("interrupted") or "") or whole.stopped or missing,
        asked=replace(asked, seeds=tuple(seeds)) if asked else None,
    )


def _banded(whole: Result, mode: ModeRun, each: Sequence[Result]) -> ModeRun:
    """Return a mode whose rounds know how far their figure varies over seeds."""
    marks: dict[int, list[float]] = {}
    for one in each:
        for row in one.modes[mode.name].rounds if mode.name in one.modes else ():
            value = mark(whole, row.score)
            if value is not None:
                marks.setdefault(row.number, []).append(value)
    bands = {number_: band(values, log=whole.by_loss) for number_, values in marks.items()}
    rounds = tuple(replace(row, band=bands.get(row.number)) for row in mode.rounds)
    return replace(mode, rounds=rounds, kept=None)  # each seed keeps its own


def _one(raw: Json) -> Result:
    job, data = inner(raw, "job"), inner(raw, "data")
    planned = int(number(job, "rounds") or 0)
    modes, baselines = inner(raw, "modes"), inner(raw, "baselines")
    stopped, task = raw.get("interrupted"), task_in(raw)
    about = {n: read_about(about_in(raw, n)) for n in (*ordered(modes), *inner(raw, "skipped"))}
    return Result(
        version=str(raw.get("triskel", "")),
        job=job,
        environment=inner(raw, "environment"),
        classes=tuple(str(c) for c in items(data.get("classes"))),
        public=whole_number(data, "public"),
        holdings={
            c: read_holding(inner(inner(data, "clients"), c)) for c in inner(data, "clients")
        },
        baselines={n: read_baseline(n, inner(baselines, n)) for n in FLOORS if n in baselines},
        skipped={str(n): str(why) for n, why in inner(raw, "skipped").items()},
        modes={n: read_mode(n, inner(modes, n), planned, about[n]) for n in ordered(modes)},
        stopped=stopped if isinstance(stopped, str) else "interrupted" if stopped else "",
        asked=_asked(inner(raw, "request")),
        figure=str(task.get("figure", "accuracy")),
        head=str(task.get("head", "classes")),
        about=about,
        summary=_summary(raw),
        readings=inner(raw, "readings"),
        validation=inner(raw, "request").get("judge") == "validation",
    )


def ordered(modes: Iterable[object]) -> list[str]:
    """Return modes in the order of rows: built-in ones first, then others as they stand.

    What could not be a mode's name is left out.
    """
    ours = MODES.ours
    return sorted(called(modes), key=lambda m: ours.index(m) if m in ours else len(ours))


def called(modes: Iterable[object]) -> list[str]:
    """Return those of these values that could be a mode's name."""
    return [mode for mode in modes if isinstance(mode, str) and NAME.fullmatch(mode)]


def _asked(raw: Json) -> Asked | None:
    modes = tuple(called(items(raw.get("modes"))))
    baselines = tuple(name for name in items(raw.get("baselines")) if name in BASELINES)
    if not modes and not baselines:
        return None
    return Asked(
        modes=modes,
        baselines=baselines,
        strict=raw.get("strict") is True,
        drop_share=number(raw, "drop_share") or 0.0,
    )


# --- What tests say ----------------------------------------------------------------------------


def _summary(raw: Json) -> Summary | None:
    told = inner(raw, "summary")
    differences = tuple(one for one in map(_difference, items(told.get("differences"))) if one)
    if not told:
        return None
    lower, clients = told.get("figure") in LOSSES, inner(told, "clients")
    spans = {str(row): inner(told, row) for row in told}
    return Summary(
        level=number(told, "level") or 0.95,
        spans={
            row: {c: span for c in COLUMNS if (span := _span(inner(columns, c))) is not None}
            for row, columns in spans.items()
        },
        differences=differences,
        clients={str(mode): _beside_alone(inner(clients, mode), lower=lower) for mode in clients},
    )


def _beside_alone(each: Json, *, lower: bool) -> dict[str, tuple[str, float]]:
    """Return each client's verdict beside training alone, and by how much it is better."""
    return {
        str(client): (str(inner(each, client).get("verdict", "even")), -far if lower else far)
        for client in each
        if (far := number(inner(each, client), "difference")) is not None
    }


def _span(raw: Json) -> Span | None:
    mean, low, high = (number(raw, key) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    return Span(mean=mean, low=low, high=high, n=whole_number(raw, "n") or 1)


def _difference(raw: object) -> Difference | None:
    told = cast("Json", raw) if isinstance(raw, Mapping) else {}
    far = number(told, "difference")
    if far is None or not isinstance(told.get("beyond"), bool):
        return None
    low, high = number(told, "low"), number(told, "high")
    return Difference(
        left=str(told.get("left")),
        right=str(told.get("right")),
        column=str(told.get("column")),
        lower_is_better=told.get("figure") in LOSSES,
        difference=far,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        beyond=bool(told["beyond"]),
    )
