"""One play at the server: a part for every client of a group, at the same time.

Asks come in on the sites' own calls and wait on the inbox; one thread runs the mode here: it
answers what is due, and takes what clients end with in the order of their names. Whoever is silent,
slow, or sends what cannot be worked with is lost, and the play goes on with the others.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from triskel.config.job import Job
from triskel.engines.channel import MB, Channel
from triskel.engines.flare.protocol import Peer, Spent, What, play_of, whole
from triskel.engines.flare.server_calls import Follower
from triskel.engines.flare.server_inbox import Inbox
from triskel.errors import MessageError, RoundError, TriskelError
from triskel.policy.limits import least_by
from triskel.training.mode_setting import Trial
from triskel.training.worker import Worker
from triskel.types import ClientId, Message, Mode
from triskel.wire.alike import alike

LOGGER = logging.getLogger("triskel.server")
TURN_S = 0.5
"""How often the server looks for clients that went silent."""
Take = Callable[[ClientId, Message, Spent], None]


@runtime_checkable
class Server(Protocol):
    """What a play needs of the engine that it is a play of; `RemoteEngine` says what each is."""

    job: Job
    peers: Mapping[ClientId, Peer]
    welcome: Callable[[ClientId], str]
    stopped: Callable[[], str]
    stage: str
    absent: dict[ClientId, str]
    inbox: Inbox | None
    session: str
    counted: dict[ClientId, int]


@dataclass
class Play:
    """What every client of a group does at the same time.

    Attributes:
        engine: Whose play it is.
        what: The part that clients have.
        mode: The algorithm.
        channel: Packs, reads and books.
        take: Handed each client's last message, in the order of their names.
        may_go: How many clients may be lost.
        least: With how many clients the round may close, for sites to hold against their policy.
        sections: What the task holds, where it is not the mode's.
        round: Which round it is of.
        gone: Clients that were lost, and why.
    """

    engine: Server
    what: What
    mode: Mode[Any, Any, Worker]
    channel: Channel
    take: Take
    may_go: int
    least: int = 0
    sections: Mapping[str, Any] | None = None
    round: int = 0
    gone: dict[ClientId, str] = field(default_factory=dict[ClientId, str])

    def run(self, state: Any, group: Sequence[ClientId]) -> Any:  # noqa: ANN401 - any mode's state
        """Play it to its end, and return the state it leaves."""
        options = self.engine.job.federation
        inbox = self.opened(state, group)
        start = time.monotonic()
        window = options.window_s if options.order == "arrival" else None
        try:
            waiting = list(group)
            while waiting:
                self._settle(inbox, waiting)
                if asks := inbox.due(self.mode.asks, window):
                    state = self._answered(state, asks, inbox)
                elif waiting:
                    inbox.wait(TURN_S if window is None else min(TURN_S, window))
                self._lose(inbox, time.monotonic() - start)
        finally:
            inbox.close(f"{inbox.play} is over")
        return state

    def opened(
        self,
        state: Any,  # noqa: ANN401 - any mode's state
        group: Sequence[ClientId],
        changed: threading.Condition | None = None,
    ) -> Inbox:
        """Open the play for sites' calls, and have every client of the group called."""
        engine = self.engine
        mode = self.mode
        opens = mode.trial if self.what == "probe" and isinstance(mode, Trial) else mode.task
        tasks = {client: opens(state, client) for client in group}
        # a test's task opens the next round, and what the last one left is tested
        round_ = max(whole(task.facts, "round") for task in tasks.values()) - (self.what != "work")
        if self.sections is not None:
            facts = {"round": round_}
            same = Message(kind="evaluate", sections=self.sections, facts=facts)
            tasks = dict.fromkeys(group, same)
        packed = _each_packed(self.channel, tasks)
        name = play_of(engine.stage, round_, self.what, engine.session)
        inbox = Inbox(name, packed, self._asked, int(engine.job.wire.max_mb * MB), changed)
        engine.inbox, self.round = inbox, round_
        for client in group:
            self.channel.book(tasks[client], len(packed[client]), client, "down")
            order = {
                "play": name,
                "stage": engine.stage,
                "round": round_,
                "what": self.what,
                "size": len(packed[client]),
                "least": self.least,
                "counted": engine.counted.get(client, 0),
            }
            follower = Follower(
                engine.job, inbox, client, engine.peers.get(client), order,
                absent=engine.absent, welcome=engine.welcome,
            )  # fmt: skip
            thread = threading.Thread(target=follower.follow, name=f"follow-{client}", daemon=True)
            thread.start()
        return inbox

    def _asked(self, data: bytes, client: ClientId) -> Message:
        with _from(client):
            ask = self.channel.read(data, client, "up")
        if ask.topic not in self.mode.asks:
            raise MessageError(f"client {client!r} asks about {ask.topic!r}, which nobody answers")
        return ask

    def _settle(self, inbox: Inbox, waiting: list[ClientId]) -> None:
        """Take what those at the head of the line ended with, in the order of their names."""
        while waiting:
            client = waiting[0]
            line = inbox.lines[client]
            if line.open:
                return
            waiting.pop(0)
            settled(self.channel, inbox, client, self.take)
            if line.gone:
                self._lost(client, line.gone)

    def _answered(self, state: Any, asks: Mapping[ClientId, Message], inbox: Inbox) -> Any:  # noqa: ANN401
        """Answer what is due; a client whose ask cannot be answered is lost, not the others."""
        try:
            after, answers, packed = self._tried(state, asks)
        except Exception:
            guilty = {c: why for c, ask in asks.items() if (why := self._refused(state, c, ask))}
            if not guilty:
                raise
            for client, why in guilty.items():
                inbox.leave(client, why)
            return state
        if missing := sorted(asks.keys() - answers.keys()):
            raise RoundError(f"the server left client {missing[0]!r} without an answer")
        for client, ask in asks.items():
            self.channel.book(ask, inbox.size(client), client, "up")
        for client in asks:
            self.channel.book(answers[client], len(packed[client]), client, "down")
        inbox.deliver({client: packed[client] for client in asks})
        return after

    def _refused(self, state: Any, client: ClientId, ask: Message) -> str:  # noqa: ANN401
        """Return why an ask cannot be answered; answering changes nothing but what it returns."""
        try:
            with _from(client):
                self._tried(state, {client: ask})
        except TriskelError as error:
            return str(error)
        return ""

    def _tried(
        self,
        state: Any,  # noqa: ANN401
        asks: Mapping[ClientId, Message],
    ) -> tuple[Any, Mapping[ClientId, Message], dict[ClientId, bytes]]:
        after, answers = self.mode.answer(state, asks)
        return after, answers, _each_packed(self.channel, answers)

    def _lose(self, inbox: Inbox, seconds: float) -> None:
        """Go on without the silent and, once it is time, without the slow."""
        options = self.engine.job.federation
        if why := self.engine.stopped():
            raise RoundError(why)
        for client in inbox.silent(options.patience_s):
            inbox.leave(client, f"not heard of for {options.patience_s:g} s")
        lost = [c for c, line in inbox.lines.items() if line.gone]
        if options.deadline_s and seconds > options.deadline_s:
            late = inbox.waited_for()
            if len(late) + len(lost) <= self.may_go:
                for client in late:
                    inbox.leave(client, f"not done after {options.deadline_s:g} s")
        for client in lost:
            self._lost(client, inbox.lines[client].gone)

    def _lost(self, client: ClientId, why: str) -> None:
        self.gone[client] = why
        self.engine.absent.setdefault(client, why)  # the first reason, until it is back
        if len(self.gone) > self.may_go:
            raise too_few(self.gone, self.engine.job)


