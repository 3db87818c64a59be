"""The blocks of Llama-like decoders, fused, for one party's adapter or for many at once.

Same function as the reference blocks, up to rounding: one product for q, k and v and one for gate
and up; own backward passes for norm, rotary attention, SwiGLU and low-rank factors, which keep
only what they need; low-rank products in the dtype of the base.

Many parties, one forward pass: the rows of a joined batch belong to parties 1..K. Their factors
stand side by side, A = [A₁; ...; A_K] and B = [B₁ ... B_K], and a mask keeps every row to its own:

    y = W x + s B (M ∘ A x),    M = 1 where the column's party owns the row, else 0

so gradients of Aᵢ and Bᵢ are those of party i alone. Parties may have any number of rows each. A
parallel low-rank product costs K times the adapter's FLOPs, which is little beside W while K r is
small; S-LoRA (Sheng et al. 2023, arXiv:2311.03285) gathers instead, with kernels of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from triskel.job import Adapter
from triskel.model.adapters import is_lowrank, scale_of
from triskel.model.blocks import Blocks
from triskel.tensors import wide

TYPES = ("llama", "mistral", "qwen2")
"""Values of `config.model_type` whose blocks these are."""
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj")
MAX_SIDE_BY_SIDE = 128
"""Largest K r: beyond it, factors side by side cost more than they save."""
SHORT = 32
"""Rows of fewer numbers than this go backward through softmax sooner in float32 on a CPU."""

Parameters = Mapping[str, nn.Parameter]
"""One party's trainable tensors, as leaves autograd can differentiate by."""


@dataclass(frozen=True)
class Crew:
    """Whose adapters run, and which rows of the batch are whose.

    Attributes:
        parties: One mapping of tensors a party.
        rows: Number of rows of each party, in order.
    """

    parties: Sequence[Parameters]
    rows: Sequence[int]


@dataclass(frozen=True)
class _Site:
    """Linear maps of one input, their weights on top of each other.

    Attributes:
        weight: [out, in], frozen.
        bias: [out], frozen, or None.
        factors: Names of the adapted maps' factors, all A before all B.
        spans: First and one past the last output of each adapted map.
    """

    weight: Tensor
    bias: Tensor | None
    factors: Sequence[str]
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Block:
    before: Tensor
    qkv: _Site
    out: _Site
    after: Tensor
    gated: _Site
    down: _Site


@dataclass(frozen=True)
class _Place:
    """What all blocks of one pass share.

    Attributes:
        shape: Rows and tokens.
        mask: Whose row is whose, or None for one party.
        rotary: Cosines and sines.
        hidden: What is added to scores, by window, where scores are held.
    """

    shape: tuple[int, int]
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor]
    hidden: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


def why_not(blocks: Blocks, adapter: Adapter) -> str | None:
    """Return why a model or an adapter has no fused blocks, or None where it has."""
    config = blocks.config
    if config.model_type not in TYPES:
        return f"{config.model_type} has no fused blocks; {', '.join(TYPES)} have"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if not is_lowrank(adapter) or adapter.dropout:
        return "its adapter is not plain LoRA without dropout"
    return None


