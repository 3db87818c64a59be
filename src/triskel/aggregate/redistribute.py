"""The sum of products back into factors of the server's rank, by its singular values.

    M = U S V^T,   A = V^T,  B = U S,  the first r components; a client of rank r_k gets r_k of them

FlexLoRA   M = Σ w_k (s_k / s) B_k A_k                          (arXiv:2402.11505, section 3)
raFLoRA    the component i of a product counts by the clients that have one:
           M = Σ_k Σ_{i ≤ r_k} w_k / (Σ_{j: r_j ≥ i} w_j) b_ki a_ki     (arXiv:2602.13486)
FLoRIST    M of FlexLoRA, and only as many components as hold a share of the energy Σ S²
           (arXiv:2506.09199); the others have B = 0 and keep A = V^T, so that they train again

Of all matrices of rank r the first components are nearest to M, and what is beyond them is lost. A
component that a client was not sent counts as zero for it: with FlexLoRA's weights the high ranks
fade, which is what raFLoRA mends. Equal ranks make both the same.
"""

import torch

from triskel.aggregate.cohort import Kept, Made, Module, by_module
from triskel.aggregate.products import Product, Svd, best
from triskel.aggregate.spec import EnergyOptions


def flexlora() -> Kept:
    """Return the best factors of the mean of products."""
    return by_module(lambda module: Made(pair=module.of(_mean(module)), side=module.side), "cut")


def raflora() -> Kept:
    """Return the best factors of products whose components count by who has them."""

    def rule(module: Module) -> Made:
        holders = torch.zeros(module.rank, dtype=torch.float64)
        for pair, share in zip(module.sent, module.shares, strict=True):
            holders[: len(pair.right)] += share
        parts = [
            Product(pair.left * (share / holders[: len(pair.right)]), pair.right)
            for pair, share in zip(module.sent, module.shares, strict=True)
        ]
        return Made(pair=module.of(best(parts, module.rank)), side=module.side)

    return by_module(rule, "cut")


def florist(options: EnergyOptions) -> Kept:
    """Return the best factors of the mean of products, as few as hold a share of its energy."""

    def rule(module: Module) -> Made:
        found = _mean(module)
        held = found.s.square().cumsum(0)
        count = int((held < options.energy * (held[-1] + found.lost**2)).sum()) + 1
        pair = module.of(found)
        left = pair.left.clone()
        left[:, count:] = 0
        return Made(pair=Product(left, pair.right), side=module.side)

    return by_module(rule, "cut")


def _mean(module: Module) -> Svd:
    return best(module.sent, module.rank, module.shares)
