"""Both columns of every row, from results of every age, and tables that break no word."""

import io
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from triskel.report.cells import columns, rows
from triskel.report.comparisons import readings_table
from triskel.report.page import render
from triskel.report.reading import read
from triskel.report.readings import readings
from triskel.report.tables import final_table, markdown

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)
GOLDEN = Path(__file__).parents[1] / "golden"
WIDTHS = [36, 60, 80, 100, 120, 200]


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 5 MB of script out of every page."""
    monkeypatch.setattr("triskel.report.page._plotly", lambda: "/* plotly */")


def printed(found: Any, width: int) -> list[str]:  # noqa: ANN401 - whatever rich prints
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(found)
    return console.export_text().splitlines()


def long_names() -> dict[str, Any]:
    found = SAMPLES.modern()
    found["baselines"]["base"]["what"] = "always card_payment_not_recognised_at_all"
    found["modes"]["split"]["totals"]["scoring"] = {
        way: {"message_bytes": 4_000_000} for way in ("up", "down")
    }
    return found


SHAPES: dict[str, Any] = {
    "old": SAMPLES.result,
    "one seed": SAMPLES.modern,
    "seeds": SAMPLES.seeds,
    "causal": lambda: SAMPLES.modern(causal=True),
    "many": lambda: SAMPLES.many(300),
    "long": long_names,
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_terminal_of_any_width_shows_every_cell_whole_and_breaks_no_word(
    name: str, width: int
) -> None:
    found = SHAPES[name]()
    lines = printed(final_table(found), width)
    assert all(len(line.rstrip()) <= width for line in lines)
    seen = read(found)
    words = [word for line in lines for word in line.split()]
    shown = [one for one in columns(seen) if not one.page_only]
    for column in shown:
        for part in column.heading.split("\n"):
            assert sum(part in line for line in lines) >= 1, part
    for row in rows(seen):
        if name != "long":
            assert set(row.title.split()) <= set(words)
        for column in shown:
            assert any(row.cells[column.key].text in line for line in lines)


def test_a_terminal_of_120_columns_has_one_table_and_one_of_80_has_scores_above_costs() -> None:
    wide, narrow = (printed(final_table(SAMPLES.modern()), width) for width in (120, 80))
    heads = [line for line in narrow if "client" in line and "everybody" in line]
    assert "everybody's" in wide[1]
    assert "memory" in wide[1]
    assert heads
    assert "memory" not in heads[0]
    assert sum(line.startswith("split") for line in wide) == 1
    assert sum(line.startswith("split") for line in narrow) == 2


@pytest.mark.parametrize("name", SHAPES)
def test_markdown_has_the_columns_that_a_terminal_prints(name: str) -> None:
    found = SHAPES[name]()
    head = [cell.strip() for cell in markdown(found).splitlines()[0].strip("|").split("|")]
    lines = printed(final_table(found), 120)
    tops, bottoms = lines[0].split("  "), lines[1].split("  ")
    halves = [part.strip() for part in (*tops, *bottoms) if part.strip()]
    if "Time" in lines[1]:  # one table
        assert sorted(" ".join(head).split()) == sorted(" ".join(halves).split())
    assert [one.title for one in columns(read(found)) if not one.page_only] == head[1:]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_of_readings_fits_and_breaks_no_word(width: int) -> None:
    found = SAMPLES.modern()
    found["readings"] = readings([found])
    table = readings_table(read(found))
    lines = printed(table, width)
    assert all(len(line.rstrip()) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for words in ("broadband", "centralised", "TFLOPs"):
        assert words in text.split()
    assert "office" not in text
    assert readings_table(read(SAMPLES.result())) is None


# --- Columns ----------------------------------------------------------------------------------


def test_every_row_of_every_table_has_both_columns() -> None:
    found = SAMPLES.modern()
    told = {row.name: row.cells for row in rows(read(found))}
    assert list(told) == [
        *("base", "local", "local_equal", "central"),
        *("params", "logits", "split"),
    ]
    for name, one in {**found["baselines"], **found["modes"]}.items():
        final = one.get("final", one)
        for column in ("everybody", "own"):
            assert told[name][column].text == f"{final[column]['accuracy']:.3f} ±0.030"
    assert told["logits"]["everybody"].text == "0.503 ±0.030"
    assert told["logits"]["own"].text == "0.623 ±0.030"


def test_an_interval_without_an_end_is_left_out() -> None:
    found = SAMPLES.modern()
    found["summary"]["split"]["own"]["high"] = float("inf")
    told = {row.name: row.cells for row in rows(read(found))}
    assert told["split"]["own"].text == "0.708"


def test_work_of_server_and_scoring_stand_beside_the_clients() -> None:
    found = SAMPLES.modern()
    seen = {row.name: row.cells for row in rows(read(found))}
    assert seen["split"]["server"].text == "9,900"
    assert seen["local_equal"]["flops"].text == "4,200"
    text = markdown(found)
    assert "GFLOPs, server" in text
    assert "Scoring / client" not in text
    assert "Scored in place" in text
    found["modes"]["split"]["totals"]["scoring"] = {
        "up": {"message_bytes": 6_000_000},
        "down": {"message_bytes": 2_000_000},
    }
    assert "Scoring / client" in markdown(found)
    assert "Scored in place" not in markdown(found)
    assert {r.name: r.cells for r in rows(read(found))}["split"]["scoring"].text == "2.00 MB"


def test_a_federation_that_did_not_count_scoring_is_not_said_to_score_in_place() -> None:
    found = SAMPLES.result()
    found["job"]["data"]["source"] = "clients"
    assert "Scored in place" not in markdown(found)


def test_better_off_is_a_dash_where_nothing_was_tested() -> None:
    assert all(row.cells["better"].text == "–" for row in rows(read(SAMPLES.result())))
    told = {row.name: row.cells["better"].text for row in rows(read(SAMPLES.modern()))}
    assert told["params"] == "1/4 (0)"
    assert told["central"] == "–"


# --- Results from before there were columns ---------------------------------------------------


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_an_old_result_opens_and_its_columns_follow_from_what_it_holds(task: str) -> None:
    found = json.loads((GOLDEN / f"result-1-{task}.json").read_text(encoding="utf-8"))
    seen = read(found)
    local = found["baselines"]["local"]
    assert seen.baselines["local"].own.accuracy == local["accuracy"]
    assert seen.baselines["local"].everybody.accuracy == local["global_accuracy"]
    for name in ("params", "split"):
        final = found["modes"][name]["final"]
        assert seen.modes[name].everybody.accuracy == seen.modes[name].own.accuracy
        assert seen.modes[name].own.loss == final["loss"]
    each = found["modes"]["logits"]["rounds"][-1]["per_client"].values()
    right = sum(one["accuracy"] * one["examples"] for one in each)
    assert seen.modes["logits"].own.accuracy == pytest.approx(
        right / sum(one["examples"] for one in each)
    )
    assert seen.modes["logits"].everybody.loss == found["modes"]["logits"]["final"]["loss"]
    assert seen.summary is None
    page = render(found)
    assert "nothing is said about differences" in re.sub("\N{NO-BREAK SPACE}", " ", page)


def test_without_a_student_an_old_result_has_own_texts_only() -> None:
    found = SAMPLES.result()
    found["job"]["logits"]["student"] = False
    mode = read(found).modes["logits"]
    assert mode.everybody.accuracy is None
    assert mode.own.accuracy is not None
    assert render(found)


def test_the_readme_shows_the_columns_that_a_run_prints() -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = page.partition("<!-- demo-table -->")[2].partition("<!-- /demo-table -->")[0]
    found = SAMPLES.modern()
    assert table.strip().splitlines()[:2] == markdown(found).splitlines()[:2]
