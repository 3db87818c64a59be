"""Words on a terminal: what others wrote moves no cursor and clears no line.

Names, reasons, logs and files of other parties are quoted in tables, errors and progress. A control
character in them could rewrite what stands before it, so it is shown as what it is.
"""

from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.segment import Segment


def clean(text: str) -> str:
    r"""Return a text of which only ends of lines and tabs steer a terminal.

    >>> print(clean("is it bank\r\x1b[2Kclinic?"))
    is it bank\r\x1b[2Kclinic?
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() or x in "\n\t" else ascii(x)[1:-1] for x in text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text that may quote others."""
    typer.echo(clean(text), err=err)


class Plain(Console):
    """A console that shows control characters of what it prints; its own still steer."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:  # noqa: ANN401 - rich's
        """Return what is printed, cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean(segment.text))
