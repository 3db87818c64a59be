"""The configuration of an adapter's PEFT folder, and what its tensors are called there.

Our tensor names are PEFT's behind a prefix. The configuration names targets by their shortest form
that PEFT resolves to exactly the adapted modules: `q_proj`, else `q_proj` in some layers, else full
names.

Two kinds train tensors of the model itself, and PEFT has no method of that name for them. `full` is
written as what PEFT calls LN tuning, which keeps a trained copy of any module, norm or not.
`bitfit` is written as the biases beside a LoRA (`bias = "all"`), whose one module has rank 1 and
a product of zero: PEFT refuses biases beside nothing.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from triskel.config.sections import AHEAD, VIRTUAL
from triskel.model import prefixes, prompts
from triskel.model.adapters import config_of, projections, widened
from triskel.model.shared import SharedModel
from triskel.types import Tensors

PREFIX = "base_model.model."
PROJECTED = "base_model."
"""What stands before names where PEFT has nothing in the model; and before VeRA's matrices."""
MAGNITUDE = ".lora_magnitude_vector"
"""DoRA's lengths; PEFT files call them so, and PEFT models add `.weight`."""
COPY = ".ln_tuning_layers"
"""What PEFT adds to the name of a module of which an adapter has a copy."""
UNDER = ".base_layer"
"""What PEFT adds to the name of a module that a LoRA is beside."""


def base_of(body: SharedModel) -> str:
    """Return what names the base model from anywhere on this machine: a folder or a hub id."""
    folder = Path(body.path)
    return str(folder.resolve()) if body.path and folder.is_dir() else body.path


def options_of(body: SharedModel, side: int) -> dict[str, Any]:
    """Return `adapter_config.json`, its lists in one order."""
    config = _config(body, side)
    classify = body.ends == "classes"
    config.task_type = peft.TaskType.SEQ_CLS if classify else peft.TaskType.CAUSAL_LM
    config.base_model_name_or_path = base_of(body)
    config.inference_mode = True
    config.modules_to_save = list(body.blocks.head_names) if classify else None
    if hasattr(config, "target_modules"):
        _shorten(config, body)
    plain: dict[str, Any] = {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in config.to_dict().items()
    }
    for key in ("lora_alpha", "alpha"):
        if key in plain and float(plain[key]).is_integer():
            plain[key] = int(plain[key])
    return cast("dict[str, Any]", json.loads(json.dumps(plain)))


def _config(body: SharedModel, side: int) -> Any:
    blocks, adapter = body.blocks, body.adapter
    if adapter.kind == "full":
        return peft.LNTuningConfig(target_modules=_owners(body))
    if adapter.kind == "bitfit":
        return peft.LoraConfig(
            r=1,
            lora_alpha=1,
            bias="all",
            target_modules=[_beside(body)],
            fan_in_fan_out=blocks.config.model_type == "gpt2",
        )
    if adapter.kind == "prefix":
        return prefixes.config_of(blocks, adapter)
    if adapter.kind in AHEAD:
        return prompts.config_of(blocks, adapter)
    return config_of(blocks, widened(adapter, side), seed=body.seed)


def _owners(body: SharedModel) -> list[str]:
    """Return the modules whose own tensors train."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in body.layout.block))


def _beside(body: SharedModel) -> str:
    """Return the linear map that the LoRA of a `bitfit` folder is beside."""
    model = cast("nn.Module", body.blocks.model)
    inside = f"{body.blocks.family.blocks}."
    linear = [
        name for name, module in model.named_modules()
        if name.startswith(inside) and isinstance(module, nn.Linear | Conv1D)
    ]  # fmt: skip
    return next((name for name in linear if f"{name}.bias" in body.layout.block), linear[0])


# --- its tensors ------------------------------------------------------------------------------


def in_file(body: SharedModel, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of a PEFT folder's file.

    Args:
        body: Whose they are.
        tensors: What is installed, factors and side factors stacked.
    """
    kind, trains = body.adapter.kind, body.layout.block
    if kind in VIRTUAL:  # PEFT has the model itself, and puts nothing into it
        joined = prefixes.joined if kind == "prefix" else prompts.in_file
        found = joined(body.blocks, tensors)
        return {n if n == prefixes.FILE else f"{PROJECTED}{n}": t for n, t in found.items()}
    if kind == "full":
        return {to_peft(_with(n, COPY) if n in trains else n): t for n, t in tensors.items()}
    found = {to_peft(n): t for n, t in tensors.items()}
    if kind == "bitfit":
        beside = _beside(body)
        if (bias := found.pop(to_peft(f"{beside}.bias"), None)) is not None:
            found[to_peft(f"{beside}{UNDER}.bias")] = bias
        weight = cast("Tensor", body.blocks.model.get_submodule(beside).weight)
        linear = isinstance(body.blocks.model.get_submodule(beside), nn.Linear)
        out, into = weight.shape if linear else weight.shape[::-1]
        found[to_peft(f"{beside}.lora_A.weight")] = torch.zeros(1, into)
        found[to_peft(f"{beside}.lora_B.weight")] = torch.zeros(out, 1)
    return found | {f"{PROJECTED}{n}": t for n, t in projections(body.blocks.model).items()}


