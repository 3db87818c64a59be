"""Robust rules on products, against whole matrices in NumPy; and what rules on factors do wrong."""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from triskel.aggregate.build import aggregate_of
from triskel.aggregate.robust import distances, weiszfeld
from triskel.core.choice import Choice
from triskel.errors import RoundError
from triskel.types import ClientUpdate, Section

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
co = SimpleNamespace(**runpy.run_path(str(HELPERS / "cohorts.py")))

RANK, STEMS = co.RANK, tuple(co.SHAPES)
BEFORE = co.sections(99)
NAMES = "abcdefg"
EQUAL = [co.update(n, i, i + 1.0) for i, n in enumerate(NAMES)]
MIXED = [
    co.update(n, i, i + 1.0, rank=rank, scale=10 / rank)
    for i, (n, rank) in enumerate(zip(NAMES, (4, 1, 2, 4, 3, 2, 1), strict=True))
]
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")


def value(name: str, sent: Any, before: Any = BEFORE, **options: Any) -> Any:
    chosen = Choice.model_validate({"name": name, **options})
    return co.folded(aggregate_of(chosen), sent, before)


def points(sent: Any, before: Any = BEFORE) -> Any:
    """Each client's change as one long vector: whole products, then the head."""
    rows = []
    for one in sent:
        parts = [co.stands_for(one, before, s) - co.product(before["adapter"], s) for s in STEMS]
        head = one.sections["head"].tensors["score.weight"] - before["head"].tensors["score.weight"]
        rows.append(np.concatenate([*(part.ravel() for part in parts), head.numpy()]))
    return np.stack(rows)


def best(matrix: Any) -> Any:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vt[:RANK]


def holds(found: Any, moved: Any, before: Any = BEFORE) -> None:
    """The value is what was before plus this change, its matrices the nearest of their rank."""
    start = 0
    for stem in STEMS:
        count = int(np.prod(co.SHAPES[stem]))
        change = moved[start : start + count].reshape(co.SHAPES[stem])
        wanted = best(co.product(before["adapter"], stem) + change)
        assert co.apart(co.product(found["adapter"], stem), wanted) < 1e-5
        start += count
    head = before["head"].tensors["score.weight"].numpy() + moved[start:]
    np.testing.assert_allclose(found["head"].tensors["score.weight"].numpy(), head, atol=1e-6)


@pytest.mark.parametrize("sent", [EQUAL, MIXED, EQUAL[:4]], ids=["equal", "mixed", "even"])
def test_the_median_is_that_of_each_number_of_the_products(sent: Any) -> None:
    holds(value("median", sent), np.median(points(sent), axis=0))


@pytest.mark.parametrize("attackers", [0, 1, 3])
def test_the_trimmed_mean_leaves_out_so_many_at_both_ends(attackers: int) -> None:
    ordered = np.sort(points(MIXED), axis=0)[attackers : len(MIXED) - attackers]
    holds(value("trimmed_mean", MIXED, attackers=attackers), ordered.mean(0))


def krum_scores(rows: Any, attackers: int) -> Any:
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    near = len(rows) - attackers - 2
    return [np.sort(np.delete(apart[i], i))[:near].sum() for i in range(len(rows))]


