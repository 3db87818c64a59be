"""An adapter as a PEFT folder, the way back, and a whole model with the adapter merged in.

A PEFT folder is `adapter_config.json` and `adapter_model.safetensors`; what is in them says
`model.peft_options`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from triskel.config.sections import OWN
from triskel.core.crash import during
from triskel.core.task_spec import Head
from triskel.core.untrusted import json_in, safetensors_at
from triskel.errors import ModelError
from triskel.model.adapters import SLOT, canonical, projections
from triskel.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triskel.model.load import LOADING, quiet, tokenizer_in
from triskel.model.peft_options import in_file, of_body, options_of, out_of_file, projected
from triskel.model.shared import SharedModel
from triskel.model.side_factors import is_side, misfit, parted, side_rank, stacked, unstacked
from triskel.types import Tensors

CONFIG, WEIGHTS = ADAPTER_CONFIG, ADAPTER_WEIGHTS
MEANT = (
    "peft_type", "task_type", "r", "lora_alpha", "alpha", "use_dora", "use_rslora", "bias",
    "projection_prng_key", "num_virtual_tokens",
)  # fmt: skip
"""Options that change what the same tensors compute."""
SAMPLED = 1024
"""Numbers of each base tensor that its fingerprint reads."""
MERGE_ERROR = 1e-3
"""Largest change of a logit by merging in float32, relative to the largest logit."""


# --- an adapter, written and read -------------------------------------------------------------


@during("while writing an adapter")
def write(folder: Path, body: SharedModel, tensors: Tensors) -> None:
    """Write a PEFT folder into an existing one; factors as they are installed.

    Raises:
        ModelError: The tensors are not this body's.
    """
    _check(tensors, body, where="the adapter")
    options = options_of(body, side_rank(tensors))
    (folder / CONFIG).write_text(json.dumps(options, indent=2, sort_keys=True), encoding="utf-8")
    whole = stacked(tensors, parted(tensors)[0])
    inside = in_file(body, whole).items()
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in inside}
    save_file(owned, folder / WEIGHTS, metadata={"format": "pt"})


def read(folder: Path, body: SharedModel, side: int = 0) -> Tensors:
    """Return the tensors of a PEFT folder; the inverse of `write`.

    Args:
        folder: Where it is.
        body: The model it belongs to.
        side: Rank of the side factors in it.

    Raises:
        ModelError: There is no such folder, or it does not fit this body.
    """
    try:
        found = cast("dict[str, Any]", json_in(folder / CONFIG))
    except (OSError, ValueError) as error:
        raise ModelError(f"adapter {folder} cannot be read: {error}") from error
    tensors = of_body(tensors_in(folder), body)
    if strange := [name for name in tensors if is_side(name)]:
        raise ModelError(f"adapter {folder} holds {strange[0]!r}, which PEFT would not apply")
    for name, wanted in options_of(body, side).items():
        if name in MEANT and found.get(name) != wanted:
            raise ModelError(
                f"adapter {folder} has {name} = {found.get(name)!r} and the job's adapter has "
                f"{wanted!r}; it belongs to another job"
            )
    hold_projections(folder, body, where=f"adapter {folder}")
    if side:
        tensors = _parted_again(tensors, body, side, where=f"adapter {folder}")
    _check(tensors, body, where=f"adapter {folder}")
    return tensors


def _parted_again(tensors: Tensors, body: SharedModel, side: int, *, where: str) -> Tensors:
    """Return what trained and the side factors of a folder that holds them stacked.

    Raises:
        ModelError: They are not this body's factors with so much more rank.
    """
    try:
        found = unstacked(tensors, body.adapter.rank)
    except (IndexError, RuntimeError, KeyError) as error:
        raise ModelError(f"{where} holds no factors with side factors of rank {side}") from error
    if side_rank(found) > side or not all(
        torch.equal(tensors[name], again) for name, again in stacked(found, tensors).items()
    ):
        raise ModelError(f"{where} has a rank that its modules cannot have")
    return found


def fingerprint(body: SharedModel) -> str:
    """Return a hash of the frozen base: names, shapes and the first numbers of every tensor.

    Numbers are rounded to bfloat16, so a base loaded in float32 and in bfloat16 has one hash.
    """
    sha = hashlib.sha256()
    model = cast("nn.Module", body.blocks.model)
    named = {canonical(n).replace(".base_layer", ""): p for n, p in model.named_parameters()}
    trains = body.fresh.keys()
    if body.adapter.kind in OWN:  # as the base has them
        trains, named = set(body.layout.head), named | dict(body.fresh)
    for name in sorted(named.keys() - trains):
        some = named[name].detach().reshape(-1)[:SAMPLED].to(torch.bfloat16).cpu()
        sha.update(f"{name} {tuple(named[name].shape)}".encode())
        sha.update(some.view(torch.int16).numpy().tobytes())
    return sha.hexdigest()


def padding_token(tokenizer: Any) -> str:
    """Return a token to pad with that the tokenizer never puts at the end of a text.

    transformers reads a decoder's class off the last token that is not padding, so a closing
    end-of-text token must not be taken for padding.
    """
    last = tokenizer("a")["input_ids"][-1:]
    special = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    for token in special:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in last:
            return str(token)
    return str(tokenizer.convert_ids_to_tokens(0))


def _check(tensors: Tensors, body: SharedModel, *, where: str) -> None:
    """Refuse tensors that are not exactly the body's trainable ones, and side factors of those."""
    tensors, side = parted(tensors)
    if (why := misfit(side, body.initial)) is not None:
        raise ModelError(f"{where}: {why}")
    missing = sorted(body.initial.keys() - tensors.keys())
    if missing:
        raise ModelError(f"{where} lacks {len(missing)} tensors, {missing[0]!r} for one")
    for name, tensor in tensors.items():
        wanted = body.initial.get(name)
        if wanted is None:
            raise ModelError(f"{where} holds {name!r}, which this model does not train")
        if wanted.shape != tensor.shape or not tensor.is_floating_point():
            raise ModelError(
                f"{where} holds {name!r} of shape {tuple(tensor.shape)} and type {tensor.dtype}, "
                f"and this model needs floats of shape {tuple(wanted.shape)}"
            )


