"""Links that lose calls, sites and servers that go: the same bits, or a sentence that says why."""

# ruff: noqa: ANN401, S311 - results are JSON; dice lose calls

import json
import random
import runpy
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from triskel.engines.flare import server_inbox as board_
from triskel.engines.flare import site_job as site_
from triskel.engines.flare import site_rounds, site_store
from triskel.engines.flare.protocol import Lost, Spent, patience
from triskel.engines.flare.server_inbox import Inbox
from triskel.engines.flare.submission import owned
from triskel.errors import MessageError, RoundError
from triskel.types import ClientState, Message

sites = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py"))
Meeting, Party, house, SITES = (sites[name] for name in ("Meeting", "Party", "house", "SITES"))
until = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "patience.py"))["until"]
STREAM = {"forward": "stream"}
BARRIER = {"knowledge": "barrier"}
SPENT = Spent(flops=1, peak_bytes=1, seconds=1.0)


def bits(state: Any) -> Mapping[str, torch.Tensor]:
    """All tensors of a server's state, Adam's among them."""
    found: dict[str, torch.Tensor] = {}
    for name in ("tensors", "adapter", "student"):
        found |= {f"{name}.{n}": t for n, t in getattr(state, name, {}).items()}
    moments = getattr(state, "moments", None)
    if moments is not None:
        found |= {f"mean.{n}": t for n, t in getattr(moments, "mean", moments).items()}
        steps = getattr(moments, "steps", {}).values()
        assert set(steps) <= {max(steps, default=0)}
    return found


def same(one: Any, two: Any) -> None:
    ours, theirs = bits(one), bits(two)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if hasattr(one, "moments"):
        assert getattr(one.moments, "steps", {}) == getattr(two.moments, "steps", {})


def moved(state: Any, start: Any) -> bool:
    return any(
        not torch.equal(t, bits(start)[n]) for n, t in bits(state).items() if n in bits(start)
    )


# --- Lost calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["params", "logits", "split"])
def test_lost_late_and_repeated_calls_change_no_bit_and_no_byte(party: Any, stage: str) -> None:
    calm, quiet = party.round(stage)
    calm_scores = party.scores(stage)
    dice, turn = random.Random(7), threading.Lock()
    old: list[tuple[Any, Any]] = []
    lost: Counter[str] = Counter()

    def twist(_name: str, method: str, _a: Any, real: Any) -> Any:
        with turn:
            way = dice.choice(["before", "after", "twice", "", ""])
            late = dice.choice(old)[1] if old and dice.random() < 0.2 else None
            old.append((method, real))
            lost[f"{method} {way}"] += bool(way)
        if late is not None:
            late()  # a call that was on its way for long
        if way == "before":
            raise Lost(method)
        if way == "twice":
            real()
        reply = real()
        if way == "after":
            raise Lost(method)
        return reply

    party.twist = twist
    ours, books = party.round(stage)
    scores = party.scores(stage)
    same(ours, calm)
    assert scores.each == calm_scores.each
    for client, spent in quiet.rows().items():
        for what in ("up", "down", "flops"):
            assert books.rows()[client][what] == spent[what]
    named = {name.split()[0] for name, count in lost.items() if count}
    assert {"begin", "collect", "hand_over", "fetch"} <= named
    assert "ask" in named or stage != "split"


def test_every_method_may_lose_its_first_call_or_its_first_reply(party: Any) -> None:
    calm, _ = party.round("split")
    for way in ("before", "after"):
        seen: set[tuple[str, str]] = set()

        def twist(
            name: str, method: str, _a: Any, real: Any, way: str = way, seen: Any = seen
        ) -> Any:
            first = (name, method) not in seen
            seen.add((name, method))
            if first and way == "before":
                raise Lost(method)
            reply = real()
            if first:
                raise Lost(method)
            return reply

        party.twist = twist
        ours, _ = party.round("split")
        same(ours, calm)
        assert len(seen) == 3 * 5


