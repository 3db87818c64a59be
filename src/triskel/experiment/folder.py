"""A run folder: its result, and what the result depends on beside the job."""

import os
import platform
from pathlib import Path

import torch

from triskel.core.crash import during
from triskel.core.files import write_text
from triskel.core.result_file import NAME, Result, dump
from triskel.model.load import versions
from triskel.model.quantised import numbers
from triskel.model.shared import SharedModel


def safe(name: str) -> str:
    """Return a name that can be a folder."""
    return name.replace(":", "-").replace(os.sep, "_")


@during("while writing the result")
def save(folder: Path, result: Result) -> None:
    """Write the result as it stands.

    Raises:
        CheckpointError: It is not what a result is, or the disk is full.
    """
    write_text(folder / NAME, dump(result))


def environment(body: SharedModel) -> dict[str, str | int | float | None]:
    """Return what a result depends on beside the job."""
    return {
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "device": str(body.device),
        "dtype": str(body.dtype).removeprefix("torch."),
        "parameters": sum(numbers(p) for p in body.blocks.model.parameters()),
        "trainable": sum(t.numel() for t in body.initial.values()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
