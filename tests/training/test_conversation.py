"""Talks that ask ahead: the same waves, answers and bytes, whoever drives them.

Each is played in one process, between sites, and between sites whose calls get lost; what must come
out is computed from the plan of the talk alone.
"""

# ruff: noqa: ANN401 - a round's worker and what lies between sites may be anything

import random
import runpy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triskel.engines.flare import server_inbox as board_
from triskel.engines.flare import site_rounds
from triskel.engines.flare.protocol import AHEAD, Lost, Spent
from triskel.engines.flare.server_inbox import Inbox
from triskel.engines.local import LocalEngine
from triskel.engines.waves import due, groups_in_flight
from triskel.errors import RoundError
from triskel.numerics.metrics import empty
from triskel.training.conversation import Conversation, Sent, alone
from triskel.training.evaluate import score_message
from triskel.types import (
    Ask,
    AskStyle,
    ClientState,
    Local,
    Message,
    Post,
    Section,
    Step,
    Take,
    Talk,
)
from triskel.wire.ledger import Ledger

sites = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "sites.py")))
SITES: tuple[str, ...] = sites.SITES
STYLES: Mapping[str, AskStyle] = {"s": "stream", "g": "barrier"}
WIDTH = 3
Wave = Mapping[str, str]
Plan = Callable[[], Talk]


# --- a mode whose clients do as they are told ---------------------------------------------------


def ask(what: str, kind: Any = "ask") -> Message:
    """An ask with a name of its own: its topic, and a number."""
    tensor = torch.full((WIDTH,), float(what[1:]))
    section = Section(kind="dense", tensors={"x": tensor})
    return Message(kind=kind, topic=what[0], sections={"x": section}, facts={"what": what})


def done(heard: Sequence[str] = ()) -> tuple[Message, ClientState]:
    return Message(kind="update", facts={"heard": list(heard)}), ClientState()


def told(answer: Any) -> str:
    assert isinstance(answer, Message)
    return str(answer.facts["told"])


@dataclass(frozen=True)
class Seen:
    """A server's state: the waves it answered, and what clients ended with."""

    waves: tuple[Wave, ...] = ()
    ends: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Planned:
    """Plays a plan a client; an answer is what was asked, squared, and the number of its wave."""

    plans: Mapping[str, Plan]
    asks: Mapping[str, AskStyle] = field(default_factory=lambda: STYLES)
    in_flight: int = 0
    weighted: bool = False
    deaf: tuple[str, ...] = ()

    def start(self) -> Seen:
        return Seen()

    def task(self, state: Seen, client: str) -> Message:
        del state, client
        return Message(kind="task", facts={"round": 1})

    def work(self, task: Message, worker: Any, client_state: ClientState) -> Talk:
        del task, client_state
        return self.plans[worker.client]()

    def answer(self, state: Seen, asks: Mapping[str, Message]) -> tuple[Seen, Mapping[str, Any]]:
        wave = {client: str(one.facts["what"]) for client, one in asks.items()}
        assert list(wave) == sorted(wave)
        answers = {
            client: Message(
                kind="answer" if one.kind == "ask" else "evaluate",
                topic=one.topic,
                sections={
                    "y": Section(
                        kind="dense", tensors={"y": one.sections["x"].tensors["x"].square()}
                    )
                },
                facts={"told": f"{one.facts['what']}@{len(state.waves)}"},
            )
            for client, one in asks.items()
            if client not in self.deaf
        }
        return replace(state, waves=(*state.waves, wave)), answers

    def zero(self, state: Seen) -> tuple[Any, ...]:
        del state
        return ()

    def add(self, state: Seen, total: Any, client: str, update: Message) -> Any:
        del state
        heard: Any = update.facts["heard"]
        return (*total, (client, tuple(heard)))

    def merge(self, state: Seen, left: Any, right: Any) -> Any:
        del state
        return left + right

    def close(self, state: Seen, total: Any) -> Seen:
        return replace(state, ends=total)

    def probe(self, task: Message, worker: Any, client_state: ClientState) -> Talk:
        """Ask twice ahead and take the second answer only."""
        del task, client_state
        tickets = []
        for number in (1, 2):
            ticket = yield Post(ask(f"s{number}", "evaluate"))
            tickets.append(ticket)
        assert told((yield Take(tickets[1]))).startswith("s2@")
        return score_message(empty(worker.body.classes)), ClientState()

    def server_model(self, state: Seen) -> None:
        del state

    def client_model(self, client_state: ClientState) -> None:
        del client_state


