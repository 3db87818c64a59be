"""Several seeds: means, bands, error bars, and every seed by itself."""

import copy
import json
import math
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from triskel.report.conclusions import verdict
from triskel.report.figures import draw
from triskel.report.names import figure_of
from triskel.report.page import render, write_report
from triskel.report.reading import read
from triskel.report.readings import readings
from triskel.report.seed_mean import averaged
from triskel.report.tables import markdown

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 5 MB of script out of every page."""
    monkeypatch.setattr("triskel.report.page._plotly", lambda: "/* plotly */")


def marks(found: dict[str, Any], mode: str, place: int, key: str = "accuracy") -> list[float]:
    return [run["modes"][mode]["rounds"][place][key] for run in found["runs"]]


@pytest.mark.parametrize("causal", [False, True])
def test_a_round_is_the_mean_over_seeds_with_the_t_interval(*, causal: bool) -> None:
    found = SAMPLES.seeds(4, causal=causal)
    key = "perplexity" if causal else "accuracy"
    seen = read(found)
    for mode, run in seen.modes.items():
        for place, row in enumerate(run.rounds):
            values = marks(found, mode, place, key)
            taken = np.log(values) if causal else np.array(values)
            ends = stats.t.interval(0.95, len(values) - 1, np.mean(taken), stats.sem(taken))
            told = np.array([np.mean(taken), *ends])
            middle, low, high = np.exp(told) if causal else told
            assert row.band is not None
            assert row.band.n == 4
            assert getattr(row.score, key) == pytest.approx(middle)
            assert (row.band.mean, row.band.low, row.band.high) == pytest.approx(
                (middle, low, high)
            )


def test_a_seed_says_nothing_of_a_client_that_it_did_not_score() -> None:
    """Own texts are of the seeds that dealt it some; everybody's, and costs, are of all."""
    seeds = [
        {"accuracy": 0.8, "loss": 1.0, "examples": 10, "everybody": {"loss": 2.0}, "flops": 4},
        {"accuracy": 0.0, "loss": 0.0, "examples": 0, "everybody": {"loss": 4.0}, "flops": 8},
        {"accuracy": 0.6, "loss": 2.0, "examples": 20, "everybody": {"loss": 6.0}, "flops": 6},
    ]
    whole = [{"baselines": {"local": {"per_client": {"shop": one}}}} for one in seeds]
    assert averaged(whole)["baselines"]["local"]["per_client"]["shop"] == {
        "accuracy": pytest.approx(0.7),
        "loss": pytest.approx(1.5),
        "examples": 10,
        "everybody": {"loss": 4.0},
        "flops": 6,
    }
    assert averaged(whole[1:2])["baselines"]["local"]["per_client"]["shop"]["examples"] == 0


def test_curves_have_bands_and_bytes_have_error_bars() -> None:
    found = SAMPLES.seeds(3)
    figures = draw(read(found))
    areas = {t["name"]: t for t in figures["by-round"]["data"] if t.get("fill") == "toself"}
    assert set(areas) == {"params", "logits", "split"}
    for mode, area in areas.items():
        low = [row.band.low for row in read(found).modes[mode].rounds if row.band]
        high = [row.band.high for row in read(found).modes[mode].rounds if row.band]
        assert area["y"] == [*low, *reversed(high)]
        assert area["x"] == [1, 2, 3, 3, 2, 1]
    bars = {t["name"]: t for t in figures["by-bytes"]["data"] if "error_y" in t}
    assert set(bars) == {"params", "logits", "split"}
    for place in range(3):
        half = stats.t.ppf(0.975, 2) * stats.sem(marks(found, "split", place))
        for side in ("array", "arrayminus"):
            assert bars["split"]["error_y"][side][place] == pytest.approx(half)
    one = draw(read(SAMPLES.modern()))
    assert not any("error_y" in t or "fill" in t for f in one.values() for t in f["data"])


def test_a_perplexity_over_seeds_is_e_to_the_mean_loss_wherever_it_is_told() -> None:
    found = SAMPLES.seeds(3, causal=True)
    for run, loss in zip(found["runs"], (1.0, 2.0, 4.5), strict=True):
        row = run["modes"]["split"]
        told = {"loss": loss, "perplexity": math.exp(loss), "accuracy": 0.5}
        row["final"] |= {"everybody": told, "own": told}
        row["rounds"][-1] |= told
        row["rounds"][-1]["per_client"]["film"] |= told
    mean = math.exp(2.5)
    found["summary"]["split"]["everybody"] |= {"mean": mean}
    found["summary"]["split"]["own"] |= {"mean": mean + 0.5}
    drops = {"everybody": {"perplexity": 30.0, "loss": 2.6}, "difference": 0.1, "beyond": False}
    found["readings"] = {"robustness": {"split": {"drop_share": 0.2, **drops}}}
    seen = read(found)
    split, said = seen.modes["split"], f"{mean:.2f}"
    assert figure_of(seen, split, "own") == mean + 0.5  # the summary's
    assert split.everybody.perplexity == pytest.approx(mean)
    assert split.rounds[-1].score.perplexity == pytest.approx(mean)
    assert split.per_client["film"].perplexity == pytest.approx(mean)
    assert verdict(seen)[0].startswith(f"Split comes first with perplexity {said} ")
    assert f"| {said} ±" in markdown(found)
    page = render(found)
    assert f"<td>{math.exp(2.6):.2f} (+{math.exp(2.6) - mean:.2f}, within chance)</td>" in page
    fold = re.search(r"<summary>Perplexity of each seed</summary>(.*?)</details>", page, re.DOTALL)
    assert fold
    each = "".join(f"<td>{math.exp(loss):.2f}</td>" for loss in (1.0, 2.0, 4.5))
    assert f"<td>own texts</td>{each}" in fold[1]
    row = readings(found["runs"])["budget"]["bytes"][-1]
    others = [v for r in found["runs"] for v in [r["modes"]["params"]["rounds"][-1]["loss"]]]
    assert row["params"] == pytest.approx(math.exp(np.mean(others)), rel=1e-6)


