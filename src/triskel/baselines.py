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
from triskel.metrics import LARGEST_LOG
from triskel.round import Engine
from triskel.stages import alone, central, complete, everywhere
from triskel.types import ClientId, Watch

BaselineName = Literal["base", "local", "central"]
BASELINES: tuple[BaselineName, ...] = ("base", "local", "central")


def baseline(
    name: BaselineName, bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    """Return how a baseline stands in a result."""
    if name == "base":
        return _base(bench, watch)
    if name == "central":
        found = complete(central(bench), bench, engine, folder, watch)
        return {**found["final"], "per_client": found["rounds"][-1]["per_client"], **found}
    watch({"event": "stage_start", "stage": "local", "rounds": bench.job.rounds})
    each: dict[str, Any] = {}
    seconds = 0.0
    for client in bench.active:
        found = complete(alone(bench, client), bench, engine, folder, watch)
        own = found["rounds"][-1]["per_client"][client]
        each[client] = {**own, "global_accuracy": found["final"]["global_accuracy"]}
        seconds += found["totals"]["seconds"]
    row = {**local_row(each, bench.body().classes), "seconds": seconds}
    watch({"event": "stage_end", "stage": "local", "accuracy": row["accuracy"]})
    return row


def local_row(each: Mapping[ClientId, Mapping[str, Any]], classes: int) -> dict[str, Any]:
    """Return clients that trained alone as one row, weighted by their test examples.

    Every client's own model counts on its own share; `global_accuracy` is the mean over clients of
    their models' accuracy on everybody's.
    """
    count = sum(one["examples"] for one in each.values())
    row: dict[str, Any] = {
        name: sum(one[name] * one["examples"] for one in each.values()) / count if count else 0.0
        for name in ("accuracy", "loss")
    }
    row["global_accuracy"] = sum(e["global_accuracy"] for e in each.values()) / max(len(each), 1)
    if not classes:
        row["token_accuracy"] = row["accuracy"]
        row["perplexity"] = math.exp(min(row["loss"], LARGEST_LOG))
    return {**row, "per_client": each}


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
            "per_client": scores.each,
        }
    watch({"event": "stage_end", "stage": "base", "accuracy": row["accuracy"]})
    return row


def _majority(bench: Bench) -> dict[str, Any]:
    """Predict the most frequent training label; its loss is that of label shares, add-one."""
    classes = len(bench.federation.classes)
    labels = [x for c in bench.clients for x in bench.share(c).train.labels if x >= 0]
    seen = Counter(labels)
    most = max(range(classes), key=lambda c: (seen[c], -c))
    share = [(seen[c] + 1) / (len(labels) + classes) for c in range(classes)]
    each: dict[str, dict[str, float]] = {}
    hits = total = 0
    loss = 0.0
    for client in bench.clients:
        tests = [x for x in bench.share(client).test.labels if x >= 0]
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
    seen = {x for c in bench.clients for x in bench.share(c).test.labels if x >= 0}
    return max(len(seen), 1)
