"""The command that lists modes, and whose code each is."""

from rich.markup import escape
from rich.table import Table

from triskel.cli.output import console_for
from triskel.core import registry
from triskel.errors import PluginError


def modes() -> None:
    """List the modes there are, what travels in each, and whose code it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("mode", "what travels", "package", "SHA-256 of its source"):
        table.add_column(heading, overflow="fold")
    for name in registry.names():
        table.add_row(*map(escape, _row(name)))
    console_for().print(table)


def _row(name: str) -> tuple[str, str, str, str]:
    try:
        origin, gloss = registry.origin(name), registry.spec(name).gloss
    except PluginError as error:
        return name, f"cannot be used: {error}", "", ""
    if origin is None:
        return name, gloss, "triskel", ""
    return name, gloss, f"{origin.package} {origin.version}", origin.sha256
