"""Sums of products of low rank, in float64, without the matrix that they are of.

A product is left @ right with left [out, R] and right [R, in]. Factors of several products side by
side are their sum: [B₁, B₂] [A₁; A₂] = B₁ A₁ + B₂ A₂. Its singular values come of small matrices:

    left = Q_l R_l,  right^T = Q_r R_r,  R_l R_r^T = U S V^T;    left @ right = (Q_l U) S (Q_r V)^T

A side whose stacked rank R is no smaller than its length is taken as it is, so that the core has
min(R, out) x min(R, in) numbers, never more than the factors. Where that is both sides, the core is
the sum itself, and is added up product by product. As factors, A = V^T and B = U S: a
root of S on both sides would leave what is zero without a gradient for ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-14
"""Of a sum's norm: what is below is rounding of float64."""

BLOCK = 1 << 21
"""How many numbers are multiplied out at a time, where entries of the matrix are needed."""

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
    parts = [product] if isinstance(product, Product) else product
    core, of_left, of_right = _core(parts, shares or [1.0] * len(parts))
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    kept = min(keep(s), len(s))
    lost = float(torch.linalg.vector_norm(s[kept:]))
    u, s, vt = of_left(u[:, :kept]), s[:kept], of_right(vt[:kept].T).T
    sign = _signs(vt)
    return Svd(u * sign, s, vt * sign[:, None], lost)


def best(
    product: Product | Sequence[Product], rank: int, shares: Sequence[float] | None = None
) -> Svd:
    """Return the best approximation of this rank (Eckart and Young 1936), as `svd` has the rest."""
    return svd(product, lambda _: rank, shares)


def _core(parts: Sequence[Product], shares: Sequence[float]) -> tuple[Tensor, _Times, _Times]:
    """Return a matrix with the singular values of a sum, and what makes its vectors the sum's."""
    out, inner = len(parts[0].left), parts[0].right.shape[1]
    if sum(len(part.right) for part in parts) >= max(out, inner):
        core = parts[0].left.new_zeros(out, inner)
        for part, share in zip(parts, shares, strict=True):
            core.addmm_(part.left, part.right, alpha=share)
        return core, _as_it_is, _as_it_is
    whole = stacked([scaled(part, share) for part, share in zip(parts, shares, strict=True)])
    left, of_left = _reduced(whole.left)
    right, of_right = _reduced(whole.right.T)
    return left @ right.T, of_left, of_right


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
    u, s, vt = u[:, :rank], s[:rank], vt[:rank] @ basis.T
    sign = _signs(vt)
    return Svd(u * sign, s, vt * sign[:, None], max(whole - held, 0.0) ** 0.5)


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
