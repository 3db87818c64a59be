"""Evaluating a run again gives its own figures to the last bit, and new ones on another file."""

import csv
import hashlib
import json
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triskel.config.job import MODE_NAMES, Job
from triskel.config.read import load
from triskel.data.rows import Rows
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, DataError, JobError, ModelError
from triskel.experiment import models
from triskel.experiment.compare import BASELINES, Request, run
from triskel.experiment.reevaluate import assess
from triskel.experiment.resources import prepare
from triskel.export.adapters import export_run, read_adapter
from triskel.model.load import load as load_model
from triskel.training.evaluate import evaluate

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
sites = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "sites.py")))

OWNERS = ("bank", "clinic", "shop")
COLUMNS = ("everybody", "own")
FIGURES = ("accuracy", "macro_f1", "token_accuracy", "perplexity", "loss")


def ignore(event: Mapping[str, Any]) -> None:
    """Watch nothing."""


def write_rows(place: Path, rows: int, *, owners: bool = True) -> Path:
    """Write texts whose label follows from the first word, by three owners of unequal size."""
    header = ["text", "label", "answer", *(["owner"] if owners else [])]
    with place.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(header)
        for i in range(rows):
            label = small.LABELS[i % 3]
            row = [small.text(2 + (5 * i) % 8, i), label, f"{label} {small.WORDS[i % 40]}"]
            out.writerow(row + [OWNERS[(i % 7) // 3]][: len(header) - 3])
    return place


def job_in(folder: Path, **sections: Any) -> Job:  # noqa: ANN401 - of the job
    folder.mkdir(parents=True, exist_ok=True)
    model = small.save_model(folder / "model", sections.pop("kind", "llama"))
    given: dict[str, Any] = {
        "name": "loans",
        "clients": {"partition": "natural", "by": "owner", "cohort": 0.5, "count": 3},
        **sections,
    }
    return small.job(model, write_rows(folder / "rows.csv", 63), **given)


def played(folder: Path, job: Job, **request: Any) -> Path:  # noqa: ANN401 - modes and baselines
    run(job, Request(**request), folder / "run", LocalEngine(job), ignore)
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything; with half of the clients a round, one never takes part."""
    folder = tmp_path_factory.mktemp("finished")
    return played(folder, job_in(folder), modes=MODE_NAMES, baselines=BASELINES)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in FIGURES if name in row}


def each(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return clients' figures without what they computed."""
    return {c: {k: v for k, v in row.items() if k != "flops"} for c, row in rows.items()}


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_a_mode_evaluated_again_is_the_result_to_the_last_bit(mode: str, finished: Path) -> None:
    stage = result_of(finished)["modes"][mode]
    found = assess(finished, mode=mode, watch=ignore)
    assert found["mode"] == mode
    assert figures(found) == figures(stage["final"])
    assert found["per_client"] == stage["rounds"][-1]["per_client"]
    assert found["examples"] == sum(row["examples"] for row in found["per_client"].values())
    for column in COLUMNS:
        assert found[column] == stage["final"][column]
    assert found["judge"] == "test"


def test_a_student_and_the_clients_own_models_are_told_apart(finished: Path) -> None:
    found = assess(finished, mode="logits", watch=ignore)
    each = found["per_client"].values()
    own = sum(row["accuracy"] * row["examples"] for row in each) / found["examples"]
    assert found["own"]["accuracy"] == pytest.approx(own)
    assert found["own"] != found["everybody"]


def test_a_client_that_never_took_part_is_scored_as_it_started(finished: Path) -> None:
    idle = [c for c in OWNERS if not (finished / "adapters" / f"logits-{c}").exists()]
    assert idle
    assert idle[0] in assess(finished, mode="logits", watch=ignore)["per_client"]


def test_baselines_evaluated_again_are_the_result_to_the_last_bit(finished: Path) -> None:
    baselines = result_of(finished)["baselines"]
    central = assess(finished, mode="central", watch=ignore)
    assert figures(central) == figures(baselines["central"])
    assert central["per_client"] == baselines["central"]["per_client"]
    assert [central[c] for c in COLUMNS] == [baselines["central"][c] for c in COLUMNS]
    local = assess(finished, mode="local", watch=ignore)
    assert figures(local) == figures(baselines["local"])
    assert local["global_accuracy"] == baselines["local"]["global_accuracy"]
    assert local["per_client"] == each(baselines["local"]["per_client"])


def test_the_jobs_own_mode_is_the_default(finished: Path) -> None:
    assert assess(finished, watch=ignore)["mode"] == "params"


def test_a_run_without_a_student_and_a_causal_one_are_reproduced_too(tmp_path: Path) -> None:
    alone = job_in(tmp_path / "a", mode="logits", logits={"student": False, "public": 6})
    folder = played(tmp_path / "a", alone, modes=("logits",), baselines=())
    found = assess(folder, watch=ignore)
    final = result_of(folder)["modes"]["logits"]["final"]
    assert figures(found) == figures(final)
    assert [found[c] for c in COLUMNS] == [final[c] for c in COLUMNS]
    causal = job_in(tmp_path / "b", kind="gpt2", task="causal")
    folder = played(tmp_path / "b", causal, modes=("params",), baselines=("local",))
    found = assess(folder, watch=ignore)
    assert figures(found) == figures(result_of(folder)["modes"]["params"]["final"])
    assert "perplexity" in found
    local = assess(folder, mode="local", watch=ignore)
    assert figures(local) == figures(result_of(folder)["baselines"]["local"])


# --- another file -----------------------------------------------------------------------------


def as_file(place: Path, parts: Mapping[str, Rows]) -> Path:
    with place.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "owner"])
        for owner, rows in parts.items():
            out.writerows([*row, owner] for row in zip(rows.text, rows.label, strict=True))
    return place


@pytest.mark.parametrize("mode", ["params", "split", "central"])
def test_a_file_of_the_runs_own_test_rows_gives_the_runs_own_figures(
    mode: str, finished: Path, tmp_path: Path
) -> None:
    held = prepare(load(finished / "job.toml"), ignore).federation.clients
    file = as_file(tmp_path / "more.csv", {c: h.test for c, h in held.items()})
    elsewhere = assess(finished, mode=mode, data=file, watch=ignore)
    own = assess(finished, mode=mode, watch=ignore)
    assert own.pop("judge") == "test"
    for there, here in ((elsewhere, own), *((elsewhere[c], own[c]) for c in COLUMNS)):
        assert there.pop("loss") == pytest.approx(here.pop("loss"), rel=1e-6)  # other batches
    each, mine = elsewhere.pop("per_client"), own.pop("per_client")
    assert elsewhere == own
    for client, row in mine.items():
        assert each[client].pop("loss") == pytest.approx(row.pop("loss"), rel=1e-6)
        assert each[client] == row


def test_nothing_is_kept_of_a_file_whose_texts_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, adapter={"blocks": "top:1"})
    folder = played(tmp_path, job, modes=("params",), baselines=())
    held = prepare(job, ignore).federation.clients
    file = as_file(tmp_path / "more.csv", {c: h.test for c, h in held.items()})
    wanted = assess(folder, watch=ignore)
    monkeypatch.delattr("triskel.model.hidden_cache.HiddenCache.get")
    assert {**assess(folder, data=file, watch=ignore), "judge": "test"} == wanted


