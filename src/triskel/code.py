"""Which code runs here."""

import functools
import hashlib
from pathlib import Path

import triskel


@functools.cache
def code_sha256() -> str:
    """Return the SHA-256 of this package's source."""
    root, sha256 = Path(triskel.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sha256.update(f"{file.relative_to(root).as_posix()}\n".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()
