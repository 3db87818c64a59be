"""The tensors that train: PEFT layers put into chosen blocks, and the task head.

Names are those of PEFT without its adapter name: `model.layers.0.self_attn.q_proj.lora_A.weight`.
They are the names on the wire, in checkpoints and in exports. Kinds that train tensors of the model
itself (`bitfit`, `full`) put nothing in: their slots are the model's own, by its own names.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any, cast

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera import VeraLayer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from torch import Tensor, nn

from triskel.config.sections import AHEAD, LOWRANK, OWN, Adapter, blocks_of, projection_seed
from triskel.errors import ModelError
from triskel.model import prefixes, prompts
from triskel.model.blocks import Blocks
from triskel.numerics.rng import derive, stream
from triskel.numerics.tensors import wide

SLOT = "default"
"""The name PEFT gives the one adapter of a model; never on the wire."""
HEAD_STD = 0.02
USUAL = (
    ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("query", "value"), ("qkv_proj",), ("q", "v"),
)  # fmt: skip
"""What queries and values are called, for architectures of which PEFT does not say it."""


def insert(blocks: Blocks, adapter: Adapter, *, seed: int) -> dict[str, tuple[nn.Module, str]]:
    """Put the adapter into the model, set the head to its start, freeze everything else.

    Factor A of LoRA starts random and B at zero (Hu et al. 2021, arXiv:2106.09685, section 4.1),
    so a fresh adapter changes nothing. The head starts normal with standard deviation 0.02. Both
    are functions of the seed alone.

    Returns:
        For each trainable tensor its owner and attribute: assigning there swaps the tensor.

    Raises:
        ModelError: The targets or blocks are not in this model.
    """
    if adapter.kind == "prefix":
        slots = prefixes.insert(blocks, adapter, seed)
    elif adapter.kind in AHEAD:
        slots = prompts.insert(blocks, adapter, seed)
    else:
        slots = _own(blocks, adapter) if adapter.kind in OWN else _put_in(blocks, adapter, seed)
    if blocks.positions is not None and blocks.positions < 1:
        raise ModelError(
            f"adapter.tokens is {adapter.tokens}, and with so many virtual tokens this "
            f"{blocks.config.model_type} model has no position left for a text; lower it"
        )
    if blocks.head_names != ("lm_head",):
        slots |= _fresh_head(blocks, seed)
    for owner, attribute in slots.values():
        value = cast("Tensor", getattr(owner, attribute))
        setattr(owner, attribute, nn.Parameter(value.detach().to(wide(blocks.dtype))))
    return slots


def _put_in(blocks: Blocks, adapter: Adapter, seed: int) -> dict[str, tuple[nn.Module, str]]:
    """Put PEFT's layers into the model, and return the slots of what trains of them."""
    model = cast("nn.Module", blocks.model)
    config = config_of(blocks, adapter, seed=seed)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns where it sets fan_in_fan_out by itself
        torch.manual_seed(derive(seed, "adapter"))
        try:
            if adapter.kind == "vera":  # PEFT's way in of the others wants nothing shared
                peft.VeraModel(cast("Any", model), cast("Any", config), SLOT)
            else:
                peft.inject_adapter_in_model(config, model, adapter_name=SLOT)
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"adapter.kind {adapter.kind!r} cannot be put into a {blocks.config.model_type} "
                f"model: {error}; lora can"
            ) from error
    slots: dict[str, tuple[nn.Module, str]] = {}
    for name, parameter in list(model.named_parameters()):
        trains = parameter.requires_grad and _is_adapter(name)
        parameter.requires_grad_(trains)
        if trains:
            slots[canonical(name)] = _slot(model, name)
    return slots


def _own(blocks: Blocks, adapter: Adapter) -> dict[str, tuple[nn.Module, str]]:
    """Return the slots of the model's own tensors that train.

    Raises:
        ModelError: There is none in the chosen modules.
    """
    model = cast("nn.Module", blocks.model)
    inside = tuple(f"{name}." for name in own_modules(blocks, adapter))
    names = [name for name, _ in model.named_parameters() if name.startswith(inside)]
    if adapter.kind == "bitfit":
        names = [name for name in names if name.endswith(".bias")]
    if not names:
        here = "the modules of adapter.targets" if adapter.targets else "its blocks"
        raise ModelError(
            f'adapter.kind "bitfit" trains biases, and {here} have none in this '
            f'{blocks.config.model_type} model; "vera" trains as few numbers'
        )
    return {name: _slot(model, name) for name in names}


def own_modules(blocks: Blocks, adapter: Adapter) -> list[str]:
    """Return the modules whose own tensors train: whole blocks, or the targets in them.

    Raises:
        ModelError: The targets or blocks are not in this model.
    """
    if adapter.targets:
        return _modules(blocks, adapter, adapter.targets)
    return [f"{blocks.family.blocks}.{index}" for index in _chosen(blocks, adapter)]


def projections(model: nn.Module) -> dict[str, Tensor]:
    """Return VeRA's frozen matrices, which all its modules share, by PEFT's names."""
    for module in model.modules():
        if isinstance(module, VeraLayer):
            both = {"vera_A": module.vera_A, "vera_B": module.vera_B}
            return {name: cast("Any", found)[SLOT] for name, found in both.items()}
    return {}


def take_projections(model: nn.Module, of: nn.Module) -> None:
    """Let the VeRA modules of a model share the frozen matrices of another one."""
    for name, module in model.named_modules():
        if isinstance(module, VeraLayer):
            other = cast("VeraLayer", of.get_submodule(name))
            module.vera_A, module.vera_B = other.vera_A, other.vera_B


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the model as it was before `insert`, with the same base weights in memory."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    bare = copy.deepcopy(model, shared)
    for name, module in list(bare.named_modules()):
        if isinstance(module, BaseTunerLayer):
            owner, _, attribute = name.rpartition(".")
            setattr(bare.get_submodule(owner), attribute, module.get_base_layer())
    if hasattr(bare, "peft_config"):
        del bare.peft_config
    return bare


