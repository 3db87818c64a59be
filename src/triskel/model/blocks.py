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
PREFIX = "prefix"
"""What holds a block's trained keys and values before a text (`model.prefixes`)."""


class _Past:
    """What stands before a text in one block, as the library asks a cache for it."""

    def __init__(self, prefix: Tensor, heads: int, h: Tensor) -> None:
        tokens = len(prefix)
        both = prefix.to(h.dtype).view(tokens, 2, heads, -1).permute(1, 2, 0, 3)
        self._keys, self._values = both[:, None].expand(-1, len(h), -1, -1, -1)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of the text behind those of the prefix; nothing is kept."""
        return torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Return how many tokens stand before a text."""
        return self._keys.shape[2]


class Blocks:
    """The parts of one loaded model, run by name.

    Attributes:
        model: The transformers model.
        family: Its map.
        count: L, the number of blocks.
        width: d, the size of a hidden state.
        dtype: What hidden states are computed in.
        words: The embeddings of tokens.
        positions: Most tokens of a text; None where there is no such limit.
        virtual: How many virtual tokens stand before a text in every block.
        ahead: How many virtual tokens a text begins with; they are among its tokens.
        encoder: What makes the embeddings of those, of their numbers.
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
        self.words = cast("nn.Embedding", self.model.get_input_embeddings())
        self.positions = self._positions()
        self.virtual, self._heads = 0, 1
        self.ahead, self.encoder = 0, nn.Identity()
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def stand_behind(self, virtual: int, heads: int) -> None:
        """Let texts stand behind so many virtual tokens, whose keys have so many heads."""
        self.virtual, self._heads = virtual, heads
        self.positions = None if self.positions is None else self.positions - virtual

    def begin_with(self, ahead: int, encoder: nn.Module) -> None:
        """Let texts begin with so many virtual tokens, whose embeddings a module makes."""
        self.ahead, self.encoder = ahead, encoder
        self.positions = None if self.positions is None else self.positions - ahead

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
        """Return what enters block 0; the numbers of virtual tokens are not looked at."""
        if self.ahead:
            return self._prompted(ids)
        if not (self.virtual and self.family.positions):
            return self.family.embed(self.model, ids)
        before = ids.new_zeros(len(ids), self.virtual)  # so that the text has the places behind
        return self.family.embed(self.model, torch.cat([before, ids], dim=1))[:, self.virtual :]

    def made(self) -> Float[Tensor, "virtual numbers"]:
        """Return the embeddings of the virtual tokens that a text begins with."""
        return self.encoder(torch.arange(self.ahead, device=self.words.weight.device)).to(
            self.words.weight.dtype
        )

    def _prompted(self, ids: Tensor) -> Tensor:
        """Return what enters block 0 where the first embeddings are those of virtual tokens."""
        made = self.made()

        def put(module: nn.Module, given: Any, out: Tensor) -> Tensor:
            del module, given
            first = made[: ids.shape[1]].expand(len(ids), -1, -1)
            return torch.cat([first, out[:, self.ahead :]], dim=1)

        hook = self.words.register_forward_hook(put)
        try:
            return self.family.embed(self.model, ids)
        finally:
            hook.remove()

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
            kind = self.kind(index)
            if kind not in beside:
                beside[kind] = self._beside(h, kind)
            mask = self._causal_mask(h, kind) if self.family.causal else heard
            past = self._past(index, h)
            h = _state(self.list[index](h, attention_mask=mask, **beside[kind], **past))
        return h

    def _beside(self, h: Tensor, kind: str) -> dict[str, Any]:
        """Return what blocks of a kind take beside hidden states and mask."""
        if not self.virtual:
            return self.family.beside(self.model, h, kind)
        longer = h.new_empty(1, self.virtual + h.shape[1], 1)
        found = self.family.beside(self.model, longer, kind)
        return {name: _behind(value, self.virtual) for name, value in found.items()}

    def _past(self, index: int, h: Tensor) -> dict[str, Any]:
        """Return what stands before a text in a block, by what the block calls it."""
        if not self.virtual:
            return {}
        past = _Past(getattr(self.list[index], PREFIX), self._heads, h)
        neox = self.config.model_type == "gpt_neox"
        return {"layer_past" if neox else "past_key_values": past}

    @staticmethod
    def _mask_of_lengths(h: Tensor, lengths: Tensor) -> Tensor:
        """Return the mask of an encoder: nobody looks at padding."""
        blocked = torch.arange(h.shape[1], device=h.device)[None, :] >= lengths[:, None]
        mask = torch.zeros(blocked.shape, dtype=h.dtype, device=h.device)
        return mask.masked_fill(blocked, torch.finfo(h.dtype).min)[:, None, None, :]

    def window(self, index: int, tokens: int) -> int:
        """Return how many tokens a token of a block sees, itself included."""
        return self._window(self.kind(index), tokens)

    def _window(self, kind: str, tokens: int) -> int:
        window = self.config.sliding_window if kind == "sliding_attention" else tokens
        return min(window or tokens, tokens)

    def kind(self, index: int) -> str:
        """Return a block's kind of attention."""
        kinds = getattr(self.config, "layer_types", None)
        if kinds:
            return kinds[index]
        window = getattr(self.config, "sliding_window", None)
        everywhere = self.config.model_type in {"mistral", "phi3"}
        return "sliding_attention" if window and everywhere else "full"

    def _causal_mask(self, h: Tensor, kind: str) -> Mask:
        tokens = h.shape[1]
        window = self._window(kind, tokens)
        if self.virtual:
            return self._mask(h, self.virtual + tokens, self.virtual)
        if self.attention == "sdpa" and window == tokens:
            return None  # the kernel masks by itself
        key = (tokens, window, h.dtype)
        if key not in self._masks:
            self._masks = {key: self._mask(h, window)} | self._masks
            self._masks = dict(list(self._masks.items())[:64])
        return self._masks[key]

    @staticmethod
    def _mask(h: Tensor, window: int, virtual: int = 0) -> Tensor:
        place = torch.arange(virtual + h.shape[1], device=h.device)
        gap = place[virtual:, None] - place[None, :]
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


def _behind(value: Any, virtual: int) -> Any:
    """Return what is of the tokens behind virtual ones, of what has a row for each."""
    if isinstance(value, tuple):
        return tuple(_behind(one, virtual) for one in cast("tuple[Any, ...]", value))
    return value[:, virtual:] if isinstance(value, Tensor) else value


def _state(out: Tensor | tuple[Any, ...]) -> Tensor:
    """Return the hidden state of what a block returns; some versions of transformers wrap it."""
    return out[0] if isinstance(out, tuple) else out
