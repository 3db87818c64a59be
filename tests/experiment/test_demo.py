"""The demonstration is as large as a machine does in minutes, and says what it left out."""

import runpy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskel.config.read import load
from triskel.experiment import demo
from triskel.experiment.demo import BUDGET_S, LADDER, Rung, choose

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
speeds = st.floats(min_value=1e-9, max_value=1e-2)


def test_the_first_rung_is_the_job_of_a_comparison_without_a_job_file() -> None:
    assert LADDER[0].job() == load(None)
    assert choose(1e-9).job == load(None)


def test_every_rung_costs_less_than_the_one_above() -> None:
    for above, below in pairwise(LADDER):
        assert below.passes < above.passes
        assert below.seeds <= above.seeds
        assert below.texts <= above.texts


@pytest.mark.parametrize("name", ["seeds", "texts", "tests", "public", "epochs", "blocks"])
@pytest.mark.parametrize("rung", LADDER)
def test_more_of_anything_costs_more(rung: Rung, name: str) -> None:
    more: dict[str, Any] = {name: getattr(rung, name) + 1}
    assert replace(rung, **more).passes > rung.passes


def test_seeds_cost_the_same_each() -> None:
    one = replace(LADDER[0], seeds=1)
    assert replace(one, seeds=5).passes == pytest.approx(5 * one.passes)


def test_a_comparison_is_counted_pass_by_pass() -> None:
    """One client's text at a time, with states kept, as the stages play them."""
    rung = Rung(seeds=1, texts=10, tests=5, public=3, epochs=2, blocks=4)
    learn = 2.3 * 4  # forward and back, through what trains
    fresh = 30 * (40 + 40 + 20 + 3) + 6 * (40 + 20)  # clients', pooled, tests, public; split's ends
    own = 3 * 2 * 40 * learn
    lessons = 3 * 4 * 3 * (4 + 2 * learn)  # rounds, clients: predict, then learn beside own texts
    alone, equal, central, params, split = own, own + lessons, own, own, 2.0 * own
    logits = own + 2.4 * lessons + 3 * 3 * learn
    stages = alone + equal + central + params + split + logits
    scored = 0.7 * 4 * 20 * (6 * 4 + 3 + 8)
    assert rung.passes == pytest.approx(26 * (fresh + stages + scored))


@given(speed=speeds)
def test_the_largest_rung_that_fits_is_chosen(speed: float) -> None:
    choice = choose(speed)
    fits = [rung for rung in LADDER if rung.passes * speed <= BUDGET_S]
    assert choice.rung == (max(fits, key=lambda r: r.passes) if fits else LADDER[-1])
    assert LADDER[choice.place - 1] == choice.rung


@given(slow=speeds, factor=st.floats(min_value=1, max_value=100))
def test_a_faster_machine_never_gets_a_smaller_rung(slow: float, factor: float) -> None:
    assert choose(slow / factor).place <= choose(slow).place


def test_the_whole_demo_is_named_without_excuses() -> None:
    choice = choose(180 / LADDER[0].passes)
    assert choice.sentence == (
        "the demo: 5 seeds, 70 texts a client, adapters in the top 4 blocks, about 3.0 min"
    )
    assert choice.job.name == "opinions"


def test_a_smaller_rung_says_what_the_whole_would_have_taken() -> None:
    choice = choose(1800 / LADDER[0].passes)
    assert choice.place > 1
    assert choice.sentence.startswith(f"a smaller demo, rung {choice.place} of {len(LADDER)}: ")
    assert choice.rung.about in choice.sentence
    assert f"the whole one ({LADDER[0].about}) would take about 30 min here" in choice.sentence
    assert "smallest" not in choice.sentence
    assert choice.job.name == f"opinions-rung-{choice.place}"
    assert choice.job.clients.examples == choice.rung.texts
    assert choice.job.clients.test_examples == choice.rung.tests
    assert choice.job.logits.public == choice.rung.public
    assert choice.job.train.epochs == choice.rung.epochs
    assert choice.job.adapter.blocks == f"top:{choice.rung.blocks}"


def test_where_none_fits_the_smallest_is_taken_with_a_warning() -> None:
    choice = choose(900 / LADDER[-1].passes)
    assert choice.rung == LADDER[-1]
    assert choice.sentence.endswith(
        "; this is the smallest, and more than the 7.5 min it is meant to take"
    )
    assert "about 15 min; by a timed" in choice.sentence


def test_a_pass_is_timed_after_one_step_to_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that a step moves by its padded tokens: then a pass takes the same in any batch."""
    now, sizes = [0.0], list[int]()

    class Step:
        def __init__(self, _: object, terms: Any, where: object, step: int, seed: int) -> None:  # noqa: ANN401 - a stand-in
            del where, seed
            self.tokens, self.first = terms[0].batch.ids.numel(), step == 0

        def run(self) -> None:
            sizes.append(self.tokens)
            blocks = small.DEPTH + demo.BACK * 2  # forward all, back those with adapters
            now[0] += 1000.0 if self.first else self.tokens * blocks * 3e-6

    model, rows = small.save_model(tmp_path / "model"), small.save_rows(tmp_path / "rows.csv", 120)
    job = small.job(model, rows)
    top = job.adapter.model_copy(update={"blocks": "top:2"})
    few = job.train.model_copy(update={"batch": 2})
    monkeypatch.setattr(demo, "TrainStep", Step)
    monkeypatch.setattr(demo.time, "perf_counter", lambda: now[0])
    job = job.model_copy(update={"adapter": top, "train": few})
    assert demo.timed(lambda _: None, job) == pytest.approx(3e-6)
    assert len(sizes) == demo.STEPS + 1
    assert len(set(sizes)) > 1, "batches of several sizes"


def test_a_step_of_a_small_model_is_timed_for_real(tmp_path: Path) -> None:
    model, rows = small.save_model(tmp_path / "model"), small.save_rows(tmp_path / "rows.csv", 120)
    assert 0 < demo.timed(lambda _: None, small.job(model, rows)) < 1
