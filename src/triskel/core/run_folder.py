"""Where runs are put: the name of the next folder, and what a job that was refused left in it."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

LEFT_BY_A_REFUSAL = {
    "job.toml", "request.json", "events.jsonl", "data.json", "choices.json", "start",
}  # fmt: skip


def safe_name(name: str) -> str:
    """Return a job's name as the name of a file.

    >>> safe_name("../a b/..")
    'a-b'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def next_folder(name: str) -> Path:
    """Return `runs/NAME-N` with the first number above all that are there."""
    runs, safe = Path("runs"), safe_name(name)
    numbered = re.compile(re.escape(safe) + r"-(\d+)")
    there: Iterable[Path] = runs.iterdir() if runs.is_dir() else ()
    taken = [int(found[1]) for path in there if (found := numbered.fullmatch(path.name))]
    return runs / f"{safe}-{max(taken, default=0) + 1}"


def is_free(folder: Path) -> bool:
    """Return whether a folder is not there, or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def clear_refused(folder: Path) -> None:
    """Remove what a refused job wrote, unless there is more than that."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= LEFT_BY_A_REFUSAL:
        shutil.rmtree(folder)
