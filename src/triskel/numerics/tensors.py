"""Arithmetic on named tensors, rows without padding, and batches with little of it."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triskel.types import Section, Tensors


def clone(tensors: Tensors) -> dict[str, Tensor]:
    """Return copies that share no memory with the originals."""
    return {name: t.detach().clone() for name, t in tensors.items()}


def blend(old: Tensors, new: Tensors, share: float) -> dict[str, Tensor]:
    """Return (1 - share)·old + share·new, computed in float64, in the dtype of `old`.

    A share of 1 returns `new` exactly, and a share of 0 returns `old` exactly.
    """
    return {
        name: ((1 - share) * w.double() + share * new[name].double()).to(w.dtype)
        for name, w in old.items()
    }


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what sums, losses and scores of such numbers are made in: float32 at least.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_finite(x: Tensor) -> bool:
    """Return whether every entry is a finite number; integers and bools always are."""
    if not x.is_floating_point():
        return True
    # A sum is several times cheaper than a mask, and one infinity or NaN spoils it. Finite
    # entries can spoil it too, by overflow: only then look at each.
    return math.isfinite(float(x.sum(dtype=wide(x.dtype)))) or bool(torch.isfinite(x).all())


def numbers(tensors: Tensors) -> int:
    """Return how many numbers the tensors hold.

    >>> numbers({"a": torch.zeros(2, 3), "b": torch.zeros(())})
    7
    """
    return sum(t.numel() for t in tensors.values())


def select(tensors: Tensors, names: Sequence[str] | Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors with these names, in this order."""
    return {name: tensors[name] for name in names}


def present(lengths: Sequence[int], width: int) -> Bool[Tensor, "batch tokens"]:
    """Return which positions of a right-padded batch are real.

    >>> present([2, 1], 2).tolist()
    [[True, True], [True, False]]
    """
    return torch.arange(width)[None, :] < torch.tensor(list(lengths), dtype=torch.int64)[:, None]


def ragged(
    padded_rows: Float[Tensor, "batch tokens width"], lengths: Sequence[int]
) -> Float[Tensor, "real width"]:
    """Return the real rows one after the other, without padding.

    >>> ragged(torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]]), [2, 1]).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    mask = present(lengths, padded_rows.shape[1]).to(padded_rows.device)
    return padded_rows[mask]


def padded(
    rows: Float[Tensor, "real width"], lengths: Sequence[int]
) -> Float[Tensor, "batch tokens width"]:
    """Return rows back in a right-padded batch; padding is zero. Undoes `ragged`."""
    mask = present(lengths, max(lengths)).to(rows.device)
    out = rows.new_zeros(len(lengths), max(lengths), rows.shape[-1])
    out[mask] = rows
    return out


def runs(mask: Bool[Tensor, " tokens"]) -> list[int]:
    """Return where runs of True begin and end: [first, one past last, first, ...].

    >>> runs(torch.tensor([False, True, True, False, True]))
    [1, 3, 4, 5]
    """
    edge = torch.zeros(1, dtype=torch.int8)
    steps = torch.cat([edge, mask.to(torch.int8), edge]).diff()
    return [int(i) for i in steps.nonzero().flatten()]


def indices(lengths: Int[Tensor, " batch"]) -> list[int]:
    """Return lengths as plain integers."""
    return [int(n) for n in lengths]


def eval_plan(lengths: Sequence[int], *, tokens: int) -> list[list[int]]:
    """Return batches sorted by length, each at most `tokens` tokens padded, or one example.

    >>> eval_plan([5, 1, 9, 2], tokens=6)
    [[1, 3], [0], [2]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def flat(sections: Mapping[str, Section]) -> dict[str, Tensor]:
    """Return the tensors of all sections by name."""
    return {name: t for section in sections.values() for name, t in section.tensors.items()}
