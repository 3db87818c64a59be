"""What a federation is measured against: no training, training alone, training on all data.

`base` is the majority class for `classify` and the untrained model for `causal`, and where training
starts from an adapter, that adapter; `local` trains
every client alone; `central` trains on everybody's examples in one place; `local_equal` trains
every client alone for as many FLOPs as the costliest mode takes. Steps, seed and evaluation are
those of the modes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from triskel.core import events
from triskel.core.result_file import RunResult
from triskel.core.result_parts import BaselineRow, ClientFigures, Figures, RoundRow
from triskel.data.batches import task_of
from triskel.errors import JobError
from triskel.experiment import records
from triskel.experiment.folder import safe
from triskel.experiment.resources import LocalResources
from triskel.experiment.rounds import Engine, pooled
from triskel.experiment.stages import alone, central, complete, everywhere, last_of
from triskel.numerics.metrics import PerText, perplexity_of
from triskel.training.loop import StepId
from triskel.training.worker import WHOLE
from triskel.types import ClientId, Watch

BaselineName = Literal["base", "local", "central", "local_equal"]
BASELINES: tuple[BaselineName, ...] = ("base", "local", "central", "local_equal")
MORE = 1.1
"""A mode whose clients compute this many times what they compute alone gets a row of its own."""


def baseline(
    name: BaselineName,
    resources: LocalResources,
    engine: Engine,
    folder: Path,
    watch: Watch,
    until: int | None = None,
) -> BaselineRow:
    """Return how a baseline that needs no other result stands in a result.

    It stops after the round `until`, where that is not the job's last.

    Raises:
        JobError: There is no such baseline.
    """
    if name == "base":
        return _base(resources, folder, watch)
    if name == "central":
        stage = replace(central(resources), until=until)
        found = complete(stage, resources, engine, folder, watch)
        figures: BaselineRow = {**found["final"], "per_client": dict(last_of(found))}
        return {**figures, **found}
    if name != "local":
        raise JobError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}")
    return _alone(resources, engine, folder, watch, kind="local", rounds={}, until=until)


def equal_compute(
    result: RunResult, resources: LocalResources, engine: Engine, folder: Path, watch: Watch
) -> BaselineRow | str:
    """Return each client alone for as many rounds as the FLOPs of the costliest mode allow.

    A client gets the least number of rounds in which it computes at least what it did in that
    mode; what kept hidden states save it in later rounds is counted. Where there is nothing to
    play, the reason is returned.

    Args:
        result: The run's result, with `local` and the modes.
        resources: The job, loaded.
        engine: Plays the rounds.
        folder: The run folder.
        watch: Told what happens.
    """
    local = result["baselines"].get("local")
    if local is None or not result["modes"]:
        return "it stands beside the baseline local and a mode, and one of them was not run"
    spent = {m: int(one["totals"]["client_flops"]) for m, one in result["modes"].items()}
    mode = max(sorted(spent), key=lambda m: spent[m])
    own = {c: one.get("flops", 0) for c, one in local["per_client"].items()}
    share = spent[mode] / max(sum(own.values()), 1)
    if share < MORE:
        return f"no mode computes {MORE} times what clients compute alone"
    each = flops_of(result["modes"][mode]["rounds"])
    rounds = {c: _rounds(resources, c, each.get(c, share * own[c])) for c in own}
    row = _alone(resources, engine, folder, watch, kind="local_equal", rounds=rounds)
    return {"mode": mode, "rounds_each": rounds, **row}


def _rounds(resources: LocalResources, client: ClientId, flops: float) -> int:
    """Return in how many rounds a client alone computes so much, counted batch by batch."""
    stage, number, spent = alone(resources, client), 0, 0
    while spent < flops:
        number += 1
        worker = stage.worker(client, lambda _: None)
        worker.meter.returning = number > 1
        for batch in worker.batches(StepId(client, number), worker.training.epochs):
            worker.meter.ran(batch, WHOLE)
        spent += worker.meter.flops
    return number


def flops_of(rows: Sequence[RoundRow]) -> dict[ClientId, int]:
    """Return what each client computed in all rounds; nothing where a round tells sums only."""
    found = Counter[ClientId]()
    for row in rows:
        for client, one in row.get("clients", {}).items():
            found[client] += one["flops"]
    return dict(found)


def _alone(  # noqa: PLR0913 - what a baseline is made of
    resources: LocalResources,
    engine: Engine,
    folder: Path,
    watch: Watch,
    *,
    kind: str,
    rounds: Mapping[ClientId, int],
    until: int | None = None,
) -> BaselineRow:
    """Train every client alone, and return the row of all."""
    watch(events.stage_start(kind, until or resources.job.rounds))
    each: dict[ClientId, ClientFigures] = {}
    seconds = 0.0
    for client in resources.active():
        stage = replace(alone(resources, client, kind=kind, rounds=rounds.get(client)), until=until)
        found = complete(stage, resources, engine, folder, watch)
        everybody = cast("Figures", found["final"].get("everybody"))
        each[client] = {
            **last_of(found)[client],
            "everybody": everybody,
            "global_accuracy": everybody["accuracy"],
            "flops": found["totals"]["client_flops"],
        }
        if "kept" in found:
            each[client]["kept"] = found["kept"]
        seconds += found["totals"]["seconds"]
    _record(resources, folder, kind)
    row: BaselineRow = {**local_row(each, resources.body().classes), "seconds": seconds}
    watch(events.stage_end(kind, {"accuracy": row["accuracy"]}))
    return row


def _record(resources: LocalResources, folder: Path, kind: str) -> None:
    """Write what clients alone reach on each text: their own, and the mean over models on all."""
    tests, own = resources.tokens.tests(resources.body()), dict[ClientId, PerText]()
    models: list[records.ByClient] = []
    for client in resources.active():
        kept = records.read(folder, safe(f"{kind}:{client}"))
        if kept is None:
            return
        own |= kept.by_client("own")
        models.append(kept.by_client("everybody"))
    whole = {c: records.mean([m[c] for m in models]) for c in tests if all(c in m for m in models)}
    records.write(folder, kind, records.gathered(tests, {"everybody": whole, "own": own}))


def local_row(each: dict[ClientId, ClientFigures], classes: int) -> BaselineRow:
    """Return clients that trained alone as one row, weighted by their test examples.

    Every client's own model counts on its own share; on everybody's texts it is the mean over
    clients of their models.
    """
    alone_ = cast("Mapping[ClientId, Mapping[str, Any]]", each).values()
    tested = [one for one in alone_ if one["examples"]]
    count = sum(one["examples"] for one in tested)
    own: dict[str, Any] = {
        name: sum(one[name] * one["examples"] for one in tested) / count if count else None
        for name in ("accuracy", "loss")
    }
    everybody: dict[str, Any] = {
        name: _mean([one["everybody"][name] for one in alone_])
        for name in ("accuracy", "macro_f1", "loss")
        if all(name in one["everybody"] for one in alone_)
    }
    for figures in (own, everybody) if not classes else ():
        figures["token_accuracy"] = figures["accuracy"]
        figures["perplexity"] = perplexity_of(figures["loss"])
    own["n"] = count
    if all("n" in one["everybody"] for one in alone_):
        everybody["n"] = max((one["everybody"]["n"] for one in alone_), default=0)
    row = {
        **own,
        "global_accuracy": everybody["accuracy"],
        "client_flops": sum(one["flops"] for one in alone_ if "flops" in one),
        "own": own,
        "everybody": everybody,
        "per_client": each,
    }
    return cast("BaselineRow", row)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean over models; None where one was scored on nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _base(resources: LocalResources, folder: Path, watch: Watch) -> BaselineRow:
    """Score no training at all: the majority class, or the model as it came."""
    watch(events.stage_start("base", 0))
    resources.models.begin("base")
    body, start = resources.body(), resources.started("base")
    train = {client: resources.tokens.share(client).train for client in resources.clients}
    tests = {client: resources.tokens.share(client).test for client in resources.clients}
    known = task_of(resources.job.data.task).untrained(train, tests, resources.federation.classes)
    if start is not None:
        scores, what = everywhere(resources, body, body.initial), "as it started"
    elif known is not None:
        found, what = known
        scores = pooled(found, body.classes)
    else:
        scores, what = everywhere(resources, body, body.initial), "zero-shot"
    texts = scores.own_texts
    records.write(
        folder,
        "base",
        records.gathered(resources.tokens.tests(body), {"everybody": texts, "own": texts}),
    )
    figures = scores.pooled.row()
    watch(events.stage_end("base", {"accuracy": figures["accuracy"]}))
    row: BaselineRow = {
        **figures,
        "everybody": figures,
        "own": figures,
        "what": what,
        "per_client": dict(scores.each),
    }
    return row if start is None else {**row, "start": start}
