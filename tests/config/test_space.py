"""Settings drawn out of ranges: within them, all different, a function of the seed."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskel.config.grid import settings_of
from triskel.config.ranges import Range, range_of
from triskel.config.read import load
from triskel.config.space import Sampler, Sampling, sampled
from triskel.errors import JobError

RANGES = ["train.lr=log:1e-4..1e-2", "adapter.rank=2..32", "adapter.kind=lora,dora"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1e-4..1e-2", Range(1e-4, 1e-2)),
        ("log:1e-4..1e-2", Range(1e-4, 1e-2, log=True)),
        ("2..32", Range(2, 32, whole=True)),
        (" log:2..32 ", Range(2, 32, log=True, whole=True)),
        ("0.0..1", Range(0, 1)),
        ("-3..-1", Range(-3, -1, whole=True)),
        ("../rows.csv", None),
        ("a..b", None),
        ("2-32", None),
        ("1..", None),
        ("log:3", None),
    ],
)
def test_a_range_is_two_numbers_with_dots_between(text: str, wanted: Range | None) -> None:
    assert range_of(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("3..2", "must go from less to more"),
        ("2..2", "must go from less to more"),
        ("log:0..1", "must begin above 0"),
        ("log:-1..1", "must begin above 0"),
    ],
)
def test_a_range_that_holds_nothing_is_refused(text: str, why: str) -> None:
    with pytest.raises(JobError, match=why):
        range_of(text)


@given(st.floats(0, 1, exclude_max=True))
def test_a_draw_lies_within_its_range_and_has_three_digits(share: float) -> None:
    real, log = Range(1.0004e-4, 0.0123456), Range(1.0004e-4, 0.0123456, log=True)
    for kind in (real, log):
        value = float(kind.text(kind.at(share)))
        assert kind.low <= value <= kind.high
        assert value in {float(f"{value:.3g}"), kind.low, kind.high}
    assert float(log.text(log.at(share))) == pytest.approx(
        math.exp(math.log(log.low) + share * math.log(log.high / log.low)), rel=6e-3
    )
    whole = Range(2, 5, whole=True)
    assert whole.text(whole.at(share)) in {"2", "3", "4", "5"}


def test_whole_numbers_are_equally_likely_the_ends_too() -> None:
    source, kind = random.Random(0), Range(2, 5, whole=True)  # noqa: S311 - repeatable
    counts = Counter(kind.text(kind.at(source.random())) for _ in range(4000))
    assert all(900 < counts[end] < 1100 for end in "2345")


def test_settings_are_drawn_by_seed_and_no_two_are_alike() -> None:
    job, several, how = sampled(None, [*RANGES, "rounds=2"], 20, Sampler.RANDOM)
    assert (job, job.rounds) == (load(None, ["rounds=2"]), 2)
    assert len({one.name for one in several}) == len({repr(one.set) for one in several}) == 20
    for one in several:
        assert 1e-4 <= one.job.train.lr <= 1e-2
        assert 2 <= one.job.adapter.rank <= 32
        assert set(one.set) == {"train.lr", "adapter.rank", "adapter.kind"}
        assert one.job == load(None, ["rounds=2", *(f"{k}={v}" for k, v in one.set.items())])
    assert sum(one.job.train.lr < 1e-3 for one in several) in range(5, 16), "by the logarithm"
    assert sampled(None, [*RANGES, "rounds=2"], 20, Sampler.RANDOM)[1] == several
    other = sampled(None, [*RANGES, "seed=1"], 20, Sampler.RANDOM)[1]
    assert {one.name for one in other}.isdisjoint(one.name for one in several)
    assert how.seed == 0


def test_more_samples_begin_with_the_same_ones() -> None:
    few, many = (sampled(None, RANGES, count, Sampler.RANDOM)[1] for count in (3, 6))
    assert many[:3] == few


def test_a_setting_of_its_own_is_that_of_the_list_with_paths_where_the_job_lies(
    tmp_path: Path,
) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        '[data]\nsource = "csv"\ntrain = "rows.csv"\ntext = "a"\nlabel = "b"\n', encoding="utf-8"
    )
    job, several, how = sampled(file, ["data.train=one.csv,two.csv"], 2, Sampler.TPE)
    draws = how.draws()
    again = [how.setting(job, draws[i], several[:i]) for i in range(2)]
    assert again == list(several)
    assert again[0].job.data.train.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("given_", "samples", "why"),
    [
        (["adapter.rank=2,4"], 3, "--samples 3 asks for more settings than the 2 that were found"),
        (["adapter.rank=2..4"], 4, "asks for more settings than the 3"),
        (["rounds=2"], 4, "nothing to draw from; give --set SECTION.KEY=LOW..HIGH"),
        (["train.lr=1e-4..1e-2,5"], 4, "give one range or a list of values, not both"),
        (["train.lr=-1.0..1.0"], 4, "train.lr"),
        (["adapter.rank=0..4"], 2, "adapter.rank"),
        (["train.lrr=1..2"], 2, "unknown key 'train.lrr'; did you mean 'lr'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given_: list[str], samples: int, why: str) -> None:
    with pytest.raises(JobError, match=why):
        sampled(None, given_, samples, Sampler.RANDOM)


def test_a_range_without_a_number_of_samples_says_what_to_give() -> None:
    with pytest.raises(JobError, match=r"--set train.lr gives a range; .*--samples 16"):
        settings_of(None, ["train.lr=1e-4..1e-2"])


def test_a_setting_whose_name_is_taken_gets_another() -> None:
    job, _, how = sampled(None, ['name="a b","a-b"'], 2, Sampler.TPE)
    first = how.setting(job, how.draws()[0], ())
    second = how.setting(job, how.draws()[1], [first])
    assert first.name != second.name
    assert first.set != second.set


def test_a_list_of_brackets_may_be_drawn_from() -> None:
    how = Sampling(sampler=Sampler.RANDOM, samples=2, seed=3, space={"split.cut": "[4,28],[10,25]"})
    assert sorted(one["split.cut"] for one in how.draws()) == ["[10,25]", "[4,28]"]
