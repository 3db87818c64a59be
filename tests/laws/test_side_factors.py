"""What an aggregate makes beside the factors that train is sent, run, saved, scored and exported.

`helpers/exact_sum` keeps the mean of products to the last digit, in a package beside Triskel.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.aggregate.server_optimizer import Momentum
from triskel.config.job import Job
from triskel.data.batches import batch_of
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, MessageError, RoundError
from triskel.experiment.compare import Request, resume, run
from triskel.experiment.reevaluate import assess
from triskel.experiment.resources import prepare
from triskel.export.adapters import export_run, read_adapter
from triskel.model.adapters import scale_of
from triskel.model.side_factors import parted, side_rank
from triskel.modes.params.mode import Params, ParamsState
from triskel.modes.split.mode import Split, SplitState
from triskel.training.conversation import alone
from triskel.training.loop import StepId
from triskel.types import ClientState, Section, Tensors

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
tiny = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "tiny.py")))
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
sites = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "sites.py")))
ExactSum = runpy.run_path(str(TESTS / "helpers" / "exact_sum" / "exact_sum" / "sums.py"))[
    "ExactSum"
]
MODES = ("params", "split")


# --- one round, in float64 --------------------------------------------------------------------


def party(name: str, count: int, seed: int, mode: str = "params", **sections: Any) -> Any:
    job = tiny.job(mode, **sections)
    body = tiny.body("llama", job, dtype=torch.float64, wide=True)
    return tiny.worker(name, job, body, tiny.examples(count, seed=seed))


def products(tensors: Tensors, ending: str = "weight") -> dict[str, Tensor]:
    """B A by module."""
    end = f".lora_A.{ending}"
    return {
        (stem := name.removesuffix(end)): tensors[f"{stem}.lora_B.{ending}"] @ down
        for name, down in tensors.items()
        if name.endswith(end)
    }


def whole(tensors: Tensors) -> dict[str, Tensor]:
    """B A + B' A' by module."""
    beside = products(tensors, "side")
    return {stem: p + beside.get(stem, 0) for stem, p in products(tensors).items()}


def plain_with(worker: Any, tensors: Tensors) -> Any:
    """The plain model with the side factors in its base, and the other tensors as its adapter."""
    trained, side = parted(tensors)
    plain = tiny.Plain("llama", worker.job, dtype=torch.float64, wide=True)
    for stem, product in products(side, "side").items():
        layer = plain.base.get_submodule(stem).base_layer
        layer.weight.data += scale_of(worker.job.adapter) * product
    return plain.load(trained)


def by_hand(worker: Any, tensors: Tensors, round_: int) -> dict[str, Tensor]:
    """What a plain loop makes of a client's batches of a round."""
    batches = worker.batches(StepId(worker.client, round_), worker.training.epochs)
    found: dict[str, Tensor] = plain_with(worker, tensors).train(batches, 0.01).now()
    return found


def mode_for(worker: Any, aggregate: Any) -> Any:
    if worker.job.mode == "split":
        return Split(setting=tiny.setting("split", worker), aggregate=aggregate)
    body = worker.body
    return Params(initial=body.initial, layout=body.layout, aggregate=aggregate)


def test_every_round_of_params_ends_with_the_mean_of_products() -> None:
    """Also of those trained beside the side factors of the round before, which stay in the sum."""
    ann, bob = party("ann", 8, 0), party("bob", 5, 9)
    mode = mode_for(ann, ExactSum())
    state: Any = mode.start()
    for round_ in (1, 2, 3):
        start, old = state.adapter, products(state.adapter, "side")
        theirs = [(len(w.train), products(by_hand(w, start, round_))) for w in (ann, bob)]
        state, _ = tiny.play(mode, ann.job, [ann, bob], state=state)
        found, made = whole(mode.server_model(state)), side_rank(state.adapter)
        for stem, product in found.items():
            mean = sum(count * p[stem] for count, p in theirs) / 13
            wanted = mean + old.get(stem, 0)
            assert float((product - wanted).norm() / wanted.norm()) < 1e-9, (round_, stem)
        assert made == min(16, 2 * round_), "two clients leave (K - 1) r = 2 more a round"
        factors = products(parted(state.adapter)[0])
        gap = max(float((found[n] - p).norm() / found[n].norm()) for n, p in factors.items())
        assert gap > 1e-3, "two factors alone are not it"


