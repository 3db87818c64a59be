"""Files and folders for their owner alone, whatever the process's umask.

What a run leaves holds traces of texts; other users of the machine have no part in it.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

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
