"""From a name to a stage: a mode on the clients it runs on, how it is scored, what it leaves.

A stage is played by `round.play` and written to the run folder as soon as it ends. Baselines are
the same machinery: `params` with one client only.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from triskel.bench import Bench, Share
from triskel.checkpoint import write_text
from triskel.evaluate import evaluate
from triskel.export import save_adapter
from triskel.folder import safe, stamped
from triskel.job import ModeName
from triskel.model.body import Body
from triskel.modes.logits import Logits
from triskel.modes.params import Params
from triskel.modes.split import Split
from triskel.round import Engine, Outcome, Scores, Stage, play, pooled, summary
from triskel.types import ClientId, ClientState, Examples, Mode, Tensors, Watch
from triskel.worker import Worker

Maker = Callable[[Bench, Watch], Mode[Any, Any, Worker]]


def _params(bench: Bench, _watch: Watch) -> Params:
    body = bench.body()
    return Params(job=bench.job, initial=body.initial, layout=body.layout)


def _logits(bench: Bench, watch: Watch) -> Logits:
    return Logits(server=bench.server(stamped(watch, "logits")))


def _split(bench: Bench, _watch: Watch) -> Split:
    return Split(job=bench.job, body=bench.body())


MAKERS: Mapping[ModeName, Maker] = {"params": _params, "logits": _logits, "split": _split}


def stage_of(name: ModeName, bench: Bench, watch: Watch) -> Stage[Any, Any]:
    """Return a mode on all clients that hold training examples."""
    mode = MAKERS[name](bench, watch)

    def scores(state: Any, mine: Mapping[ClientId, ClientState]) -> Scores:  # noqa: ANN401 - any mode's
        return _scores(bench, mode, state, mine)

    return Stage(name=name, mode=mode, clients=bench.active, worker=bench.worker, evaluate=scores)


def alone(
    bench: Bench, name: str, client: ClientId, share: Share, tests: Mapping[ClientId, Examples]
) -> Stage[Any, Any]:
    """Return `params` with one client only: a baseline.

    Args:
        bench: The job, loaded.
        name: The stage's name.
        client: Who trains: a client, or a name that is no client's for everybody together.
        share: What it trains on.
        tests: On what it is scored.
    """
    body = bench.body(client)
    plain = bench.job.params.model_copy(update={"server_lr": 1.0, "server_momentum": 0.0})
    job = bench.job.model_copy(update={"params": plain})
    mode = Params(job=job, initial=body.initial, layout=body.layout)

    def worker(who: ClientId, told: Watch) -> Worker:
        return bench.hand(who, body, share, told)

    def scores(state: Any, mine: Mapping[ClientId, ClientState]) -> Scores:  # noqa: ANN401 - any mode's
        del mine  # the one client keeps nothing
        each = {c: evaluate(body, mode.served(state), t) for c, t in tests.items()}
        return pooled(each, body.classes)

    return Stage(name=name, mode=mode, clients=[client], worker=worker, evaluate=scores)


def complete(
    stage: Stage[Any, Any], bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    """Play a stage unless it is done, save what it leaves, and return how it stands in a result."""
    here = folder / "stages" / safe(stage.name)
    done = here / "done.json"
    if done.exists():
        return cast("dict[str, Any]", json.loads(done.read_text(encoding="utf-8")))
    watch({"event": "stage_start", "stage": stage.name, "rounds": bench.job.rounds})
    outcome = play(stage, engine, bench.job, folder=here, watch=watch)
    for name, body, tensors in _left(stage, outcome, bench):
        save_adapter(folder / "adapters" / name, body, tensors, bench.federation.classes)
    found = summary(outcome)
    write_text(done, json.dumps(found))
    seconds = found["totals"]["seconds"]
    watch({"event": "stage_end", "stage": stage.name, **found["final"], "seconds": seconds})
    return found


def everywhere(bench: Bench, body: Body, tensors: Tensors) -> Scores:
    """Score one model on every client's own test share."""
    each = {c: evaluate(body, tensors, bench.share(c).test) for c in bench.clients}
    return pooled(each, body.classes)


def _scores(
    bench: Bench,
    mode: Mode[Any, Any, Worker],
    state: Any,  # noqa: ANN401 - any mode's
    mine: Mapping[ClientId, ClientState],
) -> Scores:
    """Score the server's model on all shares, and clients' own models on their own."""
    served = mode.served(state)
    together = None if served is None else everywhere(bench, bench.body(), served)
    found = {c: mode.own(mine.get(c, ClientState())) for c in bench.clients}
    own = {c: tensors for c, tensors in found.items() if tensors is not None}
    if together is not None and not own:
        return together
    each = {
        c: evaluate(bench.body(c), own.get(c, bench.body(c).initial), bench.share(c).test)
        for c in bench.clients
    }
    alone_ = pooled(each, bench.body().classes)
    return alone_ if together is None else Scores(pooled=together.pooled, each=each)


def _left(
    stage: Stage[Any, Any], outcome: Outcome[Any], bench: Bench
) -> list[tuple[str, Body, Tensors]]:
    """Return the models a stage leaves: the server's, and clients' own."""
    name, served = safe(stage.name), stage.mode.served(outcome.state)
    body = bench.body(stage.clients[0]) if len(stage.clients) == 1 else bench.body()
    found = [] if served is None else [(name, body, served)]
    for client, mine in sorted(outcome.clients.items()):
        own = stage.mode.own(mine)
        if own is not None:
            found.append((f"{name}-{safe(client)}", bench.body(client), own))
    return found
