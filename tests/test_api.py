"""What `import triskel` gives, and nothing else: runs without a command line or a file's name."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import triskel
from triskel.errors import CheckpointError, JobError, RoundError
from triskel.experiment.resources import prepare
from triskel.export.adapters import read_adapter

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("helpers") / "small.py")))
NAMES = [
    "Aggregate", "Codec", "Job", "Mode", "ModeSpec", "Prediction", "Result", "Task", "compare",
    "load", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and texts for it."""
    folder = tmp_path_factory.mktemp("api")
    SMALL.save_model(folder / "model")
    SMALL.save_rows(folder / "rows.csv", 40)
    return folder


def job_of(room: Path, **sections: Any) -> triskel.Job:  # noqa: ANN401 - of the job
    return SMALL.job(room / "model", room / "rows.csv", rounds=2, **sections)


@pytest.fixture(scope="module")
def compared(room: Path) -> triskel.Result:
    """Two modes and a baseline."""
    return triskel.compare(
        job_of(room), modes=["params", "logits"], baselines=["base", "local"],
        out=room / "compared", watch=SMALL.watch,
    )  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert triskel.__all__ == NAMES
    assert dir(triskel) == sorted([*NAMES, "__version__"])
    assert all(getattr(triskel, name).__name__ == name for name in NAMES)
    with pytest.raises(AttributeError, match=r"no attribute 'comparee'; it has"):
        _ = triskel.comparee


def test_importing_it_loads_no_torch() -> None:
    code = (
        "import sys, triskel; dir(triskel); triskel.Job, triskel.ModeSpec; "
        "print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_figures_are_those_of_the_result(compared: triskel.Result) -> None:
    params = compared.found["modes"]["params"]
    assert list(compared.figures) == ["base", "local", "params", "logits"]
    row = compared.figures["params"]
    assert row["everybody"] == params["final"]["everybody"]["accuracy"]
    assert row["own"] == params["final"]["own"]["accuracy"]
    clients = [one for r in params["rounds"] for one in r["clients"].values()]
    members = len(params["rounds"][0]["clients"])
    assert row["up_bytes"] == sum(c["up"]["message_bytes"] for c in clients) / members
    assert row["client_flops"] == sum(c["flops"] for c in clients) / members
    assert compared.figures["base"]["up_bytes"] is None
    assert compared.table()[2] == {"row": "params", **row}
    assert compared.figure == "accuracy"
    assert [r["round"] for r in compared.rounds("params")] == [1, 2]
    assert compared.report.exists()
    for told in (repr(compared), compared._repr_markdown_()):
        assert "| params |" in told


def test_both_columns_are_told_apart(compared: triskel.Result, tmp_path: Path) -> None:
    told = json.loads((compared.folder / "result.json").read_text())
    told["modes"]["logits"]["final"]["own"]["accuracy"] = 0.25
    told["modes"]["logits"]["final"]["everybody"]["accuracy"] = 0.75
    del told["summary"]  # which would be believed first
    shutil.copytree(compared.folder, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(json.dumps(told))
    row = triskel.Result(tmp_path / "run").figures["logits"]
    assert (row["own"], row["everybody"]) == (0.25, 0.75)


def test_a_frame_is_the_table(compared: triskel.Result) -> None:
    pandas = pytest.importorskip("pandas")
    frame = compared.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["params", "everybody"] == compared.figures["params"]["everybody"]


def test_without_pandas_the_way_out_is_told(
    compared: triskel.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(JobError, match=r"frame\(\) needs pandas: pip install pandas"):
        compared.frame()


def test_an_adapter_and_its_model_are_what_was_trained(
    room: Path, compared: triskel.Result
) -> None:
    resources = prepare(job_of(room), SMALL.watch)
    body, texts = resources.body(), resources.tokens.share("client-01").test
    wanted = read_adapter(room / "compared" / "adapters" / "params", body)
    found = compared.adapter("params")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    own = compared.adapter("logits", client="client-02")
    assert not all(torch.equal(own[name], wanted[name]) for name in wanted)
    model, tokenizer = compared.model("params"), compared.tokenizer("params")
    ids = torch.tensor([texts.ids[0].tolist()])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        mine = body.logits(body.parameters(wanted), resources.worker("client-01", SMALL.watch)
                           .batch(texts, [0]))  # fmt: skip
    torch.testing.assert_close(logits, mine.float(), rtol=1e-4, atol=1e-5)
    assert tokenizer.get_vocab() == body.tokenizer.get_vocab()
    with pytest.raises(JobError, match=r"no adapter of mode split; it has"):
        compared.adapter("split")
    with pytest.raises(JobError, match=r"has no mode 'split'; it has params, logits"):
        compared.rounds("split")


def test_one_mode_runs_and_a_stopped_run_goes_on_to_the_same(room: Path) -> None:
    whole = triskel.run(job_of(room), mode="params", out=room / "whole", watch=SMALL.watch)

    class Stop(Exception):  # noqa: N818 - of a test
        pass

    def stopping(event: Any) -> None:  # noqa: ANN401 - an event
        if event["event"] == "round_start" and event.get("round") == 2:
            raise Stop

    with pytest.raises(Stop):
        triskel.run(job_of(room), mode="params", out=room / "part", watch=stopping)
    part = triskel.run(resume=room / "part", watch=SMALL.watch)
    assert part.adapter().keys() == whole.adapter().keys()
    assert all(torch.equal(x, whole.adapter()[name]) for name, x in part.adapter().items())


def test_a_job_file_is_read_and_progress_shown_by_default(
    room: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from triskel.config.read import to_toml  # noqa: PLC0415 - of this test

    monkeypatch.chdir(room)
    Path("job.toml").write_text(to_toml(job_of(room)), encoding="utf-8")
    result = triskel.compare("job.toml", modes=["params"], baselines=[])
    assert result.folder == Path("runs") / "small-1" or result.folder.parent == Path("runs")
    assert "params   round 2/2" in capfd.readouterr().err
    assert triskel.load("job.toml", ["rounds=5"]).rounds == 5


def test_several_seeds_have_a_result_each(room: Path) -> None:
    both = triskel.compare(
        job_of(room), modes=["params"], baselines=[], seeds=torch.tensor([3, 4]),
        out=room / "seeds", watch=SMALL.watch,
    )  # fmt: skip
    each = [one.figures["params"]["everybody"] for one in both.seeds]
    assert len(each) == 2
    assert both.figures["params"]["everybody"] == pytest.approx(sum(each) / 2)
    for ask in (both.adapter, both.model, both.tokenizer, lambda: both.rounds("params")):
        with pytest.raises(JobError, match=r"holds several seeds; \.seeds\[0\]\.\w+\(\.\.\.\) is"):
            ask()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"job": "no.toml"}, JobError, "job file no.toml does not exist"),
        ({}, JobError, "give a job, or the folder of a run to resume"),
        ({"resume": "x", "mode": "params"}, JobError, "leave out everything else"),
        ({"resume": "nowhere"}, CheckpointError, "nowhere is not a run folder"),
    ],
)
def test_what_cannot_be_is_said(given: Any, error: type[Exception], said: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=said):
        triskel.run(**given, watch=SMALL.watch)


