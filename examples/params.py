"""What does the rank of an adapter cost, and what does it bring? Parameter exchange, rank by rank.

    python examples/params.py                         # the demo's model, 100 texts a client
    python examples/params.py rounds=3 train.lr=3e-4  # any key of a job

Before codecs, a client sends 4 bytes a trained number in each round, and receives as many: that is
`formula`. `payload` is what was measured, and `message` is what crossed, codec and header included.
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
from triskel.numerics.tensors import numbers

JOB = """
[clients]
examples = 100
test_examples = 100
"""
RANKS = (1, 4, 16)


def main(settings: Sequence[str] = ()) -> None:
    """Print one line per rank: bytes a client sends in a round, and the accuracy reached."""
    print(f"{'rank':>4} {'formula':>12} {'payload':>12} {'message':>12} {'accuracy':>9}")
    for rank in RANKS:
        scale = [f"adapter.rank={rank}", f"adapter.alpha={2 * rank}"]  # alpha / rank stays 2
        job = parse(JOB, overrides=[*settings, *scale])
        resources = prepare(job, watch)
        with TemporaryDirectory() as folder:
            stage = stage_of("params", resources, watch)
            outcome = play(stage, LocalEngine(job), folder=Path(folder), watch=watch)
        found = summary(outcome)
        sent = next(iter(found["rounds"][-1]["clients"].values()))["up"]
        payload, message = sent["payload_bytes"], sent["message_bytes"]
        formula, score = 4 * numbers(resources.body().initial), found["final"]["accuracy"]
        print(f"{rank:4} {formula:12,} {payload:12,} {message:12,} {score:9.3f}")


def watch(event: Mapping[str, Any]) -> None:
    """Show warnings; every step and message comes by here too."""
    if event["event"] == "warning":
        print(event["text"], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
