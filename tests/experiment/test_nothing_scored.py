"""A figure over nothing is no figure: null in JSON, a dash in tables, and in no mean."""

# ruff: noqa: ANN401 - results are JSON

import io
import json
import math
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from triskel.config.job import MODE_NAMES, Job
from triskel.engines.local import LocalEngine
from triskel.errors import DataError
from triskel.experiment.baselines import BASELINES
from triskel.experiment.compare import Request, run
from triskel.experiment.reevaluate import assess
from triskel.experiment.seeds import compare_seeds
from triskel.report.page import render
from triskel.report.tables import final_table, markdown

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
LONG = " ".join(["w1"] * 40)
FIGURES = ("accuracy", "token_accuracy", "perplexity", "loss")


def job(folder: Path, *, blind: tuple[str, ...], task: str = "causal", **more: Any) -> Job:
    """Three branches; of the blind ones no response of a test row is left within the length."""
    model = small.save_model(folder / "model")
    lines = {"train": ["branch,text,answer,label"], "test": ["branch,text,answer,label"]}
    for number in range(36):
        branch = ("north", "south", "west")[number % 3]
        row = f"{branch},{small.text(3, number)},good w{number % 9},{small.LABELS[number % 2]}"
        lines["train"].append(row)
        if number < 12:
            prompt = LONG if branch in blind else small.text(2, number + 50)
            lines["test"].append(f"{branch},{prompt},good w{number % 9},{small.LABELS[0]}")
    for name, rows in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = {"test": str(folder / "test.csv")}
    clients = {"partition": "natural", "by": "branch"}
    found: Job = small.job(
        model, folder / "train.csv", task=task, data=data, clients=clients, **more
    )
    return found


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("blind")
    one = job(folder, blind=("south",))
    request = Request(modes=MODE_NAMES, baselines=BASELINES)
    run(one, request, folder / "run", LocalEngine(one), small.watch)
    found: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return {"folder": folder / "run", **found}


def last(row: Mapping[str, Any]) -> Mapping[str, Any]:
    rounds = row.get("rounds")
    found: Mapping[str, Any] = rounds[-1]["per_client"] if rounds else row["per_client"]
    return found


def rows_of(result: Mapping[str, Any]) -> dict[str, Any]:
    return {**result["baselines"], **result["modes"]}


def test_a_client_without_a_scored_token_has_null_for_every_figure(result: Any) -> None:
    assert rows_of(result).keys() >= {"base", "local", "central", *MODE_NAMES}
    for name, row in rows_of(result).items():
        south, north = last(row)["south"], last(row)["north"]
        assert south["examples"] == south["n"] == 0
        assert [south[figure] for figure in FIGURES] == [None] * 4, name
        assert north["n"] == north["examples"] > 0
        assert all(isinstance(north[figure], float) for figure in FIGURES)


def test_means_are_over_what_was_scored(result: Any) -> None:
    for name, row in rows_of(result).items():
        final = row.get("final", row)
        each = [one for one in last(row).values() if one["examples"]]
        counted = sum(one["examples"] for one in each)
        loss = sum(one["loss"] * one["examples"] for one in each) / counted
        assert final["own"]["loss"] == pytest.approx(loss, rel=1e-9), name
        assert final["own"]["n"] == counted
        assert final["everybody"]["n"] == counted
        worst = result["summary"][name].get("worst")
        assert worst is None or worst["client"] != "south"


def test_the_holdings_are_what_is_left_once_texts_are_tokens(result: Any) -> None:
    held = result["data"]["clients"]
    assert {name: (one["train"], one["test"]) for name, one in held.items()} == {
        "north": (10, 4), "south": (10, 0), "west": (10, 4)
    }  # fmt: skip


def test_tables_and_page_show_a_dash(result: Any) -> None:
    told, shown = {k: v for k, v in result.items() if k != "folder"}, io.StringIO()
    Console(file=shown, width=160).print(final_table(told))
    page = re.sub("<script.*?</script>", "", render(told), flags=re.DOTALL)
    for text in (shown.getvalue(), markdown(told), page):
        assert "perplexity 1.00" not in text
        assert not re.search(r"\b(None|nan|NaN)\b", text)
    south = [line for line in page.splitlines() if "south" in line]
    assert south
    found = assess(result["folder"], mode="params", watch=small.watch)
    assert found["per_client"]["south"]["perplexity"] is None


def test_seeds_have_means_of_what_there_is(tmp_path: Path) -> None:
    one = job(tmp_path, blind=("south",))
    request = Request(modes=("params",), baselines=("local",))
    found = compare_seeds(one, request, (1, 2), tmp_path / "run", LocalEngine, small.watch)
    both = [r["modes"]["params"]["final"]["everybody"]["loss"] for r in found["runs"]]
    mean = found["summary"]["params"]["everybody"]["mean"]
    assert mean == pytest.approx(math.exp(sum(both) / 2), rel=1e-6)


@pytest.mark.parametrize("baselines", [(), ("base", "local")])
def test_with_nothing_to_score_the_job_is_refused_before_it_begins(
    baselines: Any, tmp_path: Path
) -> None:
    one = job(tmp_path, blind=("north", "south", "west"))
    request = Request(modes=("params",), baselines=baselines)
    said = "none of 12 test rows has a token of its response within train.max_tokens = 12"
    with pytest.raises(DataError, match=said):
        run(one, request, tmp_path / "run", LocalEngine(one), small.watch)
    assert not (tmp_path / "run" / "stages").exists()


def test_a_client_without_test_rows_is_a_dash_too(tmp_path: Path) -> None:
    one = job(tmp_path, blind=(), task="classify")
    rows = (tmp_path / "test.csv").read_text().splitlines()
    kept = [line for line in rows if not line.startswith("west")]
    (tmp_path / "test.csv").write_text("\n".join(kept) + "\n")
    request = Request(modes=("params", "split"), baselines=("base", "local"))
    found = run(one, request, tmp_path / "run", LocalEngine(one), small.watch)
    for row in rows_of(found).values():
        west = last(row)["west"]
        assert (west["accuracy"], west["macro_f1"], west["loss"], west["n"]) == (
            None,
            None,
            None,
            0,
        )
