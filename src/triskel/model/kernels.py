"""The pieces of a fused block, with backward passes of their own.

Norm, rotary attention, SwiGLU and linear maps with low-rank factors, each keeping for its backward
pass only what it needs. Low-rank products are in the dtype of the base; base weights are frozen and
get no gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from triskel.numerics.tensors import wide

SHORT = 32
"""Rows of fewer numbers than this go backward through softmax sooner in float32 on a CPU."""


class LowRank(Function):
    """W x + s B (M ∘ A x) + residual; W is frozen, and M says whose row is whose."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch passes arguments one by one
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        scale: float,
        mask: Tensor | None,
        spans: Sequence[tuple[int, int]],
        *factors: Tensor,
    ) -> Tensor:
        """Return the sum; factors are all A, target by target and party by party, then all B."""
        y = linear(x, weight, bias) if residual is None else torch.addmm(residual, x, weight.t())
        if residual is not None and bias is not None:
            y += bias
        ctx.spans, ctx.scale, ctx.plain = spans, scale, not factors
        if not factors:
            ctx.save_for_backward(weight)
            return y
        half = len(factors) // 2
        a = torch.cat(factors[:half]).to(x.dtype)
        b = weight.new_zeros(len(weight), len(a))
        rank, each = len(factors[0]), half // len(spans)
        ctx.rank, ctx.each, ctx.leaf = rank, each, factors[0].dtype
        for target, (first, last) in enumerate(spans):
            low = target * each * rank
            some = factors[half + target * each : half + (target + 1) * each]
            b[first:last, low : low + each * rank] = torch.cat(some, dim=1)
        b *= scale
        z = linear(x, a)
        if mask is not None:
            z *= mask if len(spans) == 1 else mask.repeat(1, len(spans))
        y.addmm_(z, b.t())
        ctx.save_for_backward(weight, x, z, a, b, mask)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Return gradients of x, the residual and the factors."""
        slope = slopes[0]
        weight, *rest = ctx.saved_tensors
        dx = slope @ weight if ctx.needs_input_grad[0] else None
        up = slope if ctx.needs_input_grad[3] else None
        if ctx.plain:
            return dx, None, None, up, None, None, None
        x, z, a, b, mask = rest
        dz = slope @ b
        if mask is not None:
            dz *= mask if len(ctx.spans) == 1 else mask.repeat(1, len(ctx.spans))
        if dx is not None:
            dx.addmm_(dz, a)
        da = (dz.t() @ x).to(ctx.leaf)
        db = (slope.t() @ z).to(ctx.leaf).mul_(ctx.scale)
        rank, each = ctx.rank, ctx.each
        found = list(da.split(rank))
        for target, (first, last) in enumerate(ctx.spans):
            low = target * each * rank
            found += db[first:last, low : low + each * rank].split(rank, dim=1)
        return (dx, None, None, up, None, None, None, *found)


class _Norm(Function):
    """w x / √(mean x² + ε), the mean in float32; w is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised rows."""
        unit = x.to(wide(x.dtype), copy=True)
        inverse = torch.rsqrt(unit.square().mean(-1, keepdim=True) + eps)
        unit *= inverse
        y = unit.to(x.dtype)
        ctx.save_for_backward(y, inverse, weight)
        return y * weight

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Return the gradient of x: (g w - x̂ mean(g w ∘ x̂)) / √(mean x² + ε)."""
        unit, inverse, weight = ctx.saved_tensors
        slope, normed = (slopes[0] * weight).to(inverse.dtype), unit.to(inverse.dtype)
        share = torch.linalg.vecdot(slope, normed)[:, None] / normed.shape[-1]
        slope.addcmul_(normed, share, value=-1).mul_(inverse)
        return slope.to(unit.dtype), None, None


class _SwiGLU(Function):
    """silu(g) ∘ u for g and u side by side."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Return the product."""
        g, u = both.chunk(2, dim=-1)
        s = silu(g)
        ctx.save_for_backward(both, s)
        return s * u

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        """Return the gradients of g and u side by side."""
        slope = slopes[0]
        both, s = ctx.saved_tensors
        g, u = both.chunk(2, dim=-1)
        found = torch.empty_like(both)
        dg, du = found.chunk(2, dim=-1)
        torch.mul(slope, s, out=du)
        torch.ops.aten.silu_backward.grad_input(slope * u, g, grad_input=dg)
        return found


