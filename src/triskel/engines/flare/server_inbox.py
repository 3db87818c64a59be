"""Where asks of one play wait for their answers: the server's side of every open talk.

Sites' calls come in on threads of their own and wait here; the one thread that runs the mode takes
what is due, and brings answers back. A call that is made again finds what it found before.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from triskel.engines.flare.protocol import AHEAD, HOLD_S, Reply, Spent
from triskel.engines.waves import due
from triskel.errors import TriskelError
from triskel.types import AskStyle, ClientId, Message


@dataclass
class Line:
    """One client's talk, as the server sees it.

    Attributes:
        task: What opens it, packed.
        asked: Asks that have no answer yet, by ticket, and how many bytes each had.
        answered: Answers that the client did not say it has, packed.
        tickets: How many asks came.
        waits: The ticket that the client cannot go on without.
        turn: The ticket of the ask that is being answered.
        calls: How many calls waited here; only the last one does, so that a client holds one thread
            of the server however often it calls.
        update: How it ended, packed.
        spent: What it cost the client.
        gone: Why it counts no more; empty while it does.
        heard: When the client was last heard of.
        tokens: How many it trained on in this play, as it says.
    """

    task: bytes
    asked: dict[int, tuple[Message, int]] = field(default_factory=dict[int, tuple[Message, int]])
    answered: dict[int, bytes] = field(default_factory=dict[int, bytes])
    tickets: int = 0
    waits: int | None = None
    turn: int | None = None
    calls: int = 0
    update: bytes | None = None
    spent: Spent | None = None
    gone: str = ""
    heard: float = field(default_factory=time.monotonic)
    tokens: int = 0

    @property
    def at_it(self) -> bool:
        """Whether the client has yet to say how it ends."""
        return self.update is None and not self.gone

    @property
    def open(self) -> bool:
        """Whether its part is not over: it is still at it, or asks of it have no answer."""
        return self.at_it or bool(self.asked)

    @property
    def waiting(self) -> bool:
        """Whether the client does nothing until an ask of it is answered."""
        return self.waits in self.asked or not self.at_it


class Inbox:
    """The open talks of one play.

    Args:
        play: Its name; calls that speak of another are turned away.
        tasks: What opens each client's talk.
        read: Turns a client's bytes into the message it asks with, or raises a `MessageError`.
        most: Bytes that a client's asks without an answer may have together.
        changed: Told when something changes, where somebody waits for several plays.
    """

    def __init__(
        self,
        play: str,
        tasks: Mapping[ClientId, bytes],
        read: Callable[[bytes, ClientId], Message],
        most: int,
        changed: threading.Condition | None = None,
    ) -> None:
        self.play = play
        self.lines = {client: Line(task) for client, task in sorted(tasks.items())}
        self._read, self._most = read, most
        self._changed = changed or threading.Condition()
        self._closed = ""
        self._first: float | None = None

    # --- what sites call ----------------------------------------------------------------------

    def fetch(self, client: ClientId, play: str) -> Reply:
        """Return a client's task."""
        with self._changed:
            why = self._stranger(client, play)
            return {"gone": why} if why else {"task": self.lines[client].task}

    def ask(
        self, client: ClientId, play: str, *, ticket: int, taken: int, waits: bool, data: bytes
    ) -> Reply:
        """Take a client's ask, and wait for its answer if the client does.

        Args:
            client: Who asks, as the engine authenticated it.
            play: The play it believes to be in.
            ticket: The number of the ask, from 1 on.
            taken: Up to which ticket the client has all answers.
            waits: Whether it waits for this answer now.
            data: The ask, or nothing where it was sent before.

        Returns:
            `answer` with bytes, `later`, `again` where the ask never came, or `gone` with the
            reason.
        """
        with self._changed:
            if why := self._stranger(client, play):
                return {"gone": why}
            line = self.lines[client]
            line.heard = time.monotonic()
            known = ticket <= line.tickets
            if not known and not data:
                return {"again": True}
            wrong = _out_of_order(line, ticket, taken) or self._too_much(line, ticket, len(data))
        message: Message | None = None
        if not wrong and not known:
            try:
                message = self._read(data, client)
            except TriskelError as error:
                wrong = str(error)
        with self._changed:
            if wrong:
                self._leave(client, wrong)
            elif message is not None and line.at_it and ticket == line.tickets + 1:
                line.tickets = ticket
                line.asked[ticket] = message, len(data)
                self._first = self._first or time.monotonic()
            for old in [t for t in line.answered if t <= taken]:
                del line.answered[old]
            if waits and ticket in line.asked:
                line.waits = ticket
            self._changed.notify_all()
            if waits and not wrong:
                line.calls += 1
                mine = line.calls
                self._changed.wait_for(
                    lambda: self._settled(line, ticket) or line.calls > mine, HOLD_S
                )
            return self._reply(client, ticket)

    def _too_much(self, line: Line, ticket: int, size: int) -> str:
        held = sum(held for _, held in line.asked.values())
        if ticket > line.tickets and held and held + size > self._most:
            return f"its open asks have more than {self._most} bytes (wire.max_mb)"
        return ""

    def _settled(self, line: Line, ticket: int) -> bool:
        return ticket not in line.asked or bool(self._closed)

    def _reply(self, client: ClientId, ticket: int) -> Reply:
        line = self.lines[client]
        if ticket in line.answered:
            return {"answer": line.answered[ticket]}
        why = line.gone or self._closed
        if not why and ticket not in line.asked:
            why = f"ticket {ticket} was answered before; the talk cannot begin anew"
        return {"gone": why} if why else {"later": True}

    def _stranger(self, client: ClientId, play: str) -> str:
        """Return why a client has no part in this play, or nothing."""
        if play != self.play:
            return f"{play} is not open; {self.play} is"
        if client not in self.lines:
            return f"{client} takes no part in {play}"
        return self.lines[client].gone or self._closed

    # --- what the one who runs the mode calls -------------------------------------------------

    def due(self, styles: Mapping[str, AskStyle], window_s: float | None) -> dict[str, Message]:
        """Return the ask of each client that is to be answered now; of some clients none.

        Args:
            styles: How each topic is answered.
            window_s: None to wait until every live client waits for an answer; else the seconds
                after which those who asked are answered without the others.
        """
        with self._changed:
            live = [c for c, line in self.lines.items() if line.open]
            if not all(self.lines[c].waiting for c in live):
                late = window_s is None or self._first is None
                if late or time.monotonic() - (self._first or 0) < (window_s or 0):
                    return {}
            found = dict[ClientId, Message]()
            asked = {c: self.lines[c].asked for c in live}
            asks = {c: {t: ask for t, (ask, _) in some.items()} for c, some in asked.items()}
            for client, ticket in due(styles, asks, live).items():
                self.lines[client].turn = ticket
                found[client] = asks[client][ticket]
            return found

    def size(self, client: ClientId) -> int:
        """Return how many bytes the ask of a client had that is being answered."""
        with self._changed:
            line = self.lines[client]
            return line.asked[line.turn][1] if line.turn in line.asked else 0

    def deliver(self, answers: Mapping[ClientId, bytes]) -> None:
        """Answer the asks that were due."""
        with self._changed:
            for client, answer in answers.items():
                line = self.lines[client]
                ticket, line.turn = line.turn, None
                if ticket is None or ticket not in line.asked:
                    continue  # it was lost meanwhile
                del line.asked[ticket]
                line.answered[ticket] = answer
                line.waits = None if line.waits == ticket else line.waits
            pending = any(line.asked for line in self.lines.values())
            self._first = time.monotonic() if pending else None
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until something changes, or for so long."""
        with self._changed:
            self._changed.wait(seconds)

    def heard(self, client: ClientId, tokens: int, *, busy_s: float = 0.0) -> None:
        """Note that a client gave a sign of life; the next one may be so many seconds later."""
        with self._changed:
            self.lines[client].heard = time.monotonic() + busy_s
            self.lines[client].tokens = tokens

    def done(self, client: ClientId, update: bytes, spent: Spent) -> None:
        """Take a client's update; one that comes too late counts no more."""
        with self._changed:
            line = self.lines[client]
            if line.at_it:
                line.update, line.spent = update, spent
            self._changed.notify_all()

    def leave(self, client: ClientId, why: str) -> None:
        """Go on without a client."""
        with self._changed:
            self._leave(client, why)

    def _leave(self, client: ClientId, why: str) -> None:
        line = self.lines[client]
        line.gone = line.gone or why
        line.asked.clear()
        line.answered.clear()
        self._changed.notify_all()

    def silent(self, seconds: float) -> list[ClientId]:
        """Return the clients still at it that were not heard of for so long."""
        now = time.monotonic()
        with self._changed:
            return [c for c, x in self.lines.items() if x.at_it and now - x.heard > seconds]

    def open(self) -> list[ClientId]:
        """Return the clients still at it."""
        with self._changed:
            return [c for c, line in self.lines.items() if line.at_it]

    def close(self, why: str) -> None:
        """Turn away whoever still calls."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the play is over."""
        return bool(self._closed)

    def standing(self) -> dict[ClientId, dict[str, Any]]:
        """Return what each client is at, for whoever looks."""
        with self._changed:
            return {
                c: {"state": _word(line), "tokens": line.tokens} for c, line in self.lines.items()
            }

    def waited_for(self) -> Collection[ClientId]:
        """Return the clients that the play waits for: those at work, where others wait."""
        with self._changed:
            return [c for c, line in self.lines.items() if _word(line) == "working"]


def _word(line: Line) -> str:
    if line.gone:
        return "down"
    if line.update is not None:
        return "done"
    return "waiting" if line.waits in line.asked else "working"


def _out_of_order(line: Line, ticket: int, taken: int) -> str:
    """Return what is wrong with the number of an ask, or nothing."""
    if not 0 <= taken < ticket:
        return f"ticket {ticket} with all answers up to {taken} taken makes no sense"
    if ticket > line.tickets + 1:
        return f"ticket {ticket} follows ticket {line.tickets}; asks were lost or made up"
    kept = [old for old in line.answered if old > taken]
    if ticket > line.tickets and len(line.asked) + len(kept) >= AHEAD:
        return f"ticket {ticket} is more than {AHEAD} ahead of the oldest answer it lacks"
    return ""