def settled(channel: Channel, inbox: Inbox, client: ClientId, take: Take) -> None:
    """Take what a client ended with; one that cannot be taken loses the client."""
    line = inbox.lines[client]
    if line.update is None or line.spent is None or line.gone:
        return
    try:
        with _from(client):
            message = channel.read(line.update, client, "up")
            take(client, message, line.spent)
            channel.book(message, len(line.update), client, "up")
    except TriskelError as error:
        inbox.leave(client, str(error))
    line.update = b""


@contextmanager
def _from(client: ClientId) -> Generator[None]:
    """Let whatever a client's bytes lead to be an error that it answers for, and nobody else.

    Raises:
        TriskelError: As it was raised.
        MessageError: For anything else; the log has it.
    """
    try:
        yield
    except TriskelError:
        raise
    except Exception as error:
        LOGGER.exception("what %s sent cannot be worked with", client)
        kind = type(error).__name__
        raise MessageError(f"what it sent cannot be worked with: {kind}") from error


def _each_packed(channel: Channel, messages: Mapping[ClientId, Message]) -> dict[ClientId, bytes]:
    """Return every message packed; one that goes to several in a row is packed once."""
    packed: dict[ClientId, bytes] = {}
    last: tuple[Message, bytes] | None = None
    for client, message in sorted(messages.items()):
        if last is None or not alike(last[0], message):
            last = message, channel.pack(message, client, "down")
        packed[client] = last[1]
    return packed


def too_few(gone: Mapping[ClientId, str], job: Job) -> RoundError:
    """Return the error of a round that lost too many."""
    return RoundError(
        f"{sentence(gone)}; the others are fewer than {least_by(job)} asks for: see to it, then "
        "`triskel federation resume` goes on from the last closed round"
    )


def sentence(gone: Mapping[ClientId, str]) -> str:
    """Return who was lost, and why."""
    return "; ".join(f"{client}: {why}" for client, why in sorted(gone.items()))