def test_calls_of_an_old_play_are_turned_away_by_both_sides(party: Any) -> None:
    seen: dict[str, Any] = {}

    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        seen.setdefault(f"{name} {method}", real)
        return real()

    party.twist = twist
    first, _ = party.round("split")
    old = dict(seen)
    again, begun = list[Any](), set[str]()

    def late(name: str, method: str, _a: Any, real: Any) -> Any:
        if method == "ask" and len(begun) == len(SITES):  # before, the old play is a site's own
            again.extend(old[f"{n} {m}"]() for n in SITES for m in ("begin", "ask", "fetch"))
        reply = real()
        if method == "begin":
            begun.add(name)
        return reply

    party.twist = late
    second, _ = party.round("split")
    same(first, second)
    # a site that has not begun the new play yet says what it said before
    assert all("gone" in reply or reply["state"] in {"failed", "done"} for reply in again)
    assert any("is over" in str(reply) for reply in again)


def test_a_finish_that_got_lost_is_called_again_and_one_that_fails_is_said(party: Any) -> None:
    host, calls = party.meeting.host, Counter[str]()
    party.engine("params")

    def twist(name: str, method: str, _a: Any, _real: Any) -> Any:
        calls[name] += 1
        if name == "bank" and calls[name] < 3:
            raise Lost(method)
        return {"state": "failed", "error": "disk full"} if name == "shop" else {"state": "ready"}

    party.twist, told = twist, []
    host._note, kept = told.append, host._note
    host._finish("params", {})
    host._note = kept
    assert calls == {"bank": 3, "clinic": 1, "shop": 1}
    assert [e["text"] for e in told] == ["shop at the end of params: disk full"]


