"""Whole runs are what plain programs make of the same job.

`tests/restated` plays each mode with loops that anybody can check, and knows nothing of Triskel but
a job's tables, token ids, the tensors to start from, the order of batches and who takes part. Here
both play: adapters, the loss of every step, scores and payload bytes must agree, to 1e-9 in float64
and to 1e-5 in float32.
"""

import runpy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triskel.config.job import Job
from triskel.config.read import dump
from triskel.engines import channel as wire_
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import HERE, Request, run
from triskel.experiment.resources import LocalResources
from triskel.experiment.sampling import Sampling
from triskel.experiment.tokens import Share
from triskel.model.hidden_cache import HiddenCache
from triskel.model.meter import Costs
from triskel.model.shared import Choice
from triskel.modes.split import mode as split
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import ClientId, Examples

TESTS = Path(__file__).resolve().parent.parent
tiny = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "tiny.py")))
NET = SimpleNamespace(**runpy.run_path(str(TESTS / "net.py")))
PLAY = {mode: import_module(f"restated.{mode}").play for mode in ("params", "logits", "split")}

NONE = Examples(ids=(), labels=())
SIZES = {"ann": 7, "bob": 4, "cat": 2}
WITHIN = {"float64": 1e-9, "float32": 1e-5}
QV = ("q_proj", "v_proj")
ALL = (*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IA3 = ("k_proj", "v_proj", "down_proj")
FAMILY = {"gpt2": ("c_attn", "c_fc"), "bert": ("query", "value")}
SHORT, APART = (9, 8, 9), (9, 40, 90)
"""Longest texts of the clients: all in one group of a wave, or in several."""
CUTS = {"each": {"ann": {"cut": (0, 3)}, "bob": {"cut": (2, 4)}}}
CAUSAL = {"task": "causal"}
PLAIN: dict[str, Any] = {
    "rounds": 2,
    "adapter": {"targets": QV},
    "train": {"lr": 0.005, "max_tokens": 90},
    "split": {"cut": (1, 3)},
    "logits": {"top_k": 4, "mix": 0.4},
}


def case(name: str, *given: Mapping[str, Any], **options: Any) -> Any:  # noqa: ANN401 - pytest's
    """A job's tables, and how it is played."""
    tables: dict[str, Any] = {}
    for one in given:
        tables = merged(tables, one)
    return pytest.param({"name": name, "tables": tables, **options}, id=name)


def server_of(resources: LocalResources) -> Worker:
    """The server as a worker: its model and the public set, nothing private."""
    return resources.worker_with(
        "server", resources.body(), Share(train=NONE, test=NONE), tiny.ignore
    )


def merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables; the right ones count."""
    both = dict(left)
    for key, value in right.items():
        inner = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if inner else value
    return both


def adapter(**options: Any) -> dict[str, Any]:  # noqa: ANN401 - of the job
    return {"adapter": options}


def train(**options: Any) -> dict[str, Any]:  # noqa: ANN401 - of the job
    return {"train": options}


def wire(up: str, down: str) -> dict[str, Any]:
    return {"wire": {"up": up, "down": down}}


FINE = {"train": {"lr": 1e-2, "epochs": 3}, "logits": {"temperature": 1.0}}
FINER = {"train": {"lr": 2e-3, "epochs": 2}, "logits": {"temperature": 1.0}}
"""In float32: far from where a gradient is as small as rounding, which Adam makes large."""
KINDS = [
    case(kind, adapter(kind=kind, targets=IA3 if kind == "ia3" else QV))
    for kind in ("dora", "rslora", "ia3", "loha", "lokr")
]
TRAINING = [
    case("decay-clip-cosine", train(max_grad_norm=0.1, schedule="cosine", weight_decay=0.1)),
    case("epochs-linear", train(schedule="linear", epochs=2), CAUSAL, path="fast"),
    case("top-kept", adapter(blocks="top:2"), train(epochs=2), kept=True),
    case("top-kept-fast", adapter(blocks="top:1", targets=ALL), kept=True, path="fast"),
    case("recompute-fast", adapter(targets=ALL), path="fast", recompute=True),
    case("cohort", {"rounds": 3, "clients": {"cohort": 0.5}}),
    case("float32", FINE, dtype="float32"),
    case("float32-fast", CAUSAL, FINER, adapter(targets=ALL), dtype="float32", path="fast"),
    case("gpt2", CAUSAL, family="gpt2"),
    case("bert", family="bert"),
    case("bf16", wire("bf16", "fp32")),
    case("fp16", wire("fp16", "bf16"), CAUSAL),
    case("int8", wire("int8", "int8"), CAUSAL, path="fast"),
    case("int4", wire("int4", "fp16")),
]


def job_of(mode: str, tables: Mapping[str, Any], family: str) -> Job:
    given = merged(PLAIN, tables)
    if family in FAMILY:
        given["adapter"] = {**given["adapter"], "targets": FAMILY[family]}
    return tiny.job(mode, given.pop("task", "classify"), **given)


def table(examples: Examples) -> dict[str, Any]:
    """Texts as a restatement has them."""
    parts = ("ids", "labels", "scored")
    return {part: list(getattr(examples, part)) for part in parts}


def planned(worker: Worker, job: Job) -> Iterator[tuple[Any, list[list[int]]]]:
    """Which texts go together in which step of a party, by client, round and phase."""
    for round_ in range(1, job.rounds + 1):
        here = worker.client, round_
        yield (*here, "train"), worker.plan(worker.train, StepId(*here), job.train.epochs)
        taught = worker.plan(worker.public, StepId(*here, "distil"), job.logits.epochs)
        yield (*here, "distil"), taught
        again: list[list[int]] = []
        for epoch in count():
            if len(again) >= len(taught) or not len(worker.train):
                break
            again += worker.plan(worker.train, StepId(*here, f"rehearse-{epoch}"), 1)
        yield (*here, "rehearse"), again


def shares_of(task: str, longest: Sequence[int]) -> dict[ClientId, Share]:
    """Texts of three clients, unequal in number, and in length where that is asked for."""
    return {
        client: Share(
            *(
                tiny.examples(n, task, seed=10 * size + n, short=max(2, most - 7), long=most)
                for n in (size, size + 3)
            )
        )
        for (client, size), most in zip(SIZES.items(), longest, strict=True)
    }


def bench_of(job: Job, how: Mapping[str, Any], options: Mapping[str, Any]) -> LocalResources:
    """The job, loaded: a body that computes as the case says, and texts."""
    body = tiny.body(how.get("family", "llama"), job, **options)
    body.tokenizer = tiny.tokenizer([f"w{i}" for i in range(3, tiny.VOCABULARY)])
    if not how.get("fresh"):
        noise = tiny.random_like(body.initial, 3, std=0.1)
        body.initial = {n: t + noise[n] for n, t in body.initial.items()}
    path, join = how.get("path", "reference"), how.get("join", 512)
    body.use(Choice(path=path, join=join, recompute=how.get("recompute", False)))
    shares = shares_of(job.data.task, how.get("longest", SHORT))
    resources = tiny.resources(job, body, shares, tiny.examples(5, job.data.task, seed=50))
    if how.get("counted") or NET.asked_for():
        resources.models.loaded.costs[id(body)] = Costs(body, None, lambda _: None)
    else:
        resources.models.loaded.costs[id(body)].know = lambda _: None
    if how.get("kept"):
        body.prefix = HiddenCache()
    return resources


def same(mode: str, how: Mapping[str, Any], folder: Path) -> SimpleNamespace:
    """Play a job as it is run and as it is restated, and compare all that is left."""
    family, dtype = how.get("family", "llama"), how.get("dtype", "float64")
    job = job_of(mode, how["tables"], family)
    options = {"dtype": getattr(torch, dtype), "wide": dtype == "float64"}
    resources = bench_of(job, how, options)
    events: list[Any] = []
    result = run(
        job, Request(modes=(mode,), baselines=()), folder, LocalEngine(job), events.append,
        replace(HERE, prepare=lambda *_, **__: resources),
    )["modes"][mode]  # fmt: skip
    body, clients = resources.body(), list(SIZES)
    workers = [resources.worker(c, tiny.ignore) for c in clients] + [server_of(resources)]
    data = {
        "train": {c: table(resources.tokens.share(c).train) for c in clients},
        "test": {c: table(resources.tokens.share(c).test) for c in clients},
        "public": table(resources.tokens.public(body)),
    }
    wanted = PLAY[mode](
        dump(job),
        tiny.model(family, job.data.task, **options),
        dict(body.initial),
        data,
        {where: plan for w in workers for where, plan in planned(w, job)},
        {round_: Sampling(job, clients).cohort(round_) for round_ in range(1, job.rounds + 1)},
        **({"words": body.vocabulary} if mode == "logits" else {}),
    )
    agree(mode, folder, events, result, wanted, WITHIN[dtype])
    if how.get("kept"):
        assert body.prefix.size > 0
    if (place := NET.asked_for()) is not None:
        NET.note(place, f"{mode} {how['name']}", folder, result, events, SENT)
    return SimpleNamespace(resources=resources, folder=folder)


SENT: list[bytes] = []
"""Messages of a case, where they are written down."""


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    SENT.clear()
    if NET.asked_for() is not None:
        packed = wire_.pack

        def keeping(message: Any) -> bytes:  # noqa: ANN401 - a message as it travels
            SENT.append(packed(message))
            return SENT[-1]

        monkeypatch.setattr(wire_, "pack", keeping)


def agree(
    mode: str, folder: Path, events: Sequence[Any], result: Any, wanted: Any, within: float,  # noqa: ANN401 - JSON
) -> None:  # fmt: skip
    tensors, steps, sent, scores = wanted
    told: dict[Any, list[float]] = {}
    for e in events:
        if e["event"] == "step":
            told.setdefault((e["client"], e["round"], e["phase"]), []).append(e["loss"])
    assert told.keys() == steps.keys()
    for where, losses in steps.items():
        assert told[where] == pytest.approx(losses, rel=within, abs=within), f"losses of {where}"
    for who, one in tensors.items():
        found = exported(folder / "adapters" / f"{mode}{'-' * bool(who)}{who}")
        assert tiny.apart(found, one) < within, f"adapter {who!r}"
    for row, figures in zip(result["rounds"], scores, strict=True):
        rows = {**row["per_client"], "": row}
        assert rows.keys() == figures.keys()
        for who, score in figures.items():
            for name, value in score.items():
                assert rows[who][name] == pytest.approx(value, rel=within, abs=within), (
                    f"{name} of {who!r}"
                )
        for who, cost in row["clients"].items():
            payload = cost["up"]["payload_bytes"], cost["down"]["payload_bytes"]
            assert payload == sent.pop((who, row["round"])), f"payload of {who!r}"
    assert not sent


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter as PEFT's file has it; the names of DoRA's lengths end as in PEFT's models."""
    found = load_file(folder / "adapter_model.safetensors")
    names = {n: n.removeprefix("base_model.model.") for n in found}
    lengths = "lora_magnitude_vector"
    return {names[n] + ".weight" * names[n].endswith(lengths): t for n, t in found.items()}


# --- parameter exchange -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        *KINDS,
        *TRAINING,
        *(
            case(f"{kind}-counted", adapter(kind=kind, targets=ALL), CAUSAL, counted=True)
            for kind in ("dora", "loha", "lokr")
        ),
        case("plain", fresh=True),
        case("joined", adapter(targets=ALL), path="fast"),
        case("one-by-one", adapter(targets=ALL), CAUSAL, path="fast", join=0),
        case("lengths-apart", CAUSAL, path="fast", longest=APART),
        case("momentum", {"rounds": 3, "params": {"server_momentum": 0.7, "server_lr": 0.5}}),
        case("dropout", adapter(dropout=0.3, targets=ALL), train(epochs=2)),
        case("dora-dropout", adapter(kind="dora", dropout=0.3), CAUSAL, recompute=True),
    ],
)  # fmt: skip
def test_parameter_exchange_is_its_restatement(how: Mapping[str, Any], tmp_path: Path) -> None:
    same("params", how, tmp_path)


