"""Three readings of one comparison, told: at a budget, to a target, and under trouble.

What `readings` computed or a run measured stands in `result.json`; here it becomes tables. A mode
that has no figure within a budget, or never reached a target, has a dash.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table

from triskel.core import formats
from triskel.report.links import LINKS
from triskel.report.markup import table, text
from triskel.report.names import figure_of, quality, written
from triskel.report.result import Json, Result, inner, items, number
from triskel.report.seed_mean import LARGEST_LOG

LINK = "broadband"
"""The link of the terminal's table; a page has all."""
NONE = "–"
SPENT: Mapping[str, str] = {"bytes": "bytes, all clients", "client_flops": "FLOPs, all clients"}

Line = tuple[str, Sequence[str]]
"""What a row says, and its cell for each mode."""


def readings_section(result: Result) -> str:
    """Return the three readings as tables of the page."""
    what, told = quality(result), result.readings
    parts = [
        _titled(
            f"Best {what} at a budget",
            "The best figure on everybody's texts of the rounds that closed within the budget; a "
            "dash where not even the first did. Bytes (both ways) and FLOPs are those of all "
            "clients together, times those on the stated links.",
            _budget_tables(result, told),
        ),
        _titled(
            f"Cost to a target {what}",
            "What had been spent when the first round that reached it closed; a dash where no "
            "round did (in each seed, where there are several).",
            _target_table(result, told),
        ),
        _titled(
            "When clients drop out or straggle",
            "Drop-outs were run: a drawn share of the clients of each round sent nothing back. "
            "Stragglers are computed from the measured times: in each round, the client that "
            "computes longest takes so many times as long.",
            _trouble_table(result, told),
        ),
    ]
    whole = "".join(parts)
    return whole or '<p class="note">Nothing was computed at a budget or to a target.</p>'


def readings_table(result: Result) -> "ReadingsTable | None":
    """Return the readings as one compact table for a terminal, or None where there are none."""
    told = result.readings
    lines = [
        *_at_budgets(result, told, LINK),
        *_at_targets(result, told, LINK),
        *_in_trouble(result, told, [LINK], short=True),
    ]
    colours = {name: run.about.colour for name, run in result.modes.items()}
    return ReadingsTable(colours, lines) if lines else None