def test_one_client_leaves_nothing_beside_and_is_plain_training_bit_for_bit() -> None:
    ann = party("ann", 8, 0)
    exact, mean = mode_for(ann, ExactSum()), mode_for(ann, Mean())
    found, _ = tiny.play(exact, ann.job, [ann], rounds=2)
    wanted, _ = tiny.play(mean, ann.job, [ann], rounds=2)
    assert tiny.equal(found.adapter, wanted.adapter)
    assert side_rank(found.adapter) == 0


@pytest.mark.parametrize("labels", ["private", "shared"])
@pytest.mark.parametrize("cut", [[1, 3], [0, 2], [2, 4]])
def test_split_runs_them_on_both_sides_of_the_cut(cut: list[int], labels: str) -> None:
    """One client and one batch: a step of the joined model whose base has them."""
    ann = party("ann", 3, 0, "split", split={"cut": cut, "labels": labels})
    side = {}
    for name, t in tiny.random_like(ann.body.initial, 3).items():
        if ".lora_" in name:
            side[name.replace(".weight", ".side")] = t
    start = {**tiny.random_like(ann.body.initial, 2), **side}
    state, _ = tiny.play(mode_for(ann, Mean()), ann.job, [ann], state=SplitState(tensors=start))
    wanted = by_hand(ann, start, 1)
    assert tiny.apart(parted(state.tensors)[0], wanted) < 1e-9
    without = by_hand(ann, parted(start)[0], 1)
    assert tiny.apart(without, wanted) > 1e-5, "they do something"
    assert tiny.apart(parted(state.tensors)[1], side) < 1e-15, "the mean leaves them as they are"
    task = mode_for(ann, Mean()).task(state, "ann")
    sent = {
        what: task.sections[what].tensors for what in {"side", "adapter"} & task.sections.keys()
    }
    blocks = [{n.split(".")[2] for n in tensors} for tensors in sent.values()]
    mine = {"0", "1", "2", "3"} - {
        str(b) for b in range(cut[0], 4 if labels == "shared" else cut[1])
    }
    assert blocks == ([mine, mine] if mine else []), "what is at the server stays there"


def test_what_is_averaged_in_split_is_the_mean_of_products() -> None:
    ann = party("ann", 8, 0, "split", split={"cut": [1, 3]})
    bob = party("bob", 5, 9, "split", split={"cut": [1, 3]})
    mode, updates = mode_for(ann, ExactSum()), dict[str, dict[str, Tensor]]()
    original, state = Split.add, mode.start()

    def kept(self: Any, state: Any, total: Any, client: str, update: Any) -> Any:
        sections = update.sections.values()
        updates[client] = {n: t for s in sections for n, t in s.tensors.items()}
        return original(self, state, total, client, update)

    for _ in range(2):
        old = products(state.tensors, "side")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Split, "add", kept)
            state, _ = tiny.play(mode, ann.job, [ann, bob], state=state)
        found, theirs = whole(mode.server_model(state)), products(updates["bob"])
        for stem, one in products(updates["ann"]).items():
            mean = (8 * one + 5 * theirs[stem]) / 13 + old.get(stem, 0)
            assert float((found[stem] - mean).norm() / mean.norm()) < 1e-9
    blocks = {n.split(".")[2] for n in parted(state.tensors)[1]}
    assert blocks == {"0", "3"}, "of the trunk there is one copy"


# --- who sends what does not fit --------------------------------------------------------------


def with_side(worker: Any) -> tuple[Any, ParamsState]:
    side = {
        n.replace(".weight", ".side"): t
        for n, t in tiny.random_like(worker.body.initial, 3).items()
        if ".lora_" in n
    }
    return mode_for(worker, Mean()), ParamsState(adapter={**worker.body.initial, **side})


def test_a_client_refuses_side_factors_that_do_not_fit_it() -> None:
    ann = party("ann", 3, 0)
    mode, state = with_side(ann)
    task = mode.task(state, "ann")
    alone(mode.work(task, ann, ClientState()))
    side = task.sections["side"]
    first = next(iter(side.tensors))
    spoilt = {
        "another scale": replace(side, facts={"scale": 1.0}),
        "another kind": replace(side, kind="dense"),
        "half of a pair": replace(
            side, tensors={n: t for n, t in side.tensors.items() if n != first}
        ),
        "another model's": replace(
            side, tensors={n.replace("q_proj", "x_proj"): t for n, t in side.tensors.items()}
        ),
    }
    for what, section in spoilt.items():
        lying = replace(task, sections={**task.sections, "side": section})
        for talk in (mode.work, mode.probe):
            with pytest.raises(MessageError, match="section 'side'"):
                alone(talk(lying, ann, ClientState()))
            assert what


