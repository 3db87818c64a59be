"""The server's half of a federation: rounds played with sites on the other end of a link.

A round is a play in which every client of the cohort has a part. One thread a client calls it
(`begin`, then `collect` until it is done); asks come in on the sites' own calls and wait on the
board; this thread alone runs the mode: it answers what is due, folds updates in the order of their
names, and closes. With `federation.order = "wave"` the order of everything that enters a sum is the
local engine's, so the adapters are too, bit by bit.

A client that is not heard of for `federation.patience_s`, sends what cannot be read, or says that
it failed, has no part in the rest of the round. The round closes with those left, if they are at
least the quorum; else the job stops there, and goes on from its last closed round when it is
submitted again.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from triskel import events
from triskel.engines.flare.board import Board
from triskel.engines.flare.calls import (
    HOLD_S,
    SLOWEST,
    Lost,
    Peer,
    Spent,
    What,
    blob,
    patience,
    play_of,
    spent_of,
    text,
    whole,
)
from triskel.engines.fold import Fold
from triskel.engines.wave import crews
from triskel.engines.wire import MB, Wire, alike
from triskel.errors import JobError, MessageError, RoundError, TriskelError
from triskel.evaluate import score_of
from triskel.exchange import adapter_sections
from triskel.job import Job
from triskel.ledger import Ledger
from triskel.message import show
from triskel.metrics import Score
from triskel.model.body import Body
from triskel.policy.decide import quorum_of
from triskel.round import Scores, pooled
from triskel.store import Store
from triskel.types import A, ClientId, ClientState, Event, Message, Mode, S, Tensors, Watch
from triskel.worker import Worker

LOGGER = logging.getLogger("triskel.server")
TURN_S = 0.5
"""How often the server looks for clients that went silent."""
PING_S = 3.0
"""How long a client that was lost before has to say that it is there."""
AGAIN_S = 1.0
"""Pause before a call that got no reply is made again."""
Take = Callable[[ClientId, Message, Spent], None]


def uncounted() -> tuple[int, int] | None:
    """Know nothing of what is below the calls."""
    return None


def nobody() -> str:
    """Let nothing stop the job."""
    return ""


def _untold(client: ClientId) -> int | None:
    """Know of nothing that a site said."""
    del client


def _quiet(event: Event) -> None:
    """Tell nobody."""


@dataclass
class Remote:
    """Plays rounds with sites.

    Attributes:
        job: Codecs, limits, waves, quorum and patience.
        peers: The way to each site.
        welcome: Asks a site that was away whether it is ready; returns why not, or nothing.
        stopped: Says why the job must stop, or nothing.
        stage: Name of the stage that is played; the sites make their own of it.
        absent: Sites that did not answer in their last play, and why.
        board: The open play, for the sites' calls.
        session: Part of every play's name, so that none is taken for one of a server before.
        crossed: Returns the bytes that came from sites and went to them so far, if it is known.
        examples: Returns how many training examples a site said it holds, if it is known.
        counted: The round of each site that counted last; it starts from what that one left.
        ledger: Of the last round, into which the test of what it left is booked too.
    """

    job: Job
    peers: Mapping[ClientId, Peer]
    welcome: Callable[[ClientId], str]
    stopped: Callable[[], str] = nobody
    stage: str = ""
    absent: dict[ClientId, str] = field(default_factory=dict[ClientId, str])
    board: Board | None = None
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    crossed: Callable[[], tuple[int, int] | None] = uncounted
    examples: Callable[[ClientId], int | None] = _untold
    counted: dict[ClientId, int] = field(default_factory=dict[ClientId, int])
    ledger: Ledger = field(default_factory=Ledger)

    # --- a round ------------------------------------------------------------------------------

    def round(  # noqa: PLR0913 - what a round is made of
        self,
        mode: Mode[S, A, Worker],
        state: S,
        cohort: Sequence[ClientId],
        *,
        worker: Callable[[ClientId], Worker],
        mine: Mapping[ClientId, ClientState],
        keep: Callable[[ClientId, ClientState], None],
        ledger: Ledger,
        watch: Watch,
        gone: Collection[ClientId] = (),
    ) -> S:
        """Play one round and close it; workers and what clients keep are at the sites.

        Raises:
            JobError: Drop-outs were to be simulated.
            RoundError: Fewer than the quorum were left, or the job was stopped.
            TriskelError: Whatever stopped the server.
        """
        del worker, keep
        if isinstance(mine, Store):
            self.counted = dict(mine.counted)
        if gone:
            raise JobError(
                "clients.drop_share simulates drop-outs in one process; between organisations "
                "they happen by themselves: set it to 0"
            )
        self.ledger = ledger
        wire, shares = Wire(self.job, ledger, watch), Fold(self.job, mode, state, mode.zero(state))
        folded, round_ = list[ClientId](), 0

        def fold(client: ClientId, update: Message, spent: Spent) -> None:
            self._as_told(client, update)
            shares.add(client, update)
            folded.append(client)
            ledger.computed(
                client, flops=spent.flops, peak_bytes=spent.peak_bytes, seconds=spent.seconds
            )

        enough, before = quorum_of(self.job, len(cohort)), self.crossed()
        left: dict[ClientId, str] = {}
        for crew in crews(mode, sorted(cohort), free=len(cohort)):
            may_go = len(cohort) - enough - len(left)
            talk = _Talk(self, "work", mode, wire, fold, may_go=may_go, least=enough)
            state = talk.play(state, crew)
            left |= talk.gone
            round_ = talk.round
        for client, why in sorted(left.items()):
            ledger.left_out(client, why)
            watch(events.warning(f"{client} is left out of this round: {why}"))
        if not folded:
            raise RoundError(f"no client finished the round: {_sentence(left)}")
        if before is not None and (after := self.crossed()) is not None:
            ledger.crossed(up=after[0] - before[0], down=after[1] - before[1])
        total, share = shares.close()
        ledger.weighed(share)
        self.counted |= dict.fromkeys(folded, round_)
        return mode.close(state, total)

    def _as_told(self, client: ClientId, update: Message) -> None:
        """Hold a site to what it said that it holds before the first round.

        Raises:
            MessageError: Its update speaks of another number of examples.
        """
        told, says = self.examples(client), update.facts.get("examples")
        if told is not None and says != told:
            raise MessageError(
                f"its update rests on {show(says)} examples, and it said that it holds {told}"
            )

    # --- what a state reaches -----------------------------------------------------------------

    def scores(
        self, mode: Mode[S, A, Worker], state: S, clients: Sequence[ClientId], body: Body, *,
        student: Tensors | None = None,
    ) -> Scores:  # fmt: skip
        """Let every client test a state on its own test share; sums come back, never predictions.

        Args:
            mode: The algorithm.
            state: The server's state.
            clients: Who tests.
            body: The server's model.
            student: A model of the server's own that clients do not use; it is what the pooled
                figures are of, and each client's are of its own model.
        """
        each = self._tested("probe", mode, state, clients, body)
        if student is None:
            return pooled(each, body.classes)
        sections = adapter_sections(student, body.layout)
        both = self._tested("student", mode, state, clients, body, sections)
        return replace(pooled(each, body.classes), pooled=pooled(both, body.classes).pooled)

    def _tested(
        self,
        what: What,
        mode: Mode[S, A, Worker],
        state: S,
        clients: Sequence[ClientId],
        body: Body,
        sections: Mapping[str, Any] | None = None,
    ) -> dict[ClientId, Score]:
        found: dict[ClientId, Score] = {}

        def take(client: ClientId, message: Message, spent: Spent) -> None:
            del spent
            found[client] = score_of(message, body.classes)

        wire = Wire(self.job, self.ledger, _quiet, scoring=True)
        enough = quorum_of(self.job, len(clients))
        may_go = len(clients) - enough
        for crew in crews(mode, sorted(clients), free=len(clients)):
            talk = _Talk(
                self, what, mode, wire, take, may_go=may_go, least=enough, sections=sections
            )
            state = talk.play(state, crew)
            may_go -= len(talk.gone)
        if not found:
            raise RoundError("no client could test the round's model")
        return found


@dataclass
class _Talk:
    """One play: what every client of a crew does at the same time.

    Attributes:
        engine: Whose play it is.
        what: The part that clients have.
        mode: The algorithm.
        wire: Packs, reads and books.
        take: Handed each client's last message, in the order of their names.
        may_go: How many clients may be lost.
        least: With how many clients the round may close, for sites to hold against their policy.
        sections: What the task holds, where it is not the mode's.
        round: Which round it is of.
        gone: Clients that were lost, and why.
    """

    engine: Remote
    what: What
    mode: Mode[Any, Any, Worker]
    wire: Wire
    take: Take
    may_go: int
    least: int = 0
    sections: Mapping[str, Any] | None = None
    round: int = 0
    gone: dict[ClientId, str] = field(default_factory=dict[ClientId, str])

    def play(self, state: Any, crew: Sequence[ClientId]) -> Any:  # noqa: ANN401 - any mode's state
        """Play it to its end, and return the state it leaves."""
        engine, options = self.engine, self.engine.job.federation
        tasks = {client: self.mode.task(state, client) for client in crew}
        # a test's task opens the next round, and what the last one left is tested
        round_ = max(whole(task.facts, "round") for task in tasks.values()) - (self.what != "work")
        if self.sections is not None:
            facts = {"round": round_}
            alike = Message(kind="evaluate", sections=self.sections, facts=facts)
            tasks = dict.fromkeys(crew, alike)
        packed = _each_packed(self.wire, tasks)
        name = play_of(engine.stage, round_, self.what, engine.session)
        board = Board(name, packed, self._asked, int(engine.job.wire.max_mb * MB))
        engine.board, self.round = board, round_
        for client in crew:
            self.wire.book(tasks[client], len(packed[client]), client, "down")
            order = {
                "play": name,
                "stage": engine.stage,
                "round": round_,
                "what": self.what,
                "size": len(packed[client]),
                "least": self.least,
                "counted": engine.counted.get(client, 0),
            }
            hand = _Hand(engine, board, client, order)
            threading.Thread(target=hand.follow, name=f"follow-{client}", daemon=True).start()
        start, window = time.monotonic(), None
        if options.order == "arrival":
            window = options.window_s
        try:
            waiting = list(crew)
            while waiting:
                self._settle(board, waiting)
                if asks := board.due(self.mode.asks, window):
                    state = self._answered(state, asks, board)
                elif waiting:
                    board.wait(TURN_S if window is None else min(TURN_S, window))
                self._lose(board, time.monotonic() - start)
        finally:
            board.close(f"{name} is over")
        return state

    def _asked(self, data: bytes, client: ClientId) -> Message:
        with _from(client):
            ask = self.wire.read(data, client, "up")
        if ask.topic not in self.mode.asks:
            raise MessageError(f"client {client!r} asks about {ask.topic!r}, which nobody answers")
        return ask

    def _settle(self, board: Board, waiting: list[ClientId]) -> None:
        """Take what those at the head of the line ended with, in the order of their names."""
        while waiting:
            client = waiting[0]
            line = board.lines[client]
            if line.open:
                return
            waiting.pop(0)
            if line.update is not None and line.spent is not None and not line.gone:
                try:
                    with _from(client):
                        message = self.wire.read(line.update, client, "up")
                        self.take(client, message, line.spent)
                        self.wire.book(message, len(line.update), client, "up")
                except TriskelError as error:
                    board.leave(client, str(error))
                line.update = b""
            if line.gone:
                self._lost(client, line.gone)

    def _answered(self, state: Any, asks: Mapping[ClientId, Message], board: Board) -> Any:  # noqa: ANN401
        """Answer what is due; a client whose ask cannot be answered is lost, not the others."""
        try:
            after, answers, packed = self._tried(state, asks)
        except Exception:
            guilty = {c: why for c, ask in asks.items() if (why := self._refused(state, c, ask))}
            if not guilty:
                raise
            for client, why in guilty.items():
                board.leave(client, why)
            return state
        if missing := sorted(asks.keys() - answers.keys()):
            raise RoundError(f"the server left client {missing[0]!r} without an answer")
        for client, ask in asks.items():
            self.wire.book(ask, board.size(client), client, "up")
        for client, data in packed.items():
            self.wire.book(answers[client], len(data), client, "down")
        board.deliver(packed)
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
        return after, answers, _each_packed(self.wire, answers)

    def _lose(self, board: Board, seconds: float) -> None:
        """Go on without the silent and, once it is time, without the slow."""
        options = self.engine.job.federation
        if why := self.engine.stopped():
            raise RoundError(why)
        for client in board.silent(options.patience_s):
            board.leave(client, f"not heard of for {options.patience_s:g} s")
        lost = [c for c, line in board.lines.items() if line.gone]
        if options.deadline_s and seconds > options.deadline_s:
            late = board.open()
            if len(late) + len(lost) <= self.may_go:
                for client in late:
                    board.leave(client, f"not done after {options.deadline_s:g} s")
        for client in lost:
            self._lost(client, board.lines[client].gone)

    def _lost(self, client: ClientId, why: str) -> None:
        self.gone[client] = why
        self.engine.absent.setdefault(client, why)  # the first reason, until it is back
        if len(self.gone) > self.may_go:
            raise RoundError(
                f"{_sentence(self.gone)}; the others are fewer than federation.quorum asks for: "
                "see to it, then `triskel federation resume` goes on from the last closed round"
            )


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


@dataclass
class _Hand:
    """Calls one client until its part in a play is over."""

    engine: Remote
    board: Board
    client: ClientId
    order: Mapping[str, Any]

    def follow(self) -> None:
        """Begin, then collect; a call without a reply is made again until patience ends."""
        begun, peer = False, self.engine.peers.get(self.client)
        if peer is None:
            self.board.leave(self.client, "has no part in this submission")
            return
        while not self.board.closed and self.client in self.board.open():
            try:
                if self.client in self.engine.absent and not self._back():
                    return
                begun = self._turn(peer, begun=begun)
            except Lost:
                time.sleep(AGAIN_S)
            except MessageError as error:
                self.board.leave(self.client, f"its reply cannot be read: {error}")

    def _back(self) -> bool:
        """Say whether a client that was lost before is there again; wait for it no second time."""
        try:
            why = self.engine.welcome(self.client)
        except Lost:
            why = f"still away ({self.engine.absent[self.client]})"
        if why:
            self.board.leave(self.client, why)
            return False
        self.engine.absent.pop(self.client, None)
        return True

    def _turn(self, peer: Peer, *, begun: bool) -> bool:
        """Make one call; return whether the site is at this play."""
        play, options = self.order["play"], self.engine.job.federation
        if begun:
            hold = min(HOLD_S, options.patience_s / 4)
            reply = peer.call("collect", patience(), {"play": play, "hold_s": hold})
        else:
            reply = peer.call("begin", patience(), {"order": dict(self.order)})
        state = text(reply, "state")
        if state == "unknown":
            return False
        if state == "done":
            most = int(self.engine.job.wire.max_mb * MB)
            spent, size = spent_of(reply), whole(reply, "size", most=most)
            self.board.heard(self.client, whole(reply, "tokens"), busy_s=size / SLOWEST)
            given = peer.call("hand_over", patience(size), {"play": play})
            self.board.done(self.client, blob(given, "update", most=most), spent)
        elif state == "failed":
            self.board.leave(self.client, text(reply, "error") or "it failed and did not say why")
        elif state == "working":
            self.board.heard(self.client, whole(reply, "tokens"))
        else:
            raise MessageError(f"a site is never {state!r}")
        return True


def _each_packed(wire: Wire, messages: Mapping[ClientId, Message]) -> dict[ClientId, bytes]:
    """Return every message packed; one that goes to several in a row is packed once."""
    packed: dict[ClientId, bytes] = {}
    last: tuple[Message, bytes] | None = None
    for client, message in sorted(messages.items()):
        if last is None or not alike(last[0], message):
            last = message, wire.pack(message, client, "down")
        packed[client] = last[1]
    return packed


def _sentence(gone: Mapping[ClientId, str]) -> str:
    return "; ".join(f"{client}: {why}" for client, why in sorted(gone.items()))
