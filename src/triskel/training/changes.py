"""A mode whose adapter travels as changes: what is remembered for it, on both sides.

    server: state θ, what holders hold r         client i: what it holds r, what it owes eᵢ

    sends ĉ = code(θ - r), the SHA-256 of r
                                                 r ← r + ĉ; trains a copy: xᵢ
                                                 v = xᵢ - r + eᵢ;  sends v̂ = code(v), SHA-256 of r
                                                 eᵢ ← v - v̂
    takes xᵢ for θ + v̂ᵢ;  r ← r + ĉ

There is one r for all: what everybody holds who counted in the last round. Whoever does not
(absent, a round that was not counted, a new disk) is sent r + ĉ whole, so that all train from the
same; the server knows whom it did not count, and whose hash is another asks (`wire.whole`). Before
round 1 r is what every party works out of the job: the adapter as it is initialised.

What a change down lost is not lost: θ - r is told again in the next round, since updates count as
if clients had begun from θ. What a change up lost is owed by the client (error feedback: Seide et
al. 2014; Karimireddy et al. 2019, arXiv:1901.09847). Both sides' memory is part of the states that
count: r of the server's, with its checkpoint; r and eᵢ of the client's, with the round that left
them. So a round that the server did not count, or that is played again, left nothing.

The mode itself knows nothing of this: its client is handed whole sections, and so is its server.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from torch import Tensor

from triskel.codec import decode, encode
from triskel.codec.change import (
    OtherReferenceError,
    by_name,
    change,
    difference,
    fits,
    is_change,
    numbers_of,
    restored,
)
from triskel.config.wire import Direction, Wire, change_options
from triskel.core.choice import Chosen
from triskel.core.mode_spec import WHOLE
from triskel.errors import MessageError
from triskel.training.worker import Worker
from triskel.types import (
    A,
    Ask,
    AskStyle,
    ClientId,
    ClientState,
    Message,
    Mode,
    S,
    Section,
    Step,
    Talk,
    Tensors,
)
from triskel.types import Reply as Answer
from triskel.wire.alike import alike

HELD, OWED = "wire:held:", "wire:owed:"
"""How groups of a client's state are called that are the wire's and not the mode's."""


@dataclass(frozen=True)
class ChangesState(Generic[S]):
    """The server between rounds.

    Attributes:
        inner: The mode's own state.
        held: r, by `section/tensor`; empty where nothing travels down as a change.
        holders: Who holds it; None before round 1, when everybody does.
    """

    inner: S
    held: Tensors = field(default_factory=dict[str, Tensor])
    holders: Sequence[ClientId] | None = None


@dataclass(frozen=True)
class Opened:
    """What opens a client's round.

    Attributes:
        task: As the mode has it.
        held: Its sections as the client has them once it has read them.
        sent: What a client is sent that holds r.
        whole: What any other is sent.
    """

    task: Message
    held: Mapping[str, Section]
    sent: Message
    whole: Message


@dataclass(frozen=True)
class ChangesTotal(Generic[A]):
    """A running total of updates.

    Attributes:
        inner: The mode's own.
        opened: What opened the round of these clients; None while there are none.
        clients: Whose updates are in it, of those that were sent just this.
    """

    inner: A
    opened: Opened | None = None
    clients: tuple[ClientId, ...] = ()


