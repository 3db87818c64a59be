"""What is found out once for a machine and a model, and remembered in the cache folder."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from triskel.core.files import private
from triskel.core.untrusted import json_in
from triskel.model.load import limits, versions
from triskel.model.shared import SharedModel


def machine(device: torch.device) -> str:
    """Return what computing on a device depends on beside the model."""
    words = [platform.machine(), str(os.cpu_count()), str(torch.get_num_threads())]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        words += sorted({x for x in lines if x.startswith(("model name", "flags"))})
        words += [f"{name} {value}" for name, value in limits().items()]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return "\n".join([*words, *versions().values()])


def place_of(folder: Path, body: SharedModel, *more: str) -> Path:
    """Return the file of what is known of this model on this machine, and of what more is named."""
    config: Any = body.blocks.config
    parts = [
        machine(body.device),
        json.dumps(config.to_dict(), sort_keys=True, default=str),
        str(getattr(config, "_attn_implementation", "")),
        body.adapter.model_dump_json(),
        f"{body.ends} {body.dtype} {body.device} {body.classes}",
        *more,
    ]
    sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return folder / f"{sha256[:24]}.json"


def recalled(place: Path) -> Any:
    """Return what a file remembers; None where there is none that can be read."""
    try:
        return json_in(place)
    except (OSError, ValueError):
        return None


def remember(place: Path, value: object, say: Callable[[str], None]) -> None:
    """Write a file, whole or not at all; where that cannot be, say so and go on."""
    part = place.with_suffix(f".{os.getpid()}.part")
    try:
        private(place.parent)
        part.touch(mode=0o600)  # not by the umask, which other threads share
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(place)
    except OSError as error:
        say(f"this machine cannot remember what it found out about the model: {error}")
