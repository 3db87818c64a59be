"""What a stretch of a model costs: FLOPs and memory, counted on tiny shapes, as polynomials.

torch's own formulas count the real model on a few tiny shapes. A batch of B rows padded to T
tokens with S scored positions costs

    flops(B, T, S) = B·(c₀ + c₁ T + c₂ T²) + c₃ S + c₄ + c₅ T

exactly: matrix products are linear in rows, attention is quadratic in tokens, products of factors,
which some adapters make of their own weights, do not depend on the batch, and some versions of
transformers make the rotary table, one for all rows, by a product. The fit is
solved in rational numbers and checked on a shape it has not seen; a product the counter does not
know, or a miss on that shape, raises. Bytes saved for backward are a polynomial of the same shape
plus terms that do not grow with B (rotary tables, masks), and another one for texts so long that
fused attention keeps no scores.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from triskel.errors import MeterError
from triskel.model.shared import Choice, SharedModel
from triskel.model.side_factors import blank
from triskel.types import Batch

PieceKind = Literal["train", "forward", "bottom", "trunk", "top"]
PRODUCTS = ("mm", "matmul", "attention", "conv", "linear", "einsum", "dot", "mv", "lstm", "gru")
SHAPES = ((2, 3, 2), (2, 5, 2), (2, 8, 2), (3, 5, 3), (2, 5, 3), (3, 4, 4), (3, 9, 4))
"""(B, T, S) that are counted; the last one is the check. One row alone would share memory that
more rows do not."""
Shape = tuple[int, int, int]
Flops = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """A stretch of the model, and what is done with it.

    Attributes:
        kind: `train` and `forward` run the joined model with and without backward; `bottom` runs
            embeddings and blocks [0, high), `trunk` blocks [low, high), `top` blocks [low, L)
            with the head, each with backward where something there trains.
        low: First block, for `trunk` and `top`; elsewhere above 0 where what enters that block was
            kept.
        high: One past the last block, for `bottom` and `trunk`.
        rows: For `top` on a bare head: hidden states arrive one per scored position.
        slope: For `trunk` and `top`: whether the gradient of its input is wanted.
        side: Rank of the side factors beside those that train.
    """

    kind: PieceKind
    low: int = 0
    high: int = 0
    rows: bool = False
    slope: bool = True
    side: int = 0

    def beyond(self, depth: int) -> "Piece | None":
        """Return what is left to run when what enters block `depth` is at hand; None for nothing.

        A `trunk` and a `top` start above, and stay as they are.
        """
        if self.kind in {"trunk", "top"}:
            return self
        depth = min(depth, self.high) if self.kind == "bottom" else depth
        return None if self.kind == "bottom" and depth == self.high else replace(self, low=depth)


@dataclass(frozen=True)
class Cost:
    """The polynomials of one piece.

    Attributes:
        flops: FLOPs.
        saved: Bytes kept for the backward pass, where attention keeps its scores.
    """

    flops: Flops
    saved: tuple[Fraction, ...]

    def of(self, rows: int, tokens: int, scored: int) -> int:
        """Return the FLOPs of a batch; a multiplication and an addition count two."""
        c0, c1, c2, c3, c4, c5 = self.flops
        return rows * (c0 + c1 * tokens + c2 * tokens**2) + c3 * scored + c4 + c5 * tokens

    def bytes_of(self, rows: int, tokens: int, scored: int) -> int:
        """Return bytes kept for the backward pass of a batch."""
        return bytes_of(self.saved, rows, tokens, scored)

    @property
    def row(self) -> dict[str, list[int] | list[str]]:
        """The cost as JSON values, which `cost_in` reads back."""
        return {"flops": list(self.flops), "saved": [str(x) for x in self.saved]}


def cost_in(row: Any) -> Cost | None:
    """Return a cost as `Cost.row` wrote it; None for anything else."""
    try:
        flops, saved = [int(x) for x in row["flops"]], [Fraction(x) for x in row["saved"]]
    except (TypeError, ValueError, KeyError):
        return None
    whole = len(flops) == len(_flop_terms(1, 1, 1)) and len(saved) == len(_saved_terms(1, 1, 1))
    return Cost(cast("Flops", tuple(flops)), tuple(saved)) if whole else None


def count(body: SharedModel, piece: Piece) -> Cost:
    """Count a piece on a few tiny shapes and solve for its polynomials.

    Raises:
        MeterError: A product is unknown to the counter, or the polynomial misses the check shape.
    """
    shapes, chosen = _shapes(body), body.choice
    seen = _measured(body, piece, shapes, Choice())
    points = {shape: flops for shape, (flops, _) in zip(shapes, seen, strict=True)}
    solved = _solve([_flop_terms(*s) for s in points], [Fraction(f) for f in points.values()])
    if chosen.path == "fast" or chosen.recompute:
        saved = saved_in(body, piece, replace(chosen, flash=sys.maxsize))
    else:
        saved = _fitted(shapes, [size for _, size in seen])
    cost = Cost(cast("Flops", tuple(int(c) for c in solved)), saved)
    for shape, counted in points.items():
        if cost.of(*shape) != counted:
            raise MeterError(
                f"FLOPs of {piece} are not the polynomial expected: {counted} counted and "
                f"{cost.of(*shape)} predicted for {shape} (rows, tokens, scored); "
                "use model.attention = eager"
            )
    return cost


def _shapes(body: SharedModel) -> list[Shape]:
    return list(dict.fromkeys(s if body.ends == "vocabulary" else (*s[:2], s[0]) for s in SHAPES))


def _measured(
    body: SharedModel, piece: Piece, shapes: Sequence[Shape], way: Choice
) -> list[tuple[int, int]]:
    """Return FLOPs, where it is the library's own code, and bytes saved."""
    before = body.choice
    body.use(way)
    body.dropout(None)  # counted in mid-round, too; each step switches its own on
    try:
        return [_measure(body, piece, *shape) for shape in shapes]
    finally:
        body.use(before)


