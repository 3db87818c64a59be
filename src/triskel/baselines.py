"""What a federation is measured against: no training, training alone, training on all data.

`base` is the majority class for `classify` and the untrained model for `causal`; `local` trains
every client alone; `central` trains on everybody's examples in one place. Steps, seed and
evaluation are those of the modes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from triskel.bench import Bench
from triskel.round import Engine
from triskel.stages import alone, complete, everywhere
from triskel.types import ClientId, Examples, Watch

BaselineName = Literal["base", "local", "central"]
BASELINES: tuple[BaselineName, ...] = ("base", "local", "central")
EVERYONE = "everyone"


def baseline(
    name: BaselineName, bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    """Return how a baseline stands in a result."""
    if name == "base":
        return _base(bench, watch)
    tests = {c: bench.share(c).test for c in bench.clients}
    if name == "central":
        stage = alone(bench, "central", EVERYONE, bench.pooled(), tests)
        found = complete(stage, bench, engine, folder, watch)
        return {**found["final"], "per_client": found["rounds"][-1]["per_client"], **found}
    return _local(bench, engine, folder, watch, tests)


def _local(
    bench: Bench, engine: Engine, folder: Path, watch: Watch, tests: Mapping[ClientId, Examples]
) -> dict[str, Any]:
    """Train every client alone; its own test share counts, and everybody's as `global_accuracy`."""
    watch({"event": "stage_start", "stage": "local", "rounds": bench.job.rounds})
    each: dict[str, Any] = {}
    correct = count = loss = 0.0
    for client in bench.active:
        stage = alone(bench, f"local:{client}", client, bench.share(client), tests)
        found = complete(stage, bench, engine, folder, watch)
        own = found["rounds"][-1]["per_client"][client]
        each[client] = {**own, "global_accuracy": found["final"]["accuracy"]}
        correct += own["accuracy"] * own["examples"]
        loss += own["loss"] * own["examples"]
        count += own["examples"]
    row: dict[str, Any] = {
        "accuracy": correct / count if count else 0.0,
        "loss": loss / count if count else 0.0,
        "global_accuracy": sum(e["global_accuracy"] for e in each.values()) / max(len(each), 1),
        "per_client": each,
    }
    if not bench.body().classes:
        row |= {"token_accuracy": row["accuracy"], "perplexity": math.exp(min(row["loss"], 700.0))}
    watch({"event": "stage_end", "stage": "local", "accuracy": row["accuracy"]})
    return row


def _base(bench: Bench, watch: Watch) -> dict[str, Any]:
    """Score no training at all: the majority class, or the model as it came."""
    watch({"event": "stage_start", "stage": "base", "rounds": 0})
    body = bench.body()
    if body.classes:
        row = _majority(bench)
    else:
        scores = everywhere(bench, body, body.initial)
        row: dict[str, Any] = {
            **scores.pooled.row(),
            "what": "zero-shot",
            "per_client": {c: s.row() for c, s in scores.each.items()},
        }
    watch({"event": "stage_end", "stage": "base", "accuracy": row["accuracy"]})
    return row


def _majority(bench: Bench) -> dict[str, Any]:
    """Predict the most frequent training label; its loss is that of label shares, add-one."""
    classes = len(bench.federation.classes)
    labels = [int(x) for c in bench.clients for x in bench.share(c).train.labels if x >= 0]
    seen = Counter(labels)
    most = max(range(classes), key=lambda c: (seen[c], -c))
    share = [(seen[c] + 1) / (len(labels) + classes) for c in range(classes)]
    each: dict[str, dict[str, float]] = {}
    hits = total = 0
    loss = 0.0
    for client in bench.clients:
        tests = [int(x) for x in bench.share(client).test.labels if x >= 0]
        right = sum(x == most for x in tests)
        nats = -sum(math.log(share[x]) for x in tests)
        each[client] = {
            "accuracy": right / len(tests) if tests else 0.0,
            "loss": nats / len(tests) if tests else 0.0,
        }
        hits, total, loss = hits + right, total + len(tests), loss + nats
    accuracy = hits / total if total else 0.0
    return {
        "accuracy": accuracy,
        "macro_f1": 2 * accuracy / (1 + accuracy) / _tested(bench) if total else 0.0,
        "loss": loss / total if total else 0.0,
        "what": f"always {bench.federation.classes[most]}",
        "per_client": each,
    }


def _tested(bench: Bench) -> int:
    """Return how many classes occur in the test shares or are predicted by the majority rule."""
    seen = {int(x) for c in bench.clients for x in bench.share(c).test.labels if x >= 0}
    return max(len(seen), 1)
