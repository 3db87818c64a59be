"""What is said of a result: never more than its tests carry, in every shape of result."""

import json
import re
import runpy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triskel.report import sections
from triskel.report.client_figure import per_client
from triskel.report.conclusions import verdict, worst_client
from triskel.report.figures import draw
from triskel.report.page import render
from triskel.report.reading import read
from triskel.report.tables import markdown

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)
CLAIMS = re.compile(
    r"\b(above|below|level|better|worse|beats?|first|best|gains?|loses?|beyond|help)\b",
    re.IGNORECASE,
)
"""Words that compare."""
Pairs = dict[frozenset[str], bool]


@pytest.fixture(autouse=True, scope="module")
def _without_plotly() -> Iterator[None]:
    """Leave 5 MB of script out of every page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triskel.report.page._plotly", lambda: "/* plotly */")
        yield


def told(  # noqa: PLR0913 - what a case is made of
    modes: dict[str, float],
    *,
    base: float | None = 0.4,
    alone: float | None = None,
    own: dict[str, float] | None = None,
    beyond: Pairs | float = 0.05,
    causal: bool = False,
    n: int = 1,
) -> dict[str, Any]:
    """Return a result with these figures, each pair beyond chance as stated or from a distance."""

    def figures(at: float) -> dict[str, float]:
        return {"accuracy": at, "loss": at, "perplexity": 2.0**at} if causal else {"accuracy": at}

    floors = {} if base is None else {"base": (base, base)}
    if alone is not None:
        floors["local"] = (alone, alone)
    columns = {**floors, **{m: (v, (own or {}).get(m, v)) for m, v in modes.items()}}
    rows = {
        row: {"everybody": figures(a), "own": figures(b), "per_client": {}}
        for row, (a, b) in columns.items()
    }
    differences: list[dict[str, Any]] = []
    for left, right in combinations(columns, 2):
        for place, column in enumerate(("everybody", "own")):
            far = columns[left][place] - columns[right][place]
            sure = (
                abs(far) > beyond
                if isinstance(beyond, float)
                else beyond.get(frozenset({left, right}), False)
            )
            pair = {"left": left, "right": right, "column": column, "difference": far}
            figure = "loss" if causal else "accuracy"
            differences.append({**pair, "figure": figure, "low": 0, "high": 0, "beyond": sure})
    return {
        "schema": 1,
        "job": {"seed": 3, "data": {"task": "causal" if causal else "classify"}},
        "data": {"clients": {"a": {"train": 9, "test": n}}},
        "baselines": {row: rows[row] for row in floors},
        "modes": {m: {"rounds": [], "final": rows[m]} for m in modes},
        "summary": {"figure": "perplexity" if causal else "accuracy", "differences": differences},
    }


def headline(found: dict[str, Any]) -> str:
    return verdict(read(found))[0]


def test_modes_within_chance_are_level_and_both_above_the_base_and_alone() -> None:
    found = told({"params": 0.637, "logits": 0.443, "split": 0.625}, base=0.438, alone=0.505)
    assert headline(found) == (
        "Params and split are level with 0.637 and 0.625 accuracy on everybody's texts, both above "
        "the base (0.438); on own texts both are above each client alone (0.637 and 0.625 against "
        "0.505)."
    )
    rest = " ".join(verdict(read(found))[1:])
    assert "Logits reaches accuracy 0.443 on everybody's texts, below params and split" in rest
    assert "level with the base; on own texts it is below each client alone (0.443 against" in rest


def test_a_mode_comes_first_only_where_it_is_above_every_other() -> None:
    found = told({"params": 0.5, "split": 0.7})
    assert headline(found).startswith("Split comes first with 0.700 accuracy on everybody's texts")
    found = told({"params": 0.5, "split": 0.7}, beyond=0.3)
    assert headline(found).startswith("No mode is shown to beat the base")
    found = told({"params": 0.65, "split": 0.7}, base=0.1, beyond=0.3)
    assert headline(found).startswith("Split and params are level with 0.700 and 0.650")


@pytest.mark.parametrize("sure", [0.001, 0.01, 0.5])
def test_below_the_base_nobody_comes_first(sure: float) -> None:
    found = told({"logits": 0.250, "params": 0.241, "split": 0.2}, base=0.272, beyond=sure)
    text = headline(found)
    assert text.startswith("No mode is shown to beat the base, accuracy 0.272 on everybody's texts")
    kind = {0.001: "below it", 0.01: "below it", 0.5: "level with it"}[sure]
    assert f"logits 0.250, params 0.241 and split 0.200, all {kind}" in text
    assert "first" not in " ".join(verdict(read(found)))


def test_one_mode_is_told_beside_base_and_alone() -> None:
    found = told({"params": 0.6}, base=0.4, alone=0.58)
    assert headline(found) == (
        "Params ends with 0.600 accuracy on everybody's texts, above the base (0.400); on own "
        "texts it is level with each client alone (0.600 against 0.580)."
    )
    found = told({"params": 0.41}, base=0.4)
    assert headline(found) == (
        "Params is not shown to beat the base: 0.410 accuracy against 0.400 on everybody's texts, "
        "where it is level with it."
    )
    assert headline(told({"params": 0.6}, base=None)) == (
        "Params ends with 0.600 accuracy on everybody's texts."
    )


def test_own_texts_are_judged_by_the_clients_own_models() -> None:
    found = told({"params": 0.6, "logits": 0.59}, alone=0.61, own={"logits": 0.8})
    assert headline(found).endswith(
        "on own texts logits is above each client alone and params is level with each client alone "
        "(0.600 and 0.800 against 0.610)."
    )


def test_ten_texts_tell_nothing_apart_however_far_they_are() -> None:
    found = told({"params": 0.6, "logits": 0.9, "split": 0.7}, base=0.5, beyond={}, n=10)
    text = headline(found)
    assert text.startswith("No mode is shown to beat the base")
    assert "logits 0.900, split 0.700 and params 0.600, all level with it" in text
    assert "10 test texts" in verdict(read(found))[-1]


def test_less_is_better_for_causal_and_is_called_so() -> None:
    found = told({"params": 3.0, "split": 2.0}, base=4.0, alone=3.5, causal=True)
    assert headline(found) == (
        "Split comes first with perplexity 4.00 on everybody's texts, better than the base "
        "(16.00); on own texts it is better than each client alone (4.00 against 11.31)."
    )
    assert "worse than split and better than the base" in verdict(read(found))[1]
    found = told({"params": 3.0, "split": 2.0}, base=1.0, causal=True)
    assert headline(found).startswith("No mode is shown to beat the base, perplexity 2.00")
    assert "split 4.00 and params 8.00, both worse than it" in headline(found)


def test_several_seeds_are_called_so_and_one_seed_only_where_there_is_one() -> None:
    several, one = (" ".join(verdict(read(f))) for f in (SAMPLES.seeds(5), SAMPLES.modern()))
    assert "5 seeds, 600 test texts each:" in several
    assert "over seeds and texts" in several
    assert "One seed" not in several
    assert "Another seed" not in several
    assert "One seed (0), 600 test texts:" in one
    assert "Another seed may order them otherwise." in one


def golden(task: str) -> dict[str, Any]:
    place = Path(__file__).parents[1] / "golden" / f"result-1-{task}.json"
    return json.loads(place.read_text(encoding="utf-8"))


@pytest.mark.parametrize("causal", [False, True])
def test_without_tests_there_are_figures_and_no_word_that_compares(*, causal: bool) -> None:
    for found in (SAMPLES.result(causal=causal), golden("causal" if causal else "classify")):
        lines = verdict(read(found))
        assert lines[0].endswith("No per-text records, so nothing is said about differences.")
        assert CLAIMS.findall(" ".join(lines)) == []
        page = render(found)
        assert not re.search("[▲▼]", page)


ASKED = {"modes": ["params", "logits", "split"], "baselines": ["base", "local", "central"]}
NOT_YET = "The run is not complete, so nothing is said about differences yet."


@pytest.mark.parametrize(
    ("asked", "complete"),
    [
        (ASKED, True),
        (ASKED | {"baselines": [*ASKED["baselines"], "local_equal"]}, False),
        (ASKED | {"drop_share": 0.3}, False),
    ],
)
def test_a_run_that_goes_on_says_nothing_of_differences_yet(
    asked: dict[str, Any], *, complete: bool
) -> None:
    found = SAMPLES.result() | {"request": asked}
    for text in (headline(found), markdown(found)):
        assert (NOT_YET in text) is not complete
        assert ("No per-text records" in text) is complete
    found["modes"]["split"]["rounds"].pop()
    assert NOT_YET in headline(found)
    del found["modes"]["split"]
    assert NOT_YET in headline(found)
    assert NOT_YET in headline(SAMPLES.result() | {"interrupted": "no result for split"})


def test_a_pair_that_was_not_tested_is_not_ranked() -> None:
    found = told({"params": 0.5, "split": 0.7})
    kept = found["summary"]["differences"]
    found["summary"]["differences"] = [
        one for one in kept if {one["left"], one["right"]} != {"params", "split"}
    ]
    assert CLAIMS.findall(headline(found)) == []
    assert "Not every pair of modes has per-text records" in headline(found)


NAMES = ("params", "logits", "split")
UNIT = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)


@settings(deadline=None, max_examples=200)
@given(
    figures=st.lists(UNIT, min_size=1, max_size=3),
    base=UNIT,
    alone=UNIT,
    flags=st.lists(st.booleans(), min_size=20, max_size=20),
    causal=st.booleans(),
)
def test_no_headline_claims_what_no_test_found(
    *, figures: list[float], base: float, alone: float, flags: list[bool], causal: bool
) -> None:
    modes = dict(zip(NAMES, figures, strict=False))
    rows = {"base": base, "local": alone, **modes}
    beyond = dict(zip(map(frozenset, combinations(rows, 2)), flags, strict=False))
    text = headline(told(modes, base=base, alone=alone, beyond=beyond, causal=causal))

    def ahead(row: str, other: str) -> bool:
        won = rows[row] < rows[other] if causal else rows[row] > rows[other]
        return won and beyond[frozenset({row, other})]

    if first := re.match(r"(\w+) comes first", text):
        winner = first[1].lower()
        assert all(ahead(winner, other) for other in modes if other != winner)
    if level := re.match(r"([\w, ]+) are level with", text):
        named = re.findall(r"\w+", level[1].lower().replace(" and ", " "))
        assert not any(ahead(a, b) for a in named for b in named if a != b)
    nobody = not any(ahead(mode, "base") for mode in modes)
    assert nobody == bool(re.match(r"No mode is shown to beat|\w+ is not shown to beat", text))
    better = "better than" if causal else "above"
    if re.search(rf"(it is|both are|all are) {better} each client alone", text):
        assert any(ahead(mode, "local") for mode in modes)


# --- The other sentences ----------------------------------------------------------------------


def test_clients_better_off_than_alone_are_counted_with_those_beyond_chance() -> None:
    found = SAMPLES.modern()
    each = found["summary"]["clients"]["split"]
    for client, far, kind in (
        ("social", 0.2, "gain"),
        ("shop", 0.01, "even"),
        ("film", -0.01, "even"),
        ("newspaper", -0.3, "lose"),
    ):
        each[client] |= {"difference": far, "verdict": kind}
    text = " ".join(verdict(read(found)))
    assert (
        "Own texts, split against alone: 2 of 4 clients better, 1 of them beyond chance; worse "
        "beyond chance: newspaper."
    ) in text
    page = render(found)
    assert "0.768 ▲" in page
    assert "0.618 ▼" in page
    assert "0.688</td>" in page


def test_a_client_gains_where_its_loss_is_lower() -> None:
    found = SAMPLES.modern(causal=True)
    for client in found["summary"]["clients"]["split"].values():
        client |= {"difference": -0.4, "verdict": "gain"}
    text = " ".join(verdict(read(found)))
    assert "Own texts, split against alone: 4 of 4 clients better, beyond chance." in text


def test_the_client_that_does_worst_is_named_and_is_the_worst() -> None:
    found = SAMPLES.modern()
    last = found["modes"]["logits"]["rounds"][-1]["per_client"]
    last["film"]["accuracy"] = 0.111
    text = " ".join(verdict(read(found)))
    assert "logits film with 0.111" in text
    causal = SAMPLES.modern(causal=True)
    last = causal["modes"]["logits"]["rounds"][-1]["per_client"]
    last["film"]["perplexity"] = 99.0
    assert "logits film with 99.00" in " ".join(verdict(read(causal)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_client_without_test_texts_is_not_the_worst_and_has_a_dash(*, causal: bool) -> None:
    found = SAMPLES.modern(causal=causal)
    found["data"]["clients"]["film"]["test"] = 0
    del found["summary"]["clients"]
    for row in (found["baselines"]["local"], found["modes"]["params"]["rounds"][-1]):
        row["per_client"]["film"] = {"accuracy": 0.0, "loss": 0.0, "perplexity": 1e6, "examples": 0}
    seen = read(found)
    worst = worst_client(seen, seen.modes["params"])
    assert worst is not None
    assert worst[0] != "film"
    assert "params film with" not in " ".join(verdict(seen))
    line = re.search(r'<th scope="row">film</th>(.*?)</tr>', sections.clients(seen, draw(seen)))
    assert line
    cells = re.findall(r"<td>(.*?)</td>", line[1])
    assert cells[:3] == ["0", "–", "–"]
    assert "–" not in cells[3:]
    place = list(found["data"]["clients"]).index("film")
    bars = {one["name"]: one["x"] for one in per_client(seen)["data"]}
    assert [name for name, drawn in bars.items() if place in drawn] == ["logits", "split"]


def test_alone_with_as_many_flops_is_told_beside_the_mode_that_computes_most() -> None:
    text = " ".join(verdict(read(SAMPLES.modern(sure=0.01))))
    assert (
        "With the client FLOPs of logits, each client alone reaches accuracy 0.690 on own texts: "
        "logits is below that, with 0.623."
    ) in text


def test_traffic_is_told_from_the_least_on() -> None:
    line = next(one for one in verdict(read(SAMPLES.result())) if one.startswith("Per client"))
    assert line == (
        "Per client, all rounds: logits 10.9 kB up and 10.9 kB down; params 5.55 MB up and 5.55 MB "
        "down, 510 times the bytes of logits; split 150 MB up and 150 MB down, 14,000 times the "
        "bytes of logits."
    )


def test_test_texts_are_counted_and_not_their_tokens() -> None:
    causal = SAMPLES.modern(causal=True)
    for score in causal["modes"]["split"]["rounds"][-1]["per_client"].values():
        score["examples"] = 9_000  # scored tokens
    assert "One seed (0), 600 test texts:" in verdict(read(causal))[-1]
    causal["data"] = {}
    assert "One seed (0):" in verdict(read(causal))[-1]
    plain = SAMPLES.modern()
    plain["data"] = {}
    assert "One seed (0), 600 test texts:" in verdict(read(plain))[-1]


def test_a_difference_of_rounding_makes_no_client_better_off() -> None:
    found = SAMPLES.modern()
    for client in found["summary"]["clients"]["params"].values():
        client |= {"difference": 1e-17, "verdict": "even"}
    assert "Own texts, params against alone: 0 of 4 clients better." in verdict(read(found))


def test_modes_that_are_called_level_are_level_with_each_other_too() -> None:
    apart = {frozenset({"split", "logits"}): True}
    above = {frozenset({"base", mode}): True for mode in ("params", "split", "logits")}
    figures = {"params": 0.7, "split": 0.69, "logits": 0.6}
    found = told(figures, base=0.2, beyond={**apart, **above})
    assert headline(found).startswith("Params and split are level with 0.700 and 0.690 accuracy")
    assert verdict(read(found))[1].startswith(
        "Logits reaches accuracy 0.600 on everybody's texts, level with params, below split and "
        "above the base"
    )
