"""Prompt tuning and P-tuning: P virtual tokens before a text, whose embeddings train.

`prompt`: the embeddings themselves, [P, width], which start as those of tokens drawn from the
vocabulary (Lester et al. 2021, arXiv:2104.08691, section 3.2). `ptuning`: embeddings that go
through a network of three layers, which trains too (Liu et al. 2021, arXiv:2103.10385; the network
is PEFT's). What comes out takes the place of words' embeddings, so whatever a model does to those,
such as adding positions, it does to virtual tokens too; they are tokens of the batch from there on
(`data.batches.batch_of`). They belong to whoever makes embeddings.
"""

from typing import Any

import peft
import torch
from peft.tuners.p_tuning import PromptEncoder
from peft.tuners.prompt_tuning import PromptEmbedding, PromptTuningInit
from torch import Tensor, nn

from triskel.config.sections import Adapter
from triskel.model.blocks import Blocks
from triskel.numerics.rng import derive
from triskel.types import Tensors

ENCODER = "virtual_tokens"
"""The module that makes the embeddings of virtual tokens."""
EMBEDDING = f"{ENCODER}.embedding.weight"
FILE = "prompt_embeddings"
"""What PEFT calls the embeddings of virtual tokens in a file."""


def config_of(blocks: Blocks, adapter: Adapter) -> peft.PeftConfig:
    """Return PEFT's configuration of virtual tokens before texts of this model."""
    width = blocks.words.embedding_dim
    common: dict[str, Any] = {
        "num_virtual_tokens": adapter.tokens,
        "token_dim": width,
        "num_layers": blocks.count,
        "num_attention_heads": int(blocks.config.num_attention_heads),
        "num_transformer_submodules": 1,
    }
    if adapter.kind == "prompt":
        return peft.PromptTuningConfig(prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, **common)
    return peft.PromptEncoderConfig(encoder_hidden_size=width, **common)


def insert(blocks: Blocks, adapter: Adapter, seed: int) -> dict[str, tuple[nn.Module, str]]:
    """Let texts begin with virtual tokens, and return the slots of what makes these."""
    config: Any = config_of(blocks, adapter)
    words = blocks.words
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "adapter"))
        encoder: nn.Module = (
            PromptEmbedding(config, words) if adapter.kind == "prompt" else PromptEncoder(config)
        )
    encoder = encoder.to(words.weight.device).eval()
    blocks.model.add_module(ENCODER, encoder)
    blocks.begin_with(adapter.tokens, encoder)
    places = {name: name.rpartition(".") for name, _ in encoder.named_parameters()}
    return {
        f"{ENCODER}.{name}": (encoder.get_submodule(owner), part)
        for name, (owner, _, part) in places.items()
    }


def in_file(blocks: Blocks, tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors with the embeddings of virtual tokens as PEFT reads them.

    Of P-tuning what makes them is there too, which PEFT leaves alone; without it, nobody could
    train on.
    """
    own = {name.removeprefix(f"{ENCODER}."): t for name, t in tensors.items() if _made(name)}
    device = blocks.words.weight.device
    given = {name: tensor.detach().to(device) for name, tensor in own.items()}
    places = torch.arange(blocks.ahead, device=device)
    with torch.no_grad():
        made = torch.func.functional_call(blocks.encoder, given, (places,))
    rest = {n: t for n, t in tensors.items() if len(own) > 1 or not _made(n)}
    return {FILE: made, **rest}


def out_of_file(tensors: Tensors) -> Tensors:
    """Return what `in_file` makes these of."""
    rest = {name: tensor for name, tensor in tensors.items() if name != FILE}
    if FILE not in tensors or EMBEDDING in tensors:
        return rest
    return {EMBEDDING: tensors[FILE], **rest}


def _made(name: str) -> bool:
    return name.startswith(f"{ENCODER}.")
