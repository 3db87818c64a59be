"""Tensors that are known by where they started and by the steps that were taken: pairs of numbers.

    w = w0 - η 2^-30 Σ_s A_s Z_s        A_s = a_s 2^16, an integer;  Z_s = normals of seed s

The sum is one of integers below 2^53, so float64 holds it exactly: it is the same in any order, in
any number of threads and on any device, and what is known of a sum need not be added again. Tensors
lie end to end in the order of their names, each row by row, and number i of a seed belongs to entry
i. The product with η 2^-30, the difference and its dtype are rounded once each, in this order.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from triskel.errors import RoundError
from triskel.numerics.normals import LARGEST, UNIT, normals
from triskel.types import Tensors

TICK = 2.0**-16
"""Scalars are multiples of it."""
MOST = 2.0**12
"""No scalar of one step may be larger."""
EXACT = 2.0**51 // LARGEST
"""Σ |A_s| may not be larger: what is added to a sum of as many then stays below 2^53."""
CPU_PIECE, PIECE = 1 << 18, 1 << 22
"""Entries at a time, on a CPU and elsewhere; whole blocks of normals."""


def ticks(scalars: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Return scalars as integers A, rounded to the nearest, to even where two are as near.

    >>> ticks(torch.tensor([1.0, -0.5, 1e-5])).tolist()
    [65536.0, -32768.0, 1.0]
    """
    return (scalars.to(torch.float64) / TICK).round()


def scalars_of(found: Float64[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Return integers A as scalars; beyond 2^24 to the nearest that float32 has."""
    return (found.to(torch.float64) * TICK).to(torch.float32)


@dataclass(frozen=True, eq=False)
class Steps:
    """How far tensors were taken along each seed.

    Attributes:
        seeds: Seeds, int64, each once and rising.
        ticks: A of each, float64, none 0.
    """

    seeds: Int[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    ticks: Float64[Tensor, " n"] = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )

    @classmethod
    def of(cls, seeds: Int[Tensor, " n"], found: Float64[Tensor, " n"]) -> "Steps":
        """Return steps in any order, several along one seed among them, as one along each."""
        known, place = torch.unique(seeds.to(torch.int64), return_inverse=True)
        sums = torch.zeros(len(known), dtype=torch.float64).index_add_(0, place, found)
        return cls(known[sums != 0], sums[sums != 0])

    def beyond(self, other: "Steps") -> "Steps":
        """Return the steps that lead from where the others lead to where these do."""
        return Steps.of(torch.cat([self.seeds, other.seeds]), torch.cat([self.ticks, -other.ticks]))


class Replay:
    """Tensors rebuilt from their start; the last sum is kept, so that only what is new is added.

    Attributes:
        start: w0.
        flat: The same end to end.
    """

    def __init__(self, start: Tensors, lr: float) -> None:
        """Keep the start.

        Args:
            start: w0, on the CPU.
            lr: η.
        """
        self.start, self.flat, self._lr = start, flattened(start), lr
        self._known = Steps(), torch.zeros(len(self.flat), dtype=torch.float64)

    def sums(self, steps: Steps) -> Float64[Tensor, " numbers"]:
        """Return Σ A_s Z_s over the steps; nobody may write into it.

        Raises:
            RoundError: It could be beyond what is exact.
        """
        if float(steps.ticks.abs().sum()) > EXACT:
            raise RoundError(
                f"the scalars of all seeds add up to {float(steps.ticks.abs().sum()) * TICK:.6g}, "
                f"and beyond {EXACT * TICK:.6g} their sums would no longer be exact: lower "
                "params.exchange.lr, and begin anew"
            )
        before, known = self._known
        new = steps.beyond(before)
        if len(new.seeds) > len(steps.seeds):
            new, known = steps, torch.zeros_like(known)
        if len(new.seeds):
            known = known.clone()
            for piece in pieces(known):
                here = known[piece]
                for seed, a in zip(new.seeds.tolist(), new.ticks.tolist(), strict=True):
                    here.add_(normals(seed, piece.start, len(here)), alpha=a)
            self._known = steps, known
        return known

    def tensors(self, steps: Steps) -> dict[str, Tensor]:
        """Return w.

        Raises:
            RoundError: The sums could be beyond what is exact.
        """
        return parted(moved(self.flat, self.sums(steps), self._lr), self.start)

    @cached_property
    def sha256(self) -> str:
        """Return by what the start is known: names, shapes and numbers."""
        digest = hashlib.sha256(str(self.flat.dtype).encode())
        for name in sorted(self.start):
            digest.update(f" {name} {list(self.start[name].shape)}".encode())
        digest.update(self.flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def moved(
    start: Float[Tensor, " n"], sums: Float64[Tensor, " n"], lr: float
) -> Float[Tensor, " n"]:
    """Return w of w0 and Σ A_s Z_s."""
    return (start.to(torch.float64) - sums * (lr * TICK * UNIT)).to(start.dtype)


def pieces(flat: Tensor) -> Iterator[slice]:
    """Return where pieces of bounded length begin and end, each at the beginning of a block."""
    length = CPU_PIECE if flat.is_cpu else PIECE
    for start in range(0, len(flat), length):
        yield slice(start, min(start + length, len(flat)))


def flattened(tensors: Tensors) -> Float[Tensor, " numbers"]:
    """Return tensors end to end, in the order of their names."""
    return torch.cat([tensors[name].detach().reshape(-1) for name in sorted(tensors)])


def parted(
    flat: Float[Tensor, " numbers"], like: Mapping[str, Tensor], *, copy: bool = True
) -> dict[str, Tensor]:
    """Return what `flattened` put end to end, by the names of `like` and in its order.

    Args:
        flat: The numbers.
        like: Names and shapes.
        copy: Whether the tensors have memory of their own; else they are views.
    """
    names = sorted(like)
    parts = dict(zip(names, flat.split([like[name].numel() for name in names]), strict=True))
    views = {name: parts[name].view(like[name].shape) for name in like}
    return {name: view.clone() for name, view in views.items()} if copy else views