def test_a_model_that_is_saved_for_long_is_saved_once_and_its_end_is_heard(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, saved, hold = party.meeting.host, Counter[str](), threading.Event()
    party.engine("params")
    monkeypatch.setattr(site_, "HOLD_S", 0.05)
    for name, one in party.meeting.sites.items():

        def keep(stage: str, counted: int, name: str = name) -> None:
            assert not counted, "no round was played"
            saved[f"{name} {stage}"] += 1
            if name == "bank":
                assert hold.wait(20)
            if name == "shop":
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(one, "_keep_own", keep)
        monkeypatch.setattr(one, "_saves", {})
    calls = Counter[str]()

    def twist(name: str, _m: str, _a: Any, real: Any) -> Any:
        calls[name] += 1
        if calls[name] == 3:
            hold.set()
        return real()

    told: list[Any] = []
    party.twist = twist
    monkeypatch.setattr(host, "_note", told.append)
    host._finish("params", {})
    assert saved == {f"{name} params": 1 for name in SITES}
    assert calls["bank"] >= 3
    said = "shop at the end of params: OSError; the log of site 'shop' says more"
    assert [e["text"] for e in told] == [said]
    again = [one.finish("params", 0) for one in party.meeting.sites.values()]
    assert [reply["state"] for reply in again] == ["ready", "ready", "failed"]
    assert sum(saved.values()) == 3


# --- Sites that go ------------------------------------------------------------------------------


def silent(who: str, stage_round: str = "") -> Any:
    """Lose every call of a site, in a round if one is named."""

    def twist(name: str, method: str, arguments: Mapping[str, Any], real: Any) -> Any:
        play = arguments.get("play") or arguments.get("order", {}).get("play", "")
        if name == who and (not stage_round or play.startswith(stage_round)):
            raise Lost(method)
        return real()

    return twist


@pytest.mark.parametrize("stage", ["params", "logits", "split"])
def test_a_round_goes_on_without_a_silent_site_and_ends_as_if_it_never_was_there(
    party: Any, stage: str
) -> None:
    fewer, _ = party.round(stage, ("bank", "shop"))
    party.twist = silent("clinic")
    ours, ledger = party.round(stage, quorum=0.6)
    same(ours, fewer)
    assert ledger.absent == {"clinic": "not heard of for 20 s"}


def test_a_site_that_was_silent_takes_part_again_once_its_link_is_back(party: Any) -> None:
    engine = party.engine("params", quorum=0.6)
    party.twist = silent("clinic")
    state, ledger = party.round("params", engine=engine)
    for _ in range(2):
        _, ledger = party.round("params", engine=engine)
    assert ledger.absent == {"clinic": "still away (not heard of for 20 s)"}
    party.twist = sites["plain"]
    back, ledger = party.round("params", engine=engine, state=state)
    calm, _ = party.round("params", state=state)
    assert not ledger.absent
    assert not engine.absent
    same(back, calm)


def test_fewer_than_the_quorum_end_the_round_with_names_reasons_and_what_to_do(party: Any) -> None:
    party.twist = silent("clinic")
    with pytest.raises(RoundError) as found:
        party.round("params", quorum=1.0)
    assert "clinic: not heard of for 20 s" in str(found.value)
    assert "triskel federation resume" in str(found.value)
    assert "federation.quorum" in str(found.value)


@pytest.mark.parametrize("stage", ["params", "logits"])
def test_a_deadline_leaves_out_the_slow_but_never_more_than_the_quorum_spares(
    stage: str, party: Any
) -> None:
    """In `logits` the others wait for the slow at a barrier: who waits is not late."""
    fewer, _ = party.round(stage, ("bank", "shop"))
    free = threading.Event()

    def slow(name: str, method: str, _a: Any, real: Any) -> Any:
        if name == "clinic" and method == "fetch":
            free.wait(20)
        return real()

    party.twist = slow
    ours, ledger = party.round(stage, quorum=0.6, deadline_s=0.5)
    assert ledger.absent == {"clinic": "not done after 0.5 s"}
    same(ours, fewer)
    free.set()
    free.clear()
    threading.Timer(0.5, free.set).start()
    _, ledger = party.round(stage, quorum=1.0, deadline_s=0.1)
    assert not ledger.absent


def test_an_evaluation_goes_on_without_those_the_quorum_spares(party: Any) -> None:
    full = party.scores("params")
    party.twist = silent("clinic")
    scores = party.scores("params", quorum=0.6)
    assert scores.each == {name: full.each[name] for name in ("bank", "shop")}
    with pytest.raises(RoundError, match="clinic: not heard of"):
        party.scores("params", quorum=1.0)


def test_asks_in_the_order_they_arrive_end_and_learn(party: Any) -> None:
    state, ledger = party.round("split", order="arrival", window_s=0.01)
    assert moved(state, party.modes["split"].start())
    assert not ledger.absent
    calm, _ = party.round("split")
    assert max(state.moments.steps.values()) >= max(calm.moments.steps.values())


def test_a_server_that_stops_says_why(party: Any) -> None:
    engine = party.engine("params")
    engine.stopped = lambda: "the job was aborted"
    with pytest.raises(RoundError, match="the job was aborted"):
        party.round("params", engine=engine)


def test_a_round_of_which_only_the_server_was_lost_is_played_anew_by_the_same_sites(
    party: Any,
) -> None:
    calm, _ = party.round("split")
    engine, asked = party.engine("split"), Counter[str]()

    def twist(_n: str, method: str, _a: Any, real: Any) -> Any:
        asked[method] += 1
        if asked["ask"] > 8:
            engine.stopped = lambda: "the server fell"
        return real()

    party.twist = twist
    with pytest.raises(RoundError, match="fell"):
        party.round("split", engine=engine)
    party.twist = sites["plain"]
    ours, _ = party.round("split")
    same(ours, calm)


def test_a_site_whose_part_begins_anew_in_the_middle_is_left_out_and_hangs_nobody(
    party: Any,
) -> None:
    asked, fell = Counter[str](), list[bool]()

    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        asked[f"{name} {method}"] += 1
        site = party.meeting.sites["clinic"]
        if method == "ask" and name == "clinic" and asked["clinic ask"] >= 3 and not fell:
            fell.append(True)
            site._begun.clear()  # as after a crash: a process that knows of nothing
            site._part.stop, site._part = True, None
        return real()

    party.twist = twist
    state, ledger = party.round("split", quorum=0.6)
    assert list(ledger.absent) == ["clinic"]
    # what the old part says counts too, where the server asked while it ended
    assert any(why in ledger.absent["clinic"] for why in ("answered before", "server went on"))
    assert moved(state, party.modes["split"].start())


# --- Whole jobs ---------------------------------------------------------------------------------


def adapter(place: Path) -> bytes:
    return (place / "adapters" / "split" / "adapter_model.safetensors").read_bytes()


def test_a_run_does_not_begin_without_a_site_unless_the_quorum_spares_it(
    tmp_path: Path,
) -> None:

    def lose(name: str, method: str, _a: Mapping[str, Any]) -> str:
        return "before" if (name, method) == ("shop", "hello") else ""

    def played(quorum: str, run: str) -> Mapping[str, Any]:
        keys = {"federation.quorum": quorum}
        there = house(tmp_path / run, **keys, rounds="1")
        return Meeting(there, there.spec("params", run=run), lose).play()

    ended = played("1.0", "a" * 12)
    assert (ended["done"], ended["again"]) == (False, True)
    assert ended["error"].startswith("shop: did not answer; the others are fewer than")
    assert played("0.6", "b" * 12)["done"]


def who_played(out: Path) -> list[tuple[list[str], Mapping[str, str]]]:
    rounds = json.loads((out / "result.json").read_text())["modes"]["params"]["rounds"]
    return [
        (sorted(c for c, spent in one["clients"].items() if spent["up"]["messages"]),
         one.get("absent", {}))
        for one in rounds
    ]  # fmt: skip


def test_a_run_that_could_not_begin_without_a_site_begins_with_it_when_it_is_sent_again(
    tmp_path: Path,
) -> None:
    there = house(tmp_path)

    def lose(name: str, method: str, _a: Mapping[str, Any]) -> str:
        return "before" if (name, method) == ("shop", "hello") else ""

    assert Meeting(there, there.spec("params"), lose).play()["again"]
    assert Meeting(there, there.spec("params")).play()["done"]
    assert who_played(there.root / "out") == [(sorted(SITES), {})] * 2


def test_a_site_that_misses_the_beginning_is_named_and_asked_again_in_every_round(
    tmp_path: Path,
) -> None:
    keys = {"federation.quorum": "0.6"}
    there = house(tmp_path, **keys, rounds="3")
    met: list[str] = []

    def lose(name: str, method: str, told: Mapping[str, Any]) -> str:
        play = told.get("play") or told.get("order", {}).get("play", "")
        if play.startswith("params/2/probe"):
            met.append(play)
        return "before" if (name, method) == ("shop", "hello") and not met else ""

    assert Meeting(there, there.spec("params"), lose).play()["done"]
    first, second, third = who_played(there.root / "out")
    assert first == second == (["bank", "clinic"], {"shop": "still away (did not answer)"})
    assert third == (sorted(SITES), {})
    (roster,) = (there.root / "server" / "triskel" / "runs").glob("*-sites.json")
    assert json.loads(roster.read_text())["shop"]["examples"] > 0, "known since it is there"


def test_a_site_that_fails_before_the_first_round_is_spared_like_one_that_is_away(
    tmp_path: Path,
) -> None:
    why = "DataError; the log of site 'shop' says more"
    for quorum in ("1.0", "0.6"):
        there = house(tmp_path / quorum, **{"federation.quorum": quorum})
        (there.root / "shop" / "reviews.csv").write_text("text,label\nno such label,odd\n")
        ended = Meeting(there, there.spec("params")).play()
        if quorum == "1.0":
            assert ended == {"done": False, "refused": True, "error": f"shop: {why}"}
    assert ended["done"]
    assert who_played(there.root / "out") == [(["bank", "clinic"], {"shop": why})] * 2


def test_a_run_is_played_by_one_job_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triskel.engines.flare.server_job.LINGER_S", 0.1)
    there = house(tmp_path, rounds="1")
    tried: list[Mapping[str, Any]] = []

    def lose(_n: str, method: str, _a: Mapping[str, Any]) -> str:
        if method == "collect" and not tried:  # resumed by somebody while it runs
            tried.append({})
            tried[0] = Meeting(there, there.spec("params")).host.play(tmp_path / "other")
        return ""

    assert Meeting(there, there.spec("params"), lose).play()["done"]
    assert (tried[0]["done"], tried[0]["refused"]) == (False, True)
    assert "is played by another job of this server" in tried[0]["error"]
    assert Meeting(there, there.spec("params")).play()["done"], "it is free again"


def test_what_a_site_keeps_is_on_disk_before_its_index_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, real = list[str](), site_store.write_text

    def index(place: Path, text: str) -> None:
        order.extend(["index"] * place.is_relative_to(tmp_path))
        real(place, text)

    def flush(
        store: site_store.Store,
    ) -> None:  # a site of the test before may still keep what it did
        order.extend(["flush"] * store._folder.is_relative_to(tmp_path))

    monkeypatch.setattr(site_store.Store, "flush", flush)
    monkeypatch.setattr(site_store, "write_text", index)
    site_store.SiteStore(tmp_path / "params", "bank").keep(ClientState(), 1, 0)
    assert order == ["flush", "index"]


def test_a_job_that_lost_a_site_resumes_with_old_and_with_new_sites_to_the_same_bits(
    tmp_path: Path,
) -> None:
    there = house(tmp_path, rounds="3")
    calm = Meeting(there, there.spec("split", run="f" * 12))
    assert calm.play()["done"]
    want = adapter(tmp_path / "out")

    def lose(name: str, _m: str, arguments: Mapping[str, Any]) -> str:
        play = arguments.get("play") or arguments.get("order", {}).get("play", "")
        return "before" if down and name == "clinic" and play.startswith("split/2/work") else ""

    down = True
    first = Meeting(there, there.spec("split"), lose)
    ended = first.host.play(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "ended.json").read_text())
    assert ended == told
    assert (told["done"], told["refused"]) == (False, False)
    assert "clinic: not heard of for 20 s" in told["error"]
    assert "triskel federation resume" in told["error"]
    run = tmp_path / "server" / "triskel" / "runs" / owned(sites["RUN"], sites["ANNA"])
    assert (run / "events.jsonl").read_text(encoding="utf-8").count('"round_end"') == 1
    # the server anew, with sites that still are in the middle of it
    second = Meeting(there, there.spec("split"), lose)
    for name, site in first.sites.items():
        second.sites[name].close()
        second.sites[name], site._server = site, second.sites[name]._server
        second.down[name].target = lambda m, a, s=site: second.visit(s, m, a)
    assert second.host.play(tmp_path / "out")["done"] is False
    for site in first.sites.values():
        site.close()
    # and everyone anew
    down = False
    third = Meeting(there, there.spec("split"), lose)
    assert third.play() == {"done": True, "refused": False}
    assert adapter(tmp_path / "out") == want
    other = there.spec("split")
    other["job"] = other["job"].replace("rounds = 3", "rounds = 4")
    ended = Meeting(there, other).play()
    assert ended["refused"]
    assert "began with another job" in ended["error"]
    until(lambda: not any(t.name.startswith("follow-") for t in threading.enumerate()), "their end")