def test_a_client_may_not_send_side_factors() -> None:
    ann = party("ann", 3, 0)
    mode, state = with_side(ann)
    update, _ = alone(mode.work(mode.task(state, "ann"), ann, ClientState()))
    assert set(update.sections) == {"adapter", "head"}
    more = mode.task(state, "ann").sections["side"]
    lying = replace(update, sections={**update.sections, "side": more})
    with pytest.raises(MessageError, match="has section 'side', which nobody asked for"):
        mode.add(state, mode.zero(state), "ann", lying)


class Spoilt(Mean):
    """A mean whose value is made into something else."""

    def __init__(self, spoil: Any) -> None:
        self.spoil = spoil

    def value(self, total: Any, before: Mapping[str, Section]) -> dict[str, Section]:
        found: dict[str, Section] = self.spoil(super().value(total, before))
        return found


def pairs(found: Mapping[str, Section], rank: int) -> Section:
    """A section of side factors of this rank beside all of an adapter's."""
    side = {
        n.replace(".weight", ".side"): torch.zeros(
            (rank, t.shape[1]) if "lora_A" in n else (len(t), rank), dtype=t.dtype
        )
        for n, t in found["adapter"].tensors.items()
    }
    return Section(kind="lowrank", tensors=side, facts=found["adapter"].facts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda found: {"adapter": found["adapter"]}, "message lacks section 'head'"),
        (lambda found: {**found, "more": found["head"]}, "section 'more', which nobody asked for"),
        (
            lambda found: {**found, "side": replace(pairs(found, 2), facts={"scale": 9.0})},
            r"section 'side' is lowrank with \{'scale': 9.0\}",
        ),
        (lambda found: {**found, "side": pairs(found, 17)}, "has rank 17, expected 1 to"),
        (
            lambda found: {**found, "adapter": replace(found["adapter"], facts={"scale": 9.0})},
            "section 'adapter' is lowrank with",
        ),
    ],
)
def test_an_aggregate_whose_value_does_not_fit_is_refused(mode: str, spoil: Any, why: str) -> None:
    ann = party("ann", 3, 0, mode)
    with pytest.raises(RoundError, match=f"the aggregate's value does not fit.*{why}"):
        tiny.play(mode_for(ann, Spoilt(spoil)), ann.job, [ann])


@pytest.mark.parametrize("step", [{"lr": 0.5}, {"momentum": 0.9}])
def test_a_step_that_ends_elsewhere_has_no_use_for_the_rest_of_a_sum(step: Any) -> None:
    ann, bob = party("ann", 8, 0), party("bob", 5, 9)
    body = ann.body
    mode = Params(
        initial=body.initial, layout=body.layout, aggregate=ExactSum(), optimizer=Momentum(**step)
    )
    with pytest.raises(
        RoundError, match=r"params\.server_lr must be 1 and params\.server_momentum 0"
    ):
        tiny.play(mode, ann.job, [ann, bob])


def test_a_section_without_factors_is_none() -> None:
    ann = party("ann", 3, 0)

    def empty(found: Any) -> Any:
        facts = found["adapter"].facts
        return {**found, "side": Section(kind="lowrank", tensors={}, facts=facts)}

    state, _ = tiny.play(mode_for(ann, Spoilt(empty)), ann.job, [ann])
    assert side_rank(state.adapter) == 0


