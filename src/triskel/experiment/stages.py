"""From a name to a stage: a mode on the clients it runs on, how it is scored, what it leaves.

A stage is played by `rounds.play` and written to the run folder as soon as it ends. Baselines are
the same machinery: `params` with one client only.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

from triskel.aggregate.mean import Mean
from triskel.config.job import ModeName
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.registry import MODES
from triskel.core.result_file import DONE, ended_with, stage_in
from triskel.core.result_parts import ClientFigures, StageRow
from triskel.experiment import records
from triskel.experiment.folder import safe
from triskel.experiment.resources import LocalResources, Resources
from triskel.experiment.rounds import EACH, Engine, Outcome, Scores, Stage, play, pooled, summary
from triskel.export.adapters import save_adapter
from triskel.export.manifest import BASELINES, NOTHING, Training, training_of
from triskel.model.shared import SharedModel
from triskel.modes.params.mode import Params, ParamsState
from triskel.numerics.metrics import Score, merge
from triskel.report.descriptions import about_of
from triskel.training.evaluate import evaluate, evaluate_each
from triskel.training.mode_setting import allowed, mode_of
from triskel.training.worker import Worker
from triskel.types import ClientId, ClientState, Tensors, Watch

EVERYONE = "everyone"
"""The one client of the `central` baseline."""


def stage_of(name: ModeName, resources: LocalResources, watch: Watch) -> Stage[Any, Any]:
    """Return a mode on all clients that hold training examples."""
    setting = resources.setting(name, events.stamped(watch, stage=name))
    mode, party = mode_of(setting), partial(resources.party, name)
    together = MODES.spec(name).carries(resources.job).one_body

    aside = resources.validating()

    def scores(
        on: LocalResources,
        state: Any,  # noqa: ANN401 - any mode's
        client_states: Mapping[ClientId, ClientState],
    ) -> Scores:
        served = mode.server_model(state)
        alike = served if together else None  # who never took part has the common model
        return scored(on, served, own_in(client_states), party, alike)

    def everybody(state: Any, client_states: Mapping[ClientId, ClientState]) -> Scores | None:  # noqa: ANN401 - any mode's
        if mode.server_model(state) is not None:
            return None
        return own_everywhere(resources, own_in(client_states), party)

    def own_in(
        client_states: Mapping[ClientId, ClientState],
    ) -> Callable[[ClientId], Tensors | None]:
        return lambda client: mode.client_model(client_states.get(client, ClientState()))

    def worker(client: ClientId, told: Watch) -> Worker:
        return resources.worker(client, told, party(client))

    return Stage(
        name=name,
        mode=mode,
        clients=resources.active(),
        worker=worker,
        party=party,
        evaluate=partial(scores, resources),
        body=resources.body(),
        job=resources.job,
        everybody=everybody,
        tests=lambda: resources.tokens.tests(resources.body()),
        kept=partial(allowed, resources.job, name),
        server=setting.meter,
        validate=partial(scores, aside) if aside else None,
        sizes=resources.sizes,
    )


def alone(
    resources: LocalResources, client: ClientId, *, kind: str = "local", rounds: int | None = None
) -> Stage[Any, Any]:
    """Return `params` with one client of the federation only, scored on its own test share.

    Args:
        resources: The job, loaded.
        client: Who trains.
        kind: What the stage is called before the client's name.
        rounds: How many rounds it trains, where these are not the job's.
    """
    resources.models.begin(kind)
    body, share = resources.body(client), resources.tokens.share(client)
    job = resources.job.model_copy(update={"rounds": rounds or resources.job.rounds})
    mode, aside = _plain(body), resources.validating()

    def worker(who: ClientId, told: Watch) -> Worker:
        return resources.worker_with(who, body, share, told, job.rounds)

    def scores(
        on: LocalResources, state: ParamsState, client_states: Mapping[ClientId, ClientState]
    ) -> Scores:
        del client_states  # the one client keeps nothing
        texts = on.tokens.share(client).test
        return pooled({client: evaluate(body, state.adapter, texts)}, body.classes)

    def everybody(state: ParamsState, client_states: Mapping[ClientId, ClientState]) -> Scores:
        del client_states
        return everywhere(resources, body, state.adapter)

    return Stage(
        name=f"{kind}:{client}",
        mode=mode,
        clients=[client],
        worker=worker,
        evaluate=partial(scores, resources),
        body=body,
        job=job,
        everybody=everybody,
        tests=lambda: resources.tokens.tests(resources.body()),
        saves=kind == "local",
        validate=partial(scores, aside) if aside else None,
    )


def central(resources: LocalResources) -> Stage[Any, Any]:
    """Return `params` with one client that holds everybody's examples, scored on every share."""
    resources.models.begin("central")
    body, share = resources.body(), resources.tokens.pooled()
    mode, aside = _plain(body), resources.validating()

    def worker(who: ClientId, told: Watch) -> Worker:
        return resources.worker_with(who, body, share, told)

    def scores(
        on: LocalResources, state: ParamsState, client_states: Mapping[ClientId, ClientState]
    ) -> Scores:
        del client_states  # the one client keeps nothing
        return everywhere(on, body, state.adapter)

    return Stage(
        name="central",
        mode=mode,
        clients=[EVERYONE],
        worker=worker,
        evaluate=partial(scores, resources),
        body=body,
        job=resources.job,
        tests=lambda: resources.tokens.tests(resources.body()),
        validate=partial(scores, aside) if aside else None,
    )


