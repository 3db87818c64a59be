"""Pairs of low-rank factors within sections: what belongs together, and whether it fits."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from triskel.core.aggregate_spec import Ranks
from triskel.errors import RoundError
from triskel.numerics.tensors import flat, is_finite
from triskel.types import ClientUpdate, Section, Tensors

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def stems(tensors: Tensors) -> list[str]:
    """Return the names of the modules that have a pair among tensors.

    >>> import torch
    >>> t = torch.zeros(1)
    >>> stems({"q.lora_A.weight": t, "q.lora_B.weight": t, "score.weight": t})
    ['q']
    """
    found = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    return [stem for stem in found if stem + UP in tensors]


def ranked(tensors: Tensors) -> set[str]:
    """Return the names of the tensors that are half of a pair."""
    return {stem + end for stem in stems(tensors) for end in (DOWN, UP)}


def scale_of(section: Section) -> float:
    """Return what the products of a section's pairs are multiplied by in the model."""
    scale = section.facts.get("scale", 1.0)
    return float(scale) if isinstance(scale, int | float) else math.nan


def ratio(section: Section, like: Section) -> float:
    """Return by what B of one section is multiplied to stand in another: s_k / s."""
    return scale_of(section) / scale_of(like)


def checked(
    update: ClientUpdate, before: Mapping[str, Section], ranks: Ranks, *, halves: bool = False
) -> None:
    """Refuse an update that no sum may hold.

    Args:
        update: Of one client.
        before: What the server held; what is not there is not compared.
        ranks: What the aggregate makes of lower ranks.
        halves: Whether one factor of a pair may come without the other, as the server has it.

    Raises:
        RoundError: It counts for nothing, holds what is no number, or its factors do not fit.
    """
    weight, who = update.weight, f"the update of client {update.client!r}"
    if not (math.isfinite(weight) and weight > 0):
        raise RoundError(f"{who} must rest on a positive number of examples, got {weight}")
    for name, tensor in flat(update.sections).items():
        if not is_finite(tensor):
            raise RoundError(
                f"{who} has numbers in {name} that are not finite; lower train.lr, or leave the "
                "client out"
            )
    for name, section in update.sections.items():
        if (like := before.get(name)) is not None:
            _fitting(who, section, like, ranks, halves=halves)


def _fitting(who: str, section: Section, like: Section, ranks: Ranks, *, halves: bool) -> None:
    """Refuse factors that are no pair of the server's rank, or of a lower one where that may be."""
    if not (math.isfinite(scale := scale_of(section)) and scale > 0):
        raise RoundError(
            f"{who} has factors of scale {section.facts['scale']}, expected a positive number"
        )
    for stem in stems(like.tensors):
        down, up = (section.tensors.get(stem + end) for end in (DOWN, UP))
        into, out = like.tensors[stem + DOWN], like.tensors[stem + UP]
        if down is None and up is None:
            continue
        if down is None or up is None:
            if not halves:
                raise RoundError(f"{who} has one factor of {stem} without the other")
            down, up = into if down is None else down, out if up is None else up
        rank, full = len(down), len(into)
        if (*down.shape, *up.shape) != (rank, into.shape[1], len(out), rank):
            raise RoundError(
                f"{who} has factors of {stem} with shapes {list(down.shape)} and "
                f"{list(up.shape)}, expected [r, {into.shape[1]}] and [{len(out)}, r]"
            )
        if rank > full or (rank < full and ranks == "one") or not rank:
            wanted = f"rank {full}" if ranks == "one" else f"a rank from 1 to {full}"
            raise RoundError(f"{who} has factors of {stem} of rank {rank}, expected {wanted}")


def completed(section: Section, like: Section) -> Tensors:
    """Return a section's tensors, its factors at the rank and the scale of another's.

    A component that is not there is that of the other section; factors that have its rank and
    scale are themselves.
    """
    found, by = dict(section.tensors), ratio(section, like)
    for stem in stems(like.tensors):
        down, up = found.get(stem + DOWN), found.get(stem + UP)
        if down is None or up is None:
            continue
        into, out = like.tensors[stem + DOWN], like.tensors[stem + UP]
        if by != 1:
            up = up.double() * by
        if len(down) < len(into):
            down, up = torch.cat([down, into[len(down) :]]), _beside(up, out)
        found[stem + DOWN], found[stem + UP] = down, up
    return found


def _beside(up: Tensor, out: Tensor) -> Tensor:
    return torch.cat([up, out[:, up.shape[1] :].to(up.dtype)], dim=1)
