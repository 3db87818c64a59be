"""Rules that some clients may not steer, on products: factors are defined only up to a matrix.

(B Q) (Q^-1 A) is B A for every invertible Q, so distances, norms and medians of A and B say nothing
of what a client learnt. The change of client k is over all modules and all that is no pair

    x_k = (s_k B_k A_k - s B A,  head_k - head)        ⟨x_k, x_l⟩ by small Gram matrices

and the value is what the server had plus a sum of changes, Σ v_k x_k, as the best factors of the
server's rank; a single v_k = 1 gives that client's tensors themselves.

Krum             v = 1 for the client with the least sum of squared distances to its K - f - 2
                 nearest; f attackers, K >= 2 f + 3      (Blanchard et al. 2017, arXiv:1703.02757)
multi-Krum       v = 1 / m for the m = K - f - 2 least such sums (at least one)
geometric median argmin Σ ‖x - x_k‖, by Weiszfeld's iteration   (Pillutla et al., arXiv:1912.13445)
norm clipping    v_k = w_k min(1, c / ‖x_k‖), c a number or a multiple of the median norm
                 (Sun et al. 2019, arXiv:1911.07963)

Examples count for norm clipping alone: a client may claim any number.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from triskel.aggregate.cohort import Cohort, Kept, Made, Module
from triskel.aggregate.products import Product, best, gram, scaled
from triskel.aggregate.spec import AttackerOptions, ClipOptions
from triskel.errors import RoundError
from triskel.types import Section

Weigh = Callable[[Tensor, Cohort], Tensor]
"""What each change is multiplied by, of their inner products [K, K]."""

STEPS = 1000
SETTLED = 1e-9
NEAR = 1e-6
"""Of the median distance: nearer than this a change counts no more, as it would without end."""


def krum(options: AttackerOptions) -> Kept:
    """Return the update that is nearest to its neighbours."""
    return _weighed(lambda inner, _: _nearest(inner, options.attackers, "krum", most=1))


def multi_krum(options: AttackerOptions) -> Kept:
    """Return the mean of the updates that are nearest to their neighbours."""
    return _weighed(lambda inner, _: _nearest(inner, options.attackers, "multi_krum"))


def geometric_median() -> Kept:
    """Return the point with the least sum of distances to the updates."""
    return _weighed(lambda inner, _: weiszfeld(distances(inner)))


def norm_clip(options: ClipOptions) -> Kept:
    """Return the mean of changes none of which is longer than a bound."""

    def weigh(inner: Tensor, cohort: Cohort) -> Tensor:
        lengths = inner.diagonal().clamp(min=0).sqrt()
        bound = options.norm or options.multiple * float(lengths.quantile(0.5))
        shares = torch.tensor(cohort.shares, dtype=torch.float64)
        return shares * torch.where(lengths > bound, bound / lengths, 1.0)

    return _weighed(weigh)


def distances(inner: Tensor) -> Tensor:
    """Return squared distances, of inner products."""
    norms = inner.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * inner).clamp(min=0).fill_diagonal_(0)


def weiszfeld(apart: Tensor) -> Tensor:
    """Return the weights of the geometric median, of squared distances.

    It begins at the point that is nearest to the others: from a mean that one point has pulled far
    away, rounding would hide the rest.
    """
    far = apart.sqrt()
    weights = torch.zeros(len(apart), dtype=torch.float64)
    weights[int(far.sum(1).argmin())] = 1
    if len(apart) <= 2:  # noqa: PLR2004 - any point between two is one
        return torch.full_like(weights, 1 / len(apart))
    least = max(NEAR * float(far.median(1).values.median()), torch.finfo(apart.dtype).tiny)
    for _ in range(STEPS):
        squares = apart @ weights - (weights @ apart @ weights) / 2
        found = 1 / squares.clamp(min=0).sqrt().clamp(min=least)
        found = found / found.sum()
        if float((found - weights).abs().sum()) < SETTLED:
            return found
        weights = found
    return weights


def enough(count: int, attackers: int, least: int, name: str) -> None:
    """Check that there are enough updates for so many attackers.

    Raises:
        RoundError: There are not.
    """
    if attackers and count < least:
        raise RoundError(
            f"{name} with attackers = {attackers} needs the updates of {least} clients, and this "
            f"round has {count}; lower attackers, or let more clients take part"
        )


def _nearest(inner: Tensor, attackers: int, name: str, most: int | None = None) -> Tensor:
    count = len(inner)
    enough(count, attackers, 2 * attackers + 3, name)
    near = max(count - attackers - 2, 1)
    others = distances(inner).fill_diagonal_(float("inf")).sort(dim=1).values
    scores = others[:, : min(near, count - 1)].sum(1)
    chosen = scores.argsort(stable=True)[: most or near]
    weights = torch.zeros(count, dtype=torch.float64)
    weights[chosen] = 1 / len(chosen)
    return weights


def _weighed(weigh: Weigh) -> Kept:
    def value(cohort: Cohort) -> dict[str, Section]:
        modules = dict(cohort.modules())
        inner = _inner(cohort, modules)
        if not bool(inner.isfinite().all()):
            raise RoundError("an update is too large for its norm to be a number")
        weights = weigh(inner, cohort)
        made = {stem: _moved(module, weights) for stem, module in modules.items()}
        others = {
            name: _summed(before, sent, weights) for name, (before, sent) in cohort.others.items()
        }
        return cohort.value(others, made)

    return Kept(value)


def _inner(cohort: Cohort, modules: Mapping[str, Module]) -> Tensor:
    """Return the inner products of all changes."""
    found = torch.zeros(len(cohort.updates), len(cohort.updates), dtype=torch.float64)
    for module in modules.values():
        found += module.scale**2 * gram([_change(one, module.before) for one in module.whole])
    for before, sent in cohort.others.values():
        moved = torch.stack([(one.double() - before.double()).flatten() for one in sent])
        found += moved @ moved.T
    return found


def _change(after: Product, before: Product) -> Product:
    """Return B_k A_k - B A as (B_k - B) A_k + B (A_k - A): small differences stay exact."""
    left = torch.cat([after.left - before.left, before.left], dim=1)
    return Product(left, torch.cat([after.right, after.right - before.right]))


def _moved(module: Module, weights: Tensor) -> Made:
    if (alone := _alone(weights)) is not None:
        return Made(pair=module.whole[alone], side=module.side)
    pairs = zip(module.whole, weights.tolist(), strict=True)
    parts = [scaled(pair, weight) for pair, weight in pairs if weight]
    rest = scaled(module.before, 1 - float(weights.sum()))
    return Made(pair=module.of(best([*parts, rest], module.rank)), side=module.side)


def _summed(before: Tensor, sent: list[Tensor], weights: Tensor) -> Tensor:
    if (alone := _alone(weights)) is not None:
        return sent[alone]
    start = before.double()
    changes = torch.stack([one.double() - start for one in sent])
    return start + torch.tensordot(weights, changes, dims=1)


def _alone(weights: Tensor) -> int | None:
    """Return which one has all the weight, if one has."""
    chosen = weights.nonzero().flatten()
    return int(chosen) if len(chosen) == 1 and float(weights[chosen]) == 1 else None
