"""Exact sums of products: what two factors cannot hold stays beside them, frozen.

    T = Σ w_k (s_k / s) B_k A_k + B' A'                  what the clients' models have, on average

FedEx   A = Σ w_k A_k,  B = Σ w_k B_k,   side = T - B A  = Σ w_k (B_k - B)(A_k - A) + B' A'
FLoRA   A = A of the round's start, B = 0,   side = T

The rest of K clients has rank (K - 1) r at most, and it adds up over rounds, so the side factors
are recompressed: to the lowest rank at which no more than `error` ‖T‖_F is lost. Errors of several
rounds add up to no more than their sum.

A component that a client of lower rank held and did not train counts with the server's copy, so
ranks may differ. FedEx-LoRA, arXiv:2410.09432, section 3, and FLoRA, arXiv:2409.05976, section 3.2,
with each client's scale folded in; both add to the base what is kept beside it here.
"""

import torch

from triskel.aggregate.cohort import Kept, Made, Module, by_module
from triskel.aggregate.products import ROUNDING, Product, norm, recompressed, scaled, stacked
from triskel.aggregate.spec import ErrorOptions


def fedex(options: ErrorOptions) -> Kept:
    """Return the mean of factors with the exact rest of the mean of products."""

    def rule(module: Module) -> Made:
        whole = _sum(module)
        rest = stacked([whole, scaled(module.mean, -1)])
        return Made(pair=module.mean, side=recompressed(rest, _bound(whole, module, options)))

    return by_module(rule)


def flora(options: ErrorOptions) -> Kept:
    """Return factors that begin again, and all that was learnt beside them."""

    def rule(module: Module) -> Made:
        restarted = Product(torch.zeros_like(module.before.left), module.before.right)
        whole = _sum(module)
        return Made(pair=restarted, side=recompressed(whole, _bound(whole, module, options)))

    return by_module(rule)


def _sum(module: Module) -> Product:
    """Return T."""
    parts = module.weighed(module.whole)
    return stacked(parts if module.side is None else [*parts, module.side])


def _bound(whole: Product, module: Module, options: ErrorOptions) -> float:
    """Return how much may be lost; never less than rounding."""
    return max(options.error, ROUNDING, torch.finfo(module.dtype).eps) * norm(whole)
