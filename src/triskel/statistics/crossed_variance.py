"""The variance of a mean over runs (seeds) and texts that cross, and its bounds.

In run r text t adds vᵣₜ to a figure and wᵣₜ to what it is divided by. With Wᵣ = Σₜ wᵣₜ, R runs and
n distinct texts:

    θᵣ = Σₜ vᵣₜ / Wᵣ      θ = mean of θᵣ      eᵣₜ = (vᵣₜ - θᵣ wᵣₜ) / (R Wᵣ)
    runs   = variance of θᵣ / R                               R - 1 degrees of freedom
    texts  = n/(n-1) Σₜ (Σᵣ eᵣₜ)²                             what texts alone explain
    common = R/(R-1) (texts - n/(n-1) Σᵣₜ eᵣₜ²),  at least 0  the same text in several runs
    Var θ  = runs + common

`runs` is the variance as if no text were met twice, `common` the mean covariance of two runs, so
together they cluster both ways, by seeds and by texts (Cameron, Gelbach and Miller 2011, section
2.1), with residuals linearised for a ratio; runs may share all texts, some or none. All shared, it
is the crossed random-effects model by its mean squares. One run knows nothing of seeds: Var θ =
texts, with n - 1 degrees of freedom.

Few seeds know `runs` badly, many texts know `common` well. With shares λ of the variance, normal
quantile z and Student's t of either's degrees of freedom the quantile is z + Σ λ² (t - z): the
first order of Welch (1947), with the exact t in place of its own first order, so Student's where
one share is all. With three seeds Satterthwaite's one degree of freedom holds less than 95 %, and
weights λ (Cochran and Cox) hold more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from scipy import optimize, special, stats

LEVEL = 0.05
"""Share of draws in which an interval may miss, or a test may claim what is not there."""

LEAST = 1e-200
"""The least p that is told from 0."""

Columns: TypeAlias = tuple[
    Int64[np.ndarray, " _"], Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]
]
"""Texts, v and w of one run; runs differ in length."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over runs and texts, and where its variance comes from.

    Attributes:
        mean: θ.
        between: `runs` of the header; 0 with one run.
        common: `common` of the header; with one run, `texts`.
        texts: `texts` of the header.
        runs: R.
        distinct: n.
        free_between: Degrees of freedom of `between`; infinite with one run.
        free_common: Degrees of freedom of `common`: texts met twice or more, less 1.
    """

    mean: float
    between: float
    common: float
    texts: float
    runs: int
    distinct: int
    free_between: float
    free_common: float

    @property
    def blind(self) -> bool:
        """Whether a single text of a single run leaves the variance unknown."""
        return self.runs == 1 and self.distinct == 1

    def quantile(self, p: float) -> float:
        """Return the two-sided quantile of the header, in standard errors."""
        normal = -float(special.ndtri(p / 2))
        whole = self.between + self.common
        if whole == 0:
            return -float(special.stdtrit(self.free_between, p / 2))
        parts = ((self.between, self.free_between), (self.common, self.free_common))
        return normal + sum(
            (part / whole) ** 2 * (-float(special.stdtrit(free, p / 2)) - normal)
            for part, free in parts
            if part
        )

    def error(self, extra: float = 0.0) -> float:
        """Return the standard error to multiply `quantile` with.

        Several runs: large enough for a half-width of one standard error of the texts alone, lest
        three runs that happen to agree look sure.

        Args:
            extra: Added to the variance of the texts alone, for outcomes too even to show any.
        """
        if self.blind:
            return math.inf
        found = math.sqrt(self.between + self.common)
        if self.runs == 1:
            return found
        return max(found, math.sqrt(self.texts + extra) / self.quantile(LEVEL))

    def p(self, extra: float = 0.0) -> float:
        """Return the two-sided p of a mean of 0, the level at which an interval ends there."""
        error = self.error(extra)
        if self.mean == 0 or math.isinf(error):
            return 1.0
        if error == 0:
            return 0.0
        reached = abs(self.mean) / error
        normal, of_runs, of_texts = (
            2 * float(special.stdtr(free, -reached))
            for free in (math.inf, self.free_between, self.free_common)
        )
        if self.runs == 1 or self.common == 0:
            return of_texts if self.runs == 1 else of_runs
        return self._solved(reached, max(normal, LEAST), max(of_runs, of_texts))

    def _solved(self, reached: float, low: float, high: float) -> float:
        """Return the p between two whose quantile is reached."""

        def gap(log_p: float) -> float:
            return self.quantile(math.exp(log_p)) - reached

        if high <= low:
            return low
        ends = math.log(low), math.log(high)
        if gap(ends[0]) <= 0:
            return low
        if gap(ends[1]) >= 0:
            return high
        root: Any = optimize.brentq(gap, *ends, xtol=1e-11)
        return math.exp(root)


def spread(columns: Sequence[Columns]) -> Spread:
    """Return the mean of runs, and its variance; a text is at most once in a run."""
    known, text = np.unique(np.concatenate([one[0] for one in columns]), return_inverse=True)
    value = np.concatenate([one[1] for one in columns])
    weight = np.concatenate([one[2] for one in columns])
    runs, distinct = len(columns), len(known)
    run = np.repeat(np.arange(runs), [len(one[0]) for one in columns])
    wholes = np.bincount(run, weight)
    means = np.bincount(run, value) / wholes
    residual = (value - means[run] * weight) / (runs * wholes[run])
    unbiased = distinct / (distinct - 1) if distinct > 1 else 0.0
    texts = unbiased * float((np.bincount(text, residual) ** 2).sum())
    twice = texts - unbiased * float((residual**2).sum())
    common = max(0.0, twice * runs / (runs - 1)) if runs > 1 else texts
    again = int((np.bincount(text) > 1).sum())
    alone = runs == 1
    return Spread(
        mean=math.fsum(means) / runs,
        between=0.0 if alone else float(means.var(ddof=1)) / runs,
        common=common,
        texts=texts,
        runs=runs,
        distinct=distinct,
        free_between=math.inf if alone else runs - 1,
        free_common=max(1, (distinct if alone else again) - 1),
    )


def plain(found: Spread, extra: float = 0.0) -> tuple[float, float]:
    """Return bounds as far below a mean as above."""
    half = found.quantile(LEVEL) * found.error(extra)
    return found.mean - half, found.mean + half


def of_share(found: Spread) -> tuple[float, float]:
    """Return bounds of a share between 0 and 1.

    Wilson's interval (1927) of as many independent predictions as give Var θ (Franco et al. 2019).
    Where all are right, or none, nothing shows how runs differ: Wilson's of the distinct texts.
    """
    mean, n = found.mean, found.distinct
    if mean in {0.0, 1.0}:
        return of_count(round(mean) * n, n)
    if found.blind:
        return 0.0, 1.0
    z2 = found.quantile(LEVEL) ** 2
    part = z2 * found.error() ** 2 / (mean * (1 - mean))  # z² / n
    centre = (mean + part / 2) / (1 + part)
    half = math.sqrt(part * mean * (1 - mean) + part**2 / 4) / (1 + part)
    return max(0.0, centre - half), min(1.0, centre + half)


def of_count(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's bounds of a share, from n independent predictions."""
    bounds = stats.binomtest(right, n).proportion_ci(1 - LEVEL, method="wilson")
    return float(bounds.low), float(bounds.high)


def of_size(found: Spread) -> tuple[float, float]:
    """Return bounds of a mean that is above 0, on the log scale, where it is less skewed."""
    if found.blind:
        return 0.0, math.inf
    if found.mean <= 0:
        return plain(found)
    ratio = math.exp(found.quantile(LEVEL) * found.error() / found.mean)
    return found.mean / ratio, found.mean * ratio


def of_pairs(won: int, lost: int, n: int) -> tuple[float, float]:
    """Return bounds of the difference of two paired shares (Bonett and Price 2012).

    Args:
        won: Texts that only the left gets right.
        lost: Texts that only the right gets right.
        n: All texts.
    """
    left, right = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(special.ndtri(1 - LEVEL / 2)) * math.sqrt(
        (left + right - (left - right) ** 2) / (n + 2)
    )
    return max(-1.0, left - right - half), min(1.0, left - right + half)
