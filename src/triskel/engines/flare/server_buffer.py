"""Rounds that close with the first K updates: buffered aggregation, FedBuff.

    server                                               client i
    round t: sends θ_t to whoever has nothing to do      trains from θ_t, for as long as it takes
             closes once K updates are there             sends θᵢ
             an update of round t - τ counts as          (`engines.staleness`)
             θ_t + s(τ) (θᵢ - θ_{t-τ})

A client has one task at a time. It gets the next one when a round opens and its last update was
taken: within a round θ does not change, so a task handed out earlier would bring the same model,
and one client twice into one mean. A round takes all that is there when it has K; what comes
between two rounds is taken by the next one, as it opens. Updates are folded in the order of names,
so K = all clients is the round that waits for everybody, bit by bit.

What is kept of older rounds are the tasks that are still out, packed. Work that is more than
`federation.staleness` rounds old is called off as a round opens, and its client gets new work.
After the last round, and in a submission that goes on with a run, nothing is out: what clients were
at is dropped.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from triskel.core import events
from triskel.engines.channel import Channel
from triskel.engines.flare.protocol import Spent, whole
from triskel.engines.flare.server_inbox import Inbox, Line
from triskel.engines.flare.server_play import TURN_S, Play, Server, Take, settled, too_few
from triskel.engines.staleness import restated
from triskel.errors import RoundError
from triskel.policy.limits import quorum_of
from triskel.training.worker import Worker
from triskel.types import ClientId, Message, Mode


@dataclass(frozen=True)
class Out:
    """A task that a client has.

    Attributes:
        client: Who.
        round: Of which round it is.
        inbox: Where the client's update will be.
    """

    client: ClientId
    round: int
    inbox: Inbox

    @property
    def line(self) -> Line:
        """The client's talk."""
        return self.inbox.lines[self.client]

    @property
    def here(self) -> bool:
        """Whether its update is there."""
        return self.line.update is not None and not self.line.gone


@dataclass(frozen=True)
class Open:
    """A round that is played.

    Attributes:
        mode: The algorithm, whose clients ask nothing.
        state: What the round began with.
        cohort: Who takes part: everybody.
        channel: Packs, reads and books.
        take: Handed each update, as one of this round.
        round: Which it is.
        counted: Whose updates were taken.
        off: Clients whose work was called off, and why.
        lost: Clients that were lost, and why.
    """

    mode: Mode[Any, Any, Worker]
    state: Any
    cohort: Sequence[ClientId]
    channel: Channel
    take: Take
    round: int
    counted: list[ClientId] = field(default_factory=list[ClientId])
    off: dict[ClientId, str] = field(default_factory=dict[ClientId, str])
    lost: dict[ClientId, str] = field(default_factory=dict[ClientId, str])


class Buffer:
    """Tasks that are out, from round to round.

    Args:
        engine: Whose rounds they are of.
    """

    def __init__(self, engine: Server) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._out: dict[ClientId, Out] = {}

    @property
    def inboxes(self) -> list[Inbox]:
        """Where updates are waited for, the oldest first."""
        found = sorted(self._out.copy().values(), key=lambda out: out.round)
        return list(dict.fromkeys(out.inbox for out in found))

    def played(
        self,
        mode: Mode[Any, Any, Worker],
        state: Any,  # noqa: ANN401 - any mode's state
        cohort: Sequence[ClientId],
        *,
        channel: Channel,
        take: Take,
    ) -> tuple[dict[ClientId, str], int]:
        """Play a round until K updates were taken; note in the ledger who is still at work.

        Returns:
            Who was lost and why, and which round it was.

        Raises:
            RoundError: Fewer than K are left, or the job was stopped.
        """
        round_ = whole(mode.task(state, min(cohort)).facts, "round")
        now = Open(mode, state, cohort, channel, take, round_)
        try:
            self._open(now)
            self._wait(now)
        except BaseException:
            self._drop()
            raise
        last = round_ == self._engine.job.rounds
        for client, out in sorted(self._out.items()):
            if client not in now.counted:
                called_off = f"{now.off[client]}; " if client in now.off else ""
                why = f"{called_off}at work on the task of round {out.round}"
                channel.ledger.left_out(client, f"{why}, dropped at the end" if last else why)
        if last:
            self._drop()
        return {c: why for c, why in now.lost.items() if c not in now.counted}, round_

    def _open(self, now: Open) -> None:
        """Call off what is too old, take what came meanwhile, and give work to who has none."""
        most = self._engine.job.federation.staleness
        for client, out in sorted(self._out.items()):
            if now.round - out.round > most:
                why = (
                    f"its task of round {out.round} is called off, as it is more than {most} "
                    "rounds old (federation.staleness)"
                )
                now.channel.watch(events.warning(f"{client}: {why}"))
                now.off[client] = why
                out.inbox.leave(client, why)
                self._forget(client)
        self._settle(now)
        idle = [client for client in sorted(now.cohort) if client not in self._out]
        if idle:
            least = quorum_of(self._engine.job, len(now.cohort))
            play = Play(self._engine, "work", now.mode, now.channel, now.take, 0, least)
            inbox = play.opened(now.state, idle, self._changed)
            self._out |= {client: Out(client, now.round, inbox) for client in idle}

    def _wait(self, now: Open) -> None:
        """Wait until K updates were taken."""
        least = self._engine.job.federation.buffer
        while len(now.counted) < least:
            self._lose(now)
            with self._changed:
                able = [c for c in self._out if c not in now.counted]
                if len(now.counted) + len(able) < least:
                    raise too_few(now.lost, self._engine.job)
                here = [c for c in able if self._out[c].here]
                if len(now.counted) + len(here) < least:
                    self._changed.wait(TURN_S)
                    continue
            self._settle(now)

    def _settle(self, now: Open) -> None:
        """Take the updates that are there, in the order of names, and of each client one."""
        for client, out in sorted(self._out.items()):
            if client in now.counted or not out.here:
                continue
            settled(now.channel, out.inbox, client, self._taker(now, out))
            if not out.line.gone:
                self._forget(client)
        self._lose(now)

    def _taker(self, now: Open, out: Out) -> Take:
        """Return what takes an update as one of the open round."""
        late = now.round - out.round

        def take(client: ClientId, update: Message, spent: Spent) -> None:
            task = now.mode.task(now.state, client)
            sent = now.channel.read(out.line.task, client, "down") if late else task
            now.take(client, restated(update, sent, task, late), spent)
            now.channel.ledger.late(client, late)
            now.counted.append(client)

        return take

    def _lose(self, now: Open) -> None:
        """Go on without the silent, and without those that failed."""
        if why := self._engine.stopped():
            raise RoundError(why)
        patience = self._engine.job.federation.patience_s
        for inbox in self.inboxes:
            for client in inbox.silent(patience):
                inbox.leave(client, f"not heard of for {patience:g} s")
        for client, out in sorted(self._out.items()):
            if out.line.gone:
                now.lost[client] = out.line.gone
                self._engine.absent.setdefault(client, out.line.gone)
                self._forget(client)

    def _forget(self, client: ClientId) -> None:
        """Let go of a client's task, and of its round's where it was the last."""
        inbox = self._out.pop(client).inbox
        if inbox not in self.inboxes:
            inbox.close(f"{inbox.play} is over")

    def _drop(self) -> None:
        """Let go of all that is out."""
        for client in sorted(self._out):
            self._forget(client)
