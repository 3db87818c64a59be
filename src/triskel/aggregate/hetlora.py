"""HetLoRA: factors padded with zeros to one rank, a client's weight the norm of what it learnt.

    v_k = ‖B_k A_k‖_F / Σ_j ‖B_j A_j‖_F        over all modules of a client
    A = Σ v_k [A_k; 0],   B = Σ v_k (s_k / s) [B_k, 0]

A client of rank r_k gets the first r_k components. As in FedIT the product of sums is not the sum
of products; and a component that few clients have is made smaller twice, in A and in B. One that
none of this round's clients has keeps its A and gets B = 0: with both zero it would never train
again. Where all products are zero, examples are the weights; heads are averaged by examples always.
Whoever sends a large product has a large say. Cho et al. 2024, arXiv:2401.06432, section 3.2.
"""

import torch

from triskel.aggregate.cohort import Cohort, Kept, Made, Module
from triskel.aggregate.products import Product, norm
from triskel.types import Section


def hetlora() -> Kept:
    """Return the sum of padded factors, weighted by the norms of products."""

    def value(cohort: Cohort) -> dict[str, Section]:
        modules = dict(cohort.modules())
        squares = [0.0] * len(cohort.updates)
        for module in modules.values():
            for k, pair in enumerate(module.sent):
                squares[k] += (module.scale * norm(pair)) ** 2
        norms = [square**0.5 for square in squares]
        weights = norms if sum(norms) > 0 else cohort.counts
        shares = [weight / sum(weights) for weight in weights]
        made = {stem: _padded(module, shares) for stem, module in modules.items()}
        return cohort.value(cohort.averaged(), made)

    return Kept(value, "cut")


def _padded(module: Module, shares: list[float]) -> Made:
    left, right = torch.zeros_like(module.before.left), torch.zeros_like(module.before.right)
    for pair, share in zip(module.sent, shares, strict=True):
        held = len(pair.right)
        left[:, :held] += share * pair.left
        right[:held] += share * pair.right
    most = max(len(pair.right) for pair in module.sent)
    right[most:] = module.before.right[most:]
    return Made(pair=Product(left, right), side=module.side)
