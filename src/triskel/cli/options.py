"""What several commands take: names in a list, and the next free run folder."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from triskel.cli.output import safe_name
from triskel.errors import JobError

Name = TypeVar("Name", bound=str)


def names_in(
    what: str, text: str, known: Sequence[Name], *, empty: bool = False
) -> tuple[Name, ...]:
    """Return the names in a comma-separated text, each once; `none` where none may be.

    Raises:
        JobError: A name is unknown, or there is none.
    """
    found: list[Name] = []
    given = [part.strip() for part in text.split(",") if part.strip()]
    if empty and given in ([], ["none"]):
        return ()
    for one in given:
        name = next((name for name in known if name == one), None)
        if name is None:
            near = difflib.get_close_matches(one, known, n=1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise JobError(f"unknown {what} {one!r}; {hint} are {', '.join(known)}")
        if name not in found:
            found.append(name)
    if not found:
        raise JobError(f"no {what} given; there are {', '.join(known)}")
    return tuple(found)


def next_folder(name: str) -> Path:
    """Return `runs/NAME-N` with the first number above all that are there."""
    runs, safe = Path("runs"), safe_name(name)
    numbered = re.compile(re.escape(safe) + r"-(\d+)")
    there: Iterable[Path] = runs.iterdir() if runs.is_dir() else ()
    taken = [int(found[1]) for path in there if (found := numbered.fullmatch(path.name))]
    return runs / f"{safe}-{max(taken, default=0) + 1}"