def saved_in(body: SharedModel, piece: Piece, way: Choice) -> tuple[Fraction, ...]:
    """Return the polynomial of bytes kept for the backward pass when a body computes this way."""
    shapes = _shapes(body)
    return _fitted(shapes, [size for _, size in _measured(body, piece, shapes, way)])


def _fitted(shapes: Sequence[Shape], sizes: Sequence[int]) -> tuple[Fraction, ...]:
    return _solve([_saved_terms(*s) for s in shapes], [Fraction(b) for b in sizes])


def bytes_of(saved: Sequence[Fraction], rows: int, tokens: int, scored: int) -> int:
    """Return what a polynomial of bytes comes to for a batch."""
    terms = _saved_terms(rows, tokens, scored)
    return max(0, math.ceil(sum(c * t for c, t in zip(saved, terms, strict=True))))


def _flop_terms(rows: int, tokens: int, scored: int) -> list[Fraction]:
    return [Fraction(x) for x in (rows, rows * tokens, rows * tokens**2, scored, 1, tokens)]


def _saved_terms(rows: int, tokens: int, scored: int) -> list[Fraction]:
    return [Fraction(x) for x in (rows * tokens, rows * tokens * tokens, tokens, scored, 1, rows)]


def _solve(terms: list[list[Fraction]], values: list[Fraction]) -> tuple[Fraction, ...]:
    """Solve for coefficients by elimination; dependent columns get 0, extra rows are ignored."""
    width = len(terms[0])
    table = [[*row, value] for row, value in zip(terms, values, strict=True)]
    pivots: list[int] = []
    for column in range(width):
        at = len(pivots)
        pick = next((r for r in range(at, len(table)) if table[r][column]), None)
        if pick is None:
            continue
        table[at], table[pick] = table[pick], table[at]
        table[at] = [x / table[at][column] for x in table[at]]
        for r, row in enumerate(table):
            if r != at and row[column]:
                table[r] = [x - row[column] * y for x, y in zip(row, table[at], strict=True)]
        pivots.append(column)
    found = [Fraction(0)] * width
    for r, column in enumerate(pivots):
        found[column] = table[r][width]
    return tuple(found)


