"""The main job: baselines and modes on one model, one data split, one seed and one meter.

A comparison is a list of stages, each played by `round.play` and written to the run folder as soon
as it ends, so that a killed comparison goes on where it was. A run folder holds

    job.toml  request.json  events.jsonl  result.json  report.html
    adapters/<stage>/       PEFT folders
    stages/<stage>/         checkpoints, and done.json once the stage is over

Baselines are the same machinery: `central` is `params` with one client that holds everybody's
examples, `local:<client>` is `params` with one client of the federation; equal steps, seed and
evaluation. `base` is the majority class for `classify` and the untrained model for `causal`.
"""

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import peft
import torch
import transformers

from triskel import __version__
from triskel.bench import Bench, Share, prepare
from triskel.checkpoint import write_text
from triskel.data.federate import describe
from triskel.errors import CheckpointError, JobError, TriskelError
from triskel.evaluate import evaluate
from triskel.export import save_adapter
from triskel.job import MODE_NAMES, Job, ModeName, dump, parse, to_toml, unsupported
from triskel.model.body import Body
from triskel.modes.logits import OWN, Logits, LogitsState
from triskel.modes.params import Params, ParamsState
from triskel.modes.split import Split, SplitState
from triskel.report.page import write_report
from triskel.round import Engine, Outcome, Scores, Stage, play, pooled, summary
from triskel.types import ClientId, ClientState, Event, Tensors, Watch
from triskel.worker import Worker

BaselineName = Literal["base", "local", "central"]
BASELINES: tuple[BaselineName, ...] = ("base", "local", "central")
EVERYONE = "everyone"
QUIET = {"step", "message"}
"""Events too frequent for the log file."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a run folder.

    Attributes:
        modes: Modes to run, in order.
        baselines: Baselines to run, in order.
        strict: Whether a mode that cannot run the job is an error rather than skipped.
    """

    modes: tuple[ModeName, ...] = MODE_NAMES
    baselines: tuple[BaselineName, ...] = BASELINES
    strict: bool = False


def run(job: Job, request: Request, folder: Path, engine: Engine, watch: Watch) -> dict[str, Any]:
    """Play a job in a new run folder, and return its result.

    Raises:
        TriskelError: The job cannot run, or a stage failed; what was finished stays on disk.
    """
    if folder.exists() and any(folder.iterdir()):
        raise JobError(
            f"{folder} is not empty; choose another --out, or resume it with "
            f"`triskel run --resume {folder}`"
        )
    for mode in request.modes:
        if request.strict and (reason := unsupported(job, mode)):
            raise JobError(f"mode {mode} cannot run this job: {reason}")
    write_text(folder / "job.toml", to_toml(job))
    asked = {"modes": request.modes, "baselines": request.baselines, "strict": request.strict}
    write_text(folder / "request.json", json.dumps(asked, indent=1))
    return _run(job, request, folder, engine, watch)


def resume(folder: Path, engine: Callable[[Job], Engine], watch: Watch) -> dict[str, Any]:
    """Go on with a run folder from its last checkpoint, and return its result.

    Raises:
        CheckpointError: It is not a run folder.
        TriskelError: A stage failed.
    """
    job, request = read_run(folder)
    return _run(job, request, folder, engine(job), watch)


