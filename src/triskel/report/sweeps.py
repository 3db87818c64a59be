"""What a sweep came to: a table of settings by rows for the terminal, and a page.

Both are made of `sweep.json`. Figures of settings are those on validation rows, by which each row's
winner was chosen; a winner's figures on test rows stand apart from them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from triskel.core import formats
from triskel.core.crash import during
from triskel.errors import CheckpointError
from triskel.report.columns import COLUMNS, column_of
from triskel.report.descriptions import about_in
from triskel.report.markup import Figure, figure, label, table, text
from triskel.report.page import document, write_whole
from triskel.report.reading_rows import read_about
from triskel.report.result import About
from triskel.report.sweep_search import NAMES, costs, named, rungs
from triskel.report.theme import GREYS, LINES, canvas, titled

CHOSEN = "★"
WHERE = {"everybody": "everybody's texts", "own": "own texts"}
Record = Mapping[str, Any]


def rows_of(record: Record) -> list[str]:
    """Return what was chosen for: baselines, then modes."""
    return [*record["request"]["baselines"], *record["request"]["modes"]]


def why_not(entry: Record, row: str) -> str:
    """Return in one word why a setting has no figure in a row, or nothing if it has."""
    for word in ("diverged", "failed", "skipped"):
        if row in entry.get(word, {}):
            return word
    return ""


def _about(record: Record, mode: str) -> About:
    return read_about(about_in(record, mode))


def terminal_table(record: Record) -> Table:
    """Return the table that a sweep ends with: settings by rows, each row's winner marked."""
    rows = rows_of(record)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column(f"{record['figure']} on validation texts", overflow="fold")
    for row in rows:
        style = _about(record, row).colour if row not in NAMES else ""
        shown.add_column(f"[{style}]{named(row)}[/]" if style else named(row), justify="right")
    for entry in record["settings"]:
        cells = [_cell(record, entry, row) for row in rows]
        marked = [f"[bold]{c}[/]" if c.startswith(CHOSEN) else c for c in cells]
        shown.add_row(escape(entry["name"]), *marked)
    if record["winners"]:
        shown.add_section()
    for column in COLUMNS if record["winners"] else ():
        told = [_figure(record, _tested(record, row).get(column)) for row in rows]
        shown.add_row(f"[bold]{CHOSEN} on test texts, {WHERE[column]}[/]", *told)
    return shown


def failures(record: Record) -> list[str]:
    """Return a line for every row of a setting that has no figure, and why."""
    return [
        f"{entry['name']}, {named(row)}: {word}: {entry[word][row]}"
        for entry in record["settings"]
        for row in rows_of(record)
        if (word := why_not(entry, row))
    ]


@during("while writing the report")
def write_page(folder: Path, record: Record) -> Path:
    """Write `report.html` of a sweep folder, whole or not at all.

    Raises:
        CheckpointError: The record lacks what a sweep's has.
    """
    target = folder / "report.html"
    try:
        page = render(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'sweep.json'} is no sweep that this version can show: {error!r}; "
            "put back the file that the sweep wrote"
        ) from error
    write_whole(target, page)
    return target


def render(record: Record) -> str:
    """Return the page of a sweep."""
    drawn = {"settings": drawing(record)}
    failed = "".join(f"<li>{text(line)}</li>" for line in failures(record))
    halved = "halving" in record["request"]
    stopped = " One that did not go on has that of the round it stopped after." if halved else ""
    parts = (
        ("chosen", "Winners", "What was chosen", _winners(record)),
        (
            "every",
            "Settings",
            "Every setting",
            figure(
                "settings",
                f"{record['figure'].capitalize()} on validation texts, by setting",
                f"A mark for every setting and row; the winner of a row is marked {CHOSEN}",
                "Each row's winner is the large mark: "
                f"the {'lowest' if record['figure'] == 'perplexity' else 'highest'} figure."
                + stopped,
            )
            + _settings(record)
            + (f'<ul class="rest">{failed}</ul>' if failed else ""),
        ),
        *([("search", "Search", "How the search went", rungs(record))] if halved else []),
        *([("spent", "Spent", "What the search cost", costs(record))] if "cost" in record else []),
        ("costs", "Costs", "What each setting cost", _costs(record)),
    )
    facts = [
        _model(str(record["job"]["model"]["path"])),
        formats.plural(len(record["settings"]), "setting"),
        f"validation share {record['job']['data'].get('validation_share', 0)}",
        f"seed {record['job'].get('seed', 0)}",
    ]
    return document(
        parts,
        drawn,
        kind="sweep",
        name=str(record["job"].get("name") or "sweep"),
        facts=facts,
        source=f"Triskel {record['triskel']} from sweep.json",
    )


