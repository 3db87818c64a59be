"""The parts of a loaded model, run by name.

A model is embeddings, a list of blocks, a final norm and a head (`model.families`). Every mode runs
these parts here, so a cut, an adapter range or a frozen prefix means the same thing everywhere.
Padding is on the right. A causal block never looks to the right, so real tokens of a decoder need
no padding mask; an encoder gets one.

The frozen base always computes in evaluation mode: its own dropout is off and activations are a
pure function of tokens and adapter. Only the adapter's dropout is ever active.
"""

from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triskel.core.task_spec import Head
from triskel.model.families import family_of

Mask = Float[Tensor, "rows 1 queries tokens"] | None


class Blocks:
    """The parts of one loaded model, run by name.

    Attributes:
        model: The transformers model.
        family: Its map.
        count: L, the number of blocks.
        width: d, the size of a hidden state.
        dtype: What hidden states are computed in.
        positions: Most tokens of a text; None where there is no such limit.
    """

    def __init__(self, model: nn.Module, head: Head) -> None:
        """Find the parts of `model`.

        Raises:
            ModelError: The architecture, or such a head on it, is not supported.
        """
        self.model: Any = model
        self.config: Any = self.model.config
        self.family = family_of(self.config.model_type, head)
        self.list = cast("nn.ModuleList", model.get_submodule(self.family.blocks))
        self.count = len(self.list)
        self.width = int(self.config.hidden_size)
        self.head_names = self.family.heads[head]
        *self.before_head, self.head = map(self._module, self.head_names)
        self.norm = self._module(self.family.norm)
        self.between = self._module(self.family.between)
        self.pool: Literal["last", "first"] = "last" if self.family.causal else "first"
        self.dtype = next(model.parameters()).dtype
        self.positions = self._positions()
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def _module(self, path: str) -> Any:
        """Return a part by its path, or None where this model has none."""
        owner, _, name = path.rpartition(".")
        return getattr(self.model.get_submodule(owner), name) if path else None

    def _positions(self) -> int | None:
        if not self.family.positions:
            return None
        table: Any = self.model.get_submodule(self.family.positions)
        before = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's, unused
        return int(table.num_embeddings) - max(before, getattr(table, "offset", 0))  # OPT's

    @property
    def attention(self) -> str:
        """What the library computes attention with: `eager` or `sdpa`."""
        return str(self.config._attn_implementation)  # noqa: SLF001 - where transformers keeps it

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Return what enters block 0."""
        return self.family.embed(self.model, ids)

    def run(
        self,
        h: Float[Tensor, "batch tokens width"],
        lengths: Int[Tensor, " batch"],
        low: int,
        high: int,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return h after blocks [low, high)."""
        if low >= high:
            return h
        heard = self._mask_of_lengths(h, lengths) if not self.family.causal else None
        beside: dict[str, dict[str, Any]] = {}
        for index in range(low, high):
            kind = self._kind(index)
            if kind not in beside:
                beside[kind] = self.family.beside(self.model, h, kind)
            mask = self._causal_mask(h, kind) if self.family.causal else heard
            h = _state(self.list[index](h, attention_mask=mask, **beside[kind]))
        return h

    @staticmethod
    def _mask_of_lengths(h: Tensor, lengths: Tensor) -> Tensor:
        """Return the mask of an encoder: nobody looks at padding."""
        blocked = torch.arange(h.shape[1], device=h.device)[None, :] >= lengths[:, None]
        mask = torch.zeros(blocked.shape, dtype=h.dtype, device=h.device)
        return mask.masked_fill(blocked, torch.finfo(h.dtype).min)[:, None, None, :]

    def window(self, index: int, tokens: int) -> int:
        """Return how many tokens a token of a block sees, itself included."""
        return self._window(self._kind(index), tokens)

    def _window(self, kind: str, tokens: int) -> int:
        window = self.config.sliding_window if kind == "sliding_attention" else tokens
        return min(window or tokens, tokens)

    def _kind(self, index: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        if kinds:
            return kinds[index]
        window = getattr(self.config, "sliding_window", None)
        everywhere = self.config.model_type in {"mistral", "phi3"}
        return "sliding_attention" if window and everywhere else "full"

    def _causal_mask(self, h: Tensor, kind: str) -> Mask:
        tokens = h.shape[1]
        window = self._window(kind, tokens)
        if self.attention == "sdpa" and window == tokens:
            return None  # the kernel masks by itself
        key = (tokens, window, h.dtype)
        if key not in self._masks:
            self._masks = {key: self._mask(h, window)} | self._masks
            self._masks = dict(list(self._masks.items())[:64])
        return self._masks[key]

    @staticmethod
    def _mask(h: Tensor, window: int) -> Tensor:
        place = torch.arange(h.shape[1], device=h.device)
        gap = place[:, None] - place[None, :]
        allowed = (gap >= 0) & (gap < window)
        mask = torch.zeros(gap.shape, dtype=h.dtype, device=h.device)
        return mask.masked_fill(~allowed, torch.finfo(h.dtype).min)[None, None]

    def normed(self, rows: Float[Tensor, "scored width"]) -> Float[Tensor, "scored width"]:
        """Return chosen hidden states after the final norm, where there is one."""
        return rows if self.norm is None else self.norm(rows)

    def finish(self, rows: Float[Tensor, "scored width"]) -> Float[Tensor, "scored classes"]:
        """Return logits of chosen hidden states: final norm, what stands between, head."""
        rows = self.normed(rows)
        if self.between is not None:  # BERT's pooler takes the first token of a sequence
            rows = self.between(rows[:, None]).reshape(len(rows), -1)
        weight = next(self.head.parameters())
        rows = rows.to(weight.dtype)
        for part in self.before_head:
            rows = part(rows).relu()
        if hasattr(self.head, "out_proj"):  # RoBERTa's head takes the first token of a sequence
            return self.head(rows[:, None])
        logits = self.head(rows)
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap and self.head_names == ("lm_head",):  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        return logits


def _state(out: Tensor | tuple[Any, ...]) -> Tensor:
    """Return the hidden state of what a block returns; some versions of transformers wrap it."""
    return out[0] if isinstance(out, tuple) else out
