"""Rounds that close with the first updates: who counts, with what weight, and who does not.

The links say who is slow: a site that is held says that it works, however long ago it was done.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from triskel.codec import decode
from triskel.engines.flare.protocol import Lost, Spent
from triskel.engines.flare.server_buffer import Buffer
from triskel.engines.flare.server_inbox import Inbox
from triskel.errors import RoundError
from triskel.types import Message
from triskel.wire import pack, unpack

sites = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py")))
SITES = sites.SITES
ROUNDS = 6
JOB = {"rounds": str(ROUNDS), "evaluate.every": "0"}
Arrays = dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]


@dataclass
class Links:
    """What lies between the two sides.

    Attributes:
        slow: Who is slow, once a task of a round was handed out; and which round.
        held: Who is slow now.
        dead: Who cannot be reached.
        sent: Task and update of a play and client, as they crossed.
        spoil: Updates in the place of those that were handed over, by play and client.
    """

    slow: tuple[int, set[str]] = (0, set())
    held: set[str] = field(default_factory=set[str])
    dead: set[str] = field(default_factory=set[str])
    sent: dict[tuple[str, str, str], bytes] = field(default_factory=dict[Any, bytes])
    spoil: dict[tuple[int, str], bytes] = field(default_factory=dict[Any, bytes])

    def __call__(self, name: str, method: str, arguments: Mapping[str, Any], real: Any) -> Any:
        if name in self.dead:
            raise Lost(method)
        if method == "begin" and round_of(arguments["order"]["play"]) == self.slow[0]:
            self.held = self.slow[1]  # so that a round has begun when what was held comes
        if name in self.held and method == "collect":
            time.sleep(0.01)
            return {"state": "working", "tokens": 0}
        reply, play = real(), arguments.get("play", "")
        if method == "hand_over" and (bad := self.spoil.get((round_of(play), name))):
            reply = {**reply, "update": bad}
        for what, key in (("fetch", "task"), ("hand_over", "update")):
            if method == what and key in reply:
                self.sent[play, name, key] = reply[key]
        return reply

    def message(self, round_: int, name: str, key: str) -> Message:
        (found,) = (
            d for (p, n, k), d in self.sent.items() if (round_of(p), n, k) == (round_, name, key)
        )
        return decode(unpack(found, limit_bytes=10**9), changes=False, limit_bytes=10**9)


def round_of(play: str) -> int:
    return int(play.split("/")[1]) if play.count("/") > 1 else 0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        sites.hurry(patch)
        found = sites.Party(sites.house(tmp_path_factory.mktemp("buffer"), **JOB), ("params",))
    yield found
    found.close()


@pytest.fixture
def party(house: Any) -> Iterator[Any]:
    house.twist = Links()
    yield house
    house.twist = Links()
    house.meeting.host.engine._buffer._drop()  # nothing goes on into the next test


def engine(party: Any, buffer: int = 2, **options: Any) -> Any:
    return party.engine("params", buffer=buffer, **options)


def rounds(party: Any, playing: Any, script: list[set[str]]) -> tuple[list[Any], list[Any]]:
    """Play a round for each set of clients that are slow in it; return states and ledgers."""
    states, ledgers = [party.modes["params"].start()], list[Any]()
    for held in script:
        state, ledger = one_round(party, playing, states[-1], held)
        states.append(state)
        ledgers.append(ledger)
    return states, ledgers


def one_round(party: Any, playing: Any, state: Any, held: set[str]) -> tuple[Any, Any]:
    party.twist.slow = state.closed + 1, held
    found: tuple[Any, Any] = party.round("params", engine=playing, state=state)
    return found


def until(there: Callable[[], bool]) -> None:
    for _ in range(6000):
        if there():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def free_once_lost(client: str, playing: Any, links: Links) -> None:
    """Let the others be slow until it is known that a client is lost."""
    lose = playing._buffer._lose

    def loses(now: Any) -> None:
        lose(now)
        links.held = set() if client in now.lost else links.held

    playing._buffer._lose = loses


def counted(ledger: Any) -> dict[str, int]:
    return {c: one.staleness for c, one in ledger.accounts.items() if one.staleness is not None}


def flat(message: Message) -> Arrays:
    return {
        name: tensor.numpy().astype(np.float64)
        for section in message.sections.values()
        for name, tensor in section.tensors.items()
    }


SCRIPT: list[set[str]] = [{"shop"}, {"bank"}, {"clinic"}, {"clinic"}, {"shop"}]
COUNTED = [
    {"bank": 0, "clinic": 0},
    {"clinic": 0, "shop": 1},
    {"bank": 1, "shop": 0},
    {"bank": 0, "shop": 0},
    {"bank": 0, "clinic": 2},
]
"""Of `SCRIPT`, with a buffer of two: whose update counts, and how many rounds late."""


def test_rounds_are_those_of_fedbuff_worked_out_from_what_crossed(party: Any) -> None:
    states, ledgers = rounds(party, engine(party), SCRIPT)
    assert list(map(counted, ledgers)) == COUNTED
    theta = {n: t.numpy().astype(np.float64) for n, t in states[0].adapter.items()}
    for number, taken in enumerate(COUNTED, 1):
        steps, weights = dict.fromkeys(theta, 0.0), 0.0
        for client, late in taken.items():
            task = party.twist.message(number - late, client, "task")
            update = party.twist.message(number - late, client, "update")
            weight, before, after = float(str(update.facts["examples"])), flat(task), flat(update)
            weights += weight
            for name in theta:
                share = weight / np.sqrt(1.0 + late)
                steps[name] = steps[name] + share * (after[name] - before[name])
        theta = {name: old + steps[name] / weights for name, old in theta.items()}
        for name, wanted in theta.items():
            got = states[number].adapter[name].numpy()
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
            assert number < 2 or not np.array_equal(got, states[number - 1].adapter[name].numpy())


def test_what_is_spent_is_booked_once_and_in_the_round_in_which_it_counts(party: Any) -> None:
    _, ledgers = rounds(party, engine(party), SCRIPT)
    for number, (ledger, taken) in enumerate(zip(ledgers, COUNTED, strict=True), 1):
        assert ledger.accounts.keys() - ledger.absent.keys() == taken.keys()
        for client in SITES:
            account = ledger.accounts[client]
            assert (account.flops > 0) == (account.up.messages == 1) == (client in taken)
            late = [r for r, one in enumerate(COUNTED, 1) if client in one and r < number]
            fresh = number == 1 or (late and late[-1] == number - 1)  # its last one counted
            assert account.down.messages == bool(fresh), (number, client)
            if client in taken:
                size = party.twist.sent
                wanted = [
                    len(d) for (p, n, k), d in size.items()
                    if (round_of(p), n, k) == (number - taken[client], client, "update")
                ]  # fmt: skip
                assert [account.up.message_bytes] == wanted
        shares = {c: ledger.accounts[c].share for c in taken}
        assert sum(shares.values()) == pytest.approx(1)
        row = ledger.rows()
        assert {c: one.get("staleness") for c, one in row.items() if c in taken} == taken
    assert ledgers[0].absent == {"shop": "at work on the task of round 1"}
    assert ledgers[3].absent == {"clinic": "at work on the task of round 3"}


def test_what_comes_between_rounds_is_taken_as_the_next_one_opens_and_once(party: Any) -> None:
    playing, links = engine(party), party.twist
    states, _ = rounds(party, playing, [{"shop"}])
    links.held, buffer, was = set(), playing._buffer, playing._buffer._wait
    until(lambda: buffer._out["shop"].here)

    def wait(now: Any) -> None:
        assert now.counted == ["shop"]
        until(lambda: buffer._out["shop"].here)  # its next one is there before the others' are
        links.held = set()
        was(now)

    buffer._wait = wait
    state, ledger = one_round(party, playing, states[-1], {"bank", "clinic"})
    assert counted(ledger)["shop"] == 1
    assert 2 <= len(counted(ledger)) <= 3
    shop = ledger.accounts["shop"]
    assert (shop.up.messages, shop.down.messages) == (1, 1), "it has new work at once"
    assert "shop" not in ledger.absent
    buffer._wait = was
    _, ledger = one_round(party, playing, state, {"bank"})
    assert counted(ledger)["shop"] == 1, "that of round 2, in round 3"


def test_who_is_lost_after_its_update_counted_has_taken_part(party: Any) -> None:
    playing, links = engine(party), party.twist
    states, _ = rounds(party, playing, [{"shop"}])
    links.held = set()
    until(lambda: playing._buffer._out["shop"].here)
    links.dead = {"shop"}
    free_once_lost("shop", playing, links)
    _, ledger = one_round(party, playing, states[-1], {"bank", "clinic"})
    assert counted(ledger)["shop"] == 1
    assert "shop" not in ledger.absent


def test_where_updates_are_waited_for_is_told_oldest_first_so_that_the_newest_word_counts() -> None:
    buffer, one, two = Buffer.__new__(Buffer), Inbox.__new__(Inbox), Inbox.__new__(Inbox)
    buffer._out = {}
    for client, round_, inbox in (("ann", 2, two), ("bob", 1, one), ("eve", 2, two)):
        out: Any = SimpleNamespace(client=client, round=round_, inbox=inbox)
        buffer._out[client] = out
    assert [id(inbox) for inbox in buffer.inboxes] == [id(one), id(two)]


def test_with_all_clients_a_round_is_the_one_that_waits_for_everybody(party: Any) -> None:
    at_once, _ = rounds(party, engine(party, 0), [set(), set()])
    buffered, ledgers = rounds(party, engine(party, 3), [set(), set()])
    assert [counted(one) for one in ledgers] == [dict.fromkeys(SITES, 0)] * 2
    for one, two in zip(at_once, buffered, strict=True):
        assert all(torch.equal(tensor, two.adapter[name]) for name, tensor in one.adapter.items())


def test_work_that_is_too_old_is_called_off_and_its_client_gets_new_work(party: Any) -> None:
    script = [{"shop"}, {"shop"}, {"shop"}, {"bank"}]
    playing = engine(party, staleness=1)
    _, ledgers = rounds(party, playing, script)
    assert [counted(one) for one in ledgers[:3]] == [{"bank": 0, "clinic": 0}] * 3
    assert counted(ledgers[3]) == {"clinic": 0, "shop": 1}, "that of round 3"
    assert ledgers[1].absent == {"shop": "at work on the task of round 1"}
    assert ledgers[2].absent["shop"] == (
        "its task of round 1 is called off, as it is more than 1 rounds old "
        "(federation.staleness); at work on the task of round 3"
    )
    assert ledgers[2].accounts["shop"].down.messages == 1
    plays = {p for p, n, k in party.twist.sent if (n, k) == ("shop", "update")}
    assert {round_of(p) for p in plays} == {3}, "what was called off is not even fetched"


def test_a_client_that_dies_at_work_is_lost_and_asked_again_once_it_is_back(party: Any) -> None:
    playing, links = engine(party), party.twist
    states, _ = rounds(party, playing, [{"shop"}])
    links.dead = {"shop"}
    free_once_lost("shop", playing, links)
    state, ledger = one_round(party, playing, states[-1], {"bank", "clinic"})
    assert counted(ledger) == {"bank": 0, "clinic": 0}
    assert ledger.absent == {"shop": "not heard of for 20 s"}
    links.dead = set()
    state, ledger = one_round(party, playing, state, {"bank"})
    assert counted(ledger) == {"clinic": 0, "shop": 0}, "its old task is lost, it has a new one"
    assert links.message(3, "shop", "update").facts["round"] == 3


def test_with_fewer_than_the_buffer_a_round_ends_with_names_reasons_and_what_to_do(
    party: Any,
) -> None:
    playing = engine(party, 3)
    party.twist.dead = {"shop"}
    with pytest.raises(RoundError, match=r"shop: not heard of.* fewer than federation\.buffer"):
        rounds(party, playing, [set()])
    assert not playing._buffer.inboxes
    assert playing.inbox.closed


def test_a_second_update_for_a_task_and_one_of_an_old_task_are_not_taken(party: Any) -> None:
    playing, spent = engine(party), Spent(flops=1, peak_bytes=1, seconds=0.0)
    states, _ = rounds(party, playing, [{"shop"}])
    first, links = playing.inbox, party.twist
    old = next(d for (p, n, k), d in links.sent.items() if (n, k) == ("bank", "update"))
    first.done("bank", old, spent)
    assert first.lines["bank"].update == b"", "what was taken is taken"
    links.spoil = {(2, "bank"): old}  # a replay, in the place of what it was asked for
    free_once_lost("bank", playing, links)
    _, ledger = one_round(party, playing, states[-1], {"clinic"})
    assert counted(ledger) == {"clinic": 0, "shop": 1}
    assert ledger.absent == {"bank": "message belongs to round 1, and round 2 is open"}
    assert ledger.accounts["bank"].flops == 0


def test_a_late_update_that_does_not_fit_its_task_costs_its_client_the_round_alone(
    party: Any,
) -> None:
    playing = engine(party)
    states, _ = rounds(party, playing, [{"shop"}])
    party.twist.spoil = {(1, "shop"): pack(Message(kind="update", facts={"round": 1}))}
    free_once_lost("shop", playing, party.twist)
    _, ledger = one_round(party, playing, states[-1], {"clinic"})
    assert counted(ledger) == {"bank": 0, "clinic": 0}
    assert set(ledger.absent) == {"shop"}
    assert "adapter" in ledger.absent["shop"]


def test_tasks_that_are_out_are_kept_and_no_others(party: Any) -> None:
    playing, open_ = engine(party), list[list[str]]()
    state: Any = party.modes["params"].start()
    for held in SCRIPT:
        state, _ = one_round(party, playing, state, held)
        open_.append([one.play.split("/")[1] for one in playing._buffer.inboxes])
    assert [set(one) for one in open_] == [{"1"}, {"2"}, {"3"}, {"3"}, {"5"}]
    assert playing.box(playing._buffer.inboxes[0].play) is playing._buffer.inboxes[0]
    assert playing.standing()["shop"] == {"state": "working", "tokens": 0}


def test_a_server_that_goes_on_has_nothing_out_and_gives_everybody_new_work(party: Any) -> None:
    states, _ = rounds(party, engine(party), [{"shop"}])
    _, ledger = one_round(party, engine(party), states[-1], {"bank"})
    assert counted(ledger) == {"clinic": 0, "shop": 0}
    assert {c: one.down.messages for c, one in ledger.accounts.items()} == dict.fromkeys(SITES, 1)


# --- whole jobs -----------------------------------------------------------------------------------


def whole(tmp_path: Path, **more: str) -> Any:
    """Three sites and a job of three rounds that close with two."""
    keys = {**JOB, "rounds": "3", "federation.buffer": "2", **more}
    return sites.house(tmp_path, **keys)


def slow(site: str, said: list[str]) -> Any:
    """Hold one site's work until the rounds are over."""

    def lose(name: str, method: str, arguments: Mapping[str, Any]) -> str:
        late = name == site and method == "hand_over" and "work" in arguments["play"].split("/")
        said.extend([arguments["play"]] if late else [])
        return "before" if late else ""

    return lose


