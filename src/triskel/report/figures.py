"""The figures, as plain Plotly JSON.

Positions on category axes are numbers and the names are tick texts, so that a client called "1" or
"2024-01-01" stays a name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from triskel.core import formats
from triskel.report.cells import flops_each
from triskel.report.client_figure import per_client
from triskel.report.data_split import labels
from triskel.report.links import LINKS, wait_over
from triskel.report.markup import Figure, label
from triskel.report.names import figure_of, named
from triskel.report.result import ModeRun, Result, Round, Span, mark
from triskel.report.theme import GREYS, KEY, LINES, PATTERNS, Json, canvas, faded, titled


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
    """Return the score on everybody's texts after each round, with a band over seeds."""
    last = max([run.planned for run in result.modes.values()], default=1)
    data: list[Json] = []
    for run in result.modes.values():
        points = [
            Point(x=float(one.number), y=value, band=one.band)
            for one in run.rounds
            if (value := mark(result, one.score)) is not None
        ]
        data += [*_band(run, points), *_curve(run, points, "round %{x}")]
    xaxis = {
        "title": titled("round"),
        "range": [0.7, last + 0.3],
        "dtick": max(1, last // 10),
        "tick0": 1,
    }
    data += _floors(result, (0.7, last + 0.3)) if data else []
    return canvas(data, xaxis=xaxis, yaxis=_quality_axis(result), legend=False, height=300)


def by_bytes(result: Result) -> Figure:
    """Return the score against a client's bytes so far, with error bars over seeds."""
    data: list[Json] = []
    edges: list[float] = []
    for run in result.modes.values():
        points: list[Point] = []
        crossed = 0.0
        for one in run.rounds:
            more = _round_bytes(one)
            if more is None:
                points = []
                break
            crossed += more
            value = mark(result, one.score)
            if value is not None and crossed > 0:
                points.append(Point(x=crossed, y=value, band=one.band))
        edges += [point.x for point in points]
        data += _curve(run, points, "%{x:.3s}B", bars=True)
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


def bars(result: Result, what: str) -> Figure:
    """Return the FLOPs or the peak memory of a client, one bar per mode."""
    values: dict[str, float] = {}
    for run in result.modes.values():
        value = flops_each(run) if what == "compute" else run.total.peak_bytes
        if value is not None:
            values[run.name] = value
    written = [
        f"{formats.gflops(value)} GFLOPs" if what == "compute" else formats.size(value)
        for value in values.values()
    ]
    places = list(range(len(values)))
    bar: Json = {
        "type": "bar",
        "orientation": "h",
        "y": places,
        "x": list(values.values()),
        "marker": {"color": [result.modes[name].about.colour for name in values]},
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
            waits = {link.name: wait_over(result, run.name, link) for link in LINKS}
            found = {name: one for name, one in waits.items() if one is not None}
            seconds = [
                {"computing": one.compute, "sending": one.transfer}.get(part, one.delay)
                for one in found.values()
            ]
            if not found:
                continue
            mine: Json = {
                "y": [list(found), [run.name] * len(found)],
                "x": seconds,
                "marker": {"color": run.about.colour, "pattern": shape},
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


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place on a curve, and how far it varies over seeds."""

    x: float
    y: float
    band: Span | None = None


def _curve(run: ModeRun, points: Sequence[Point], hover: str, *, bars: bool = False) -> list[Json]:
    if not points:
        return []
    line: Json = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": run.name,
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "line": {"color": run.about.colour, "width": 2.5},
        "marker": {"symbol": run.about.marker, "size": 9},
        "hovertemplate": f"{run.name}<br>{hover}: %{{y:.4~g}}<extra></extra>",
    }
    if all(point.band for point in points):
        spans = [point.band for point in points if point.band]
        line["customdata"] = [[span.low, span.high, span.n] for span in spans]
        line["hovertemplate"] = (
            f"{run.name}<br>{hover}: %{{y:.4~g}}<br>%{{customdata[0]:.4~g}} to "
            "%{customdata[1]:.4~g}, %{customdata[2]} seeds<extra></extra>"
        )
        if bars:
            line["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [span.high - span.mean for span in spans],
                "arrayminus": [span.mean - span.low for span in spans],
                "color": run.about.colour,
                "thickness": 1.5,
                "width": 5,
            }
    return [line]


def _band(run: ModeRun, points: Sequence[Point]) -> list[Json]:
    """Return the area between the ends of the intervals over seeds."""
    spans = [(point.x, point.band) for point in points if point.band]
    if len(spans) < 2:  # noqa: PLR2004 - one point has no area
        return []
    along = [x for x, _ in spans]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": run.name,
            "x": [*along, *reversed(along)],
            "y": [s.low for _, s in spans] + [s.high for _, s in reversed(spans)],
            "fill": "toself",
            "fillcolor": faded(run.about.colour),
            "line": {"width": 0, "color": run.about.colour},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]


def _floors(result: Result, ends: tuple[float, float]) -> list[Json]:
    lines: list[Json] = []
    for base in result.baselines.values():
        value = figure_of(result, base, "everybody")
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
    rounds = [one for run in result.modes.values() for one in run.rounds]
    seen = [mark(result, one.score) for one in rounds]
    seen += [figure_of(result, base, "everybody") for base in result.baselines.values()]
    seen += [end for one in rounds if one.band for end in (one.band.low, one.band.high)]
    marks = [value for value in seen if value is not None]
    if result.by_loss:
        low, high = min(marks, default=1.0), max(marks, default=2.0)
        edge = 0.08 * (high - low) or 1.0
        span = [low - edge, high + edge]
        return {"title": titled("perplexity (lower is better)"), "range": span}
    span = [max(0.0, min(marks, default=0.0) - 0.05), min(1.0, max(marks, default=1.0) + 0.04)]
    return {"title": titled("accuracy"), "tickformat": ".2f", "range": span}


def _round_bytes(one: Round) -> float | None:
    if one.each is None:
        return None
    up, down = one.each.up.message_bytes, one.each.down.message_bytes
    return None if up is None or down is None else up + down