def config_of(blocks: Blocks, adapter: Adapter, *, seed: int) -> peft.PeftConfig:
    """Return the PEFT configuration of this adapter on this model; VeRA's holds a seed of its own.

    Raises:
        ModelError: The targets or blocks are not in this model.
    """
    targets = list(adapter.targets) or _default_targets(blocks, adapter)
    modules = _modules(blocks, adapter, targets)
    common: dict[str, Any] = {"target_modules": modules}
    rank, alpha = adapter.rank, adapter.alpha
    if adapter.kind in {"lora", "dora", "rslora"}:
        return peft.LoraConfig(
            r=rank,
            lora_alpha=cast("int", alpha),
            lora_dropout=adapter.dropout,
            use_dora=adapter.kind == "dora",
            use_rslora=adapter.kind == "rslora",
            fan_in_fan_out=blocks.config.model_type == "gpt2",
            **common,
        )
    if adapter.kind == "vera":
        return peft.VeraConfig(
            r=rank,
            vera_dropout=adapter.dropout,
            projection_prng_key=projection_seed(adapter, seed),
            fan_in_fan_out=blocks.config.model_type == "gpt2",
            **common,
        )
    if adapter.kind == "ia3":
        forward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(
            blocks.config.model_type, []
        )
        inside = [
            m for m in modules if m.rpartition(".")[2] in {f.rpartition(".")[2] for f in forward}
        ]
        return peft.IA3Config(
            feedforward_modules=inside,
            fan_in_fan_out=blocks.config.model_type == "gpt2",
            **common,
        )
    kind = peft.LoHaConfig if adapter.kind == "loha" else peft.LoKrConfig
    return kind(r=rank, alpha=cast("int", alpha), **common)


def is_lowrank(adapter: Adapter) -> bool:
    """Return whether an adapter adds s B A to a weight and does nothing else."""
    return adapter.kind in LOWRANK


def scale_of(adapter: Adapter) -> float:
    """Return what the product B·A is multiplied by: alpha/r, or alpha/√r for rslora."""
    return adapter.alpha / (adapter.rank**0.5 if adapter.kind == "rslora" else adapter.rank)


def widened(adapter: Adapter, side: int) -> Adapter:
    """Return an adapter with this much more rank and the same scale."""
    if not side:
        return adapter
    rank = adapter.rank + side
    alpha = scale_of(adapter) * (rank**0.5 if adapter.kind == "rslora" else rank)
    return adapter.model_copy(update={"rank": rank, "alpha": alpha})


def canonical(name: str) -> str:
    """Return a parameter's name without PEFT's adapter name.

    >>> canonical("h.0.attn.c_attn.lora_A.default.weight")
    'h.0.attn.c_attn.lora_A.weight'
    """
    return ".".join(part for part in name.split(".") if part != SLOT)


def _default_targets(blocks: Blocks, adapter: Adapter) -> list[str]:
    table = cast(
        "dict[str, list[str]]",
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if adapter.kind == "ia3"
        else TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    )
    kind = blocks.config.model_type
    if kind in table:
        return list(table[kind])
    here = {name.rpartition(".")[2] for name, _ in blocks.list[0].named_modules()}
    for usual in USUAL if adapter.kind != "ia3" else ():
        if here.issuperset(usual):
            return list(usual)
    raise ModelError(
        f"adapter.targets must be given for {adapter.kind} on a {kind} model; "
        f"modules of a block: {', '.join(sorted(here - {''}))}"
    )


def _modules(blocks: Blocks, adapter: Adapter, targets: Sequence[str]) -> list[str]:
    """Return full names of the targeted modules inside the chosen blocks."""
    chosen = _chosen(blocks, adapter)
    prefix = f"{blocks.family.blocks}."
    found: list[str] = []
    missing = set(targets)
    for index in chosen:
        for name, _ in blocks.list[index].named_modules():
            for target in targets:
                if name == target or name.endswith(f".{target}"):
                    found.append(f"{prefix}{index}.{name}")
                    missing.discard(target)
    if missing:
        here = [n for n, m in blocks.list[0].named_modules() if not list(m.children()) and n]
        raise ModelError(
            f"adapter.targets {sorted(missing)} are not in a block of this model; "
            f"a block has: {', '.join(here)}"
        )
    return found


def _chosen(blocks: Blocks, adapter: Adapter) -> range:
    try:
        return blocks_of(adapter.blocks, blocks.count)
    except ValueError as error:
        raise ModelError(f"adapter.blocks {error} for this model") from None


def _is_adapter(name: str) -> bool:
    return f".{SLOT}" in name


def _slot(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


def _fresh_head(blocks: Blocks, seed: int) -> dict[str, tuple[nn.Module, str]]:
    slots: dict[str, tuple[nn.Module, str]] = {}
    source = stream(seed, "head")
    model = cast("nn.Module", blocks.model)
    inside = [(part, model.get_submodule(part).named_parameters()) for part in blocks.head_names]
    for full, parameter in [(f"{part}.{name}", p) for part, some in inside for name, p in some]:
        fresh = torch.zeros(parameter.shape)
        if not re.search(r"bias$", full):
            fresh.normal_(0.0, HEAD_STD, generator=source)
        owner, attribute = _slot(model, full)
        setattr(owner, attribute, nn.Parameter(fresh.to(parameter.device)))
        slots[full] = (owner, attribute)
    return slots
