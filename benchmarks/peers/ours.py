"""Peer: Triskel, `params`, through the calls its examples use.

    python ours.py MODEL_FOLDER OUT                  # the work
    python ours.py MODEL_FOLDER OUT --many CLIENTS   # clients that train nothing

As shipped: messages packed and unpacked, bytes and FLOPs metered, a checkpoint after every round.
Only scoring is left out, since no peer scores while it is timed. Texts are read, dealt and
tokenised anew, where the peers read token ids: that costs us, and is counted. A client's training
seconds are those of our ledger, which hold its reading and checking of messages too; so "overhead"
flatters us by about a millisecond a client. The wall clock of a round does not.
"""

import argparse
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as the command line does
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triskel.cli.quick_import import loading
from triskel.config.job import Job
from triskel.config.read import parse

with loading():  # as the command line does
    from triskel.engines.local import LocalEngine
    from triskel.experiment.resources import LocalResources, prepare
    from triskel.experiment.rounds import Scores, play, pooled
    from triskel.experiment.stages import stage_of
    from triskel.export.adapters import save_adapter
    from triskel.modes.params.mode import Params
    from triskel.training.worker import Worker
    from triskel.types import ClientState, Message, Talk
    from triskel.wire.adapters import adapter_of, adapter_sections

Losses = dict[tuple[int, str], list[float]]
"""By round and client."""

JOB = """
mode = "params"
rounds = 2
seed = 0
[model]
attention = "eager"
[adapter]
rank = 8
alpha = 16.0
targets = ["q_proj", "v_proj"]
[data]
source = "opinions"
[clients]
examples = 160         # ten full batches
test_examples = 250
[train]
epochs = 1
batch = 16
lr = 1e-3
max_tokens = 48
[logits]
public = 0
"""


def job_of(model: str, settings: Sequence[str] = ()) -> Job:
    """Return the job all peers do, on a model."""
    return parse(JOB, overrides=[f"model.path={json.dumps(model)}", *settings])


def quiet(_: object) -> None:
    """Tell nobody."""


def unscored(state: object, mine: object) -> Scores:
    """Score nothing."""
    del state, mine
    return pooled({}, 3)


class Idle:
    """`params` whose clients send back what they were sent."""

    def __init__(self, mode: Params) -> None:
        self.mode = mode

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mode, name)

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Answer at once."""
        layout = worker.body.layout
        tensors = adapter_of(task, worker.body.initial, layout, kind="task")
        facts = {"round": task.facts["round"], "examples": 1}
        return Message(
            kind="update", sections=adapter_sections(tensors, layout), facts=facts
        ), client_state
        yield  # a Talk that asks nothing


def played(resources: LocalResources, out: Path, *, idle: bool) -> tuple[Any, Any, Losses]:
    """Play the job; return its stage, its outcome, and the loss of every step."""
    stage = replace(stage_of("params", resources, quiet), evaluate=unscored)
    if idle:
        stage = replace(stage, mode=Idle(stage.mode))

    losses: Losses = defaultdict(list)

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            losses[event["round"], event["client"]].append(event["loss"])
        elif event["event"] == "round_end":
            (out / "progress").touch()

    with TemporaryDirectory() as folder:
        outcome = play(stage, LocalEngine(resources.job), folder=Path(folder), watch=watch)
    return stage, outcome, losses


def trained(row: Mapping[str, Any]) -> list[float]:
    """Return the seconds of each client's own work, or of all where there are many."""
    if "clients" in row:
        return [one["compute_s"] for one in row["clients"].values()]
    return [row["sum"]["compute_s"]]


def main() -> None:
    """Run, and write rounds and adapter."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("out", type=Path)
    options.add_argument("--many", type=int)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    settings = [f"rounds={chosen.rounds}"]
    if chosen.many:
        settings += ['clients.partition="iid"', f"clients.count={chosen.many}"]
        settings += ["clients.examples=1", "clients.test_examples=1"]
    resources = prepare(job_of(chosen.model, settings), quiet)
    stage, outcome, losses = played(resources, chosen.out, idle=bool(chosen.many))
    rounds: list[dict[str, Any]] = []
    for row in outcome.rows:
        mine = [] if chosen.many else [losses[row["round"], c] for c in row["clients"]]
        rounds.append(
            {
                "wall": row["seconds"],
                "train": trained(row),
                "loss": [sum(one) / len(one) for one in mine],
                "steps": sum(len(one) for one in mine),
            }
        )
    adapter = stage.mode.server_model(outcome.state)
    save_adapter(chosen.out, resources.body(), adapter, resources.federation.classes)
    (chosen.out / "rounds.json").write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
