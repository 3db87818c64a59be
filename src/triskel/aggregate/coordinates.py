"""Median and trimmed mean of each number, of products and of what is no pair.

    M[i, j] = mean of the sorted (s_k / s) (B_k A_k)[i, j] without the f least and the f largest

The median takes away all but the middle one, or the two in the middle. Entries of products are
what they are whatever the factors; entries of A and B are not (robust.py). M has full rank, so the
value is its best approximation of the server's rank, found over blocks of rows: M is never held.
Subspace iteration from a fixed start ends when a pass gains less than 1e-9 of ‖M‖²; each pass
multiplies all products out once, which is what makes these two slow for large modules.

Examples count for nothing: a client may claim any number. Yin et al. 2018, arXiv:1803.01498.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from triskel.aggregate.cohort import Cohort, Kept, Made, Module
from triskel.aggregate.products import BLOCK, best_of_rows
from triskel.aggregate.robust import enough
from triskel.aggregate.spec import AttackerOptions
from triskel.types import Section


def median() -> Kept:
    """Return the median of each number."""
    return _trimmed(lambda count: (count - 1) // 2)


def trimmed_mean(options: AttackerOptions) -> Kept:
    """Return the mean of each number without the least and the largest."""

    def cut(count: int) -> int:
        enough(count, options.attackers, 2 * options.attackers + 1, "trimmed_mean")
        return options.attackers

    return _trimmed(cut)


def middle(values: Tensor, cut: int) -> Tensor:
    """Return the mean over the first axis without so many least and largest.

    >>> middle(torch.tensor([[1.0], [900.0], [3.0], [5.0]]), 1).tolist()
    [4.0]
    """
    count = len(values)
    return values.sort(dim=0).values[cut : count - cut].mean(0)


def _trimmed(cut_of: Callable[[int], int]) -> Kept:
    def value(cohort: Cohort) -> dict[str, Section]:
        cut = cut_of(len(cohort.updates))
        made = {stem: _module(module, cut) for stem, module in cohort.modules()}
        others = {
            name: middle(torch.stack([one.double() for one in sent]), cut)
            for name, (_, sent) in cohort.others.items()
        }
        return cohort.value(others, made)

    return Kept(value)


def _module(module: Module, cut: int) -> Made:
    pairs = module.whole
    if len(pairs) == 1:
        return Made(pair=pairs[0], side=module.side)
    shape = len(module.before.left), module.before.right.shape[1]

    def rows(low: int, high: int) -> Tensor:
        return middle(torch.stack([one.left[low:high] @ one.right for one in pairs]), cut)

    tall = max(1, BLOCK // (len(pairs) * shape[1]))
    return Made(pair=module.of(best_of_rows(rows, shape, module.rank, tall)), side=module.side)
