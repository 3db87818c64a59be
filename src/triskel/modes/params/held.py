"""What a client holds already: parts of the adapter that tasks name and do not carry.

A part that did not change when the last round closed, or that never leaves its client, is not sent
again: the task names the round that left it, 0 for what the seed makes. A client that has
something else, such as one that sat out, asks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from triskel.modes.params.sharing import Part, Sharing
from triskel.types import Facts, Tensors

TOPIC = "held"
"""Of the ask for what a client lacks, its group in what the client keeps, and of facts' names."""
STARTED = -1
"""In place of a round: what the run starts from, where the seed does not make that."""
PARTS: tuple[Part, ...] = ("down", "up", "head")


def fact(part: str) -> str:
    """Return the name of the fact that says which round left a part."""
    return f"{TOPIC}_{part}"


@dataclass(frozen=True)
class Held:
    """Which round left each part of the server's tensors.

    Attributes:
        since: By part; one that is not named is as the seed makes it.
        changed: Parts that changed when the last round closed.
    """

    since: Mapping[str, int] = field(default_factory=dict[str, int])
    changed: Sequence[str] = ()

    def unsent(self, sharing: Sharing) -> dict[Part, int]:
        """Return the parts that tasks do not carry, and which round left each."""
        turns = {"down", "up"} - set(self.changed) if sharing.frozen else set[str]()
        return {p: self.since.get(p, 0) for p in PARTS if p in turns or p in sharing.stay}

    def after(self, before: Tensors, now: Tensors, sharing: Sharing, closed: int) -> "Held":
        """Return the same once a round closed.

        Args:
            before: What was sent.
            now: What the round left.
            sharing: Says which tensor is of which part.
            closed: The round.
        """
        if not sharing.frozen and not sharing.stay:
            return self
        moved = {
            sharing.part(n)
            for n, t in now.items()
            if n not in before or not torch.equal(t, before[n])
        }
        changed = tuple(part for part in PARTS if part in moved)
        return Held({**self.since, **dict.fromkeys(changed, closed)}, changed)


def named(facts: Facts) -> dict[Part, int]:
    """Return the parts that a task names and does not carry, and which round left each."""
    found = {part: facts.get(fact(part)) for part in PARTS}
    return {part: value for part, value in found.items() if type(value) is int}


def lacked(unsent: Mapping[Part, int], kept: Facts, *, own: bool, sharing: Sharing) -> set[Part]:
    """Return which of these parts a client has to ask for.

    Args:
        unsent: What the task names.
        kept: The facts that the client kept.
        own: Whether it has trained parts that never leave it.
        sharing: Says which these are.
    """
    return {
        part
        for part, since in unsent.items()
        if since and kept.get(fact(part)) != since and not (own and part in sharing.stay)
    }
