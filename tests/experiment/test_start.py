"""`adapter.start`: training goes on from an adapter, of a run or made by PEFT alone."""

# ruff: noqa: ANN401 - results are JSON, models are transformers'

import json
import runpy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from triskel.config.job import Job
from triskel.config.sections import VIRTUAL
from triskel.data.batches import batch_of
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError
from triskel.experiment.check import early
from triskel.experiment.compare import HERE, Request, resume, run
from triskel.experiment.reevaluate import assess
from triskel.experiment.resources import prepare
from triskel.experiment.stages import stage_of
from triskel.experiment.starts import begun, starting
from triskel.export.adapters import read_adapter, save_adapter
from triskel.export.manifest import read_manifest
from triskel.model.load import quiet
from triskel.model.side_factors import blank
from triskel.report.tables import markdown
from triskel.training.evaluate import evaluate

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
MODES = ("params", "logits", "split")
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("start")
    small.save_model(folder / "model")
    small.save_rows(folder / "rows.csv", 33)
    return folder


def job(room: Path, start: Path | str = "", **more: Any) -> Job:
    given: dict[str, Any] = {
        "adapter": {"start": str(start)},
        "train": {"lr": 0.02},
        "clients": {},
    }
    for name, section in more.items():
        given[name] = {**given.get(name, {}), **section} if isinstance(section, dict) else section
    found: Job = small.job(room / "model", room / "rows.csv", **given)
    return found


def played(one: Job, folder: Path, *modes: str, baselines: tuple[Any, ...] = ()) -> dict[str, Any]:
    request = Request(modes=modes, baselines=baselines)
    run(one, request, folder, LocalEngine(one), small.watch)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def before(room: Path) -> dict[str, Any]:
    return played(job(room, rounds=2), room / "before", *MODES, baselines=("central",))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# --- what training starts from ----------------------------------------------------------------