class _Attend(Function):
    """Rotary causal attention over rows of few tokens, with all scores in memory."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch passes arguments one by one
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        heads: int,
        groups: int,
    ) -> Tensor:
        """Return the mixed values, [rows, tokens, heads · size]."""
        rows, tokens, width = qkv.shape
        size = width // (heads + 2 * groups)
        turned = _turn(qkv[..., : (heads + groups) * size].view(rows, tokens, -1, size), cos, sin)
        q = _grouped(turned[:, :, :heads], groups)
        k = _grouped(turned[:, :, heads:], groups)
        v = _grouped(qkv[..., (heads + groups) * size :].view(rows, tokens, groups, size), groups)
        scale = size**-0.5
        scores = torch.baddbmm(mask, q, k.mT, alpha=scale)
        p = torch.softmax(scores, dim=-1, dtype=wide(scores.dtype)).to(scores.dtype)
        ctx.save_for_backward(q, k, v, p, cos, sin)
        ctx.sizes, ctx.scale = (rows, tokens, heads, groups, size), scale
        mixed = _ungrouped(torch.bmm(p, v), qkv.new_empty(rows, tokens, heads, size))
        return mixed.view(rows, tokens, -1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Return the gradient of q, k and v side by side."""
        q, k, v, p, cos, sin = ctx.saved_tensors
        rows, tokens, heads, groups, size = ctx.sizes
        g = _grouped(slopes[0].view(rows, tokens, heads, size), groups)
        found = g.new_empty(rows, tokens, heads + 2 * groups, size)
        _ungrouped(torch.bmm(p.mT, g), found[:, :, heads + groups :])
        dp, sums = torch.bmm(g, v.mT), wide(p.dtype) if tokens < SHORT else p.dtype
        back = torch.ops.aten._softmax_backward_data  # noqa: SLF001 - torch's own name
        ds = back(dp.to(sums), p.to(sums), -1, sums).to(p.dtype).mul_(ctx.scale)
        both = g.new_empty(rows, tokens, heads + groups, size)
        _ungrouped(torch.bmm(ds, k), both[:, :, :heads])
        _ungrouped(torch.bmm(ds.mT, q), both[:, :, heads:])
        _turn(both, cos, -sin, into=found[:, :, : heads + groups])
        return found.view(rows, tokens, -1), None, None, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, into: Tensor | None = None) -> Tensor:
    """Return the two halves of every head turned by its position's angles."""
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([right, left], dim=-1), sin, out=into)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return [rows · groups, heads a group · tokens, size] of [rows, tokens, heads, size]."""
    rows, tokens, heads, size = x.shape
    parts = x.view(rows, tokens, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    return parts.reshape(rows * groups, -1, size)


def _ungrouped(x: Tensor, into: Tensor) -> Tensor:
    """Return [rows, tokens, heads, size], filled with what `_grouped` made something like."""
    rows, tokens, _, size = into.shape
    groups = x.shape[0] // rows
    parts = x.view(rows, groups, -1, tokens, size).permute(0, 3, 1, 2, 4)
    into.view(parts.shape).copy_(parts)
    return into


def flash_attention(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, groups: int) -> Tensor:
    """Return the mixed values by the library's kernel, which never holds all scores."""
    rows, tokens, width = qkv.shape
    parts = qkv.view(rows, tokens, -1, width // (heads + 2 * groups))
    turned = _turn(parts[:, :, : heads + groups], cos, sin)
    q, k = turned[:, :, :heads].transpose(1, 2), turned[:, :, heads:].transpose(1, 2)
    v = parts[:, :, heads + groups :].transpose(1, 2)
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
    return mixed.transpose(1, 2).reshape(rows, tokens, -1)


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, seen: Tensor, heads: int, groups: int) -> Tensor:
    """Return the mixed values with all scores held, masked by what `seen` adds to them."""
    return _Attend.apply(qkv, cos, sin, seen, heads, groups)  # type: ignore[no-any-return]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return rows over the root of their mean square, times the weight."""
    return _Norm.apply(x, weight, eps)  # type: ignore[no-any-return]


def swiglu(both: Tensor) -> Tensor:
    """Return silu(g) ∘ u for g and u side by side."""
    return _SwiGLU.apply(both)  # type: ignore[no-any-return]
