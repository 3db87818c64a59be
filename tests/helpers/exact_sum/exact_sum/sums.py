"""Σ wᵢ Bᵢ Aᵢ + B' A' = B̄ Ā + B″ A″: whole matrices and their singular values, as small as they are.

Sums run in float64 and nothing is cut but what is zero to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.types import Aggregate, ClientUpdate, Section

ZERO = 1e-9
"""Of the largest singular value: what is below is rounding."""


@dataclass(frozen=True)
class Total:
    """The means' total, Σ nᵢ Bᵢ Aᵢ by module, and Σ nᵢ."""

    means: Any
    products: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0


class ExactSum(Aggregate[Total]):
    """The mean of factors, and side factors that make it the mean of products."""

    mean = Mean()

    def zero(self) -> Total:
        return Total(means=self.mean.zero())

    def add(self, total: Total, update: ClientUpdate, before: Mapping[str, Section]) -> Total:
        mine = {n: update.weight * p for n, p in products(update.sections["adapter"], "weight")}
        found = {n: total.products.get(n, 0) + p for n, p in mine.items()}
        means = self.mean.add(total.means, update, before)
        return Total(means, found, total.weight + update.weight)

    def merge(self, left: Total, right: Total) -> Total:
        both = {n: p + right.products[n] for n, p in left.products.items()}
        means = self.mean.merge(left.means, right.means)
        return Total(means, both, left.weight + right.weight)

    def value(self, total: Total, before: Mapping[str, Section]) -> dict[str, Section]:
        plain = {name: section for name, section in before.items() if name != "side"}
        found = dict(self.mean.value(total.means, plain))
        old = dict(products(before["side"], "side")) if "side" in before else {}
        side: dict[str, Tensor] = {}
        for name, product in products(found["adapter"], "weight"):
            if name not in total.products:  # a module that no client of the round has
                continue
            rest = total.products[name] / total.weight - product + old.get(name, 0)
            u, s, v = torch.linalg.svd(rest, full_matrices=False)
            rank = int((s > ZERO * s[0]).sum())
            if s[0] > 0:
                side[f"{name}.lora_A.side"] = v[:rank]
                side[f"{name}.lora_B.side"] = u[:, :rank] * s[:rank]
        dtype = next(iter(found["adapter"].tensors.values())).dtype
        side = {n: t.to(dtype).contiguous() for n, t in side.items()}
        facts = found["adapter"].facts
        more = {"side": Section(kind="lowrank", tensors=side, facts=facts)} if side else {}
        return found | more


def products(section: Section, ending: str) -> list[tuple[str, Tensor]]:
    """B A of each module, in float64."""
    halves, end = section.tensors, f".lora_A.{ending}"
    stems = [name.removesuffix(end) for name in halves if name.endswith(end)]
    return [
        (stem, halves[f"{stem}.lora_B.{ending}"].double() @ halves[f"{stem}{end}"].double())
        for stem in stems
    ]
