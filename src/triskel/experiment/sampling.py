"""Who takes part in a round, and who drops out of it: drawn by name, the same whoever asks.

With q = `clients.cohort` of N clients that hold nᵢ training examples:

    uniform   ⌈q N⌉ of them, none twice; updates count by examples
    size      ⌈q N⌉ draws, client i each time with nᵢ / Σ nⱼ; an update counts as often as its
              client was drawn. In expectation the mean by examples (scheme I of Li et al. 2020,
              arXiv:1907.02189, section 3.3)
    poisson   each by itself with probability q; updates count by examples. A draw of nobody is
              drawn again
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from triskel.config.job import Job
from triskel.core.result_parts import RoundRow
from triskel.errors import RoundError
from triskel.numerics.rng import stream
from triskel.types import ClientId


@dataclass(frozen=True)
class Sampling:
    """Draws the cohorts of one stage.

    Attributes:
        job: How.
        clients: Of whom.
        sizes: Returns how many training examples each holds; who is not named has not said so, and
            is not drawn where that matters.
    """

    job: Job
    clients: Sequence[ClientId]
    sizes: Callable[[], Mapping[ClientId, int]] = field(default=dict[ClientId, int])

    def times(self, round_: int) -> dict[ClientId, int]:
        """Return how often each client was drawn for a round, in the order of their names.

        Raises:
            RoundError: No client holds a training example.
        """
        if not self.clients:
            raise RoundError("no client holds a training example; look at clients.partition")
        names, share = sorted(self.clients), self.job.clients.cohort
        if len(names) == 1:
            return {names[0]: 1}
        count = max(1, math.ceil(share * len(names) - 1e-9))
        source = stream(self.job.seed, "cohort", round_)
        match self.job.clients.sampling:
            case "uniform":
                drawn = torch.randperm(len(names), generator=source)[:count].tolist()
            case "size":
                sizes = self.sizes()
                ends = torch.tensor([sizes.get(n, 0) for n in names]).cumsum(0)
                if not ends[-1]:
                    raise RoundError("no client has said how many training examples it holds")
                places = torch.rand(count, generator=source, dtype=torch.float64) * ends[-1]
                drawn = torch.searchsorted(ends.double(), places, right=True).tolist()
            case "poisson":
                drawn: list[int] = []
                while not drawn:
                    coins = torch.rand(len(names), generator=source, dtype=torch.float64)
                    drawn = (coins < share).nonzero().flatten().tolist()
        return {names[i]: drawn.count(i) for i in sorted(set(drawn))}

    def cohort(self, round_: int) -> list[ClientId]:
        """Return who takes part in a round, by name; at least one.

        Raises:
            RoundError: No client holds a training example.
        """
        return list(self.times(round_))

    def dropped(self, round_: int) -> list[ClientId]:
        """Return who of a round's cohort drops out of it: `clients.drop_share`.

        At least one client stays.
        """
        names = self.cohort(round_)
        count = min(round(self.job.clients.drop_share * len(names)), len(names) - 1)
        order = torch.randperm(len(names), generator=stream(self.job.seed, "drop", round_))
        return sorted(names[int(i)] for i in order[:count])

    def stayed(self, round_: int) -> list[ClientId]:
        """Return who plays a round to its end."""
        gone = self.dropped(round_)
        return [client for client in self.cohort(round_) if client not in gone]

    def weights(self, round_: int) -> dict[ClientId, int] | None:
        """Return what each update of a round counts; None where that is its examples."""
        return self.times(round_) if self.job.clients.sampling == "size" else None

    def counted(self, rows: Sequence[RoundRow]) -> dict[ClientId, int]:
        """Return the last of these closed rounds that each client counted in.

        Those of a round's cohort counted whom its row does not call absent.
        """
        found: dict[ClientId, int] = {}
        for round_, row in enumerate(rows, 1):
            there = row.get("clients") or self.cohort(round_)
            found |= dict.fromkeys(set(there) - set(row.get("absent", ())), round_)
        return found