def test_costs_are_means_over_seeds() -> None:
    found = SAMPLES.seeds(2)
    for run, seconds in zip(found["runs"], (10.0, 30.0), strict=True):
        run["modes"]["params"]["totals"]["seconds"] = seconds
        run["modes"]["params"]["totals"]["client_flops"] = seconds * 1e9
    mode = read(found).modes["params"]
    assert mode.seconds == 20.0
    assert mode.total.flops == 20e9


def test_the_header_counts_the_seeds_and_a_fold_has_each() -> None:
    found = SAMPLES.seeds(3)
    page = render(found)
    assert "<li>3 seeds</li>" in page
    assert "<li>seed 0</li>" in render(SAMPLES.modern())
    fold = re.search(r"<summary>Accuracy of each seed</summary>(.*?)</details>", page, re.DOTALL)
    assert fold
    assert "seed 2" in fold[1]
    for run in found["runs"]:
        for column in ("everybody", "own"):
            shown = f"<td>{run['modes']['logits']['final'][column]['accuracy']:.3f}</td>"
            assert shown in fold[1]
    assert "of each seed" not in render(SAMPLES.modern())


def test_a_seed_that_is_not_there_yet_is_missed() -> None:
    found = SAMPLES.seeds(3)
    found["seeds"] = [0, 1, 2, 3, 4]
    page = render(found)
    assert "The run is not complete: 3 of 5 seeds are there." in page.replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_a_seed_without_a_mode_takes_no_part_in_its_mean() -> None:
    found = SAMPLES.seeds(3)
    del found["runs"][1]["modes"]["split"]
    values = [found["runs"][i]["modes"]["split"]["rounds"][0]["accuracy"] for i in (0, 2)]
    row = read(found).modes["split"].rounds[0]
    assert row.score.accuracy == pytest.approx(np.mean(values))
    assert row.band is not None
    assert row.band.n == 2
    assert render(found)


def test_one_seed_of_several_has_no_band() -> None:
    assert read(SAMPLES.seeds(1)).modes["params"].rounds[0].band is None
    assert render(SAMPLES.seeds(1))


def test_the_mean_of_equal_runs_is_each_of_them() -> None:
    one = SAMPLES.columned(SAMPLES.result())
    assert averaged([one, copy.deepcopy(one)])["modes"] == one["modes"]


def test_a_mode_that_a_seed_lacks_is_missed_in_a_written_report(tmp_path: Path) -> None:
    found = SAMPLES.seeds(3)
    asked = {"modes": ["params", "logits", "split"]}
    (tmp_path / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    for lacks in (False, True):
        if lacks:
            del found["runs"][1]["modes"]["split"]
        (tmp_path / "result.json").write_text(json.dumps(found), encoding="utf-8")
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert ("no result for split" in page) is lacks


def test_figures_on_validation_texts_are_called_so() -> None:
    found = SAMPLES.modern()
    assert "validation" not in markdown(found)
    found["request"] = {"judge": "validation"}
    assert "on validation texts; test texts were not read" in markdown(found)
    assert "600 validation texts" in " ".join(verdict(read(found)))


def test_a_baseline_that_some_seeds_lack_is_no_mean_over_the_others() -> None:
    found = SAMPLES.seeds(3)
    lacks = found["runs"][1]
    del lacks["baselines"]["local_equal"]
    why = "no mode computes 1.1 times what clients compute alone"
    found["runs"][0]["skipped"] = {"local_equal": why}
    seen = read(found)
    assert "local_equal" not in seen.baselines
    assert seen.skipped["local_equal"] == f"only 2 of 3 seeds have it; in the others, {why}"
    assert "local_equal" in read(SAMPLES.seeds(3)).baselines


def test_a_majority_class_that_seeds_do_not_share_is_not_named() -> None:
    found = SAMPLES.seeds(3)
    for run, name in zip(found["runs"], ("shop", "film", "shop"), strict=True):
        run["baselines"]["base"]["what"] = f"always {name}"
    assert "base (majority class)" in markdown(found)
    for run in found["runs"]:
        run["baselines"]["base"]["what"] = "always film"
    assert "base (always film)" in markdown(found)
