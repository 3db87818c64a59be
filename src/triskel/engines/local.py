"""One process, one base model in memory, any number of virtual clients.

Every message is packed to bytes and unpacked on the other side, so that sizes, refusals and
rounding are those of a real federation. Clients run one after the other between their asks; asks
of a wave are answered together, sorted by client name, and updates are folded in that order.
"""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from triskel.config.job import Job
from triskel.core.crash import during
from triskel.engines.channel import Channel
from triskel.engines.fold import Fold
from triskel.engines.waves import due, groups_in_flight
from triskel.errors import RoundError
from triskel.training.conversation import Conversation, Sent
from triskel.training.loop import IN_FLIGHT
from triskel.training.worker import Worker
from triskel.types import (
    A,
    ClientId,
    ClientState,
    Message,
    Mode,
    S,
    Watch,
    Work,
)
from triskel.wire.ledger import Ledger

DROPPED = "it dropped out, as clients.drop_share has it"


@dataclass
class _Line:
    """One client in flight: its half of the round, and what of it lies at the server.

    Attributes:
        worker: What it brings.
        talk: Its half.
        asks: What it asked and has no answer to yet, by ticket, as it arrived.
        work: A piece of its own work that may run together with others'.
        update: What it ended with, as it arrived, once all it asked is answered.
        mine: What it keeps.
    """

    worker: Worker
    talk: Conversation[tuple[Message, ClientState]]
    asks: dict[int, Message] = field(default_factory=dict[int, Message])
    work: Work | None = None
    update: Message | None = None
    mine: ClientState | None = None


def labour(lines: Mapping[ClientId, _Line]) -> bool:
    """Run the work that clients handed out, in as few passes as pay; say whether there was any."""
    waiting = {c: line.work for c, line in sorted(lines.items()) if line.work is not None}
    for clients in joined(waiting):
        first, *others = [waiting[c] for c in clients]
        start = time.perf_counter()
        with during(_of(clients)):
            first.run(others)
        seconds = time.perf_counter() - start
        whole = sum(waiting[c].size for c in clients)
        for client in clients:
            lines[client].work = None
            lines[client].talk.seconds += seconds * waiting[client].size / max(whole, 1)
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

    def round(  # noqa: PLR0913 - what a round is made of
        self,
        mode: Mode[S, A, Worker],
        state: S,
        cohort: Sequence[ClientId],
        *,
        worker: Callable[[ClientId], Worker],
        client_states: Mapping[ClientId, ClientState],
        keep: Callable[[ClientId, ClientState], None],
        ledger: Ledger,
        watch: Watch,
        gone: Collection[ClientId] = (),
        weights: Mapping[ClientId, int] | None = None,
    ) -> S:
        """Play one round and close it.

        Args:
            mode: The algorithm.
            state: The server's state.
            cohort: Who takes part.
            worker: Makes a client's worker, with a fresh meter.
            client_states: What clients kept in earlier rounds.
            keep: Handed each client's next state as soon as the client is done.
            ledger: Books messages and compute.
            watch: Told what happens.
            gone: Who of the cohort gets a task and is not heard of again.
            weights: What updates count in the place of examples.

        Returns:
            The next server state.

        Raises:
            TriskelError: Whatever stopped a client or the server; what was kept does not count.
        """
        fold = Fold(self.job, mode, state, mode.zero(state), weights)
        channel = Channel(self.job, ledger, watch)
        for group in groups_in_flight(mode, sorted(cohort), free=IN_FLIGHT):
            lines: dict[ClientId, _Line] = {}
            for client in sorted(set(group) & set(gone)):
                channel.carry(mode.task(state, client), client, "down")
                ledger.left_out(client, DROPPED)
            for client in sorted(set(group) - set(gone)):
                hand = worker(client)
                task = channel.carry(mode.task(state, client), client, "down")
                talk = mode.work(task, hand, client_states.get(client, ClientState()))
                lines[client] = _Line(hand, Conversation(client, talk))
                if not mode.asks:
                    _advance(lines[client], channel)
                    _settle(lines, fold, keep, ledger)
            while any(line.update is None for line in lines.values()):
                for client in sorted(lines):
                    _advance(lines[client], channel)
                if not labour(lines):
                    state = self._wave(mode, state, lines, channel)
            _settle(lines, fold, keep, ledger)
        total, share = fold.close()
        ledger.weighed(share)
        return mode.close(state, total)

    def _wave(
        self,
        mode: Mode[S, A, Worker],
        state: S,
        lines: Mapping[ClientId, _Line],
        channel: Channel,
    ) -> S:
        """Answer what is due, of each client one ask."""
        live = [client for client, line in lines.items() if line.update is None]
        turn = due(mode.asks, {c: line.asks for c, line in sorted(lines.items())}, live)
        if not turn:
            return state
        asks = {client: lines[client].asks.pop(ticket) for client, ticket in turn.items()}
        with during("at the server"):
            state, answers = mode.answer(state, asks)
        if missing := sorted(asks.keys() - answers.keys()):
            raise RoundError(f"the server left client {missing[0]!r} without an answer")
        for client, ticket in turn.items():
            answer = channel.carry(answers[client], client, "down")
            lines[client].talk.answer(ticket, answer)
        return state


def _settle(
    lines: dict[ClientId, _Line],
    fold: Fold[S, A],
    keep: Callable[[ClientId, ClientState], None],
    ledger: Ledger,
) -> None:
    """Fold in the updates of those at the head of the line who are done, by name."""
    while lines and lines[min(lines)].update is not None:
        client = min(lines)
        line = lines.pop(client)  # nothing of a client outlives its turn
        if line.update is None or line.mine is None:
            raise RoundError(f"client {client!r} ended without an update")
        fold.add(client, line.update)
        keep(client, line.mine)
        meter, seconds = line.worker.meter, line.talk.seconds
        ledger.computed(client, flops=meter.flops, peak_bytes=meter.peak_bytes, seconds=seconds)


def _advance(line: _Line, channel: Channel) -> None:
    """Run a client until it waits for an answer, could work with others, or is done."""
    talk = line.talk
    with during(_of([talk.client])):
        while line.work is None and (step := talk.step()) is not None:
            if isinstance(step, Sent):
                line.asks[step.ticket] = channel.carry(step.ask, talk.client, "up")
            elif step.kind is None:
                talk.do(step)
            else:
                line.work = step
    if line.update is None and talk.finished:
        update, line.mine = talk.hand_over()
        line.update = channel.carry(update, talk.client, "up")


def _of(clients: Sequence[ClientId]) -> str:
    more = f" and {len(clients) - 1} more" if len(clients) > 1 else ""
    return f"in the work of {clients[0]}{more}"
