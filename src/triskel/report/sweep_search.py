"""How a sweep's search went and what it cost: rungs, which settings went on, bytes and FLOPs.

Made of `sweep.json`. Costs are those of closed rounds, without loading and scoring; what the full
grid would have cost is arithmetic, and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from triskel.core import formats
from triskel.report.markup import table, text

Record = Mapping[str, Any]
NAMES = {"local": "each client alone", "central": "centralised"}
SPENT = ("Up", "Down", "Client FLOPs", "Server FLOPs", "Time")
NOTE = (
    "Closed rounds of all clients and all settings, of those that failed too; without loading and "
    "scoring."
)
GRID = (
    "The full grid is arithmetic and was not played: what a setting that stopped spent is scaled "
    "by what those that played all rounds spent in them over what they spent in as many as it had; "
    "one that failed counts with what it spent."
)


def named(row: str) -> str:
    """Return what a row is called where it is shown."""
    return NAMES.get(row, row)


def cost_rows(record: Record) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield what a sweep cost, line by line: what it is of, how many settings, and the cost."""
    cost, count = record["cost"], str(len(record["settings"]))
    several = len(cost["rows"]) > 1
    for row, one in cost["rows"].items():
        for rung in one.get("rungs", ()):
            yield f"{named(row)}, to round {rung['rounds']}", str(rung["settings"]), rung
        if several or "rungs" in one:
            yield f"{named(row)}, together", count, one["total"]
        if "grid" in one:
            yield f"{named(row)}, full grid by arithmetic", count, one["grid"]
    if several or "grid" not in cost:
        yield "all together", count, cost["total"]
    if several and "grid" in cost:
        yield "all, full grid by arithmetic", count, cost["grid"]


def terminal_costs(record: Record) -> Table:
    """Return the table of what a sweep cost."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("cost of the search", overflow="fold")
    for name in ("Settings", *SPENT):
        shown.add_column(name, justify="right")
    for name, count, spent in cost_rows(record):
        shown.add_row(name, count, *_written(spent))
    return shown


def costs(record: Record) -> str:
    """Return the table of the page."""
    notes = (NOTE, GRID) if "grid" in record["cost"] else (NOTE,)
    body = [[name, count, *_written(spent)] for name, count, spent in cost_rows(record)]
    return "".join(f"<p>{text(note)}</p>" for note in notes) + table(
        "What the search cost", ["Search", "Settings", *SPENT], body
    )


def rungs(record: Record) -> str:
    """Return how the search went: each row's rungs, and who went on."""
    halving = record["request"]["halving"]
    told = (
        f"Settings played to the rounds {formats.joined([str(r) for r in halving['rungs']])}; the "
        f"best 1/{halving['eta']} of a rung, at least one, went on (→) from where it stood, of "
        "level settings the first. One that was left alone played the rest in one go."
    )
    parts = [f"<p>{text(told)}</p>"]
    played = record.get("rungs", {}).items()
    for row, each in ((row, each) for row, each in played if each):
        head = ["Setting", *(f"round {one['rounds']}" for one in each)]
        body = [[e["name"], *_steps(record, e["name"], each)] for e in record["settings"]]
        what = f"{record['figure'].capitalize()} on validation texts, {named(row)}"
        parts.append(f"<h3>{text(what)}</h3>" + table(what, head, body))
    return "".join(parts)


def _steps(record: Record, name: str, each: Sequence[Record]) -> Iterator[str]:
    write = formats.perplexity if record["figure"] == "perplexity" else formats.score
    for rung in each:
        if name not in rung["reached"]:
            yield ""
        else:
            yield write(rung["reached"][name]) + (" →" if name in rung["on"] else "")


def _written(spent: Mapping[str, Any]) -> list[str]:
    return [
        formats.size(spent["up_bytes"] or None),
        formats.size(spent["down_bytes"] or None),
        formats.flops(spent["client_flops"]),
        formats.flops(spent["server_flops"] or None),
        formats.duration(spent["seconds"]),
    ]