@dataclass(frozen=True)
class Changes(Generic[S, A]):
    """A mode, and what its wire remembers.

    Attributes:
        mode: The mode.
        wire: Which sections travel as changes, and under which codecs.
        sections: Those of the mode that may.
        initial: What every party holds before round 1; none where the server alone has it.
    """

    mode: Mode[S, A, Worker]
    wire: Wire
    sections: Sequence[str]
    initial: Mapping[str, Section]
    _last: list[tuple[ChangesState[S], Opened]] = field(
        default_factory=list["tuple[ChangesState[S], Opened]"], compare=False, repr=False
    )

    # --- what the mode says -------------------------------------------------------------------

    @property
    def asks(self) -> Mapping[str, AskStyle]:
        """How topics are answered: the mode's, and what a client asks that does not hold r."""
        return {**self.mode.asks, WHOLE: "stream"} if self._down else self.mode.asks

    @property
    def in_flight(self) -> int:
        """How many clients that ask are in a round at once."""
        return self.mode.in_flight

    @property
    def weighted(self) -> bool:
        """Whether updates count by their examples."""
        return self.mode.weighted

    def merge(
        self, state: ChangesState[S], left: ChangesTotal[A], right: ChangesTotal[A]
    ) -> ChangesTotal[A]:
        """Return the total of both totals."""
        opened = left.opened or right.opened
        both = [one for one in (left, right) if _same(one.opened, opened)]
        return ChangesTotal(
            self.mode.merge(state.inner, left.inner, right.inner),
            opened,
            tuple(client for one in both for client in one.clients),
        )

    def server_model(self, state: ChangesState[S]) -> Tensors | None:
        """Return the model that the server ends with."""
        return self.mode.server_model(state.inner)

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return a client's own model, if it has one."""
        return self.mode.client_model(kept_by_mode(client_state))

    # --- the server ---------------------------------------------------------------------------

    def start(self) -> ChangesState[S]:
        """Return the server's state before round 1."""
        held = _flat(self.initial, self._down)
        return ChangesState(self.mode.start(), held, None if held else ())

    def task(self, state: ChangesState[S], client: ClientId) -> Message:
        """Send the changes to a client that holds r, and everything to any other."""
        opened = self._opened(state, client)
        holds = state.holders is None or client in state.holders
        return opened.sent if holds else opened.whole

    def answer(
        self, state: ChangesState[S], asks: Mapping[ClientId, Message]
    ) -> tuple[ChangesState[S], Mapping[ClientId, Message]]:
        """Answer the mode's asks, and send everything to those that hold something else."""
        others = {client: ask for client, ask in asks.items() if ask.topic != WHOLE}
        found = dict[ClientId, Message]()
        for client in asks.keys() - others.keys():
            whole = self._opened(state, client).whole
            found[client] = replace(whole, kind="answer", topic=WHOLE)
        if others:
            inner, answers = self.mode.answer(state.inner, others)
            state, found = replace(state, inner=inner), {**found, **answers}
        return state, found

    def zero(self, state: ChangesState[S]) -> ChangesTotal[A]:
        """Return the total of no updates."""
        return ChangesTotal(self.mode.zero(state.inner))

    def add(
        self, state: ChangesState[S], total: ChangesTotal[A], client: ClientId, update: Message
    ) -> ChangesTotal[A]:
        """Fold in what a client's changes amount to.

        Raises:
            MessageError: It is the change of something else than the client was sent, or is none.
        """
        opened = self._opened(state, client)
        sections = dict(update.sections)
        for name in self.sections:
            if name in sections:
                sections[name] = self._came(name, sections[name], opened)
        inner = self.mode.add(state.inner, total.inner, client, replace(update, sections=sections))
        first = total.opened or opened
        clients = (*total.clients, client) if _same(opened, first) else total.clients
        return ChangesTotal(inner, first, clients)

    def close(self, state: ChangesState[S], total: ChangesTotal[A]) -> ChangesState[S]:
        """Return the next state; those who counted hold what they were sent."""
        inner = self.mode.close(state.inner, total.inner)
        if total.opened is None or not self._down:
            return replace(state, inner=inner)
        held = _flat(total.opened.held, self._down)
        return ChangesState(inner, held, sorted(total.clients))

    def _opened(self, state: ChangesState[S], client: ClientId) -> Opened:
        """Return what opens a client's round; the same for all who are sent the same."""
        task = self.mode.task(state.inner, client)
        for before, opened in self._last:
            if before is state and alike(opened.task, task):
                return opened
        held, sent, whole = dict[str, Section](), dict(task.sections), dict(task.sections)
        for name in self.sections:
            if (section := task.sections.get(name)) is None:
                continue
            chosen = self.wire.codec("down", name)
            if change_options(chosen) is None:
                held[name] = _received(name, section, chosen)
                continue
            reference = _under(state.held, name)
            if fits(section.tensors, reference):
                numbers = difference(section.tensors, reference)
                sent[name] = change(section, reference, numbers)
                arrives = numbers_of(name, _received(name, sent[name], chosen), reference)
                whole[name] = restored(name, sent[name], reference, arrives)
            held[name] = whole[name]
        made = Opened(task, held, replace(task, sections=sent), replace(task, sections=whole))
        self._last[:] = [(state, made)]
        return made

    def _came(self, name: str, section: Section, opened: Opened) -> Section:
        """Return a section of an update as the mode takes it."""
        held, sent = opened.held.get(name), opened.task.sections.get(name)
        if held is None or sent is None:
            return section
        if is_change(section):
            numbers = numbers_of(name, section, held.tensors)
            return restored(name, section, sent.tensors, numbers)
        if name not in self._down or not fits(section.tensors, held.tensors):
            return section
        owed = difference(sent.tensors, held.tensors)
        return restored(name, section, section.tensors, owed) if owed.any() else section

    # --- a client -----------------------------------------------------------------------------

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Do one client's round, from what it holds, and send what changed."""
        whole = yield from self._read(task, client_state)
        update, mine = yield from self.mode.work(whole, worker, kept_by_mode(client_state))
        groups = {name: one for name, one in client_state.groups.items() if name.startswith(OWED)}
        sections = dict(update.sections)
        for name in self.sections:
            if name in whole.sections and name in self._down:
                groups[HELD + name] = whole.sections[name].tensors
            chosen = self.wire.codec("up", name)
            options = change_options(chosen)
            reference = whole.sections[name].tensors if name in whole.sections else None
            if options is None or name not in sections or reference is None:
                continue
            section, owed = sections[name], groups.pop(OWED + name, None)
            if not fits(section.tensors, reference):
                continue
            numbers = difference(section.tensors, reference, owed)
            sections[name] = change(section, reference, numbers)
            if options.feedback:
                arrives = numbers_of(name, _received(name, sections[name], chosen), reference)
                groups[OWED + name] = by_name(reference, numbers - arrives)
        kept = ClientState(groups={**mine.groups, **groups}, facts=mine.facts)
        return replace(update, sections=sections), kept

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate on the client's own test share what it holds with the change that it is sent."""
        whole = yield from self._read(task, client_state)
        update, _ = yield from self.mode.probe(whole, worker, kept_by_mode(client_state))
        return update, client_state

    def _read(self, task: Message, client_state: ClientState) -> Generator[Step, Answer, Message]:
        """Return a task whose changes are made; ask for everything where this side holds another.

        Raises:
            MessageError: The server answers with something else.
        """
        try:
            return self._whole(task, client_state)
        except OtherReferenceError:
            ask = Message(kind="ask", topic=WHOLE, facts={"round": task.facts.get("round")})
            answer = yield Ask(ask)
        if not isinstance(answer, Message) or any(map(is_change, answer.sections.values())):
            raise MessageError("the server was asked for a whole task and sent none")
        return replace(answer, kind=task.kind, topic=task.topic)

    def _whole(self, task: Message, client_state: ClientState) -> Message:
        sections = dict(task.sections)
        for name, section in sections.items():
            if not is_change(section):
                continue
            first = self.initial[name].tensors if name in self.initial else {}
            reference = client_state.groups.get(HELD + name, first)
            numbers = numbers_of(name, section, reference)
            sections[name] = restored(name, section, reference, numbers)
        return replace(task, sections=sections)

    @property
    def _down(self) -> list[str]:
        """The sections that travel down as changes."""
        return carried(self.wire, "down", self.sections)


