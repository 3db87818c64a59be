"""What does training forward only hold in memory, and what does rebuilding cost?

`*_over_inference` is the most memory that some steps took over what scoring the same batches took:
the weights, and the growth of the process beyond the loaded model by the system's high-water mark,
each in a process of its own. `forward` is steps along seeds, which may take 1.05, and `backward`
those of AdamW. `pass_ms` is one seed's pass over the trained numbers and `rebuild_s` a client that
comes late with all 4,096 seeds set, in processor time of one thread. What it reaches:
docs/params-study.md.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measure
import torch

from triskel.config.read import load
from triskel.experiment.resources import LocalResources, prepare
from triskel.model.shared import SharedModel
from triskel.numerics.replay import Replay, Steps, ticks
from triskel.training.loop import LossTerm, StepId, Trainer, TrainStep
from triskel.training.worker import Worker
from triskel.training.zeroth_order import Walk, WalkStep
from triskel.types import Batch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SEEDS = 4096


def quiet(_: object) -> None:
    """Tell nobody."""


def kilobytes(what: str) -> int:
    """Return a figure of this process's memory."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def prepared(sets: list[str]) -> tuple[LocalResources, Worker]:
    """Return the demo with some settings, and a client."""
    resources = prepare(load(None, sets), quiet)
    return resources, resources.worker("films", quiet)


def scoring(body: SharedModel, _: Worker, batches: list[Batch]) -> None:
    """Score texts in batches of the same shape."""
    parameters = body.parameters(body.initial)
    for batch in batches:
        for _part, _logits in body.logits_by_part(parameters, batch):
            pass


def forward(body: SharedModel, _: Worker, batches: list[Batch]) -> None:
    """Take a step along a seed for each batch."""
    replay = Replay(body.initial, 1e-6)
    one = Walk(body, replay, replay.sums(Steps()), lr=1e-6, epsilon=1e-3)
    for step, batch in enumerate(batches):
        WalkStep(one, batch, StepId("films", 1), step, step, 0).run()


def backward(body: SharedModel, worker: Worker, batches: list[Batch]) -> None:
    """Take a step of AdamW for each batch."""
    trainer = Trainer(body, body.initial, worker.training, 1e-6)
    for step, batch in enumerate(batches):
        terms = [LossTerm(batch, body.objective.loss)]
        TrainStep(trainer, terms, StepId("films", 1), step, 0).run()


WORKS: dict[str, Callable[[SharedModel, Worker, list[Batch]], None]] = {
    "scoring": scoring,
    "forward": forward,
    "backward": backward,
}


def child(what: str, sets: list[str]) -> None:
    """Print the weights and what a piece of work took beside them, in bytes."""
    torch.set_num_threads(1)
    resources, worker = prepared(sets)
    body, batches = resources.body(), [worker.batch(worker.train, list(range(16)))] * 3
    scoring(body, worker, batches)  # what is made once is there before
    RESET.write_text("5", encoding="ascii")  # sets the high-water mark back
    before = kilobytes("VmRSS")
    WORKS[what](body, worker, batches)
    weights = sum(p.nbytes for p in body.blocks.model.parameters())
    print(json.dumps(weights + 1024 * (kilobytes("VmHWM") - before)))


def took(what: str, sets: list[str]) -> int:
    """Return what a child says."""
    command = [sys.executable, __file__, "--child", what, *(f"--set={one}" for one in sets)]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=exact)
    return int(json.loads(done.stdout.splitlines()[-1]))


def rebuilding(times: int, seeds: int, sets: list[str]) -> dict[str, list[float]]:
    """Return what a pass and a whole rebuild cost, on one thread."""
    torch.set_num_threads(1)
    body = prepared(sets)[0].body()
    steps = Steps.of(torch.arange(seeds), ticks(torch.linspace(-3, 3, seeds) + 1e-3))
    seconds: list[float] = []
    for _ in range(times):
        start = time.process_time()
        Replay(body.initial, 1e-6).tensors(steps)
        seconds.append(time.process_time() - start)
    return {
        "pass_ms": [1e3 * s / len(steps.seeds) for s in seconds],
        "rebuild_s": [s * SEEDS / len(steps.seeds) for s in seconds],
        "numbers": [float(sum(t.numel() for t in body.initial.values()))],
    }


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--child", choices=sorted(WORKS), help="for this script's own use")
    options.add_argument("--set", action="append", default=[], help="section.key=value")
    chosen = options.parse_args()
    sets: list[str] = [*chosen.set, f"seed={chosen.seed}"]
    if chosen.child:
        child(chosen.child, chosen.set)
        return
    times = 1 if chosen.quick else 3
    figures: dict[str, list[float]] = {f"{what}_over_inference": [] for what in list(WORKS)[1:]}
    for _ in range(times):
        base = took("scoring", sets)
        figures.setdefault("inference_mb", []).append(base / 1e6)
        for what in list(WORKS)[1:]:
            figures[f"{what}_over_inference"].append(took(what, sets) / base)
    figures |= rebuilding(times, SEEDS // 16 if chosen.quick else SEEDS, sets)
    measure.report("seeds", figures, seed=chosen.seed, out=chosen.out, set=sets)


if __name__ == "__main__":
    main()
