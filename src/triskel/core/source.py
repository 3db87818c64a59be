"""Which code runs here."""

import functools
import hashlib
import os
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from importlib.metadata import version
from pathlib import Path

VERSION = version("triskel")
PACKAGE = Path(__file__).parents[1]
SUFFIXES = tuple(all_suffixes())


@functools.cache
def code_sha256() -> str:
    """Return the SHA-256 of this package's source."""
    return source_sha256(PACKAGE)


def source_sha256(place: Path) -> str:
    """Return the SHA-256 of all that Python can import from a folder, or of one file.

    Compiled modules count, as Python prefers them to source of the same name, and so do those of
    folders that a link leads to; what Python caches of source does not.
    """
    root = place if place.is_dir() else place.parent
    sha256 = hashlib.sha256()
    for file in sorted(_importable(place)) if place.is_dir() else [place]:
        sha256.update(f"{file.relative_to(root).as_posix()}\n".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()


def _importable(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that Python takes for modules."""
    seen = set[Path]()
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(here.resolve())
        cached = here.name == "__pycache__"
        for name in names:
            if name.endswith(SUFFIXES) and not (cached and name.endswith(".pyc")):
                yield here / name