# --- The inbox ----------------------------------------------------------------------------------


def inbox(*clients: str, play: str = "p") -> Inbox:
    def read(data: bytes, client: str) -> Message:
        if data == b"bad":
            raise MessageError(f"{client} sent what is none")
        return Message(kind="ask", topic="forward", facts={"data": data.decode()})

    return Inbox(play, dict.fromkeys(clients, b"task"), read, most=100)


def ask(there: Inbox, client: str, ticket: int, **more: Any) -> Any:
    told = {"taken": ticket - 1, "waits": False, "data": b"x", "play": "p"} | more
    return there.ask(client, ticket=ticket, **told)


def test_an_ask_is_taken_once_and_its_answer_kept_until_the_next_ask_says_it_came() -> None:
    there = inbox("a")
    assert ask(there, "a", 1, data=b"") == {"again": True}
    assert ask(there, "a", 1) == {"later": True}
    assert ask(there, "a", 1) == {"later": True}
    assert there.due(STREAM, None) == {}
    assert ask(there, "a", 1, data=b"", waits=True) == {"later": True}
    assert list(there.due(STREAM, None)) == ["a"]
    there.deliver({"a": b"answer"})
    assert there.due(STREAM, None) == {}
    for _ in range(2):
        assert ask(there, "a", 1, data=b"", waits=True) == {"answer": b"answer"}
    ask(there, "a", 2)
    assert there.lines["a"].answered == {}
    assert "answered before" in ask(there, "a", 1, waits=True)["gone"]
    assert there.open() == ["a"]


