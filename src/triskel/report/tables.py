"""The final table: one row per baseline and mode, for the terminal, for Markdown and for the page.

All three are made of the same cells, so they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from triskel.report import units
from triskel.report.marks import COLOURS
from triskel.report.reading import read
from triskel.report.result import Baseline, ModeRun, Result, final
from triskel.report.words import named, per_client_bytes, share, skips


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is shown, and the exact value for whoever asks."""

    text: str
    exact: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One baseline or mode."""

    name: str
    title: str
    cells: tuple[Cell, ...]


def headings(result: Result) -> tuple[str, ...]:
    """Return the columns after the name."""
    quality = ("Perplexity", "Token accuracy") if result.causal else ("Accuracy", "Macro-F1")
    gap = "Of the central gain" if result.causal else "Of central"
    return (
        *quality,
        gap,
        "Up / client",
        "Down / client",
        "Up and down, all",
        "GFLOPs / client",
        "Peak memory",
        "Time",
    )


def rows(result: Result) -> list[Row]:
    """Return the baselines, then the modes."""
    return [_row(result, run) for run in result.scored]


def final_table(result: Mapping[str, Any]) -> Table:
    """Return the table that a run ends with in the terminal.

    Raises:
        CheckpointError: This is not a result.
    """
    seen = read(result)
    columns = headings(seen)
    hidden = {columns.index("Up and down, all"), 2}
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for place, heading in enumerate(columns):
        if place not in hidden:
            table.add_column(heading, justify="right")
    for row in rows(seen):
        style = COLOURS.get(row.name, "")
        title = f"[bold {style}]{escape(row.title)}[/]" if style else f"[dim]{escape(row.title)}[/]"
        shown = [cell.text for place, cell in enumerate(row.cells) if place not in hidden]
        table.add_row(title, *shown)
    if seen.skipped:
        table.caption = escape("\n".join(f"not run: {text}" for text in skips(seen)))
        table.caption_justify = "left"
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """Return the same table as Markdown.

    Raises:
        CheckpointError: This is not a result.
    """
    seen = read(result)
    lines = [["", *headings(seen)], ["---", *("---:" for _ in headings(seen))]]
    lines += [[row.title, *(cell.text for cell in row.cells)] for row in rows(seen)]
    text = "".join(f"| {' | '.join(_flat(cell) for cell in line)} |\n" for line in lines)
    notes = [f"- not run: {_flat(note)}\n" for note in skips(seen)]
    return text + ("\n" + "".join(notes) if notes else "")


def _flat(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _row(result: Result, run: Baseline | ModeRun) -> Row:
    return Row(name=run.name, title=named(run), cells=(*_quality(result, run), *_costs(run)))


def _quality(result: Result, run: Baseline | ModeRun) -> tuple[Cell, ...]:
    got = final(run)
    part = Cell(text=units.percent(share(result, run)) if run.name != "base" else units.DASH)
    if result.causal:
        return (
            _exact(units.perplexity(got.perplexity), got.perplexity),
            _exact(units.score(got.accuracy), got.accuracy),
            part,
        )
    return (
        _exact(units.score(got.accuracy), got.accuracy),
        _exact(units.score(got.macro_f1), got.macro_f1),
        part,
    )


def _costs(run: Baseline | ModeRun) -> tuple[Cell, ...]:
    if isinstance(run, Baseline):
        nothing = Cell(text=units.DASH)
        return (*(nothing,) * 5, _exact(units.duration(run.seconds), run.seconds))
    total = run.total
    up, down = total.up.message_bytes, total.down.message_bytes
    whole = None if up is None or down is None else up + down
    return (
        _bytes(_each(run, "up")),
        _bytes(_each(run, "down")),
        _bytes(whole),
        _exact(units.gflops(flops_each(run)), flops_each(run)),
        _bytes(total.peak_bytes),
        _exact(units.duration(run.seconds), run.seconds),
    )


def flops_each(run: ModeRun) -> float | None:
    """Return the mean FLOPs of a client, all rounds together."""
    return run.each.flops if run.each else None


def _each(run: ModeRun, direction: str) -> float | None:
    return per_client_bytes(run, direction)


def _bytes(count: float | None) -> Cell:
    return Cell(text=units.size(count), exact=units.exact(count))


def _exact(text: str, value: float | None) -> Cell:
    return Cell(text=text, exact="not measured" if value is None else f"{value:,.6g}")
