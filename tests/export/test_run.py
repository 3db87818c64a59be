"""What a run trained, taken out of it: the right adapter, its figures, and a whole model."""

import json
import re
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from triskel.config.read import load
from triskel.data.batches import batch_of
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError
from triskel.experiment.compare import Request, run
from triskel.experiment.resources import prepare
from triskel.export import adapters
from triskel.export.adapters import export_run, read_adapter
from triskel.export.manifest import read_manifest
from triskel.model import peft_folder
from triskel.model.load import quiet

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
CLIENTS = ("client-01", "client-02", "client-03")


def ignore(event: Mapping[str, Any]) -> None:
    """Watch nothing."""


def silent(text: str) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    model = small.save_model(folder / "model", "llama")
    job = small.job(model, small.save_rows(folder / "rows.csv", 48), name="clinics", mode="split")
    run(job, Request(baselines=("local", "central")), folder / "run", LocalEngine(job), ignore)
    return folder / "run"


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("asked", "stage"),
    [
        ({}, "split"),
        ({"mode": "params"}, "params"),
        ({"mode": "logits"}, "logits"),
        ({"mode": "central"}, "central"),
        ({"mode": "logits", "client": "client-02"}, "logits-client-02"),
        ({"mode": "local", "client": "client-03"}, "local-client-03"),
    ],
)
def test_what_was_asked_for_is_what_is_copied(
    asked: dict[str, Any], stage: str, finished: Path, tmp_path: Path
) -> None:
    found = export_run(finished, tmp_path / "out", **asked, say=silent)
    assert found == tmp_path / "out"
    for name in (peft_folder.CONFIG, peft_folder.WEIGHTS):
        assert (found / name).read_bytes() == (finished / "adapters" / stage / name).read_bytes()
    resources = prepare(load(finished / "job.toml"), ignore)
    read_adapter(found, resources.body())


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """Return a row's own figures; over how many texts they are is no figure."""
    return {k: v for k, v in row.items() if not isinstance(v, dict) and k != "n"}


def test_the_card_holds_the_figures_of_the_result(finished: Path, tmp_path: Path) -> None:
    result = result_of(finished)
    export_run(finished, tmp_path / "a", mode="params", say=silent)
    told = read_manifest(tmp_path / "a").training
    stage = result["modes"]["params"]
    assert told is not None
    columns = {"everybody": told.everybody, "own": told.own_texts}
    final = {c: _figures(v) for c, v in stage["final"].items() if c in columns}
    assert {**told.scores, **{c: v for c, v in columns.items() if v}} == {
        **_figures(stage["final"]),
        **final,
    }
    assert (told.up_bytes, told.down_bytes) == tuple(
        stage["totals"][way]["message_bytes"] for way in ("up", "down")
    )
    assert (told.job, told.mode, told.rounds, told.clients) == ("clinics", "params", 1, 3)
    assert (
        f"| accuracy | {stage['final']['accuracy']:.4g} | "
        in (tmp_path / "a" / "README.md").read_text()
    )


def test_a_clients_own_card_holds_its_own_figures_and_not_its_name(
    finished: Path, tmp_path: Path
) -> None:
    result = result_of(finished)
    row = result["modes"]["logits"]["rounds"][-1]["per_client"]["client-02"]
    export_run(finished, tmp_path / "a", mode="logits", client="client-02", say=silent)
    told = read_manifest(tmp_path / "a").training
    assert told is not None
    assert told.own
    assert told.scores["accuracy"] == row["accuracy"]
    row = result["baselines"]["local"]["per_client"]["client-01"]
    export_run(finished, tmp_path / "b", mode="local", client="client-01", say=silent)
    told = read_manifest(tmp_path / "b").training
    assert told is not None
    assert (told.scores["loss"], told.clients, told.up_bytes) == (row["loss"], 1, None)
    for name in "ab":
        for file in ("README.md", "triskel.json"):
            assert "client-0" not in (tmp_path / name / file).read_text()