def _plain(body: SharedModel) -> Params[Any]:
    """Return `params` with a server that takes over what its one client trained."""
    return Params(initial=body.initial, layout=body.layout, aggregate=Mean())


def complete(
    stage: Stage[Any, Any], resources: Resources, engine: Engine, folder: Path, watch: Watch
) -> StageRow:
    """Play a stage unless it is done, save what it leaves, and return how it stands in a result."""
    here = folder / "stages" / safe(stage.name)
    left = stage_in(here)
    if left is not None and len(left["rounds"]) == stage.last:
        return left
    if left is not None and len(left["rounds"]) > stage.last:
        rmtree(here)  # a client alone, whose equal FLOPs are fewer by now
    watch(events.stage_start(stage.name, stage.last))
    outcome = play(stage, engine, folder=here, watch=watch)
    found = summary(outcome)
    if (start := resources.started(stage.name)) is not None:
        found["start"] = start
    _record(stage, outcome, found, folder)
    stage.closing(outcome.state, outcome.clients)
    for name, body, tensors, owner in _left(stage, outcome, resources) if stage.saves else ():
        place = folder / "adapters" / name
        training = _training(stage, resources, found, owner)
        task, classes = resources.job.data.task, resources.federation.classes
        save_adapter(place, body, tensors, classes, training, task=task)
    write_text(here / DONE, json.dumps(found))
    watch(events.stage_end(stage.name, found["final"], found["totals"]["seconds"]))
    return found


def _record(
    stage: Stage[Any, Any],
    outcome: Outcome[Any],
    found: StageRow,
    folder: Path,
) -> None:
    """Write down what the stage's last state reaches in both columns, and on each text."""
    state, mine = outcome.state, outcome.clients
    scores = outcome.scores or stage.evaluate(state, mine)
    everybody = stage.everybody(state, mine) or scores
    found["final"]["everybody"] = everybody.pooled.row()
    if everybody.everybody_texts or scores.own_texts:  # a client alone may have no text of its own
        columns = {"everybody": everybody.everybody_texts, "own": scores.own_texts}
        tests = stage.tests()
        records.write(folder, safe(stage.name), records.gathered(tests, columns))


def everywhere(resources: LocalResources, body: SharedModel, tensors: Tensors) -> Scores:
    """Score one model on every client's own test share."""
    return pooled(evaluate_each(body, tensors, resources.tokens.groups(body)), body.classes)