def test_what_starts_from_a_run_is_the_model_that_the_run_ended_with(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    one = job(room, room / "before")
    found = played(one, tmp_path / "after", *MODES, baselines=("base", "central"))
    base, ended = found["baselines"]["base"], before["modes"]["params"]["final"]
    assert base["what"] == "as it started"
    assert {k: base[k] for k in ("accuracy", "loss", "everybody")} == {
        k: ended[k] for k in ("accuracy", "loss", "everybody")
    }
    starts = begun(tmp_path / "after")
    resources = prepare(one, small.watch, modes=MODES, starts=starts)
    for mode in MODES:  # nothing is trained yet
        stage = stage_of(mode, resources, small.watch)
        first = stage.mode.server_model(stage.mode.start())
        saved = tensors(room / "before" / "adapters" / mode)
        names = {f"base_model.model.{name}": value for name, value in first.items()}
        assert names.keys() == saved.keys()
        assert all(torch.equal(names[name], saved[name]) for name in saved)
        assert stage.evaluate(stage.mode.start(), {}).pooled.row()["loss"] == pytest.approx(
            before["modes"][mode]["final"]["everybody"]["loss"], abs=1e-6
        )
    told = found["modes"]["split"]["start"]
    assert told["name"] == "before/split"
    assert told["sha256"] == digest(room / "before" / "adapters" / "split")
    assert found["baselines"]["central"]["start"]["name"] == "before/params"


def digest(folder: Path) -> str:
    import hashlib  # noqa: PLC0415 - for this one line

    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_client_of_logits_learns_on_from_what_it_was_given(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    one = job(room, room / "before", train={"lr": 1e-12}, clients={"cohort": 0.3})
    found = played(one, tmp_path / "run", "logits")
    start = tensors(room / "before" / "adapters" / "logits")
    places = sorted((tmp_path / "run" / "adapters").iterdir())
    assert len(places) == 2  # the student, and the one client that took part
    for place in places:
        after = tensors(place)
        assert all(torch.allclose(after[name], start[name], atol=1e-9) for name in start)
    shutil.rmtree(tmp_path / "run" / "stages")
    again = assess(tmp_path / "run", mode="logits", watch=small.watch)
    for column in ("everybody", "own"):  # who never took part is where it started
        assert again[column] == found["modes"]["logits"]["final"][column]


def test_each_row_starts_from_what_is_its_own(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    one = job(room, room / "before", train={"lr": 1e-12})
    played(one, tmp_path, "params", "split", baselines=("central", "local"))
    for place in (tmp_path / "adapters").iterdir():
        whose = "split" if place.name == "split" else "params"
        ends, start = tensors(place), tensors(room / "before" / "adapters" / whose)
        assert all(torch.allclose(ends[name], start[name], atol=1e-9) for name in start), place.name


def by_peft(room: Path, folder: Path, task: str) -> Any:
    """Make an adapter with nothing but PEFT, with numbers in all its tensors."""
    torch.manual_seed(11)
    with quiet():
        if task == "classify":
            kind, name, more = transformers.AutoModelForSequenceClassification, "SEQ_CLS", ["score"]
            base: Any = kind.from_pretrained(room / "model", num_labels=3)
        else:
            name, more = "CAUSAL_LM", None
            base = transformers.AutoModelForCausalLM.from_pretrained(room / "model")
    options = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type=name, modules_to_save=more
    )
    model: Any = peft.get_peft_model(base, options)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return base


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_one_client_from_a_folder_of_pefts_own_is_plain_training_of_that_adapter(
    task: str, room: Path, tmp_path: Path
) -> None:
    by_peft(room, tmp_path / "adapter", task)
    one = job(
        room, tmp_path / "adapter",
        clients={"count": 1}, train={"batch": 64, "epochs": 3, "lr": 0.01}, logits={"public": 0},
        task=task,
    )  # fmt: skip
    played(one, tmp_path / "run", "params")
    ours = tensors(tmp_path / "run" / "adapters" / "params")

    with quiet():
        kind: Any = transformers.AutoModelForCausalLM
        more: dict[str, Any] = {}
        if task == "classify":
            kind, more = transformers.AutoModelForSequenceClassification, {"num_labels": 3}
        base = kind.from_pretrained(room / "model", **more)
        model: Any = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    (client,) = (resources := prepare(one, small.watch)).active()
    texts = resources.tokens.share(client).train
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    step = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0)
    for _ in range(3):
        losses = []
        for place, ids in enumerate(texts.ids):
            logits = model(input_ids=ids[None].long()).logits[0]
            if task == "classify":
                losses.append(
                    cross_entropy(logits[None], torch.tensor([texts.labels[place]]))[None]
                )
            else:
                scored = texts.scored[place].nonzero()[:, 0]
                wanted = ids[scored].long()
                losses.append(cross_entropy(logits[scored - 1], wanted, reduction="none"))
        step.zero_grad()
        torch.cat(losses).mean().backward()
        step.step()
    model.save_pretrained(tmp_path / "plain")
    plain = tensors(tmp_path / "plain")
    start = tensors(tmp_path / "adapter")
    assert plain.keys() == ours.keys()
    for name, tensor in plain.items():
        assert torch.allclose(ours[name], tensor, atol=2e-5), name
    assert any(float((ours[n] - start[n]).abs().max()) > 1e-2 for n in start)


def test_a_run_with_one_common_adapter_is_for_every_stage(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    shutil.copytree(room / "before", tmp_path / "old")
    for name in ("logits", "split", "params"):
        shutil.rmtree(tmp_path / "old" / "adapters" / name)
    found = played(job(room, tmp_path / "old"), tmp_path / "new", "params", "split")
    assert {one["start"]["name"] for one in found["modes"].values()} == {"old/central"}
    assert "Started from old/central (SHA-256 " in markdown(found)
    folder = tmp_path / "old" / "adapters" / "central"
    found = played(job(room, folder), tmp_path / "newer", "params")
    assert found["modes"]["params"]["start"]["name"] == "old/central"
    assert str(tmp_path) not in json.dumps(found["modes"])


def test_a_run_goes_on_and_is_told_of_though_what_it_started_from_is_gone(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    shutil.copytree(room / "before", tmp_path / "old")
    one = job(room, tmp_path / "old", rounds=2)
    request = Request(modes=("params", "split"), baselines=())
    run(one, request, tmp_path / "whole", LocalEngine(one), small.watch)

    def kill(event: Any) -> None:
        if (event.get("event"), event.get("stage")) == ("round_start", "split"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, request, tmp_path / "cut", LocalEngine(one), kill)
    shutil.rmtree(tmp_path / "old")
    resume(tmp_path / "cut", LocalEngine, small.watch)
    for mode in request.modes:
        cut, whole = (tensors(tmp_path / n / "adapters" / mode) for n in ("cut", "whole"))
        assert all(torch.equal(cut[name], whole[name]) for name in whole)
    folder = tmp_path / "cut" / "adapters" / "params"
    training = read_manifest(folder).training
    assert training is not None
    assert training.start["name"] == "old/params"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        f"started from the adapter `old/params` (SHA-256 of its tensors {training.start['sha256']}"
        in card
    )
    copy = tmp_path / "cut" / "start" / "params" / FILES[1]
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    with pytest.raises(CheckpointError, match="is not what the run started from: its SHA-256"):
        resume(tmp_path / "cut", LocalEngine, small.watch)
    (tmp_path / "cut" / "start" / "start.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"start\.json is damaged"):
        resume(tmp_path / "cut", LocalEngine, small.watch)


def test_of_several_seeds_each_starts_from_it(room: Path, tmp_path: Path) -> None:
    from triskel.experiment.seeds import compare_seeds  # noqa: PLC0415 - for this test

    by_peft(room, tmp_path / "adapter", "classify")
    one = job(room, tmp_path / "adapter", train={"lr": 1e-12})
    request = Request(modes=("params",), baselines=())
    compare_seeds(one, request, [0, 5], tmp_path / "run", LocalEngine, small.watch)
    start = tensors(tmp_path / "adapter")
    for seed in (0, 5):
        ends = tensors(tmp_path / "run" / f"seed-{seed}" / "adapters" / "params")
        assert all(torch.allclose(ends[name], start[name], atol=1e-9) for name in start)


# --- what differs ------------------------------------------------------------------------------


def edit(folder: Path, **options: Any) -> None:
    place = folder / FILES[0]
    told = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**told, **options}), encoding="utf-8")


