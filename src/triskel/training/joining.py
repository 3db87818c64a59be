"""Which parties' passes run as one: a function of shapes, so that a resumed run joins alike."""

from collections.abc import Sequence

from triskel.model.adapters import is_lowrank
from triskel.model.fast import MAX_SIDE_BY_SIDE
from triskel.model.shared import SharedModel

TIGHT = 1.15
"""Clients are joined while padding costs at most this factor, ..."""
SMALL = 512
"""... or while the joined batch has at most this many padded tokens, ..."""
MOST = 2048
"""... and never beyond this many, whose activations all lie in memory at once."""


def worth_joining(body: SharedModel, rank: int, shapes: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Return whether one pass of several parties is cheaper: all small, little padding between.

    Args:
        body: The model they share.
        rank: Of each party's factors, where it has such.
        shapes: Rows and tokens of each party's batch, pass by pass.
    """
    parties = range(len(shapes[0]))
    if is_lowrank(body.adapter) and len(parties) * rank > MAX_SIDE_BY_SIDE:
        return False
    joined = sum(sum(r for r, _ in one) * max(t for _, t in one) for one in shapes)
    sizes = [sum(one[party][0] * one[party][1] for one in shapes) for party in parties]
    small = max(sizes) < body.choice.join
    return small and joined <= MOST and (joined <= TIGHT * sum(sizes) or joined <= SMALL)
