"""Whether there is room in memory for what training keeps until its backward passes."""

import math
from collections.abc import Collection
from pathlib import Path

import torch

from triskel.config.job import Job, ModeName
from triskel.core.mode_spec import Memory
from triskel.core.registry import MODES
from triskel.model.flops import Piece
from triskel.model.meter import Costs
from triskel.model.shared import SharedModel
from triskel.training.joining import MOST
from triskel.training.mode_setting import options_in

ROOM = 0.6
"""Share of free memory that activations may take before they are computed twice instead."""
MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def kept(
    body: SharedModel, costs: Costs, job: Job, modes: Collection[ModeName], clients: int
) -> float:
    """Return the most bytes that are kept for backward passes at once, in any of these modes.

    A step keeps its batch, or those of all clients that are joined in it; what more a mode keeps,
    its spec says.

    Args:
        body: The model.
        costs: What its pieces cost.
        job: Batches, lengths, and options of modes.
        modes: What is played.
        clients: How many take part in a round.
    """
    rows, tokens = job.train.batch, job.train.length + body.blocks.ahead

    def of(rows: int) -> int:
        scored = rows * tokens if body.ends == "vocabulary" else rows
        return costs.bytes_of(Piece("train"), rows, tokens, scored)

    joined = -(-MOST // tokens)
    step = of(max(rows, joined) if body.joins else rows)
    memory = Memory(
        batch=rows,
        together=joined,
        blocks=body.blocks.count,
        frozen=body.frozen,
        clients=clients,
        step=step,
        bytes_of=of,
    )
    found = [float(step)]
    for spec in map(MODES.spec, modes):
        options, each = options_in(job, spec)
        found.append(spec.bytes_kept([options, *each.values()], memory))
    return max(found)


def free_memory(device: torch.device) -> float:
    """Return bytes that are free on a device; infinity where nobody says."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + idle)
    return min(_of_machine(), _of_groups())


def _of_machine() -> float:
    """Return what the machine has free."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return math.inf


def _of_groups() -> float:
    """Return what the control groups of this process, as of a container, leave it."""
    found = [math.inf]
    lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else []
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = root / path.strip("/")
        above = [folder for folder in place.parents if folder.is_relative_to(root)]
        found += [_left(folder, *names) for folder in (place, *above)]
    return min(found)


def _left(group: Path, most: str, used: str, idle: str) -> float:
    """Return what a control group leaves; pages of files that nobody used lately make way."""
    if not (group / most).exists():
        return math.inf
    limit = (group / most).read_text(encoding="utf-8").strip()
    if limit == "max":
        return math.inf
    stat = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    freed = sum(int(line.split()[1]) for line in stat if line.split()[0] == idle)
    return max(0.0, int(limit) - int((group / used).read_text(encoding="utf-8")) + freed)