def scored(
    resources: LocalResources,
    served: Tensors | None,
    own_of: Callable[[ClientId], Tensors | None],
    party: Callable[[ClientId], SharedModel],
    alike: Tensors | None = None,
) -> Scores:
    """Score the server's model on all shares, and clients' own models on their own.

    Args:
        resources: The job, loaded.
        served: The server's model, where it has one.
        own_of: Returns a client's own model, or None where it has none (yet).
        party: Returns the model that a client runs.
        alike: What a client without a model of its own uses; None is what its model starts from.
    """
    together = None if served is None else everywhere(resources, resources.body(), served)
    if together is not None and all(own_of(client) is None for client in resources.clients):
        return together
    own = pooled(_own_scores(resources, own_of, party, alike), resources.body().classes)
    if together is None:
        return replace(own, everybody_texts={})
    return replace(own, pooled=together.pooled, everybody_texts=together.everybody_texts)


def _own_scores(
    resources: LocalResources,
    own_of: Callable[[ClientId], Tensors | None],
    party: Callable[[ClientId], SharedModel],
    alike: Tensors | None,
) -> Iterator[tuple[ClientId, Score]]:
    """Score clients' own models, of which one is in memory at a time."""
    for client in resources.clients:
        own, body = own_of(client), party(client)
        if own is None:
            own = body.initial if alike is None else alike
        yield client, evaluate(body, own, resources.tokens.share(client).test)


def own_everywhere(
    resources: LocalResources,
    own_of: Callable[[ClientId], Tensors | None],
    party: Callable[[ClientId], SharedModel],
) -> Scores | None:
    """Score every client's own model on everybody's texts, and return the mean over the models."""
    if len(resources.active()) > EACH:
        return None
    found: list[Scores] = []
    for client in resources.active():
        own = own_of(client)
        if own is not None:
            found.append(everywhere(resources, party(client), own))
    return averaged(found) if found else None


def averaged(models: Sequence[Scores]) -> Scores:
    """Return the mean over models of what each reaches on everybody's texts."""
    clients = models[0].everybody_texts
    alike = all(
        one.everybody_texts[c].scored.equal(texts.scored)
        for one in models
        for c, texts in clients.items()
    )
    texts = {c: records.mean([one.everybody_texts[c] for one in models]) for c in clients}
    pooled_ = reduce(merge, (one.pooled for one in models))
    return replace(models[0], pooled=pooled_, everybody_texts=texts if alike else {})


def _left(
    stage: Stage[Any, Any], outcome: Outcome[Any], resources: Resources
) -> Iterator[tuple[str, SharedModel, Tensors, ClientId | None]]:
    """Return the models a stage leaves, one at a time, and whose own each is."""
    name, served = safe(stage.name), stage.mode.server_model(outcome.state)
    if served is not None:
        yield name, stage.body, served, None
    for client in outcome.clients:
        own = stage.mode.client_model(outcome.clients[client])
        if own is not None:
            yield f"{name}-{safe(client)}", (stage.party or resources.body)(client), own, client


def last_of(found: StageRow) -> Mapping[ClientId, ClientFigures]:
    """Return what each client reached in the round that a stage ends with."""
    return ended_with(found).get("per_client", {})


def _training(
    stage: Stage[Any, Any], resources: Resources, found: StageRow, owner: ClientId | None
) -> Training:
    """Return what the model card says of how an adapter came about.

    A client's own model has its figures on that client's own texts.
    """
    kind = stage.name.partition(":")[0]
    totals = found["totals"]
    scores = found["final"] if owner is None else last_of(found)[owner]
    alone_ = kind in BASELINES
    return training_of(
        resources.job,
        kind,
        clients=len(resources.active()) if kind != "local" else 1,
        scores=cast("Mapping[str, float | Mapping[str, float]]", scores),
        own=owner is not None or kind == "local",
        rounds=len(found["rounds"]),
        judge=resources.judge,
        traffic=None
        if alone_
        else (totals["up"]["message_bytes"], totals["down"]["message_bytes"]),
        about=NOTHING if alone_ else about_of(resources.job, kind),
        data=resources.described(),
        row=found,
    )
