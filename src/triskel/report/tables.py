"""The final table for the terminal and for Markdown, of the same columns.

Where a terminal is too narrow for all columns, scores and costs are two tables, one above the
other; a word or a number is never broken.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from triskel.report.cells import Column, Row, columns, notes, rows
from triskel.report.markup import shortened
from triskel.report.reading import read
from triskel.report.result import ModeRun, Result

GAP = 2
"""Spaces between columns."""
NAMES = 17
"""The least width of the names beside all columns; "each client alone" fits."""
LEAST = 8
"""The least width of the names anywhere."""


def final_table(result: Mapping[str, Any]) -> "FinalTable":
    """Return the table that a run ends with in the terminal.

    Raises:
        CheckpointError: This is not a result.
    """
    return FinalTable(read(result))


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with the columns of a terminal.

    Raises:
        CheckpointError: This is not a result.
    """
    seen = read(result)
    kept = _kept(seen)
    lines = [["", *(one.title for one in kept)], ["---", *("---:" for _ in kept)]]
    lines += [[row.title, *(row.cells[one.key].text for one in kept)] for row in rows(seen)]
    text = "".join(f"| {' | '.join(_flat(cell) for cell in line)} |\n" for line in lines)
    below = [f"- {_flat(note)}\n" for note in notes(seen)]
    return text + ("\n" + "".join(below) if below else "")


@dataclass(frozen=True)
class FinalTable:
    """A table that takes as many columns as a terminal has room for."""

    result: Result

    @property
    def row_count(self) -> int:
        """How many baselines and modes there are."""
        return len(self.result.scored)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield one table, or several one above the other, and the notes."""
        body = rows(self.result)
        for place, part in enumerate(stacked(_kept(self.result), body, options.max_width)):
            if place:
                yield Text()
            yield _table(part, body, options.max_width, self.result.modes)
        for note in notes(self.result):
            yield Text(note, style="dim")


def stacked(kept: Sequence[Column], body: Sequence[Row], width: int) -> Iterator[Sequence[Column]]:
    """Yield the columns of each table: all in one, or scores and costs apart, or fewer still."""
    if NAMES + sum(GAP + _width(one, body) for one in kept) <= width:
        yield kept
        return
    for part in ("scores", "costs"):
        held: list[Column] = []
        for one in (column for column in kept if column.part == part):
            taken = LEAST + sum(GAP + _width(other, body) for other in (*held, one))
            if held and taken > width:
                yield held
                held = []
            held.append(one)
        yield held


def _kept(result: Result) -> list[Column]:
    return [one for one in columns(result) if not one.page_only]


def _width(column: Column, body: Iterable[Row]) -> int:
    lines = [*column.heading.splitlines(), *(row.cells[column.key].text for row in body)]
    return max(map(cell_len, lines))


def _table(
    part: Sequence[Column], body: Sequence[Row], width: int, modes: Mapping[str, ModeRun]
) -> Table:
    room = max(LEAST, width - sum(GAP + _width(one, body) for one in part))
    table = Table(title=None, header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for one in part:
        table.add_column(one.heading, justify="right", no_wrap=True, min_width=_width(one, body))
    for row in body:
        style = modes[row.name].about.colour if row.name in modes else ""
        title = escape(_folded(row.title, room))
        name = f"[bold {style}]{title}[/]" if style else f"[dim]{title}[/]"
        table.add_row(name, *(row.cells[one.key].text for one in part))
    return table


def _folded(title: str, room: int) -> str:
    """Return a name on as many lines as it takes, broken between words."""
    flat = shortened(title, 60)
    lines = textwrap.wrap(flat, room, break_long_words=False, break_on_hyphens=False)
    return "\n".join(shortened(line, room) for line in lines)


def _flat(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
