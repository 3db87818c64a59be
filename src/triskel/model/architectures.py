"""Which architectures there are, by the name in a model's `config.json`; no torch.

What a model of each is made of stands in `model.blocks`.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from triskel.core.task_spec import Head

LLAMA_LIKE = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip
DECODERS = (*LLAMA_LIKE, "gpt2", "gpt_neox", "opt", "falcon", "bloom")
ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
ENCODERS = ("bert", *ROBERTA_LIKE, "distilbert", "electra", "mpnet")
BOTH: tuple[Head, ...] = ("classes", "vocabulary")
CLASSES: tuple[Head, ...] = ("classes",)
_both: dict[str, tuple[Head, ...]] = dict.fromkeys(DECODERS, BOTH)
HEADS: Mapping[str, tuple[Head, ...]] = MappingProxyType(_both | dict.fromkeys(ENCODERS, CLASSES))
"""What a model of each architecture can end with."""
WHY = MappingProxyType({
    "albert": "its blocks are one block run again and again, so none has an adapter of its own",
    "deberta-v2": "its attention needs tables of places beside what enters a block",
    "modernbert": "it reads a class off the mean of a text, and Triskel off one token",
    "t5": "it has an encoder and a decoder",
    "bart": "it has an encoder and a decoder",
})  # fmt: skip
"""Of architectures that people try, why they are not here."""


def misfit(model_type: str, head: Head) -> str | None:
    """Return why an architecture cannot end with a head, or None where it can.

    >>> misfit("bert", "classes") is None
    True
    """
    if model_type in HEADS:
        if head in HEADS[model_type]:
            return None
        there = ", ".join(name for name, heads in HEADS.items() if head in heads)
        return f"model type {model_type!r} has no head over the {head}; these have: {there}"
    near = difflib.get_close_matches(model_type, HEADS, n=1, cutoff=0.8)
    why = f" ({WHY[model_type]})" if model_type in WHY else ""
    hint = f"; the nearest is {near[0]!r}" if near and not why else ""
    known = ", ".join(name for name, heads in HEADS.items() if head in heads)
    return f"model type {model_type!r} is not supported{why}{hint}; these are: {known}"
