"""LoRA-FAIR: the mean of factors, its B moved so that the product is near the mean of products.

    A, B = Σ w_k A_k, Σ w_k B_k;   ΔW = Σ w_k B_k A_k
    ΔB = argmin ‖ΔW - (B + ΔB) A‖²_F + λ ‖ΔB‖²_F = (ΔW A^T - B A A^T) (A A^T + λ I)^-1

What A cannot span stays lost. Ranks may differ as in the mean: what a client did not train counts
with the server's copy. Bian et al. 2024, arXiv:2411.14961, section 4.1, solved in closed form with
the distance as the measure of likeness.
"""

import torch

from triskel.aggregate.cohort import Kept, Made, Module, by_module
from triskel.aggregate.products import Product
from triskel.aggregate.spec import RidgeOptions


def lora_fair(options: RidgeOptions) -> Kept:
    """Return the mean of factors with a corrected B."""

    def rule(module: Module) -> Made:
        mean = module.mean
        down = mean.right
        rest = sum(
            (part.left @ (part.right @ down.T) for part in module.weighed(module.whole)),
            start=torch.zeros_like(mean.left),
        )
        rest = rest - mean.left @ (down @ down.T)
        ridge = down @ down.T + options.ridge * torch.eye(len(down), dtype=down.dtype)
        change = torch.linalg.solve(ridge, rest.T).T
        return Made(pair=Product(mean.left + change, down), side=module.side)

    return by_module(rule)
