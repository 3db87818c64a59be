"""Prefix tuning: keys and values that stand before those of a text, in every block.

A block has P virtual tokens of its own: trained keys and values, [P, 2 · width of keys], keys
first. A text's tokens look at all of them, and stand at positions P, P + 1, ... (Li and Liang 2021,
arXiv:2101.00190; without their network, as PEFT does by default). Nothing else of the model
changes, and a block's prefix belongs to whoever runs the block.
"""

from typing import Any, cast

import peft
import torch
from peft.tuners.prefix_tuning import PrefixEncoder
from torch import Tensor, nn

from triskel.config.sections import Adapter
from triskel.errors import ModelError
from triskel.model.blocks import PREFIX, Blocks
from triskel.numerics.rng import derive
from triskel.types import Tensors

PREFIXED = ("llama", "qwen2", "qwen3", "smollm3", "phi3", "gpt2", "gpt_neox", "opt")
"""Values of `config.model_type` whose blocks take a prefix as PEFT gives it to them."""
FILE = "prompt_embeddings"
"""What PEFT calls the prefixes of all blocks, one behind the other."""


def config_of(blocks: Blocks, adapter: Adapter) -> peft.PrefixTuningConfig:
    """Return PEFT's configuration of a prefix before this model.

    Raises:
        ModelError: Such a model takes none.
    """
    config = blocks.config
    windows = "sliding_attention" in {blocks.kind(index) for index in range(blocks.count)}
    if config.model_type not in PREFIXED or windows:
        why = " whose blocks see a window of tokens" if windows else ""
        raise ModelError(
            f'adapter.kind "prefix" works with {", ".join(PREFIXED)}, and this is a '
            f"{config.model_type} model{why}; lora can"
        )
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or blocks.width // config.num_attention_heads)
    return peft.PrefixTuningConfig(
        num_virtual_tokens=adapter.tokens,
        num_layers=blocks.count,
        num_attention_heads=heads,
        token_dim=heads * size,
        num_transformer_submodules=1,
        encoder_hidden_size=heads * size,
    )


def insert(blocks: Blocks, adapter: Adapter, seed: int) -> dict[str, tuple[nn.Module, str]]:
    """Give every block a prefix, as PEFT starts it, and return their slots.

    Raises:
        ModelError: Such a model takes none.
    """
    config = config_of(blocks, adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "adapter"))
        start = cast("Any", PrefixEncoder(config)).embedding.weight.detach()
    device = next(blocks.list.parameters()).device
    slots = dict[str, tuple[nn.Module, str]]()
    for index, part in enumerate(start.chunk(blocks.count, dim=1)):
        block = blocks.list[index]
        block.register_parameter(PREFIX, nn.Parameter(part.clone().to(device)))
        slots[f"{blocks.family.blocks}.{index}.{PREFIX}"] = (block, PREFIX)
    blocks.stand_behind(adapter.tokens, int(config.num_attention_heads or 1))
    return slots


def joined(blocks: Blocks, tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors with the prefixes of all blocks as PEFT has them: one behind the other."""
    names = [f"{blocks.family.blocks}.{index}.{PREFIX}" for index in range(blocks.count)]
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    return {FILE: torch.cat([tensors[name] for name in names], dim=1), **rest}


def parted(blocks: Blocks, tensors: Tensors) -> Tensors:
    """Return what `joined` makes these of."""
    whole = tensors.get(FILE)
    if whole is None or whole.dim() != 2 or whole.shape[1] % blocks.count:  # noqa: PLR2004 - a matrix
        return tensors
    rest = {name: tensor for name, tensor in tensors.items() if name != FILE}
    parts = enumerate(whole.chunk(blocks.count, dim=1))
    return {f"{blocks.family.blocks}.{i}.{PREFIX}": part for i, part in parts} | rest


def by_peft(blocks: Blocks, adapter: Adapter, tensors: Tensors) -> Any:
    """Return PEFT's model of a base and prefixes, which writes as any model of transformers does.

    Raises:
        ModelError: Such a model takes none.
    """
    config = config_of(blocks, adapter)
    config.task_type = peft.TaskType.CAUSAL_LM
    config.inference_mode = True
    made: Any = peft.PeftModelForCausalLM(blocks.model, config)
    whole = joined(blocks, tensors)[FILE]
    made.prompt_encoder[made.active_adapter].embedding.weight.data = whole.detach()
    return made.eval()
