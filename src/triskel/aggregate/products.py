"""Sums of products of low rank, in float64, without the matrix that they are of.

A product is left @ right with left [out, R] and right [R, in]. Factors of several products side by
side are their sum: [B₁, B₂] [A₁; A₂] = B₁ A₁ + B₂ A₂. Its singular values come of a small matrix:

    left = Q R₁,  R₁ right = U S V^T;    left @ right = (Q U) S V^T

and the same of the transposed product where in is longer than out. With a stacked rank R the core
has min(R, longer) x shorter numbers, never more than the factors. Where R is no smaller than both,
the core is the sum itself, and is added up product by product. As factors, A = V^T and B = U S: a
root of S on both sides would leave what is zero without a gradient for ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-14
"""Of a sum's norm: what is below is rounding of float64."""

BLOCK = 1 << 21
"""How many numbers are multiplied out at a time, where entries of the matrix are needed."""

STEEP = 1e-2
"""Of the first singular value: smaller ones are not looked for in the square of a matrix."""

OVERSAMPLED = 10
SETTLED = 1e-9
"""Of the squared norm: less than this gained by one more step, and the search is over."""
STEPS = 60
_Times = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """A matrix, as two factors.

    Attributes:
        left: [out, R], float64.
        right: [R, in], float64.
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank inner"]


@dataclass(frozen=True)
class Svd:
    """The largest singular values of a matrix with their vectors.

    Attributes:
        u: [out, k], orthonormal columns.
        s: [k], falling.
        vt: [k, in], orthonormal rows.
        lost: The Frobenius norm of what was left out.
    """

    u: Float[Tensor, "out kept"]
    s: Float[Tensor, " kept"]
    vt: Float[Tensor, "kept inner"]
    lost: float

    @property
    def factors(self) -> Product:
        """The matrix as B = U S and A = V^T."""
        return Product(self.u * self.s, self.vt)


def stacked(parts: Sequence[Product]) -> Product:
    """Return the sum of products."""
    left = torch.cat([part.left for part in parts], dim=1)
    return Product(left, torch.cat([part.right for part in parts], dim=0))


def scaled(product: Product, by: float) -> Product:
    """Return the product times a number."""
    return Product(product.left * by, product.right)


def norm(product: Product) -> float:
    """Return the Frobenius norm.

    >>> norm(Product(torch.tensor([[3.0], [4.0]]).double(), torch.tensor([[2.0]]).double()))
    10.0
    """
    gram = (product.left.T @ product.left) * (product.right @ product.right.T)
    return max(float(gram.sum()), 0.0) ** 0.5


def svd(
    product: Product | Sequence[Product],
    keep: Callable[[Tensor], int],
    shares: Sequence[float] | None = None,
) -> Svd:
    """Return the singular values that are kept.

    Args:
        product: The matrix, or the products whose sum it is.
        keep: How many, of all singular values.
        shares: How much of each product is in the sum; all of it where nothing is said.
    """
    return _found(product, shares, lambda core: _svd(core, keep))


def best(
    product: Product | Sequence[Product], rank: int, shares: Sequence[float] | None = None
) -> Svd:
    """Return the best approximation of this rank (Eckart and Young 1936), as `svd` has the rest."""
    return _found(product, shares, lambda core: _leading(core, rank))


def _found(
    product: Product | Sequence[Product],
    shares: Sequence[float] | None,
    solve: Callable[[Tensor], Svd],
) -> Svd:
    """Return singular values of a sum, by those of a matrix that has the same and is smaller."""
    parts = [product] if isinstance(product, Product) else product
    shares = shares or [1.0] * len(parts)
    out, inner = len(parts[0].left), parts[0].right.shape[1]
    if sum(len(part.right) for part in parts) >= max(out, inner):
        core = parts[0].left.new_zeros(out, inner)
        for part, share in zip(parts, shares, strict=True):
            core.addmm_(part.left, part.right, alpha=share)
        return _signed(solve(core))
    whole = stacked([scaled(part, share) for part, share in zip(parts, shares, strict=True)])
    if inner > out:
        upper, times = _reduced(whole.right.T)
        found = _turned(solve(upper @ whole.left.T))
        return _signed(replace(found, vt=times(found.vt.T).T))
    upper, times = _reduced(whole.left)
    found = solve(upper @ whole.right)
    return _signed(replace(found, u=times(found.u)))


def _svd(matrix: Float[Tensor, "out inner"], keep: Callable[[Tensor], int]) -> Svd:
    """Return the singular values of a whole matrix that are kept."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(keep(s), len(s))
    return Svd(u[:, :kept], s[:kept], vt[:kept], float(torch.linalg.vector_norm(s[kept:])))


