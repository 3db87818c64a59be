"""What goes with θ so that clients' steps agree: control variates, or AdamW's common state.

SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, weights in the place of 1/N): the
server keeps Σ nᵢ cᵢ over everybody who ever took part; a round adds nᵢ (cᵢ' - cᵢ) of who counted.

    down  c = Σ nᵢ cᵢ / Σ nᵢ          up  cᵢ' - cᵢ

So c is that of all clients and not of a round's, rounds that the server did not count leave it as
it was, and who dropped out is in it with what it said last.

FedAdamW (Liu et al. 2025, arXiv:2510.27486, Algorithm 2): clients' steps go also along the last
round's, and AdamW's second moment goes on from everybody's, of which each tensor's mean is sent.

    down  Δ = (θ - θ̄) / K̄, and v̄     up  the mean over each tensor of vᵢ, and Kᵢ steps
    K̄ = Σ nᵢ Kᵢ / Σ nᵢ,   v̄ = Σ nᵢ vᵢ / Σ nᵢ   of the last round
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from triskel.errors import MessageError
from triskel.numerics.tensors import is_finite
from triskel.types import Facts, Message, Section, Tensors
from triskel.wire.adapters import number, sections_of

CONTROL = "control"
"""The section of c, of a change of cᵢ, or of Δ; and what a client keeps as cᵢ."""
SQUARES = "squares"
"""The section of v̄, or of a client's: one number a tensor."""
TAKEN = "taken"
"""The fact that says how many steps v̄ is of."""


@dataclass(frozen=True)
class Control:
    """What the server keeps of it, or what a round's updates add to that.

    Attributes:
        sums: Σ nᵢ cᵢ, or Δ; float64.
        squares: Of second moments, by tensor, float64.
        weight: Σ nᵢ over those who are in it.
        steps: How many steps; of a round Σ nᵢ Kᵢ.
    """

    sums: Tensors = field(default_factory=dict[str, Tensor])
    squares: Tensors = field(default_factory=dict[str, Tensor])
    weight: float = 0.0
    steps: float = 0.0

    def plus(self, other: "Control") -> "Control":
        """Return both together."""
        return Control(
            _added(self.sums, other.sums),
            _added(self.squares, other.squares),
            self.weight + other.weight,
            self.steps + other.steps,
        )


@dataclass(frozen=True, kw_only=True)
class Told:
    """What of it came with a task.

    Attributes:
        control: c, or Δ.
        squares: v̄.
        steps: How many steps v̄ is of.
    """

    control: Tensors = field(default_factory=dict[str, Tensor])
    squares: Tensors = field(default_factory=dict[str, Tensor])
    steps: int = 0


class Correction:
    """What goes with θ, and what is made of what comes back: here nothing."""

    def sections(self, state: Control, like: Tensors) -> dict[str, Section]:
        """Return what goes with θ, in the types of these tensors."""
        del state, like
        return {}

    def facts(self, state: Control) -> Facts:
        """Return what is said beside it."""
        del state
        return {}

    def wanted(self, sent: Tensors) -> dict[str, Section]:
        """Return what must come with an update of these tensors, by shape."""
        del sent
        return {}

    def told(self, total: Control, update: Message, found: Tensors, weight: float) -> Control:
        """Return a round's total with what one client sent of it."""
        del update, found, weight
        return total

    def closed(self, state: Control, total: Control, now: Tensors, before: Tensors) -> Control:
        """Return what the server keeps once a round closed.

        Args:
            state: What it kept.
            total: Of the round.
            now: θ̄, or tensors of it.
            before: θ.
        """
        del total, now, before
        return state


class Scaffold(Correction):
    """Control variates go with θ."""

    def sections(self, state: Control, like: Tensors) -> dict[str, Section]:
        """Return c in the types of these tensors."""
        if not state.weight:
            return {}
        mean = {n: (total / state.weight).to(like[n].dtype) for n, total in state.sums.items()}
        return {CONTROL: Section(kind="dense", tensors=mean)}

    def wanted(self, sent: Tensors) -> dict[str, Section]:
        """Return what cᵢ' - cᵢ looks like."""
        return {CONTROL: Section(kind="dense", tensors=sent)}

    def told(self, total: Control, update: Message, found: Tensors, weight: float) -> Control:
        """Return the total and nᵢ (cᵢ' - cᵢ), with cᵢ = 0 for who is new.

        Raises:
            MessageError: A number is not finite.
        """
        _finite(CONTROL, found)
        new = weight if update.facts.get("new") is True else 0.0
        return total.plus(Control({n: weight * t.double() for n, t in found.items()}, weight=new))

    def closed(self, state: Control, total: Control, now: Tensors, before: Tensors) -> Control:
        """Return Σ nᵢ cᵢ as it is now."""
        del now, before
        return state.plus(total)


