"""The command that lists what can be plugged in, and whose code each is."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from triskel.cli.output import console_for
from triskel.core.registry import FAMILIES, Registry
from triskel.errors import PluginError


def plugins() -> None:
    """List modes, tasks, codecs and aggregates, of other packages too, and whose code each is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "name", "what it is", "package", "SHA-256 of its source"):
        table.add_column(heading, overflow="fold")
    for family in FAMILIES:
        for name in family.names():
            table.add_row(family.noun, *map(escape, _row(family, name)))
    console_for().print(table)


def _row(family: Registry[Any], name: str) -> tuple[str, str, str, str]:
    try:
        origin, gloss = family.origin(name), family.spec(name).gloss
    except PluginError as error:
        return name, f"cannot be used: {error}", "", ""
    if origin is None:
        return name, gloss, "triskel", ""
    return name, gloss, f"{origin.package} {origin.version}", origin.sha256
