"""Sums of products in small matrices, against NumPy on the whole matrix."""

# ruff: noqa: ANN401 - arrays

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triskel.aggregate.products import (
    Product,
    best,
    best_of_rows,
    gram,
    norm,
    recompressed,
    scaled,
    stacked,
    svd,
)

SHAPES = [
    (9, 7, 3),
    (7, 9, 3),
    (20, 4, 2),
    (4, 20, 2),
    (9, 7, 8),
    (7, 9, 8),
    (6, 6, 20),
    (5, 40, 30),
]
"""Out, in and stacked rank: below both sides, between them, above both."""


def drawn(out: int, into: int, rank: int, seed: int = 0) -> Product:
    source = torch.Generator().manual_seed(seed)
    left = torch.randn(out, rank, generator=source, dtype=torch.float64)
    return Product(left, torch.randn(rank, into, generator=source, dtype=torch.float64))


def dense(product: Product) -> Any:
    return product.left.numpy() @ product.right.numpy()


class Largest(TorchDispatchMode):
    """The most numbers that any tensor held that was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_singular_values_are_those_of_the_whole_matrix(out: int, into: int, rank: int) -> None:
    product = drawn(out, into, rank)
    found = svd(product, len)
    wanted = np.linalg.svd(dense(product))[1][: len(found.s)]
    np.testing.assert_allclose(found.s.numpy(), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dense(found.factors), dense(product), atol=1e-12)
    eye = np.eye(len(found.s))
    np.testing.assert_allclose((found.u.T @ found.u).numpy(), eye, atol=1e-12)
    np.testing.assert_allclose((found.vt @ found.vt.T).numpy(), eye, atol=1e-12)
    assert found.lost == 0


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_a_sum_in_shares_is_that_of_whole_matrices_in_a_core_no_larger_than_needed(
    out: int, into: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, shares = [drawn(out, into, rank, seed) for seed in range(3)], [0.5, 0.25, 2.0]
    cores, plain = list[Any](), torch.linalg.svd

    def seen(core: torch.Tensor, **options: Any) -> Any:
        cores.append(tuple(core.shape))
        return plain(core, **options)

    monkeypatch.setattr(torch.linalg, "svd", seen)
    found = svd(parts, len, shares)
    wanted = sum(share * dense(part) for part, share in zip(parts, shares, strict=True))
    np.testing.assert_allclose(dense(found.factors), wanted, atol=1e-12)
    core = (min(3 * rank, max(out, into)), min(out, into))
    assert sorted(cores[0]) == sorted(core)


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_a_cut_is_the_best_approximation_of_its_rank(out: int, into: int, rank: int) -> None:
    """Eckart and Young: the distance is the root of the squares left out, and none is nearer."""
    product = drawn(out, into, rank, seed=3)
    for kept in (1, 2):
        found = best(product, kept)
        u, s, vt = np.linalg.svd(dense(product), full_matrices=False)
        np.testing.assert_allclose(
            dense(found.factors), (u[:, :kept] * s[:kept]) @ vt[:kept], atol=1e-11
        )
        left_out = np.sqrt((s[kept:] ** 2).sum())
        distance = np.linalg.norm(dense(found.factors) - dense(product))
        assert abs(distance - left_out) < 1e-11
        assert abs(found.lost - left_out) < 1e-11


@pytest.mark.parametrize(("out", "into"), [(60, 90), (90, 60), (70, 70)])
@pytest.mark.parametrize(
    "values",
    [
        np.geomspace(1, 1e-13, 60),
        np.linspace(1, 0.9, 60),
        np.concatenate([np.geomspace(1, 0.02, 8), np.zeros(52)]),
        np.concatenate([np.geomspace(1, 1e-10, 8), np.geomspace(9e-11, 1e-12, 52)]),
        np.concatenate([np.ones(7), [0.5, 0.5], np.full(51, 1e-3)]),
        np.zeros(60),
    ],
    ids=["steep", "flat", "of its rank", "steep and going on", "equal ones", "zero"],
)
def test_a_cut_is_as_near_as_singular_values_of_the_whole_matrix_are(
    out: int, into: int, values: Any
) -> None:
    """Whatever its singular values are like; eigenvectors of M M^T alone have half the digits."""
    source = np.random.default_rng(4)
    left = np.linalg.qr(source.standard_normal((out, 60)))[0]
    right = np.linalg.qr(source.standard_normal((into, 60)))[0]
    parts = [
        Product(torch.from_numpy(3.0 * left * values), torch.from_numpy(right.T.copy())),
        drawn(out, into, max(out, into), seed=5),
    ]
    matrix = 3.0 * (left * values) @ right.T
    rank = 8
    found = best(parts, rank, [1.0, 0.0])
    left_out = 3.0 * np.sqrt((values[rank:] ** 2).sum())
    distance = np.linalg.norm(dense(found.factors) - matrix)
    assert distance == pytest.approx(left_out, rel=1e-12, abs=3e-14)
    assert found.lost == pytest.approx(distance, rel=1e-12, abs=3e-14)
    np.testing.assert_allclose(found.s.numpy(), 3.0 * values[:rank], rtol=0, atol=3e-14)
    eye = np.eye(rank)
    np.testing.assert_allclose((found.u.T @ found.u).numpy(), eye, atol=1e-13)
    np.testing.assert_allclose((found.vt @ found.vt.T).numpy(), eye, atol=1e-13)


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, 0.9])
def test_recompression_has_the_lowest_rank_within_its_bound(error: float) -> None:
    product = drawn(9, 12, 6, seed=1)
    bound = error * norm(product)
    found = recompressed(product, bound)
    s = np.linalg.svd(dense(product))[1]
    assert np.linalg.norm(dense(found) - dense(product)) <= bound + 1e-12
    ranks = [k for k in range(10) if np.sqrt((s[k:] ** 2).sum()) <= bound + 1e-12]
    assert found.right.shape[0] == min(ranks)


def test_sums_multiples_norms_and_inner_products_are_those_of_the_matrices() -> None:
    parts = [drawn(5, 8, 3, seed=i) for i in range(4)]
    wanted = np.array([[np.sum(dense(p) * dense(q)) for q in parts] for p in parts])
    np.testing.assert_allclose(gram(parts).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(dense(stacked(parts)), sum(dense(p) for p in parts), atol=1e-12)
    assert norm(scaled(parts[0], -3)) == pytest.approx(3 * np.linalg.norm(dense(parts[0])))


def test_the_largest_number_of_each_row_of_a_is_positive() -> None:
    """Whatever signs a library chooses."""
    for seed in range(3):
        product = drawn(6, 9, 4, seed)
        whole = product.left @ product.right
        of_rows = best_of_rows(lambda low, high, m=whole: m[low:high], (6, 9), 4, 2)
        for found in (best(product, 4), of_rows):
            largest = found.vt.gather(1, found.vt.abs().argmax(1, keepdim=True))
            assert bool((largest > 0).all())


def test_a_zero_product_has_orthonormal_rows_to_train_on() -> None:
    product = Product(torch.zeros(6, 2, dtype=torch.float64), drawn(6, 5, 2).right)
    found = best(product, 2)
    assert not found.factors.left.any()
    np.testing.assert_allclose((found.vt @ found.vt.T).numpy(), np.eye(2), atol=1e-12)


def test_the_matrix_is_never_made_unless_the_factors_are_larger() -> None:
    for (out, into, rank), most in (((300, 200, 10), 300 * 10), ((30, 20, 100), 30 * 100)):
        product = drawn(out, into, rank)
        with Largest() as seen:
            best(product, 5)
        assert seen.numbers <= most


# --- a matrix that is only seen in blocks of rows ----------------------------------------------


@pytest.mark.parametrize(("out", "into"), [(40, 70), (70, 40), (6, 50), (50, 6)])
@pytest.mark.parametrize("tall", [1, 7, 1000])
def test_the_best_of_rows_is_the_best_approximation(out: int, into: int, tall: int) -> None:
    matrix = torch.randn(out, into, generator=torch.Generator().manual_seed(2)).double()
    rank = 4
    found = best_of_rows(lambda low, high: matrix[low:high], (out, into), rank, tall)
    u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    distance = np.linalg.norm(dense(found.factors) - matrix.numpy())
    left_out = np.sqrt((s[rank:] ** 2).sum())
    assert distance <= left_out * (1 + 1e-6), "though all singular values are alike"
    assert found.lost == pytest.approx(distance, rel=1e-9)
    del u, vt


def test_rows_of_low_rank_are_found_exactly() -> None:
    product = drawn(60, 50, 3)
    whole = product.left @ product.right
    found = best_of_rows(lambda low, high: whole[low:high], (60, 50), 3, 8)
    np.testing.assert_allclose(dense(found.factors), whole.numpy(), atol=1e-11)
    assert found.lost < 1e-5, "the root of a difference of squares"


def test_rows_are_seen_in_blocks_only() -> None:
    product = drawn(400, 300, 4)
    with Largest() as seen:
        best_of_rows(lambda low, high: product.left[low:high] @ product.right, (400, 300), 4, 20)
    assert seen.numbers <= 400 * 18, "a block, or one of the tall matrices"
