"""From a job's `[model]` section to a body in memory."""

import contextlib
import io
import json
import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from torch import nn

from triskel.config.sections import Adapter, Model
from triskel.core.task_spec import Head
from triskel.errors import ModelError
from triskel.model.blocks import family_of
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
    config = _config(source, read)
    family = family_of(config.model_type, head)
    options: dict[str, Any] = {
        "trust_remote_code": False,
        "dtype": dtype_of(model),
        "attn_implementation": model.attention,
        "use_safetensors": True,
    }
    kind: Any = transformers.AutoModelForCausalLM
    if head == "classes":
        kind = transformers.AutoModelForSequenceClassification
        options |= {"num_labels": classes, "ignore_mismatched_sizes": True}  # the head is new
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(read, trust_remote_code=False)
            loaded, notes = kind.from_pretrained(read, **options, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"model {source!r} cannot be loaded: {_first_line(error)}") from error
    _whole(source, notes["missing_keys"], family.heads[head] if head == "classes" else "")
    loaded = cast("nn.Module", loaded).to(device_of(model))
    if place is not None:
        _copy(loaded)
    return SharedModel(
        loaded, tokenizer, head=head, classes=classes, adapter=adapter, seed=seed, path=source
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


def _config(source: str, read: str) -> Any:
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(read, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(
            f"model {source!r} is neither a folder with a config.json nor a reachable hub id: "
            f"{_first_line(error)}"
        ) from error


def _whole(source: str, missing: Iterable[str], head: str) -> None:
    """Refuse a model whose files lack weights that would then be random."""
    lost = sorted(name for name in missing if not (head and name.startswith(f"{head}.")))
    if lost:
        raise ModelError(
            f"model {source!r} lacks weights for this task, {lost[0]!r} for one of {len(lost)}; "
            "they would be random, so use a checkpoint that has them"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