def _measure(
    body: SharedModel, piece: Piece, rows: int, tokens: int, scored: int
) -> tuple[int, int]:
    """Return counted FLOPs and bytes saved for backward of one run."""
    where = torch.arange(scored)
    batch = Batch(
        ids=torch.ones(rows, tokens, dtype=torch.int64),
        lengths=torch.full((rows,), tokens),
        rows=where % rows,
        columns=torch.full((scored,), tokens - 1),
        targets=torch.zeros(scored, dtype=torch.int64),
    )
    parameters = body.parameters({**body.initial, **blank(body.initial, piece.side)})
    body.install(parameters, body.initial)  # what was installed before may be freed from here on
    own = {p.untyped_storage().data_ptr() for p in body.blocks.model.parameters()}
    own |= {p.untyped_storage().data_ptr() for p in body.blocks.model.buffers()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # held, so that its address cannot be given out twice
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    counter = _Counter()
    counts = body.choice == Choice()  # any other way only what it saves is wanted
    with counter if counts else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            out, backward = _forward(body, piece, batch, parameters)
        if backward and counts:
            out.float().sum().backward()
    return counter.flops, sum(s.nbytes() for s in saved.values())


def _forward(
    body: SharedModel, piece: Piece, batch: Batch, parameters: dict[str, nn.Parameter]
) -> tuple[Tensor, bool]:
    """Run a piece; say whether a backward pass follows."""
    shape = (len(batch.rows),) if piece.rows else tuple(batch.ids.shape)
    h = torch.zeros(*shape, body.blocks.width, dtype=body.dtype, device=body.device)
    low, high = piece.low, piece.high
    if piece.kind == "top":
        h.requires_grad_(piece.slope)
        out = body.head(parameters, h) if piece.rows else body.top(parameters, h, batch, low)
        return out, out.requires_grad
    if piece.kind == "trunk":
        h.requires_grad_(piece.slope)
        out = body.middle(parameters, h, batch.lengths, low=low, high=high)
        return out, out.requires_grad
    if piece.kind == "bottom":
        out = (
            body.middle(parameters, h, batch.lengths, low=low, high=high)
            if low
            else body.bottom(parameters, batch, high)
        )
        return out, bool(body.layout.within(0, high))
    trains = piece.kind == "train"
    losses = body.label_losses([parameters], [batch]) if trains and not low else None
    if losses is not None:
        return losses[0], True
    with torch.set_grad_enabled(trains):
        out = body.top(parameters, h, batch, low) if low else body.logits(parameters, batch)
    return out, trains


def _same(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _registry() -> dict[Any, Callable[..., int]]:
    """Return torch's formulas, and those of attention kernels that it has none for."""
    aten = torch.ops.aten
    forward = getattr(aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    backward = getattr(aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

    def ahead(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query.shape, key.shape, value.shape)

    def back(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)

    found: dict[Any, Callable[..., int]] = dict(flop_registry)
    if forward is not None:
        found[forward] = ahead
    if backward is not None:
        found[backward] = back
    return found


class _Counter(TorchDispatchMode):
    """Add up products by their formulas; raise on one that has none.

    Attributes:
        flops: So far; a multiplication and an addition count two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        formula = _registry().get(packet) or _OTHERS.get(str(packet))
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        elif _product(packet):
            raise MeterError(
                f"operation {packet} is a product that torch's FLOP counter does not know; "
                "use model.attention = eager, or report it with the model's name"
            )
        return out


def _in_4_bit(x: Any, weight: Any, shape: Any, *_: Any, **__: Any) -> int:
    del weight  # packed
    return 2 * int(x.numel()) * int(shape[0])


def _in_8_bit(x: Any, rounded: Any, weight: Any, *_: Any, **__: Any) -> int:
    del rounded
    return 2 * int(x.numel()) * len(weight)


_OTHERS: dict[str, Callable[..., int]] = {
    "bitsandbytes.gemm_4bit": _in_4_bit,
    "bitsandbytes.int8_mixed_scaled_mm": _in_8_bit,
}
"""Formulas of other libraries' products."""


@cache
def _product(packet: Any) -> bool:
    words = str(packet.__name__).strip("_").split("_")
    return any(word in PRODUCTS or word.endswith(("mm", "mv")) for word in words)
