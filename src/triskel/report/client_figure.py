"""The figure of each client's accuracy (or perplexity): bars for a few, the spread of many."""

from collections.abc import Mapping, Sequence

from triskel.report.markup import Figure, label
from triskel.report.names import NAMES, quality
from triskel.report.result import Baseline, ModeRun, Result, mark
from triskel.report.theme import GREYS, Json, canvas, titled

BARS = 12
"""Up to how many clients have bars of their own; beyond, the spread is drawn."""
DOTS = 200
"""Up to how many clients have a dot each in the spread; beyond, only the ends have."""
ENDS = 10
"""Dots at either end."""


def per_client(result: Result) -> Figure:
    """Return each client's figure, alone and in each mode; the spread when they are many."""
    alone = result.baselines.get("local")
    series: list[tuple[str, str, dict[str, float]]] = []
    if alone is not None:
        series.append((NAMES["local"], GREYS["local"], _figures(result, alone)))
    series += [(run.name, run.about.colour, _figures(result, run)) for run in result.modes.values()]
    series = [one for one in series if one[2]]
    clients = [c for c in result.clients if any(c in values for _, _, values in series)]
    yaxis: Json = {"title": titled(f"{quality(result)}, own texts")}
    yaxis |= {"rangemode": "tozero"} if result.by_loss else {"range": [0, 1], "tickformat": ".1f"}
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


def _figures(result: Result, run: Baseline | ModeRun) -> dict[str, float]:
    return {c: value for c, s in run.per_client.items() if (value := mark(result, s)) is not None}


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
