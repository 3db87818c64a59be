"""The command that lists run folders, and holds some side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from triskel.cli.output import console_for
from triskel.core import formats
from triskel.core.console import echo
from triskel.report.catalogue import Entry, Unreadable, below, differing, entry_of
from triskel.report.columns import COLUMNS, Column


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            help="One: what it holds. Two or more: how these runs differ. None: what runs holds.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """List run folders with what they reached, or hold some side by side."""
    console = console_for()
    if folders and len(folders) > 1:
        for table in compared([entry_of(folder) for folder in folders]):
            console.print(table)
            console.print()
        return
    place = folders[0] if folders else Path("runs")
    found = below(place)
    if not found:
        echo(f"there is no run folder in {place}")
        return
    console.print(listed(found))


def listed(found: Sequence[Entry | Unreadable]) -> Table:
    """Return a table of run folders, one line for every row of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "began", "job", "seeds", "state", ""):
        table.add_column(heading, overflow="fold")
    for heading in ("everybody", "own"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        if isinstance(one, Unreadable):
            table.add_row(escape(str(one.folder)), "", "", "", f"unreadable: {escape(one.why)}")
            continue
        state = one.state if one.judge == "test" else f"{one.state}, on {one.judge} texts"
        about = (
            escape(str(one.folder)),
            f"{one.began.astimezone():%Y-%m-%d %H:%M}",
            escape(one.name),
            ", ".join(map(str, one.seeds)),
            state if one.kind == "run" else f"{one.kind}: {state}",
        )
        first, *more = _lines(one) or [("", "", "")]
        table.add_row(*about, *first)
        for line in more:
            table.add_row(*("" for _ in about), *line)
    return table


def _lines(entry: Entry) -> list[tuple[str, str, str]]:
    return [(row, figure(entry, row, "everybody"), figure(entry, row, "own")) for row in entry.rows]


def compared(entries: Sequence[Entry]) -> list[Table]:
    """Return two tables: the keys in which jobs differ, and figures side by side."""
    keys = Table(box=None, pad_edge=False, header_style="bold")
    rows = Table(box=None, pad_edge=False, header_style="bold")
    keys.add_column("key")
    rows.add_column("")
    for entry in entries:
        keys.add_column(escape(str(entry.folder)), overflow="fold")
        rows.add_column(escape(str(entry.folder)), overflow="fold", justify="right")
    told = differing(entries)
    for key, values in told.items():
        keys.add_row(key, *(escape("–" if v is None else json.dumps(v)) for v in values))
    if not told:
        keys.add_row("none differs")
    rows.add_row("state", *(entry.state for entry in entries))
    rows.add_row("figure", *(f"{entry.figure} on {entry.judge} texts" for entry in entries))
    for row in dict.fromkeys(row for entry in entries for row in entry.rows):
        for column in COLUMNS:
            rows.add_row(f"{row}, {column}", *(figure(e, row, column) for e in entries))
    return [keys, rows]


def figure(entry: Entry, row: str, column: Column) -> str:
    """Return a figure as it is written, or a dash where there is none."""
    value = entry.rows.get(row, {}).get(column)
    return formats.perplexity(value) if entry.figure == "perplexity" else formats.score(value)