def test_the_card_tells_how_far_clients_differ_where_that_is_known(
    finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    result = result_of(finished)
    each = result["modes"]["params"]["rounds"][-1]["per_client"]
    each["client-03"] |= {"accuracy": 0.0, "examples": 0}
    each["client-01"]["accuracy"], each["client-02"]["accuracy"] = 0.75, 0.625
    verdicts = {"client-01": (0.25, "gain"), "client-02": (0.125, "even"), "x": (-0.5, "lose")}
    result["summary"]["clients"]["params"] = {
        c: {"difference": far, "low": None, "high": None, "p": 0.5, "verdict": kind}
        for c, (far, kind) in verdicts.items()
    }

    def card(name: str, **asked: str) -> str:
        (copy / "result.json").write_text(json.dumps(result))
        export_run(copy, tmp_path / name, **asked, say=silent)
        return (tmp_path / name / "README.md").read_text()

    text = card("a", mode="params")
    assert "does worst on its own texts: accuracy 0.625.\n" in text
    assert (
        "beside each client trained alone: 2 of 3 clients better, 1 of them beyond chance; "
        "1 worse beyond chance.\n"
    ) in text
    assert "client-0" not in text
    read_adapter(tmp_path / "a", prepare(load(copy / "job.toml"), ignore).body())
    central = card("b", mode="central")
    lowest = min(c["accuracy"] for c in result["baselines"]["central"]["per_client"].values())
    assert f"does worst on its own texts: accuracy {lowest:.4g}.\n" in central
    assert "trained alone" not in central
    own = card("c", mode="logits", client="client-02")
    del result["summary"]
    for text in (own, card("d", mode="params")):
        assert "worst" not in text
        assert "trained alone" not in text


def test_the_card_of_a_causal_run_ranks_by_perplexity(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model", "llama")
    job = small.job(model, small.save_rows(tmp_path / "rows.csv", 48), task="causal")
    run(job, Request(baselines=("local",)), tmp_path / "run", LocalEngine(job), ignore)
    result = result_of(tmp_path / "run")
    each = result["modes"]["params"]["rounds"][-1]["per_client"].values()
    told = result["summary"]["clients"]["params"].values()
    better = sum(one["difference"] < 0 for one in told)
    export_run(tmp_path / "run", tmp_path / "a", mode="params", say=silent)
    text = (tmp_path / "a" / "README.md").read_text()
    assert f"own texts: perplexity {max(one['perplexity'] for one in each):.4g}.\n" in text
    assert f"trained alone: {better} of 3 clients better" in text


def test_a_run_without_a_result_yet_gives_what_its_stages_wrote(
    finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "result.json").unlink()
    export_run(copy, tmp_path / "a", mode="params", say=silent)
    told = read_manifest(tmp_path / "a").training
    assert told is not None
    final = result_of(finished)["modes"]["params"]["final"]
    assert told.scores == _figures(final)
    assert told.clients == 3
    shutil.rmtree(copy / "stages")
    export_run(copy, tmp_path / "b", mode="params", say=silent)
    told = read_manifest(tmp_path / "b").training
    assert told is not None
    assert told.scores == {}
    assert "None were recorded." in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize("stage", ["split", "logits-client-01"])
def test_a_merged_model_is_whole_and_answers_as_the_run_did(
    stage: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    asked = {"mode": "logits", "client": "client-01"} if "-" in stage else {}
    export_run(finished, tmp_path / "m", **asked, merge=True, say=said.append)
    assert said[0].startswith(f"merging {stage}")
    resources = prepare(load(finished / "job.toml"), ignore)
    body, texts = resources.body(), resources.tokens.share("client-01").test
    tensors = read_adapter(finished / "adapters" / stage, body)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    rows = list(range(len(texts)))
    batch = batch_of(texts, rows, pool=body.blocks.pool)
    real = torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]
    ids = batch.ids.masked_fill(~real, tokenizer.pad_token_id)
    with torch.no_grad():
        ours = body.logits(body.parameters(tensors), batch)
        theirs = model(input_ids=ids, attention_mask=real.long()).logits
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sorted(model.config.label2id) == sorted(small.LABELS)
    code = (
        (tmp_path / "m" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    )
    assert "peft" not in code
    monkeypatch.chdir(tmp_path / "m")
    with quiet():
        exec(code, {})  # noqa: S102 - what a reader would run


@pytest.mark.parametrize(
    ("dtype", "compute", "merge"),
    [
        ("float32", "fast", False),
        ("bfloat16", "reference", False),
        ("float32", "reference", True),
    ],
)
def test_the_code_on_a_card_reaches_the_accuracy_of_the_run(
    dtype: str,
    compute: str,
    merge: bool,  # noqa: FBT001 - a case
    assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert assets
    few = 2 if dtype == "bfloat16" else 8  # many a processor has no instructions for it
    options = {
        "model.dtype": dtype,
        "model.compute": compute,
        "model.cache_mb": 0,
        "adapter.blocks": "top:4",
        "clients.examples": few,
        "clients.test_examples": few,
        "logits.public": 0,
        "train.max_tokens": 4 * few,
        "rounds": 1,
    }
    job = load(None, [f"{key}={value}" for key, value in options.items()])
    request = Request(modes=("params",), baselines=())
    result = run(job, request, tmp_path / "run", LocalEngine(job), ignore)
    export_run(tmp_path / "run", tmp_path / "out", merge=merge, say=silent)
    held = prepare(job, ignore).federation
    texts = [text for one in held.clients.values() for text in one.test.text]
    labels = [label for one in held.clients.values() for label in one.test.label]
    block = re.search(
        r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL
    )
    assert block
    code, put = re.subn(r"(?m)^texts = .*$", "texts = TEXTS", block[1])
    assert put == 1
    space: dict[str, Any] = {"TEXTS": texts}
    monkeypatch.chdir(tmp_path / "out")
    with quiet():
        exec(code, space)  # noqa: S102 - what a reader would run
    names = [space["model"].config.id2label[int(one)] for one in space["logits"].argmax(-1)]
    right = sum(name == label for name, label in zip(names, labels, strict=True))
    assert right / len(texts) == result["modes"]["params"]["final"]["accuracy"]


# --- what others planted ---


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_link_in_a_run_folder_exports_nothing_of_what_it_leads_to(
    name: str,
    merge: bool,  # noqa: FBT001 - a case
    finished: Path,
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    place = copy / "adapters" / "split" / name
    place.rename(tmp_path / "key")  # the very bytes, so that nothing but the link is wrong
    place.symlink_to(tmp_path / "key")
    with pytest.raises(CheckpointError, match=r"no adapter that can be exported: .* is a link"):
        export_run(copy, tmp_path / "out", merge=merge, say=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merge", [False, True])
def test_weights_that_are_none_are_not_exported(
    merge: bool,  # noqa: FBT001 - a case
    finished: Path,
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    place = copy / "adapters" / "split" / "adapter_model.safetensors"
    place.write_bytes(b"-----BEGIN PRIVATE KEY-----" * 99)
    with pytest.raises(CheckpointError, match="holds no adapter that can be exported"):
        export_run(copy, tmp_path / "out", merge=merge, say=silent)
    assert not (tmp_path / "out").exists()


# --- what is refused --------------------------------------------------------------------------


def test_what_is_not_there_is_answered_by_what_is(finished: Path, tmp_path: Path) -> None:
    for asked, words in (
        ({"mode": "raft"}, "no adapter of mode raft; it has central, local of client client-01"),
        ({"mode": "params", "client": "client-01"}, "no adapter of mode params of client client-0"),
        ({"client": "client-09"}, "no adapter of client client-09"),
        ({"client": "client-01"}, "more than one adapter of client client-01"),
        ({"mode": "local"}, "more than one adapter of mode local"),
    ):
        with pytest.raises(JobError, match=words):
            export_run(finished, tmp_path / "out", **asked, say=silent)
    with pytest.raises(CheckpointError, match=r"is not a run folder: .*needs a job.toml"):
        export_run(tmp_path, tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_the_only_adapter_there_is_needs_no_name(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    for folder in (copy / "adapters").iterdir():
        if folder.name != "local-client-02":
            shutil.rmtree(folder)
    (copy / "adapters" / ".local-client-01.making-7").mkdir()
    export_run(copy, tmp_path / "out", say=silent)
    told = read_manifest(tmp_path / "out").training
    assert told is not None
    assert told.mode == "local"
    shutil.rmtree(copy / "adapters")
    with pytest.raises(JobError, match="has no adapter; it has none yet"):
        export_run(copy, tmp_path / "other", say=silent)


def test_a_target_that_holds_something_is_left_alone(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("x")
    (tmp_path / "b").write_text("x")
    for name in "ab":
        with pytest.raises(JobError, match="is not an empty folder"):
            export_run(finished, tmp_path / name, say=silent)
    assert (tmp_path / "a" / "mine").read_text() == "x"


def test_an_empty_target_is_filled_even_where_one_stands_in_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_run(finished, Path(), say=silent)
    assert Path("README.md").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("merge", [False, True])
def test_a_full_disk_is_said_and_leaves_nothing(
    merge: bool,  # noqa: FBT001 - a case
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters, "copied", full)
    monkeypatch.setattr(transformers.LlamaForSequenceClassification, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_run(finished, tmp_path / "out", merge=merge, say=silent)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_not_taken_for_none(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read"):
        export_run(copy, tmp_path / "out", say=silent)
