"""How should torch's threads wait for each other: alone, and where others compute?

Tokens a second of training steps of the demonstration, each reading in a process of its own, since
OpenMP reads how threads wait once: as it comes (`spin`), after a brief look (`brief`), at once
asleep (`sleep`), and with one thread (`one`), beside so many busy processes (`_busy4`). The busy
processes end by themselves after two minutes, and are ended after each reading.
"""

import os
import subprocess
import sys
import time
from itertools import islice
from typing import Any

import measure
from overhead import quiet

from triskel.config.read import load
from triskel.core.threads import BRIEF, SLEEPING, WAITS
from triskel.experiment.resources import prepare
from triskel.training.loop import LossTerm, StepId, TrainStep
from triskel.training.trainer import Trainer

WAYS = {"spin": {}, "brief": BRIEF, "sleep": SLEEPING, "one": {"OMP_NUM_THREADS": "1"}}
BUSY = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
CHILD = "--steps"


def steps(seconds: float) -> float:
    """Return the tokens a second of training steps, taken for some seconds."""
    job = load(None, ["adapter.blocks=all", "model.compute=fast", "clients.examples=64"])
    resources = prepare(job, quiet)
    worker = resources.worker(resources.clients[0], quiet)
    batches = list(islice(worker.batches(StepId("probe", 1), 1), 4))
    trainer = Trainer(resources.body(), resources.body().initial, job.train, job.train.lr)
    tokens, start, step = 0, 0.0, 0
    while not step or time.perf_counter() - start < seconds:
        batch = batches[step % len(batches)]
        TrainStep(trainer, [LossTerm(batch)], StepId("probe", 1), step, 0).run()
        if step:
            tokens += int(batch.lengths.sum())
        else:  # the first is to warm up
            start = time.perf_counter()
        step += 1
    return tokens / (time.perf_counter() - start)


def reading(way: dict[str, str], busy: int, seconds: float) -> float:
    """Return a process's tokens a second, beside busy processes."""
    clean = {k: v for k, v in os.environ.items() if k not in {*WAITS, "OMP_NUM_THREADS"}}
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        call = [sys.executable, __file__, CHILD, str(seconds)]
        done = subprocess.run(call, env=clean | way, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def main() -> None:
    """Answer the question."""
    if sys.argv[1:2] == [CHILD]:
        print(steps(float(sys.argv[2])))
        return
    options = measure.arguments(__doc__ or "")
    options.add_argument("--busy", type=int, nargs="*", default=[0, 4, 10])
    chosen = options.parse_args()
    figures: dict[str, list[float]] = {}
    turns, seconds = (1, 3.0) if chosen.quick else (3, 10.0)
    for _ in range(turns):
        for busy in chosen.busy[:2] if chosen.quick else chosen.busy:
            for name, way in WAYS.items():
                found = reading(way, busy, seconds)
                figures.setdefault(f"{name}_busy{busy}", []).append(found)
    more: dict[str, Any] = {"load_before": list(os.getloadavg())}
    measure.report("waiting", figures, seed=chosen.seed, out=chosen.out, **more)


if __name__ == "__main__":
    main()