def drawing(record: Record) -> Figure:
    """Return the figure of every setting in every row."""
    names = [label(entry["name"], 60) for entry in record["settings"]]
    traces: list[dict[str, Any]] = []
    for row in rows_of(record):
        best = record["winners"].get(row, {}).get("setting")
        mark = {
            "color": GREYS[row] if row in NAMES else _about(record, row).colour,
            "symbol": "circle-open" if row in NAMES else _about(record, row).marker,
            "size": [15 if entry["name"] == best else 9 for entry in record["settings"]],
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": named(row),
                "x": names,
                "y": [_value(record, entry, row) for entry in record["settings"]],
                "marker": mark,
                "line": {"color": mark["color"], "width": 1, "dash": LINES.get(row, "solid")},
                "connectgaps": False,
            }
        )
    return canvas(
        traces,
        xaxis={"type": "category", "title": titled("setting")},
        yaxis={"title": titled(record["figure"])},
        height=400,
    )


# --- parts of them ----------------------------------------------------------------------------


def _model(path: str) -> str:
    """Return a model's name without where it lies on the disk."""
    return Path(path).name if Path(path).is_absolute() else path


def _winners(record: Record) -> str:
    if not record["winners"]:
        return "<p>No setting has a figure yet.</p>"
    kinds = (("validation", "validation"), ("test", "test"))
    head = ["Row", "Setting", *(f"{n}, {WHERE[c]}" for _, n in kinds for c in COLUMNS)]
    body = [
        [
            named(row),
            won["setting"],
            *(_figure(record, won.get(kind, {}).get(c)) for kind, _ in kinds for c in COLUMNS),
        ]
        for row, won in record["winners"].items()
    ]
    return (
        "<p>Settings were chosen on validation texts, which are held out of every client's "
        "training texts. Test texts were read for the winners only, once each was known.</p>"
        + table(f"{record['figure']} of each row's winner", head, body)
    )


def _settings(record: Record) -> str:
    rows = rows_of(record)
    body = [[e["name"], *(_cell(record, e, row) for row in rows)] for e in record["settings"]]
    return table(f"{record['figure']} on validation texts", ["Setting", *map(named, rows)], body)


def _costs(record: Record) -> str:
    body = [
        [
            f"{entry['name']}, {named(row)}",
            formats.flops(entry["rows"][row].get("client_flops")),
            formats.flops(entry["rows"][row].get("server_flops")),
            formats.size(entry["rows"][row].get("bytes")),
        ]
        for entry in record["settings"]
        for row in rows_of(record)
        if row in entry["rows"]
    ]
    return table(
        "Costs of all clients, all rounds that were played",
        ["Setting, row", "Client FLOPs", "Server FLOPs", "Up and down"],
        body,
    )


def _cell(record: Record, entry: Record, row: str) -> str:
    if row not in entry["rows"]:
        return why_not(entry, row) or formats.DASH
    told = _written(record, _value(record, entry, row))
    won = record["winners"].get(row, {}).get("setting") == entry["name"]
    rounds = entry["rows"][row].get("rounds")
    if "halving" in record["request"] and rounds < record["request"]["halving"]["rungs"][-1]:
        told = f"{told} at round {rounds}"
    return f"{CHOSEN} {told}" if won else told


def _value(record: Record, entry: Record, row: str) -> float | None:
    found = entry["rows"].get(row, {}).get(column_of(row), {})
    value: float | None = found.get(record["figure"])
    return value


def _tested(record: Record, row: str) -> Record:
    found: Record = record["winners"].get(row, {}).get("test", {})
    return found


def _figure(record: Record, column: Record | None) -> str:
    return _written(record, (column or {}).get(record["figure"]))


def _written(record: Record, value: float | None) -> str:
    write = formats.perplexity if record["figure"] == "perplexity" else formats.score
    return write(value)
