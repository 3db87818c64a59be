"""The three readings of a comparison, against figures worked out by hand."""

import math
import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triskel.core import formats
from triskel.report.figures import draw
from triskel.report.links import LINKS, wait_over
from triskel.report.page import render
from triskel.report.reading import read
from triskel.report.readings import budgets, readings, steps

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 5 MB of script out of every page."""
    monkeypatch.setattr("triskel.report.page._plotly", lambda: "/* plotly */")


def spent(up: int, down: int, flops: float, seconds: float) -> dict[str, Any]:
    return {
        "up": {"message_bytes": up, "messages": 1},
        "down": {"message_bytes": down, "messages": 0},
        "flops": flops,
        "compute_s": seconds,
    }


def run(curves: dict[str, list[tuple[float, int]]], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a result of two clients: a mode's figure and a client's bytes up, round by round."""
    modes = {
        name: {
            "rounds": [
                {
                    "round": place,
                    "accuracy": figure,
                    "perplexity": figure,
                    "clients": {
                        "a": spent(size, size, 3e9, 1.0),
                        "b": spent(size, 0, 1e9, 2.0),
                    },
                }
                for place, (figure, size) in enumerate(rounds, 1)
            ]
        }
        for name, rounds in curves.items()
    }
    return {"schema": 1, "job": {"data": {"task": "classify"}}, "modes": modes, **more}


CURVES = {
    "params": [(0.5, 1000), (0.45, 1000), (0.7, 1000)],  # 3 kB a round, all clients
    "split": [(0.6, 100_000), (0.8, 100_000)],  # 300 kB a round
}
FLOORS = {
    "local": {"accuracy": 0.9, "everybody": {"accuracy": 0.55}, "own": {"accuracy": 0.9}},
    "central": {"accuracy": 0.75},
}


def test_a_budget_buys_the_best_round_that_closed_within_it() -> None:
    table = readings([run(CURVES)])["budget"]["bytes"]
    for row in table:
        closed = {
            mode: [f for i, (f, size) in enumerate(rounds, 1) if 3 * size * i <= row["budget"]]
            for mode, rounds in CURVES.items()
        }
        for mode, figures in closed.items():
            assert row[mode] == (max(figures) if figures else None)
    assert [row["budget"] for row in table][-1] == 600_000
    assert 9_000 in [row["budget"] for row in table]
    assert 3 <= len(table) <= 5


def test_flops_and_seconds_are_budgets_too() -> None:
    told = readings([run(CURVES)])["budget"]
    assert set(told) == {"bytes", "client_flops", *(f"seconds:{link.name}" for link in LINKS)}
    last = told["client_flops"][-1]
    assert last["budget"] == 12e9  # 4e9 a round, three rounds
    assert (last["params"], last["split"]) == (0.7, 0.8)
    first = min(told["client_flops"], key=lambda row: row["budget"])
    assert first["budget"] < 12e9


def test_the_time_of_a_round_is_that_of_its_slowest_client() -> None:
    found = run({"params": [(0.5, 10_000_000)]})
    row = readings([found], slowdown=5.0)["stragglers"]["params"]
    for link in LINKS:
        sent = 80e6 / link.up_bits
        a = 1.0 + sent + 80e6 / link.down_bits + link.delay_s
        b = 2.0 + sent + link.delay_s
        assert row[f"plain:{link.name}"] == pytest.approx(max(a, b))
        assert row[f"seconds:{link.name}"] == pytest.approx(max(a, 10.0 + sent + link.delay_s))
    assert row["slowdown"] == 5.0
    assert readings([found])["stragglers"]["params"]["slowdown"] == 4.0


def test_a_target_costs_what_was_spent_when_it_was_first_reached() -> None:
    told = readings([run(CURVES, baselines=FLOORS)])["target"]
    by_name = {row["what"]: row for row in told}
    central = by_name["90 % of centralised"]
    assert central["target"] == pytest.approx(0.675)
    assert central["params"]["round"] == 3
    assert central["params"]["bytes"] == 9000
    assert central["params"]["client_flops"] == 12e9
    assert central["split"]["round"] == 2
    assert central["split"]["bytes"] == 600_000
    alone = by_name["each client alone"]
    assert alone["target"] == 0.55
    assert alone["params"]["round"] == 3
    assert alone["split"]["round"] == 1
    best = by_name["95 % of the best mode"]
    assert best["target"] == pytest.approx(0.76)
    assert best["params"] is None


def test_less_is_better_for_causal_and_targets_are_shares_of_the_loss_gained() -> None:
    causal = {"data": {"task": "causal"}}
    floors = {name: {"perplexity": math.exp(v)} for name, v in (("base", 4.0), ("central", 2.0))}
    curves = {"params": [(math.exp(3.0), 1000), (math.exp(2.1), 1000), (math.exp(2.5), 1000)]}
    told = readings([run(curves, baselines=floors) | {"job": causal}])
    row = told["target"][0]
    assert row["what"] == "90 % of the gain of centralised"
    assert row["target"] == pytest.approx(math.exp(4.0 - 0.9 * 2.0))
    assert row["params"]["round"] == 2
    assert told["budget"]["bytes"][-1]["params"] == pytest.approx(math.exp(2.1))