@pytest.mark.parametrize(
    ("ticket", "taken", "word"),
    [(0, 0, "makes no sense"), (0, -1, "makes no sense"), (2, 1, "were lost or made up"),
     (1, 1, "makes no sense"), (1, -1, "makes no sense")],
)  # fmt: skip
def test_a_ticket_out_of_order_costs_the_client_its_place(
    ticket: int, taken: int, word: str
) -> None:
    there = inbox("a", "b")
    assert word in ask(there, "a", ticket, taken=taken)["gone"]
    assert there.open() == ["b"]
    assert word in there.fetch("a", "p")["gone"]


def test_an_ask_that_cannot_be_read_costs_its_own_client_its_place() -> None:
    there = inbox("a", "b")
    assert ask(there, "a", 1, data=b"bad") == {"gone": "a sent what is none"}
    assert there.open() == ["b"]


def test_a_client_has_a_bounded_number_of_asks_open() -> None:
    there = inbox("a")
    for ticket in range(1, board_.AHEAD + 1):
        assert ask(there, "a", ticket, taken=0) == {"later": True}
    assert "more than 16" in ask(there, "a", board_.AHEAD + 1, taken=0)["gone"]


def test_a_client_has_a_bounded_number_of_bytes_open() -> None:
    there = inbox("a")
    assert ask(there, "a", 1, taken=0, data=b"x" * 60) == {"later": True}
    assert ask(there, "a", 1, taken=0, data=b"x" * 60) == {"later": True}, "the same one again"
    assert "more than 100 bytes" in ask(there, "a", 2, taken=0, data=b"x" * 41)["gone"]
    there = inbox("a")
    ask(there, "a", 1, taken=0, data=b"x" * 60, waits=True)
    assert list(there.due(STREAM, None)) == ["a"]
    there.deliver({"a": b"answer"})
    assert ask(there, "a", 2, data=b"x" * 100) == {"later": True}


