"""Who holds how many examples of which label: the counts, and their figure."""

from collections.abc import Mapping, Sequence

from triskel.report.markup import Figure, label
from triskel.report.result import Result
from triskel.report.theme import LABELS, OTHER, Json, canvas, titled

ROWS = 24
"""Up to how many clients have a named row; beyond, they are thin columns by size."""
COLUMNS = 200
"""Up to how many clients have a column; beyond, a column is the mean of as many as it takes."""


def labels(result: Result) -> Figure:
    """Return the training examples of each client, stacked by label."""
    holdings = result.holdings
    order = list(holdings)
    if not order:
        return canvas([])
    many = len(order) > ROWS
    if many:
        order.sort(key=lambda c: -holdings[c].train)
    counts = shown_labels(result)
    wide = -(-len(order) // COLUMNS)
    runs = [order[i : i + wide] for i in range(0, len(order), wide)]
    data = _bars(counts, runs, upright=many)
    amount: Json = {"title": titled("training examples"), "nticks": 6}
    if many:
        names: Json = {
            "title": titled(
                f"{len(order):,} clients, largest first"
                + (f"; a column is the mean of {wide}" if wide > 1 else "")
            ),
            "showticklabels": False,
            "showgrid": False,
        }
        return canvas(
            data, xaxis=names, yaxis=amount, barmode="stack", bargap=0.1, legend=len(counts) > 1
        )
    names = {
        "showgrid": False,
        "tickvals": list(range(len(order))),
        "ticktext": [label(c) for c in order],
        "range": [len(order) - 0.4, -0.6],
    }
    height = 120 + 30 * len(order)
    return canvas(
        data,
        xaxis=amount,
        yaxis=names,
        barmode="stack",
        bargap=0.3,
        height=height,
        legend=len(counts) > 1,
    )


def _bars(
    counts: Mapping[str, Mapping[str, int]], runs: Sequence[Sequence[str]], *, upright: bool
) -> list[Json]:
    """Return the bars of each label: one for each run of clients, their mean."""
    palette = (*LABELS[: len(counts)],) if len(counts) <= len(LABELS) else (*LABELS, OTHER)
    data: list[Json] = []
    for colour, (name, per) in zip(palette, counts.items(), strict=True):
        places: list[int] = list(range(len(runs)))
        values: list[float] = [sum(per.get(c, 0) for c in run) / len(run) for run in runs]
        across = {"x": places, "y": values} if upright else {"y": places, "x": values}
        data.append(
            {
                "type": "bar",
                "orientation": "v" if upright else "h",
                "name": label(name, 22),
                "marker": {"color": colour},
                "hovertext": [
                    f"{_called(run)}<br>{label(name)}: {v:,.4g}"
                    for run, v in zip(runs, values, strict=True)
                ],
                "hoverinfo": "text",
                **across,
            }
        )
    return data


def _called(run: Sequence[str]) -> str:
    return label(run[0]) if len(run) == 1 else f"{len(run)} clients, mean"


def shown_labels(result: Result) -> dict[str, Mapping[str, int]]:
    """Return examples per client for each label; the rarest are one sum when there are many.

    Without labels (`causal`) there is one entry, the training examples.
    """
    holdings = result.holdings
    totals = dict.fromkeys(result.classes, 0)
    for share in holdings.values():
        for name, count in share.labels.items():
            totals[name] = totals.get(name, 0) + count
    if not any(totals.values()):
        return {"training examples": {c: share.train for c, share in holdings.items()}}
    common = sorted(totals, key=lambda name: -totals[name])[: len(LABELS)]
    named = [name for name in totals if name in common]
    rest = [name for name in totals if name not in common]
    found: dict[str, Mapping[str, int]] = {
        name: {c: share.labels.get(name, 0) for c, share in holdings.items()} for name in named
    }
    if rest:
        found[f"{len(rest)} other labels"] = {
            c: sum(share.labels.get(name, 0) for name in rest) for c, share in holdings.items()
        }
    return found
