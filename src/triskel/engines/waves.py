"""Who is in flight together, and whose asks are answered now; the same rules for every engine."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from triskel.core.mode_spec import WHOLE
from triskel.types import AskStyle, ClientId, Message, Mode


def due(
    styles: Mapping[str, AskStyle],
    asks: Mapping[ClientId, Mapping[int, Message]],
    live: Collection[ClientId],
) -> dict[ClientId, int]:
    """Return which open ask of each client is answered now, by its ticket; of some clients none.

    When all live clients have asked at a barrier, it is answered: the oldest such ask of each,
    together and with no others. Until then each client's oldest ask of a stream is, whatever it
    asked at a barrier before; so neither kind waits for the other.

    Args:
        styles: How each topic is answered.
        asks: Every client's asks without an answer, by ticket.
        live: Clients that may still ask, or wait for answers.
    """
    barriers, streams = dict[ClientId, int](), dict[ClientId, int]()
    for client, some in asks.items():
        for ticket in sorted(some):
            barrier = styles.get(some[ticket].topic) == "barrier"
            (barriers if barrier else streams).setdefault(client, ticket)
    return barriers if barriers.keys() >= set(live) else streams


def groups_in_flight(
    mode: Mode[Any, Any, Any], cohort: Sequence[ClientId], *, free: int
) -> Iterator[Sequence[ClientId]]:
    """Return who is in flight together, which is the mode's to say where its clients ask.

    Args:
        mode: Bounds it by `in_flight`, unless a barrier waits for everybody.
        cohort: Who takes part.
        free: How many at a time where nobody asks, and the order of computing is free.
    """
    size = free
    if mode.asks.keys() - {WHOLE}:
        barrier = "barrier" in mode.asks.values()
        size = len(cohort) if barrier or not mode.in_flight else mode.in_flight
    for start in range(0, len(cohort), size):
        yield cohort[start : start + size]