class CommonAdamW(Correction):
    """The last round's mean step and second moment go with θ; a client multiplies Δ by its η."""

    def sections(self, state: Control, like: Tensors) -> dict[str, Section]:
        """Return Δ and v̄ in the types of these tensors."""
        if not state.steps:
            return {}
        step = {n: t.to(like[n].dtype) for n, t in state.sums.items()}
        squares = {n: t.to(like[n].dtype) for n, t in state.squares.items()}
        return {
            CONTROL: Section(kind="dense", tensors=step),
            SQUARES: Section(kind="dense", tensors=squares),
        }

    def facts(self, state: Control) -> Facts:
        """Return how many steps v̄ is of."""
        return {TAKEN: round(state.steps)} if state.steps else {}

    def wanted(self, sent: Tensors) -> dict[str, Section]:
        """Return what a client's second moments look like: one number a tensor."""
        one = {n: t.new_zeros(1) for n, t in sent.items()}
        return {SQUARES: Section(kind="dense", tensors=one)}

    def told(self, total: Control, update: Message, found: Tensors, weight: float) -> Control:
        """Return the total and nᵢ vᵢ, nᵢ Kᵢ.

        Raises:
            MessageError: A second moment is negative or not finite, or the number of steps is none.
        """
        _finite(SQUARES, found)
        if low := [name for name, t in found.items() if float(t.min()) < 0]:
            raise MessageError(f"section {SQUARES!r}: a mean of squares is negative: {low[0]!r}")
        steps = number(update.facts, "steps", least=1)
        squares = {n: weight * t.double() for n, t in found.items()}
        return total.plus(Control(squares=squares, weight=weight, steps=weight * steps))

    def closed(self, state: Control, total: Control, now: Tensors, before: Tensors) -> Control:
        """Return the step and v̄ of this round, and the steps of all rounds."""
        mean = total.steps / total.weight
        step = {n: (before[n].double() - t.double()) / mean for n, t in now.items()}
        squares = {n: t / total.weight for n, t in total.squares.items()}
        return Control(sums=step, squares=squares, steps=state.steps + mean)


CORRECTIONS: Mapping[str, Callable[[], Correction]] = {
    "scaffold": Scaffold,
    "fedadamw": CommonAdamW,
}
"""Of ways to train (`spec.LOCAL`)."""


def told_in(task: Message, adapter: Tensors) -> Told:
    """Return what of it a task brings; nothing where it brings none.

    Raises:
        MessageError: A name or shape is not of the adapter that it came with, or a part is missing.
    """
    there = {n: s for n in (CONTROL, SQUARES) if (s := task.sections.get(n)) is not None}
    if TAKEN in task.facts and (lost := {CONTROL, SQUARES} - there.keys()):
        raise MessageError(f"the task has no section {min(lost)!r}, and says {TAKEN!r}")
    if not there:
        return Told()
    known = {n: {m: t for m, t in adapter.items() if m in s.tensors} for n, s in there.items()}
    like = {n: Section(kind="dense", tensors=tensors) for n, tensors in known.items()}
    if SQUARES in like:
        like |= CommonAdamW().wanted(known[SQUARES])
    found = sections_of(replace(task, sections=there), like, kind="task")
    tensors = {n: found[n].tensors if n in found else {} for n in (CONTROL, SQUARES)}
    steps = int(number(task.facts, TAKEN, least=1)) if SQUARES in found else 0
    return Told(control=tensors[CONTROL], squares=tensors[SQUARES], steps=steps)


def _finite(section: str, tensors: Tensors) -> None:
    """Refuse numbers of which no sum may be made.

    Raises:
        MessageError: One is not finite.
    """
    if bad := [name for name, t in tensors.items() if not is_finite(t)]:
        raise MessageError(f"section {section!r} has numbers in {bad[0]!r} that are not finite")


def _added(one: Tensors, other: Tensors) -> dict[str, Tensor]:
    """Return sums by name."""
    found = dict(one)
    for name, value in other.items():
        found[name] = found[name] + value if name in found else value
    return found
