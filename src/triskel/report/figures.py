"""The figures, as plain Plotly JSON.

Positions on category axes are numbers and the names are tick texts, so that a client called "1" or
"2024-01-01" stays a name.
"""

import math
from collections.abc import Mapping, Sequence

from triskel.report import units
from triskel.report.holdings import labels
from triskel.report.links import LINKS, wait
from triskel.report.marks import (
    COLOURS,
    GREYS,
    KEY,
    LINES,
    MARKERS,
    PATTERNS,
    Json,
    canvas,
    titled,
)
from triskel.report.markup import Figure, label
from triskel.report.result import Baseline, ModeRun, Result, Round, Score, final
from triskel.report.tables import flops_each
from triskel.report.words import NAMES, named

BARS = 12
"""Up to how many clients have bars of their own; beyond, the spread is drawn."""
DOTS = 200
"""Up to how many clients have a dot each in the spread; beyond, only the ends have."""
ENDS = 10
"""Dots at either end."""


def draw(result: Result) -> dict[str, Figure]:
    """Return every figure that the result has numbers for, by name."""
    drawn = {
        "by-round": by_round(result),
        "by-bytes": by_bytes(result),
        "per-client": per_client(result),
        "compute": bars(result, "compute"),
        "memory": bars(result, "memory"),
        "links": link_times(result),
        "labels": labels(result),
    }
    return {name: figure for name, figure in drawn.items() if figure["data"]}


def by_round(result: Result) -> Figure:
    """Return the score after each round."""
    last = max([run.planned for run in result.modes.values()], default=1)
    data: list[Json] = []
    for run in result.modes.values():
        points = [(float(one.number), _mark(result, one.score)) for one in run.rounds]
        data += _curve(run.name, points, "round %{x}")
    xaxis = {
        "title": titled("round"),
        "range": [0.7, last + 0.3],
        "dtick": max(1, last // 10),
        "tick0": 1,
    }
    data += _floors(result, (0.7, last + 0.3)) if data else []
    return canvas(data, xaxis=xaxis, yaxis=_quality_axis(result), legend=False, height=300)


def by_bytes(result: Result) -> Figure:
    """Return the score against the bytes a client has sent and received so far."""
    data: list[Json] = []
    edges: list[float] = []
    for run in result.modes.values():
        points: list[tuple[float, float | None]] = []
        crossed = 0.0
        for one in run.rounds:
            more = _round_bytes(one)
            if more is None:
                points = []
                break
            crossed += more
            points.append((crossed, _mark(result, one.score)))
        points = [(x, y) for x, y in points if x > 0]
        edges += [x for x, _ in points]
        data += _curve(run.name, points, "%{x:.3s}B")
    if not data:
        return canvas([])
    low, high = _decades(min(edges), max(edges))
    data += _floors(result, (low, high))
    xaxis = {
        "title": titled("bytes per client so far, up and down"),
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickformat": "~s",
        "ticksuffix": "B",
        "dtick": 1,
    }
    return canvas(data, xaxis=xaxis, yaxis=_quality_axis(result), legend=False, height=300)


def per_client(result: Result) -> Figure:
    """Return each client's accuracy, alone and in each mode; the spread when they are many."""
    alone = result.baselines.get("local")
    series: list[tuple[str, str, dict[str, float]]] = []
    if alone is not None:
        series.append((NAMES["local"], GREYS["local"], _accuracies(alone)))
    series += [(run.name, COLOURS[run.name], _accuracies(run)) for run in result.modes.values()]
    series = [one for one in series if one[2]]
    clients = [c for c in result.clients if any(c in values for _, _, values in series)]
    yaxis = {"title": titled("accuracy"), "range": [0, 1], "tickformat": ".1f"}
    if len(clients) > BARS:
        spread = [trace for one in series for trace in _spread(*one)]
        return canvas(
            spread, xaxis={"type": "category", "showgrid": False}, yaxis=yaxis, legend=False
        )
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [clients.index(c) for c in values],
            "y": list(values.values()),
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        }
        for name, colour, values in series
    ]
    xaxis = {
        "showgrid": False,
        "tickvals": list(range(len(clients))),
        "ticktext": [label(c) for c in clients],
    }
    return canvas(data, xaxis=xaxis, yaxis=yaxis, barmode="group", bargap=0.25)


def bars(result: Result, what: str) -> Figure:
    """Return the FLOPs or the peak memory of a client, one bar per mode."""
    values: dict[str, float] = {}
    for run in result.modes.values():
        value = flops_each(run) if what == "compute" else run.total.peak_bytes
        if value is not None:
            values[run.name] = value
    written = [
        f"{units.gflops(value)} GFLOPs" if what == "compute" else units.size(value)
        for value in values.values()
    ]
    places = list(range(len(values)))
    bar: Json = {
        "type": "bar",
        "orientation": "h",
        "y": places,
        "x": list(values.values()),
        "marker": {"color": [COLOURS[name] for name in values]},
        "hovertext": written,
        "hoverinfo": "text",
    }
    named_values = zip(values, written, strict=True)
    return canvas(
        [bar] if values else [],
        xaxis={"rangemode": "tozero", "showticklabels": False, "showgrid": False},
        yaxis={
            "tickvals": places,
            "ticktext": [f"{name}<br>{value}" for name, value in named_values],
            "range": [len(values) - 0.5, -0.5],
            "showgrid": False,
        },
        legend=False,
        height=24 + 48 * len(values),
        bargap=0.25,
    )


