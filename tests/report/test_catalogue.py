"""Run folders listed and held side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import Job
from triskel.config.read import dump, load, to_toml
from triskel.errors import CheckpointError, JobError
from triskel.report.catalogue import Entry, Unreadable, below, differing, entry_of, kind_of, one_run

TOTALS = {
    **{way: {"payload_bytes": 1, "message_bytes": 2, "messages": 1} for way in ("up", "down")},
    "client_flops": 1,
    "peak_client_bytes": 1,
    "seconds": 1.0,
}
FIGURE = {"accuracy": 0.5, "macro_f1": 0.4, "loss": 1.0}


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def job(*overrides: str) -> Job:
    return load(None, overrides)


def new_row(everybody: float, own: float) -> dict[str, Any]:
    return {
        "accuracy": 9.0,
        "everybody": {**FIGURE, "accuracy": everybody},
        "own": {**FIGURE, "accuracy": own},
        "per_client": {},
    }


def mode_of(final: Mapping[str, Any], **clients: tuple[float, int]) -> dict[str, Any]:
    each = {c: {**FIGURE, "accuracy": a, "examples": n} for c, (a, n) in clients.items()}
    return {"rounds": [{"round": 1, "per_client": each}], "totals": TOTALS, "final": final}


def a_run(folder: Path, ours: Job, *, began: float = 1e9, **result: Any) -> Path:  # noqa: ANN401
    asked = {"modes": ["params", "logits"], "baselines": ["local"], "strict": False}
    write(folder, "job.toml", to_toml(ours))
    write(folder, "request.json", asked)
    write(folder, "events.jsonl", json.dumps({"time": began, "event": "run_start"}) + "\n")
    if result:
        told = {"schema": 1, "triskel": "0", "job": dump(ours), "environment": {}}
        told |= {"data": {"classes": [], "public": 0, "clients": {}}}
        told |= {"baselines": {}, "skipped": {}, "modes": {}}
        write(folder, "result.json", told | result)
    return folder


def entry(found: Entry | Unreadable) -> Entry:
    assert isinstance(found, Entry)
    return found


def test_a_run_is_told_with_the_columns_of_each_row(tmp_path: Path) -> None:
    ours = job("name=loans", "seed=3")
    baselines, modes = {"local": new_row(0.2, 0.6)}, {"params": mode_of(new_row(0.4, 0.41))}
    folder = a_run(tmp_path / "a", ours, baselines=baselines, modes=modes, skipped={"logits": "x"})
    found = entry_of(folder)
    assert (found.kind, found.name, found.seeds, found.state) == ("run", "loans", (3,), "finished")
    assert found.rows == {
        "local": {"everybody": 0.2, "own": 0.6},
        "params": {"everybody": 0.4, "own": 0.41},
    }
    assert found.began.timestamp() == 1e9
    assert found.judge == "test"


def test_results_from_before_the_columns_have_them_too(tmp_path: Path) -> None:
    local = {**FIGURE, "accuracy": 0.6, "global_accuracy": 0.2, "per_client": {}}
    modes = {
        "params": mode_of({**FIGURE, "accuracy": 0.4}, ann=(0.1, 1), bob=(0.5, 3)),
        "logits": mode_of({**FIGURE, "accuracy": 0.3}, ann=(0.1, 1), bob=(0.5, 3)),
    }
    folder = a_run(tmp_path / "a", job(), baselines={"local": local}, modes=modes)
    assert entry_of(folder).rows == {
        "local": {"everybody": 0.2, "own": 0.6},
        "params": {"everybody": 0.4, "own": 0.4},
        "logits": {"everybody": 0.3, "own": pytest.approx(0.4)},
    }
    without = a_run(tmp_path / "b", job("logits.student=false"), modes=modes)
    assert entry_of(without).rows["logits"] == {"own": pytest.approx(0.4)}


def test_how_far_a_run_is(tmp_path: Path) -> None:
    assert entry_of(a_run(tmp_path / "a", job())).state == "0 of 3 rows"
    folder = a_run(tmp_path / "b", job(), baselines={"local": new_row(0.2, 0.6)})
    assert entry_of(folder).state == "1 of 3 rows"


def test_several_seeds_are_told_by_their_means(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    write(folder, "job.toml", to_toml(job()))
    write(folder, "request.json", {"modes": ["params"], "baselines": [], "seeds": [0, 5]})
    modes = {"params": mode_of(new_row(0.4, 0.4))}
    a_run(folder / "seed-0", job("seed=0"), began=2e9, modes=modes)
    write(folder / "seed-0", "request.json", {"modes": ["params"], "baselines": []})
    a_run(folder / "seed-5", job("seed=5"), began=1e9)
    found = entry_of(folder)
    assert (found.kind, found.seeds, found.state) == ("seeds", (0, 5), "1 of 2 seeds")
    assert found.rows == {}
    assert found.began.timestamp() == 1e9
    told = {
        c: {"mean": m, "low": 0, "high": 1, "n": 2} for c, m in (("everybody", 0.3), ("own", 0.5))
    }
    summary = {"figure": "accuracy", "level": 0.95, "params": told, "differences": []}
    write(
        folder,
        "result.json",
        {
            "schema": 2,
            "triskel": "0",
            "seeds": [0, 5],
            "runs": [],
            "summary": summary,
            "readings": {"budget": {}, "target": [], "stragglers": {}},
        },
    )
    found = entry_of(folder)
    assert (found.state, found.rows) == ("finished", {"params": {"everybody": 0.3, "own": 0.5}})
    assert [one.folder for one in below(tmp_path)] == [folder], "its runs are not told again"


def a_sweep(folder: Path, **winner: Any) -> Path:  # noqa: ANN401 - of sweep.json
    told = {"everybody": FIGURE, "own": FIGURE}
    settings = [
        {"name": n, "set": {}, "folder": n, "rows": r, "skipped": {}, "diverged": {}, "failed": {}}
        for n, r in (("a", {"params": told}), ("b", {"params": told} if winner else {}))
    ]
    won = {"params": {"setting": "a", "validation": told, **winner}} if winner else {}
    record = {"schema": 1, "job": dump(job("name=loans")), "figure": "accuracy"}
    record |= {"request": {"modes": ["params"], "baselines": []}}
    a_run(folder / "a", job())
    return write(folder, "sweep.json", record | {"settings": settings, "winners": won})


def test_a_sweep_is_told_by_its_winners_on_test_texts(tmp_path: Path) -> None:
    found = entry_of(a_sweep(tmp_path / "open"))
    assert (found.kind, found.name, found.state) == ("sweep", "loans", "1 of 2 settings")
    assert found.rows == {}
    tested = {"everybody": {"accuracy": 0.7}, "own": {"accuracy": 0.8}}
    found = entry_of(a_sweep(tmp_path / "done", test=tested))
    assert (found.state, found.rows) == ("finished", {"params": {"everybody": 0.7, "own": 0.8}})
    assert [one.folder for one in below(tmp_path / "done")] == [tmp_path / "done"]


def test_kinds_of_folders(tmp_path: Path) -> None:
    assert kind_of(a_run(tmp_path / "run", job())) == "run"
    one_run(tmp_path / "run")
    assert kind_of(a_sweep(tmp_path / "sweep")) == "sweep"
    begun = write(
        write(tmp_path / "many", "job.toml", to_toml(job())), "request.json", {"seeds": [0]}
    )
    assert kind_of(begun) == "seeds"
    with pytest.raises(JobError, match=r"many holds several seeds; name the folder of one seed$"):
        one_run(begun)
    assert kind_of(tmp_path) is None
    one_run(tmp_path)


def test_folders_are_found_below_others_and_the_oldest_is_first(tmp_path: Path) -> None:
    a_run(tmp_path / "x" / "late", job(), began=2e9)
    a_run(tmp_path / "early", job(), began=1e9)
    write(tmp_path / "broken", "job.toml", "rounds = 'many'")
    (tmp_path / "empty").mkdir()
    found = below(tmp_path)
    assert [one.folder.name for one in found] == ["early", "late", "broken"]
    assert isinstance(found[2], Unreadable)
    assert "rounds" in found[2].why


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("request.json", "[]"),
        ("sweep.json", '{"schema": 1}'),
        ("sweep.json", "3"),
    ],
)
def test_a_file_that_lies_is_named(name: str, content: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a", job())
    write(folder, name, content)
    with pytest.raises(CheckpointError, match=name):
        entry_of(folder)
    assert isinstance(below(tmp_path)[0], Unreadable)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither job"):
        entry_of(tmp_path)


def test_keys_that_differ_are_told_and_no_others(tmp_path: Path) -> None:
    sets = ([], ["train.lr=0.1"], ["train.lr=0.1", "split.cut=[1, 2]"])
    entries = [entry_of(a_run(tmp_path / str(i), job(*s))) for i, s in enumerate(sets)]
    lr = job().train.lr
    assert differing(entries) == {
        "train.lr": [lr, 0.1, 0.1],
        "split.cut": [None, None, [1, 2]],
    }
    assert differing(entries[:1] * 2) == {}


# --- the command ------------------------------------------------------------------------------


def triskel(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(cli.app, list(words))
    return got.exit_code, got.stdout, got.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")  # workers of a test run have 80
    for name in cli.QUIET:
        monkeypatch.setenv(name, "")
    return tmp_path


def test_the_command_lists_what_runs_holds(here: Path) -> None:
    modes = {"params": mode_of(new_row(0.4, 0.41))}
    a_run(here / "runs" / "loans-1", job("name=loans", "seed=3"), modes=modes)
    a_sweep(here / "runs" / "tries", test={"own": {"accuracy": 0.8}})
    write(here / "runs" / "broken", "job.toml", "[")
    code, out, _ = triskel("runs")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    loans = next(line for line in lines if line[0] == "runs/loans-1")
    assert loans[3:] == ["loans", "3", "1", "of", "3", "rows", "params", "0.400", "0.410"]
    tries = next(line for line in lines if line[0] == "runs/tries")
    assert tries[3:] == ["loans", "0", "sweep:", "finished", "params", "–", "0.800"]
    assert any(line[:2] == ["runs/broken", "unreadable:"] for line in lines)


def test_the_command_says_where_nothing_is(here: Path) -> None:
    del here
    assert triskel("runs") == (0, "there is no run folder in runs\n", "")


def test_the_command_holds_runs_side_by_side(here: Path) -> None:
    one = a_run(here / "a", job(), modes={"params": mode_of(new_row(0.4, 0.41))})
    two = a_run(here / "b", job("train.lr=0.1"), baselines={"local": new_row(0.2, 0.6)})
    code, out, _ = triskel("runs", str(one.name), str(two.name))
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["train.lr", str(job().train.lr), "0.1"] in lines
    assert ["params,", "everybody", "0.400", "–"] in lines
    assert ["local,", "own", "–", "0.600"] in lines
    assert ["state", *["1", "of", "3", "rows", "1", "of", "3", "rows"]] in lines
    assert [
        "figure",
        *["accuracy", "on", "test", "texts", "accuracy", "on", "test", "texts"],
    ] in lines
    assert "none differs" in triskel("runs", "a", "a")[1]
