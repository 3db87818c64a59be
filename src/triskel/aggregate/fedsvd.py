"""FedSVD: clients train B alone, and the server gives the product new factors.

    B = Σ w_k B_k;   B A = U S V^T;   A ← V^T,  B ← U S

With one A the mean of B is exact, and a sum of them is all that is needed. The rows of the next A
are orthonormal and span what was learnt, instead of staying what chance made them. Lee et al. 2025,
arXiv:2505.12805, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from triskel.aggregate.cohort import pair_of
from triskel.aggregate.mean import Mean, MeanTotal
from triskel.aggregate.pairs import DOWN, UP, stems
from triskel.aggregate.products import best
from triskel.errors import RoundError
from triskel.types import ClientUpdate, Section


@dataclass(frozen=True)
class FedSvd:
    """The mean of B with new factors; satisfies `types.Aggregate`.

    Attributes:
        mean: Adds up.
    """

    mean: Mean = field(default_factory=Mean)

    def zero(self) -> MeanTotal:
        """Return the total of no updates."""
        return self.mean.zero()

    def add(
        self, total: MeanTotal, update: ClientUpdate, before: Mapping[str, Section]
    ) -> MeanTotal:
        """Return the total with one client's B folded in.

        Raises:
            RoundError: It does not fit, or the client trained A.
        """
        found = self.mean.add(total, update, before)
        for name, section in update.sections.items():
            own = before[name].tensors if name in before else {}
            for stem in stems(own):
                sent = section.tensors.get(stem + DOWN)
                if sent is not None and not torch.equal(own[stem + DOWN][: len(sent)], sent):
                    raise RoundError(
                        f"client {update.client!r} sent another {stem + DOWN} than it was sent, "
                        'and fedsvd is for clients that train B alone: params.trains = "ffa"'
                    )
        return found

    def merge(self, left: MeanTotal, right: MeanTotal) -> MeanTotal:
        """Return the total of both totals."""
        return self.mean.merge(left, right)

    def value(self, total: MeanTotal, before: Mapping[str, Section]) -> dict[str, Section]:
        """Return the factors of the mean product.

        Raises:
            RoundError: Nobody sent anything.
        """
        found = dict(self.mean.value(total, before))
        for name, section in found.items():
            tensors = dict[str, Tensor](section.tensors)
            for stem in stems(tensors):
                pair = pair_of(section, section, stem)
                if pair is None or stem + UP not in total.sums:
                    continue
                made = best(pair, len(pair.right)).factors
                tensors[stem + DOWN] = made.right.to(tensors[stem + DOWN].dtype).contiguous()
                tensors[stem + UP] = made.left.to(tensors[stem + UP].dtype).contiguous()
            found[name] = replace(section, tensors=tensors)
        return found
