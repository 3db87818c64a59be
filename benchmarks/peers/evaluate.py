"""Scores the adapters that peers ended with, all by the same lines, outside of any timing.

python evaluate.py WORK ADAPTER_FOLDER...
"""

import json
import sys
from pathlib import Path

import work
from safetensors.torch import load_file


def main() -> None:
    """Print accuracies by folder, and how far each adapter moved from the start."""
    done = work.read(Path(sys.argv[1]))
    model, start = work.model_of(done), load_file(done.start)
    found: dict[str, dict[str, float]] = {}
    for name in sys.argv[2:]:
        adapter = load_file(Path(name) / work.ADAPTER)
        if adapter.keys() != start.keys():
            raise SystemExit(f"{name} holds other tensors than the start")
        work.install(model, adapter)
        moved = sum(float((adapter[n] - start[n]).square().sum()) for n in start) ** 0.5
        found[name] = {"accuracy": work.accuracy(model, done), "moved": moved}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
