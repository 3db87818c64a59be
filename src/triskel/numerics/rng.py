"""One seed per run; every other seed is derived from it by name.

A stream is a pure function of (job seed, names such as round, client, step): adding a client or a
draw elsewhere leaves it unchanged, and a resumed run draws what the killed one would have drawn.
"""

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return the 63-bit seed named by `path` under `seed`."""
    name = "/".join(map(str, (seed, *path)))
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return the random stream named by `path` under `seed`.

    >>> ann, again = stream(7, "round", 3, "ann"), stream(7, "round", 3, "ann")
    >>> torch.equal(torch.rand(2, generator=ann), torch.rand(2, generator=again))
    True
    """
    return torch.Generator().manual_seed(derive(seed, *path))