def rename(folder: Path, change: Callable[[str], str | None]) -> None:
    found = tensors(folder)
    kept = {new: t for name, t in found.items() if (new := change(name)) is not None}
    save_file(kept, folder / FILES[1], metadata={"format": "pt"})


EARLY: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "rank": (lambda f: edit(f, r=4), {},
        "has rank 4, and adapter.rank is 2; --set adapter.rank=4 --set adapter.alpha=4 takes it"),
    "alpha": (lambda f: edit(f, lora_alpha=8), {},
        "has alpha 8, and adapter.alpha is 4; --set adapter.rank=2 --set adapter.alpha=8 takes it"),
    "kind": (lambda f: edit(f, use_rslora=True), {},
        "is an adapter of kind rslora, and adapter.kind is lora; --set adapter.kind=rslora takes"),
    "two kinds": (lambda f: edit(f, use_rslora=True, use_dora=True), {}, "dora with the scale"),
    "no kind of ours": (lambda f: edit(f, peft_type="ADALORA"), {}, "of kind ADALORA, and"),
    "ranks by module": (lambda f: edit(f, rank_pattern={"q_proj": 4}), {},
        "has a rank_pattern, and a job has one rank"),
    "alphas by module": (lambda f: edit(f, alpha_pattern={"q_proj": 4}), {}, "has a alpha_pattern"),
    "biases": (lambda f: edit(f, bias="all"), {}, "trains biases, which no job does"),
    "biases of LoRA": (lambda f: edit(f, lora_bias=True), {}, "trains biases, which no job does"),
    "a base that changed": (lambda f: edit(f, init_lora_weights="pissa_niter_4"), {},
        "began as pissa_niter_4, which changes the base model"),
    "no head": (lambda f: rename(f, lambda n: None if "score" in n else n), {},
        'has no head over classes, and data.task is "classify"'),
    "other classes": (lambda _: None, {"data": {"classes": ["bad", "fair"]}},
        "has a head of 3 outputs, and the job has 2 classes"),
    "an old file": (lambda f: (f / FILES[1]).rename(f / "adapter_model.bin"), {},
        "adapter_model.bin can run code when it is read: load it with PEFT"),
    "damage": (lambda f: (f / FILES[1]).write_bytes(b"xx"), {}, "cannot be read"),
    "no JSON": (lambda f: (f / FILES[0]).write_text("{"), {}, "cannot be read"),
    "no adapter": (lambda f: [p.unlink() for p in f.iterdir()], {},
        "holds no adapter; a PEFT folder has adapter_config.json, and a run adapters/"),
    "a model": (lambda f: ((f / FILES[0]).unlink(), (f / "config.json").write_text("{}")), {},
        "holds no adapter; it is a whole model: name it as model.path"),
    "nothing": (shutil.rmtree, {}, "is no folder; name a PEFT folder, or that of a run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(room: Path) -> Path:
    by_peft(room, room / "plain", "classify")
    return room / "plain"


@pytest.mark.parametrize("name", EARLY)
def test_what_a_folder_says_of_itself_is_held_against_the_job_at_once(
    name: str, room: Path, plain: Path, tmp_path: Path
) -> None:
    spoil, more, said = EARLY[name]
    folder = shutil.copytree(plain, tmp_path / "adapter")
    spoil(folder)
    one = job(room, folder, **more)
    (fault,) = early(one)
    assert fault.key == "adapter.start"
    assert said in fault.text
    assert "\n" not in fault.text
    with pytest.raises(JobError) as caught:
        run(one, Request(modes=("params",)), tmp_path / "run", LocalEngine(one), small.watch)
    assert str(caught.value) == fault.text


def deeper(name: str) -> str:
    return name.replace("layers.0.", "layers.7.")


LATE: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "targets": (lambda _: None, {"adapter": {"targets": ["q_proj", "k_proj"]}},
        ("adapts self_attn.q_proj, self_attn.v_proj, and the job self_attn.k_proj, "
        "self_attn.q_proj; --set 'adapter.targets=[\"self_attn.q_proj\", \"self_attn.v_proj\"]'")),
    "blocks": (lambda _: None, {"adapter": {"blocks": "top:1"}},
        "sits in blocks 0, 1, 2, and the job's adapter in 2; --set adapter.blocks=0-2 takes it"),
    "other blocks": (lambda f: rename(f, deeper), {}, "sits in blocks 1, 2, 7, and the job's"),
    "a tensor more": (lambda f: rename(f, lambda n: n.replace("score.weight", "score.bias")), {},
        "holds 'score.bias', which this job does not train"),
    "a tensor less": (
        lambda f: rename(f, lambda n: None if "layers.1.self_attn.q_proj.lora_B" in n else n), {},
        "lacks 'model.layers.1.self_attn.q_proj.lora_B.weight', which this job trains"),
    "another width": (lambda f: save_file(
            {n: t[:, :8].contiguous() if "lora_A" in n else t for n, t in tensors(f).items()},
            f / FILES[1], metadata={"format": "pt"}), {},
        ("holds model.layers.0.self_attn.q_proj.lora_A.weight of shape [2, 8], and the job trains "
        "one of shape [2, 16]: its base is another model")),
    "more classes": (lambda f: save_file(
            {n: t.repeat(2, 1) if "score" in n else t for n, t in tensors(f).items()},
            f / FILES[1], metadata={"format": "pt"}), {},
        ("holds score.weight of shape [6, 16], and the job trains one of shape [3, 16]: its head "
        "has other classes")),
    "whole numbers": (lambda f: save_file(
            {n: t.to(torch.int8) for n, t in tensors(f).items()}, f / FILES[1]), {},
        "holds model.layers.0.self_attn.q_proj.lora_A.weight in int8, and what trains is floats"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATE)
def test_tensors_are_held_against_the_model_before_anything_is_trained(
    name: str, room: Path, plain: Path, tmp_path: Path
) -> None:
    spoil, more, said = LATE[name]
    folder = shutil.copytree(plain, tmp_path / "adapter")
    spoil(folder)
    one = job(room, folder, **more)
    with pytest.raises(JobError) as caught:
        run(one, Request(modes=("params",)), tmp_path / "run", LocalEngine(one), small.watch)
    assert str(caught.value).startswith(f"adapter.start adapter {said}")
    assert not (tmp_path / "run" / "stages").exists()


def test_classes_and_base_of_a_run_are_held_against_the_jobs(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    folder = shutil.copytree(room / "before" / "adapters" / "params", tmp_path / "a")
    place = folder / "triskel.json"
    told = json.loads(place.read_text(encoding="utf-8"))

    def refused(**changes: Any) -> str:
        place.write_text(json.dumps({**told, **changes}), encoding="utf-8")
        one = job(room, folder)
        with pytest.raises(JobError) as caught:
            run(one, Request(modes=("params",)), tmp_path / "run", LocalEngine(one), small.watch)
        shutil.rmtree(tmp_path / "run")
        return str(caught.value)

    assert refused(classes=["good", "fair", "bad"]) == (
        "adapter.start a tells the classes good, fair, bad apart, in this order, and the job bad, "
        'fair, good; with the same classes, --set \'data.classes=["good", "fair", "bad"]\' '
        "gives their order"
    )
    assert refused(fingerprint="another", base="/elsewhere/llama") == (
        "adapter.start a was trained on another base model (llama) than model.path model: their "
        "numbers differ"
    )
    edit(folder, r=5, lora_alpha=10)
    assert refused(side=3).startswith(
        "adapter.start a holds factors of rank 2 and frozen ones of rank 3 beside them, together "
        "of rank 5 and alpha 10, and the job trains rank 2 and alpha 4; --set adapter.rank=5"
    )


def test_a_head_is_not_for_a_job_that_trains_none(room: Path, plain: Path, tmp_path: Path) -> None:
    one = job(room, plain, task="causal")
    (fault,) = early(one)
    assert "brings a head of its own (base_model.model.score.weight)" in fault.text
    by_peft(room, tmp_path / "writes", "causal")
    assert early(job(room, tmp_path / "writes", task="causal")) == []


def test_of_a_run_with_several_adapters_the_modes_own_must_be_there(
    room: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    del before
    old = shutil.copytree(room / "before", tmp_path / "old")
    shutil.rmtree(old / "adapters" / "split")
    one = job(room, old)
    assert early(one, ["params", "logits"]) == []
    (fault,) = early(one, ["params", "split"])
    assert fault.text == (
        f"adapter.start {old} has no adapter of mode split, and several others: central, logits, "
        "logits-client-01, logits-client-02, logits-client-03, params; name one by its folder: "
        f"{old}/adapters/central"
    )
    for name in ("central", "logits", "params"):
        shutil.rmtree(old / "adapters" / name)
    (fault,) = early(one)
    assert "has no adapter that is everybody's; it has logits-client-01" in fault.text
    client = job(room, old / "adapters" / "logits-client-01")
    assert early(client) == []
    shutil.copytree(room / "before", tmp_path / "seeds" / "seed-0")
    shutil.copy(room / "before" / "job.toml", tmp_path / "seeds")
    (tmp_path / "seeds" / "request.json").write_text('{"seeds": [0]}', encoding="utf-8")
    (fault,) = early(job(room, tmp_path / "seeds"))
    assert "several seeds" in fault.text


def test_what_nobody_can_tell_of_a_folder_of_pefts_own_is_a_warning(
    room: Path, plain: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain, tmp_path / "adapter")
    edit(folder, base_model_name_or_path="org/Another-Llama")
    said: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if event.get("event") == "warning":
            said.append(str(event["text"]))

    one = job(room, folder)
    run(one, Request(modes=(), baselines=("base",)), tmp_path / "run", LocalEngine(one), watch)
    assert said[:2] == [
        (
            "adapter.start adapter was trained on org/Another-Llama, and model.path is model: "
            "whether their numbers are the same, nothing here says"
        ),
        (
            "adapter.start adapter does not say which class each output of its head is: they are "
            "taken in the order of the job's classes"
        ),
    ]


def test_clients_with_models_of_their_own_cannot_share_a_start(room: Path) -> None:
    with pytest.raises(ValueError, match=r"clients\.each\.client-01\.rank is its own; leave one"):
        job(room, "somewhere", clients={"each": {"client-01": {"rank": 4}}})


def test_a_folder_of_links_as_a_cache_has_them_is_read(
    room: Path, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked").mkdir()
    for name in FILES:
        (tmp_path / "linked" / name).symlink_to(plain / name)
    one = job(room, tmp_path / "linked")
    assert early(one) == []
    found = played(one, tmp_path / "run", baselines=("base",))
    assert found["baselines"]["base"]["start"]["sha256"] == digest(plain)


def test_where_a_venue_looks_for_a_start_no_path_of_the_job_is_opened(
    room: Path, plain: Path, tmp_path: Path
) -> None:
    asked: list[str] = []

    def find(name: str) -> Path:
        asked.append(name)
        return plain

    one = job(room, "its-name")
    request = Request(modes=(), baselines=("base",))
    venue = replace(HERE, find=find)
    found = run(one, request, tmp_path / "run", LocalEngine(one), small.watch, venue)
    assert asked == ["its-name"]
    assert found["baselines"]["base"]["start"]["name"] == "plain"


# --- every kind of adapter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", k) for k in ("dora", "rslora", "ia3", "loha", "lokr", "vera", "full")]
    + [
        ("gpt2", "lora"),
        ("bert", "dora"),
        ("gpt2", "vera"),
        ("gpt2", "full"),
        ("bert", "bitfit"),
        ("gpt2", "prefix"),
        ("llama", "prompt"),
        ("bert", "ptuning"),
    ],
)
def test_every_kind_of_adapter_starts_as_it_was_saved(
    family: str, kind: str, tmp_path: Path
) -> None:
    small.save_model(tmp_path / "model", family, pad="<unk>" if family == "bert" else "")
    small.save_rows(tmp_path / "rows.csv", 33)
    options = {"kind": kind, "targets": [] if kind in {"ia3", *VIRTUAL} else TARGETS[family]}
    played(job(tmp_path, adapter=options), tmp_path / "old", "params")
    one = job(tmp_path, tmp_path / "old", adapter=options)
    assert early(one) == []
    starts = starting(tmp_path, one, ["params"], Path)
    assert starts is not None
    resources = prepare(one, small.watch, modes=("params",), starts=starts)
    resources.models.begin("params")
    initial = resources.body().initial
    saved = read_adapter(tmp_path / "old" / "adapters" / "params", resources.body())
    assert list(initial) == list(resources.body().fresh)
    assert all(torch.equal(initial[name], saved[name]) for name in saved)
    resources.body().reseed(resources.body().seed)
    assert not all(torch.equal(resources.body().initial[name], saved[name]) for name in saved)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING"])
def test_virtual_tokens_of_pefts_own_start_a_prompt(
    method: str, room: Path, tmp_path: Path
) -> None:
    """Of P-tuning PEFT keeps what the network made, and not the network."""
    options: dict[str, Any] = {"encoder_hidden_size": 16} if method == "P_TUNING" else {}
    config = peft.get_peft_config({
        "peft_type": method, "num_virtual_tokens": 4, "task_type": "SEQ_CLS", **options
    })  # fmt: skip
    with quiet():
        kind = transformers.AutoModelForSequenceClassification
        model: Any = peft.get_peft_model(kind.from_pretrained(room / "model", num_labels=3), config)
    model.save_pretrained(tmp_path / "adapter")

    def asked(kind: str, tokens: int = 4) -> Job:
        return job(room, tmp_path / "adapter", adapter={
            "start": str(tmp_path / "adapter"), "kind": kind, "tokens": tokens,
        })  # fmt: skip

    (fault,) = early(asked("ptuning"))
    assert "an adapter of kind prompt, and adapter.kind is ptuning; --set adapter.ki" in fault.text
    (fault,) = early(asked("prompt", 5))
    assert "4 virtual tokens, and adapter.tokens is 5; --set adapter.tokens=4" in fault.text
    one = asked("prompt")
    assert early(one) == []
    starts = starting(tmp_path, one, ["params"], Path)
    resources = prepare(one, small.watch, modes=("params",), starts=starts)
    resources.models.begin("params")
    body, share = resources.body(), resources.tokens.share("client-01")
    batch = batch_of(share.train, [0], ahead=4)
    ours = body.logits(body.parameters(body.initial), batch)
    with torch.no_grad():
        theirs = model.eval()(input_ids=batch.ids[:, 4:]).logits
    assert torch.allclose(ours, theirs, atol=1e-6)


TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}


def test_side_factors_start_as_part_of_an_adapter_of_their_common_rank(
    room: Path, tmp_path: Path
) -> None:
    two = prepare(job(room), small.watch).body()
    generator = torch.Generator().manual_seed(3)
    beside = {
        name: torch.empty(tensor.shape).normal_(generator=generator)
        for name, tensor in blank(two.initial, 3).items()
    }
    both = {**two.initial, **beside}
    save_adapter(tmp_path / "a", two, both, small.LABELS)
    one = job(
        room, tmp_path / "a", adapter={"start": str(tmp_path / "a"), "rank": 5, "alpha": 10.0}
    )
    assert early(one) == []
    starts = starting(tmp_path / "run", one, ["params"], Path)
    resources = prepare(one, small.watch, starts=starts)
    resources.models.begin("params")
    share, five = resources.tokens.share("client-01"), resources.body()
    wanted, found = evaluate(two, both, share.train), evaluate(five, five.initial, share.train)
    assert found.loss == pytest.approx(wanted.loss, abs=1e-6)
    assert (
        abs(float(wanted.loss or 0) - float(evaluate(two, two.initial, share.train).loss or 0))
        > 1e-3
    )
