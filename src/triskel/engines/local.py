"""One process, one base model in memory, any number of virtual clients.

Every message is packed to bytes and unpacked on the other side, so that sizes, refusals and
rounding are those of a real federation. Clients run one after the other between their asks; asks
of a wave are answered together, sorted by client name, and updates are folded in that order.
"""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from triskel.config.job import Job
from triskel.engines.fold import Fold
from triskel.engines.wave import crews, due
from triskel.engines.wire import Wire
from triskel.errors import RoundError
from triskel.ledger import Ledger
from triskel.model.train import IN_FLIGHT
from triskel.types import (
    A,
    Ask,
    ClientId,
    ClientState,
    Local,
    Message,
    Mode,
    Post,
    Reply,
    S,
    Talk,
    Watch,
    Work,
)
from triskel.worker import Worker

DROPPED = "it dropped out, as clients.drop_share has it"


@dataclass
class _Line:
    """One client's open talk."""

    worker: Worker
    talk: Talk
    reply: Reply = None
    asked: dict[int, Message] = field(default_factory=dict[int, Message])
    answered: dict[int, Message] = field(default_factory=dict[int, Message])
    wanted: int = -1
    tickets: int = 0
    work: Work | None = None
    update: Message | None = None
    mine: ClientState | None = None
    seconds: float = 0.0


def labour(lines: Mapping[ClientId, _Line]) -> bool:
    """Run the work that clients handed out, in as few passes as pay; say whether there was any."""
    waiting = {c: line.work for c, line in sorted(lines.items()) if line.work is not None}
    for clients in joined(waiting):
        first, *others = [waiting[c] for c in clients]
        start = time.perf_counter()
        first.run(others)
        seconds = time.perf_counter() - start
        whole = sum(waiting[c].size for c in clients)
        for client in clients:
            lines[client].work = None
            lines[client].seconds += seconds * waiting[client].size / max(whole, 1)
    return bool(waiting)


def joined(works: Mapping[ClientId, Work]) -> list[list[ClientId]]:
    """Return whose pieces run in one pass: alike in kind and size; a function of job and shapes."""
    kinds: dict[Hashable, list[ClientId]] = {}
    for client in sorted(works, key=lambda c: (works[c].size, c)):
        kinds.setdefault(works[client].kind, []).append(client)
    groups: list[list[ClientId]] = []
    for clients in kinds.values():
        group: list[ClientId] = []
        for client in clients:
            if group and works[client].beside([works[c] for c in group]):
                group.append(client)
            else:
                group = [client]
                groups.append(group)
    return [sorted(group) for group in groups]


@dataclass(frozen=True)
class LocalEngine:
    """Plays rounds in this process.

    Attributes:
        job: Codecs, message limit and wave size.
    """

    job: Job

    def round(  # noqa: C901, PLR0913 - what a round is made of
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
        """Play one round and close it.

        Args:
            mode: The algorithm.
            state: The server's state.
            cohort: Who takes part.
            worker: Makes a client's worker, with a fresh meter.
            mine: What clients kept in earlier rounds.
            keep: Handed each client's next state as soon as the client is done.
            ledger: Books messages and compute.
            watch: Told what happens.
            gone: Who of the cohort gets a task and is not heard of again.

        Returns:
            The next server state.

        Raises:
            TriskelError: Whatever stopped a client or the server; what was kept does not count.
        """
        fold = Fold(self.job, mode, state, mode.zero(state))
        wire = Wire(self.job, ledger, watch)

        def settle() -> None:
            """Fold in the updates of those at the head of the line who are done, by name."""
            while lines and lines[min(lines)].update is not None:
                client = min(lines)
                line = lines.pop(client)  # nothing of a client outlives its turn
                if line.update is None or line.mine is None:
                    raise RoundError(f"client {client!r} ended without an update")
                fold.add(client, line.update)
                keep(client, line.mine)
                meter = line.worker.meter
                ledger.computed(
                    client, flops=meter.flops, peak_bytes=meter.peak_bytes, seconds=line.seconds
                )

        for crew in crews(mode, sorted(cohort), free=IN_FLIGHT):
            lines: dict[ClientId, _Line] = {}
            for client in sorted(set(crew) & set(gone)):
                wire.carry(mode.task(state, client), client, "down")
                ledger.left_out(client, DROPPED)
            for client in sorted(set(crew) - set(gone)):
                hand = worker(client)
                task = wire.carry(mode.task(state, client), client, "down")
                talk = mode.work(task, hand, mine.get(client, ClientState()))
                lines[client] = _Line(worker=hand, talk=talk)
                if not mode.asks:
                    _advance(lines[client], client, wire)
                    settle()
            while any(line.update is None for line in lines.values()):
                for client in sorted(lines):
                    _advance(lines[client], client, wire)
                if not labour(lines):
                    state = self._wave(mode, state, lines, wire)
            settle()
        total, share = fold.close()
        ledger.weighed(share)
        return mode.close(state, total)

    def _wave(
        self,
        mode: Mode[S, A, Worker],
        state: S,
        lines: Mapping[ClientId, _Line],
        wire: Wire,
    ) -> S:
        """Answer each client's oldest ask."""
        asks = {c: line.asked[min(line.asked)] for c, line in sorted(lines.items()) if line.asked}
        asks = due(mode.asks, asks, live=[c for c, x in lines.items() if x.update is None])
        if not asks:
            return state
        state, answers = mode.answer(state, asks)
        if missing := sorted(asks.keys() - answers.keys()):
            raise RoundError(f"the server left client {missing[0]!r} without an answer")
        for client in asks:
            line = lines[client]
            ticket = min(line.asked)
            del line.asked[ticket]
            line.answered[ticket] = wire.carry(answers[client], client, "down")
        return state


def _advance(line: _Line, client: ClientId, wire: Wire) -> None:
    """Run a client until it waits for an answer, could work with others, or is done."""
    while line.update is None and line.work is None:
        if line.wanted >= 0:
            if line.wanted not in line.answered:
                return
            line.reply = line.answered.pop(line.wanted)
            line.wanted = -1
        start = time.perf_counter()
        try:
            step = line.talk.send(line.reply)
        except StopIteration as end:
            line.seconds += time.perf_counter() - start
            update, line.mine = end.value
            line.update = wire.carry(update, client, "up")
            return
        if isinstance(step, Local):
            line.reply = None
            if step.work.kind is None:
                step.work.run()
            else:
                line.work = step.work
        line.seconds += time.perf_counter() - start
        if isinstance(step, Local):
            continue
        if isinstance(step, Ask | Post):
            line.tickets += 1
            line.asked[line.tickets] = wire.carry(step.ask, client, "up")
            line.reply = line.tickets if isinstance(step, Post) else None
            line.wanted = line.tickets if isinstance(step, Ask) else -1
        else:
            if step.ticket not in line.asked and step.ticket not in line.answered:
                raise RoundError(f"client {client!r} waits for ticket {step.ticket}, never given")
            line.wanted = step.ticket