# --- prediction exchange ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        *KINDS,
        *TRAINING,
        *(
            case(f"{way}-{task}", {"task": task, "logits": {"aggregate": way}}, **more)
            for way in ("logits", "probabilities", "confidence")
            for task, more in (("classify", {}), ("causal", {"path": "fast"}))
        ),
        case("no-student", {"logits": {"student": False, "temperature": 1.0}}),
        case("no-rehearsal", {"logits": {"mix": 1.0, "epochs": 2}}, CAUSAL),
        case("dropout", adapter(dropout=0.3, targets=ALL), CAUSAL),
    ],
)  # fmt: skip
def test_prediction_exchange_is_its_restatement(how: Mapping[str, Any], tmp_path: Path) -> None:
    same("logits", how, tmp_path)


# --- split learning ---------------------------------------------------------------------------

GRID = [
    case(
        f"{path}-{groups}-{labels}-{task}-{len(targets)}",
        {"task": task, "split": {"labels": labels}},
        adapter(targets=targets),
        path=path,
        longest=APART if groups == "several" else SHORT,
        groups=groups,
    )
    for groups in ("one", "several")
    for labels in ("private", "shared")
    for path, task, targets in (
        ("reference", "classify" if groups == "one" else "causal", ALL),
        ("fast", "classify", QV),
        ("fast", "classify", ALL),
        ("fast", "causal", ALL),
    )
]
ENDS = [
    case(f"cut-{low}-{high}-{labels}-{path}", {"split": {"cut": (low, high), "labels": labels}},
         {"task": task}, path=path)
    for (low, high), task in (((0, 4), "classify"), ((0, 2), "causal"), ((2, 4), "classify"),
                              ((2, 4), "causal"))
    for labels, path in (("private", "fast"), ("shared", "reference"))
]  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        *GRID,
        *ENDS,
        *KINDS,
        *TRAINING,
        case("cuts-per-client", {"clients": CUTS}, adapter(targets=ALL), path="fast"),
        case("cuts-per-client-shared", {"clients": CUTS, "split": {"labels": "shared"}}, CAUSAL),
        case("wave-1", {"split": {"wave": 1}}, adapter(targets=ALL), path="fast"),
        case("wave-2", {"split": {"wave": 2, "labels": "shared"}}, CAUSAL),
        case("top-kept-shared", {"split": {"labels": "shared"}}, adapter(blocks="top:2"), kept=True,
             path="fast"),
        case("clip-fast", train(max_grad_norm=0.05), adapter(targets=ALL), CAUSAL, path="fast"),
        case("dropout", adapter(dropout=0.3, targets=ALL), train(epochs=2)),
        case("dropout-shared", adapter(dropout=0.3), {"split": {"labels": "shared"}}, CAUSAL),
        case("dropout-cuts", adapter(dropout=0.3), {"clients": CUTS}, recompute=True),
    ],
)  # fmt: skip
def test_split_learning_is_its_restatement(
    how: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves: list[list[int]] = []
    group = split.group

    def counting(asks: Any, cuts: Any) -> Any:  # noqa: ANN401 - as `group` has it
        found = group(asks, cuts)
        waves.append([len(clients) for clients in found])
        return found

    monkeypatch.setattr(split, "group", counting)
    same("split", how, tmp_path)
    if how.get("groups") == "several":
        assert [2, 1] in waves
    elif "groups" in how:
        assert waves
        assert all(len(groups) == 1 for groups in waves)
