"""Files for their owner alone, whatever the process's umask, and written whole or not at all.

What a run leaves holds traces of texts; other users of the machine have no part in it.
"""

import contextlib
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from triskel.errors import CheckpointError

OTHERS = 0o077
"""What group and others could do with a file."""


@contextmanager
def alone() -> Generator[None]:
    """Have whatever this process makes meanwhile open for its owner alone, libraries included.

    The umask is the process's: threads that write meanwhile are held to it too.
    """
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def private(folder: Path) -> None:
    """Make a folder, where it is not there, that nobody else on the machine can open."""
    if not folder.is_dir():
        private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def write_text(place: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        CheckpointError: The disk is full or not writable; the old file stays.
    """
    _write(place, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(place: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        CheckpointError: The disk is full or not writable; the old file stays.
    """
    _write(place, lambda part: part.write_bytes(data))


def _write(place: Path, fill: Callable[[Path], object]) -> None:
    part = place.with_name(f"{place.name}.part")
    try:
        private(place.parent)
        part.touch(mode=0o600)  # what fills it keeps that
        fill(part)
        flush(part)
        part.replace(place)
    except OSError as error:
        drop(part)
        raise CheckpointError(f"{place} cannot be written: {error}") from error


def drop(part: Path) -> None:
    """Remove a file, as far as that is possible."""
    with contextlib.suppress(OSError):
        part.unlink()


def flush(place: Path) -> None:
    """Ask the system to bring a file or a folder's list of names to the disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
