"""How commands write to the terminal and to files."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from triskel.core.console import Plain
from triskel.errors import JobError

# `types` loads torch, so what is needed of it is said again here
Event = Mapping[str, Any]
Watch = Callable[[Event], None]
PIPE_WIDTH = 160
"""Characters in a line of output that no terminal bounds."""


def console_for(*, stderr: bool = False) -> Console:
    """Return a console that breaks lines only where a terminal does."""
    console = Plain(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def conclude(result: Mapping[str, Any], folder: Path) -> None:
    """Print what a run came to: the table, what it shows in words, and where everything lies.

    Raises:
        CheckpointError: This version cannot read the result.
    """
    from triskel.report.comparisons import readings_table
    from triskel.report.conclusions import verdict
    from triskel.report.reading import read
    from triskel.report.tables import final_table

    console, page, seen = console_for(), folder / "report.html", read(result)
    headline, *more = verdict(seen)
    console.print()
    console.print(final_table(result))
    console.print()
    if (told := readings_table(seen)) is not None:
        console.print(told)
        console.print()
    console.print(f"[bold]{escape(headline)}[/]", soft_wrap=not console.is_terminal)
    for line in more:
        console.print(escape(line), soft_wrap=not console.is_terminal)
    console.print()
    console.print(f"Results  {escape(str(folder))}", soft_wrap=True)
    console.print(f"Report   {escape(str(page))}", soft_wrap=True)
    console.print(f"         open it in a browser: {page.resolve().as_uri()}", soft_wrap=True)


def write_text(file: Path, text: str, *, force: bool) -> None:
    """Write a new file.

    Raises:
        JobError: The file is there and `force` is not given, or it cannot be written.
    """
    if file.exists() and not force:
        raise JobError(f"{file} exists; --force replaces it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JobError(f"{file} cannot be written: {error.strerror}") from error
