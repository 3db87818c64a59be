"""What does the place of the cut move? Split learning, cut by cut.

    python examples/split.py                        # the demo's model, 50 texts a client
    python examples/split.py split.labels=shared    # any key of a job

A later first cut moves FLOPs and memory from the server to the client. It hardly moves bytes:
hidden states have one width at every cut, and only the part of the adapter that the client holds
grows.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triskel.config.read import parse
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import prepare
from triskel.experiment.rounds import play, summary
from triskel.experiment.stages import stage_of

JOB = """
mode = "split"
rounds = 1
[clients]
examples = 50
test_examples = 50
"""


def main(settings: Sequence[str] = ()) -> None:
    """Print one line per cut: what a client sends, receives, computes and holds in a round."""
    blocks = prepare(parse(JOB, overrides=settings), watch).body().blocks.count
    print(f"{'cut':>9} {'up':>12} {'down':>12} {'MFLOPs':>10} {'peak MB':>8} {'accuracy':>9}")
    for low in sorted({1, blocks // 4, blocks // 2} & set(range(1, blocks - 1))):
        job = parse(JOB, overrides=[*settings, f"split.cut=[{low},{blocks - 1}]"])
        resources = prepare(job, watch)
        with TemporaryDirectory() as folder:
            stage = stage_of("split", resources, watch)
            outcome = play(stage, LocalEngine(job), folder=Path(folder), watch=watch)
        last = summary(outcome)["rounds"][-1]
        cost = next(iter(last["clients"].values()))
        up, down = cost["up"]["message_bytes"], cost["down"]["message_bytes"]
        work, peak = cost["flops"] / 1e6, cost["peak_client_bytes"] / 1e6
        print(
            f"{f'{low}-{blocks - 1}':>9} {up:12,} {down:12,} {work:10,.3f} {peak:8,.2f} "
            f"{last['accuracy']:9.3f}"
        )


def watch(event: Mapping[str, Any]) -> None:
    """Show warnings; every step and message comes by here too."""
    if event["event"] == "warning":
        print(event["text"], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
