"""The local engine as a driver of conversations, shown on toy modes that only echo."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import dataclasses
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.aggregate.mean import Mean
from triskel.config.job import Job
from triskel.engines.channel import alike
from triskel.engines.local import LocalEngine
from triskel.errors import LimitError, MessageError, RoundError, TrainingError
from triskel.model.shared import Choice
from triskel.modes.params.mode import Params
from triskel.training.loop import TrainStep
from triskel.training.worker import Worker
from triskel.types import (
    Ask,
    AskStyle,
    ClientState,
    Message,
    Post,
    Section,
    Take,
    Talk,
)
from triskel.wire import pack
from triskel.wire.ledger import Ledger

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
STREAM: Mapping[str, AskStyle] = {"x": "stream"}
BARRIER: Mapping[str, AskStyle] = {"x": "barrier"}
Work = Callable[[Message, Worker, ClientState], Talk]


@dataclasses.dataclass(frozen=True)
class Toy:
    """Answers every ask with its own fact, and writes down what it was called for."""

    works: Mapping[str, Work]
    asks: Mapping[str, AskStyle]
    log: list[Any]
    limit: int = 1000
    in_flight: int = 0
    weighted: bool = False

    def start(self) -> int:
        return 0

    def task(self, state: int, client: str) -> Message:
        self.log.append(("task", client))
        return Message(kind="task", facts={"round": state + 1})

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        return self.works[worker.client](task, worker, client_state)

    def answer(self, state: int, asks: Mapping[str, Message]) -> tuple[int, Mapping[str, Message]]:
        self.log.append(("wave", {c: a.facts["x"] for c, a in asks.items()}))
        if len(self.log) > self.limit:
            raise RoundError("enough")
        return state, {
            c: Message(kind="answer", topic=a.topic, facts={"echo": a.facts["x"]})
            for c, a in asks.items()
        }

    def zero(self, state: int) -> tuple[str, ...]:
        del state
        return ()

    def add(
        self, state: int, total: tuple[str, ...], client: str, update: Message
    ) -> tuple[str, ...]:
        del state
        self.log.append(("add", client, update.facts.get("heard")))
        return (*total, client)

    def merge(self, state: int, left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
        del state
        return left + right

    def close(self, state: int, total: tuple[str, ...]) -> int:
        self.log.append(("close", total))
        return state + 1

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        return self.work(task, worker, client_state)

    def server_model(self, state: int) -> None:
        del state

    def client_model(self, client_state: ClientState) -> None:
        del client_state

    def waves(self) -> list[Any]:
        return [entry[1] for entry in self.log if entry[0] == "wave"]


def ask(x: Any, topic: str = "x") -> Message:
    return Message(kind="ask", topic=topic, facts={"x": x})


def done(
    heard: Sequence[Any] = (), client_state: ClientState | None = None
) -> tuple[Message, ClientState]:
    return Message(kind="update", facts={"heard": list(heard)}), client_state or ClientState()


def asking(*asks: Any) -> Work:
    """A client that asks one thing after the other."""

    def work(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task
        heard = []
        for x in asks:
            answer = yield Ask(ask(f"{worker.client}{x}"))
            assert isinstance(answer, Message)
            heard.append(answer.facts["echo"])
        return done(heard, client_state)

    return work


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    room = tmp_path_factory.mktemp("engine")
    job = SMALL.job(SMALL.save_model(room / "model"), SMALL.save_rows(room / "rows.csv", 20))
    return SMALL.resources(job).worker("client-01", SMALL.watch)


class Play:
    """One round of a toy."""

    def __init__(self, worker: Worker, toy: Toy, **wire: Any) -> None:
        job = Job.model_validate({"wire": wire})
        self.ledger, self.events, self.toy = Ledger(), list[Any](), toy
        self.engine, self.worker = LocalEngine(job), worker
        self.kept: dict[str, ClientState] = {}

    def round(self, *names: str, client_states: Mapping[str, ClientState] | None = None) -> Any:
        return self.engine.round(
            self.toy,
            0,
            names or sorted(self.toy.works),
            worker=lambda c: dataclasses.replace(self.worker, client=c),
            client_states=client_states or {},
            keep=self.kept.__setitem__,
            ledger=self.ledger,
            watch=self.events.append,
        )


def toy(asks: Mapping[str, AskStyle] = STREAM, limit: int = 1000, **works: Work) -> Toy:
    return Toy(works=works, asks=asks, log=[], limit=limit)


def test_a_post_returns_its_ticket_at_once_and_take_its_own_answer(worker: Worker) -> None:
    seen: list[Any] = []

    def pipelined(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        tickets = []
        for x in (1, 2, 3):
            tickets.append((yield Post(ask(x))))
            seen.append(("posted", x))
        for ticket in reversed(tickets):
            answer = yield Take(ticket)
            seen.append(answer.facts["echo"])
        return done((), client_state)

    play = Play(worker, toy(a=pipelined))
    play.round()
    assert seen == [("posted", 1), ("posted", 2), ("posted", 3), 3, 2, 1]
    assert play.toy.waves() == [{"a": 1}, {"a": 2}, {"a": 3}], "one ask a wave, oldest first"


def test_work_between_post_and_take_is_done_before_the_wave(worker: Worker) -> None:
    it = toy()

    def busy(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        ticket = yield Post(ask(1))
        it.log.append("computes")
        assert isinstance(ticket, int)
        yield Take(ticket)
        return done((), client_state)

    it = dataclasses.replace(it, works={"a": busy})
    Play(worker, it).round()
    assert it.log[1:3] == ["computes", ("wave", {"a": 1})]


def test_every_client_moves_to_its_next_ask_and_then_all_are_answered(worker: Worker) -> None:
    it = toy(c=asking(1), a=asking(1, 2, 3), b=asking(1, 2))
    Play(worker, it).round("c", "a", "b")
    assert it.waves() == [
        {"a": "a1", "b": "b1", "c": "c1"},
        {"a": "a2", "b": "b2"},
        {"a": "a3"},
    ]
    assert [list(w) for w in it.waves()] == [["a", "b", "c"], ["a", "b"], ["a"]]


def test_each_client_hears_the_answers_to_its_own_asks(worker: Worker) -> None:
    it = toy(a=asking(1, 2, 3), b=asking(4), c=asking())
    Play(worker, it).round()
    assert [e for e in it.log if e[0] == "add"] == [
        ("add", "a", ("a1", "a2", "a3")),
        ("add", "b", ("b4",)),
        ("add", "c", ()),
    ]
    assert it.log[-1] == ("close", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("wave", "waves"),
    [
        (0, [{"a": "a1", "b": "b1", "c": "c1"}]),
        (1, [{"a": "a1"}, {"b": "b1"}, {"c": "c1"}]),
        (2, [{"a": "a1", "b": "b1"}, {"c": "c1"}]),
        (9, [{"a": "a1", "b": "b1", "c": "c1"}]),
    ],
)
def test_a_wave_bounds_how_many_clients_are_in_flight(
    wave: int, waves: list[dict[str, str]], worker: Worker
) -> None:
    it = dataclasses.replace(toy(a=asking(1), b=asking(1), c=asking(1)), in_flight=wave)
    Play(worker, it).round()
    assert it.waves() == waves
    tasks = [i for i, e in enumerate(it.log) if e == ("task", "c")]
    assert (tasks[0] > 2) == (wave in {1, 2}), "a later crew is not even opened before"


def test_a_barrier_waits_for_everybody_whatever_the_wave(worker: Worker) -> None:
    it = toy(BARRIER, a=asking(1), b=asking(1), c=asking(1))
    Play(worker, dataclasses.replace(it, in_flight=1)).round()
    assert it.waves() == [{"a": "a1", "b": "b1", "c": "c1"}]


def test_a_barrier_is_answered_once_though_others_stream_before_it(worker: Worker) -> None:
    def late(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        yield Ask(ask("stream", "s"))
        yield Ask(ask("gate", "g"))
        return done((), client_state)

    def early(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        yield Ask(ask("gate", "g"))
        return done((), client_state)

    it = toy({"s": "stream", "g": "barrier"}, a=late, b=early)
    Play(worker, it).round()
    assert it.waves() == [{"a": "stream"}, {"a": "gate", "b": "gate"}]


def test_clients_that_ask_nothing_are_one_at_a_time(worker: Worker) -> None:
    it = toy({}, b=asking(), a=asking(), c=asking())
    Play(worker, it).round()
    assert [e[:2] for e in it.log] == [
        ("task", "a"), ("add", "a"), ("task", "b"), ("add", "b"), ("task", "c"), ("add", "c"),
        ("close", ("a", "b", "c")),
    ]  # fmt: skip


def test_a_client_that_never_asks_does_not_hold_up_a_barrier(worker: Worker) -> None:
    it = toy(BARRIER, a=asking(), b=asking(1))
    Play(worker, it).round()
    assert it.waves() == [{"b": "b1"}]
    assert it.log[-1] == ("close", ("a", "b"))


def test_a_client_that_asks_for_ever_ends_when_the_server_has_enough(worker: Worker) -> None:
    it = toy(limit=50, a=asking(*range(10_000)), b=asking(1))
    with pytest.raises(RoundError, match=r"^enough$"):
        Play(worker, it).round()
    assert 40 < len(it.waves()) < 60


def test_a_post_that_nobody_takes_does_not_keep_the_round_open(worker: Worker) -> None:
    def careless(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        yield Post(ask(1))
        return done((), client_state)

    it = toy(a=careless, b=asking(1, 2))
    Play(worker, it).round()
    assert it.waves() == [{"a": 1, "b": "b1"}, {"b": "b2"}], "and it is answered"
    assert it.log[-1] == ("close", ("a", "b"))


def test_a_server_that_leaves_a_client_out_is_refused(worker: Worker) -> None:
    class Deaf(Toy):
        def answer(
            self, state: int, asks: Mapping[str, Message]
        ) -> tuple[int, Mapping[str, Message]]:
            state, answers = super().answer(state, asks)
            return state, {c: a for c, a in answers.items() if c != "b"}

    deaf = Deaf(works={"a": asking(1), "b": asking(1)}, asks=STREAM, log=[])
    with pytest.raises(RoundError, match=r"^the server left client 'b' without an answer$"):
        Play(worker, deaf).round()


def test_what_one_client_raises_stops_the_round_and_commits_nothing(worker: Worker) -> None:
    def broken(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, client_state
        yield Ask(ask(1))
        raise TrainingError(f"loss became nan at client {worker.client!r}")

    def good(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker, client_state
        return done((), ClientState(facts={"new": True}))
        yield

    old = {"a": ClientState(facts={"old": 1})}
    it = toy(a=good, b=broken)
    play = Play(worker, it)
    with pytest.raises(TrainingError, match=r"at client 'b'"):
        play.round(client_states=old)
    assert not play.kept, "one wave: nobody is done before all are"
    assert old == {"a": ClientState(facts={"old": 1})}
    assert not [e for e in it.log if e[0] in {"add", "close"}]


def test_states_of_clients_come_back_and_those_of_others_stay(worker: Worker) -> None:
    def count(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task, worker
        rounds = client_state.facts.get("rounds", 0)
        assert isinstance(rounds, int)
        return done((), ClientState(facts={"rounds": rounds + 1}))
        yield

    it = toy({}, a=count, b=count, c=count)
    mine = {"a": ClientState(facts={"rounds": 4}), "c": ClientState(facts={"rounds": 9})}
    play = Play(worker, it)
    assert play.round("a", "b", client_states=mine) == 1
    assert {c: dict(s.facts) for c, s in play.kept.items()} == {
        "a": {"rounds": 5},
        "b": {"rounds": 1},
    }


def test_a_state_is_kept_as_soon_as_its_client_is_done(worker: Worker) -> None:
    seen: list[tuple[str, list[str]]] = []

    def looks(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del task
        seen.append((worker.client, sorted(play.kept)))
        return done((), client_state)
        yield

    play = Play(worker, toy({}, a=looks, b=looks, c=looks))
    play.round()
    assert seen == [("a", []), ("b", ["a"]), ("c", ["a", "b"])]


def sender(value: torch.Tensor, heard: list[Message]) -> Work:
    def work(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        del worker
        heard.append(task)
        section = Section(kind="dense", tensors={"w": value})
        answer = yield Ask(Message(kind="ask", topic="x", sections={"s": section}, facts={"x": 1}))
        assert isinstance(answer, Message)
        heard.append(answer)
        return Message(kind="update", sections={"s": section}, facts={"list": [1, 2]}), client_state

    return work


def test_messages_cross_as_bytes_and_are_rounded_as_the_wire_rounds(worker: Worker) -> None:
    heard: list[Message] = []
    received: list[Message] = []
    value = torch.tensor([1.0, 1 / 3])

    class Keeps(Toy):
        def answer(
            self, state: int, asks: Mapping[str, Message]
        ) -> tuple[int, Mapping[str, Message]]:
            received.extend(asks.values())
            return super().answer(state, asks)

        def add(
            self, state: int, total: tuple[str, ...], client: str, update: Message
        ) -> tuple[str, ...]:
            received.append(update)
            return super().add(state, total, client, update)

    it = Keeps(works={"a": sender(value, heard)}, asks=STREAM, log=[])
    play = Play(worker, it, up="bf16", down="fp32")
    play.round()
    for message in received:
        there = message.sections["s"].tensors["w"]
        assert there.data_ptr() != value.data_ptr()
        assert torch.equal(there, value.to(torch.bfloat16).float())
    assert received[1].facts["list"] == (1, 2)


def test_every_message_is_booked_once_in_its_direction(worker: Worker) -> None:
    it = toy(a=sender(torch.zeros(10), []), b=asking(1))
    play = Play(worker, it)
    play.round()
    rows = play.ledger.rows()
    assert list(rows) == ["a", "b"]
    assert (rows["a"]["up"]["messages"], rows["a"]["down"]["messages"]) == (2, 2)
    assert rows["a"]["up"]["payload_bytes"] == 2 * 40
    assert rows["a"]["up"]["sections"] == {"s": {"payload_bytes": 80}}
    assert rows["b"]["up"]["payload_bytes"] == rows["b"]["down"]["payload_bytes"] == 0
    sent = [e for e in play.events if e["event"] == "message"]
    for client, row in rows.items():
        for way in ("up", "down"):
            sizes = [e["bytes"] for e in sent if (e["client"], e["direction"]) == (client, way)]
            assert row[way]["message_bytes"] == sum(sizes)
    assert rows["a"]["compute_s"] > 0


def test_a_message_over_the_limit_names_client_size_and_limit(worker: Worker) -> None:
    it = toy(a=asking(1), b=sender(torch.zeros(1000), []))
    with pytest.raises(LimitError) as caught:
        Play(worker, it, max_mb=0.002).round()
    assert str(caught.value).startswith("message from client 'b' (ask): message has 4")
    assert str(caught.value).endswith(
        " bytes, the limit is 2000; raise wire.max_mb or choose a smaller codec"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_traced_to_their_client(bad: float, worker: Worker) -> None:
    it = toy(a=asking(1), b=sender(torch.tensor([1.0, bad]), []))
    with pytest.raises(MessageError) as caught:
        Play(worker, it).round()
    assert str(caught.value) == (
        "message from client 'b' (ask): section 's', tensor 'w' holds NaN or infinity, which "
        "would spoil every sum it enters; look for what made it, or leave this client's round out"
    )


def test_what_goes_to_all_alike_is_packed_once_unless_somebody_writes_into_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Message] = []

    def pack_(message: Message) -> bytes:
        packed.append(message)
        return pack(message)

    monkeypatch.setattr("triskel.engines.channel.pack", pack_)
    value, read = torch.ones(3), list[torch.Tensor]()

    def reads(task: Message, worker: Worker, client_state: ClientState) -> Talk:
        read.append(task.sections["s"].tensors["w"].clone())
        if worker.client == "b":
            task.sections["s"].tensors["w"].zero_()
        return done((), client_state)
        yield

    class Sends(Toy):
        def task(self, state: Any, client: str) -> Message:
            del state, client
            section = Section(kind="dense", tensors={"w": value})
            return Message(kind="task", sections={"s": section}, facts={"round": 1})

    Play(worker, Sends(dict.fromkeys("abcd", reads), {}, [])).round()
    assert [x.tolist() for x in read] == [[1, 1, 1]] * 4
    assert len([m for m in packed if m.kind == "task"]) == 2, "for a and b, and again for c and d"


def test_facts_that_are_equal_and_not_alike_are_told_apart() -> None:
    one, two = (Message(kind="task", facts={"x": x}) for x in (1, True))
    assert alike(one, dataclasses.replace(one))
    assert not alike(one, two)


def test_small_batches_of_clients_on_the_fast_path_end_as_one_by_one() -> None:
    job, found = tiny.job(rounds=2), list[Any]()
    for join in (0, 10_000):
        body = tiny.body("llama", job)
        body.use(Choice(path="fast", join=join))
        workers = [
            tiny.worker(name, job, body, tiny.examples(size, seed=size))
            for name, size in (("a", 7), ("b", 3), ("c", 5))
        ]
        initial = tiny.random_like(body.initial, 1)
        mode = Params(initial=initial, layout=body.layout, aggregate=Mean())
        ran: list[int] = []
        run = TrainStep.run

        def counted(self: TrainStep, others: Any = (), ran: Any = ran, run: Any = run) -> None:
            ran.append(1 + len(others))
            run(self, others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainStep, "run", counted)
            found.append((tiny.play(mode, job, workers)[0].adapter, ran))
    (apart, ones), (together, groups) = found
    assert set(ones) == {1}
    assert sum(groups) == sum(ones) == 2 * (3 + 1 + 2)
    assert groups[:2] == [3, 2]
    for name, tensor in apart.items():
        assert float((together[name] - tensor).norm() / tensor.norm()) < 1e-3, name
