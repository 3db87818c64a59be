"""Where the tensors that train lie in a base model: the slots of its adapter and of its head.

A slot is a module and the name of its attribute that holds a tensor. Tensors are known by the names
of their slots, in the model and wherever they travel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triskel.config.sections import Adapter
from triskel.errors import ModelError
from triskel.model.adapters import scale_of
from triskel.model.blocks import Blocks
from triskel.model.reparametrisation import PLAIN, REST, Form
from triskel.model.side_factors import misfit, parted
from triskel.types import Tensors

Slots = Mapping[str, tuple[nn.Module, str]]


@dataclass(frozen=True)
class Layout:
    """Which trainable tensor belongs where.

    Attributes:
        head: Names of the task head's tensors.
        block: Block of every adapter tensor; 0 for those that make embeddings.
        scale: What a product of low-rank factors is multiplied by.
    """

    head: tuple[str, ...]
    block: Mapping[str, int]
    scale: float

    def within(self, low: int, high: int, *, head: bool = False) -> list[str]:
        """Return names of tensors in blocks [low, high), and of the head where asked."""
        inside = [name for name, block in self.block.items() if low <= block < high]
        return inside + (list(self.head) if head else [])


def layout_of(slots: Slots, blocks: Blocks, adapter: Adapter) -> Layout:
    """Return which tensor belongs where, by the names of the slots."""
    inside = tuple(f"{name}." for name in blocks.head_names)
    head = tuple(n for n in slots if n.startswith(inside))
    prefix = f"{blocks.family.blocks}."
    return Layout(
        head=head,
        block={n: _block(n, prefix) for n in slots if n not in head},
        scale=scale_of(adapter),
    )


def _block(name: str, prefix: str) -> int:
    """Return the block of a tensor; what makes embeddings goes with the first."""
    return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else 0


def values_in(slots: Slots) -> dict[str, Tensor]:
    """Return copies of what lies in slots."""
    return {
        name: cast("Tensor", getattr(owner, attribute)).detach().clone().cpu()
        for name, (owner, attribute) in slots.items()
    }


def leaves_of(
    tensors: Tensors,
    *,
    like: Tensors,
    dtype: torch.dtype,
    device: torch.device,
    form: Form = PLAIN,
) -> dict[str, nn.Parameter]:
    """Return copies of tensors that autograd can differentiate by; what is frozen needs none.

    Args:
        tensors: Values by slot, or what slots' are made of, and side factors beside them.
        like: A tensor for every slot there is, of the shape that it takes.
        dtype: Of the copies.
        device: Where they are.
        form: What slots take of the tensors, and which of them train.

    Raises:
        ModelError: There is no such slot, it takes another shape, or a side factor does not fit.
    """
    leaves = dict[str, nn.Parameter]()
    trained, side = parted(tensors)
    if (why := misfit(side, like)) is not None:
        raise ModelError(why)
    for name, tensor in form.factors(trained).items():
        expected = like.get(name)
        if expected is None or expected.shape != tensor.shape:
            shape = None if expected is None else tuple(expected.shape)
            raise ModelError(
                f"tensor {name!r} of shape {tuple(tensor.shape)} does not fit this model, "
                f"which has {shape}"
            )
    for name, tensor in tensors.items():
        copy = tensor.detach().to(
            device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format
        )
        trains = form.trains is None or name in form.trains
        frozen = name in side or name.endswith(REST)
        leaves[name] = nn.Parameter(copy, requires_grad=trains and not frozen)
    return leaves
