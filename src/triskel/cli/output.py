"""How commands write to the terminal and to files."""

import os
import re
from pathlib import Path

from rich.console import Console

from triskel.errors import JobError

PIPE_WIDTH = 160
"""Characters in a line of output that no terminal bounds."""


def console_for(*, stderr: bool = False) -> Console:
    """Return a console that breaks lines only where a terminal does."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


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


def safe_name(name: str) -> str:
    """Return a job's name as the name of a file.

    >>> safe_name("../a b/..")
    'a-b'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
