"""A run folder: its log, its result, and what the result depends on beside the job."""

import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from triskel.checkpoint import write_text
from triskel.errors import TriskelError
from triskel.model.body import Body
from triskel.model.load import versions
from triskel.owned import private
from triskel.types import Event, Watch

LISTED = 100
"""Longer lists are written to the log as their length."""
QUIET = {"step", "message"}
"""Events too frequent for the log file."""


class Log(AbstractContextManager["Log"]):
    """Writes events to a file, one JSON line each, and passes them on.

    A log that a kill cut in the middle of a line is mended before it goes on.
    """

    def __init__(self, place: Path, watch: Watch) -> None:
        """Open the log at its end."""
        self._watch = watch
        private(place.parent)
        if place.exists():
            whole = place.read_bytes()
            place.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self._file = place.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write an event down, unless it is one of thousands, and pass it on."""
        self._watch(event)
        if event.get("event") not in QUIET:
            line = json.dumps({"time": round(time.time(), 3), **_short(event)})
            self._file.write(f"{line}\n")
            self._file.flush()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write down what stopped the run, and close."""
        if isinstance(error, TriskelError):
            self({"event": "failed", "text": str(error)})
        elif error is not None:
            self({"event": "failed", "text": f"{type(error).__name__}"})
        self._file.close()


def _short(event: Event) -> dict[str, Any]:
    """Return an event with its long lists counted: 10,000 names are no line of a log."""
    return {
        k: len(v) if isinstance(v, list | tuple) and len(v) > LISTED else v
        for k, v in event.items()
    }


def safe(name: str) -> str:
    """Return a name that can be a folder."""
    return name.replace(":", "-").replace(os.sep, "_")


def stamped(watch: Watch, stage: str) -> Watch:
    """Return a watch that names the stage in every event."""

    def here(event: Event) -> None:
        watch({**event, "stage": stage})

    return here


def save(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result as it stands."""
    write_text(folder / "result.json", json.dumps(result, indent=1))


def environment(body: Body) -> dict[str, Any]:
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
        "parameters": sum(p.numel() for p in body.blocks.model.parameters()),
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