def test_over_seeds_a_figure_is_the_mean_and_none_where_a_seed_has_none() -> None:
    slow = run({"params": [(0.3, 10_000), (0.5, 10_000)]})
    quick = run({"params": [(0.6, 1000), (0.7, 1000)]})
    told = readings([slow, quick])
    table = {row["budget"]: row["params"] for row in told["budget"]["bytes"]}
    assert table[60_000.0] == pytest.approx(0.6)
    early = [budget for budget in table if 3_000 <= budget < 30_000]
    assert early
    assert all(table[budget] is None for budget in early)
    row = next(one for one in told["target"] if one["what"] == "95 % of the best mode")
    assert row["target"] == pytest.approx(0.95 * 0.6)
    assert row["params"] is None


def test_budgets_hold_every_mode_and_lie_apart() -> None:
    found = budgets([37_111.0, 44.4e6, 380e6, 381e6], 12_000.0)
    assert found == sorted(found)
    assert 3 <= len(found) <= 5
    assert found[-1] >= 381e6
    assert any(37_111 <= one <= 38_000 for one in found)
    assert all(later / one >= 1.5 for one, later in pairwise(found))
    assert budgets([], 1.0) == []
    assert budgets([7.0], 7.0) == [7.0]


def test_a_missing_measurement_leaves_its_quantity_out() -> None:
    found = run(CURVES)
    for row in found["modes"]["split"]["rounds"]:
        del row["clients"]["a"]["compute_s"]
    told = readings([found])
    assert "split" not in told["budget"]["seconds:office"][-1]
    assert "params" in told["budget"]["seconds:office"][-1]
    assert "plain:office" not in told["stragglers"]["split"]
    assert readings([{"schema": 1}]) == {"budget": {}, "target": [], "stragglers": {}}


def test_a_page_tells_the_readings_and_what_drop_outs_cost() -> None:
    found = SAMPLES.modern()
    found["readings"] = readings([found]) | {
        "robustness": {
            "params": {
                "drop_share": 0.25,
                "everybody": {"accuracy": 0.61},
                "own": {"accuracy": 0.62},
                "difference": -0.043,
                "beyond": True,
            },
            "split": {"drop_share": 0.25, "everybody": {"accuracy": 0.7}, "beyond": None},
        }
    }
    page = render(found)
    assert "25 % of clients drop out: accuracy, everybody&#x27;s texts" in page
    assert "0.610 (−0.043, beyond chance)" in page
    assert "slowest client 4 times as slow on mobile" in page
    assert "90 % of centralised" in page
    assert "Nothing was computed at a budget" in render(SAMPLES.result())


def test_rounds_that_score_clients_own_models_are_no_path_of_a_common_one() -> None:
    found = SAMPLES.modern()
    found["job"]["logits"] = {"student": False}
    seen = read(found).modes["logits"]
    assert [row.score.accuracy for row in seen.rounds[:-1]] == [None] * (len(seen.rounds) - 1)
    assert seen.rounds[-1].score == seen.everybody
    (step,) = steps(read(found), seen)
    assert step.figure == found["modes"]["logits"]["final"]["everybody"]["accuracy"]
    assert step.spent["bytes"] == sum(
        client[way]["message_bytes"]
        for row in found["modes"]["logits"]["rounds"]
        for client in row["clients"].values()
        for way in ("up", "down")
    )


@pytest.mark.parametrize(("beyond", "chance"), [(True, ", beyond chance"), (None, "")])
def test_drop_outs_of_a_causal_task_cost_perplexity_and_not_nats(
    *, beyond: bool | None, chance: str
) -> None:
    found = SAMPLES.modern(causal=True, modes=("params", "split"))
    whole = found["summary"]["params"]["everybody"]["mean"]
    more = {"params": {"perplexity": whole + 1.25}, "split": {"perplexity": 1.5}}
    told = {"drop_share": 0.25, "difference": 0.029, "beyond": beyond}
    found["readings"] = {"robustness": {m: {**told, "everybody": more[m]} for m in more}}
    page = render(found)
    assert f"<td>{whole + 1.25:.2f} (+1.25{chance})</td>" in page
    less = found["summary"]["split"]["everybody"]["mean"] - 1.5
    assert f"<td>1.50 (−{less:.2f}{chance})</td>" in page
    assert "0.029" not in page


def test_over_seeds_the_time_on_a_link_is_the_mean_of_the_slowest_everywhere() -> None:
    found = SAMPLES.seeds(2)
    for run_, late in zip(found["runs"], ("film", "shop"), strict=True):
        for row in run_["modes"]["params"]["rounds"]:
            for client, cost in row["clients"].items():
                cost["compute_s"] = 9.0 if client == late else 1.0
    told = readings(found["runs"])["stragglers"]
    found["readings"] = {"stragglers": told}
    seen = read(found)
    drawn, page = draw(seen)["links"]["data"], render(found)
    for link in LINKS:
        for mode in seen.modes:
            plain, slow = (told[mode][f"{kind}:{link.name}"] for kind in ("plain", "seconds"))
            got = wait_over(seen, mode, link)
            assert got is not None
            assert got.total == pytest.approx(plain)
            assert f"{formats.duration(plain)} → {formats.duration(slow)}" in page
            bars = [
                trace["x"][trace["y"][0].index(link.name)]
                for trace in drawn
                if mode in trace["y"][1] and len(trace["x"]) == len(LINKS)
            ]
            assert sum(bars) == pytest.approx(plain)
        times = "".join(f"<td>{formats.duration(told[m][f'plain:{link.name}'])}</td>" for m in told)
        assert times in page
