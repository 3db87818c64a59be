"""Between organisations on real FLARE, a job ends as it does in one process, to the last bit."""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import MODE_NAMES
from triskel.federation import job_watch

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")
flares = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "flares.py"))
compared = runpy.run_path(str(Path(__file__).parents[1] / "engines" / "flare" / "test_sites.py"))
same, result = compared["same"], compared["result"]
SITES = compared["SITES"]
pytestmark = flares["MARKS"]


def a_little_more(counted: int, sent: int) -> bool:
    """Whether FLARE counted what was sent, and its calls: 1 to 8 % on messages above 10 kB."""
    return sent < counted < 1.2 * sent + 20_000


def hurried(patch: pytest.MonkeyPatch) -> None:
    """Look often, as jobs are short."""
    for pause in ("POLL_S", "SILENT_S"):
        patch.setattr(job_watch, pause, 0.2)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = {"adapter.dropout": "0.25"}
    folder = tmp_path_factory.mktemp("flare") / "f"
    with flares["federation"](folder, model=flares["model_in"]("stories260K"), **options) as found:
        yield found


def test_every_mode_ends_with_the_adapters_bytes_and_flops_of_one_process(
    there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    hurried(monkeypatch)
    assert there.run(*MODE_NAMES, seen=told.append) == ""
    house = there.house
    assert json.loads((house.root / "out" / "ended.json").read_text())["done"]
    same(house, MODE_NAMES, result(house), a_little_more)
    assert (house.root / "out" / "report.html").stat().st_size > 10_000
    assert {one["stage"] for one in told if one and "stage" in one} <= set(MODE_NAMES)
    seen = {(one.get("stage"), one.get("round")) for one in told if one and one.get("rounds") == 2}
    assert seen, "progress is told while it runs"
    for name in SITES:
        lines = (house.root / name / "triskel" / "audit.jsonl").read_text().splitlines()
        left = [one for one in map(json.loads, lines) if one["what"] == "left"]
        (run,) = {one["run"] for one in left if one["stage"] == "split"}
        assert {one["round"] for one in left if one["run"] == run} == {1, 2}
    fetched_and_evaluated(there, house.root / "again")


def test_rounds_close_with_the_first_updates(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)
    keys = "[federation]\nbuffer = 2\n"
    text = there.house.text.replace("[federation]\n", keys) + "\n[evaluate]\nevery = 0\n"
    text = text.replace("rounds = 2", "rounds = 4")
    out = there.folder / "buffered"
    assert there.run("params", text=text, out=out) == ""
    rows = flares["rounds_of"](out, "params")
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        taken = row["clients"].keys() - row.get("absent", {}).keys()
        assert len(taken) >= 2
        late = {client: row["clients"][client]["staleness"] for client in taken}
        assert all(0 <= one < row["round"] for one in late.values())
        assert sum(row["clients"][client]["share"] for client in taken) == pytest.approx(1)
    assert ["accuracy" in row for row in rows] == [False, False, False, True]


def fetched_and_evaluated(there: Any, out: Path) -> None:
    """Hold what commands print of the result against the result."""
    runner = CliRunner()
    got = runner.invoke(cli.app, ["federation", "result", str(there.folder), "--out", str(out)])
    assert got.exit_code == 0, got.output
    stages = json.loads((out / "result.json").read_text())["modes"]
    for mode in MODE_NAMES:
        shown = f"{stages[mode]['final']['accuracy']:.3f}"
        assert any(line.split()[:2] == [mode, shown] for line in got.stdout.splitlines())
    got = runner.invoke(cli.app, ["evaluate", str(out), "--mode", "split"])
    assert got.exit_code == 2
    assert "are at the sites of its federation" in got.stderr
    texts = out.with_suffix(".csv")
    texts.write_text("text,label\nw1 w2,good\nw3,bad\n")
    words = ["evaluate", str(out), "--mode", "split", "--data", str(texts)]
    got = runner.invoke(cli.app, words)
    assert got.exit_code == 0, got.output
    (row,) = (one for one in got.stdout.splitlines() if one.startswith("everybody's texts"))
    assert row.split()[-1] == "2"
