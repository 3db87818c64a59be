"""SCAFFOLD at the server: the mean c of clients' control variates cᵢ, weighted as their updates.

    Σ nᵢ cᵢ is kept, over everybody who ever took part; a round adds nᵢ (cᵢ' - cᵢ) of who counted.

So c is that of all clients and not of a round's, rounds that the server did not count leave it as
it was, and who dropped out is in it with what it said last. Karimireddy et al. 2020,
arXiv:1910.06378, Algorithm 1, with weights in the place of 1/N.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from triskel.modes.params.local import CONTROL
from triskel.numerics.tensors import flat
from triskel.types import Message, Section, Tensors
from triskel.wire.adapters import sections_of


@dataclass(frozen=True)
class Control:
    """Σ nᵢ cᵢ, or what a round adds to it.

    Attributes:
        sums: By name, float64.
        weight: Σ nᵢ over those who are in it.
    """

    sums: Tensors = field(default_factory=dict[str, Tensor])
    weight: float = 0.0

    def of(self, like: Tensors) -> dict[str, Tensor]:
        """Return c in the types of these tensors; nothing before anybody took part."""
        if not self.weight:
            return {}
        return {
            name: (total / self.weight).to(like[name].dtype) for name, total in self.sums.items()
        }

    def told(self, change: Tensors, weight: float, *, new: bool) -> "Control":
        """Return this with what one client's cᵢ changed by.

        Args:
            change: cᵢ' - cᵢ, with cᵢ = 0 for who is new.
            weight: nᵢ.
            new: Whether it takes part for the first time.
        """
        return self.plus(Control({n: weight * t.double() for n, t in change.items()}, new * weight))

    def plus(self, other: "Control") -> "Control":
        """Return both together."""
        sums = dict(self.sums)
        for name, value in other.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        return Control(sums, self.weight + other.weight)


def control_in(task: Message, adapter: Tensors) -> Tensors:
    """Return c as a task brings it; nothing where it brings none.

    Raises:
        MessageError: A name or shape is not of the adapter that it came with.
    """
    control = task.sections.get(CONTROL)
    if control is None:
        return {}
    shapes = {n: t for n, t in adapter.items() if n in control.tensors}
    like = {CONTROL: Section(kind="dense", tensors=shapes)}
    return flat(sections_of(replace(task, sections={CONTROL: control}), like, kind="task"))
