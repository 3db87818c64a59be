"""Updates folded into a round's total, none with a larger share than the job lets it have.

A client's weight is its number of examples n. Where `clients.max_share` m is below 1, it is

    w = min(n, c),    c the largest number with    w_i <= m sum_j w_j    for every client i

and where m is below 1 / clients, all weights are alike. Who finishes a round is known when it is
over, so updates then wait until it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic

from triskel.config.job import Job
from triskel.training.worker import Worker
from triskel.types import A, ClientId, Message, Mode, S
from triskel.wire.adapters import number


def capped(examples: Mapping[ClientId, float], most: float) -> dict[ClientId, float]:
    """Return each client's weight: its examples, lowered so far that no share is above `most`.

    >>> capped({"a": 90.0, "b": 30.0, "c": 30.0}, 0.5)
    {'a': 60.0, 'b': 30.0, 'c': 30.0}
    >>> capped({"a": 90.0, "b": 30.0}, 0.2)
    {'a': 30.0, 'b': 30.0}
    """
    sizes, total = sorted(examples.values(), reverse=True), sum(examples.values())
    if not sizes or sizes[0] <= most * total:
        return dict(examples)
    cap = sizes[-1]
    for count in range(1, len(sizes) + 1):
        rest = math.fsum(sizes[count:])  # not by taking away, which loses what is small
        if most * count >= 1:
            break
        level = most * rest / (1 - most * count)
        if count == len(sizes) or level >= sizes[count]:
            cap = max(level, sizes[-1])
            break
    return {client: min(n, cap) for client, n in examples.items()}


@dataclass
class Fold(Generic[S, A]):
    """A round's total as updates come in.

    Attributes:
        job: How large a share may be.
        mode: The algorithm.
        state: What the round began with.
        total: What was folded so far.
        weights: What updates count in the place of examples.
    """

    job: Job
    mode: Mode[S, A, Worker]
    state: S
    total: A
    weights: Mapping[ClientId, int] | None = None
    _examples: dict[ClientId, float] = field(default_factory=dict[ClientId, float])
    _waiting: dict[ClientId, Message] = field(default_factory=dict[ClientId, Message])

    def add(self, client: ClientId, update: Message) -> None:
        """Take a client's update.

        Raises:
            MessageError: It is not one of this mode, round or model.
        """
        if self.weights is not None and self.mode.weighted:
            number(update.facts, "examples", least=1)
            facts = {**update.facts, "examples": self.weights[client]}
            update = replace(update, facts=facts)
        folded = self.mode.add(self.state, self.total, client, update)
        if not self.mode.weighted:
            self.total = folded
            return
        self._examples[client] = number(update.facts, "examples", least=1)
        if self.job.clients.max_share < 1:
            self._waiting[client] = update
        else:
            self.total = folded

    def close(self) -> tuple[A, dict[ClientId, float]]:
        """Return the total, and each client's share in it where it is a mean by examples."""
        weights = capped(self._examples, self.job.clients.max_share)
        for client, update in sorted(self._waiting.items()):
            facts = {**update.facts, "examples": weights[client]}
            weighed = replace(update, facts=facts)
            self.total = self.mode.add(self.state, self.total, client, weighed)
        self._waiting.clear()
        if not weights:
            return self.total, {}
        whole = sum(weights.values())
        return self.total, {client: weight / whole for client, weight in weights.items()}
