"""The weighted mean, as a fold: Σᵢ nᵢ xᵢ / Σᵢ nᵢ, holding one xᵢ at a time.

A client that did not send a tensor counts with the server's copy of it, and one whose factors have
a lower rank with the server's copy of the components that it lacks, its B at the server's scale.
Sums run in float64, so the mean of one client is that client's tensors bit for bit (nᵢ·x is exact
below 2²⁹ examples). FedAvg, McMahan et al. 2017, arXiv:1602.05629, Algorithm 1; on low-rank factors
FedIT (arXiv:2305.05644), whose product of means is not the mean of products.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from triskel.aggregate.pairs import checked, completed
from triskel.errors import RoundError
from triskel.types import ClientUpdate, Section, Tensors


@dataclass(frozen=True)
class MeanTotal:
    """A running weighted sum.

    Attributes:
        sums: Σ nᵢ xᵢ by name, float64.
        held: Σ nᵢ over those who sent this name.
        weight: Σ nᵢ over everyone.
    """

    sums: Tensors = field(default_factory=dict[str, Tensor])
    held: Mapping[str, float] = field(default_factory=dict[str, float])
    weight: float = 0.0


class Mean:
    """Weighted mean of named tensors; satisfies `types.Aggregate`."""

    def zero(self) -> MeanTotal:
        """Return the total of no updates."""
        return MeanTotal()

    def add(
        self, total: MeanTotal, update: ClientUpdate, before: Mapping[str, Section]
    ) -> MeanTotal:
        """Return the total with one client's tensors folded in.

        Raises:
            RoundError: It counts for nothing, holds what is no number, or its factors do not fit.
        """
        checked(update, before, "rest", halves=True)
        for name, section in update.sections.items():
            like = before.get(name)
            tensors = section.tensors if like is None else completed(section, like)
            total = _folded(total, tensors, update.weight)
        return replace(total, weight=total.weight + update.weight)

    def merge(self, left: MeanTotal, right: MeanTotal) -> MeanTotal:
        """Return the total of both totals."""
        sums, held = dict(left.sums), dict(left.held)
        for name, value in right.sums.items():
            sums[name] = sums[name] + value if name in sums else value
            held[name] = held.get(name, 0.0) + right.held[name]
        return MeanTotal(sums=sums, held=held, weight=left.weight + right.weight)

    def value(self, total: MeanTotal, before: Mapping[str, Section]) -> dict[str, Section]:
        """Return the means; who did not send a tensor counts with the server's copy.

        Raises:
            RoundError: Nobody sent anything.
        """
        if not total.weight:
            raise RoundError("no client returned an update; every client of the cohort failed")
        return {
            name: replace(
                section, tensors={n: _of(total, n, t) for n, t in section.tensors.items()}
            )
            for name, section in before.items()
        }


def _of(total: MeanTotal, name: str, before: Tensor) -> Tensor:
    """Return the mean of one tensor; where nobody sent it, a copy of the server's."""
    if name not in total.sums:
        return before.detach().clone()
    found, held = total.sums[name], total.held[name]
    if (rest := total.weight - held) > 0:
        found, held = torch.add(found, before.detach(), alpha=rest), held + rest
    return (found / held).to(before.dtype)


def _folded(total: MeanTotal, tensors: Tensors, weight: float) -> MeanTotal:
    """Return the total with these tensors folded in; its weight is as it was."""
    sums, held = dict(total.sums), dict(total.held)
    known = [name for name in tensors if name in sums]
    with torch.no_grad():
        if known:
            into, more = [sums[n] for n in known], [tensors[n] for n in known]
            torch.ops.aten._foreach_add_.List(into, more, alpha=weight)
        new = {n: t for n, t in tensors.items() if n not in sums}
        sums |= {n: t.to(torch.float64, copy=True).mul_(weight) for n, t in new.items()}
    held |= {name: held.get(name, 0.0) + weight for name in tensors}
    return replace(total, sums=sums, held=held)