@pytest.mark.parametrize("sent", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("attackers", [0, 1, 2])
def test_krum_takes_the_update_that_is_nearest_to_its_neighbours(attackers: int, sent: Any) -> None:
    rows = points(sent)
    scores = krum_scores(rows, attackers)
    chosen = int(np.argmin(scores))
    found = value("krum", sent, attackers=attackers)
    for stem in STEMS:
        wanted = co.stands_for(sent[chosen], BEFORE, stem)
        assert co.apart(co.product(found["adapter"], stem), wanted) < 1e-12
    several = np.argsort(scores, kind="stable")[: len(sent) - attackers - 2]
    holds(value("multi_krum", sent, attackers=attackers), rows[several].mean(0))


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    rows = points(MIXED)
    inner = torch.from_numpy(rows @ rows.T)
    weights = weiszfeld(distances(inner)).numpy()
    found = weights @ rows

    def far(x: Any) -> float:
        return float(np.linalg.norm(rows - x, axis=1).sum())

    least = minimize(far, rows.mean(0), method="L-BFGS-B").fun
    assert far(found) <= least * (1 + 1e-7)
    assert weights.sum() == pytest.approx(1)
    holds(value("geometric_median", MIXED), found)


@pytest.mark.parametrize("far", [1e2, 1e6, 1e10])
def test_no_single_point_moves_the_geometric_median_far(far: float) -> None:
    rows = points(EQUAL)
    spread = np.linalg.norm(rows - rows.mean(0), axis=1).max()
    lying = np.vstack([rows, rows[0] * far])
    weights = weiszfeld(distances(torch.from_numpy(lying @ lying.T))).numpy()
    assert np.linalg.norm(weights @ lying - rows.mean(0)) < 2 * spread


def test_points_that_coincide_are_their_geometric_median() -> None:
    rows = np.ones((4, 3))
    rows[3] = 900.0
    weights = weiszfeld(distances(torch.from_numpy(rows @ rows.T))).numpy()
    np.testing.assert_allclose(weights @ rows, np.ones(3), atol=1e-9)


@pytest.mark.parametrize("options", [{"multiple": 0.8}, {"norm": 2.5}, {"norm": 1e9}])
def test_clipping_bounds_the_length_of_each_change(options: Any) -> None:
    rows = points(MIXED)
    lengths = np.linalg.norm(rows, axis=1)
    bound = options.get("norm") or options["multiple"] * np.median(lengths)
    clipped = rows * np.minimum(1, bound / lengths)[:, None]
    holds(value("norm_clip", MIXED, **options), co.mean(clipped, [u.weight for u in MIXED]))


@pytest.mark.parametrize(
    ("name", "attackers", "least"), [("krum", 2, 7), ("multi_krum", 1, 5), ("trimmed_mean", 3, 7)]
)
def test_too_few_updates_for_so_many_attackers_are_refused(
    name: str, attackers: int, least: int
) -> None:
    value(name, EQUAL[:least], attackers=attackers)
    said = f"{name} with attackers = {attackers} needs the updates of {least} clients, and this"
    with pytest.raises(RoundError, match=f"{said} round has {least - 1}"):
        value(name, EQUAL[: least - 1], attackers=attackers)


def test_a_change_too_large_for_a_norm_is_refused() -> None:
    pair = {n: 1e200 * t for n, t in EQUAL[0].sections["adapter"].tensors.items()}
    sections = {**EQUAL[0].sections, "adapter": co.adapter(pair)}
    with pytest.raises(RoundError, match="too large for its norm to be a number"):
        value("krum", [replace(EQUAL[0], sections=sections), *EQUAL[1:]])


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_an_adapter_without_factors_is_taken_number_by_number(name: str) -> None:
    source = torch.Generator().manual_seed(1)
    rows = torch.randn(7, 5, generator=source, dtype=torch.float64)

    def sections(row: Any) -> Any:
        return {"adapter": Section(kind="dense", tensors={"q.ia3_l": row})}

    sent = [
        ClientUpdate(client=n, sections=sections(r), weight=1)
        for n, r in zip(NAMES, rows, strict=True)
    ]
    found = value(name, sent, sections(torch.ones(5).double()))["adapter"].tensors["q.ia3_l"]
    ordered = np.sort(rows.numpy(), axis=0)
    wanted = {
        "median": ordered[3],
        "trimmed_mean": ordered[1:-1].mean(0),
        "krum": rows[int(np.argmin(krum_scores(rows.numpy(), 1)))].numpy(),
    }
    np.testing.assert_allclose(found.numpy(), wanted[name], rtol=1e-12)


# --- factors are defined only up to an invertible matrix -----------------------------------------


def turned(one: Any, seed: int) -> Any:
    """The same client with (B Q, Q^-1 A): its model computes what it did."""
    source = np.random.default_rng(seed)
    pair = {}
    for stem in STEMS:
        q = source.normal(size=(RANK, RANK))
        held = one.sections["adapter"].tensors
        pair[f"{stem}.lora_A.weight"] = torch.from_numpy(
            np.linalg.solve(q, held[f"{stem}.lora_A.weight"].numpy())
        )
        pair[f"{stem}.lora_B.weight"] = torch.from_numpy(held[f"{stem}.lora_B.weight"].numpy() @ q)
    return replace(one, sections={**one.sections, "adapter": co.adapter(pair)})


@pytest.mark.parametrize("name", ROBUST)
def test_how_a_client_factors_its_product_makes_no_difference(name: str) -> None:
    found = value(name, EQUAL)
    again = value(name, [turned(one, i) for i, one in enumerate(EQUAL)])
    for stem in STEMS:
        wanted = co.product(found["adapter"], stem)
        assert co.apart(co.product(again["adapter"], stem), wanted) < 1e-5


def test_a_median_of_factors_takes_seven_equal_models_for_something_else() -> None:
    """Seven clients with one product, each factored in its own way: all agree, and A and B do not.

    The median of factors is a model that nobody has; that of products is everybody's.
    """
    sent = [replace(turned(EQUAL[0], i), client=n) for i, n in enumerate(NAMES)]
    found = value("median", sent)
    for stem in STEMS:
        everybodys = co.product(EQUAL[0].sections["adapter"], stem)
        assert co.apart(co.product(found["adapter"], stem), everybodys) < 1e-9
        of_factors = {
            n: torch.stack([u.sections["adapter"].tensors[n] for u in sent]).quantile(0.5, dim=0)
            for n in BEFORE["adapter"].tensors
            if n.startswith(stem)
        }
        assert co.apart(co.product(co.adapter(of_factors), stem), everybodys) > 0.5


def test_a_pair_with_harmless_factors_and_a_large_product_is_seen_by_its_product() -> None:
    """Its A and B are as long as everybody's, and aligned, so that the product is the largest."""
    pair = {}
    for stem, (out, into) in co.SHAPES.items():
        sizes = [
            float(
                np.median(
                    [
                        np.linalg.norm(u.sections["adapter"].tensors[f"{stem}.{e}.weight"])
                        for u in EQUAL
                    ]
                )
            )
            for e in ("lora_A", "lora_B")
        ]
        down, up = torch.zeros(RANK, into), torch.zeros(out, RANK)
        down[0], up[:, 0] = sizes[0] / into**0.5, sizes[1] / out**0.5
        pair |= {f"{stem}.lora_A.weight": down.double(), f"{stem}.lora_B.weight": up.double()}
    lying = replace(
        EQUAL[0], client="z", sections={**EQUAL[0].sections, "adapter": co.adapter(pair)}
    )
    products = [np.linalg.norm(co.product(u.sections["adapter"], "q")) for u in EQUAL]
    assert np.linalg.norm(co.product(lying.sections["adapter"], "q")) > np.max(products)
    rows = points([*EQUAL, lying])
    assert np.argmax(krum_scores(rows, 1)) == len(EQUAL)
