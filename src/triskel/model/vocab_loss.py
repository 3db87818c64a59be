"""The loss over a vocabulary, without ever holding the logits of all positions.

A causal model scores every position against the whole vocabulary: 500 positions of a 49,152-token
vocabulary are 98 MB in float32, and several times that with their gradients. Rows are taken a few
at a time instead, and the gradient of a row's loss is computed while its logits are at hand:

    ℓ = log Σ exp z - z_target,   z = W h,   ∂ℓ/∂h = Wᵀ (softmax z - onehot target)
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

from triskel.numerics.tensors import wide

ROWS = 64
"""Positions at a time."""


def vocabulary_losses(
    rows: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " scored"],
) -> Float[Tensor, " scored"]:
    """Return the cross-entropy of each row in nats, float32 at least; 0 where a target is -1."""
    return _Losses.apply(rows, weight, targets)  # type: ignore[no-any-return]


class _Losses(Function):
    """Loss and gradient of a few rows at a time; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the losses, and keep their gradients by row."""
        sums = wide(rows.dtype)
        losses = torch.zeros(len(rows), dtype=sums, device=rows.device)
        slopes = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        for start in range(0, len(rows), ROWS):
            some, wanted = rows[start : start + ROWS], targets[start : start + ROWS]
            known = wanted >= 0
            place = wanted.clamp(min=0)[:, None]
            shares = linear(some, weight).to(sums)
            hit = shares.gather(1, place)[:, 0]
            total = torch.logsumexp(shares, dim=1)
            losses[start : start + ROWS] = (total - hit) * known
            if slopes is not None:
                shares.sub_(total[:, None]).exp_()
                shares.scatter_add_(1, place, torch.full_like(total, -1.0)[:, None])
                shares *= known[:, None]
                slopes[start : start + ROWS] = shares.to(weight.dtype) @ weight
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Return the gradient of the rows."""
        (slopes,) = ctx.saved_tensors
        return (slopes.to(upstream[0].dtype) * upstream[0][:, None]).to(slopes.dtype), None, None