# --- a whole model ----------------------------------------------------------------------------


def merge(adapter: Path, source: str, target: Path, *, classes: Sequence[str], pad: str) -> None:
    """Write the base with the adapter merged in, with head, class names and tokenizer.

    Sums are taken in float32 and stored in the base's own type. Logits of a few tokens are
    compared before and after in float32.

    Args:
        adapter: A PEFT folder.
        source: The base: a folder or a hub id.
        target: An existing folder.
        classes: Names by index; empty for `causal`.
        pad: The token a decoder that classifies is padded with; empty leaves all as it is.

    Raises:
        ModelError: The base cannot be loaded, or the adapter cannot be merged into it.
    """
    if "num_virtual_tokens" in cast("dict[str, Any]", json_in(adapter / CONFIG)):
        raise _unmergeable(adapter, "virtual tokens are no part of a weight")
    wrapped, tokenizer, stored = opened(adapter, source, classes=classes)
    before = _probe(wrapped)
    try:
        wrapped.merge_adapter(safe_merge=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unmergeable(adapter, str(error) or type(error).__name__) from error
    merged: Any = _unwrapped(wrapped.get_base_model())
    change = float((_probe(merged) - before).abs().max() / before.abs().max().clamp(min=1))
    if not change <= MERGE_ERROR:
        raise _unmergeable(adapter, f"merging changes its logits by {change:.2g} of the largest")
    pad_with(merged, tokenizer, pad if classes else "")
    with quiet():
        merged.to(stored).save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))


def opened(adapter: Path, source: str, *, classes: Sequence[str]) -> tuple[Any, Any, torch.dtype]:
    """Return the base in float32 with an adapter on it, its tokenizer, and its stored type.

    Args:
        adapter: A PEFT folder.
        source: The base: a folder or a hub id.
        classes: Names by index; empty for `causal`.

    Raises:
        ModelError: The base cannot be loaded, or the adapter does not fit it.
    """
    head: Head = "classes" if classes else "vocabulary"
    try:
        with quiet():
            model, tokenizer, stored = _base(source, head, classes)
            wrapped: Any = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    except LOADING as error:
        raise ModelError(f"model {source!r} with {adapter} cannot be loaded: {error}") from error
    return wrapped, tokenizer, stored


def pad_with(model: Any, tokenizer: Any, token: str) -> None:
    """Let model and tokenizer pad with a token; an empty one leaves all as it is."""
    if token:
        tokenizer.pad_token = token
        model.config.pad_token_id = tokenizer.convert_tokens_to_ids(token)


def tensors_in(folder: Path) -> Tensors:
    """Return the tensors of a PEFT folder by our names, whatever model they belong to.

    Raises:
        ModelError: There is no such folder, or it is damaged.
    """
    return out_of_file(_file(folder))


def hold_projections(folder: Path, body: SharedModel, *, where: str) -> None:
    """Refuse a VeRA folder whose frozen matrices are not those that its seed makes here.

    Raises:
        ModelError: They are others; or the folder is damaged.
    """
    if not (ours := projections(body.blocks.model)):
        return
    theirs = projected(_file(folder))
    if theirs and not (
        theirs.keys() == ours.keys()
        and all(torch.equal(theirs[name], tensor.cpu()) for name, tensor in ours.items())
    ):
        raise ModelError(
            f"{where} holds projections that its projection_prng_key does not make here; train it "
            "on where it was made"
        )


def _file(folder: Path) -> Tensors:
    try:
        with safe_open(safetensors_at(folder / WEIGHTS), framework="pt") as file:
            return {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"adapter {folder} cannot be read: {error}") from error


def _base(source: str, head: Head, classes: Sequence[str]) -> tuple[Any, Any, torch.dtype]:
    """Return a base in float32, its tokenizer, and the type it is stored in."""
    config: Any = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    kind: Any = transformers.AutoModelForCausalLM
    if head == "classes":
        kind = transformers.AutoModelForSequenceClassification
        options |= {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: index for index, name in enumerate(classes)},
        }
    tokenizer = tokenizer_in(source)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return kind.from_pretrained(source, **options), tokenizer, stored


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return a model whose adapters are merged, without PEFT's layers and with the trained head.

    PEFT's own `unload` stumbles over heads of several layers, such as RoBERTa's.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layers[name] = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            layers[name] = module.modules_to_save[SLOT]
    for name, layer in layers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer)
    vars(model).pop("peft_config", None)
    return model


def _probe(model: Any) -> Tensor:
    ids = torch.arange(2, 10)[None] % int(model.config.vocab_size)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def _unmergeable(adapter: Path, why: str) -> ModelError:
    options: Mapping[str, Any] = json_in(adapter / CONFIG)
    return ModelError(
        f"adapter kind {options.get('peft_type')} cannot be merged into this model: {why}; "
        "export it as an adapter instead"
    )