def test_a_client_holds_one_call_of_the_server_however_often_it_asks() -> None:
    there = inbox("a", "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board_, "HOLD_S", 900.0)
        replies: list[Any] = []
        waiting = [
            threading.Thread(target=lambda: replies.append(ask(there, "a", 1, waits=True)))
            for _ in range(8)
        ]
        for one in waiting:
            one.start()
        until(lambda: len(replies) == 7, "the reply of all calls but one")
        assert replies == [{"later": True}] * 7
        assert list(there.due(STREAM, 0.0)) == ["a"]
        there.deliver({"a": b"answer"})
        until(lambda: len(replies) == 8, "the answer")
    assert replies[7] == {"answer": b"answer"}


def test_calls_of_strangers_and_of_other_plays_are_turned_away_and_change_nothing() -> None:
    there = inbox("a")
    assert "takes no part" in there.fetch("z", "p")["gone"]
    assert "is not open" in there.fetch("a", "q")["gone"]
    assert "is not open" in ask(there, "a", 5, play="q")["gone"]
    assert "takes no part" in ask(there, "z", 1)["gone"]
    assert there.open() == ["a"]
    there.close("p is over")
    assert there.fetch("a", "p") == {"gone": "p is over"}
    assert ask(there, "a", 1, waits=True) == {"gone": "p is over"}
    assert there.closed


def test_a_wave_waits_for_everyone_and_a_window_does_not() -> None:
    there = inbox("a", "b", "c")
    ask(there, "a", 1, waits=True)
    assert there.due(STREAM, None) == {}
    assert there.due(STREAM, 60.0) == {}
    time.sleep(0.06)
    assert list(there.due(STREAM, 0.05)) == ["a"]
    assert there.due(BARRIER | {"forward": "barrier"}, 0.05) == {}
    assert there.due(STREAM, None) == {}
    there.leave("b", "gone")
    there.done("c", b"update", SPENT)
    assert list(there.due(STREAM, None)) == ["a"]
    there.deliver({"a": b"1", "b": b"late"})
    assert "answer" in ask(there, "a", 1, data=b"")
    ask(there, "a", 2)
    assert there.due(STREAM, 60.0) == {}  # it does not wait yet, and the window is open
    assert there._first is not None


def test_who_is_silent_is_told_by_when_it_was_last_heard_of() -> None:
    there = inbox("a", "b")
    there.lines["a"].heard -= 10
    there.lines["b"].heard -= 10
    assert there.silent(20.0) == []
    assert there.silent(5.0) == ["a", "b"]
    there.heard("a", 7)
    assert there.silent(5.0) == ["b"]
    ask(there, "b", 1)
    assert there.silent(5.0) == []
    there.lines["a"].heard -= 10
    there.heard("a", 7, busy_s=100.0)
    assert there.silent(-50.0) == ["b"]
    assert there.standing()["a"] == {"state": "working", "tokens": 7}


def test_an_update_that_comes_too_late_counts_no_more() -> None:
    there = inbox("a", "b")
    there.leave("a", "too slow")
    there.done("a", b"late", SPENT)
    assert there.lines["a"].update is None
    there.done("b", b"first", SPENT)
    there.done("b", b"second", SPENT)
    assert there.lines["b"].update == b"first"
    there.leave("a", "another reason")
    assert there.lines["a"].gone == "too slow"
    assert there.standing()["a"]["state"] == "down"
    assert there.standing()["b"]["state"] == "done"


def test_a_caller_waits_longer_for_what_is_larger() -> None:
    assert patience() < patience(2_000_000) == patience() + 1.0


def test_twenty_clients_asking_fifty_times_at_once_each_get_their_own_answers() -> None:  # noqa: C901 - one talk
    names = [f"c{i:02d}" for i in range(20)]
    there, wrong, taken_in = inbox(*names), list[str](), Counter[str]()

    def talk(name: str) -> None:
        dice = random.Random(name)
        for ticket in range(1, 51):
            data = f"{name}:{ticket}".encode()
            reply: Any = {"later": True}
            while "answer" not in reply:
                for _ in range(dice.randint(0, 2)):  # replies that get lost
                    ask(there, name, ticket, data=data if dice.random() < 0.5 else b"")
                reply = ask(there, name, ticket, data=dice.choice([data, b""]), waits=True)
                if "gone" in reply:
                    wrong.append(f"{name}: {reply}")
                    return
            if reply["answer"] != data.upper():
                wrong.append(f"{name}: {reply} for {data!r}")
        there.done(name, b"", SPENT)

    threads = [threading.Thread(target=talk, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    while there.open() and not wrong:
        asks = there.due(STREAM, 0.001)
        taken_in.update(str(one.facts["data"]) for one in asks.values())
        there.deliver({c: str(one.facts["data"]).upper().encode() for c, one in asks.items()})
        if not asks:
            there.wait(0.001)
    there.close("over")
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(taken_in) == 20 * 50
    assert set(taken_in.values()) == {1}


def test_a_site_gives_up_a_server_that_never_answers(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_rounds, "GIVE_UP_S", 0.2)

    def twist(_n: str, method: str, _a: Any, real: Any) -> Any:
        if method == "fetch":
            raise Lost(method)
        return real()

    party.twist = twist
    with pytest.raises(RoundError, match=r"the server did not answer for 0\.2 s"):
        party.round("params")