def test_a_job_ends_with_the_work_that_is_out_dropped_and_its_last_round_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.hurry(monkeypatch)
    there, said = whole(tmp_path, **{"federation.patience_s": "1000"}), list[str]()
    meeting = sites.Meeting(there, there.spec("params"), slow("shop", said))
    assert meeting.play() == {"done": True, "refused": False}
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = found["modes"]["params"]["rounds"]
    assert {round_of(one) for one in said} == {1}
    assert [row["absent"] for row in rows] == [
        {"shop": "at work on the task of round 1"},
        {"shop": "at work on the task of round 1"},
        {"shop": "at work on the task of round 1, dropped at the end"},
    ]
    assert all(row["clients"]["bank"]["staleness"] == 0 for row in rows)
    assert ["accuracy" in row for row in rows] == [False, False, True]
    assert set(rows[-1]["per_client"]) == set(SITES), "who was dropped tests as well"


def test_a_job_that_was_cut_off_goes_on_after_its_last_closed_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.hurry(monkeypatch)
    there = whole(tmp_path)
    first: Any = None

    def cut(name: str, method: str, arguments: Mapping[str, Any]) -> str:
        play = str(arguments.get("play") or arguments.get("order", {}).get("play", ""))
        if round_of(play) == 2 and first is not None:
            first.stop.set()
        return "before" if name == "shop" and method == "hand_over" else ""

    first = sites.Meeting(there, there.spec("params"), cut)
    assert first.play()["error"] == "stopped by the test"
    again = sites.Meeting(there, there.spec("params"))
    assert again.play()["done"]
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = found["modes"]["params"]["rounds"]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["absent"] == {"shop": "at work on the task of round 1"}
    assert rows[1]["clients"].keys() == set(SITES), "everybody has new work"


def test_a_buffer_that_no_round_could_fill_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.hurry(monkeypatch)
    there = whole(tmp_path, **{"federation.buffer": "4"})
    ended = sites.Meeting(there, there.spec("params")).play()
    assert ended["refused"]
    assert "federation.buffer is 4, and 3 sites hold training examples" in ended["error"]


def test_a_site_takes_no_part_in_a_round_that_may_close_with_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.hurry(monkeypatch)
    there = whole(tmp_path, **{"federation.buffer": "1"})
    ended = sites.Meeting(there, there.spec("params")).play()
    assert ended["refused"]
    assert "may close with 1 (federation.buffer)" in ended["error"]