def posting(asks: Sequence[str], take: Sequence[int]) -> Plan:
    """Post all, then take some, by their place in `asks`."""

    def plan() -> Talk:
        tickets, heard = [], []
        for what in asks:
            ticket = yield Post(ask(what))
            tickets.append(ticket)
        assert tickets == list(range(1, len(asks) + 1))
        for place in take:
            answer = yield Take(tickets[place])
            heard.append(told(answer))
        return done(heard)

    return plan


def shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order
    assert order != sorted(order)
    return order


# --- whoever plays it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three sites and a server whose models are loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        sites.hurry(patch)
        found = sites.Party(sites.house(tmp_path_factory.mktemp("party")), ("params",))
        yield found
        found.close()


def lossy(seed: int) -> Any:
    """Lose calls and replies, and make calls twice."""
    dice, turn = random.Random(seed), threading.Lock()  # noqa: S311 - dice lose calls

    def twist(_name: str, method: str, _a: Any, real: Any) -> Any:
        with turn:
            way = dice.choice(["before", "after", "twice", "", "", ""])
        if way == "before":
            raise Lost(method)
        if way == "twice":
            real()
        reply = real()
        if way == "after":
            raise Lost(method)
        return reply

    return twist


def local(party: Any, mode: Planned) -> tuple[Seen, Ledger]:
    ledger, (held, *_) = Ledger(), SITES
    worker = party.meeting.sites[held]._here.resources.worker(held, lambda _: None)
    seen: Seen = LocalEngine(party.house.job).round(
        mode,
        mode.start(),
        sorted(mode.plans),
        worker=lambda client: replace(worker, client=client),
        client_states={},
        keep=lambda _client, _state: None,
        ledger=ledger,
        watch=lambda _: None,
    )
    return seen, ledger


def between(party: Any, mode: Planned, twist: Any = None) -> tuple[Seen, Ledger]:
    party.modes["params"], party.twist = mode, twist or sites.plain
    for one in party.meeting.sites.values():
        one._here.modes["params"] = mode
    try:
        found: tuple[Seen, Ledger] = party.round("params", tuple(sorted(mode.plans)))
    finally:
        party.twist = sites.plain
    return found


ENGINES: Mapping[str, Any] = {
    "one process": local,
    "sites": between,
    "sites, calls lost": lambda party, mode: between(party, mode, lossy(7)),
}
everywhere = pytest.mark.parametrize("play", ENGINES.values(), ids=list(ENGINES))


def booked(ledger: Ledger, asks: Mapping[str, int]) -> None:
    """Every message and every byte of a payload is in the books: asks, answers, task and update."""
    for client, count in asks.items():
        row = ledger.rows()[client]
        for way in ("up", "down"):
            assert row[way]["messages"] == count + 1, (client, way)
            assert row[way]["payload_bytes"] == 4 * WIDTH * count, (client, way)


@everywhere
def test_ten_asks_in_flight_are_taken_in_any_order(party: Any, play: Any) -> None:
    orders = {client: shuffled(10, client) for client in SITES}
    asks = {client: [f"s{10 * i + j}" for j in range(10)] for i, client in enumerate(SITES)}
    mode = Planned({client: posting(asks[client], orders[client]) for client in SITES})
    seen, ledger = play(party, mode)
    assert seen.waves == tuple({c: asks[c][j] for c in sorted(SITES)} for j in range(10))
    wanted = {c: tuple(f"{asks[c][j]}@{j}" for j in orders[c]) for c in SITES}
    assert dict(seen.ends) == wanted
    assert [client for client, _ in seen.ends] == sorted(SITES)
    booked(ledger, dict.fromkeys(SITES, 10))


