"""How often do the intervals of `significance` hold the truth, and its claims mislead?

Synthetic outcomes of two models with a known difference: `accuracy_*` of right or wrong texts,
`loss` log-normal over texts (deviation 0.5 of the logarithm; `loss_heavy` 0.9), `tokens` a share of
tokens in texts whose length goes with their difficulty. Both models find the same texts hard.
Seeds move a model by nothing, by half of one run's standard error (`small`) or by up to three
(`ruling`; less where an accuracy leaves no room); runs share their texts or each has its own.

`difference/...` and `mean/...`: share of draws whose 95 % interval holds the truth. `claims/...`:
share of draws that are called beyond chance although both models are alike. `other/...`: the same
intervals by bootstrap, for comparison. Low and high bound a share at 95 % for its number of draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import measure
import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from triskel.statistics.crossed_variance import of_count
from triskel.statistics.outcomes import Figure, Outcomes
from triskel.statistics.significance import difference, mean_of

Array: TypeAlias = NDArray[np.float64]
EFFECTS = {"none": 0.0, "small": 0.5, "ruling": 3.0}
GAP = 0.05
"""How much better the left model's accuracy is."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the grid."""

    kind: str
    seeds: int
    texts: int
    shared: bool = True
    effect: str = "none"
    alike: bool = False

    def __str__(self) -> str:
        """Name it as the figures do."""
        where = "shared" if self.shared else "own"
        return f"{self.kind}/{self.seeds}x{self.texts}/{where}/{self.effect}"


class Draw(NamedTuple):
    """Outcomes of two models, `(seeds, texts)` each, and what is true of them."""

    left: Array
    right: Array
    scored: Array
    gap: float
    mean: float


def draw(cell: Cell, rng: np.random.Generator) -> Draw:
    """Return one draw of a cell."""
    if cell.kind == "tokens":
        return _tokens(cell, rng)
    shape = (cell.seeds, cell.texts)
    once = (1 if cell.shared else cell.seeds, cell.texts)
    hard, slant = rng.normal(size=once), rng.normal(size=(2, *once))
    noise, seed = rng.normal(size=(2, *shape)), rng.uniform(-1, 1, size=(2, cell.seeds, 1))
    if cell.kind.startswith("accuracy"):
        best = float(cell.kind.rpartition("_")[2])
        rates = np.array([best, best - (0 if cell.alike else GAP)])
        sd = EFFECTS[cell.effect] * np.sqrt(best * (1 - best) / cell.texts)
        reach = min(sd * np.sqrt(3), 1 - best)
        limit = special.ndtri(np.clip(rates[:, None, None] + reach * seed, 0, 1)) * np.sqrt(1.74)
        left, right = (hard + 0.5 * slant + 0.7 * noise < limit).astype(float)
        return Draw(left, right, np.ones(shape), rates[0] - rates[1], best)
    skew = 0.9 if cell.kind == "loss_heavy" else 0.5
    factor = np.array([1.0, 1.0 if cell.alike else 1.1])[:, None, None]
    whole = np.exp(skew**2 / 2 + 0.09)
    sd = whole * np.sqrt((np.exp(skew**2 + 0.18) - 1) / cell.texts) * EFFECTS[cell.effect]
    loss = factor * np.exp(skew * hard + 0.3 * slant + 0.3 * noise) + sd * np.sqrt(3) * seed
    return Draw(loss[0], loss[1], np.ones(shape), whole * (1 - factor[1, 0, 0]), whole)


def _tokens(cell: Cell, rng: np.random.Generator) -> Draw:
    """Easy texts are long: a rate p of Beta(6, 4), 5 + Poisson(40 p) tokens."""
    rate = rng.beta(6, 4, size=(1 if cell.shared else cell.seeds, cell.texts))
    scored = np.broadcast_to(5.0 + rng.poisson(40 * rate), (cell.seeds, cell.texts))
    right = [rng.binomial(scored.astype(int), f * rate).astype(float) for f in (1.0, 0.95)]
    mean = (5 * 0.6 + 40 * (0.36 + 0.24 / 11)) / (5 + 40 * 0.6)
    return Draw(right[0], right[1], scored, 0.05 * mean, mean)


def outcomes(cell: Cell, values: Array, scored: Array) -> list[Outcomes]:
    """Return one record a run."""
    start = 0 if cell.shared else cell.texts
    zero = np.zeros(cell.texts)
    loss = cell.kind.startswith("loss")
    return [
        Outcomes(
            texts=np.arange(cell.texts) + run * start,
            right=zero if loss else values[run],
            loss=values[run] if loss else zero,
            scored=scored[run].copy(),
        )
        for run in range(cell.seeds)
    ]


