"""Who is in flight together, and whose asks are answered now; the same rules for every engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from triskel.types import AskStyle, ClientId, Message, Mode


def due(
    styles: Mapping[str, AskStyle], asks: Mapping[ClientId, Message], live: Sequence[ClientId]
) -> dict[ClientId, Message]:
    """Return the asks to answer now: streams at once, a barrier when all live clients are at it."""
    waiting = {c for c, ask in asks.items() if styles.get(ask.topic) == "barrier"}
    if waiting >= set(live):
        return dict(asks)
    return {c: ask for c, ask in asks.items() if c not in waiting}


def crews(
    mode: Mode[Any, Any, Any], cohort: Sequence[ClientId], *, free: int
) -> Iterator[Sequence[ClientId]]:
    """Return who is in flight together: `free` where nobody asks, all where all must have."""
    size = free
    if mode.asks:
        barrier = "barrier" in mode.asks.values()
        size = len(cohort) if barrier or not mode.in_flight else mode.in_flight
    for start in range(0, len(cohort), size):
        yield cohort[start : start + size]
