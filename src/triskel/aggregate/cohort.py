"""The updates of a round side by side: whole pairs, module by module, and all that is no pair.

A client's factors may have a lower rank r_k than the server's r, and a scale s_k of their own. In
units of the server's scale its product is (s_k / s) B_k A_k, and what it was sent of the server's
factors are the first r_k components. Whether the others count for it is the aggregate's to say
(`AggregateSpec.ranks`): with `rest` it held them and did not train them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from triskel.aggregate.pairs import DOWN, UP, checked, ranked, ratio, scale_of, stems
from triskel.aggregate.products import Product, Svd
from triskel.core.aggregate_spec import Ranks
from triskel.errors import RoundError
from triskel.model.side_factors import side_name
from triskel.numerics.tensors import clone
from triskel.types import ClientUpdate, Fact, Section, Tensors

SIDE = "side"
"""The section of the side factors."""

Updates = tuple[ClientUpdate, ...]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What becomes of a module.

    Attributes:
        pair: B and A at the server's scale.
        side: B' and A' to stay beside them, or None.
    """

    pair: Product
    side: Product | None = None


@dataclass(frozen=True, kw_only=True)
class Module:
    """One adapted module, as everybody has it; factors at the server's scale, in float64.

    Attributes:
        before: The server's B and A.
        side: The server's side factors.
        sent: Each client's B and A; the server's for who did not send this module.
        shares: What each client counts for; they sum to 1.
        counts: The same as given.
        scale: What the server's products are multiplied by in the model.
        dtype: What factors are kept in.
    """

    before: Product
    side: Product | None
    sent: Sequence[Product]
    shares: Sequence[float]
    counts: Sequence[float]
    scale: float
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        """The server's rank."""
        return len(self.before.right)

    @cached_property
    def whole(self) -> Sequence[Product]:
        """Each client's factors with the server's components that it did not train."""
        return [filled(one, self.before) for one in self.sent]

    @cached_property
    def mean(self) -> Product:
        """The mean of factors, rounded as it will be sent; of one client bit for bit its own."""
        found = Product(
            _mean([one.left for one in self.whole], self.counts),
            _mean([one.right for one in self.whole], self.counts),
        )
        return Product(found.left.to(self.dtype).double(), found.right.to(self.dtype).double())

    def weighed(self, parts: Sequence[Product]) -> list[Product]:
        """Return each client's product times its share."""
        return [
            Product(p.left * share, p.right) for p, share in zip(parts, self.shares, strict=True)
        ]

    def of(self, found: Svd) -> Product:
        """Return B = U S and A = V^T at the server's rank.

        Where there are fewer components, B is zero and A as the server had it, so that they train.
        """
        made = found.factors
        lacking = self.rank - len(found.s)
        left = torch.cat([made.left, made.left.new_zeros(len(made.left), lacking)], dim=1)
        return Product(left, torch.cat([made.right, self.before.right[len(found.s) :]]))


