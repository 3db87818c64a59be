"""What the two sides of a federation say to each other, call by call.

The server calls a site:

    hello(about)         who are you, may this job run, what do you hold?   again until it is ready,
                         and when it was away
    begin(order)         play this part, whose task has so many bytes, from what the round left that
                         counted last; the site fetches it
    collect(play)        how far is it? once it is done: what it cost, how large its update is
    hand_over(play)      the update
    finish(stage, counted)  a stage is over: keep what is yours of the round counted last

A site calls the server while it plays:

    fetch(play)                              its task
    ask(play, ticket, taken, waits, data)    the answer, or that it comes `later`
    ask(play, ticket, taken, waits, b"")     the same for an ask that was sent, or send it `again`

A call may be repeated: what it names (a play, a ticket) was done already then, and the reply is the
same. No call lasts long: one that waits for something comes back after `HOLD_S` with "not yet". So
a call that gets no answer is a fault of the link or the peer, and is made again. Large things go
down as replies, since those are several times faster than requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from triskel.errors import MessageError
from triskel.wire import show

HOLD_S = 5.0
"""How long a call waits for what is not there yet."""
GRACE_S = 10.0
"""How much longer than that a caller waits for the reply."""
SLOWEST = 2_000_000
"""Bytes a second that a link is taken to carry at least."""
AHEAD = 16
"""Asks that a client may have on their way: from the oldest whose answer it lacks, to the last."""
LONGEST = 300
"""Characters of a sentence from a peer that are repeated."""

LONG_S = 1e9
"""Seconds that a peer may speak of."""

Reply = Mapping[str, Any]
What = Literal["work", "probe", "student"]
"""Parts a site plays: its round, its test of the round's state, its test of the server's own."""


class Lost(Exception):  # noqa: N818 - not an error of this package: the call is made again
    """A call got no reply: the link is down, the peer is, or it took too long."""


@runtime_checkable
class Peer(Protocol):
    """The way to the other side."""

    def call(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> Reply:
        """Call a published method of the peer.

        Raises:
            Lost: No reply came.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a play cost a site, as it says.

    Attributes:
        flops: Counted.
        peak_bytes: Of memory, as the ledger defines it.
        seconds: Of computing, waiting left out.
    """

    flops: int
    peak_bytes: int
    seconds: float


def play_of(stage: str, round_: int, what: What, session: str) -> str:
    """Return the name of one part of a round; a server that goes on plays under another one."""
    return f"{stage}/{round_}/{what}/{session}"


def patience(size: int = 0) -> float:
    """Return how many seconds a caller waits for a call that moves this many bytes."""
    return HOLD_S + GRACE_S + size / SLOWEST


def text(reply: Mapping[str, Any], name: str, *, longest: int = LONGEST) -> str:
    """Return a word or a sentence of a peer, bounded and printable; empty if it is not there."""
    found = reply.get(name, "")
    if type(found) is not str:
        raise MessageError(f"{name} must be text, got {show(type(found).__name__)}")
    return "".join(c if c.isprintable() else "?" for c in found[:longest])


def whole(reply: Mapping[str, Any], name: str, *, most: int = 2**62) -> int:
    """Return a number of a peer that counts something."""
    found = reply.get(name)
    if type(found) is not int or not 0 <= found <= most:
        raise MessageError(f"{name} must be a whole number from 0 to {most}, got {show(found)}")
    return found


def span(reply: Mapping[str, Any], name: str) -> float:
    """Return seconds of a peer."""
    found = reply.get(name)
    if not (type(found) is int or type(found) is float) or not 0 <= found <= LONG_S:
        raise MessageError(
            f"{name} must be seconds, a number from 0 to {LONG_S:g}, got {show(found)}"
        )
    return float(found)


def blob(reply: Mapping[str, Any], name: str, *, most: int) -> bytes:
    """Return bytes of a peer; looked at for type and size, and for nothing else."""
    found = reply.get(name)
    if type(found) is not bytes:
        raise MessageError(f"{name} must be bytes, got {type(found).__name__}")
    if len(found) > most:
        raise MessageError(f"{name} has {len(found)} bytes, the limit is {most} (wire.max_mb)")
    return found


def spent_of(reply: Mapping[str, Any]) -> Spent:
    """Return what a site says that a play cost it."""
    return Spent(
        flops=whole(reply, "flops"),
        peak_bytes=whole(reply, "peak_bytes"),
        seconds=span(reply, "seconds"),
    )