def held(cell: Cell, draws: int, seed: int) -> dict[str, list[bool]]:
    """Return, draw by draw, whether intervals hold the truth and whether a claim is made."""
    figure: Figure = "loss" if cell.kind.startswith("loss") else "accuracy"
    rng = np.random.default_rng([seed, *str(cell).encode()])
    found: dict[str, list[bool]] = {"difference": [], "mean": [], "claims": []}
    for _ in range(draws):
        one = draw(cell, rng)
        left, right = (outcomes(cell, v, one.scored) for v in (one.left, one.right))
        gap = difference(left, right, figure)
        found["claims"].append(gap.beyond)
        if cell.alike:
            continue
        mean = mean_of(left, figure)
        found["difference"].append(gap.low <= one.gap <= gap.high)
        found["mean"].append(mean.low <= one.mean <= mean.high)
    return found


def other(cell: Cell, draws: int, seed: int) -> dict[str, list[bool]]:
    """Return the same of a difference, by bootstraps over texts, or over seeds and texts."""
    rng = np.random.default_rng([seed, *str(cell).encode()])
    found: dict[str, list[bool]] = {}
    for _ in range(draws):
        one = draw(cell, rng)
        gaps = one.left - one.right
        for name, (low, high) in _bootstraps(gaps, rng, shared=cell.shared):
            found.setdefault(name, []).append(bool(low <= one.gap <= high))
    return found


def _bootstraps(
    gaps: Array, rng: np.random.Generator, *, shared: bool
) -> Iterator[tuple[str, tuple[float, float]]]:
    if len(gaps) == 1:
        for method in ("percentile", "BCa"):
            found = stats.bootstrap(
                gaps, np.mean, n_resamples=999, method=method, rng=rng, vectorized=True
            )
            yield method, found.confidence_interval
        return
    runs, texts = gaps.shape
    picked = rng.integers(0, runs, size=(499, runs))
    within = rng.integers(0, texts, size=(499, 1 if shared else runs, texts))
    means = gaps[picked[:, :, None], within].mean((1, 2))
    yield "hierarchical", tuple(np.quantile(means, [0.025, 0.975]))


def grid() -> list[Cell]:
    """Return the places where intervals are asked for."""
    kinds = ("accuracy_0.6", "accuracy_0.9", "loss", "loss_heavy")
    single = [Cell(kind=k, seeds=1, texts=n) for k in kinds for n in (10, 50, 200, 1000)]
    several = [
        Cell(kind=k, seeds=s, texts=n, shared=w, effect=e)
        for k in kinds
        for s in (3, 5, 10)
        for n in (50, 400)
        for w in (True, False)
        for e in EFFECTS
        if s * n < 4000 or (k, e) == ("loss", "small")
        if n < 400 or k != "loss_heavy"
    ]
    tokens = [
        Cell(kind="tokens", seeds=s, texts=n, shared=w)
        for s, w in ((1, True), (3, True), (3, False), (5, True), (5, False))
        for n in (50, 400)
    ]
    return [*single, *several, *tokens]


def alike() -> list[Cell]:
    """Return the places where any claim is wrong."""
    rates = (0.5, 0.7, 0.9, 0.95, 0.99)
    kinds = [*(f"accuracy_{rate}" for rate in rates), "loss_heavy"]
    return [
        Cell(kind=k, seeds=s, texts=n, shared=w, alike=True)
        for k in kinds
        for s, n, w in (
            *((1, n, True) for n in (10, 20, 50, 100, 300, 1000)),
            *((s, n, w) for s in (3, 5) for n in (10, 50) for w in (True, False)),
        )
    ]


def main() -> None:
    """Answer the question."""
    chosen = measure.arguments(__doc__ or "").parse_args()
    draws = 120 if chosen.quick else 1000
    found: dict[str, list[bool]] = {}
    for cell in grid():
        each = held(cell, draws, chosen.seed)
        found |= {f"{name}/{cell}": each[name] for name in ("difference", "mean")}
    for cell in alike():
        found[f"claims/{cell}"] = held(cell, draws, chosen.seed)["claims"]
    for cell in (
        *(Cell(kind="loss_heavy", seeds=1, texts=n) for n in (10, 50)),
        *(Cell(kind="loss", seeds=s, texts=50, effect=e) for s in (3, 5) for e in EFFECTS),
    ):
        each = other(cell, draws, chosen.seed)
        found |= {f"other/{name}/{cell}": hits for name, hits in each.items()}
    figures: dict[str, dict[str, float]] = {}
    for name, hits in found.items():
        low, high = of_count(sum(hits), len(hits))
        figures[name] = {"median": sum(hits) / len(hits), "low": low, "high": high}
        print(f"{name:60} {figures[name]['median']:.3f} [{low:.3f}, {high:.3f}]")
    if chosen.out is not None:
        measure.keep("coverage", figures, seed=chosen.seed, out=chosen.out, draws=draws)


if __name__ == "__main__":
    main()
