"""Frozen low-rank factors beside those that train: what a sum of products has and two factors lack.

Factors A [r, in] and B [out, r] train; side factors A' [r', in] and B' [out, r'] do not. With one
scale s a module is

    y = W x + s (B A + B' A') x = W x + s [B, B'] [A; A'] x

so a model runs the stacked factors in place of A and B, and its base is never changed. An aggregate
makes side factors (`types.Aggregate`), such as those of ΔW = Σ wᵢ Bᵢ Aᵢ - B̄ Ā, whose rank is at
most (K - 1) r for K clients (FedEx-LoRA, arXiv:2410.09432, section 3). They come with every task,
so who joins late has what everybody has.

A model's tensors hold them beside its own, under names of their own: `q_proj.lora_A.side` beside
`q_proj.lora_A.weight`. Modules may have side factors of different ranks; where they run they are
filled up with zeros to the greatest, as a pass has one rank. Dropout of the adapter falls on
them as on A and B: they are a part of the adapter.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from triskel.types import Tensors

WEIGHT, SIDE = ".weight", ".side"
DOWN, UP = ".lora_A", ".lora_B"
LENGTHS = ".lora_magnitude_vector.weight"
"""What DoRA has beside its factors: a sum of products is not what it adds."""


def side_name(factor: str) -> str:
    """Return the name of the side factor beside a factor.

    >>> side_name("h.0.attn.c_attn.lora_A.weight")
    'h.0.attn.c_attn.lora_A.side'
    """
    return factor.removesuffix(WEIGHT) + SIDE


def is_side(name: str) -> bool:
    """Return whether a tensor of this name is a side factor.

    >>> is_side("q_proj.lora_B.side"), is_side("q_proj.lora_B.weight")
    (True, False)
    """
    return name.endswith((f"{DOWN}{SIDE}", f"{UP}{SIDE}"))


def parted(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that train, and the side factors beside them."""
    side = {name: t for name, t in tensors.items() if is_side(name)}
    return {name: t for name, t in tensors.items() if name not in side}, side


def with_side(names: Iterable[str], tensors: Tensors) -> list[str]:
    """Return these names, and those of the side factors that are beside them."""
    names = list(names)
    return names + [beside for name in names if (beside := side_name(name)) in tensors]


def side_rank(tensors: Tensors) -> int:
    """Return the greatest rank of the side factors among tensors; 0 where there are none."""
    return max((len(t) for name, t in tensors.items() if name.endswith(f"{DOWN}{SIDE}")), default=0)


def misfit(side: Tensors, like: Tensors) -> str | None:
    """Return why side factors do not go beside these tensors, or None where they do."""
    return next(_misfits(side, like), None)


def _misfits(side: Tensors, like: Tensors) -> Iterator[str]:
    """Yield what is wrong; a line may rely on those above it."""
    for name, tensor in side.items():
        stem = name.removesuffix(SIDE)[: -len(DOWN)]
        down, up = f"{stem}{DOWN}", f"{stem}{UP}"
        plain = {down + WEIGHT, up + WEIGHT} <= like.keys()
        if not is_side(name) or not plain or f"{stem}{LENGTHS}" in like:
            yield f"{name!r} is beside no low-rank factor of this model"
        if not {down + SIDE, up + SIDE} <= side.keys():
            yield f"{name!r} lacks its other half"
        if tensor.dim() != 2 or not tensor.is_floating_point():  # noqa: PLR2004 - a matrix
            yield f"{name!r} must be a matrix of floats"
        if tensor.dtype != like[down + WEIGHT].dtype:
            yield f"{name!r} holds {tensor.dtype}, expected {like[down + WEIGHT].dtype}"
    for name, into in side.items():
        if not name.endswith(DOWN + SIDE):
            continue
        stem = name.removesuffix(DOWN + SIDE)
        out, rank, full = side[f"{stem}{UP}{SIDE}"], len(into), _full(like, f"{stem}{DOWN}{WEIGHT}")
        width, height = like[f"{stem}{DOWN}{WEIGHT}"].shape[1], len(like[f"{stem}{UP}{WEIGHT}"])
        if tuple(into.shape) != (rank, width) or tuple(out.shape) != (height, rank):
            yield (
                f"{name!r} and its other half have shapes {list(into.shape)} and "
                f"{list(out.shape)}, and their module maps {width} numbers to {height}"
            )
        if not 0 < rank <= full:
            yield f"{name!r} has rank {rank}, expected 1 to {full}"


def blank(like: Tensors, rank: int) -> dict[str, Tensor]:
    """Return side factors of zeros beside all low-rank factors, of this rank or a full one."""
    found = dict[str, Tensor]()
    for name, factor in like.items() if rank else ():
        if (axis := rank_axis(name)) is not None:
            shape = list(factor.shape)
            shape[axis] = min(rank, _full(like, name))
            found[side_name(name)] = factor.new_zeros(shape)
    return found


def stacked(tensors: Tensors, names: Iterable[str]) -> Mapping[str, Tensor]:
    """Return some tensors that train, as they are installed: [A; A'; 0] and [B, B', 0].

    Args:
        tensors: What trains, and side factors beside it.
        names: Which of those that train; one that is not there is left out.
    """
    rank = side_rank(tensors)
    return {name: _stacked(tensors, name, rank) for name in names if name in tensors}


def _stacked(tensors: Tensors, name: str, rank: int) -> Tensor:
    factor = tensors[name]
    axis = rank_axis(name)
    if axis is None:
        return factor
    side = tensors.get(side_name(name))
    parts = [factor] if side is None else [factor, side.to(factor.dtype)]
    shape = list(factor.shape)
    shape[axis] = rank - (0 if side is None else side.shape[axis])
    return torch.cat([*parts, factor.new_zeros(shape)], dim=axis)


def unstacked(tensors: Tensors, rank: int) -> dict[str, Tensor]:
    """Return tensors and side factors that `stacked` makes these of again.

    Where there was only zeros beside a module there is as much of them as it may have.

    Args:
        tensors: As installed.
        rank: That of the factors that train.
    """
    found, side = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        axis = rank_axis(name)
        if axis is None:
            found[name] = tensor
            continue
        found[name], beside = tensor.split([rank, tensor.shape[axis] - rank], axis)
        held = min(beside.shape[axis], _full(tensors, name))
        side[side_name(name)] = beside.narrow(axis, 0, held)
    return found | side


def rank_axis(name: str) -> int | None:
    """Return which axis of a factor that trains is its rank; None for any other tensor.

    >>> rank_axis("q.lora_A.weight"), rank_axis("q.lora_B.weight"), rank_axis("score.weight")
    (0, 1, None)
    """
    if name.endswith(f"{DOWN}{WEIGHT}"):
        return 0
    return 1 if name.endswith(f"{UP}{WEIGHT}") else None


def _full(tensors: Tensors, name: str) -> int:
    """Return the greatest rank that a module has, of one of its factors."""
    stem = name.removesuffix(DOWN + WEIGHT).removesuffix(UP + WEIGHT)
    return min(tensors[f"{stem}{DOWN}{WEIGHT}"].shape[1], len(tensors[f"{stem}{UP}{WEIGHT}"]))
