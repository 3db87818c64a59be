"""Whether there is room in memory for what training keeps until its backward passes."""

import math
from collections.abc import Collection
from pathlib import Path

import torch

from triskel.job import Job, ModeName, default_cut
from triskel.model.body import Body
from triskel.model.cost import Costs, Piece
from triskel.model.train import MOST

ROOM = 0.6
"""Share of free memory that activations may take before they are computed twice instead."""
MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def kept(body: Body, costs: Costs, job: Job, modes: Collection[ModeName], clients: int) -> int:
    """Return the most bytes that are kept for backward passes at once, in any of these modes.

    A step keeps its batch, or those of all clients that are joined in it. A client of `logits`
    keeps two: public texts, and its own to rehearse. In `split` the blocks up to the head's cut
    keep the batches of all clients of a wave, until the trunk takes its step; with shared labels
    only what lies below the trunk waits.

    Args:
        body: The model.
        costs: What its pieces cost.
        job: Batches, lengths, cuts and waves.
        modes: What is played.
        clients: How many take part in a round.
    """
    rows, tokens, count = job.train.batch, job.train.max_tokens, body.blocks.count

    def of(rows: int) -> int:
        scored = rows * tokens if body.task == "causal" else rows
        return costs.bytes_of(Piece("train"), rows, tokens, scored)

    joined = -(-MOST // tokens)
    step = of(max(rows, joined) if body.joins else rows)
    found = [step]
    if "logits" in modes and job.logits.mix < 1:
        found.append(max(step, of(2 * rows)))
    if "split" in modes:
        cuts = [job.split.cut or default_cut(count)]
        cuts += [each.cut for each in job.clients.each.values() if each.cut]
        shared = job.split.labels == "shared"
        depth = max(min(low if shared else high, count) for low, high in cuts)
        waits = max(0, depth - body.frozen) / max(1, count - body.frozen)
        wave = min(job.split.wave or clients, clients)
        above = of(max(rows, joined) if shared else rows)
        found.append(math.ceil(wave * waits * of(rows) + (1 - waits) * above))
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
