"""A base whose linear maps are held in 4 or 8 bit: frozen, and put together to compute.

`nf4`: a weight is cut into pieces of 64 numbers, each kept as the nearest of 16 quantiles of a
normal distribution times the piece's largest (QLoRA: Dettmers et al. 2023, arXiv:2305.14314,
section 3). `int8`: a byte a number and a scale a row; what is multiplied with it is rounded to 8
bit as well (LLM.int8: Dettmers et al. 2022, arXiv:2208.07339). `bitsandbytes` does both, on a CPU
too. Embeddings, norms, heads and adapters stay as they are.

On processors with AVX512-BF16 its 4-bit layers would turn to another kernel, with numbers in
bfloat16 and no gradient, in a forward pass that asks for none: so a model that is tested would
train no more afterwards. That is switched off, and a pass gives the same numbers whatever came
before it.
"""

import importlib.util
import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from torch import nn

from triskel.config.sections import Model
from triskel.errors import ModelError

LIBRARY = "bitsandbytes"


def options(model: Model, dtype: torch.dtype, device: torch.device, keep: Sequence[str]) -> Any:
    """Return what transformers loads such a base with.

    Args:
        model: How the base is held.
        dtype: What it computes in.
        device: Where it computes.
        keep: Names of modules that stay as they are.

    Raises:
        ModelError: The library is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise ModelError(
            f'model.quantise = "{model.quantise}" needs {LIBRARY}: pip install "triskel[quantised]"'
        )
    few = model.quantise == "nf4"
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=few,
        load_in_8bit=not few,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(keep),
    )
    return {"quantization_config": how, "device_map": {"": device}}


def settle(model: nn.Module) -> None:
    """Let every pass of a base take the same way, and none lose its gradient."""
    says_in_every_pass_that_it_rounds = logging.getLogger(f"{LIBRARY}.autograd._functions")
    says_in_every_pass_that_it_rounds.setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast("Any", module).support_avx512bf16_for_cpu = False


def is_quantised(model: nn.Module) -> bool:
    """Return whether a base is held in fewer bits."""
    return bool(getattr(model, "is_quantized", False))


def how_of(model: nn.Module) -> str:
    """Return what a job calls the way that a base is held."""
    if not is_quantised(model):
        return "none"
    return "nf4" if cast("Any", model).config.quantization_config.load_in_4bit else "int8"


def numbers(parameter: torch.Tensor) -> int:
    """Return how many numbers of the model a tensor stands for."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def size(parameter: torch.Tensor) -> int:
    """Return bytes of a tensor, and of the scales beside it."""
    state: Any = getattr(parameter, "quant_state", None)
    beside = (state.absmax, state.code) if state is not None else ()
    if parameter.dtype == torch.int8:
        beside = (torch.empty(len(parameter)),)  # a scale a row, which is kept elsewhere
    return parameter.nbytes + sum(tensor.nbytes for tensor in beside)
