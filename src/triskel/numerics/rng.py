"""Random streams, each a function of the run's seed and of names.

A stream is a pure function of (job seed, names such as round, client, step): adding a client or a
draw elsewhere leaves it unchanged, and a resumed run draws what the killed one would have drawn.
"""

import torch

from triskel.core.seeds import derive


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return the random stream named by `path` under `seed`.

    >>> ann, again = stream(7, "round", 3, "ann"), stream(7, "round", 3, "ann")
    >>> torch.equal(torch.rand(2, generator=ann), torch.rand(2, generator=again))
    True
    """
    return torch.Generator().manual_seed(derive(seed, *path))


def seed_draws(device: torch.device, seed: int) -> None:
    """Seed the generator that draws of layers on this device come from, such as dropout's.

    `torch.manual_seed` seeds those of all devices that there might be, and keeps for each a text of
    the whole stack of calls: hundreds of times the work, at every step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
