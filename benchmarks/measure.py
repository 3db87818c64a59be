"""How every benchmark here measures: two things in turn in one run, medians, and one JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triskel.core.threads import waiting

waiting(os.environ, idle=True)  # as the command line does, before torch

import torch  # noqa: E402 - it reads the environment once


def arguments(question: str) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="under 50 s, with a wider spread")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(
    works: Mapping[str, Callable[[], object]], *, times: int, warm: int = 1
) -> dict[str, list[float]]:
    """Time several things A B A B ..., the order reversed every other time.

    Returns:
        Seconds of each, one entry a turn.
    """
    for _ in range(warm):
        for work in works.values():
            work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(times):
        names = list(works) if turn % 2 == 0 else list(reversed(works))
        for name in names:
            found[name].append(seconds(works[name]))
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of neighbours in time."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def report(
    name: str, figures: Mapping[str, Sequence[float]], *, seed: int, out: Path | None, **more: Any
) -> None:
    """Print one table, and write the JSON where asked."""
    found = {figure: spread(values) for figure, values in figures.items()}
    width = max(len(figure) for figure in found)
    print(f"{'':{width}}  {'median':>10} {'low':>10} {'high':>10}")
    for figure, row in found.items():
        print(f"{figure:{width}}  {row['median']:>10.4g} {row['low']:>10.4g} {row['high']:>10.4g}")
    if out is not None:
        keep(name, found, seed=seed, out=out, **more)


def keep(name: str, figures: Mapping[str, Any], *, seed: int, out: Path, **more: Any) -> None:
    """Write figures, and what they depend on, to a JSON file."""
    text = {
        "benchmark": name,
        "commit": commit(),
        "machine": machine(),
        "seed": seed,
        "figures": figures,
        **more,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """Return the commit that is checked out, with a mark where files differ from it."""
    call = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(call, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