class FastBlocks:
    """Fused blocks over the weights of a loaded model, which become views of the fused ones."""

    def __init__(self, blocks: Blocks, adapter: Adapter) -> None:
        """Join the weights that are multiplied with the same input."""
        config = blocks.config
        self._blocks = blocks
        self._scale = scale_of(adapter)
        self._rank = adapter.rank
        self._heads = int(config.num_attention_heads)
        self._groups = int(config.num_key_value_heads)
        self._eps = float(config.rms_norm_eps)
        self._stack = [self._fuse(index) for index in range(blocks.count)]

    def run(
        self,
        h: Float[Tensor, "batch tokens width"],
        crew: Crew,
        low: int,
        high: int,
        *,
        flash: int,
        recompute: bool = False,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return h after blocks [low, high).

        Args:
            h: Hidden states; rows of party 1 first, then those of party 2, ...
            crew: Whose adapters run.
            low: First block.
            high: One past the last.
            flash: From how many tokens on attention is the library's fused kernel.
            recompute: Whether a block's activations are computed again for backward.
        """
        if low >= high:
            return h
        rows, tokens, width = h.shape
        place = _Place(shape=(rows, tokens), mask=self._owners(h, crew), rotary=self._rotary(h))
        flat = h.reshape(rows * tokens, width)
        for index in range(low, high):
            window = self._blocks.window(index, tokens)
            if window not in place.hidden and (tokens < flash or window < tokens):
                place.hidden[window] = self._hidden(h, window)
            block = self._stack[index]
            if recompute and torch.is_grad_enabled():
                flat = checkpoint(
                    self._block, block, flat, crew, place, window,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                flat = self._block(block, flat, crew, place, window)
        return flat.view(rows, tokens, width)

    def _block(self, block: _Block, h: Tensor, crew: Crew, place: _Place, window: int) -> Tensor:
        x = _norm(h, block.before, self._eps)
        qkv = self._map(block.qkv, x, None, crew, place.mask).view(*place.shape, -1)
        heads = (self._heads, self._groups)
        if window in place.hidden:
            mixed = _attend(qkv, *place.rotary, place.hidden[window], *heads)
        else:
            mixed = _flash(qkv, *place.rotary, *heads)
        h = self._map(block.out, mixed.reshape(len(h), -1), h, crew, place.mask)
        x = _norm(h, block.after, self._eps)
        y = _swiglu(self._map(block.gated, x, None, crew, place.mask))
        return self._map(block.down, y, h, crew, place.mask)

    def _map(
        self, site: _Site, x: Tensor, residual: Tensor | None, crew: Crew, mask: Tensor | None
    ) -> Tensor:
        """Return W x + s B (M ∘ A x), plus the residual."""
        factors = [party[name] for name in site.factors for party in crew.parties]
        return _LowRank.apply(  # type: ignore[no-any-return]
            x, site.weight, site.bias, residual, self._scale, mask, site.spans, *factors
        )

    def _owners(self, h: Tensor, crew: Crew) -> Tensor | None:
        """Return M, [rows · tokens, K · r]; None for one party."""
        if len(crew.parties) == 1:
            return None
        owner = torch.repeat_interleave(
            torch.arange(len(crew.rows), device=h.device),
            torch.tensor(list(crew.rows), device=h.device) * h.shape[1],
        )
        column = torch.arange(len(crew.rows), device=h.device).repeat_interleave(self._rank)
        return (owner[:, None] == column[None]).to(h.dtype)

    def _hidden(self, h: Tensor, window: int) -> Tensor:
        """Return what is added to the scores of one group of heads, [heads · tokens, tokens]."""
        place = torch.arange(h.shape[1], device=h.device)
        gap = place[:, None] - place[None]
        hidden = torch.zeros(gap.shape, dtype=h.dtype, device=h.device)
        hidden.masked_fill_((gap < 0) | (gap >= window), torch.finfo(h.dtype).min)
        return hidden.repeat(self._heads // self._groups, 1)

    def _rotary(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of q and k, [tokens, heads, size]; sines of left halves < 0."""
        places = torch.arange(h.shape[1], device=h.device)[None]
        cos, sin = self._blocks.model.model.rotary_emb(h, places)
        left, right = sin[0].chunk(2, dim=-1)
        both = torch.stack([cos[0], torch.cat([-left, right], dim=-1)])
        heads = self._heads + self._groups  # each has its own copy: long rows are turned sooner
        cos, sin = both[:, :, None].expand(-1, -1, heads, -1).contiguous()
        return cos, sin

    def _fuse(self, index: int) -> _Block:
        layer: Any = self._blocks.list[index]
        prefix = f"{self._blocks.family.blocks}.{index}"
        return _Block(
            before=layer.input_layernorm.weight,
            qkv=_site(layer.self_attn, f"{prefix}.self_attn", ATTENTION),
            out=_site(layer.self_attn, f"{prefix}.self_attn", ("o_proj",)),
            after=layer.post_attention_layernorm.weight,
            gated=_site(layer.mlp, f"{prefix}.mlp", GATED),
            down=_site(layer.mlp, f"{prefix}.mlp", ("down_proj",)),
        )


def _site(owner: Any, prefix: str, names: Iterable[str]) -> _Site:
    """Join linear maps of one input, and point the originals at their part."""
    names = list(names)
    maps = [getattr(owner, name) for name in names]
    bases = [getattr(one, "base_layer", one) for one in maps]
    weight = torch.cat([base.weight.detach() for base in bases])
    bias = None
    if any(base.bias is not None for base in bases):
        bias = torch.cat([
            weight.new_zeros(len(base.weight)) if base.bias is None else base.bias.detach()
            for base in bases
        ])  # fmt: skip
    adapted: list[str] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for name, one, base in zip(names, maps, bases, strict=True):
        end = start + len(base.weight)
        base.weight = nn.Parameter(weight[start:end], requires_grad=False)
        if one is not base:
            adapted.append(f"{prefix}.{name}")
            spans.append((start, end))
        start = end
    factors = [f"{stem}.lora_{letter}.weight" for letter in "AB" for stem in adapted]
    return _Site(weight=weight, bias=bias, factors=factors, spans=tuple(spans))


# --- pieces with backward passes of their own -------------------------------------------------


class _LowRank(Function):
    """W x + s B (M ∘ A x) + residual; W is frozen."""

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


def _flash(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, groups: int) -> Tensor:
    """Return the mixed values by the library's kernel, which never holds all scores."""
    rows, tokens, width = qkv.shape
    parts = qkv.view(rows, tokens, -1, width // (heads + 2 * groups))
    turned = _turn(parts[:, :, : heads + groups], cos, sin)
    q, k = turned[:, :, :heads].transpose(1, 2), turned[:, :, heads:].transpose(1, 2)
    v = parts[:, :, heads + groups :].transpose(1, 2)
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
    return mixed.transpose(1, 2).reshape(rows, tokens, -1)


def _attend(qkv: Tensor, cos: Tensor, sin: Tensor, seen: Tensor, heads: int, groups: int) -> Tensor:
    return _Attend.apply(qkv, cos, sin, seen, heads, groups)  # type: ignore[no-any-return]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _Norm.apply(x, weight, eps)  # type: ignore[no-any-return]


def _swiglu(both: Tensor) -> Tensor:
    return _SwiGLU.apply(both)  # type: ignore[no-any-return]
