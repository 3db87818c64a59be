"""Of a thousand draws, how many intervals hold the truth, and how many claims mislead."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from triskel.statistics.outcomes import Figure, Outcomes
from triskel.statistics.significance import difference, mean_of

EFFECTS = {"none": 0.0, "small": 0.5, "ruling": 3.0}


def models(
    kind: str, shape: tuple[int, int, int], *, shared: bool, effect: str, seed: int
) -> tuple[NDArray[np.float64], float, float]:
    """Return what two models get right or lose, `(2, draws, runs, texts)`, true gap and mean."""
    rng = np.random.default_rng([seed, *shape, shared, *f"{kind} {effect}".encode()])
    draws, runs, texts = shape
    once = (draws, 1 if shared else runs, texts)
    slant = rng.standard_normal((2, *once), dtype=np.float32) * np.float32(0.5)
    hard = rng.standard_normal(once, dtype=np.float32) + slant
    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    moved = rng.uniform(-1, 1, size=(2, draws, runs, 1)).astype(np.float32)
    if kind == "loss":
        whole = np.exp(0.25 * 1.25 / 2 + 0.09 / 2)
        sd = whole * np.sqrt((np.exp(0.25 * 1.25 + 0.09) - 1) / texts) * EFFECTS[effect]
        factor = np.array([1, 1.1]).reshape(2, 1, 1, 1).astype(np.float32)
        loss = factor * np.exp(0.5 * hard + 0.3 * noise) + np.float32(sd * np.sqrt(3)) * moved
        return loss.astype(float), -0.1 * whole, whole
    best = float(kind)
    rates = np.array([best, best - 0.05]).reshape(2, 1, 1, 1)
    reach = min(EFFECTS[effect] * np.sqrt(3 * best * (1 - best) / texts), 1 - best)
    limit = special.ndtri(rates + reach * moved) * np.sqrt(1.25 + 0.49)
    return (hard + 0.7 * noise < limit.astype(np.float32)).astype(float), 0.05, best


def records(values: NDArray[np.float64], figure: Figure, *, shared: bool) -> list[Outcomes]:
    texts = values.shape[1]
    zero, one = np.zeros(texts), np.ones(texts)
    return [
        Outcomes(
            texts=np.arange(texts) + (0 if shared else run * texts),
            right=row if figure == "accuracy" else zero,
            loss=row if figure == "loss" else zero,
            scored=one,
        )
        for run, row in enumerate(values)
    ]


def restated(gaps: NDArray[np.float64], *, shared: bool) -> NDArray[np.float64]:
    """Return half-widths by mean squares, for many draws of `(runs, texts)` at once."""
    _, runs, texts = gaps.shape
    by_run = gaps.mean(2, keepdims=True)
    within = ((gaps - by_run) ** 2).sum((1, 2))
    of_runs = texts * by_run.var(1, ddof=1).ravel()
    size = runs * texts
    if shared:
        of_texts = runs * gaps.mean(1).var(1, ddof=1)
        rest = (within - of_texts * (texts - 1)) / ((runs - 1) * (texts - 1))
        both = np.maximum(of_texts - rest, 0) / size
        alone = of_texts / size
    else:
        both, alone = np.zeros(len(gaps)), within / (size * (size - 1))
    if np.isin(gaps, (-1, 0, 1)).all():
        alone = alone + 2 / (texts if shared else size) ** 2
    own = of_runs / size
    whole = np.maximum(own + both, 1e-300)
    z, few, many = stats.norm.isf(0.025), *stats.t.isf(0.025, [runs - 1, texts - 1])
    factor = z + (own / whole) ** 2 * (few - z) + (both / whole) ** 2 * (many - z)
    return np.maximum(factor * np.sqrt(whole), np.sqrt(alone))


DRAWS = {3: 2500, 5: 1500, 10: 1000}
"""At least 1,000; with few runs a draw is cheap, and more tell more."""

CASES = [
    (kind, runs, texts, "shared" if shared else "own", effect)
    for kind, runs, texts, shared, effect in itertools.product(
        ("0.6", "0.9", "loss"), DRAWS, (50, 400), (True, False), EFFECTS
    )
    if runs * texts < 4000 or effect == "small"
]


@pytest.mark.parametrize(("kind", "runs", "texts", "whose", "effect"), CASES)
def test_intervals_hold_a_known_difference_of_several_runs(
    kind: str, runs: int, texts: int, whose: str, effect: str
) -> None:
    shared = whose == "shared"
    values, gap, _ = models(kind, (DRAWS[runs], runs, texts), shared=shared, effect=effect, seed=1)
    gaps = values[0] - values[1]
    half = restated(gaps, shared=shared)
    inside = (np.abs(gaps.mean((1, 2)) - gap) <= half).mean()
    assert inside >= 0.92
    if effect != "ruling" and runs < 10:
        assert 0.93 <= inside <= 0.97
    figure: Figure = "loss" if kind == "loss" else "accuracy"
    for draw in range(20):  # the module says what its restatement says
        left, right = (records(side[draw], figure, shared=shared) for side in values)
        found = difference(left, right, figure)
        low, high = (gaps[draw].mean() + sign * half[draw] for sign in (-1, 1))
        if found.p < 0.05 or low <= 0 <= high:
            limit = 1 if figure == "accuracy" else np.inf
            wanted = (max(low, -limit), min(high, limit))
            assert (found.low, found.high) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("texts", [200, 1000])
@pytest.mark.parametrize("kind", ["0.6", "0.9", "loss"])
def test_intervals_hold_a_known_difference_of_one_run(kind: str, texts: int) -> None:
    values, gap, _ = models(kind, (2000, 1, texts), shared=True, effect="none", seed=1)
    gaps = (values[0] - values[1])[:, 0]
    figure: Figure = "loss" if kind == "loss" else "accuracy"
    if figure == "loss":
        middle = gaps.mean(1)
        half = stats.t.isf(0.025, texts - 1) * stats.sem(gaps, axis=1)
    else:
        won, lost = (((gaps == sign).sum(1) + 1) / (texts + 2) for sign in (1, -1))
        middle = won - lost
        half = stats.norm.isf(0.025) * np.sqrt((won + lost - middle**2) / (texts + 2))
    assert 0.93 <= (np.abs(middle - gap) <= half).mean() <= 0.97
    for draw in range(20):
        left, right = (records(side[draw], figure, shared=True) for side in values)
        found = difference(left, right, figure)
        if found.p < 0.05:
            wanted = (middle[draw] - half[draw], middle[draw] + half[draw])
            assert (found.low, found.high) == pytest.approx(wanted)


@pytest.mark.parametrize(("runs", "texts"), [(1, 200), (5, 50)])
@pytest.mark.parametrize("kind", ["0.9", "loss"])
def test_intervals_hold_a_known_mean(kind: str, runs: int, texts: int) -> None:
    shape = (1000, runs, texts)
    values, _, mean = models(kind, shape, shared=True, effect="none", seed=3)
    figure: Figure = "loss" if kind == "loss" else "accuracy"
    found = [mean_of(records(side, figure, shared=True), figure) for side in values[0]]
    assert 920 <= sum(one.low <= mean <= one.high for one in found) <= 975


@pytest.mark.parametrize("rate", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("tie", [0.0, 0.5, 0.9])
def test_a_claim_where_there_is_nothing_is_made_in_at_most_five_percent(
    rate: float, tie: float
) -> None:
    rng = np.random.default_rng(0)
    for texts in (10, 20, 50, 100, 300, 1000):
        copied = rng.random((2000, texts)) < tie
        left, own = rng.random((2, 2000, texts)) < rate
        right = np.where(copied, left, own)
        won, lost = (left & ~right).sum(1), (right & ~left).sum(1)
        tail = stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5)
        claims = 2 * tail < 0.05
        assert claims.mean() <= 0.05
        for draw in [*np.flatnonzero(claims)[:5], *np.flatnonzero(~claims)[:5]]:
            sides = [
                records(x[draw : draw + 1].astype(float), "accuracy", shared=True)
                for x in (left, right)
            ]
            assert difference(*sides, "accuracy").beyond == claims[draw]


@pytest.mark.parametrize("texts", [10, 50])
@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("whose", ["shared", "own"])
def test_claims_of_several_runs_keep_their_level(runs: int, texts: int, whose: str) -> None:
    rng = np.random.default_rng(1)
    shape, shared = (2000, runs, texts), whose == "shared"
    hard = rng.normal(size=(2000, 1 if shared else runs, texts))
    loss = np.exp(0.9 * hard + 0.4 * rng.normal(size=(2, *shape)))
    right = (hard + rng.normal(size=(2, *shape)) < 1.8).astype(float)
    for values in (loss, right):
        gaps = values[0] - values[1]
        claims = np.abs(gaps.mean((1, 2))) > restated(gaps, shared=shared)
        assert claims.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_claims_of_ten_losses_keep_their_level() -> None:
    rng = np.random.default_rng(2)
    hard, noise = rng.normal(size=(1000, 10)), rng.normal(size=(2, 1000, 10))
    loss = np.exp(0.9 * hard + 0.4 * noise)[:, :, None]
    claims = [
        difference(*(records(x[i], "loss", shared=True) for x in loss), "loss").beyond
        for i in range(1000)
    ]
    assert sum(claims) <= 50
