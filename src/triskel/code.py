"""Which code runs here."""

import functools
import hashlib
from pathlib import Path

import triskel


@functools.cache
def code_sha256() -> str:
    """Return the SHA-256 of this package's source."""
    return source_sha256(Path(triskel.__file__).parent)


def source_sha256(place: Path) -> str:
    """Return the SHA-256 of a folder's Python source, or of one file."""
    root = place if place.is_dir() else place.parent
    sha256 = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        sha256.update(f"{file.relative_to(root).as_posix()}\n".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()
