"""Flower's two apps; a module of its own, so that actors import it and can keep a model in it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import work
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file


@dataclass(frozen=True)
class Task:
    """What the two apps are told.

    Attributes:
        work: Folder of the work.
        out: Where figures go.
        reload: Whether every client loads the model anew.
        many: How many clients answer without training; 0 for the real work.
        rounds: How many rounds they are asked.
    """

    work: Path
    out: Path
    reload: bool
    many: int
    rounds: int


@cache
def kept(folder: Path) -> tuple[work.Work, Any]:
    """Return work and model, loaded once a process."""
    done = work.read(folder)
    return done, work.model_of(done)


def client(task: Task) -> ClientApp:
    """Return the app of all clients."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        received = message.content["arrays"].to_torch_state_dict()
        if task.many:
            return reply(message, received, {"num-examples": 1})
        done, model = kept.__wrapped__(task.work) if task.reload else kept(task.work)
        name = done.clients()[int(context.node_config["partition-id"])]
        work.install(model, received)
        facts = work.train(model, done, name, int(message.content["config"]["server-round"]))
        return reply(message, work.taken(model), facts)

    return app


def reply(message: Message, tensors: work.Tensors, facts: dict[str, float]) -> Message:
    """Return a client's answer."""
    records = {"arrays": ArrayRecord(tensors), "metrics": MetricRecord(facts)}
    return Message(content=RecordDict(records), reply_to=message)


class Clocked(FedAvg):
    """Flower's FedAvg with a clock around a round, and the clients' own figures kept."""

    def __init__(self, clients: int, out: Path) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_available_nodes=clients,
        )
        self.out = out
        self.rounds: list[dict[str, Any]] = []
        self.begun = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the clock."""
        if server_round == 1:  # clients are there before the clock runs
            while len(list(grid.get_node_ids())) < self.min_available_nodes:
                time.sleep(0.1)
        self.begun = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stop it."""
        got = list(replies)
        if failed := [one.error.reason for one in got if one.has_error()]:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        if len(got) != self.min_train_nodes:
            raise RuntimeError(f"{len(got)} of {self.min_train_nodes} clients answered")
        found = super().aggregate_train(server_round, got)
        row: dict[str, Any] = {"wall": time.perf_counter() - self.begun}
        facts = [one.content["metrics"] for one in got]
        if "seconds" in facts[0]:
            row |= {"train": [f["seconds"] for f in facts], "loss": [f["loss"] for f in facts]}
        self.rounds.append(row)
        work.progress(self.out)
        return found


def server(task: Task) -> ServerApp:
    """Return the server's app."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        strategy = Clocked(task.many or 4, task.out)
        found = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(load_file(task.work / work.ADAPTER)),
            num_rounds=task.rounds,
        )
        work.finish(task.out, strategy.rounds, found.arrays.to_torch_state_dict())

    return app
