"""From a job's `[model]` section to a body in memory."""

import contextlib
import io
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from triskel.config.sections import Adapter, Model
from triskel.core.crash import during
from triskel.core.task_spec import Head
from triskel.errors import ModelError
from triskel.model import quantised
from triskel.model.families import family_of
from triskel.model.files import unloadable
from triskel.model.shared import SharedModel

CPUINFO = Path("/proc/cpuinfo")
_BELOW_BF16 = frozenset(
    {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
)
LIMITS = {
    "ATEN_CPU_CAPABILITY": frozenset({"default", "avx2"}),
    "ONEDNN_MAX_CPU_ISA": _BELOW_BF16,
    "DNNL_MAX_CPU_ISA": _BELOW_BF16,
}
"""Variables by which torch and oneDNN use less of the processor, and values without bfloat16."""
LOADING = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)
"""What transformers raises where files are not what they should be, or a library is not here."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load(  # noqa: PLR0913 - what a body is made of
    source: str,
    model: Model,
    adapter: Adapter,
    *,
    head: Head,
    classes: int,
    seed: int,
    place: str | None = None,
) -> SharedModel:
    """Load a model and its tokenizer, and make it a body.

    Args:
        source: A local folder or a hub id.
        model: How it computes.
        adapter: What trains.
        head: `classes` puts a fresh one on it; `vocabulary` keeps its own, frozen.
        classes: Number of classes, for `classify`.
        seed: The job's seed; the start of adapter and head is a function of it.
        place: Another path to the same folder, which is read through it; what is loaded is then a
            copy in memory, on which what becomes of the files has no bearing.

    Raises:
        ModelError: The files are missing or damaged, or the architecture is not supported.
    """
    read = place or source
    with during(f"while loading model {source}"):
        family = family_of(_config(source, read, head).model_type, head)
        tokenizer = tokenizer_in(source, read)
        fresh = family.heads[head] if head == "classes" else ()
        heads = [*family.heads[head], *([family.between] if family.between else [])]
        loaded = _weights(source, read, model, classes=classes, fresh=fresh, heads=heads)
        _rows(source, tokenizer, cast("Any", loaded))
        if model.quantise == "none":
            loaded = loaded.to(device_of(model))
        else:
            quantised.settle(loaded)
        if place is not None:
            _copy(loaded)
    return SharedModel(
        loaded, tokenizer, head=head, classes=classes, adapter=adapter, seed=seed, path=source
    )


def tokenizer_in(source: str, read: str | None = None) -> Any:
    """Return the tokenizer of a base model.

    Args:
        source: A local folder or a hub id.
        read: Another path to the same folder, which is read through it.

    Raises:
        ModelError: It cannot be loaded.
    """
    try:
        with during(f"while loading the tokenizer of {source}"), quiet():
            return transformers.AutoTokenizer.from_pretrained(
                read or source, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"the tokenizer of {source!r} cannot be loaded: {_first_line(error)}; copy tokenizer"
            ".json and tokenizer_config.json of the model into its folder anew"
        ) from error


def _weights(
    source: str,
    read: str,
    model: Model,
    *,
    classes: int,
    fresh: Sequence[str],
    heads: Sequence[str],
) -> nn.Module:
    """Return a base with its weights; modules of a fresh head may be missing in its files.

    Raises:
        ModelError: They are missing or damaged.
    """
    options: dict[str, Any] = {
        "trust_remote_code": False,
        "dtype": dtype_of(model),
        "attn_implementation": model.attention,
        "use_safetensors": True,
    }
    if model.quantise != "none":
        options |= quantised.options(model, dtype_of(model), device_of(model), heads)
    kind: Any = transformers.AutoModelForCausalLM
    if fresh:
        kind = transformers.AutoModelForSequenceClassification
        options |= {"num_labels": classes, "ignore_mismatched_sizes": True}  # the head is new
    try:
        with quiet():
            loaded, notes = kind.from_pretrained(read, **options, output_loading_info=True)
    except torch.OutOfMemoryError:
        raise
    except LOADING as error:
        raise ModelError(f"model {source!r} cannot be loaded: {_first_line(error)}") from error
    _whole(source, notes, fresh)
    return loaded


def _rows(source: str, tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer that has tokens of which the model knows nothing.

    Raises:
        ModelError: It has; names the first.
    """
    rows = int(model.get_input_embeddings().num_embeddings)
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if beyond:
        first = min(beyond)
        raise ModelError(
            f"the tokenizer of {source!r} knows {max(beyond) + 1:,} tokens and the model embeds "
            f"{rows:,}: {beyond[first]!r} ({first}) is the first without a row; put the tokenizer "
            "that belongs to the model beside it, or give the model more rows with transformers' "
            "resize_token_embeddings"
        )


def _copy(model: nn.Module) -> None:
    """Put weights into memory of this process: as they are read they may lie in the file itself."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def dtype_of(model: Model) -> torch.dtype:
    """Return what hidden states are computed in.

    `auto` is bfloat16 where the processor or the GPU multiplies it natively, and the environment
    does not forbid it, else float32.
    """
    if model.dtype != "auto":
        return DTYPES[model.dtype]
    if (device := device_of(model)).type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if _native_bf16() else torch.float32


def device_of(model: Model) -> torch.device:
    """Return where the model computes.

    Raises:
        ModelError: The device is not a device, or is not on this machine.
    """
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(model.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f'model.device {model.device!r} cannot be used: {_first_line(error)}; "auto" chooses'
        ) from error
    return device


def limits() -> dict[str, str]:
    """Return what the environment forbids torch and oneDNN to use of the processor."""
    return {name: os.environ[name] for name in LIMITS if name in os.environ}


def _native_bf16() -> bool:
    """Return whether the processor multiplies bfloat16, and torch and oneDNN may let it."""
    if not CPUINFO.exists() or any(x.lower() in LIMITS[name] for name, x in limits().items()):
        return False
    words = set(CPUINFO.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _config(source: str, read: str, head: Head) -> Any:
    """Return a model's configuration.

    Raises:
        ModelError: It cannot be read, or such a model is never loaded.
    """
    try:
        with quiet():
            told, _ = transformers.PreTrainedConfig.get_config_dict(read, trust_remote_code=False)
            for why in unloadable(source, told, head):
                raise ModelError(why)
            return transformers.AutoConfig.from_pretrained(read, trust_remote_code=False)
    except (*LOADING, TypeError, AttributeError) as error:
        raise ModelError(
            f"model {source!r} is neither a folder with a config.json nor a reachable hub id: "
            f"{_first_line(error)}"
        ) from error


def _whole(source: str, notes: Mapping[str, Any], fresh: Sequence[str]) -> None:
    """Refuse a model whose files lack weights, or have others, that would then be random."""
    new = tuple(f"{name}." for name in fresh)
    lost = sorted(name for name in notes["missing_keys"] if not name.startswith(new))
    other = sorted(one for one in notes["mismatched_keys"] if not str(one[0]).startswith(new))
    if other:
        name, there, wanted = other[0]
        raise ModelError(
            f"model {source!r} has {name!r} of shape {tuple(there)} in its files, and its "
            f"config.json says {tuple(wanted)}; take both from one model"
        )
    if lost:
        raise ModelError(
            f"model {source!r} lacks weights for this task, {lost[0]!r} for one of {len(lost)}; "
            "they would be random, so use a checkpoint that has them"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep transformers from printing progress bars and advice while it loads."""
    before = transformers.logging.get_verbosity()
    bars = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
        if bars is not None:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = bars