def carried(wire: Wire, way: Direction, sections: Sequence[str]) -> list[str]:
    """Return which of these sections travel as changes."""
    return [name for name in sections if change_options(wire.codec(way, name)) is not None]


def kept_by_mode(state: ClientState) -> ClientState:
    """Return what of a client's state is its mode's own."""
    own = {n: one for n, one in state.groups.items() if not n.startswith((HELD, OWED))}
    return state if len(own) == len(state.groups) else replace(state, groups=own)


def _same(one: Opened | None, two: Opened | None) -> bool:
    if one is None or two is None:
        return one is two
    return one is two or alike(one.task, two.task)


def _received(name: str, section: Section, chosen: Chosen) -> Section:
    """Return a section as it is once it has travelled."""
    message = Message(kind="state", sections={name: section})
    size = 2 * sum(x.nbytes for x in section.tensors.values())
    return decode(encode(message, chosen), changes=True, limit_bytes=size).sections[name]


def _flat(sections: Mapping[str, Section], names: Sequence[str]) -> dict[str, Tensor]:
    return {
        f"{name}/{n}": x
        for name in names
        if name in sections
        for n, x in sections[name].tensors.items()
    }


def _under(held: Tensors, name: str) -> Tensors:
    prefix = f"{name}/"
    return {n.removeprefix(prefix): x for n, x in held.items() if n.startswith(prefix)}
