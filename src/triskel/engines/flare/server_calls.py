"""The server's calls to one client in a play: begin, then collect until its part is over."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from triskel.config.job import Job
from triskel.engines.channel import MB
from triskel.engines.flare.protocol import (
    HOLD_S,
    SLOWEST,
    Lost,
    Peer,
    blob,
    patience,
    spent_of,
    text,
    whole,
)
from triskel.engines.flare.server_inbox import Inbox
from triskel.errors import MessageError
from triskel.types import ClientId

AGAIN_S = 1.0
"""Pause before a call that got no reply is made again."""


@dataclass(frozen=True)
class Follower:
    """Calls one client until its part in a play is over.

    Attributes:
        job: Limits and patience.
        inbox: The play.
        client: Who is called.
        peer: The way to it, where it has a part in this submission.
        order: What begins its part.
        absent: Clients that did not answer in their last play, and why; those back leave it.
        welcome: Asks a client that was away whether it is ready; returns why not, or nothing.
    """

    job: Job
    inbox: Inbox
    client: ClientId
    peer: Peer | None
    order: Mapping[str, Any]
    absent: dict[ClientId, str]
    welcome: Callable[[ClientId], str]

    def follow(self) -> None:
        """Begin, then collect; a call without a reply is made again until patience ends."""
        begun, peer = False, self.peer
        if peer is None:
            self.inbox.leave(self.client, "has no part in this submission")
            return
        while not self.inbox.closed and self.client in self.inbox.open():
            try:
                if self.client in self.absent and not self._back():
                    return
                begun = self._turn(peer, begun=begun)
            except Lost:
                time.sleep(AGAIN_S)
            except MessageError as error:
                self.inbox.leave(self.client, f"its reply cannot be read: {error}")

    def _back(self) -> bool:
        """Say whether a client that was lost before is there again; wait for it no second time."""
        try:
            why = self.welcome(self.client)
        except Lost:
            why = f"still away ({self.absent[self.client]})"
        if why:
            self.inbox.leave(self.client, why)
            return False
        self.absent.pop(self.client, None)
        return True

    def _turn(self, peer: Peer, *, begun: bool) -> bool:
        """Make one call; return whether the site is at this play."""
        play, options = self.order["play"], self.job.federation
        if begun:
            hold = min(HOLD_S, options.patience_s / 4)
            reply = peer.call("collect", patience(), {"play": play, "hold_s": hold})
        else:
            reply = peer.call("begin", patience(), {"order": dict(self.order)})
        state = text(reply, "state")
        if state == "unknown":
            return False
        if state == "done":
            most = int(self.job.wire.max_mb * MB)
            spent, size = spent_of(reply), whole(reply, "size", most=most)
            self.inbox.heard(self.client, whole(reply, "tokens"), busy_s=size / SLOWEST)
            given = peer.call("hand_over", patience(size), {"play": play})
            self.inbox.done(self.client, blob(given, "update", most=most), spent)
        elif state == "failed":
            self.inbox.leave(self.client, text(reply, "error") or "it failed and did not say why")
        elif state == "working":
            self.inbox.heard(self.client, whole(reply, "tokens"))
        else:
            raise MessageError(f"a site is never {state!r}")
        return True