def _leading(matrix: Float[Tensor, "out inner"], rank: int) -> Svd:
    """Return the first singular values of a whole matrix.

    From eigenvectors U of M M^T, half the work: V = orth(M^T U), and the singular values of M V are
    those of M but for rounding of M M^T, a share of their squares. Where the last one is below
    `STEEP` of the first, that would be too much of it, and the whole matrix is taken.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return _turned(_leading(matrix.T, rank))
    if rank >= len(matrix):
        return _svd(matrix, lambda _: rank)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    if not values[-rank] > STEEP**2 * values[-1]:
        return _svd(matrix, lambda _: rank)
    basis = torch.linalg.qr(matrix.T @ vectors[:, -rank:])[0]
    image = matrix @ basis
    u, s, vt = torch.linalg.svd(image, full_matrices=False)
    rest = torch.addmm(matrix, image, basis.T, alpha=-1)
    return Svd(u, s, vt @ basis.T, float(torch.linalg.vector_norm(rest)))


def _turned(found: Svd) -> Svd:
    """Return the same of the transposed matrix."""
    return replace(found, u=found.vt.T, vt=found.u.T)


def _signed(found: Svd) -> Svd:
    """Return vectors of which the largest number of each row of V^T is positive."""
    sign = _signs(found.vt)
    return replace(found, u=found.u * sign, vt=found.vt * sign[:, None])


def recompressed(product: Product, bound: float) -> Product:
    """Return the product of lowest rank that is within a bound of this one.

    Args:
        product: The matrix.
        bound: Frobenius norm of what may be lost.
    """
    return svd(product, lambda s: fewest(s, bound)).factors


def fewest(values: Float[Tensor, " count"], bound: float) -> int:
    """Return how many of falling singular values must stay so that the rest is within a bound.

    >>> fewest(torch.tensor([5.0, 4.0, 3.0]), 5.0), fewest(torch.tensor([5.0, 4.0, 3.0]), 4.9)
    (1, 2)
    """
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tails > bound).sum())


def gram(products: Sequence[Product]) -> Float[Tensor, "count count"]:
    """Return the inner products of matrices, ⟨Pᵢ, Pⱼ⟩ = Σ (Lᵢ^T Lⱼ) ∘ (Rᵢ Rⱼ^T).

    Args:
        products: All of one rank.
    """
    every, count = stacked(products), len(products)
    rows = [
        ((one.left.T @ every.left) * (one.right @ every.right.T)).sum(0).view(count, -1).sum(1)
        for one in products
    ]
    found = torch.stack(rows)
    return (found + found.T) / 2


def best_of_rows(
    rows: Callable[[int, int], Tensor], shape: tuple[int, int], rank: int, tall: int
) -> Svd:
    """Return the best approximation of a matrix that is only ever seen in blocks of rows.

    Subspace iteration on M^T M from a fixed random start; each pass over the blocks is one step.
    It ends when one more gains less than `SETTLED` of ‖M‖². The norm of what is missing is exact.

    Args:
        rows: Makes the rows from one up to another, float64.
        shape: [out, in] of the matrix.
        rank: How many singular values.
        tall: How many rows at a time.
    """
    height, width = shape
    source = torch.Generator().manual_seed(0)
    size = min(height, width, 2 * rank + OVERSAMPLED)
    start = torch.randn(width, size, generator=source, dtype=torch.float64)
    basis = torch.linalg.qr(start)[0]
    image, back, whole = _passed(rows, height, tall, basis)
    held = _energy(image, rank)
    for _ in range(STEPS if size < width else 0):
        basis = torch.linalg.qr(back)[0]
        image, back, whole = _passed(rows, height, tall, basis)
        before, held = held, _energy(image, rank)
        if held - before <= SETTLED * whole:
            break
    u, s, vt = torch.linalg.svd(image, full_matrices=False)
    lost = max(whole - held, 0.0) ** 0.5
    return _signed(Svd(u[:, :rank], s[:rank], vt[:rank] @ basis.T, lost))


def _passed(
    rows: Callable[[int, int], Tensor],
    height: int,
    tall: int,
    basis: Float[Tensor, "inner size"],
) -> tuple[Float[Tensor, "out size"], Float[Tensor, "inner size"], float]:
    """Return M V, M^T M V and ‖M‖², of one pass over the rows of M."""
    image, back, whole = basis.new_empty(height, basis.shape[1]), torch.zeros_like(basis), 0.0
    for low in range(0, height, tall):
        block = rows(low, min(low + tall, height))
        image[low : low + len(block)] = block @ basis
        back += block.T @ image[low : low + len(block)]
        whole += float(block.square().sum())
    return image, back, whole


def _energy(image: Tensor, rank: int) -> float:
    """Return the sum of the largest squared singular values."""
    return float(torch.linalg.svdvals(image)[:rank].square().sum())


def _as_it_is(columns: Tensor) -> Tensor:
    return columns


def _reduced(tall: Tensor) -> tuple[Tensor, _Times]:
    """Return R, and what multiplies Q with a matrix; one no taller than wide is its own R."""
    height, width = tall.shape
    if height <= width:
        return tall, _as_it_is
    packed, tau = torch.geqrf(tall)

    def times(columns: Tensor) -> Tensor:
        below = columns.new_zeros(height - width, columns.shape[1])
        return torch.ormqr(packed, tau, torch.cat([columns, below]))

    return packed[:width].triu(), times


def _signs(rows: Float[Tensor, "kept inner"]) -> Float[Tensor, " kept"]:
    """Return the sign of each row's largest number, so that vectors do not depend on a library."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True)).squeeze(1)
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