# --- a whole run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' package as pip installs it."""
    source = TESTS / "helpers" / "exact_sum"
    found: Path = plugins.install(source, tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the package beside Triskel."""
    with plugins.beside(package, "exact_sum"):
        yield


def job(folder: Path, **sections: Any) -> Job:
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 60)
    exact = {mode: {"aggregate": "exact_sum"} for mode in MODES}
    found = small.job(model, rows, **{"rounds": 3, **exact, **sections})
    plain = found.model.model_copy(update={"compute": "reference"})
    return Job.model_validate(found.model_copy(update={"model": plain}).model_dump())


def adapter(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / "adapters" / name / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both modes; the package is there again only for who asks for it."""
    folder = tmp_path_factory.mktemp("side")
    with plugins.beside(package, "exact_sum"):
        one = job(folder)
        run(one, Request(modes=MODES, baselines=()), folder / "run", LocalEngine(one), small.watch)
    return folder / "run"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_ends_with_the_same_bits(mode: str, finished: Path, tmp_path: Path) -> None:
    one = job(finished.parent)

    def stop(event: Any) -> None:
        if event["event"] == "round_end" and event["round"] == 2:
            raise KeyboardInterrupt

    request = Request(modes=(mode,), baselines=())
    with pytest.raises(KeyboardInterrupt):
        run(one, request, tmp_path / "cut", LocalEngine(one), stop)
    resume(tmp_path / "cut", LocalEngine, small.watch)
    found, again = adapter(finished, mode), adapter(tmp_path / "cut", mode)
    assert tiny.equal(again, found)
    ranks = {t.shape[0] for n, t in found.items() if ".lora_A." in n}
    assert ranks == {max(ranks)}
    assert max(ranks) > 2, "factors and side factors, stacked"


@pytest.mark.parametrize("mode", MODES)
def test_figures_evaluated_again_without_the_package_are_the_same_bits(
    mode: str, finished: Path
) -> None:
    result = json.loads((finished / "result.json").read_text())
    found = assess(finished, mode=mode, watch=small.watch)
    assert found["per_client"] == result["modes"][mode]["rounds"][-1]["per_client"]
    assert found["loss"] == result["modes"][mode]["final"]["loss"]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_exported_computes_what_the_run_evaluated(
    mode: str, merge: Any, finished: Path, tmp_path: Path
) -> None:
    export_run(finished, tmp_path / "out", mode=mode, merge=merge, say=lambda _: None)
    kind = transformers.AutoModelForSequenceClassification
    if merge:
        model: Any = kind.from_pretrained(tmp_path / "out")
    else:
        base = kind.from_pretrained(finished.parent / "model", num_labels=3, pad_token_id=1)
        model = peft.PeftModel.from_pretrained(base, str(tmp_path / "out"))
    resources = prepare(job(finished.parent, params={}, split={}), small.watch)
    body = resources.body()
    tensors = read_adapter(finished / "adapters" / mode, body)
    texts = resources.tokens.tests(body)["client-01"]
    batch = batch_of(texts, range(len(texts)), pool=body.blocks.pool)
    with torch.no_grad():
        ours = body.logits(body.parameters(tensors), batch)
        pad = model.config.pad_token_id
        theirs = model.eval()(**tiny.called_with(batch, pad)).logits
        plain = body.logits(body.parameters(parted(tensors)[0]), batch)
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float((ours - plain).abs().max()) > 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"beside frozen factors of rank {side_rank(tensors)}" in card


@pytest.mark.parametrize("mode", MODES)
def test_the_ledger_has_what_they_weigh_and_cost(mode: str, finished: Path) -> None:
    """They go down from the second round on, and never up."""
    rounds = json.loads((finished / "result.json").read_text())["modes"][mode]["rounds"]
    for client in rounds[0]["clients"]:
        first, *later = (row["clients"][client] for row in rounds)
        for row in later:
            assert row["up"]["payload_bytes"] == first["up"]["payload_bytes"]
            assert row["down"]["payload_bytes"] > first["down"]["payload_bytes"]
            assert row["flops"] > first["flops"]
            assert row["peak_client_bytes"] > first["peak_client_bytes"]


@pytest.mark.usefixtures("installed")
def test_sites_end_as_one_process_and_need_not_have_it(tmp_path: Path) -> None:
    compared = SimpleNamespace(**runpy.run_path(str(TESTS / "engines" / "flare" / "test_sites.py")))
    more = {f"{mode}.aggregate": '"exact_sum"' for mode in MODES}
    there = compared.house(tmp_path, **more)
    place = there.root / "server" / "local" / "policy.toml"
    place.write_text(place.read_text() + '\n[plugins.exact_sum]\npackage = "exact-sum"\n')
    assert sites.Meeting(there, there.spec(*MODES)).play()["done"]
    compared.same(there, MODES, compared.result(there))
    ranks = {t.shape[0] for n, t in adapter(there.root / "out", "params").items() if "lora_A" in n}
    assert min(ranks) > 2


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["dora", "ia3", "loha"])
def test_an_adapter_without_factors_of_its_own_is_refused_at_once(
    kind: str, tmp_path: Path
) -> None:
    said = rf"params\.aggregate 'exact_sum' works with .*\(lora, rslora\), not with {kind}"
    with pytest.raises((JobError, ValueError), match=said):
        job(tmp_path, adapter={"kind": kind}, split={})
