"""The blocks of Llama-like decoders, fused, for one party's adapter or for many at once.

Same function as the reference blocks, up to rounding: one product for q, k and v and one for gate
and up; the pieces of a block, with backward passes of their own, are in `kernels`.

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
from torch.utils.checkpoint import checkpoint

from triskel.config.sections import AHEAD, Adapter
from triskel.model.adapters import is_lowrank, scale_of
from triskel.model.blocks import Blocks
from triskel.model.kernels import LowRank, attend, flash_attention, norm, swiglu
from triskel.model.quantised import is_quantised

TYPES = ("llama", "mistral", "qwen2")
"""Values of `config.model_type` whose blocks these are."""
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj")
MAX_SIDE_BY_SIDE = 128
"""Largest K r: beyond it, factors side by side cost more than they save."""

Parameters = Mapping[str, Tensor]
"""One party's tensors: leaves of autograd's or functions of such, and side factors."""
Installed = Mapping[str, Tensor]
"""What the slots take of them: the leaves themselves, or leaves and side factors stacked."""


@dataclass(frozen=True)
class PartyBatch:
    """Whose adapters run, and which rows of the batch are whose.

    Attributes:
        parties: One mapping of tensors a party, of one rank.
        rows: Number of rows of each party, in order.
    """

    parties: Sequence[Installed]
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
    if is_quantised(blocks.model):
        return "its base is held in fewer bits (model.quantise)"
    if adapter.kind not in AHEAD and (not is_lowrank(adapter) or adapter.dropout):
        return "its adapter is not plain LoRA without dropout"
    return None


class FastBlocks:
    """Fused blocks over the weights of a loaded model, which become views of the fused ones."""

    def __init__(self, blocks: Blocks, adapter: Adapter) -> None:
        """Join the weights that are multiplied with the same input."""
        config = blocks.config
        self._blocks = blocks
        self._scale = scale_of(adapter)
        self._heads = int(config.num_attention_heads)
        self._groups = int(config.num_key_value_heads)
        self._eps = float(config.rms_norm_eps)
        self._stack = [self._fuse(index) for index in range(blocks.count)]

    def run(
        self,
        h: Float[Tensor, "batch tokens width"],
        party_batch: PartyBatch,
        low: int,
        high: int,
        *,
        flash: int,
        recompute: bool = False,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return h after blocks [low, high).

        Args:
            h: Hidden states; rows of party 1 first, then those of party 2, ...
            party_batch: Whose adapters run.
            low: First block.
            high: One past the last.
            flash: From how many tokens on attention is the library's fused kernel.
            recompute: Whether a block's activations are computed again for backward.
        """
        if low >= high:
            return h
        rows, tokens, width = h.shape
        place = _Place(
            shape=(rows, tokens), mask=self._owners(h, party_batch), rotary=self._rotary(h)
        )
        flat = h.reshape(rows * tokens, width)
        for index in range(low, high):
            window = self._blocks.window(index, tokens)
            if window not in place.hidden and (tokens < flash or window < tokens):
                place.hidden[window] = self._hidden(h, window)
            block = self._stack[index]
            if recompute and torch.is_grad_enabled():
                flat = checkpoint(
                    self._block, block, flat, party_batch, place, window,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                flat = self._block(block, flat, party_batch, place, window)
        return flat.view(rows, tokens, width)

    def _block(
        self, block: _Block, h: Tensor, party_batch: PartyBatch, place: _Place, window: int
    ) -> Tensor:
        x = norm(h, block.before, self._eps)
        qkv = self._map(block.qkv, x, None, party_batch, place.mask).view(*place.shape, -1)
        heads = (self._heads, self._groups)
        if window in place.hidden:
            mixed = attend(qkv, *place.rotary, place.hidden[window], *heads)
        else:
            mixed = flash_attention(qkv, *place.rotary, *heads)
        h = self._map(block.out, mixed.reshape(len(h), -1), h, party_batch, place.mask)
        x = norm(h, block.after, self._eps)
        y = swiglu(self._map(block.gated, x, None, party_batch, place.mask))
        return self._map(block.down, y, h, party_batch, place.mask)

    def _map(
        self,
        site: _Site,
        x: Tensor,
        residual: Tensor | None,
        party_batch: PartyBatch,
        mask: Tensor | None,
    ) -> Tensor:
        """Return W x + s B (M ∘ A x), plus the residual."""
        factors = [party[name] for name in site.factors for party in party_batch.parties]
        return LowRank.apply(  # type: ignore[no-any-return]
            x, site.weight, site.bias, residual, self._scale, mask, site.spans, *factors
        )

    def _owners(self, h: Tensor, party_batch: PartyBatch) -> Tensor | None:
        """Return M, [rows · tokens, K · r]; None for one party."""
        if len(party_batch.parties) == 1:
            return None
        owner = torch.repeat_interleave(
            torch.arange(len(party_batch.rows), device=h.device),
            torch.tensor(list(party_batch.rows), device=h.device) * h.shape[1],
        )
        rank = next((len(t) for n, t in party_batch.parties[0].items() if ".lora_A." in n), 0)
        column = torch.arange(len(party_batch.rows), device=h.device).repeat_interleave(rank)
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