def test_a_file_without_owners_is_one_part(finished: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "more.csv", 12, owners=False)
    shared = assess(finished, mode="params", data=file, watch=ignore)
    assert list(shared["per_client"]) == ["file"]
    assert shared["examples"] == 12
    own = assess(finished, mode="local", data=file, watch=ignore)
    assert {c: row["examples"] for c, row in own["per_client"].items()} == dict.fromkeys(OWNERS, 12)
    student = assess(finished, mode="logits", data=file, watch=ignore)
    assert student["examples"] == 12
    assert set(student["per_client"]) < set(OWNERS)
    assert all("own" not in found for found in (shared, own, student)), "nobody's texts"
    assert student["everybody"] == {k: student[k] for k in student["everybody"]}


def test_a_files_figures_are_those_of_plain_evaluation(finished: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "more.csv", 30)
    resources = prepare(load(finished / "job.toml", [f"data.test={file}"]), ignore)
    found = assess(finished, mode="local", data=file, watch=ignore)
    for client in OWNERS:
        body = resources.body(client)
        tensors = read_adapter(finished / "adapters" / f"local-{client}", body)
        plain = evaluate(body, tensors, resources.tokens.share(client).test)
        assert found["per_client"][client] == {**plain.row(), "examples": plain.count}


def test_a_file_of_a_causal_job_needs_no_labels(tmp_path: Path) -> None:
    job = job_in(tmp_path, task="causal", data={"label": "label"})
    folder = played(tmp_path, job, modes=("params",), baselines=())
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"text": "w1 w2", "answer": "w3"}) + "\n")
    found = assess(folder, data=file, watch=ignore)
    assert found["examples"] == 2  # the answer and its end
    assert found["perplexity"] > 1


def test_a_file_that_does_not_fit_is_refused(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "more.csv"
    file.write_text("text,label,owner\nw1 w2,awful,bank\n")
    with pytest.raises(DataError, match="label 'awful' is not a class"):
        assess(finished, data=file, watch=ignore)
    file.write_text("text,owner\nw1 w2,bank\n")
    with pytest.raises(DataError, match="no column 'label'"):
        assess(finished, data=file, watch=ignore)
    file.write_text("text,label,owner\nw1 w2,good,forge\n")
    with pytest.raises(DataError, match="rows of 'forge', which has no model of its own"):
        assess(finished, mode="local", data=file, watch=ignore)
    assert list(assess(finished, data=file, watch=ignore)["per_client"]) == ["forge"]


# --- a federation's run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401 - of sites.py
    """Three sites' run of every mode; its folder is `out`."""
    there = sites.house(tmp_path_factory.mktemp("federated"))
    assert sites.Meeting(there, there.spec(*MODE_NAMES)).play()["done"]
    return there


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_a_federations_adapter_reaches_on_its_sites_test_rows_what_they_said(
    mode: str,
    federated: Any,  # noqa: ANN401 - of sites.py
    tmp_path: Path,
) -> None:
    held = prepare(federated.local, ignore).federation.clients
    file = tmp_path / "all.csv"
    rows = [row for h in held.values() for row in zip(h.test.text, h.test.label, strict=True)]
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["text", "label"], *rows])
    found = assess(federated.root / "out", mode=mode, data=file, watch=ignore)
    final = result_of(federated.root / "out")["modes"][mode]["final"]
    assert (found["mode"], found["examples"]) == (mode, len(rows))
    assert found["accuracy"] == final["accuracy"]
    assert found["loss"] == pytest.approx(final["loss"], rel=1e-5)


