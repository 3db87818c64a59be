"""The middle of each number: one client that sends nonsense cannot move it far.

Of factors as they are, which makes a short example; `median` of Triskel takes it of their products,
which do not depend on how they are factored.

A client that did not send a tensor counts with the server's copy of it, as in the mean. Weights
count for nothing: a client could claim any (Yin et al. 2018, arXiv:1803.01498, section 3).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from triskel.errors import RoundError
from triskel.types import Aggregate, ClientUpdate, Section, Tensors

Total = tuple[Tensors, ...]


class Middle(Aggregate[Total]):
    """The middle of each number over clients; it keeps every update until the round closes."""

    def zero(self) -> Total:
        return ()

    def add(self, total: Total, update: ClientUpdate, before: Mapping[str, Section]) -> Total:
        sent = (section.tensors for section in update.sections.values())
        return (*total, {name: t for tensors in sent for name, t in tensors.items()})

    def merge(self, left: Total, right: Total) -> Total:
        return left + right

    def value(self, total: Total, before: Mapping[str, Section]) -> dict[str, Section]:
        if not total:
            raise RoundError("no client returned an update; every client of the cohort failed")
        found: dict[str, Section] = {}
        for name, section in before.items():
            stacks = {
                n: torch.stack([one.get(n, t) for one in total]) for n, t in section.tensors.items()
            }
            middle = {n: stack.quantile(0.5, dim=0) for n, stack in stacks.items()}
            found[name] = replace(section, tensors=middle)
        return found
