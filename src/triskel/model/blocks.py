"""One map, by name, of the parts every supported architecture has.

A model is embeddings, a list of blocks, a final norm and a head. Every mode runs these parts
through this map, so a cut, an adapter range or a frozen prefix means the same thing everywhere.
Padding is on the right. A causal block never looks to the right, so real tokens of a decoder need
no padding mask; an encoder gets one.

The frozen base always computes in evaluation mode: its own dropout is off and activations are a
pure function of tokens and adapter. Only the adapter's dropout is ever active.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triskel.core.task_spec import Head
from triskel.errors import ModelError

Mask = Float[Tensor, "rows 1 queries tokens"] | None


@dataclass(frozen=True)
class Family:
    """Where one family of architectures keeps its parts.

    Attributes:
        types: Values of `config.model_type` it covers.
        blocks: Path of the list of blocks.
        norm: Path of the final norm, or "" when blocks end normalised.
        heads: Path of the head for each supported kind.
        pooler: Path of a frozen pooler between norm and head, or "".
        causal: Whether a token sees only what is to its left.
        embed: Token ids to what enters the first block.
        positions: Path of the table with a vector for each position, or "" where there is none:
            rotations go on for as long as a text does.
    """

    types: tuple[str, ...]
    blocks: str
    norm: str
    heads: Mapping[Head, str]
    pooler: str
    causal: bool
    embed: Callable[[Any, Int[Tensor, "batch tokens"]], Float[Tensor, "batch tokens width"]]
    positions: str = ""


def _embed_llama(model: Any, ids: Tensor) -> Tensor:
    return model.model.embed_tokens(ids)


def _embed_gpt2(model: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1], device=ids.device)
    return model.transformer.wte(ids) + model.transformer.wpe(places)


def _embed_bert(model: Any, ids: Tensor) -> Tensor:
    return model.bert.embeddings(input_ids=ids)


def _embed_roberta(model: Any, ids: Tensor) -> Tensor:
    inner = model.roberta.embeddings
    # RoBERTa counts positions from padding_idx + 1 and finds padding by id; ours is by length.
    places = torch.arange(ids.shape[1], device=ids.device) + inner.padding_idx + 1
    return inner(input_ids=ids, position_ids=places[None].expand_as(ids))


LLAMA_LIKE = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    Family(
        types=LLAMA_LIKE,
        blocks="model.layers",
        norm="model.norm",
        heads={"classes": "score", "vocabulary": "lm_head"},
        pooler="",
        causal=True,
        embed=_embed_llama,
    ),
    Family(
        types=("gpt2",),
        blocks="transformer.h",
        norm="transformer.ln_f",
        heads={"classes": "score", "vocabulary": "lm_head"},
        pooler="",
        causal=True,
        embed=_embed_gpt2,
        positions="transformer.wpe",
    ),
    Family(
        types=("bert",),
        blocks="bert.encoder.layer",
        norm="",
        heads={"classes": "classifier"},
        pooler="bert.pooler",
        causal=False,
        embed=_embed_bert,
        positions="bert.embeddings.position_embeddings",
    ),
    Family(
        types=("roberta", "xlm-roberta"),
        blocks="roberta.encoder.layer",
        norm="",
        heads={"classes": "classifier"},
        pooler="",
        causal=False,
        embed=_embed_roberta,
        positions="roberta.embeddings.position_embeddings",
    ),
)


def family_of(model_type: str, head: Head) -> Family:
    """Return the family of an architecture.

    Raises:
        ModelError: The architecture, or such a head on it, is not supported; says what is.
    """
    for family in FAMILIES:
        if model_type in family.types:
            if head in family.heads:
                return family
            decoders = [t for f in FAMILIES if head in f.heads for t in f.types]
            raise ModelError(
                f"model type {model_type!r} has no head over the {head}; these have: "
                f"{', '.join(decoders)}"
            )
    known = [t for f in FAMILIES for t in f.types]
    raise ModelError(f"model type {model_type!r} is not supported; these are: {', '.join(known)}")


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
        self.head_name = self.family.heads[head]
        self.head: Any = model.get_submodule(self.head_name)
        self.norm = model.get_submodule(self.family.norm) if self.family.norm else None
        self.pooler: Any = model.get_submodule(self.family.pooler) if self.family.pooler else None
        self.pool: Literal["last", "first"] = "last" if self.family.causal else "first"
        self.dtype = next(model.parameters()).dtype
        self.positions = self._positions()
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def _positions(self) -> int | None:
        if not self.family.positions:
            return None
        table: Any = self.model.get_submodule(self.family.positions)
        before = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's, unused
        return int(table.num_embeddings) - before

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
        if not self.family.causal:
            return self._run_encoder(h, lengths, low, high)
        places = torch.arange(h.shape[1], device=h.device)[None]
        rotary: dict[str, Any] = {}
        for index in range(low, high):
            kind = self._kind(index)
            extra: dict[str, Any] = {}
            if hasattr(self.model, "model"):
                if kind not in rotary:
                    rotary[kind] = self._rotary(h, places, kind)
                extra = {"position_embeddings": rotary[kind], "position_ids": places}
            h = _state(self.list[index](h, attention_mask=self._causal_mask(h, kind), **extra))
        return h

    def _run_encoder(self, h: Tensor, lengths: Tensor, low: int, high: int) -> Tensor:
        blocked = torch.arange(h.shape[1], device=h.device)[None, :] >= lengths[:, None]
        mask = torch.zeros(blocked.shape, dtype=h.dtype, device=h.device)
        mask = mask.masked_fill(blocked, torch.finfo(h.dtype).min)[:, None, None, :]
        for index in range(low, high):
            h = _state(self.list[index](h, attention_mask=mask))
        return h

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
        return "sliding_attention" if window and self.config.model_type == "mistral" else "full"

    def _rotary(self, h: Tensor, places: Tensor, kind: str) -> Any:
        if self.config.model_type == "gemma3_text":
            return self.model.model.rotary_emb(h, places, kind)
        return self.model.model.rotary_emb(h, places)

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
        """Return logits of chosen hidden states: final norm, pooler, head."""
        rows = self.normed(rows)
        if self.pooler is not None:
            rows = self.pooler.activation(self.pooler.dense(rows))
        weight = next(self.head.parameters())
        rows = rows.to(weight.dtype)
        if hasattr(self.head, "out_proj"):  # RoBERTa's head takes the first token of a sequence
            return self.head(rows[:, None])
        logits = self.head(rows)
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap and self.head_name == "lm_head":  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        return logits


def _state(out: Tensor | tuple[Any, ...]) -> Tensor:
    """Return the hidden state of what a block returns; some versions of transformers wrap it."""
    return out[0] if isinstance(out, tuple) else out
