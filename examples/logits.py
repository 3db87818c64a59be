"""What do more public texts cost, and what do they bring? Prediction exchange, set by set.

    python examples/logits.py                              # the demo's model, 100 texts a client
    python examples/logits.py logits.aggregate=confidence  # any key of a job

Before codecs, P * C predictions of 4 bytes go up for P public texts and C classes: that is
`formula`, `payload` is what was measured, and `message` is what crossed. `student` is the server's
model, trained on public texts only; `clients` are their own models on their own test texts. Public
texts are held out of training, so a larger set leaves the clients other rows.
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
mode = "logits"
[clients]
examples = 100
test_examples = 100
"""
PUBLIC = (20, 80)


def main(settings: Sequence[str] = ()) -> None:
    """Print one line per public set: bytes up and MFLOPs of a client in a round, accuracies."""
    print(
        f"{'public':>6} {'formula':>8} {'payload':>8} {'message':>8} {'MFLOPs':>10} "
        f"{'student':>8} {'clients':>8}"
    )
    for public in PUBLIC:
        job = parse(JOB, overrides=[*settings, f"logits.public={public}"])
        resources = prepare(job, watch)
        with TemporaryDirectory() as folder:
            stage = stage_of("logits", resources, watch)
            outcome = play(stage, LocalEngine(job), folder=Path(folder), watch=watch)
        last = summary(outcome)["rounds"][-1]
        cost = next(iter(last["clients"].values()))
        own = last["per_client"].values()
        mean = sum(c["accuracy"] * c["examples"] for c in own) / sum(c["examples"] for c in own)
        formula = 4 * public * len(resources.federation.classes)
        payload, message = cost["up"]["payload_bytes"], cost["up"]["message_bytes"]
        print(
            f"{public:6} {formula:8,} {payload:8,} {message:8,} {cost['flops'] / 1e6:10,.3f} "
            f"{last['accuracy']:8.3f} {mean:8.3f}"
        )


def watch(event: Mapping[str, Any]) -> None:
    """Show warnings; every step and message comes by here too."""
    if event["event"] == "warning":
        print(event["text"], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