def filled(pair: Product, by: Product) -> Product:
    """Return factors with the components of others that they lack."""
    held = len(pair.right)
    left = torch.cat([pair.left, by.left[:, held:]], dim=1)
    return Product(left, torch.cat([pair.right, by.right[held:]]))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """All updates of a round, in the order of clients' names.

    Attributes:
        updates: As they were sent.
        before: What the server held.
    """

    updates: Sequence[ClientUpdate]
    before: Mapping[str, Section]

    @property
    def counts(self) -> list[float]:
        """What each client counts for, as given."""
        return [one.weight for one in self.updates]

    @property
    def shares(self) -> list[float]:
        """What each client counts for; they sum to 1."""
        whole = sum(self.counts)
        return [count / whole for count in self.counts]

    def modules(self) -> Iterator[tuple[str, Module]]:
        """Yield the name of each module with factors that somebody sent, and the module."""
        counts, shares = self.counts, self.shares
        for name, section in self.before.items():
            for stem in stems(section.tensors) if name != SIDE else ():
                sent = [pair_of(one.sections.get(name), section, stem) for one in self.updates]
                before = pair_of(section, section, stem)
                if before is None or all(pair is None for pair in sent):
                    continue
                yield (
                    stem,
                    Module(
                        before=before,
                        side=self._side(stem),
                        sent=[before if pair is None else pair for pair in sent],
                        shares=shares,
                        counts=counts,
                        scale=scale_of(section),
                        dtype=section.tensors[stem + DOWN].dtype,
                    ),
                )

    def _side(self, stem: str) -> Product | None:
        section, down = self.before.get(SIDE), side_name(stem + DOWN)
        if section is None or down not in section.tensors:
            return None
        return _product(section.tensors, down, side_name(stem + UP))

    @cached_property
    def others(self) -> Mapping[str, tuple[Tensor, list[Tensor]]]:
        """What is no pair by name: as the server had it, and as each client sent it.

        Who did not send it counts with the server's copy.
        """
        found = dict[str, tuple[Tensor, list[Tensor]]]()
        for section, held in self.before.items():
            factors = ranked(held.tensors)
            for name, tensor in held.tensors.items() if section != SIDE else ():
                if name not in factors:
                    sent = [_sent(one, section, name, tensor) for one in self.updates]
                    found[name] = (tensor, sent)
        return found

    def averaged(self) -> Tensors:
        """Return the mean of what is no pair, weighted by examples."""
        counts = self.counts
        return {
            name: _mean([one.double() for one in sent], counts)
            for name, (_, sent) in self.others.items()
        }

    def value(self, others: Tensors, made: Mapping[str, Made]) -> dict[str, Section]:
        """Return the sections of what was made; what nobody sent is as it was.

        Args:
            others: What is no pair.
            made: What becomes of modules, by name. Beside one that nobody sent the side factors
                stay that were there.
        """
        found, side = dict[str, Section](), dict[str, Tensor]()
        facts, old = dict[str, Fact](), self.before.get(SIDE)
        for name, section in self.before.items():
            if name == SIDE:
                continue
            tensors = {n: others.get(n, t) for n, t in section.tensors.items()}
            for stem in stems(tensors):
                down, up = stem + DOWN, stem + UP
                beside, facts = (side_name(down), side_name(up)), dict(section.facts)
                if (one := made.get(stem)) is not None:
                    tensors |= {down: one.pair.right, up: one.pair.left}
                    if one.side is not None and len(one.side.right):
                        rest = zip(beside, (one.side.right, one.side.left), strict=True)
                        side |= {n: t.to(section.tensors[down].dtype) for n, t in rest}
                elif old is not None and beside[0] in old.tensors:
                    side |= {n: old.tensors[n] for n in beside}
            like = section.tensors
            found[name] = replace(
                section, tensors=_rows({n: t.to(like[n].dtype) for n, t in tensors.items()})
            )
        if side:
            found[SIDE] = Section(kind="lowrank", tensors=_rows(side), facts=facts)
        return found


@dataclass(frozen=True)
class Kept:
    """An aggregate that keeps every update until the round closes; satisfies `types.Aggregate`.

    Attributes:
        rule: What the updates of a round amount to.
        ranks: What it makes of lower ranks.
    """

    rule: Callable[[Cohort], dict[str, Section]]
    ranks: Ranks = "rest"

    def zero(self) -> Updates:
        """Return the total of no updates."""
        return ()

    def add(self, total: Updates, update: ClientUpdate, before: Mapping[str, Section]) -> Updates:
        """Return the total with a copy of one client's update.

        Raises:
            RoundError: It counts for nothing, holds what is no number, or its factors do not fit.
        """
        checked(update, before, self.ranks)
        sections = {
            name: replace(section, tensors=clone(section.tensors))
            for name, section in update.sections.items()
        }
        return (*total, replace(update, sections=sections))

    def merge(self, left: Updates, right: Updates) -> Updates:
        """Return the total of both totals."""
        return left + right

    def value(self, total: Updates, before: Mapping[str, Section]) -> dict[str, Section]:
        """Return what the updates amount to, whatever order they came in.

        Raises:
            RoundError: Nobody sent anything.
        """
        if not total:
            raise RoundError("no client returned an update; every client of the cohort failed")
        updates = sorted(total, key=lambda one: one.client)
        return self.rule(Cohort(updates=updates, before=before))


def by_module(rule: Callable[[Module], Made], ranks: Ranks = "rest") -> Kept:
    """Return the aggregate of a rule for one module; what is no pair is averaged."""

    def value(cohort: Cohort) -> dict[str, Section]:
        made = {stem: rule(module) for stem, module in cohort.modules()}
        return cohort.value(cohort.averaged(), made)

    return Kept(value, ranks)


def pair_of(section: Section | None, like: Section, stem: str) -> Product | None:
    """Return a module's factors at the scale of another section, or None where it has none."""
    if section is None or stem + DOWN not in section.tensors:
        return None
    found = _product(section.tensors, stem + DOWN, stem + UP)
    by = ratio(section, like)
    return found if by == 1 else Product(found.left * by, found.right)


def _product(tensors: Tensors, down: str, up: str) -> Product:
    return Product(tensors[up].detach().double(), tensors[down].detach().double())


def _rows(tensors: Tensors) -> dict[str, Tensor]:
    """Return copies that lie row by row."""
    return {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}


def _sent(update: ClientUpdate, section: str, name: str, otherwise: Tensor) -> Tensor:
    held = update.sections.get(section)
    return otherwise if held is None else held.tensors.get(name, otherwise)


def _mean(tensors: Sequence[Tensor], counts: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, count in zip(tensors, counts, strict=True):
        total += count * tensor
    return total / sum(counts)
