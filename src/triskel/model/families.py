"""Where each supported architecture keeps its parts: one map, by name.

A model is embeddings, a list of blocks, a final norm and a head; `model.blocks` runs them through
this map.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triskel.core.task_spec import Head
from triskel.errors import ModelError
from triskel.model.architectures import LLAMA_LIKE, ROBERTA_LIKE, misfit


def _nothing(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    """A block takes hidden states and a mask only."""
    del model, h, kind
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where one family of architectures keeps its parts.

    Attributes:
        types: Values of `config.model_type` it covers.
        blocks: Path of the list of blocks.
        norm: Path of the final norm, or "" when blocks end normalised; a model may lack it.
        heads: Paths of the modules of the head, for each kind; the last makes logits, and each
            before it is followed by a ReLU.
        causal: Whether a token sees only what is to its left.
        embed: Token ids to what enters the first block.
        beside: What a block takes beside hidden states and mask, by the model, the hidden states
            and the block's kind of attention.
        between: Path of a frozen module between norm and head, or ""; a model may lack it.
        positions: Path of the table with a vector for each position, or "" where there is none:
            rotations go on for as long as a text does.
    """

    types: tuple[str, ...]
    blocks: str
    norm: str = ""
    heads: Mapping[Head, tuple[str, ...]]
    causal: bool = True
    embed: Callable[[Any, Int[Tensor, "batch tokens"]], Float[Tensor, "batch tokens width"]]
    beside: Callable[[Any, Tensor, str], dict[str, Any]] = _nothing
    between: str = ""
    positions: str = ""


def _places(h: Tensor) -> Tensor:
    return torch.arange(h.shape[1], device=h.device)[None]


def _embed_llama(model: Any, ids: Tensor) -> Tensor:
    return model.model.embed_tokens(ids)


def _beside_llama(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    places = _places(h)
    kinds = (kind,) if model.config.model_type == "gemma3_text" else ()
    rotary = model.model.rotary_emb(h, places, *kinds)
    return {"position_embeddings": rotary, "position_ids": places}


def _embed_gpt2(model: Any, ids: Tensor) -> Tensor:
    return model.transformer.wte(ids) + model.transformer.wpe(_places(ids)[0])


def _embed_neox(model: Any, ids: Tensor) -> Tensor:
    return model.gpt_neox.embed_in(ids)


def _beside_neox(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    del kind
    places = _places(h)
    rotary = model.gpt_neox.rotary_emb(h, places)
    return {"position_embeddings": rotary, "position_ids": places}


def _embed_opt(model: Any, ids: Tensor) -> Tensor:
    inner = model.model.decoder
    h = inner.embed_tokens(ids)
    h = h if inner.project_in is None else inner.project_in(h)
    return h + inner.embed_positions(torch.ones_like(ids))  # it counts real tokens


def _embed_falcon(model: Any, ids: Tensor) -> Tensor:
    return model.transformer.word_embeddings(ids)


def _beside_falcon(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    del kind
    places = _places(h)
    rotary = model.transformer.rotary_emb(h, places)
    return {"alibi": None, "position_embeddings": rotary, "position_ids": places}


def _embed_bloom(model: Any, ids: Tensor) -> Tensor:
    return model.transformer.word_embeddings_layernorm(model.transformer.word_embeddings(ids))


def _beside_bloom(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    """A text's own places, whatever is padded: real tokens look at real ones only."""
    del kind
    inner = model.transformer
    real = torch.ones(h.shape[:2], dtype=torch.int64, device=h.device)
    return {"alibi": inner.build_alibi_tensor(real, inner.num_heads, dtype=h.dtype)}


def _embed_bert(model: Any, ids: Tensor) -> Tensor:
    return model.base_model.embeddings(input_ids=ids)


def _embed_electra(model: Any, ids: Tensor) -> Tensor:
    h = model.electra.embeddings(input_ids=ids)
    project = getattr(model.electra, "embeddings_project", None)  # where widths differ
    return h if project is None else project(h)


def _embed_roberta(model: Any, ids: Tensor) -> Tensor:
    inner = model.base_model.embeddings
    # RoBERTa counts positions from padding_idx + 1 and finds padding by id; ours is by length.
    places = _places(ids) + inner.padding_idx + 1
    return inner(input_ids=ids, position_ids=places.expand_as(ids))


def _beside_mpnet(model: Any, h: Tensor, kind: str) -> dict[str, Any]:
    del kind
    return {"position_bias": model.mpnet.encoder.compute_position_bias(h)}


SCORED: Mapping[Head, tuple[str, ...]] = {"classes": ("score",), "vocabulary": ("lm_head",)}
CLASSIFIED: Mapping[Head, tuple[str, ...]] = {"classes": ("classifier",)}
FAMILIES: tuple[Family, ...] = (
    Family(
        types=LLAMA_LIKE,
        blocks="model.layers",
        norm="model.norm",
        heads=SCORED,
        embed=_embed_llama,
        beside=_beside_llama,
    ),
    Family(
        types=("gpt2",),
        blocks="transformer.h",
        norm="transformer.ln_f",
        heads=SCORED,
        embed=_embed_gpt2,
        positions="transformer.wpe",
    ),
    Family(
        types=("gpt_neox",),
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        heads=SCORED,
        embed=_embed_neox,
        beside=_beside_neox,
    ),
    Family(
        types=("opt",),
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        heads=SCORED,
        embed=_embed_opt,
        between="model.decoder.project_out",
        positions="model.decoder.embed_positions",
    ),
    Family(
        types=("falcon",),
        blocks="transformer.h",
        norm="transformer.ln_f",
        heads=SCORED,
        embed=_embed_falcon,
        beside=_beside_falcon,
    ),
    Family(
        types=("bloom",),
        blocks="transformer.h",
        norm="transformer.ln_f",
        heads=SCORED,
        embed=_embed_bloom,
        beside=_beside_bloom,
    ),
    Family(
        types=("bert",),
        blocks="bert.encoder.layer",
        heads=CLASSIFIED,
        causal=False,
        embed=_embed_bert,
        between="bert.pooler",
        positions="bert.embeddings.position_embeddings",
    ),
    Family(
        types=ROBERTA_LIKE,
        blocks="roberta.encoder.layer",
        heads=CLASSIFIED,
        causal=False,
        embed=_embed_roberta,
        positions="roberta.embeddings.position_embeddings",
    ),
    Family(
        types=("distilbert",),
        blocks="distilbert.transformer.layer",
        heads={"classes": ("pre_classifier", "classifier")},
        causal=False,
        embed=_embed_bert,
        positions="distilbert.embeddings.position_embeddings",
    ),
    Family(
        types=("electra",),
        blocks="electra.encoder.layer",
        heads=CLASSIFIED,
        causal=False,
        embed=_embed_electra,
        positions="electra.embeddings.position_embeddings",
    ),
    Family(
        types=("mpnet",),
        blocks="mpnet.encoder.layer",
        heads=CLASSIFIED,
        causal=False,
        embed=_embed_roberta,
        beside=_beside_mpnet,
        positions="mpnet.embeddings.position_embeddings",
    ),
)


def family_of(model_type: str, head: Head) -> Family:
    """Return the family of an architecture.

    Raises:
        ModelError: The architecture, or such a head on it, is not supported; says what is.
    """
    if (why := misfit(model_type, head)) is not None:
        raise ModelError(why)
    return next(family for family in FAMILIES if model_type in family.types)