def test_without_a_file_a_federations_run_says_where_its_texts_are(
    federated: Any,  # noqa: ANN401 - of sites.py
) -> None:
    with pytest.raises(DataError, match=r"are at the sites of its federation.*--data FILE"):
        assess(federated.root / "out", watch=ignore)


def test_a_federations_model_that_is_not_here_is_asked_for(
    federated: Any,  # noqa: ANN401 - of sites.py
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_, file = shutil.copytree(federated.root / "out", tmp_path / "run"), tmp_path / "more.csv"
    file.write_text("text,label\nw1 w2,good\n")
    sheet = run_ / "adapters" / "params" / "triskel.json"
    sheet.write_text(json.dumps(json.loads(sheet.read_text()) | {"base": "/srv/gone"}))
    with pytest.raises(ModelError) as refused:
        assess(run_, data=file, watch=ignore)
    assert refused.value.__notes__ == ["`--model DIR` says where tiny lies on this machine"]
    here = federated.root / "tiny"
    assert assess(run_, data=file, model=here, watch=ignore)["examples"] == 1


def test_a_clients_own_model_is_not_looked_for_in_a_federations_result(
    federated: Any,  # noqa: ANN401 - of sites.py
    tmp_path: Path,
) -> None:
    with pytest.raises(JobError, match="it has logits, params, split; in a federation, clients'"):
        export_run(federated.root / "out", tmp_path / "a", mode="logits", client="bank", say=print)
    export_run(federated.root / "out", tmp_path / "a", mode="logits", merge=True, say=print)
    assert (tmp_path / "a" / "model.safetensors").is_file()


def test_a_model_that_moved_is_named(tmp_path: Path) -> None:
    folder = played(tmp_path, job_in(tmp_path), modes=("params",), baselines=())
    wanted = assess(folder, watch=ignore)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert assess(folder, model=tmp_path / "moved", watch=ignore) == wanted


# --- what is refused --------------------------------------------------------------------------


def test_what_is_not_there_is_listed(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        assess(tmp_path, watch=ignore)
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "adapters" / "params")
    with pytest.raises(JobError, match="no adapter of mode params; it has central, local, logits"):
        assess(copy, mode="params", watch=ignore)
    with pytest.raises(JobError, match="more than one adapter"):
        assess(copy, watch=ignore)
    shutil.rmtree(copy / "adapters")
    with pytest.raises(JobError, match="it has none yet"):
        assess(copy, watch=ignore)


def test_an_adapter_of_another_job_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    job, request = copy / "job.toml", copy / "request.json"
    text = job.read_text().replace("rank = 2", "rank = 3")
    job.write_text(text)
    with pytest.raises(CheckpointError, match="is not the job this run began with"):
        assess(copy, mode="params", watch=ignore)
    asked = json.loads(request.read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    request.write_text(json.dumps({**asked, "job_sha256": digest}))
    with pytest.raises(ModelError, match="r = 2 and the job's adapter has 3"):
        assess(copy, mode="params", watch=ignore)


def test_models_of_clients_are_not_loaded_for_their_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is scored is loaded; a tokenizer that is another one is still found out."""
    other = small.save_model(tmp_path / "other", intermediate_size=16)
    each_ = {"clinic": {"model": str(other)}}
    job = job_in(tmp_path, clients={"partition": "natural", "by": "owner", "each": each_})
    folder = played(tmp_path, job, modes=("logits",), baselines=("central",))
    names = list[str]()

    def counted(source: str, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - a body
        names.append(Path(source).name)
        return load_model(source, *given, **named)

    monkeypatch.setattr(models, "load", counted)
    found = assess(folder, mode="central", watch=ignore)
    assert names == ["model"]
    wanted = result_of(folder)["baselines"]["central"]["final"]
    assert figures(found["everybody"]) == figures(wanted["everybody"])
    names.clear()
    assess(folder, mode="logits", watch=ignore)
    assert sorted(names) == ["model", "other"]
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["unk_token"] = "w1"  # noqa: S105 - a token of text
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(DataError, match="the tokenizer of client 'clinic' makes other tokens"):
        assess(folder, mode="central", watch=ignore)
