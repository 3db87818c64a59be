"""From what trains and travels to the factors that a model runs.

Factors A [r, in] and B [out, r] of a module need not train as they are:

    lower rank    A_i [r_i, in], B_i [out, r_i] of scale s_i in a model of rank r and scale s:
                  A = [A_i; 0],  B = [(s_i / s) B_i, 0],  so that  s B A = s_i B_i A_i
    beside a rest the first r_i components train, the others are frozen:
                  A = [A_i; A_rest],  B = [B_i, B_rest]
    a core        B_0 [out, r] and A_0 [r, in] are frozen, R [r, r] trains:  A = A_0,  B = B_0 R
                  (Fed-SB, arXiv:2502.15436, section 3)

What a slot takes is a differentiable function of what trains, so gradients are those of a model
that has such tensors; clients of mixed rank run in one pass, as all factors have the model's rank.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from triskel.model.side_factors import DOWN, UP, WEIGHT, rank_axis
from triskel.types import Tensors

CORE = ".lora_core" + WEIGHT
"""How the name of R ends, beside those of its module's factors."""
REST = ".rest"
"""How the name of components ends that are frozen beside those that train."""


@dataclass(frozen=True)
class Form:
    """Which of a party's tensors train, and what the model's slots take of them.

    Attributes:
        trains: Names of those that train; None is all but side factors.
        rank: Of the factors that train, where it is lower than the model's; else 0.
        full: The model's rank; read where `rank` is not 0.
        ratio: s_i / s.
        core: Whether B is B_0 R.
    """

    trains: Collection[str] | None = None
    rank: int = 0
    full: int = 0
    ratio: float = 1.0
    core: bool = False

    @property
    def plain(self) -> bool:
        """Whether slots take the tensors as they are."""
        return not self.rank and not self.core

    def factors(self, tensors: Tensors) -> Tensors:
        """Return what slots take, and side factors as they are.

        Args:
            tensors: As they train; gradients flow back to them.
        """
        if self.plain:
            return tensors
        found = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.endswith(REST) and not is_core(name)
        }
        if self.core:
            for name, factor in list(found.items()):
                if is_up(name):
                    found[name] = factor @ tensors[core_name(name)]
        if self.rank:
            for name, factor in list(found.items()):
                if (axis := rank_axis(name)) is not None:
                    found[name] = self._filled(factor, tensors.get(name + REST), axis)
        return found

    def _filled(self, factor: Tensor, rest: Tensor | None, axis: int) -> Tensor:
        """Return a factor of the model's rank: beside its rest, or beside zeros."""
        if rest is None:
            shape = list(factor.shape)
            shape[axis] = self.full - factor.shape[axis]
            rest = factor.new_zeros(shape)
            factor = factor * self.ratio if axis and self.ratio != 1 else factor
        return torch.cat([factor, rest], dim=axis)

    def parted(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return tensors of the model's rank as they train: the first components, and the rest."""
        found = dict(tensors)
        for name, tensor in tensors.items() if self.rank else ():
            if (axis := rank_axis(name)) is not None:
                found[name], found[name + REST] = tensor.split(
                    [self.rank, tensor.shape[axis] - self.rank], axis
                )
        return found


PLAIN = Form()


def is_down(name: str) -> bool:
    """Return whether a tensor is a factor A."""
    return rank_axis(name) == 0


def is_up(name: str) -> bool:
    """Return whether a tensor is a factor B."""
    return rank_axis(name) == 1


def is_core(name: str) -> bool:
    """Return whether a tensor is a core R."""
    return name.endswith(CORE)


def core_name(factor: str) -> str:
    """Return the name of the core between the factors of a module.

    >>> core_name("h.0.q.lora_B.weight")
    'h.0.q.lora_core.weight'
    """
    stem = factor.removesuffix(WEIGHT)
    return stem.removesuffix(DOWN).removesuffix(UP) + CORE


def cut(tensors: Tensors, rank: int, ratio: float = 1.0) -> dict[str, Tensor]:
    """Return tensors whose factors have their first components only; other tensors stay.

    Args:
        tensors: Of a higher rank.
        rank: What is left of it.
        ratio: What the factors B are multiplied by: scale before over scale after.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        if (axis := rank_axis(name)) is not None:
            part = tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))
            found[name] = part * ratio if axis and ratio != 1 else part.clone()
    return found
