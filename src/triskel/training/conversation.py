"""A client's half of a round, driven: asks go out with tickets, answers come in by ticket, it ends.

The client is a generator (`types.Talk`); what sends its asks, brings answers and runs its own work
is whoever drives it: an engine in one process, a site between calls, a test. All of them go by the
same rules, which are here; nothing here sends anything:

    step = conversation.step()
    a `Sent`   carry the ask to the server; the client is told its ticket, or waits for the answer
    a `Work`   run it, alone (`do`) or together with other clients' work
    None       the client waits for the answer to ticket `waits_for`, or it is over

An update counts once every ask of its client is answered (`finished`), also where the client did
not wait for an answer: what a round amounts to is then no matter of who was quick.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from triskel.errors import RoundError
from triskel.types import ClientId, Local, Message, Post, Reply, Step, Take, Work

R = TypeVar("R")
"""What a talk ends with: a client's round, its update and its next state."""


@dataclass(frozen=True)
class Sent:
    """An ask on its way.

    Attributes:
        ticket: Its number, from 1 on.
        ask: What is asked.
        waits: Whether the client goes on only when the answer is there.
    """

    ticket: int
    ask: Message
    waits: bool


@dataclass
class Conversation(Generic[R]):
    """One talk, and how far it is.

    Attributes:
        client: Whose, for the sentences of errors.
        talk: The client's half.
        tickets: How many asks it sent.
        open: Tickets of those that have no answer yet.
        answers: Answers that came and were not taken, by ticket.
        waits_for: The ticket that the client cannot go on without.
        seconds: Of the client's own computing, waiting left out.
        over: Whether the client said all that it has to say.
    """

    client: ClientId
    talk: Generator[Step, Reply, R]
    tickets: int = 0
    open: set[int] = field(default_factory=set[int])
    answers: dict[int, Message] = field(default_factory=dict[int, Message])
    waits_for: int | None = None
    seconds: float = 0.0
    over: bool = False
    _reply: Reply = None
    _end: list[R] = field(default_factory=list[R])

    @property
    def finished(self) -> bool:
        """Whether the client is over and all that it asked is answered, so that its end counts."""
        return self.over and not self.open

    @property
    def answered_up_to(self) -> int:
        """The last ticket of those that have their answers without a gap; 0 before the first."""
        return min(self.open, default=self.tickets + 1) - 1

    def step(self) -> Sent | Work | None:
        """Let the client go on, and return what it wants done; None where it cannot go on.

        Raises:
            RoundError: It takes an answer that no ticket of its own stands for any more.
            Exception: Whatever the client raised.
        """
        while not self.over:
            if self.waits_for is not None:
                if self.waits_for not in self.answers:
                    return None
                self._reply, self.waits_for = self.answers.pop(self.waits_for), None
            step = self._next()
            if isinstance(step, Local):
                return step.work
            if isinstance(step, Take):
                self._take(step.ticket)
            elif step is not None:
                return self._send(step.ask, waits=not isinstance(step, Post))
        return None

    def answer(self, ticket: int, message: Message) -> None:
        """Bring the answer to an ask; what nobody can take any more is let go.

        Raises:
            RoundError: No ask with this ticket is open.
        """
        if ticket not in self.open:
            raise RoundError(f"client {self.client!r} was answered to ticket {ticket}, not open")
        self.open.remove(ticket)
        if not self.over:
            self.answers[ticket] = message

    def do(self, work: Work) -> None:
        """Run a piece of the client's own work by itself, in the client's time."""
        start = time.perf_counter()
        work.run()
        self.seconds += time.perf_counter() - start

    def close(self) -> None:
        """End the client's half early; what it holds is freed."""
        self.talk.close()

    def hand_over(self) -> R:
        """Return what the talk ended with, and keep nothing of it.

        Raises:
            RoundError: It did not end yet, or an ask of it has no answer.
        """
        if not self.finished or not self._end:
            raise RoundError(f"client {self.client!r} has not finished: its end does not count yet")
        return self._end.pop()

    def _next(self) -> Step | None:
        """Return the client's next step, or None where there is none."""
        reply, self._reply = self._reply, None
        start = time.perf_counter()
        try:
            return self.talk.send(reply)
        except StopIteration as end:
            self._end.append(cast("R", end.value))
            self.over = True
            self.answers.clear()
            return None
        finally:
            self.seconds += time.perf_counter() - start

    def _send(self, ask: Message, *, waits: bool) -> Sent:
        self.tickets += 1
        self.open.add(self.tickets)
        if waits:
            self.waits_for = self.tickets
        else:
            self._reply = self.tickets
        return Sent(self.tickets, ask, waits)

    def _take(self, ticket: int) -> None:
        if not 1 <= ticket <= self.tickets:
            raise RoundError(f"client {self.client!r} waits for ticket {ticket}, never given")
        if ticket not in self.open and ticket not in self.answers:
            raise RoundError(f"client {self.client!r} waits for ticket {ticket} a second time")
        self.waits_for = ticket


def alone(talk: Generator[Step, Reply, R], client: ClientId = "") -> R:
    """Drive a talk that asks nothing, every piece of its work by itself; return what it returns.

    Raises:
        RoundError: It asks.
    """
    one = Conversation(client, talk)
    while not one.over:
        step = one.step()
        if isinstance(step, Sent):
            raise RoundError(
                f"client {client!r} asks about {step.ask.topic!r}, and nobody is there to answer"
            )
        if step is not None:
            one.do(step)
    return one.hand_over()
