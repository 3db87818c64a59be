"""A comparison: what a run folder holds, what is skipped, and what the baselines are."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.config.job import Job
from triskel.config.read import dump, parse
from triskel.core.events import Log
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, DataError, JobError
from triskel.experiment.compare import Request, read_run, run
from triskel.experiment.folder import safe

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
BASELINES = ("base", "local", "central", "local_equal")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    SMALL.save_model(folder / "model")
    SMALL.save_rows(folder / "rows.csv", 40)
    return folder


@pytest.fixture(scope="module")
def whole(room: Path) -> SimpleNamespace:
    """One comparison of everything, two rounds."""
    job = SMALL.job(
        room / "model", room / "rows.csv", rounds=2, clients={"count": 2}, train={"lr": 0.01}
    )
    events: list[Any] = []
    torch.set_num_threads(1)
    folder = room / "run"
    result = run(job, Request(), folder, LocalEngine(job), events.append)
    return SimpleNamespace(job=job, folder=folder, result=result, events=events)


def test_a_run_folder_holds_job_request_log_result_report_adapters_and_stages(
    whole: SimpleNamespace,
) -> None:
    clients = {"client-01", "client-02"}
    alone = {f"local-{c}" for c in clients}
    stages = {"central", "params", "logits", "split"} | alone
    more = {f"local_equal-{c}" for c in clients}
    assert {p.name for p in whole.folder.iterdir()} == {
        "job.toml", "request.json", "choices.json", "data.json", "events.jsonl", "result.json",
        "report.html", "adapters", "outcomes", "stages",
    }  # fmt: skip
    assert {p.name for p in (whole.folder / "stages").iterdir()} == stages | more
    assert {p.stem for p in (whole.folder / "outcomes").iterdir()} == {
        *stages, *more, "base", "local", "local_equal"
    }  # fmt: skip
    assert {p.name for p in (whole.folder / "adapters").iterdir()} == stages | {
        "logits-client-01", "logits-client-02",
    }  # fmt: skip
    for stage in stages:
        assert {p.name for p in (whole.folder / "stages" / stage).iterdir()} - {"clients"} == {
            "done.json", "round-000001.safetensors", "round-000002.safetensors",
        }  # fmt: skip
        assert (whole.folder / "stages" / stage / "clients").exists() == (stage == "logits")
    assert not list(whole.folder.rglob("*.part"))


def test_the_job_in_the_folder_is_the_job_that_ran(whole: SimpleNamespace) -> None:
    assert parse((whole.folder / "job.toml").read_text(encoding="utf-8")) == whole.job
    assert read_run(whole.folder) == (whole.job, Request())
    assert whole.result["job"] == dump(whole.job)


def test_the_result_returned_is_the_result_on_disk(whole: SimpleNamespace) -> None:
    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (whole.folder / "result.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=strict)
    assert found == json.loads(json.dumps(whole.result))
    assert list(found) == [
        "schema", "triskel", "job", "about", "task", "request", "environment", "data", "baselines",
        "skipped", "modes", "summary", "readings",
    ]  # fmt: skip
    assert list(found["modes"]) == ["params", "logits", "split"]
    assert list(found["baselines"]) == list(BASELINES)


def test_the_log_holds_every_event_but_steps_and_messages(whole: SimpleNamespace) -> None:
    lines = (whole.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    assert [e["event"] for e in logged] == [
        e["event"] for e in whole.events if e["event"] not in {"step", "message"}
    ]
    assert all(e["time"] > 1.7e9 for e in logged)
    assert {e["event"] for e in whole.events} >= {"step", "message"}
    assert logged[-1]["event"] == "run_end"


def test_the_opening_names_stages_and_their_work(whole: SimpleNamespace) -> None:
    opening = next(e for e in whole.events if e["event"] == "run_start")
    assert opening["stages"] == [
        "base",
        "local",
        "central",
        "params",
        "logits",
        "split",
        "local_equal",
    ]
    assert opening["clients"] == ["client-01", "client-02"]
    tokens = sum(
        e["tokens"]
        for e in whole.events
        if e["event"] == "step" and e.get("stage") == "params" and e["round"] == 1
    )
    work = opening["work"]
    assert work["base"] == 0
    assert work["params"] == work["split"] == work["central"] == 2 * tokens
    assert work["logits"] > work["params"]


def test_modes_and_baselines_start_from_the_same_split(whole: SimpleNamespace) -> None:
    tests = {c: v["test"] for c, v in whole.result["data"]["clients"].items()}
    for mode in whole.result["modes"].values():
        for row in mode["rounds"]:
            assert {c: v["examples"] for c, v in row["per_client"].items()} == tests


def test_the_figures_of_a_stage_are_those_of_its_rounds(whole: SimpleNamespace) -> None:
    for mode in whole.result["modes"].values():
        last = mode["rounds"][-1]
        assert mode["final"]["accuracy"] == last["accuracy"]
        for way in ("up", "down"):
            assert mode["totals"][way]["message_bytes"] == sum(
                c[way]["message_bytes"] for r in mode["rounds"] for c in r["clients"].values()
            )


def test_the_base_of_a_classification_is_the_most_frequent_class(whole: SimpleNamespace) -> None:
    base = whole.result["baselines"]["base"]
    resources = SMALL.resources(whole.job)
    held = resources.federation.clients
    seen = [t for h in held.values() for t in h.train.label]
    most = max(sorted(set(seen)), key=seen.count)
    assert base["what"] == f"always {most}"
    tests = [t for h in held.values() for t in h.test.label]
    assert base["accuracy"] == tests.count(most) / len(tests)
    share = {y: (seen.count(y) + 1) / (len(seen) + 3) for y in set(tests)}
    assert base["loss"] == pytest.approx(-sum(math.log(share[y]) for y in tests) / len(tests))


def test_alone_each_client_is_scored_on_its_own_share(whole: SimpleNamespace) -> None:
    local = whole.result["baselines"]["local"]
    assert set(local["per_client"]) == {"client-01", "client-02"}
    tests = {c: v["test"] for c, v in whole.result["data"]["clients"].items()}
    hits = sum(v["accuracy"] * tests[c] for c, v in local["per_client"].items())
    assert local["accuracy"] == pytest.approx(hits / sum(tests.values()))


def test_a_done_stage_is_kept_as_it_stands_in_the_result(whole: SimpleNamespace) -> None:
    for mode, found in whole.result["modes"].items():
        done = whole.folder / "stages" / mode / "done.json"
        assert json.loads(done.read_text(encoding="utf-8")) == json.loads(json.dumps(found))


def test_a_mode_that_cannot_run_is_skipped_with_its_reason(room: Path, tmp_path: Path) -> None:
    each = {"client-01": {"rank": 1}}
    job = SMALL.job(room / "model", room / "rows.csv", clients={"count": 2, "each": each})
    events: list[Any] = []
    request = Request(baselines=("base",))
    found = run(job, request, tmp_path / "run", LocalEngine(job), events.append)
    reason = "clients use different ranks ([1]), and split needs factors of one rank here"
    assert found["skipped"] == {"split": reason}
    assert list(found["modes"]) == ["params", "logits"]
    warnings = [e["text"] for e in events if e["event"] == "warning"]
    assert warnings[0] == f"split is skipped: {reason}"
    stages = next(e for e in events if e["event"] == "run_start")["stages"]
    assert stages == ["base", "params", "logits"]


def test_a_mode_refused_by_tokens_is_refused_when_strict(room: Path, tmp_path: Path) -> None:
    other = SMALL.save_model(tmp_path / "other", vocab_size=50)
    tokens = SMALL.tokenizer()
    tokens.add_tokens(["extra"])
    tokens.save_pretrained(other)
    job = SMALL.job(
        room / "model",
        room / "rows.csv",
        task="causal",
        clients={"each": {"client-02": {"model": str(other)}}},
    )
    request = Request(modes=("logits",), baselines=(), strict=True)
    with pytest.raises(JobError, match=r"^mode logits cannot run this job: client client-02 uses"):
        run(job, request, tmp_path / "run", LocalEngine(job), SMALL.watch)


def test_a_client_whose_head_is_padded_further_takes_part(room: Path, tmp_path: Path) -> None:
    other = SMALL.save_model(tmp_path / "other", vocab_size=64)
    each = {"client-02": {"model": str(other)}}
    job = SMALL.job(room / "model", room / "rows.csv", task="causal", clients={"each": each})
    request = Request(modes=("logits",), baselines=(), strict=True)
    found = run(job, request, tmp_path / "run", LocalEngine(job), SMALL.watch)
    assert found["modes"]["logits"]["rounds"][0]["clients"].keys() == set(found["data"]["clients"])


def test_a_mode_without_a_public_token_is_skipped(room: Path, tmp_path: Path) -> None:
    public = tmp_path / "public.csv"
    public.write_text(f"text,answer\n{'w1 ' * 20},good\n", encoding="utf-8")
    data = {"public": str(public)}
    job = SMALL.job(
        room / "model", room / "rows.csv", task="causal", data=data, logits={"public": 0}
    )
    request = Request(modes=("params", "logits"), baselines=())
    found = run(job, request, tmp_path / "run", LocalEngine(job), SMALL.watch)
    assert list(found["modes"]) == ["params"]
    assert found["skipped"]["logits"].startswith("no public text is left to predict on: within")


def test_a_request_is_written_before_anything_that_takes_time(room: Path, tmp_path: Path) -> None:
    job: Job = SMALL.job(room / "nowhere", room / "rows.csv")
    request = Request(modes=("split",), baselines=("central",), strict=True)
    with pytest.raises(Exception, match=r"nowhere"):
        run(job, request, tmp_path / "run", LocalEngine(job), SMALL.watch)
    assert read_run(tmp_path / "run") == (job, request)
    log = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["event"] == "failed"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"modes": 3, "baselines": [], "strict": true}', "\x00", "null"]
)
def test_a_damaged_request_is_no_run_folder(
    text: str, whole: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text((whole.folder / "job.toml").read_text(), encoding="utf-8")
    (tmp_path / "request.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} is not a run folder: "):
        read_run(tmp_path)


def test_a_place_that_is_a_file_is_refused_in_a_sentence(room: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("mine", encoding="utf-8")
    job = SMALL.job(room / "model", room / "rows.csv")
    with pytest.raises(JobError, match=rf"^{place} is "):
        run(job, Request(), place, LocalEngine(job), SMALL.watch)
    assert place.read_text(encoding="utf-8") == "mine"


# --- the log ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ['{"event": "rou', "", '{"event": "a"}\n{"ev'])
def test_a_log_that_was_cut_in_a_line_is_mended(cut: str, tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    place.write_text('{"event": "first"}\n' + cut, encoding="utf-8")
    with Log(place, SMALL.watch) as log:
        log({"event": "next"})
    events = [json.loads(line)["event"] for line in place.read_text("utf-8").splitlines()]
    assert events[0] == "first"
    assert events[-1] == "next"


@pytest.mark.parametrize(
    ("error", "text"), [(JobError("no such file"), "no such file"), (KeyError("x"), "KeyError")]
)
def test_a_log_ends_with_what_stopped_the_run(error: Exception, text: str, tmp_path: Path) -> None:
    def stopped() -> None:
        with Log(tmp_path / "events.jsonl", SMALL.watch):
            raise error

    with pytest.raises(type(error)):
        stopped()
    last = json.loads((tmp_path / "events.jsonl").read_text("utf-8").splitlines()[-1])
    assert (last["event"], last["text"]) == ("failed", text)


def test_a_stages_name_can_be_a_folder() -> None:
    assert safe("local:bank/a") == "local-bank_a"


def test_a_job_in_which_nobody_can_train_is_refused_before_round_1(
    room: Path, tmp_path: Path
) -> None:
    job = SMALL.job(room / "model", room / "rows.csv", task="causal", train={"max_tokens": 1})
    with pytest.raises(DataError) as caught:
        run(job, Request(), tmp_path / "run", LocalEngine(job), SMALL.watch)
    assert str(caught.value) == (
        "none of 26 training rows has a token of its response within train.max_tokens = 1; raise "
        "it, or look at what the tokenizer makes of them"
    )
