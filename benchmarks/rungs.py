"""How long does the demonstration's timed step take here, and with narrower instructions?

Microseconds of a padded token through one block, forward or back (`triskel.experiment.demo.timed`),
each reading in a process of its own, since kernels are chosen once: as this processor is
(`native`), and as one with AVX2 only (`avx2`). `rung_*` is the rung that is chosen, counted from 1,
and `minutes_*` what it would take.
"""

import os
import subprocess
import sys
from typing import Any

import measure
from overhead import quiet

from triskel.config.sections import Model
from triskel.experiment import demo
from triskel.model.load import dtype_of

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
WAYS: dict[str, dict[str, str]] = {"native": {}, "avx2": AVX2}
CHILD = "--step"


def reading(way: dict[str, str]) -> tuple[float, str]:
    """Return a process's seconds of a pass, and the dtype it took."""
    clean = {k: v for k, v in os.environ.items() if k not in AVX2}
    call = [sys.executable, __file__, CHILD]
    done = subprocess.run(call, env=clean | way, capture_output=True, text=True, check=True)
    seconds, dtype = done.stdout.split()[-2:]
    return float(seconds), dtype


def main() -> None:
    """Answer the question."""
    if sys.argv[1:] == [CHILD]:
        print(demo.timed(quiet), str(dtype_of(Model())).removeprefix("torch."))
        return
    chosen = measure.arguments(__doc__ or "").parse_args()
    figures: dict[str, list[float]] = {}
    dtypes: dict[str, str] = {}
    for _ in range(1 if chosen.quick else 3):
        for name, way in WAYS.items():
            seconds, dtypes[name] = reading(way)
            choice = demo.choose(seconds)
            figures.setdefault(f"us_{name}", []).append(1e6 * seconds)
            figures.setdefault(f"rung_{name}", []).append(float(choice.place))
            minutes = choice.rung.passes * seconds / 60
            figures.setdefault(f"minutes_{name}", []).append(minutes)
    more: dict[str, Any] = {"dtypes": dtypes, "load_before": list(os.getloadavg())}
    measure.report("rungs", figures, seed=chosen.seed, out=chosen.out, **more)


if __name__ == "__main__":
    main()