@everywhere
def test_what_nobody_takes_is_answered_and_booked_before_the_update_counts(
    party: Any, play: Any
) -> None:
    bank, clinic, shop = SITES
    mode = Planned({
        bank: posting([f"s{j}" for j in range(10)], ()),
        clinic: posting(["s20", "s21", "s22"], (2,)),
        shop: posting([], ()),
    })  # fmt: skip
    seen, ledger = play(party, mode)
    assert seen.waves == tuple(
        {bank: f"s{j}"} | ({clinic: f"s2{j}"} if j < 3 else {}) for j in range(10)
    )
    assert dict(seen.ends) == {bank: (), clinic: ("s22@2",), shop: ()}
    booked(ledger, {bank: 10, clinic: 3, shop: 0})


@everywhere
def test_streams_pass_a_barrier_and_a_barrier_passes_streams(party: Any, play: Any) -> None:
    bank, clinic, shop = SITES

    def asking(*asks: str) -> Plan:
        def plan() -> Talk:
            heard = []
            for what in asks:
                answer = yield Ask(ask(what))
                heard.append(told(answer))
            return done(heard)

        return plan

    mode = Planned({
        bank: posting(["g1", "s1", "s2"], (2, 0, 1)),  # streams behind a barrier do not wait
        clinic: asking("s3", "s4", "s5", "g2"),
        shop: posting(["s6", "s7", "s8", "s9", "g3", "s10"], (4, 0)),
    })  # fmt: skip
    seen, ledger = play(party, mode)
    assert seen.waves == (
        {bank: "s1", clinic: "s3", shop: "s6"},
        {bank: "s2", clinic: "s4", shop: "s7"},
        {clinic: "s5", shop: "s8"},
        {bank: "g1", clinic: "g2", shop: "g3"},  # a barrier behind streams does not either
        {shop: "s9"},
        {shop: "s10"},
    )
    assert dict(seen.ends) == {
        bank: ("s2@1", "g1@3", "s1@0"),
        clinic: ("s3@0", "s4@1", "s5@2", "g2@3"),
        shop: ("g3@3", "s6@0"),
    }
    booked(ledger, {bank: 3, clinic: 4, shop: 6})


@everywhere
def test_an_ask_at_a_barrier_that_nobody_takes_is_answered_with_the_others(
    party: Any, play: Any
) -> None:
    bank, clinic, shop = SITES
    mode = Planned({
        bank: posting(["s1", "g1"], ()),
        clinic: posting(["s2", "s3", "g2"], (2,)),
        shop: posting([], ()),
    })  # fmt: skip
    seen, ledger = play(party, mode)
    assert seen.waves[-1] == {clinic: "s3"}
    assert {bank: "g1", clinic: "g2"} in seen.waves
    assert dict(seen.ends)[clinic] == ("g2@0",)
    booked(ledger, {bank: 2, clinic: 3, shop: 0})


@everywhere
def test_an_answer_left_for_later_does_not_end_the_asking(party: Any, play: Any) -> None:
    """A site fetches the oldest answers, so that the server need not keep them for ever."""

    def plan() -> Talk:
        heard = []
        first = yield Post(ask("s0"))
        for number in range(1, 2 * AHEAD):
            answer = yield Ask(ask(f"s{number}"))
            heard.append(told(answer))
        assert isinstance(first, int)
        heard.append(told((yield Take(first))))
        return done(heard)

    bank, clinic, _ = SITES
    seen, ledger = play(party, Planned({bank: plan, clinic: posting([], ())}))
    rest = [f"s{j}@{j}" for j in range(1, 2 * AHEAD)]
    assert dict(seen.ends) == {bank: (*rest, "s0@0"), clinic: ()}
    booked(ledger, {bank: 2 * AHEAD})


@everywhere
@pytest.mark.parametrize(
    ("takes", "word"),
    [((3,), "ticket 3, never given"), ((0,), "ticket 0, never given"),
     ((1, 2, 1), "ticket 1 a second time")],
)  # fmt: skip
def test_a_ticket_never_given_or_taken_twice_is_refused(
    party: Any, play: Any, takes: Sequence[int], word: str
) -> None:
    def plan() -> Talk:
        for what in ("s1", "s2"):
            yield Post(ask(what))
        for ticket in takes:
            yield Take(ticket)
        return done()

    bank, clinic, _ = SITES
    with pytest.raises(RoundError, match=f"client '{clinic}' waits for {word}"):
        play(party, Planned({bank: posting(["s1"], (0,)), clinic: plan}))