def link_times(result: Result) -> Figure:
    """Return the time on each stated link, split into computing, sending and waiting."""
    data: list[Json] = []
    for part, pattern in PATTERNS.items():
        shape: Json = {
            "shape": pattern,
            "fillmode": "overlay",
            "fgcolor": "#ffffff",
            "solidity": 0.4,
            "size": 6,
        }
        bar: Json = {"type": "bar", "orientation": "h", "name": part, "legendgroup": part}
        for run in result.modes.values():
            found = {link.name: one for link in LINKS if (one := wait(run, link)) is not None}
            seconds = [
                {"computing": one.compute, "sending": one.transfer}.get(part, one.delay)
                for one in found.values()
            ]
            if not found:
                continue
            mine: Json = {
                "y": [list(found), [run.name] * len(found)],
                "x": seconds,
                "marker": {"color": COLOURS[run.name], "pattern": shape},
                "showlegend": False,
                "hovertemplate": f"%{{y}}<br>{part} %{{x:,.3~g}} s<extra></extra>",
            }
            if not any(other["name"] == part for other in data):
                key = {"y": [[LINKS[0].name], [run.name]], "x": [0], "hoverinfo": "skip"}
                data.append(bar | key | {"marker": {"color": KEY, "pattern": shape}})
            data.append(bar | mine)
    return canvas(
        data,
        xaxis={"title": titled("seconds"), "rangemode": "tozero", "nticks": 6},
        yaxis={"type": "multicategory", "showgrid": False, "autorange": "reversed"},
        barmode="stack",
        height=110 + 30 * len(LINKS) * len(result.modes),
    )


# --- Parts ------------------------------------------------------------------------------------


def _mark(result: Result, got: Score) -> float | None:
    return got.perplexity if result.causal else got.accuracy


def _curve(name: str, points: list[tuple[float, float | None]], hover: str) -> list[Json]:
    kept = [(x, y) for x, y in points if y is not None]
    if not kept:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [x for x, _ in kept],
            "y": [y for _, y in kept],
            "line": {"color": COLOURS[name], "width": 2.5},
            "marker": {"symbol": MARKERS[name], "size": 9},
            "hovertemplate": f"{name}<br>{hover}: %{{y:.4~g}}<extra></extra>",
        }
    ]


def _floors(result: Result, ends: tuple[float, float]) -> list[Json]:
    lines: list[Json] = []
    for base in result.baselines.values():
        value = _mark(result, final(base))
        if value is None:
            continue
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label(named(base), 40),
                "x": list(ends),
                "y": [value, value],
                "line": {"color": GREYS[base.name], "width": 1.5, "dash": LINES[base.name]},
                "hoverinfo": "name+y",
            }
        )
    return lines


def _decades(low: float, high: float) -> tuple[float, float]:
    """Return ends around the points that hold a whole power of ten, so that one is labelled."""
    low, high = low / 2, high * 2
    if math.floor(math.log10(high)) > math.floor(math.log10(low)):
        return low, high
    return 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))


def _quality_axis(result: Result) -> Json:
    seen = [_mark(result, one.score) for run in result.modes.values() for one in run.rounds]
    seen += [_mark(result, final(base)) for base in result.baselines.values()]
    marks = [mark for mark in seen if mark is not None]
    if result.causal:
        low, high = min(marks, default=1.0), max(marks, default=2.0)
        edge = 0.08 * (high - low) or 1.0
        span = [low - edge, high + edge]
        return {"title": titled("perplexity (lower is better)"), "range": span}
    span = [max(0.0, min(marks, default=0.0) - 0.05), min(1.0, max(marks, default=1.0) + 0.04)]
    return {"title": titled("accuracy"), "tickformat": ".2f", "range": span}


def _accuracies(run: Baseline | ModeRun) -> dict[str, float]:
    return {c: s.accuracy for c, s in run.per_client.items() if s.accuracy is not None}


def _spread(name: str, colour: str, values: Mapping[str, float]) -> list[Json]:
    """Return a box with every client's dot, or where they are many, the ends' dots only."""
    box: Json = {
        "type": "box",
        "name": name,
        "y": list(values.values()),
        "text": [label(c) for c in values],
        "boxpoints": "all",
        "jitter": 0.6,
        "pointpos": 0,
        "marker": {"color": colour, "size": 4, "opacity": 0.55},
        "line": {"color": colour},
        "hovertemplate": "%{text}: %{y:.3f}<extra></extra>",
    }
    if len(values) <= DOTS:
        return [box]
    order = sorted(values, key=lambda c: values[c])
    low, *quarters, high = _quantiles([values[c] for c in order])
    shape: Json = {
        "type": "box",
        "name": name,
        "x": [name],
        "lowerfence": [low],
        "q1": [quarters[0]],
        "median": [quarters[1]],
        "q3": [quarters[2]],
        "upperfence": [high],
        "marker": {"color": colour},
        "line": {"color": colour},
        "hoverinfo": "y",
    }
    ends = [*order[:ENDS], *order[-ENDS:]]
    dots: Json = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [name] * len(ends),
        "y": [values[c] for c in ends],
        "text": [label(c) for c in ends],
        "marker": {"color": colour, "size": 5, "opacity": 0.55},
        "hovertemplate": "%{text}: %{y:.3f}<extra></extra>",
    }
    return [shape, dots]


def _quantiles(ordered: Sequence[float]) -> list[float]:
    """Return what 5, 25, 50, 75 and 95 % of the values do not exceed."""
    last = len(ordered) - 1
    return [ordered[round(share * last)] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]


def _round_bytes(one: Round) -> float | None:
    if one.each is None:
        return None
    up, down = one.each.up.message_bytes, one.each.down.message_bytes
    return None if up is None or down is None else up + down
