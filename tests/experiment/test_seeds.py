"""Several seeds of one job: each is the run it would be by itself, and a kill costs nothing."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from triskel.config.job import Job
from triskel.config.read import to_toml
from triskel.config.sections import VIRTUAL, AdapterKind
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError, TrainingError
from triskel.experiment import models
from triskel.experiment.compare import Request, run
from triskel.experiment.seeds import compare_seeds, resume_seeds, seeds_of

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
ASKED = Request(baselines=("base", "local"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for family in ("llama", "mistral", "gpt2"):
        SMALL.save_model(folder / family, family)
    SMALL.save_rows(folder / "rows.csv", 48)
    torch.set_num_threads(1)
    return folder


def job(room: Path, **sections: Any) -> Job:  # noqa: ANN401 - of the job
    return SMALL.job(room / "llama", room / "rows.csv", train={"lr": 0.01}, **sections)


@pytest.fixture(scope="module")
def three(room: Path) -> SimpleNamespace:
    loads: list[object] = []
    original = models.load

    def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as it is called
        loads.append(args[0])
        return original(*args, **kwargs)

    models.load = counted
    try:
        folder = room / "three"
        result = compare_seeds(job(room), ASKED, [4, 0, 7], folder, LocalEngine, SMALL.watch)
    finally:
        models.load = original
    return SimpleNamespace(folder=folder, result=result, loads=loads)


def files(folder: Path) -> dict[str, bytes]:
    kept = ("adapters/**/*.safetensors", "outcomes/*.safetensors")
    return {str(p.relative_to(folder)): p.read_bytes() for k in kept for p in folder.glob(k)}


def test_a_seed_among_several_ends_with_the_bits_of_the_seed_alone(
    three: SimpleNamespace, room: Path, tmp_path: Path
) -> None:
    for place, seed in enumerate((4, 0, 7)):
        own = job(room, seed=seed)
        result = run(own, ASKED, tmp_path / str(seed), LocalEngine(own), SMALL.watch)
        assert files(three.folder / f"seed-{seed}") == files(tmp_path / str(seed))
        there = three.result["runs"][place]
        assert there["job"] == result["job"]
        for mode, found in result["modes"].items():
            assert there["modes"][mode]["final"] == found["final"]
            for key in ("client_flops", "server_flops", "up", "down"):
                assert there["modes"][mode]["totals"][key] == found["totals"][key]
        assert there["summary"] == result["summary"]


def test_seeds_differ_and_the_model_is_loaded_once(three: SimpleNamespace) -> None:
    assert len(three.loads) == 1
    losses = {one["modes"]["params"]["final"]["loss"] for one in three.result["runs"]}
    assert len(losses) == 3


def test_the_result_holds_every_run_and_the_mean_over_seeds(three: SimpleNamespace) -> None:
    result = json.loads((three.folder / "result.json").read_text(encoding="utf-8"))
    assert result["schema"] == 2
    assert result["seeds"] == [4, 0, 7] == seeds_of(three.folder)
    assert [one["schema"] for one in result["runs"]] == [1, 1, 1]
    for row in ("base", "local", "params", "logits", "split"):
        for column in ("everybody", "own"):
            told = result["summary"][row][column]
            each = [one["summary"][row][column]["mean"] for one in result["runs"]]
            assert told["n"] == 3
            assert told["mean"] == pytest.approx(sum(each) / 3)
            assert told["low"] <= told["mean"] <= told["high"]
    assert (three.folder / "report.html").exists()


def test_a_comparison_that_stopped_goes_on_with_the_seed_it_was_at(
    three: SimpleNamespace, room: Path, tmp_path: Path
) -> None:
    def stops(event: Any) -> None:  # noqa: ANN401 - an event
        if event.get("stage") == "logits" and event.get("seed", 0) == 0 and seen["seed"] == 0:
            raise TrainingError("stopped")
        if event.get("event") == "seed_start":
            seen["seed"] = event["seed"]

    seen, folder = {"seed": -1}, tmp_path / "run"
    with pytest.raises(TrainingError):
        compare_seeds(job(room), ASKED, [4, 0, 7], folder, LocalEngine, stops)
    begun = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [one["job"]["seed"] for one in begun["runs"]] == [4]
    before = (folder / "seed-4" / "events.jsonl").stat().st_mtime_ns
    resume_seeds(folder, LocalEngine, SMALL.watch)
    assert (folder / "seed-4" / "events.jsonl").stat().st_mtime_ns == before  # not played again
    for seed in (4, 0, 7):
        place = f"seed-{seed}"
        assert files(folder / place) == files(three.folder / place)
    ended = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert ended["summary"] == three.result["summary"]


def test_what_cannot_be_played_is_refused(
    three: SimpleNamespace, room: Path, tmp_path: Path
) -> None:
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(JobError, match="seeds must be different whole numbers"):
            compare_seeds(job(room), ASKED, seeds, tmp_path / "a", LocalEngine, SMALL.watch)
    with pytest.raises(JobError, match="is not empty; choose another --out, or resume"):
        compare_seeds(job(room), ASKED, [1], three.folder, LocalEngine, SMALL.watch)
    with pytest.raises(CheckpointError, match="holds no comparison over several seeds"):
        resume_seeds(three.folder / "seed-4", LocalEngine, SMALL.watch)
    (tmp_path / "request.json").write_text('{"seeds": "all"}', encoding="utf-8")
    assert seeds_of(tmp_path) is None


def test_a_comparison_killed_before_it_began_can_be_begun_again(room: Path, tmp_path: Path) -> None:
    folder, asked = tmp_path / "run", Request(modes=("params",), baselines=())
    folder.mkdir()
    (folder / "job.toml").write_text(to_toml(job(room)), encoding="utf-8")
    found = compare_seeds(job(room), asked, [2], folder, LocalEngine, SMALL.watch)
    assert [one["job"]["seed"] for one in found["runs"]] == [2]


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", get_args(AdapterKind))
def test_a_model_set_to_another_seed_starts_as_one_that_is_loaded_with_it(
    kind: str, family: str, task: str, room: Path
) -> None:
    if family == "gpt2" and kind in {"loha", "lokr"}:
        family = "mistral"  # PEFT has none for gpt2
    if kind == "bitfit":
        family = "gpt2"  # llama has no biases
    llama = ("k_proj", "v_proj", "down_proj") if kind == "ia3" else ("q_proj", "v_proj")
    gpt2 = ("c_attn", "mlp.c_proj") if kind == "ia3" else ("c_attn",)
    targets = gpt2 if family == "gpt2" else llama
    adapter = {"kind": kind, "targets": () if kind in VIRTUAL else targets}

    def body(seed: int) -> Any:  # noqa: ANN401 - a body
        it = SMALL.job(
            room / family, room / "rows.csv", task=task, seed=seed, adapter=adapter,
        )  # fmt: skip
        return SMALL.resources(it).body()

    one, other = body(3), body(8)
    one.reseed(8)
    assert one.seed == 8
    assert list(one.initial) == list(other.initial)
    assert all(torch.equal(one.initial[n], other.initial[n]) for n in other.initial)
    one.reseed(3)
    assert all(torch.equal(t, body(3).initial[n]) for n, t in one.initial.items())


def test_rows_that_change_between_two_seeds_are_noticed(room: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes((room / "rows.csv").read_bytes())
    own = SMALL.job(room / "llama", rows)
    asked = Request(modes=("params",), baselines=())
    folder = tmp_path / "out"

    def stop(event: Any) -> None:  # noqa: ANN401 - an event
        if event.get("event") == "seed_start" and event["seed"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_seeds(own, asked, [0, 1], folder, LocalEngine, stop)
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    shuffled = [lines[0], *reversed(lines[1:])]
    for changed, why in (
        (lines[:-1], r"rows\.csv has 47 rows and had 48 when the runs in "),
        ([*lines[:-1], lines[-1].replace(",", " more,")], "has other rows than when the runs in"),
    ):
        rows.write_text("".join(changed), encoding="utf-8")
        with pytest.raises(CheckpointError, match=why):
            resume_seeds(folder, LocalEngine, SMALL.watch)
    (folder / "sources.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"sources\.json is damaged"):
        resume_seeds(folder, LocalEngine, SMALL.watch)
    (folder / "sources.json").unlink()
    rows.write_text("".join(shuffled), encoding="utf-8")
    assert len(resume_seeds(folder, LocalEngine, SMALL.watch)["runs"]) == 2