@everywhere
def test_a_server_that_leaves_one_ask_unanswered_is_refused(party: Any, play: Any) -> None:
    bank, clinic, _ = SITES
    plans = {bank: posting(["s1", "s2"], (1,)), clinic: posting(["s3", "s4"], ())}
    with pytest.raises(RoundError, match=f"the server left client '{clinic}' without an answer"):
        play(party, Planned(plans, deaf=(clinic,)))


def test_an_answer_to_somebody_who_did_not_ask_is_not_sent(party: Any) -> None:
    class Talkative(Planned):
        def answer(
            self, state: Seen, asks: Mapping[str, Message]
        ) -> tuple[Seen, Mapping[str, Any]]:
            after, answers = super().answer(state, asks)
            return after, dict.fromkeys(SITES, next(iter(answers.values())))

    bank, clinic, shop = SITES
    plans = {bank: posting(["s1"], ()), clinic: posting([], ()), shop: posting(["s1"], (0,))}
    for play in (local, between):
        _, ledger = play(party, Talkative(plans))
        booked(ledger, {bank: 1, clinic: 0, shop: 1})


def test_all_bytes_are_those_of_one_process(party: Any) -> None:
    plans = {c: posting([f"s{j}" for j in range(4)], (3, 0)) for c in SITES}
    books = [play(party, Planned(plans))[1].rows() for play in ENGINES.values()]
    for client in SITES:
        for way in ("up", "down"):
            assert books[0][client][way] == books[1][client][way] == books[2][client][way]


def test_a_test_of_the_model_may_ask_ahead_too(party: Any) -> None:
    mode = Planned({client: posting([], ()) for client in SITES})
    between(party, mode)
    scores = {}
    for twist in (sites.plain, lossy(3)):
        engine = party.engine("params")
        party.twist = twist
        engine.ledger = Ledger()
        try:
            scores[twist] = party.scores("params", engine)
        finally:
            party.twist = sites.plain
        assert sorted(scores[twist].each) == sorted(SITES)
        found = engine.ledger.scoring
        assert found is not None
        assert (found["up"]["messages"], found["down"]["messages"]) == (3 * 3, 3 * 3)