def test_an_unknown_mode_is_refused_before_anything_is_written(room: Path) -> None:
    with pytest.raises(JobError, match="there is no mode 'parms' here; there are params, logits"):
        triskel.compare(job_of(room), modes=["parms"], out=room / "none", watch=SMALL.watch)
    assert not (room / "none").exists()


def test_a_refused_job_leaves_no_folder(room: Path) -> None:
    with pytest.raises(JobError):
        triskel.run(
            job_of(room, clients={"each": {"client-02": {"rank": 3}}}), mode="params",
            out=room / "refused", watch=SMALL.watch,
        )  # fmt: skip
    assert not (room / "refused").exists()


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"result\.json does not exist"):
        triskel.Result(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"baselines": ["centrall"]},
            "no baseline 'centrall' here; there are base, local",
        ),
        ({"modes": [], "baselines": []}, "nothing to run: name modes"),
        ({"modes": "central"}, "there is no mode 'central' here; there are params"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_written(
    room: Path,
    given: Any,  # noqa: ANN401 - of `compare`
    said: str,
) -> None:
    with pytest.raises(JobError, match=said):
        triskel.compare(job_of(room), **given, out=room / "nothing", watch=SMALL.watch)
    assert not (room / "nothing").exists()


def test_one_name_stands_alone_and_so_does_a_number_of_seeds(room: Path) -> None:
    result = triskel.compare(
        job_of(room, seed=7), modes="params", baselines="base", seeds=2,
        out=room / "names", watch=SMALL.watch,
    )  # fmt: skip
    assert [one.folder.name for one in result.seeds] == ["seed-7", "seed-8"]
    assert list(result.figures) == ["base", "params"]
    assert triskel.load(settings="rounds=2").rounds == 2


def test_a_stopped_run_says_how_it_goes_on(room: Path) -> None:
    def stopping(event: Any) -> None:  # noqa: ANN401 - an event
        if event["event"] == "round_start" and event.get("round") == 2:
            raise RoundError("the link is cut")

    with pytest.raises(RoundError) as stopped:
        triskel.run(job_of(room), mode="params", out=room / "cut", watch=stopping)
    way = f"triskel.run(resume={str(room / 'cut')!r}) goes on"
    assert stopped.value.__notes__ == [f"what was finished is in {room / 'cut'}; {way}"]
    with pytest.raises(RoundError) as again:
        triskel.run(resume=room / "cut", watch=stopping)
    assert way in again.value.__notes__[-1]


def test_a_result_without_rows_is_a_frame_without_rows(
    compared: triskel.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    assert list(compared.frame().dtypes.unique()) == ["float64"]
    monkeypatch.setattr(triskel.Result, "table", lambda _: [])
    assert compared.frame().empty
