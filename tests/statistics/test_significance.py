"""Figures, differences and claims, against exact fractions and the analysis of variance."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from triskel.errors import DataError
from triskel.statistics.crossed_variance import Spread, spread
from triskel.statistics.outcomes import Figure, Outcomes
from triskel.statistics.significance import (
    Difference,
    difference,
    difference_if_kept,
    holm,
    judged,
    mean_of,
)

FIGURES: tuple[Figure, Figure] = ("accuracy", "loss")


def record(
    right: ArrayLike, loss: ArrayLike = 1.0, scored: ArrayLike = 1.0, first: int = 0
) -> Outcomes:
    rights = np.asarray(right, dtype=np.float64)
    return Outcomes(
        texts=np.arange(len(rights)) + first,
        right=rights,
        loss=np.broadcast_to(np.asarray(loss, dtype=np.float64), rights.shape).copy(),
        scored=np.broadcast_to(np.asarray(scored, dtype=np.float64), rights.shape).copy(),
    )


def pairs(won: int, lost: int, both: int) -> tuple[Outcomes, Outcomes]:
    left = [1] * won + [0] * lost + [1] * both
    return record(left), record([0] * won + [1] * lost + [1] * both)


def random_runs(seed: int, runs: int = 4, texts: int = 30) -> list[Outcomes]:
    rng = np.random.default_rng(seed)
    return [
        record(rng.random(texts) < 0.7, rng.lognormal(size=texts), first=0) for _ in range(runs)
    ]


def shuffled(one: Outcomes, order: NDArray[np.int64]) -> Outcomes:
    return Outcomes(
        texts=one.texts[order],
        right=one.right[order],
        loss=one.loss[order],
        scored=one.scored[order],
    )


def close(one: Difference, other: Difference, sign: int = 1) -> None:
    bounds = (one.low, one.high) if sign > 0 else (-one.high, -one.low)
    assert (sign * one.mean, *bounds, one.p) == pytest.approx(
        (other.mean, other.low, other.high, other.p), rel=1e-9, abs=1e-12
    )
    assert (one.n, one.beyond) == (other.n, other.beyond)


@settings(deadline=None)
@given(won=st.integers(0, 60), lost=st.integers(0, 60), both=st.integers(1, 5))
def test_one_run_of_right_or_wrong_is_tested_by_mcnemar_in_exact_fractions(
    won: int, lost: int, both: int
) -> None:
    left, right = pairs(won, lost, both)
    found = difference([left], [right], "accuracy")
    least, of = min(won, lost), won + lost
    tail = Fraction(sum(math.comb(of, k) for k in range(least + 1)), 2**of)
    wanted = float(min(Fraction(1), 2 * tail))
    assert found.p == pytest.approx(wanted, rel=1e-9)
    assert found.mean == pytest.approx((won - lost) / (of + both), abs=1e-12)
    assert found.beyond == (wanted < 0.05)
    assert (found.low <= 0 <= found.high) == (not found.beyond)


def test_95_against_100_percent_of_20_texts_is_no_difference() -> None:
    left, right = pairs(1, 0, 19)
    found = difference([left], [right], "accuracy")
    assert found.mean == pytest.approx(0.05)
    assert found.p == 1
    assert not found.beyond


def test_the_interval_of_a_paired_share_is_bonett_and_prices() -> None:
    left, right = pairs(30, 10, 160)
    found = difference([left], [right], "accuracy")
    p, q = 31 / 202, 11 / 202
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / 202)
    assert (found.low, found.high) == pytest.approx((p - q - half, p - q + half))


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("runs", [1, 3])
def test_a_model_does_not_differ_from_itself(figure: Figure, runs: int) -> None:
    same = random_runs(1, runs)
    found = difference(same, same, figure)
    assert (found.mean, found.p, found.beyond) == (0, 1, False)
    assert found.low <= 0 <= found.high
    if figure == "accuracy":  # Bonett and Price with nothing won and nothing lost of 30 texts
        half = 1.959963984540054 * math.sqrt(2 / 32) / math.sqrt(32)
        assert (found.low, found.high) == pytest.approx((-half, half))


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("runs", [1, 4])
def test_swapped_sides_negate_and_order_does_not_matter(figure: Figure, runs: int) -> None:
    left, right = random_runs(1, runs), random_runs(2, runs)
    found = difference(left, right, figure)
    close(difference(right, left, figure), found, sign=-1)
    rng = np.random.default_rng(3)
    turned = [shuffled(one, rng.permutation(30)) for one in reversed(left)]
    beside = [shuffled(one, rng.permutation(30)) for one in reversed(right)]
    close(difference(turned, beside, figure), found)
    mean, again = mean_of(left, figure), mean_of(turned, figure)
    assert (mean.mean, mean.low, mean.high) == pytest.approx((again.mean, again.low, again.high))


@pytest.mark.parametrize("seed", range(4))
def test_shared_texts_have_the_variance_of_the_analysis_of_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs, texts = 4, 30
    y = (
        0.5 * rng.normal(size=(runs, 1))
        + rng.normal(size=(1, texts))
        + rng.normal(size=(runs, texts))
    )
    mean, by_run, by_text = y.mean(), y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    of_runs = texts * ((by_run - mean) ** 2).sum() / (runs - 1)
    of_texts = runs * ((by_text - mean) ** 2).sum() / (texts - 1)
    rest = ((y - by_run - by_text + mean) ** 2).sum() / ((runs - 1) * (texts - 1))
    found = spread([(np.arange(texts), row, np.ones(texts)) for row in y])
    assert found.mean == pytest.approx(mean)
    assert found.between == pytest.approx(of_runs / (runs * texts))
    assert found.common == pytest.approx(max(0, of_texts - rest) / (runs * texts))
    assert (found.free_between, found.free_common) == (runs - 1, texts - 1)


def test_runs_that_share_some_texts_have_the_variance_of_their_mean() -> None:
    rng = np.random.default_rng(4)
    texts = np.array([np.arange(20), np.arange(8, 28), np.arange(16, 36)])
    means, variances = np.empty(2000), np.empty(2000)
    for draw in range(2000):
        seeds, hard = 0.2 * rng.normal(size=3), rng.normal(size=36)
        values = seeds[:, None] + hard[texts] + 0.3 * rng.normal(size=(3, 20))
        found = spread([(t, v, np.ones(20)) for t, v in zip(texts, values, strict=True)])
        means[draw], variances[draw] = found.mean, found.between + found.common
    assert found.free_common == 12 + 12 - 4 - 1
    assert variances.mean() == pytest.approx(means.var(), rel=0.08)


def test_runs_of_different_texts_are_a_t_test_of_their_means() -> None:
    rng = np.random.default_rng(5)
    gaps = rng.normal(0.5, 1, size=(5, 40))
    left = [record(np.zeros(40), loss=3 + row, first=40 * i) for i, row in enumerate(gaps)]
    right = [record(np.zeros(40), loss=3.0, first=40 * i) for i in range(5)]
    found = difference(left, right, "loss")
    wanted = stats.ttest_1samp(gaps.mean(1), 0)
    bounds = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(float(wanted.pvalue))
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))


def test_losses_of_one_run_are_a_t_test_over_texts() -> None:
    rng = np.random.default_rng(6)
    one, other = rng.lognormal(size=(2, 25))
    found = difference([record(np.ones(25), one)], [record(np.ones(25), other)], "loss")
    wanted = stats.ttest_rel(one, other)
    bounds = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(float(wanted.pvalue))
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))


def test_a_share_of_tokens_has_the_linearised_variance_of_a_ratio() -> None:
    rng = np.random.default_rng(7)
    scored = rng.integers(5, 60, size=50).astype(float)
    one, other = (rng.binomial(scored.astype(int), p).astype(float) for p in (0.6, 0.5))
    found = difference([record(one, 1, scored)], [record(other, 1, scored)], "accuracy")
    ratio = (one - other).sum() / scored.sum()
    error = np.std(one - other - ratio * scored, ddof=1) * math.sqrt(50) / scored.sum()
    assert found.mean == pytest.approx(ratio)
    assert found.high - found.low == pytest.approx(2 * error * stats.t.ppf(0.975, 49))


@pytest.mark.parametrize("shift", [0.02, 0.1, 0.3, 3.0])
def test_p_is_the_level_at_which_the_interval_ends_at_0(shift: float) -> None:
    rng = np.random.default_rng(8)
    noise = 0.3 * rng.normal(size=(1, 30)) + 0.3 * rng.normal(size=(3, 30))
    left = [record(np.ones(30), row) for row in 2 + shift + noise + [[-0.05], [0], [0.06]]]
    right = [record(np.ones(30), 2.0)] * 3
    found = difference(left, right, "loss")
    columns = spread([(one.texts, one.loss - 2.0, one.scored) for one in left])
    shares = np.array([columns.between, columns.common])
    error, shares = math.sqrt(shares.sum()), shares / shares.sum()
    assert shares.min() > 0.1

    def quantile(p: float) -> float:
        z = stats.norm.isf(p / 2)
        return z + (shares**2 * (stats.t.isf(p / 2, [2, 29]) - z)).sum()

    wanted = optimize.bisect(lambda p: quantile(p) - abs(found.mean) / error, 1e-12, 1, xtol=1e-14)
    assert found.p == pytest.approx(max(wanted, 2.0**-29), rel=1e-6)
    assert found.high - found.low == pytest.approx(2 * quantile(0.05) * error)
    assert (found.low <= 0 <= found.high) == (found.p >= 0.05)


@pytest.mark.parametrize("runs", [1e-300, 1e-30, 1e-3, 1.0])
@pytest.mark.parametrize("common", [1e-300, 1e-30, 1e-3, 1.0])
@pytest.mark.parametrize("free", [2, 399])
def test_p_falls_with_the_mean_from_1_to_nearly_0(runs: float, common: float, free: int) -> None:
    def p(reached: float) -> float:
        mean = reached * math.sqrt(runs + common)
        return Spread(
            mean=mean,
            between=runs,
            common=common,
            texts=common,
            runs=free + 1,
            distinct=400,
            free_between=free,
            free_common=399,
        ).p()

    found = [p(reached) for reached in (0, 1e-9, 0.5, 1, 2, 5, 50, 1e4)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1
    assert found[-1] < 1e-4
    if runs < 1e-20 * common or common < 1e-20 * runs:
        alone = stats.t(free if runs > common else 399)
        assert found[2:6] == pytest.approx([2 * alone.sf(x) for x in (0.5, 1, 2, 5)], rel=1e-6)


def test_one_token_right_of_several_is_not_right_or_wrong() -> None:
    assert record([1, 0, 1]).binary
    assert not record([1, 0, 1], scored=[3, 2, 1]).binary
    assert not record([0.5, 0, 1]).binary


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("runs", [1, 5])
def test_one_text_is_never_beyond_chance(figure: Figure, runs: int) -> None:
    left, right = [record([1], 0.1)] * runs, [record([0], 9.0)] * runs
    found = difference(left, right, figure)
    assert found.p == 1
    assert not found.beyond
    mean = mean_of(left, figure)
    assert mean.low <= mean.mean <= mean.high
    if runs == 1:
        assert mean.high > mean.low
        assert (found.low, found.high) == (-math.inf, math.inf) or figure == "accuracy"


def test_one_text_of_many_tokens_bounds_a_share_by_what_can_be() -> None:
    left, right = record([5], scored=10), record([2], scored=10)
    found, mean = difference([left], [right], "accuracy"), mean_of([left], "accuracy")
    assert (found.low, found.high, found.p) == (-1, 1, 1)
    assert (mean.low, mean.mean, mean.high) == (0, 0.5, 1)


def test_three_texts_that_all_differ_alike_are_not_beyond_chance() -> None:
    for figure in FIGURES:
        found = difference([record([1] * 3, 1.0)] * 3, [record([0] * 3, 2.0)] * 3, figure)
        assert found.p >= 0.25
        assert found.low <= 0 <= found.high


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("right", [0, 1])
def test_all_or_none_right_still_has_wilsons_width(runs: int, right: int) -> None:
    found = mean_of([record([right] * 20)] * runs, "accuracy")
    end = 1.959963984540054**2 / (20 + 1.959963984540054**2)
    assert found.mean == right
    assert (found.low, found.high) == pytest.approx((1 - end, 1) if right else (0, end))


def test_a_share_of_several_runs_solves_wilsons_equation() -> None:
    runs = random_runs(5, 4)
    found, of = mean_of(runs, "accuracy"), spread([(r.texts, r.right, r.scored) for r in runs])
    share, reach = of.mean, of.quantile(0.05) * of.error()
    worth = share * (1 - share) / reach**2
    for end in (found.low, found.high):
        assert (share - end) ** 2 == pytest.approx(end * (1 - end) / worth)


def test_three_runs_that_happen_to_agree_do_not_look_sure() -> None:
    rng = np.random.default_rng(9)
    alike = rng.normal(0.05, 1, size=40)
    left = [record(np.zeros(40), 5 + alike, first=40 * i) for i in range(3)]
    right = [record(np.zeros(40), 5.0, first=40 * i) for i in range(3)]
    found = difference(left, right, "loss")
    alone = np.std(np.tile(alike, 3)) * math.sqrt(120 / 119) / math.sqrt(120)
    assert found.high - found.low == pytest.approx(2 * alone)
    reached = found.mean / alone * stats.t.isf(0.025, 2)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(reached), 2))


def test_a_mean_of_losses_is_bounded_on_the_log_scale() -> None:
    loss = np.random.default_rng(1).lognormal(size=30)
    found = mean_of([record(np.ones(30), loss)], "loss")
    reach = stats.t.ppf(0.975, 29) * stats.sem(loss) / loss.mean()
    wanted = (loss.mean() * math.exp(-reach), loss.mean() * math.exp(reach))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert mean_of([record([1, 1], 0.0)], "loss").high == 0


def test_the_mean_is_the_mean_of_the_runs_own_figures() -> None:
    small, large = record([1, 0]), record([1, 1, 1, 0], first=2)
    found = mean_of([small, large], "accuracy")
    assert found.mean == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found.n == 2


def test_holm_lets_the_ith_stand_while_all_smaller_do() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.025, 0.025]) == [False, False]
    assert holm([0.0249, 0.049]) == [True, True]
    assert holm([]) == []
    for strange in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="between 0 and 1"):
            holm([0.5, strange])


def test_holm_claims_falsely_in_at_most_five_percent_of_families() -> None:
    rng = np.random.default_rng(0)
    some = np.mean([any(holm(list(rng.random(10)))) for _ in range(4000)])
    assert 0.04 < some < 0.055


def test_of_n_clients_only_what_holm_lets_stand_is_beyond_chance() -> None:
    sides = [pairs(8, 0, 2), *[pairs(7, 1, 2), pairs(6, 0, 4)] * 3]
    each = [difference([one], [other], "accuracy") for one, other in sides]
    assert [one.beyond for one in each] == [True, False, True, False, True, False, True]
    assert not any(one.beyond for one in judged(each))
    assert judged(each[:1]) == each[:1]
    assert judged([each[0], each[1]])[0].beyond


def test_without_every_runs_outcomes_nothing_is_claimed() -> None:
    runs = random_runs(1, 2)
    assert difference_if_kept([], [], "loss") is None
    assert difference_if_kept([None, None], runs, "loss") is None
    assert difference_if_kept(runs, [runs[0], None], "loss") is None
    others = random_runs(2, 2)
    assert difference_if_kept(runs, others, "loss") == difference(runs, others, "loss")


def test_unpaired_outcomes_are_refused() -> None:
    one = record([1, 0, 1])
    refused = [
        ([], [], "same runs"),
        ([one], [one, one], "same runs"),
        ([one], [record([1, 0, 1], first=1)], "same texts"),
        ([one], [record([1, 0])], "same texts"),
        ([one], [record([1, 0, 1], scored=[1, 2, 1])], "same tokens"),
    ]
    for left, right, words in refused:
        with pytest.raises(DataError, match=words):
            difference(left, right, "accuracy")
    with pytest.raises(DataError, match="at least one run"):
        mean_of([], "loss")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": [1.0, math.nan]}, "loss must be finite, got nan for text 1"),
        ({"right": [math.inf, 0.0]}, "right must be finite"),
        ({"texts": [4, 4]}, "got text 4 again"),
        ({"texts": [], "right": [], "loss": [], "scored": []}, "at least one text"),
        ({"loss": [1.0]}, r"one entry a text, got \[2, 2, 1, 2\]"),
        ({"scored": [0.0, 0.0]}, "not 0 for all"),
        ({"scored": [1.0, -1.0]}, "scored must be >= 0"),
        ({"right": [2.0, 0.0]}, "between 0 and scored"),
        ({"right": [-1.0, 0.0]}, "between 0 and scored"),
    ],
)
def test_outcomes_that_cannot_be_are_refused(change: dict[str, list[float]], words: str) -> None:
    parts = {"right": [1.0, 0.0], "loss": [1.0, 1.0], "scored": [1.0, 1.0], **change}
    texts = np.array(parts.pop("texts", [0, 1]), dtype=np.int64)
    with pytest.raises(DataError, match=words):
        Outcomes(texts=texts, **{k: np.array(v, dtype=np.float64) for k, v in parts.items()})