class ReadingsTable:
    """The readings in a terminal: a row a question, a column a mode."""

    def __init__(self, colours: Mapping[str, str], lines: Sequence[Line]) -> None:
        self.modes, self.colours = list(colours), colours
        self.lines = lines

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the table; words of the first column go to a new line where room is short."""
        shown = Table(title=None, header_style="bold", box=None, pad_edge=False, padding=(0, 1))
        shown.add_column("", overflow="fold", ratio=1 if self._wide(options.max_width) else None)
        for mode in self.modes:
            style = self.colours[mode]
            shown.add_column(f"[bold {style}]{escape(mode)}[/]", justify="right", no_wrap=True)
        for words, cells in self.lines:
            shown.add_row(f"[dim]{escape(words)}[/]", *map(escape, cells))
        yield shown

    def _wide(self, width: int) -> bool:
        longest = max((len(words) for words, _ in self.lines), default=0)
        return longest + sum(2 + max(map(len, c)) for c in zip(*self._cells(), strict=True)) > width

    def _cells(self) -> list[Sequence[str]]:
        return [self.modes, *(cells for _, cells in self.lines)]


# --- Parts ------------------------------------------------------------------------------------


def _titled(title: str, note: str, inside: str) -> str:
    return f'<h3>{text(title)}</h3><p class="note">{text(note)}</p>{inside}' if inside else ""


def _budget_tables(result: Result, told: Json) -> str:
    """Return a table for each quantity, two beside each other."""
    tables: list[str] = []
    for quantity, rows in inner(told, "budget").items():
        name, _, link = quantity.partition(":")
        head = f"time{_on(link)}" if link else SPENT.get(name, name)
        body: list[list[str]] = []
        for row in cast("list[Json]", items(rows)):
            cells = [written(result, number(row, mode)) for mode in result.modes]
            body.append([_plain(_amount(name, number(row, "budget"))), *cells])
        caption = f"Best {quality(result)} within so much: {head}"
        tables.append(table(caption, (f"Within, {head}", *result.modes), body))
    return f'<div class="pair">{"".join(tables)}</div>' if tables else ""


def _target_table(result: Result, told: Json) -> str:
    """Return what each mode spent to reach each target, a row a target and mode."""
    spent = ["bytes", "client_flops", *(f"seconds:{link.name}" for link in LINKS)]
    head = ["Target", "Mode", "Rounds", "Bytes", "Client FLOPs"]
    head += [f"Time, {link.name}" for link in LINKS]
    body: list[list[str]] = []
    for row in cast("list[Json]", items(told.get("target"))):
        aim = f"{written(result, number(row, 'target'))}, {row.get('what', '')}"
        for mode in result.modes:
            one = inner(row, mode)
            rounds = number(one, "round")
            cells = [_amount(name.partition(":")[0], number(one, name)) for name in spent]
            body.append([aim, mode, NONE if rounds is None else f"{rounds:.3g}", *cells])
    return table(f"Cost to a target {quality(result)}", head, body) if body else ""


def _trouble_table(result: Result, told: Json) -> str:
    lines = _in_trouble(result, told, [link.name for link in LINKS])
    body = [[words, *cells] for words, cells in lines]
    return table("Drop-outs and stragglers", ("Trouble", *result.modes), body) if body else ""


def _at_budgets(result: Result, told: Json, kept: str) -> list[Line]:
    lines: list[Line] = []
    for quantity, rows in inner(told, "budget").items():
        name, _, link = quantity.partition(":")
        if link not in {"", kept}:
            continue
        for row in cast("list[Json]", items(rows)):
            budget = number(row, "budget")
            cells = [written(result, number(row, mode)) for mode in result.modes]
            lines.append((f"within {_plain(_amount(name, budget))}{_on(link)}", cells))
    return lines


def _at_targets(result: Result, told: Json, link: str) -> list[Line]:
    lines: list[Line] = []
    for row in cast("list[Json]", items(told.get("target"))):
        words = f"to {written(result, number(row, 'target'))}, {row.get('what', '')}"
        lines.append((words, [_brief(inner(row, mode), link) for mode in result.modes]))
    return lines


def _brief(spent: Json, link: str) -> str:
    crossed, took = number(spent, "bytes"), number(spent, f"seconds:{link}")
    parts = [formats.size(crossed)] if crossed is not None else []
    parts += [formats.duration(took)] if took is not None else []
    return ", ".join(parts) or NONE


def _in_trouble(
    result: Result, told: Json, links: Sequence[str], *, short: bool = False
) -> list[Line]:
    lines: list[Line] = []
    lost = {mode: inner(inner(told, "robustness"), mode) for mode in result.modes}
    shares = [s for one in lost.values() if (s := number(one, "drop_share")) is not None]
    if shares:
        words = f"{formats.percent(shares[0])} of clients drop out"
        for column, name in (("everybody", "everybody's texts"), ("own", "own texts")):
            cells = [_kept(result, mode, one, column) for mode, one in lost.items()]
            lines.append((f"{words}: {quality(result)}, {name}", cells))
    late = {mode: inner(inner(told, "stragglers"), mode) for mode in result.modes}
    for link in links:
        slow = [number(one, f"seconds:{link}") for one in late.values()]
        plain = [number(one, f"plain:{link}") for one in late.values()]
        times = [number(one, "slowdown") for one in late.values()]
        if not any(value is not None for value in slow):
            continue
        pairs = zip(slow, plain, strict=True)
        cells = [_slowed(now, None if short else was) for now, was in pairs]
        factor = next((value for value in times if value is not None), 1.0)
        lines.append((f"slowest client {factor:g} times as slow{_on(link)}", cells))
    return lines


def _kept(result: Result, mode: str, told: Json, column: str) -> str:
    """Return a figure under drop-outs, and for everybody's texts how it differs from without.

    What was tested for `causal` is the loss; said is the difference of perplexities.
    """
    score = inner(told, column)
    value = number(score, "perplexity" if result.by_loss else "accuracy")
    loss = number(score, "loss")
    if result.by_loss and loss is not None and len(result.seeds) > 1:
        value = math.exp(min(loss, LARGEST_LOG))  # as other rows over seeds
    far = number(told, "difference")
    if column != "everybody" or far is None or value is None:
        return written(result, value)
    beyond = told.get("beyond")
    said = {True: ["beyond chance"], False: ["within chance"]}.get(cast("Any", beyond), [])
    if result.by_loss:
        without = figure_of(result, result.modes[mode], column)
        far = None if without is None else value - without
    if far is not None:
        sign = "+" if far >= 0 else "\N{MINUS SIGN}"
        said = [f"{sign}{written(result, abs(far))}", *said]
    return f"{written(result, value)} ({', '.join(said)})" if said else written(result, value)


def _slowed(now: float | None, was: float | None) -> str:
    if now is None:
        return NONE
    return (
        formats.duration(now)
        if was is None
        else f"{formats.duration(was)} → {formats.duration(now)}"
    )


def _amount(kind: str, value: float | None) -> str:
    if value is None:
        return NONE
    written_: Mapping[str, str] = {
        "bytes": formats.size(value),
        "client_flops": formats.flops(value),
        "seconds": formats.duration(value),
    }
    return written_.get(kind, f"{value:,.4g}")


def _plain(amount: str) -> str:
    """Return an amount without zeros that say nothing.

    >>> _plain("1.20 GB"), _plain("88.0 kB"), _plain("1,000 GB"), _plain("2.00 MB")
    ('1.2 GB', '88 kB', '1,000 GB', '2 MB')
    """
    return re.sub(r"\.?0+(?= )", "", amount) if "." in amount else amount


def _on(link: str) -> str:
    return f" on {link}" if link else ""
