"""One part of a play at a site: its talk with the server, call by call.

Every call is made again until it gets through or the server has no more use for the part; what
leaves goes through the outbox.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from triskel.config.job import ModeName
from triskel.engines.channel import arrived
from triskel.engines.flare.protocol import AHEAD, Lost, Peer, What, blob, patience, text
from triskel.engines.flare.site_outbox import Outbox
from triskel.errors import MessageError, RoundError
from triskel.training.conversation import Conversation, Sent
from triskel.types import ClientId, ClientState, Message, Talk

AGAIN_S = 1.0
"""Pause before a call that got no reply is made again."""
GIVE_UP_S = 900.0
"""How long a site tries to reach a server that does not answer."""
AN_ANSWER = 20_000_000
"""Bytes that an answer is taken to have at most, for how long to wait for it."""


class Left(Exception):  # noqa: N818 - not an error: the play goes on without this site
    """The server has no more use for this play."""


@dataclass
class Part:
    """What the site does in one play, and how far it is.

    Attributes:
        play: Its name.
        stage: The mode.
        round: Counted from 1; of a test, the round that left what is tested.
        what: Which part of the round.
        size: Bytes of its task.
        counted: The round of this client that counted last; it starts from what that one left.
        task_sha256: Of those bytes, once they are there.
        state: `working`, `done` or `failed`.
        error: Why it failed, as the server may know it.
        update: What it ended with, packed.
        flops: Counted.
        peak_bytes: Of memory, as the ledger defines it.
        seconds: Of computing, waiting left out.
        tokens: How many it trained on so far.
        stop: Whether the server went on without it.
    """

    play: str
    stage: ModeName
    round: int
    what: What
    size: int
    counted: int = 0
    task_sha256: str = ""
    state: str = "working"
    error: str = ""
    update: bytes = b""
    flops: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    tokens: int = 0
    stop: bool = False


@dataclass(frozen=True)
class Drive:
    """Plays a part.

    Attributes:
        part: Which one.
        client: Whose.
        server: The way to the server.
        outbox: The way out.
        most: Bytes that a message may have.
    """

    part: Part
    client: ClientId
    server: Peer
    outbox: Outbox
    most: int

    def task(self) -> Message:
        """Fetch what opens a part."""
        since = time.monotonic()
        while not self.part.stop:
            try:
                reply = self.server.call(
                    "fetch", patience(self.part.size), {"play": self.part.play}
                )
            except Lost:
                self._pause(since)
                continue
            if "gone" in reply:
                raise Left(text(reply, "gone"))
            data = blob(reply, "task", most=self.most)
            self.part.task_sha256 = hashlib.sha256(data).hexdigest()
            return self._arrived(data)
        raise Left("the server went on")

    def driven(self, talk: Talk) -> tuple[Message, ClientState]:
        """Drive a talk to its end, and until all that it asked is answered.

        Raises:
            Left: The part was stopped, or the server has no more use for it.
            TriskelError: Whatever stopped the client or its talk with the server.
        """
        one = Conversation(self.client, talk)
        while not one.finished:
            if self.part.stop:
                one.close()
                raise Left("the server went on")
            step = one.step()
            if isinstance(step, Sent):
                self._send(one, step)
            elif step is not None:
                one.do(step)
            elif not one.finished:  # an answer that nobody waits for is fetched too
                ticket = min(one.open) if one.waits_for is None else one.waits_for
                self._fetch(one, ticket, waits=True)
            self.part.seconds = one.seconds
        return one.hand_over()

    def _send(self, one: Conversation[Any], sent: Sent) -> None:
        """Send an ask, and bring its answer where the client waits for it."""
        if sent.ticket - one.answered_up_to > AHEAD:
            self._catch_up(one)
        data = self.leaving(sent.ask)
        answer = self._asked(sent.ticket, one.answered_up_to, data, waits=sent.waits)
        if answer is not None:
            one.answer(sent.ticket, answer)

    def _catch_up(self, one: Conversation[Any]) -> None:
        """Fetch answers that are there and were not taken yet, so that the server lets them go."""
        while (oldest := min(one.open)) < one.tickets and self._fetch(one, oldest, waits=False):
            pass

    def _fetch(self, one: Conversation[Any], ticket: int, *, waits: bool) -> bool:
        """Bring an answer that is there, or wait for it; return whether it came."""
        answer = self._asked(ticket, one.answered_up_to, b"", waits=waits)
        if answer is not None:
            one.answer(ticket, answer)
        return answer is not None

    def _asked(self, ticket: int, taken: int, data: bytes, *, waits: bool) -> Message | None:
        """Ask, again and again until the server has it, and until the answer is there if one waits.

        What was sent is not sent again.
        """
        sending, since = data, time.monotonic()
        about = {"play": self.part.play, "ticket": ticket, "taken": taken, "waits": waits}
        while True:
            if self.part.stop:
                raise Left("the server went on")
            try:
                wait = patience(2 * len(sending) + AN_ANSWER)
                reply = self.server.call("ask", wait, {**about, "data": sending})
            except Lost:
                self._pause(since)
                sending = b""
                continue
            since = time.monotonic()
            if "gone" in reply:
                raise Left(text(reply, "gone"))
            if "answer" in reply:
                return self._arrived(blob(reply, "answer", most=self.most))
            if reply.get("again"):
                if not data:
                    raise MessageError(f"the server does not know ticket {ticket}")
                sending = data
            elif waits:
                sending = b""
            else:
                return None

    @staticmethod
    def _pause(since: float) -> None:
        if time.monotonic() - since > GIVE_UP_S:
            raise RoundError(f"the server did not answer for {GIVE_UP_S:g} s")
        time.sleep(AGAIN_S)

    def leaving(self, message: Message) -> bytes:
        """Return a message as it leaves, once it is in the log and within the policy's limit.

        Raises:
            LimitError: More would leave in this round than the policy allows.
            AuditError: The log cannot be written.
        """
        return self.outbox.leaving(message, self.part.stage, self.part.round)

    def _arrived(self, data: bytes) -> Message:
        return arrived(data, self.outbox.wire, "down")
