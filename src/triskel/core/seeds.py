"""One seed per run; every other seed is derived from it by name."""

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """Return the 63-bit seed named by `path` under `seed`."""
    name = "/".join(map(str, (seed, *path)))
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
