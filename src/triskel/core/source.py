"""Which code runs here."""

import functools
import hashlib
from importlib.machinery import all_suffixes
from importlib.metadata import version
from pathlib import Path

VERSION = version("triskel")
PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_sha256() -> str:
    """Return the SHA-256 of this package's source."""
    return source_sha256(PACKAGE)


def source_sha256(place: Path) -> str:
    """Return the SHA-256 of all that Python can import from a folder, or of one file.

    Compiled modules count, as Python prefers them to source of the same name; what it caches of
    source does not.
    """
    root = place if place.is_dir() else place.parent
    sha256 = hashlib.sha256()
    for file in sorted(filter(_importable, place.rglob("*"))) if place.is_dir() else [place]:
        sha256.update(f"{file.relative_to(root).as_posix()}\n".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()


def _importable(file: Path) -> bool:
    """Return whether Python takes a file for a module."""
    module = file.name.endswith(tuple(all_suffixes())) and file.parent.name != "__pycache__"
    return module and file.is_file()
