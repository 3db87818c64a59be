"""One look for every figure: mode colours, line and fill styles, and the empty canvas.

The built-in modes' colours are Okabe and Ito's, which colour-blind readers can tell apart;
markers, dashes and patterns repeat what colour says. Labels have a palette of their own.
"""

from collections.abc import Sequence
from typing import Any

from triskel.report.markup import Figure
from triskel.report.result import About

Json = dict[str, Any]

LINES = {"base": "dot", "local": "dashdot", "local_equal": "longdashdot", "central": "dash"}
GREYS = {"base": "#9aa0a8", "local": "#7d848d", "local_equal": "#7d848d", "central": "#6f7782"}
LABELS = ("#332288", "#CC6677", "#DDCC77", "#88CCEE", "#AA4499", "#999933", "#882255")
OTHER = "#c4c8ce"
KEY = "#7d848d"
PATTERNS = {"computing": "", "sending": "/", "waiting for messages": "."}


def tone(about: About) -> str:
    """Return the attribute that gives an element of the page a mode's colour."""
    return f'style="--tone:{about.colour}"'


def faded(colour: str) -> str:
    """Return a colour as one to lay over others.

    >>> faded("#0072B2")
    'rgba(0, 114, 178, 0.16)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.16)"


def titled(words: str) -> Json:
    """Return an axis title."""
    return {"text": words, "font": {"size": 12.5}}


def canvas(
    data: Sequence[Json],
    *,
    xaxis: Json | None = None,
    yaxis: Json | None = None,
    legend: bool = True,
    height: int = 340,
    **layout: object,
) -> Figure:
    """Return a figure; `xaxis` and `yaxis` go over the common ones, `layout` over the rest."""
    grid: Json = {
        "automargin": True,
        "ticklabelstandoff": 4,
        "zeroline": False,
        "fixedrange": True,
        "gridcolor": "#e3e6ea",
    }
    base: Json = {
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": "#1d2127"},
        "margin": {"l": 8, "r": 14, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hovermode": "closest",
        "height": height,
        "xaxis": grid | (xaxis or {}),
        "yaxis": grid | (yaxis or {}),
    }
    return {"data": list(data), "layout": base | layout}