def read_run(folder: Path) -> tuple[Job, Request]:
    """Return the job of a run folder and what was asked of it.

    Raises:
        CheckpointError: It is not a run folder.
    """
    try:
        text = (folder / "job.toml").read_text(encoding="utf-8")
        asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        request = Request(
            modes=tuple(asked["modes"]),
            baselines=tuple(asked["baselines"]),
            strict=bool(asked["strict"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not a run folder: {error}; it needs job.toml and request.json"
        ) from error
    return parse(text, where=str(folder / "job.toml")), request


def _run(job: Job, request: Request, folder: Path, engine: Engine, watch: Watch) -> dict[str, Any]:
    start = time.perf_counter()
    with Log(folder / "events.jsonl", watch) as told:
        bench = prepare(job, told)
        skipped = _skipped(bench, request)
        if request.strict and skipped:
            mode, reason = next(iter(skipped.items()))
            raise JobError(f"mode {mode} cannot run this job: {reason}")
        result: dict[str, Any] = {
            "schema": 1,
            "triskel": __version__,
            "job": dump(job),
            "environment": environment(bench),
            "data": describe(bench.federation),
            "baselines": {},
            "skipped": skipped,
            "modes": {},
        }
        if idle := sorted(set(bench.clients) - set(bench.active)):
            told({"event": "warning", "text": _idle(idle)})
        told(_opening(bench, request, skipped))
        for mode, reason in skipped.items():
            told({"event": "warning", "text": f"{mode} is skipped: {reason}"})
        for name in request.baselines:
            result["baselines"][name] = _baseline(name, bench, engine, folder, told)
            _save(folder, result)
        for name in request.modes:
            if name not in skipped:
                result["modes"][name] = _mode(name, bench, engine, folder, told)
                _save(folder, result)
        _save(folder, result)
        write_report(folder)
        told({"event": "run_end", "seconds": time.perf_counter() - start})
    return result


def _skipped(bench: Bench, request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for mode in request.modes:
        reason = unsupported(bench.job, mode)
        if reason is None and mode == "logits":
            reason = bench.same_tokens()
        if reason is not None:
            found[mode] = reason
    return found


def _idle(clients: Sequence[ClientId]) -> str:
    names = ", ".join(clients[:12]) + (", ..." if len(clients) > 12 else "")  # noqa: PLR2004 - what fits a line
    return f"{len(clients)} clients hold no training example and never take part: {names}"


def _opening(bench: Bench, request: Request, skipped: Mapping[str, str]) -> Event:
    stages: list[str] = [*request.baselines, *(m for m in request.modes if m not in skipped)]
    return {
        "event": "run_start",
        "stages": stages,
        "clients": bench.clients,
        "rounds": bench.job.rounds,
        "work": {stage: _work(bench, stage) for stage in stages},
    }


def _work(bench: Bench, stage: str) -> int:
    """Return about how many tokens a stage trains on, for an estimate of the time left."""
    job = bench.job
    if stage == "base":
        return 0
    private = sum(bench.work(bench.active).values()) * job.train.epochs
    public = sum(len(ids) for ids in bench.public(bench.body()).ids) if stage == "logits" else 0
    both = public * job.logits.epochs * (2 if job.logits.mix < 1 else 1)
    return job.rounds * (private + len(bench.active) * both)


# --- stages -----------------------------------------------------------------------------------


def _mode(
    name: ModeName, bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    makers: Mapping[ModeName, Callable[[Bench, Watch], Stage[Any, Any]]] = {
        "params": params_stage,
        "logits": logits_stage,
        "split": split_stage,
    }
    return _stage(makers[name](bench, watch), bench, engine, folder, watch)


def params_stage(bench: Bench, watch: Watch) -> Stage[Any, Any]:
    """Return the stage of parameter exchange."""
    del watch
    body = bench.body()

    def scores(state: ParamsState, mine: Mapping[ClientId, ClientState]) -> Scores:
        del mine  # clients keep nothing
        return _everywhere(bench, body, state.adapter)

    return Stage(
        name="params",
        mode=Params(job=bench.job, initial=body.initial, layout=body.layout),
        clients=bench.active,
        worker=bench.worker,
        evaluate=scores,
    )


def split_stage(bench: Bench, watch: Watch) -> Stage[Any, Any]:
    """Return the stage of split learning."""
    del watch
    body = bench.body()

    def scores(state: SplitState, mine: Mapping[ClientId, ClientState]) -> Scores:
        del mine  # clients keep nothing
        return _everywhere(bench, body, state.tensors)

    return Stage(
        name="split",
        mode=Split(job=bench.job, body=body),
        clients=bench.active,
        worker=bench.worker,
        evaluate=scores,
    )


def logits_stage(bench: Bench, watch: Watch) -> Stage[Any, Any]:
    """Return the stage of prediction exchange."""

    def scores(state: LogitsState, mine: Mapping[ClientId, ClientState]) -> Scores:
        each = {
            c: evaluate(
                bench.body(c),
                mine.get(c, ClientState()).groups.get(OWN, bench.body(c).initial),
                bench.share(c).test,
            )
            for c in bench.clients
        }
        together = pooled(each, bench.body().classes)
        if not bench.job.logits.student:
            return together
        own = _everywhere(bench, bench.body(), state.student)
        return Scores(pooled=own.pooled, each=together.each)

    return Stage(
        name="logits",
        mode=Logits(server=bench.server(_stamped(watch, "logits"))),
        clients=bench.active,
        worker=bench.worker,
        evaluate=scores,
    )


def alone_stage(
    bench: Bench, name: str, client: ClientId, share: Share, tests: Mapping[ClientId, Any]
) -> Stage[Any, Any]:
    """Return `params` with one client only: a baseline."""
    known = client in bench.federation.clients
    body = bench.body(client) if known else bench.body()

    def worker(who: ClientId, told: Watch) -> Worker:
        return Worker(
            client=who,
            job=bench.job,
            body=body,
            train=share.train,
            test=share.test,
            public=share.test,
            meter=bench.costs(body).meter(),
            watch=told,
        )

    def scores(state: ParamsState, mine: Mapping[ClientId, ClientState]) -> Scores:
        del mine  # clients keep nothing
        return pooled({c: evaluate(body, state.adapter, t) for c, t in tests.items()}, body.classes)

    return Stage(
        name=name,
        mode=Params(job=_plain(bench.job), initial=body.initial, layout=body.layout),
        clients=[client],
        worker=worker,
        evaluate=scores,
    )


def _plain(job: Job) -> Job:
    """Return the job with a server that takes over what its one client trained."""
    plain = job.params.model_copy(update={"server_lr": 1.0, "server_momentum": 0.0})
    return job.model_copy(update={"params": plain})


def _stage(
    stage: Stage[Any, Any], bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    """Play one stage, save its adapters, and return how it stands in the result."""
    here = folder / "stages" / safe(stage.name)
    done = here / "done.json"
    if done.exists():
        return cast("dict[str, Any]", json.loads(done.read_text(encoding="utf-8")))
    watch({"event": "stage_start", "stage": stage.name, "rounds": bench.job.rounds})
    outcome = play(stage, engine, bench.job, folder=here, watch=watch)
    for label, body, tensors in _adapters(stage, outcome, bench):
        save_adapter(folder / "adapters" / label, body, tensors, bench.federation.classes)
    found = summary(outcome)
    write_text(done, json.dumps(found))
    watch(
        {
            "event": "stage_end",
            "stage": stage.name,
            **found["final"],
            "seconds": found["totals"]["seconds"],
        }
    )
    return found


def _adapters(
    stage: Stage[Any, Any], outcome: Outcome[Any], bench: Bench
) -> list[tuple[str, Body, Tensors]]:
    name, state = safe(stage.name), outcome.state
    if isinstance(state, ParamsState):
        client = stage.clients[0]
        alone = len(stage.clients) == 1 and client in bench.federation.clients
        return [(name, bench.body(client) if alone else bench.body(), state.adapter)]
    if isinstance(state, SplitState):
        return [(name, bench.body(), state.tensors)]
    found: list[tuple[str, Body, Tensors]] = []
    if bench.job.logits.student:
        found.append((name, bench.body(), state.student))
    return found + [
        (f"{name}-{safe(client)}", bench.body(client), mine.groups[OWN])
        for client, mine in sorted(outcome.clients.items())
    ]


def _everywhere(bench: Bench, body: Body, tensors: Tensors) -> Scores:
    """Score one model on every client's own test share."""
    each = {c: evaluate(body, tensors, bench.share(c).test) for c in bench.clients}
    return pooled(each, body.classes)


# --- baselines --------------------------------------------------------------------------------


def _baseline(
    name: BaselineName, bench: Bench, engine: Engine, folder: Path, watch: Watch
) -> dict[str, Any]:
    if name == "base":
        return _base(bench, watch)
    tests = {c: bench.share(c).test for c in bench.clients}
    if name == "central":
        stage = alone_stage(bench, "central", EVERYONE, bench.pooled(), tests)
        found = _stage(stage, bench, engine, folder, watch)
        return {**found["final"], "per_client": found["rounds"][-1]["per_client"], **found}
    return _local(bench, engine, folder, watch, tests)


def _local(
    bench: Bench, engine: Engine, folder: Path, watch: Watch, tests: Mapping[ClientId, Any]
) -> dict[str, Any]:
    """Train every client alone; its own test share counts, and everybody's as `global_accuracy`."""
    watch({"event": "stage_start", "stage": "local", "rounds": bench.job.rounds})
    each: dict[str, Any] = {}
    correct = count = loss = 0.0
    for client in bench.active:
        stage = alone_stage(bench, f"local:{client}", client, bench.share(client), tests)
        found = _stage(stage, bench, engine, folder, watch)
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
        scores = _everywhere(bench, body, body.initial)
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


# --- the run folder ---------------------------------------------------------------------------


class Log(AbstractContextManager["Log"]):
    """Writes events to a file, one JSON line each, and passes them on.

    A log that a kill cut in the middle of a line is mended before it goes on.
    """

    def __init__(self, place: Path, watch: Watch) -> None:
        """Open the log at its end."""
        self._watch = watch
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            whole = place.read_bytes()
            place.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self._file = place.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write an event down, unless it is one of thousands, and pass it on."""
        self._watch(event)
        if event.get("event") not in QUIET:
            line = json.dumps({"time": round(time.time(), 3), **event})
            self._file.write(f"{line}\n")
            self._file.flush()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write down what stopped the run, and close."""
        if isinstance(error, TriskelError):
            self({"event": "failed", "text": str(error)})
        elif error is not None:
            self({"event": "failed", "text": f"{type(error).__name__}"})
        self._file.close()


def safe(name: str) -> str:
    """Return a name that can be a folder."""
    return name.replace(":", "-").replace(os.sep, "_")


def _stamped(watch: Watch, stage: str) -> Watch:
    def here(event: Event) -> None:
        watch({**event, "stage": stage})

    return here


def _save(folder: Path, result: Mapping[str, Any]) -> None:
    write_text(folder / "result.json", json.dumps(result, indent=1))


def environment(bench: Bench) -> dict[str, Any]:
    """Return what a result depends on beside the job."""
    body = bench.body()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "device": str(body.device),
        "dtype": str(body.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in body.blocks.model.parameters()),
        "trainable": sum(t.numel() for t in body.initial.values()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
