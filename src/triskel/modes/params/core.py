"""Fed-SB: after round 1 a core R of r x r numbers trains, between factors that stay.

    round 1     A and B train as in `both`, and become θ̄
    its end     s B̄ Ā = s U S V^T;   A₀ = V^T,  B₀ = U,  R = S
    later       θᵢ = Rᵢ (and the head);   B₀ (Σ wᵢ Rᵢ) A₀ = Σ wᵢ B₀ Rᵢ A₀

The mean of cores is exactly that of products, whatever clients did. The factors travel once, and
span what the first round moved in: the paper's approximation of a first update (Singhal et al.
2025, arXiv:2502.15436, section 3). The model is the same before and after they are made.
"""

import torch
from torch import Tensor

from triskel.aggregate.products import Product, best
from triskel.model.reparametrisation import Form, core_name, is_core, is_down
from triskel.model.side_factors import DOWN, UP
from triskel.types import Tensors

CORED = Form(core=True)


def cored(tensors: Tensors) -> dict[str, Tensor]:
    """Return A₀, B₀ and R for the factors A [r, in] and B [out, r] of every module.

    A module with less than r rows or columns has zeros in their places.
    """
    found = dict(tensors)
    for name, down in tensors.items():
        if not is_down(name):
            continue
        other = name.replace(DOWN, UP)
        up, rank = tensors[other], len(down)
        svd = best(Product(up.double(), down.double()), rank)
        count = len(svd.s)
        vt, u = torch.zeros_like(down), torch.zeros_like(up)
        core = down.new_zeros(rank, rank)
        vt[:count], u[:, :count] = svd.vt.to(down.dtype), svd.u.to(up.dtype)
        core[range(count), range(count)] = svd.s.to(down.dtype)
        found[name], found[other], found[core_name(name)] = vt, u, core
    return found


def with_cores(tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors with a core of zeros for each pair of factors: what is there later."""
    cores = {core_name(n): t.new_zeros(len(t), len(t)) for n, t in tensors.items() if is_down(n)}
    return {**tensors, **cores}


def has_cores(tensors: Tensors) -> bool:
    """Return whether the factors among these tensors stand around cores."""
    return any(map(is_core, tensors))


def joined(tensors: Tensors) -> Tensors:
    """Return plain factors of the same products: A₀ and B₀ R."""
    return CORED.factors(tensors) if has_cores(tensors) else tensors
