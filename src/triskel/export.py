"""Trained adapters as PEFT folders that `PeftModel.from_pretrained` loads, and merged models."""

from pathlib import Path

from triskel.model.body import Body
from triskel.types import Tensors


def save_adapter(folder: Path, body: Body, tensors: Tensors, classes: tuple[str, ...]) -> None:
    """Placeholder until the export lands."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