def test_an_update_that_comes_before_all_is_answered_waits_at_the_server(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that does not wait for its answers gets no more of a round than one that does."""

    class Hasty(Conversation[Any]):
        @property
        def finished(self) -> bool:
            return self.over

    monkeypatch.setattr(site_rounds, "Conversation", Hasty)
    bank, clinic, _ = SITES
    plans = {bank: posting(["s1", "s2", "s3"], ()), clinic: posting(["s4", "g1"], (1,))}
    seen, ledger = between(party, Planned(plans))
    assert sum(len(wave) for wave in seen.waves) == 5
    booked(ledger, {bank: 3, clinic: 2})


# --- the board ----------------------------------------------------------------------------------


def test_at_the_board_an_update_with_open_asks_stays_in_waves_and_is_not_silent() -> None:
    there = Inbox("p", {"a": b"task", "b": b"task"}, lambda data, _c: ask(data.decode()), most=99)
    for ticket in (1, 2):
        reply = there.ask("a", "p", ticket=ticket, taken=0, waits=False, data=b"s1")
        assert reply == {"later": True}
    there.done("a", b"update", Spent(flops=1, peak_bytes=1, seconds=1.0))
    there.lines["a"].heard -= 100
    assert (there.open(), there.silent(50.0), there.lines["a"].open) == (["b"], [], True)
    assert there.due(STYLES, None) == {}, "b may still ask"
    there.ask("a", "p", ticket=3, taken=0, waits=False, data=b"s1")
    assert sorted(there.lines["a"].asked) == [1, 2], "who is done asks no more"
    there.leave("b", "gone")
    for left in ((2,), ()):
        assert list(there.due(STYLES, None)) == ["a"]
        there.deliver({"a": b"answer"})
        assert tuple(there.lines["a"].asked) == left
    assert not there.lines["a"].open
    assert there.due(STYLES, None) == {}


def test_at_the_board_the_ask_that_was_due_is_answered_not_the_oldest() -> None:
    there = Inbox("p", {"a": b"task", "b": b"task"}, lambda data, _c: ask(data.decode()), most=99)
    for ticket, data in ((1, b"g1"), (2, b"s22")):
        there.ask("a", "p", ticket=ticket, taken=0, waits=False, data=data)
    found = there.due(STYLES, 0.0)
    assert found["a"].facts["what"] == "s22"
    assert there.size("a") == 3
    there.deliver({"a": b"answer"})
    assert sorted(there.lines["a"].asked) == [1]
    assert there.lines["a"].answered == {2: b"answer"}
    there.deliver({"a": b"again"})
    assert sorted(there.lines["a"].asked) == [1], "nothing is due, so nothing is answered"


def test_more_asks_than_may_be_on_their_way_cost_a_site_its_place(party: Any) -> None:
    many = posting([f"s{j}" for j in range(AHEAD + 1)], ())
    with pytest.raises(RoundError, match=f"is more than {AHEAD} ahead of the oldest"):
        between(party, Planned({SITES[0]: many, SITES[1]: posting([], ())}))
    assert board_.AHEAD == AHEAD


# --- who is asked when --------------------------------------------------------------------------


def before(
    styles: Mapping[str, AskStyle], asks: Mapping[str, Message], live: Sequence[str]
) -> dict[str, Message]:
    """What was due when a client had one ask at most that counted."""
    waiting = {c for c, one in asks.items() if styles.get(one.topic) == "barrier"}
    if waiting >= set(live):
        return dict(asks)
    return {c: one for c, one in asks.items() if c not in waiting}


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from(["g1", "s1", ""])))
def test_with_one_ask_a_client_the_same_are_due_as_ever(asked: dict[str, str]) -> None:
    asks = {c: {7: ask(what)} if what else {} for c, what in sorted(asked.items())}
    found = due(STYLES, asks, list(asked))
    wanted = before(STYLES, {c: one[7] for c, one in asks.items() if one}, list(asked))
    assert [(c, asks[c][ticket]) for c, ticket in found.items()] == list(wanted.items())


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.dictionaries(st.integers(1, 9), st.sampled_from(["g1", "s1"]))
    )
)
def test_whoever_has_an_ask_that_can_be_answered_has_one_due(
    asked: dict[str, dict[int, str]],
) -> None:
    asks = {c: {t: ask(w) for t, w in some.items()} for c, some in asked.items()}
    found = due(STYLES, asks, list(asked))
    topics = {asks[c][ticket].topic for c, ticket in found.items()}
    assert len(topics) <= 1, "a barrier is answered by itself"
    gates = {c: [t for t, w in some.items() if w == "g1"] for c, some in asked.items()}
    streams = {c: [t for t, w in some.items() if w == "s1"] for c, some in asked.items()}
    answered = gates if asked and all(gates.values()) else streams
    assert found == {c: min(some) for c, some in answered.items() if some}
    if all(asked.values()):
        assert found or not asked, "a round in which all wait goes on"


@pytest.mark.parametrize(
    ("asks", "in_flight", "sizes"),
    [
        ({}, 0, [4, 1]), ({}, 3, [4, 1]), ({"s": "stream"}, 0, [5]),
        ({"s": "stream"}, 2, [2, 2, 1]), (STYLES, 2, [5]),
    ],
)  # fmt: skip
def test_who_is_in_flight_together_is_the_modes_to_say_where_clients_ask(
    asks: Any, in_flight: int, sizes: list[int]
) -> None:
    mode: Any = Planned({}, asks=asks, in_flight=in_flight)
    cohort = list("abcde")
    found = [list(crew) for crew in groups_in_flight(mode, cohort, free=4)]
    assert [len(crew) for crew in found] == sizes
    assert sum(found, []) == cohort  # noqa: RUF017 - five letters


# --- a talk by itself ---------------------------------------------------------------------------


def ended(talk: Any) -> Any:
    return Conversation("ann", talk)


def test_a_conversation_says_what_is_open_and_up_to_where_all_is_answered() -> None:
    one = ended(posting(["s1", "s2", "s3", "s4"], (2, 0))())
    assert one.answered_up_to == 0
    for ticket in (1, 2, 3, 4):
        sent = one.step()
        assert isinstance(sent, Sent)
        assert (sent.ticket, sent.waits, sent.ask.facts["what"]) == (ticket, False, f"s{ticket}")
    assert one.step() is None
    assert (one.waits_for, one.open, one.answered_up_to) == (3, {1, 2, 3, 4}, 0)
    answer = Message(kind="answer", facts={"told": "x"})
    one.answer(1, answer)
    one.answer(4, answer)
    assert (one.answered_up_to, one.step()) == (1, None)
    one.answer(3, answer)
    assert one.answered_up_to == 1
    assert one.step() is None
    assert (one.over, one.finished, one.answers) == (True, False, {})
    with pytest.raises(RoundError, match=r"^client 'ann' has not finished"):
        one.hand_over()
    one.answer(2, answer)
    assert one.answers == {}, "nobody can take it any more"
    assert one.answered_up_to == 4
    assert one.hand_over()[0].facts["heard"] == ["x", "x"]
    with pytest.raises(RoundError, match=r"^client 'ann' has not finished"):
        one.hand_over()


@pytest.mark.parametrize("ticket", [0, 1, 3])
def test_an_answer_that_nobody_asked_for_or_that_came_is_refused(ticket: int) -> None:
    one = ended(posting(["s1", "s2"], (0,))())
    while one.step() is not None:
        pass
    one.answer(1, Message(kind="answer", facts={"told": "x"}))
    with pytest.raises(RoundError, match=f"'ann' was answered to ticket {ticket}, not open"):
        one.answer(ticket, Message(kind="answer"))


@dataclass
class Clock:
    """A clock that goes on when it is told to."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Sleeps:
    """A piece of own work."""

    seconds: float
    clock: Clock = field(default_factory=Clock)
    kind: None = None
    size: int = 1

    def beside(self, others: Any) -> bool:
        return not others

    def run(self, others: Any = ()) -> None:
        assert not others
        self.clock.sleep(self.seconds)


def test_own_work_and_steps_count_as_time_and_waiting_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("triskel.training.conversation.time", clock)

    def talk() -> Talk:
        clock.sleep(1)
        yield Local(Sleeps(2, clock))
        yield Ask(ask("s1"))
        assert (yield Local(Sleeps(0.0))) is None, "a piece of work has no reply"
        assert (yield Post(ask("s2"))) == 2
        assert (yield Local(Sleeps(0.0))) is None
        clock.sleep(4)
        return done()

    one = ended(talk())
    work = one.step()
    assert not isinstance(work, Sent)
    assert work is not None
    one.do(work)
    assert isinstance(one.step(), Sent)
    clock.sleep(8)
    one.answer(1, Message(kind="answer"))
    while one.step() is not None:
        pass
    assert one.over
    assert one.seconds == 1 + 2 + 4


def test_a_talk_that_is_closed_frees_what_it_holds() -> None:
    freed: list[bool] = []

    def talk() -> Talk:
        try:
            yield Ask(ask("s1"))
        finally:
            freed.append(True)
        return done()

    one = ended(talk())
    one.step()
    one.close()
    assert freed == [True]


def test_alone_a_talk_runs_its_own_work_and_may_not_ask() -> None:
    ran: list[int] = []

    def steps(ask_too: str) -> Iterator[Step]:
        ran.append((yield Local(Sleeps(0.0))) is None)
        if ask_too:
            yield Post(ask(ask_too))
        return 7

    assert alone(steps("")) == 7  # type: ignore[arg-type]
    assert ran == [True]
    with pytest.raises(RoundError, match="client 'ann' asks about 's', and nobody is there"):
        alone(steps("s1"), "ann")  # type: ignore[arg-type]