def out_of_file(found: Tensors) -> dict[str, Tensor]:
    """Return the tensors of a PEFT folder's file by our names, whatever model they belong to.

    What does not train is left out: VeRA's matrices, and the zeros of a LoRA beside biases.
    """
    if prefixes.FILE in found:
        return {name.removeprefix(PROJECTED): tensor for name, tensor in found.items()}
    biases = any(f"{UNDER}.bias" in name or name.endswith(".bias") for name in found)
    return {
        from_peft(name): tensor
        for name, tensor in found.items()
        if name.startswith(PREFIX) and not (biases and ".lora_" in name and not tensor.any())
    }


def of_body(found: Tensors, body: SharedModel) -> Tensors:
    """Return tensors of `out_of_file` by the names that this body has for them."""
    if body.adapter.kind == "prefix":
        return prefixes.parted(body.blocks, found)
    return prompts.out_of_file(found) if body.adapter.kind in AHEAD else found


def projected(found: Tensors) -> dict[str, Tensor]:
    """Return VeRA's matrices of a PEFT folder's file, by the names of `adapters.projections`."""
    inside = {n: t for n, t in found.items() if not n.startswith(PREFIX)}
    return {n.removeprefix(PROJECTED): t for n, t in inside.items() if n.startswith(PROJECTED)}


def to_peft(name: str) -> str:
    """Return the name of a tensor in a PEFT file.

    >>> to_peft("h.0.attn.c_attn.lora_magnitude_vector.weight")
    'base_model.model.h.0.attn.c_attn.lora_magnitude_vector'
    """
    return PREFIX + (name.removesuffix(".weight") if f"{MAGNITUDE}.weight" in name else name)


def from_peft(name: str) -> str:
    """Return our name of a tensor in a PEFT file.

    >>> from_peft(to_peft("h.0.attn.c_attn.lora_A.weight"))
    'h.0.attn.c_attn.lora_A.weight'
    >>> from_peft("base_model.model.h.0.ln_1.ln_tuning_layers.bias")
    'h.0.ln_1.bias'
    """
    ours = name.removeprefix(PREFIX).replace(f"{COPY}.", ".").replace(f"{UNDER}.", ".")
    return f"{ours}.weight" if ours.endswith(MAGNITUDE) else ours


def _with(name: str, part: str) -> str:
    """Return a tensor's name with a part behind its module."""
    module, _, attribute = name.rpartition(".")
    return f"{module}{part}.{attribute}"


# --- its targets ------------------------------------------------------------------------------


def _shorten(config: Any, body: SharedModel) -> None:
    """Name the targets by the shortest form that means exactly the same modules."""
    full = sorted(config.target_modules)
    inside = f"{body.blocks.family.blocks}."
    relative = {name.removeprefix(inside).partition(".")[2] for name in full}
    layers = sorted({int(name.removeprefix(inside).partition(".")[0]) for name in full})
    last = {name.rpartition(".")[2] for name in relative}
    ranges: list[list[int] | None] = [None]
    if hasattr(config, "layers_to_transform"):
        ranges.append(layers)
    for chosen, names in itertools.product(ranges, (last, relative)):
        if chosen is not None:
            config.layers_to_transform = chosen
            config.layers_pattern = [body.blocks.family.blocks.rpartition(".")[2]]
        config.target_modules = names
        if _targeted(config, body) == full:
            break
    else:
        if len(ranges) > 1:
            config.layers_to_transform = config.layers_pattern = None
        config.target_modules = set(full)
    _shorten_feedforward(config, full)


def _shorten_feedforward(config: Any, full: Sequence[str]) -> None:
    """IA3 names, among its targets, those whose input it scales; they are named like targets."""
    scaled: set[str] = set(getattr(config, "feedforward_modules", None) or ())
    if not scaled:
        return
    short = {t for t in config.target_modules if any(_ends(name, t) for name in scaled)}
    if {name for name in full if any(_ends(name, t) for t in short)} == scaled:
        config.feedforward_modules = short
    else:
        config.target_modules = set(full)


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _targeted(config: Any, body: SharedModel) -> list[str]:
    """Return the modules that PEFT would adapt in the plain model."""
    names = _plain_modules(cast("nn.Module", body.blocks.model))
    return sorted(n for n in names if check_target_module_exists(config, n) is True)


def _plain_modules(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield names of modules as they were before adapters came in."""
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        yield full
        if not isinstance(child, BaseTunerLayer):
            yield from _plain_modules(child, f"{full}.")
