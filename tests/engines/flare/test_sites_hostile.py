"""Peers that lie, errors that hold secrets, policies: a sentence each time, and never a leak."""

# ruff: noqa: ANN401 - peers say anything

import hashlib
import json
import logging
import re
import runpy
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.collab.api.app import ClientApp
from nvflare.collab.runtime import dispatch
from nvflare.collab.runtime.defs import CallHeaderKey, ObjectCallKey
from nvflare.fuel.f3.message import Message as Call

from triskel.data import reading
from triskel.engines import flare
from triskel.engines.flare import server_job as host_
from triskel.engines.flare import site_admission
from triskel.engines.flare.protocol import Lost
from triskel.engines.flare.server_job import ServerJob
from triskel.engines.flare.server_rounds import RemoteEngine
from triskel.engines.flare.site_job import SiteJob
from triskel.engines.flare.site_payload import sizes_of
from triskel.engines.flare.submission import own_code
from triskel.errors import DataError, MessageError, RoundError
from triskel.plan.payload import round_bytes
from triskel.policy import paths as place_
from triskel.policy.audit import Audit
from triskel.policy.hash_chain import AuditError, read
from triskel.policy.model_hash import weights
from triskel.types import Message
from triskel.wire import pack, unpack

sites = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py"))
Meeting, Party, Loop, house, policy, SITES, ANNA = (
    sites[name] for name in ("Meeting", "Party", "Loop", "house", "policy", "SITES", "ANNA")
)
LONG = "x" * 1_000_000
SECRET = "api-key-4711"  # noqa: S105 - a made-up one
PLACE = "/home/clinic/patients.csv"


@pytest.fixture(scope="module")
def fewer(shared: Any) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """What rounds of the other two leave."""
    return {m: tensors(shared.round(m, ("bank", "shop"))[0]) for m in ("params", "split")}


def tensors(state: Any) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = getattr(state, "adapter", None) or state.tensors
    return found


def left_out(
    party: Any, stage: str, fewer: Mapping[str, Any], *, who: str = "clinic", **more: Any
) -> str:
    """Play a round that ends with the others' bits; return why one site was left out."""
    state, ledger = party.round(stage, quorum=0.6, **more)
    assert list(ledger.absent) == [who]
    ours = tensors(state)
    assert all(torch.equal(ours[name], x) for name, x in fewer[stage].items())
    why: str = ledger.absent[who]
    assert 0 < len(why) < 1000
    return why


def instead(method: str, reply: Any) -> Callable[..., Any]:
    """Have one site answer a method with something else: a reply, or changes to the real one."""

    def twist(name: str, called: str, _a: Any, real: Any) -> Any:
        if (name, called) != ("clinic", method):
            return real()
        return {**real(), **reply} if "state" not in reply else reply

    return twist


# --- Replies that are none ----------------------------------------------------------------------

STRANGE = [
    ("begin", {"state": None}),
    ("begin", {"state": 5}),
    ("begin", {"state": True}),
    ("begin", {"state": b"working"}),
    ("begin", {"state": "banana"}),
    ("begin", {"state": LONG}),
    ("begin", {"state": "working"}),
    ("begin", {"state": "working", "tokens": -1}),
    ("begin", {"state": "working", "tokens": True}),
    ("begin", {"state": "working", "tokens": "5"}),
    ("begin", {"state": "working", "tokens": 2**70}),
    ("begin", {"state": "failed", "error": 7}),
    ("begin", {"state": "failed", "error": LONG}),
    ("begin", {"state": "failed"}),
    *(
        ("collect", {"state": "done", "size": 9, "flops": 1, "peak_bytes": 1, "seconds": 1.0,
                     "tokens": 1} | wrong)
        for wrong in (
            {"size": -1}, {"size": None}, {"size": 1.5}, {"size": 10**12}, {"flops": None},
            {"flops": False}, {"peak_bytes": -3}, {"peak_bytes": LONG}, {"seconds": float("nan")},
            {"seconds": float("inf")}, {"seconds": -1.0}, {"seconds": 1e300}, {"seconds": "1"},
            {"seconds": True}, {"seconds": None}, {"tokens": None},
        )
    ),
    ("hand_over", {"state": "done"}),
    ("hand_over", {"update": None}),
    ("hand_over", {"update": "text"}),
    ("hand_over", {"update": 5}),
    ("hand_over", {"update": bytearray(b"TRSK")}),
    ("hand_over", {"update": b""}),
    ("hand_over", {"update": b"garbage" * 100}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "reply"), STRANGE, ids=lambda x: str(x)[:60])
def test_a_reply_that_is_none_costs_a_site_its_place_and_the_others_no_bit(
    party: Any, fewer: Any, method: str, reply: Any
) -> None:
    party.twist = instead(method, reply)
    why = left_out(party, "params", fewer)
    assert not any(c in why for c in "\n\r\0")


def test_a_peer_that_returns_no_table_is_taken_for_a_lost_call() -> None:
    for found in (None, "x", [1], 5):
        link = flare._Proxy(lambda timeout, r=found: SimpleNamespace(hello=lambda: r))  # noqa: ARG005
        with pytest.raises(Lost, match=type(found).__name__):
            link.call("hello", 1.0, {})

    def fails(**_: Any) -> Any:
        raise flare.CollabCallError("bank", "hello", ValueError("no route"))

    link = flare._Proxy(lambda timeout: SimpleNamespace(hello=fails))  # noqa: ARG005
    with pytest.raises(Lost, match="no route"):
        link.call("hello", 1.0, {})


# --- Updates that lie ---------------------------------------------------------------------------


def nan_in(data: bytes) -> bytes:
    """Put NaN into the last number of a message."""
    return data[:-4] + struct.pack("<f", float("nan"))


def changed(**changes: Any) -> Callable[[Message], Message]:
    return lambda m: replace(m, **changes)


def facts(**changes: Any) -> Callable[[Message], Message]:
    return lambda m: replace(m, facts={**m.facts, **changes})


def reshaped(name: str, shape: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Message]:
    def change(m: Message) -> Message:
        section = m.sections[name]
        new = {n: shape(x) for n, x in section.tensors.items()}
        return replace(m, sections={**m.sections, name: replace(section, tensors=new)})

    return change


def without(name: str) -> Callable[[Message], Message]:
    return lambda m: replace(m, sections={n: s for n, s in m.sections.items() if n != name})


UPDATES: Mapping[str, tuple[Callable[[Message], Message], str]] = {
    "another kind": (changed(kind="evaluate"), "expected 'update'"),
    "another topic": (changed(topic="x"), "expected 'update'"),
    "another round": (facts(round=2), "belongs to round 2"),
    "a round that is text": (facts(round="1"), "round"),
    "no examples": (facts(examples=0), "examples"),
    "negative examples": (facts(examples=-5), "examples"),
    "examples that are true": (facts(examples=True), "examples"),
    "a section too few": (without("head"), "lacks section 'head'"),
    "wrong shapes": (reshaped("head", lambda x: x[:, :3]), "expected"),
    "integers": (reshaped("head", lambda x: x.int()), "integer"),
    "numbers beyond float32": (reshaped("head", lambda x: x.double() + 1e39), "float64"),
}


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_that_is_not_the_rounds_is_not_folded(party: Any, fewer: Any, case: str) -> None:
    change, word = UPDATES[case]

    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        reply = real()
        if (name, method) != ("clinic", "hand_over"):
            return reply
        try:
            return {**reply, "update": pack(change(unpack(reply["update"])))}
        except MessageError:  # it cannot even be packed: as refused bytes
            return {**reply, "update": b"TRSK" + word.encode()}

    party.twist = twist
    assert word in left_out(party, "params", fewer)


def test_an_update_with_nan_is_refused_as_it_is_read(party: Any, fewer: Any) -> None:
    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        reply = real()
        if (name, method) == ("clinic", "hand_over"):
            return {**reply, "update": nan_in(reply["update"])}
        return reply

    party.twist = twist
    why = left_out(party, "params", fewer)
    assert "NaN" in why
    assert "'clinic'" in why


def test_bytes_beyond_the_limit_are_refused_by_their_number(party: Any, fewer: Any) -> None:
    engine = party.engine("params", quorum=0.6)
    wire = engine.job.wire.model_copy(update={"max_mb": 0.5})
    engine.job = engine.job.model_copy(update={"wire": wire})
    party.twist = instead("hand_over", {"update": b"TRSK" + bytes(600_000)})
    why = left_out(party, "params", fewer, engine=engine)
    assert "600004 bytes, the limit is 500000" in why


# --- Asks that lie ------------------------------------------------------------------------------


def sized(*lengths: int) -> Callable[[Message], Message]:
    def change(m: Message) -> Message:
        (name,) = m.sections
        section = m.sections[name]
        section = replace(section, facts={**section.facts, "lengths": lengths})
        return replace(m, sections={name: section})

    return change


def scaled(factor: float) -> Callable[[Message], Message]:
    return lambda m: reshaped(next(iter(m.sections)), lambda x: x * 0 + factor)(m)


ASKS: Mapping[str, tuple[int, Callable[[Message], Message], str]] = {
    "an update": (1, changed(kind="update"), "does not answer"),
    "an unknown topic": (1, changed(topic="weather"), "which nobody answers"),
    "another round": (1, facts(round=9), "belongs to round 9"),
    "too narrow": (1, reshaped("activations", lambda x: x[:, :3]), "shape"),
    "texts without end": (1, sized(10**9), "lengths"),
    "many texts": (1, sized(*[1] * 500), "lengths"),
    "no texts": (1, sized(), "lengths"),
    "negative lengths": (1, sized(-3), "lengths"),
    "a step that is text": (1, facts(step="1"), "step"),
    "numbers too large": (1, scaled(3e38), "too large"),
    "a gradient too early": (1, changed(topic="backward"), "no open batch"),
    "a gradient too large": (2, scaled(1e38), "too large"),
    "another shape": (2, reshaped("gradient", lambda x: x[:, :5]), "shape"),
    "labels below none": (2, facts(labelled=-1), "labelled"),
}


@pytest.mark.parametrize("case", ASKS)
def test_one_clients_bad_ask_costs_it_its_place_and_spoils_no_wave(
    party: Any, fewer: Any, case: str
) -> None:
    at, change, word = ASKS[case]
    if case == "a gradient too early":
        base = facts(labelled=1)
        change = lambda m: base(replace(m, topic="backward"))  # noqa: E731

    def twist(name: str, method: str, arguments: Any, real: Any) -> Any:
        if (name, method, arguments.get("ticket")) == ("clinic", "ask", at) and arguments["data"]:
            return real(data=pack(change(unpack(arguments["data"]))))
        return real()

    party.twist = twist
    assert word in left_out(party, "split", fewer)


@pytest.mark.parametrize(
    "arguments",
    [{"data": b"no message"}, {"data": b"TRSK"}, {"ticket": 0}, {"ticket": 3}, {"taken": 1}],
    ids=str,
)
def test_an_ask_out_of_order_or_of_no_message_costs_its_client_its_place(
    party: Any, fewer: Any, arguments: Mapping[str, Any]
) -> None:
    def twist(name: str, method: str, told: Any, real: Any) -> Any:
        if (name, method, told.get("ticket")) == ("clinic", "ask", 1):
            return real(**arguments)
        return real()

    party.twist = twist
    left_out(party, "split", fewer)


def test_a_bad_gradient_spoils_no_graph_of_those_who_are_in_another_one(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = lambda asks, _cuts: [[client] for client in sorted(asks)]  # noqa: E731
    monkeypatch.setattr("triskel.modes.split.mode.group", alone)
    calm, _ = party.round("split", ("bank", "clinic"))

    def twist(name: str, method: str, told: Any, real: Any) -> Any:
        if (name, method, told.get("ticket")) == ("shop", "ask", 2) and told["data"]:
            return real(data=pack(reshaped("gradient", lambda x: x[:, :5])(unpack(told["data"]))))
        return real()

    party.twist = twist
    assert "shape" in left_out(party, "split", {"split": tensors(calm)}, who="shop")


SCORES: Mapping[str, tuple[Callable[[Message], Message], str]] = {
    "more than all are right": (facts(correct=10**6), "is not this score"),
    "one more is right than the table says": (
        lambda m: facts(correct=int(str(m.facts["correct"])) + 1)(m), "is not this score",
    ),
    "more than were tested": (facts(count=10**6), "is not this score"),
    "below none": (reshaped("confusion", lambda x: x - 1), "nothing is counted below 0"),
    "counts of another width": (
        reshaped("confusion", lambda x: x.to(torch.uint16)), "counts them in int64",
    ),
    "no table": (reshaped("confusion", lambda x: x[0]), "shape is [3], expected [3, 3]"),
}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_a_score_that_is_none_costs_a_site_its_place_in_the_evaluation(
    party: Any, case: str
) -> None:
    change, word = SCORES[case]
    full = party.scores("params")

    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        reply = real()
        if (name, method) == ("clinic", "hand_over"):
            return {**reply, "update": pack(change(unpack(reply["update"])))}
        return reply

    party.twist = twist
    scores = party.scores("params", quorum=0.6)
    assert scores.each == {name: full.each[name] for name in ("bank", "shop")}
    with pytest.raises(RoundError, match="clinic: .*" + re.escape(word)):
        party.scores("params", quorum=1.0)


def test_what_nobody_foresaw_in_a_clients_bytes_costs_that_client_its_place(
    party: Any, fewer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = type(party.modes["params"]).add

    def add(mode: Any, state: Any, total: Any, client: str, update: Message) -> Any:
        if client == "clinic":
            raise RuntimeError(f"Promotion for uint16 {SECRET}")
        return real(mode, state, total, client, update)

    monkeypatch.setattr(type(party.modes["params"]), "add", add)
    why = left_out(party, "params", fewer)
    assert why == "what it sent cannot be worked with: RuntimeError"
    assert SECRET in caplog.text, "the server's own log has it"


def test_what_nobody_foresaw_in_a_clients_ask_costs_that_client_its_place(
    party: Any, fewer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = type(party.modes["split"]).answer

    def answer(mode: Any, state: Any, asks: Mapping[str, Message]) -> Any:
        if "clinic" in asks:
            raise RuntimeError(f"sizes do not match {SECRET}")
        return real(mode, state, asks)

    monkeypatch.setattr(type(party.modes["split"]), "answer", answer)
    why = left_out(party, "split", fewer)
    assert why == "what it sent cannot be worked with: RuntimeError"
    assert SECRET in caplog.text, "the server's own log has it"


def test_a_site_that_is_met_late_and_holds_nothing_is_left_out_and_remembered(
    tmp_path: Path,
) -> None:
    there, holds = house(tmp_path), {"examples": 0, "tests": 2, "tokens": 0}
    late = Loop(lambda _m, _a: {"state": "ready", **holds, **own_code()})
    host = ServerJob(tmp_path / "server", there.spec("params"), {"shop": late}, ANNA)
    host._folder.parent.mkdir(parents=True)
    host._roster.present = {"bank": None, "shop": None}
    assert host._roster.welcome("shop") == "it holds no training example"
    (roster,) = (tmp_path / "server" / "triskel" / "runs").glob("*-sites.json")
    assert json.loads(roster.read_text()) == {"bank": None, "shop": holds}


# --- What a site refuses of a server ------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"stage": "weather"}, {"stage": 5}, {"what": "everything"}, {"round": 0}, {"round": -1},
     {"round": 3}, {"round": True}, {"round": "1"}, {"play": None}, {"play": 7}, {"size": 10**12},
     {"size": -1}, {"size": None}, {"least": None}, {"least": 1}],
    ids=str,
)  # fmt: skip
def test_a_site_begins_no_part_that_is_none_of_its_job(
    party: Any, wrong: Mapping[str, Any]
) -> None:
    site = party.meeting.sites["bank"]
    order = {
        "play": "p",
        "stage": "params",
        "round": 1,
        "what": "work",
        "size": 9,
        "least": 3,
    } | wrong
    before = site._part
    with pytest.raises(MessageError):
        site.begin(order)
    assert site._part is before


@pytest.mark.parametrize("hold", [float("nan"), float("inf"), -1.0, 1e300, True], ids=str)
def test_a_site_is_not_held_by_a_time_that_is_none(party: Any, hold: Any) -> None:
    party.round("params")
    site = party.meeting.sites["bank"]
    with pytest.raises(MessageError, match="hold_s"):
        site.collect(site._part.play, hold)


@pytest.mark.parametrize(
    "reply", [{}, {"task": None}, {"task": "x"}, {"task": b""}, {"task": b"TRSK"}, {"gone": 5}],
    ids=str,
)  # fmt: skip
def test_a_task_that_is_none_ends_a_part_and_not_the_site(
    party: Any, fewer: Any, reply: Any
) -> None:
    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        return reply if (name, method) == ("clinic", "fetch") else real()

    party.twist = twist
    left_out(party, "params", fewer)
    party.twist = sites["plain"]
    assert not party.round("params")[1].absent


@pytest.mark.parametrize(
    "reply", [{"answer": None}, {"answer": "x"}, {"answer": b"TRSK"}, {"gone": "you"}], ids=str
)
def test_an_answer_that_is_none_ends_a_part_and_not_the_site(party: Any, reply: Any) -> None:
    def twist(name: str, method: str, _a: Any, real: Any) -> Any:
        return reply if (name, method) == ("clinic", "ask") else real()

    party.twist = twist
    _, ledger = party.round("split", quorum=0.6)
    assert list(ledger.absent) == ["clinic"]


# --- The published methods ----------------------------------------------------------------------


class Collab:
    """Who calls, as FLARE says; each thread has its own."""

    caller = "clinic"
    site_name = "clinic"
    server = None
    fl_ctx = SimpleNamespace(get_prop=lambda _: None)
    workspace = SimpleNamespace(get_root_dir=lambda: PLACE)


def test_the_servers_published_methods_refuse_arguments_that_are_none(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flare, "collab", Collab())
    server = flare.Server({})
    good = {"play": "p", "ticket": 1, "taken": 0, "waits": False, "data": b"x"}
    assert server.fetch("p")["gone"] == "no play is open"
    assert server.ask(**good)["gone"] == "no play is open"
    engine = party.engine("params")
    there = runpy.run_path(str(Path(__file__).parent / "test_sites_faults.py"))["inbox"]("clinic")
    engine.inbox, server._host = there, SimpleNamespace(engine=engine)
    # while tests run, types are checked before; what is left are values
    for wrong in (
        {"play": LONG}, {"ticket": -1}, {"ticket": True}, {"ticket": 2**40}, {"taken": -1},
        {"taken": True},
    ):  # fmt: skip
        reply = server.ask(**{**good, **wrong})
        assert reply.get("gone"), wrong
        assert len(reply["gone"]) < 1000
    assert server.fetch(LONG).get("gone")
    assert there.open() == ["clinic"]
    assert server.ask(**good) == {"later": True}


def test_a_sites_published_methods_serve_the_server_alone_and_refuse_what_is_none(
    party: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = Collab()
    monkeypatch.setattr(flare, "collab", there)
    client = flare.Client({})
    client._site = party.meeting.sites["clinic"]
    calls = {
        "hello": [{}], "begin": [{}], "collect": ["p", 1.0], "hand_over": ["p"],
        "finish": ["params"],
    }  # fmt: skip
    for method, arguments in calls.items():
        reply = getattr(client, method)(*arguments)
        assert reply == {"state": "failed", "error": "only the server calls a site"}
    there.caller = "server"
    for method, arguments in calls.items():  # one too few, and of another type
        for wrong in ([], [b"x"] * len(arguments)) if arguments else ():
            reply = getattr(client, method)(*wrong)
            assert reply["state"] == "failed"
            assert "must be" in reply["error"] or "expected a table" in reply["error"]
    assert client.collect("p")["error"].startswith("hold_s must be seconds")
    assert client.hello({"version": 5})["state"] == "ready"  # it was asked before
    assert client.begin({})["state"] == "failed"
    assert client.finish(LONG)["state"] == "failed"
    assert client.hand_over("another play") == {"state": "unknown", "update": b""}
    assert client.collect("another play", 1.0) == {"state": "unknown"}
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("collect", {"play": "p"}, "hold_s must be seconds"),
        ("finish", {}, "stage must be text"),
        ("collect", {"play": "p", "hold_s": 1.0, "more": 1}, "unexpected keyword argument 'more'"),
        ("finish", {"more": 1}, "unexpected keyword argument 'more'"),
        ("hello", {"about": {}}, "JobError"),  # of a submission without a run
    ],
)
def test_no_call_through_flare_brings_back_a_trace(
    monkeypatch: pytest.MonkeyPatch, method: str, arguments: Mapping[str, Any], said: str,
    party: Any,
) -> None:  # fmt: skip
    there = Collab()
    there.caller = "server"
    monkeypatch.setattr(flare, "collab", there)
    monkeypatch.setattr(flare, "_signed", lambda *_: (ANNA, ""))
    client = flare.Client({})
    if said != "JobError":
        client._site = party.meeting.sites["clinic"]
    names = {
        CallHeaderKey.AUTHENTICATED_CALLER: "server",
        CallHeaderKey.METHOD_NAME: method,
        CallHeaderKey.TARGET_NAME: "clinic.clinic",
    }
    request = Call(names, {ObjectCallKey.KWARGS: dict(arguments)})
    app = ClientApp(client, "clinic")
    told = dispatch._call_app_method(request, app, logging.getLogger("flare")).payload
    assert said in repr(told)
    assert not any(
        word in repr(told) for word in ("Traceback", ".py", str(Path(__file__).parents[2]))
    )


# --- Errors that hold secrets -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [(DataError(f"file {PLACE} has no column"), "DataError"), (ValueError(SECRET), "ValueError"),
     (AuditError(f"audit log {PLACE} is full"), "AuditError")],
    ids=lambda x: str(type(x).__name__),
)  # fmt: skip
def test_what_goes_wrong_at_a_site_stays_there_but_for_its_kind(
    party: Any, fewer: Any, error: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    site, received = party.meeting.sites["clinic"], list[Any]()
    own = site._here.modes["params"]

    class Broken:
        def work(self, *_: Any) -> Any:
            raise error
            yield

    def twist(_n: str, _m: str, arguments: Any, real: Any) -> Any:
        reply = real()
        received.append((arguments, reply))
        return reply

    party.twist, site._here.modes["params"] = twist, Broken()
    try:
        with caplog.at_level(logging.ERROR):
            why = left_out(party, "params", fewer)
    finally:
        site._here.modes["params"] = own
    assert why == f"{kind}; the log of site 'clinic' says more"
    *_, line = read(party.house.root / "clinic" / "triskel" / "audit.jsonl")
    assert (line["what"], line["error"], line["told"]) == ("failed", kind, why)
    assert (line["stage"], line["round"]) == ("params", 1)
    told = repr(received)
    assert not any(word in told for word in (PLACE, SECRET, "Traceback", "test_sites_hostile"))
    mine = [record for record in caplog.records if record.name == "triskel.site"]
    assert str(error) in "".join(record.getMessage() for record in mine)
    assert any(record.exc_info for record in mine)
    for record in caplog.records:
        assert record.name == "triskel.site" or str(error) not in record.getMessage()


def test_nothing_of_a_broken_policy_or_of_a_missing_file_is_told(tmp_path: Path) -> None:
    there = house(tmp_path)
    for place in (tmp_path / "bank").rglob("reviews.csv"):
        place.unlink()
    (tmp_path / "clinic" / "local" / "policy.toml").write_text(f'modes = ["{SECRET}"]')
    (tmp_path / "shop" / "local" / "policy.toml").unlink()
    meeting = Meeting(there, there.spec("params"))
    ended = meeting.play()
    assert not ended["done"]
    for name, kind in (("bank", "DataError"), ("clinic", "PolicyError"), ("shop", "PolicyError")):
        assert f"{name}: {kind}; the log of site '{name}' says more" in ended["error"]
    out = "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for word in (str(tmp_path), SECRET, "Traceback", "policy.toml"):
        assert word not in out


# --- Policies -----------------------------------------------------------------------------------

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
Case = tuple[str, str, Mapping[str, str], Mapping[str, str]]
KEYS: Mapping[str, Case] = {
    "modes": ("split", "modes", {"modes": '["params"]'}, {}),
    "submitters": ("params", "submitters", {"submitters": '["eve@lab.example"]'}, {}),
    "codecs": ("params", "codecs", {"codecs": '["int8"]'}, {}),
    "models": ("params", "models", {"models.tiny": f'"{"0" * 64}"'}, {}),
    "leave.activations": ("split", "leave.activations", {"leave.activations": "false"}, {}),
    "leave.labels": (
        "split", "leave.labels", {"leave.labels": "false"}, {"split.labels": '"shared"'},
    ),
    "split.first": ("split", "split.first", {"split.first": "2"}, {"split.cut": "[1, 2]"}),
    "split.last": ("split", "split.last", {"split.last": "2"}, {"split.cut": "[1, 2]"}),
    "split.first of one site": (
        "split", "split.first", {"split.first": "2"},
        {"split.cut": "[2, 3]", "clients.each.bank.cut": "[1, 2]"},
    ),
    "limits.round_mb": ("params", "limits.round_mb", {"limits.round_mb": "0.0001"}, {}),
    "limits.message_mb": ("params", "limits.message_mb", {"limits.message_mb": "1.0"}, {}),
    "limits.cohort": ("params", "limits.cohort", {"limits.cohort": "3"}, {}),
    "privacy.clip": ("params", "privacy.clip", {"privacy.clip": "1.0"}, {}),
    "privacy.noise": ("params", "privacy.noise", {"privacy.noise": "1.0"}, {}),
    "privacy.secure_aggregation": (
        "params", "privacy.secure_aggregation", {"privacy.secure_aggregation": "true"}, {},
    ),
    "hours": (
        "params", "hours",
        {"hours.zone": '"UTC"', "hours.opens": '"01:00"', "hours.closes": '"02:00"'}, {},
    ),
    "datasets": ("params", "datasets", {}, {"data.train": '"salaries"'}),
    "datasets by a path": ("params", "datasets", {}, {"data.train": '"../../etc/passwd"'}),
    "datasets.public": ("logits", "datasets.news.csv.public", {}, {}),
    "datasets.columns": ("params", "datasets.reviews.columns", {}, {"data.test": '"reviews"'}),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_a_job_beyond_a_policy_is_refused_before_data_are_read_logged_and_said(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, key, changes, job = KEYS[case]
    there = house(tmp_path, **job)
    place = tmp_path / "bank" / "local" / "policy.toml"
    sha256 = place.read_text().split('tiny = "')[1][:64]
    own = {"limits.cohort": "1", "limits.round_mb": "100.0"} | changes
    text = policy("bank", sha256, **{k: v for k, v in own.items() if k != "models.tiny"})
    if "models.tiny" in changes:
        text = text.replace(f'"{sha256}"', changes["models.tiny"])
    if case == "datasets.public":
        text = text.replace("public = true", "public = false")
    if case == "datasets.columns":
        text = text.replace("label = 'label', ", "", 1)
    if case == "split.first of one site":
        text = text.replace('site = "bank"\n', "")
    place.write_text(text)
    server = policy("server", sha256, **{"limits.cohort": "1"})
    (tmp_path / "server" / "local" / "policy.toml").write_text(server)
    if key != "limits.round_mb":  # how much leaves depends on how much there is
        for file in tmp_path.rglob("*.csv"):
            file.unlink()

        def opened(path: Path, *_: Any) -> Any:
            raise AssertionError(f"{path} was opened")

        monkeypatch.setattr(reading, "load", opened)
    meeting = Meeting(there, there.spec(mode), sites=("bank",))
    meeting.host._clock = lambda: NOON
    bank = meeting.sites["bank"]
    bank._admission = replace(bank._admission, clock=lambda: NOON)
    ended = meeting.play()
    assert ended == json.loads((tmp_path / "out" / "ended.json").read_text())
    assert (ended["done"], ended["refused"]) == (False, True)
    assert ended["error"].startswith(f"bank: {key}: the job ")
    *before, line = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    to = "send" if key == "limits.round_mb" else "read"
    assert [(one["to"], one["allowed"]) for one in before] == [("read", True)] * (to == "send")
    assert (line["what"], line["to"], line["allowed"], line["mode"], line["by"]) == (
        "decided", to, False, mode, ANNA,
    )  # fmt: skip
    assert any(one.startswith(f"{key}: ") for one in line["refusals"])
    said = []  # the log has what the policy allows, and who asked is told the rest
    for one in line["refusals"]:
        asked, _, allows = one.partition("; this site ")
        said.append(f"{asked}; this site does not allow it")
        assert allows not in ended["error"]
    assert ended["error"] == "bank: " + "; ".join(said)
    assert sha256 not in ended["error"]
    if key != "limits.round_mb":
        assert not list((tmp_path / "bank" / "triskel").rglob("choices.json"))


def hello(there: Any, by: str, run: str, *modes: str) -> Any:
    """Submit a job to the bank; return what it answers."""

    def never(_m: str, _a: Any) -> Any:
        raise AssertionError("nobody is asked")

    spec = there.spec(*modes, run=run)
    one = SiteJob("bank", there.root / "bank", spec, Loop(never), by, lambda: NOON)
    reply: Any = {"state": "preparing"}
    while reply["state"] == "preparing":
        reply = one.hello({**own_code(), "clients": 3})
    one.close()
    return reply


def test_a_stranger_at_the_server_is_told_nothing_of_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = house(tmp_path)

    def looked(name: str, _policy: Path) -> Any:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr(host_, "weights_of", looked)
    ended = ServerJob(tmp_path / "server", there.spec("params"), {}, "mallory").play(
        tmp_path / "out"
    )
    why = "submitters: the job is submitted by 'mallory'; this site"
    assert (ended["refused"], ended["error"]) == (
        True, f"the server refuses: {why} does not allow it",
    )  # fmt: skip
    assert f"{why} takes jobs from {ANNA}" in caplog.text, "the server's own log says more"


def test_a_stranger_is_told_no_name_and_has_nothing_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = house(tmp_path)
    place = tmp_path / "bank" / "local" / "policy.toml"
    hours = '\n[hours]\nzone = "UTC"\nopens = "01:00"\ncloses = "02:00"\n'
    place.write_text(place.read_text().replace('site = "bank"', 'site = "other"') + hours)

    def looked(name: str, _policy: Path) -> Any:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr(place_, "weights_of", looked)
    why = "the job is submitted by 'mallory'; this site"
    reply = hello(there, "mallory", "a" * 12, "params", "split")
    assert reply["state"] == "refused"
    assert reply["error"] == f"submitters: {why} does not allow it"
    late = "hours: the job would start on wed at 12:00 (UTC); this site does not allow it"
    assert hello(there, ANNA, "b" * 12, "params")["error"] == late
    place.write_text(place.read_text().replace(hours, ""))
    astray = "site: the job came to site 'bank'; this site does not allow it"
    assert hello(there, ANNA, "c" * 12, "params")["error"] == astray
    lines = list(read(tmp_path / "bank" / "triskel" / "audit.jsonl"))
    assert [(one["run"][0], one["mode"], one["by"]) for one in lines] == [
        ("a", "params", "mallory"), ("a", "split", "mallory"), ("b", "params", ANNA),
        ("c", "params", ANNA),
    ]  # fmt: skip
    assert not any(one["allowed"] for one in lines)
    assert lines[0]["refusals"] == [f"submitters: {why} takes jobs from {ANNA}"]
    assert lines[3]["refusals"][0].endswith("; this site is 'other' in its policy")


def test_nobody_is_told_which_models_are_on_a_machine_nor_their_checksums(tmp_path: Path) -> None:
    there, said = house(tmp_path), list[str]()
    models = tmp_path / "bank" / "local" / "models"
    (models / "theirs").mkdir()
    (models / "theirs" / "model.safetensors").write_bytes(b"not in the policy")
    (models / "theirs" / "config.json").write_text('{"num_hidden_layers": 9}')
    place = tmp_path / "bank" / "local" / "policy.toml"
    place.write_text(place.read_text().replace("first = 0", "first = 2"))  # asks for the blocks
    for name in ("theirs", "absent", "org/absent"):
        text = there.text.replace('path = "tiny"', f'path = "{name}"')
        reply = hello(replace(there, text=text), ANNA, "a" * 12, "split")
        said.append(reply["error"].replace(f"'{name}'", "NAME"))
    assert len(set(said)) == 1
    assert said[0].startswith("models: the job runs model NAME; this site does not allow it; ")
    found = [one["refusals"][0] for one in read(tmp_path / "bank" / "triskel" / "audit.jsonl")]
    theirs = weights(models / "theirs")
    assert theirs is not None
    has = theirs.sha256
    allows = "; this site allows tiny, each by its SHA-256, and has "
    assert found[0].endswith(f"{allows}this one with SHA-256 '{has}'")
    assert found[1].endswith(f"{allows}no weights of this one")


def test_a_job_that_reads_and_then_fails_or_dies_has_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, log = house(tmp_path), tmp_path / "bank" / "triskel" / "audit.jsonl"
    when_read: list[Any] = []

    def opened(*_: Any) -> Any:
        when_read.extend(read(log))  # a kill from here on leaves these
        raise DataError(f"row 7 of {PLACE} holds the label {SECRET}, which is not in data.classes")

    monkeypatch.setattr(site_admission, "federate_own", opened)
    reply = hello(there, ANNA, "a" * 12, "params", "logits")
    told = "DataError; the log of site 'bank' says more"
    assert (reply["state"], reply["error"]) == ("failed", told)
    assert [(one["to"], one["mode"], one["allowed"]) for one in when_read] == [
        ("read", "params", True), ("read", "logits", True),
    ]  # fmt: skip
    *before, last = read(log)
    assert before == when_read
    assert (last["what"], last["run"], last["error"]) == ("failed", "a" * 12, "DataError")
    assert last["told"] == told
    assert SECRET not in log.read_text()
    assert PLACE not in log.read_text()


def test_the_lines_of_two_jobs_at_once_can_be_told_apart(tmp_path: Path) -> None:
    there = house(tmp_path)
    for run in ("a" * 12, "b" * 12):
        assert hello(there, ANNA, run, "params")["state"] == "ready"
    lines = list(read(tmp_path / "bank" / "triskel" / "audit.jsonl"))
    each = [("decided", "read"), ("decided", "send"), ("told", None)]
    assert [(one["run"], (one["what"], one.get("to"))) for one in lines] == [
        (run, one) for run in ("a" * 12, "b" * 12) for one in each
    ]


@pytest.mark.parametrize("name", ["/etc", "..", "../tiny", "tiny/../tiny", "~", "a/b/c", "./tiny"])
def test_a_model_that_is_a_path_is_refused_by_both_sides_and_in_the_log(
    tmp_path: Path, name: str
) -> None:
    there = house(tmp_path, **{"model.path": f'"{name}"'})
    meeting = Meeting(there, there.spec("params"))
    ended = meeting.host.play(tmp_path / "out")
    assert ended["refused"]
    assert "is no name" in ended["error"]
    about = {**own_code(), "clients": 3}
    reply = meeting.visit(meeting.sites["bank"], "hello", {"about": about})
    assert reply["state"] == "refused"
    assert f"models: the job names a model by '{name}'" in reply["error"]
    (line,) = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    assert not line["allowed"]
    meeting.sites["bank"].close()


def test_a_site_works_in_no_round_that_may_close_with_fewer_than_its_policy_asks_for(
    party: Any,
) -> None:
    assert party.meeting.sites["bank"]._here.policy.limits.cohort == 2
    asked: list[tuple[str, str]] = []

    def twist(_n: str, method: str, told: Any, real: Any) -> Any:
        asked.append((method, told.get("play") or told["order"]["play"]))
        return real()

    def of_these() -> set[str]:
        """What was asked of the plays that began here; an earlier one's may still come in."""
        plays = {play for method, play in asked if method == "begin"}
        return {method for method, play in asked if play in plays}

    party.twist = twist
    why = r"bank: the round may close with fewer clients .*\(limits.cohort\)"
    with pytest.raises(RoundError, match=why):
        party.round("params", ("bank",))
    with pytest.raises(RoundError, match=why):
        party.round("params", ("bank", "clinic"), quorum=0.5)
    assert of_these() == {"begin"}, "nothing was fetched, nothing left"
    asked.clear()
    party.round("params", ("bank", "clinic"))
    assert "hand_over" in of_these()


def test_no_more_leaves_in_a_round_than_the_policy_allows_over_all_asks(party: Any) -> None:
    site, sent = party.meeting.sites["clinic"], list[int]()

    def twist(name: str, method: str, told: Any, real: Any) -> Any:
        reply = real()
        if name == "clinic" and method == "ask":
            sent.append(len(told["data"]))
        if name == "clinic" and method == "hand_over":
            sent.append(len(reply["update"]))
        return reply

    party.twist, own = twist, site._here.outbox
    own.sent.clear()
    party.round("split")
    total, sent[:] = sum(sent), []
    try:
        for most, word in ((total, ""), (total - 1, "limits.round_mb"), (total // 3, "limits.")):
            outbox = replace(own, round_mb=most / 1e6, sent={})
            site._admitted = replace(site._here, outbox=outbox)
            sent.clear()
            _, ledger = party.round("split", quorum=0.6)
            assert sum(sent) <= most
            assert ledger.absent.get("clinic", "").startswith(word)
            assert f"{most:,}" not in ledger.absent.get("clinic", "")  # what the policy allows
            assert bool(word) == bool(ledger.absent)
    finally:
        site._admitted = replace(site._here, outbox=own)
        own.sent.clear()


@pytest.mark.parametrize(
    ("stage", "labels", "kind"),
    [
        *((stage, labels, "lora") for stage in ("params", "logits", "split")
          for labels in ("private", "shared")),
        ("split", "private", "prompt"),
    ],
)  # fmt: skip
def test_what_a_round_and_its_test_send_is_what_the_policy_decided_on(
    tmp_path: Path, stage: str, labels: str, kind: str
) -> None:
    usual = {"adapter.rank": "8", "adapter.alpha": "16.0"} if kind == "prompt" else {}
    there = house(tmp_path, **{
        "split.labels": f'"{labels}"', "clients.test_examples": "4",
        "adapter.kind": f'"{kind}"', **usual,
    })  # fmt: skip
    party = sites["Party"](there, (stage,))
    try:
        student = {"student": party.resources.body().initial} if stage == "logits" else {}
        log = tmp_path / "clinic" / "triskel" / "audit.jsonl"
        before = len(list(read(log)))
        state, _ = party.round(stage)
        mode, engine = party.modes[stage], party.engine(stage)
        engine.scores(mode, mode.start(), SITES, party.resources.body(), **student)
        assert state is not None
        left = [one for one in list(read(log))[before:] if one["what"] == "left"]
        payload = sum(part["bytes"] for one in left for part in one["sections"].values())
        site = party.meeting.sites["clinic"]
        job = site._here.job.model_copy(update={"mode": stage})
        said = round_bytes(job, sizes_of(site._here.resources, "clinic"), "clinic")
        spare = 0
        if stage == "split" and labels == "shared":  # labels of tests are bounded, not counted
            held = site._here.resources.tokens.share("clinic")
            spare = 4 * sum(len(ids) for ids in held.test.ids)
        assert said - spare <= payload <= said
        assert payload > 0
    finally:
        party.close()


def test_what_flare_counted_is_told_as_received_and_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = flare.StatsPoolManager
    monkeypatch.setattr(manager, "pools", {})
    assert flare._crossed() is None
    for name, scope, sizes in (
        ("Received_Msg_Sizes", "server", (0.5, 3.0)), ("Sent_Msg_Sizes", "server", (0.25,)),
        ("Received_Msg_Sizes", "server.job", (1.0,)), ("Request_Response", "server", (9.0,)),
    ):  # fmt: skip
        pool = manager.add_msg_size_pool(name, "", scope=scope)
        for place, size in enumerate(sizes):
            pool.record_value(f"category {place}", size)
    assert flare._crossed() == (4.5 * 2**20, 0.25 * 2**20)


def test_whatever_leaves_has_its_line_in_the_log_before_it_left(party: Any) -> None:
    logs = {n: party.house.root / n / "triskel" / "audit.jsonl" for n in SITES}
    count = {"ask": 0, "hand_over": 0}

    def logged(name: str, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() in logs[name].read_text()

    def twist(name: str, method: str, told: Any, real: Any) -> Any:
        if method == "ask" and told["data"]:
            assert logged(name, told["data"])
            count["ask"] += 1
        reply = real()
        if method == "hand_over":
            assert logged(name, reply["update"])
            count["hand_over"] += 1
        return reply

    party.twist = twist
    for stage in ("params", "logits", "split"):
        after, _ = party.round(stage)
        party.scores(stage, state=after)
    assert count["hand_over"] == 3 * 6
    assert count["ask"] > 3 * 5
    for name, log in logs.items():
        lines = list(read(log))
        assert [line["what"] for line in lines[:7]] == ["decided"] * 6 + ["told"]
        modes = ("params", "logits", "split")
        assert [(line["to"], line["mode"]) for line in lines[:6]] == [
            (to, mode) for to in ("read", "send") for mode in modes
        ]
        assert all(line["allowed"] for line in lines[:6])
        assert set(lines[6]["facts"]) == {"examples", "tests", "tokens"}
        assert {line["run"] for line in lines} == {sites["RUN"]}
        left = [line for line in lines[7:] if line["what"] == "left"]
        assert {line["what"] for line in lines[7:]} <= {"left", "failed"}, name
        rounds = {(line["stage"], line["round"]) for line in left}
        start = {(mode, 0) for mode in modes}  # which others of these tests let sites test
        assert rounds - start == {(mode, 1) for mode in modes}
        tests = [line for line in left if line["topic"] == "score"]
        assert {line["stage"] for line in tests} == set(modes), "a test has its round in no fact"


def test_nothing_leaves_while_the_log_cannot_be_written(
    party: Any, monkeypatch: pytest.MonkeyPatch, fewer: Any
) -> None:
    def full(self: Audit, *_: Any, **where: Any) -> str:
        if self is party.meeting.sites["clinic"]._audit:
            raise AuditError(f"audit log {PLACE} cannot be written: no space")
        return left(self, *_, **where)

    left, sent = Audit.left, list[bytes]()
    monkeypatch.setattr(Audit, "left", full)

    def twist(name: str, _method: str, told: Any, real: Any) -> Any:
        reply = real()
        if name == "clinic":
            sent.append(told.get("data") or reply.get("update") or b"")
        return reply

    party.twist = twist
    for stage in ("params", "split"):
        assert left_out(party, stage, fewer) == "AuditError; the log of site 'clinic' says more"
    assert not any(sent)


def test_a_site_tells_nothing_of_itself_while_its_log_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = house(tmp_path)

    def never(_m: str, _a: Any) -> Any:
        raise AssertionError("nobody is asked")

    def site(name: str) -> SiteJob:
        return SiteJob(name, tmp_path / name, there.spec("params"), Loop(never), ANNA)

    def hello(one: SiteJob) -> Any:
        reply: Any = {"state": "preparing"}
        while reply["state"] == "preparing":
            reply = one.hello({**own_code(), "clients": 3})
        one.close()
        return reply

    (tmp_path / "bank" / "triskel" / "audit.jsonl").mkdir(parents=True)
    first = hello(site("bank"))

    def full(*_: Any) -> str:
        raise AuditError(f"audit log {PLACE} cannot be written: no space")

    monkeypatch.setattr(Audit, "told", full)
    for name, reply in (("bank", first), ("clinic", hello(site("clinic")))):
        assert reply["error"] == f"AuditError; the log of site {name!r} says more"
        assert reply["state"] == "failed"
        assert set(reply) == {"state", "error", "version", "code"}


# --- Before the first round ---------------------------------------------------------------------


def greeted(there: Any, reply: Any) -> Any:
    def answer(method: str, arguments: Mapping[str, Any]) -> Any:
        assert method == "hello"
        assert arguments["about"]["clients"] == 1
        return reply

    place = there.root / "server" / "local" / "policy.toml"
    place.write_text(place.read_text().replace("cohort = 2", "cohort = 1"))
    host = ServerJob(there.root / "server", there.spec("params"), {"bank": Loop(answer)}, ANNA)
    return host.play(there.root / "out")


READY = {"state": "ready", "examples": 5, "tests": 1, "tokens": 9}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"state": None}, "cannot be read"),
        ({"state": "banana"}, "cannot be read"),
        ({"state": 5}, "cannot be read"),
        ({"version": None}, "cannot be read"),
        ({"version": "0.0.0"}, "install the same release everywhere"),
        ({"code": "0" * 64}, "other code under the same version"),
        ({"code": ""}, "other code under the same version"),
        ({"examples": -1}, "cannot be read"),
        ({"examples": True}, "cannot be read"),
        ({"tests": "1"}, "cannot be read"),
        ({"tokens": None}, "cannot be read"),
        ({"tokens": 2**80}, "cannot be read"),
        ({"state": "refused"}, "it refused"),
        ({"state": "failed", "error": LONG}, "xxx"),
        ({"state": "failed", "error": 5}, "cannot be read"),
    ],
    ids=lambda x: str(x)[:50],
)
def test_a_server_begins_nothing_with_a_site_it_cannot_understand(
    tmp_path: Path, wrong: Mapping[str, Any], word: str
) -> None:
    ended = greeted(house(tmp_path), {**READY, **own_code(), **wrong})
    assert (ended["done"], ended["refused"]) == (False, True)
    assert ended["error"].startswith("bank: ")
    assert word in ended["error"]
    assert len(ended["error"]) < 3000


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"version": "0.0.0"}, "the server runs triskel 0.0.0"),
        ({"version": ""}, "of no version"),
        ({"code": "0" * 64}, "other code under the same version"),
    ],
)
def test_a_site_takes_part_in_nothing_of_a_server_with_other_code(
    tmp_path: Path, wrong: Mapping[str, Any], word: str
) -> None:
    there = house(tmp_path)
    meeting = Meeting(there, there.spec("params"))
    about = {**own_code(), "clients": 3, **wrong}
    reply = meeting.visit(meeting.sites["bank"], "hello", {"about": about})
    assert reply["state"] == "refused"
    assert word in reply["error"]
    assert "install the same release everywhere" in reply["error"]
    assert not (tmp_path / "bank" / "triskel").exists()


@pytest.mark.parametrize("clients", [None, -1, True, "3", 10**9], ids=str)
def test_a_site_takes_no_part_among_a_number_of_clients_that_is_none(
    tmp_path: Path, clients: Any
) -> None:
    there = house(tmp_path)
    meeting = Meeting(there, there.spec("params"))
    about = {**own_code(), "clients": clients}
    reply = meeting.visit(meeting.sites["bank"], "hello", {"about": about})
    assert reply["state"] == "failed"
    assert "clients must be a whole number" in reply["error"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"run": None}, "names no run"),
        ({"run": "../../etc"}, "names no run"),
        ({"run": 5}, "names no run"),
        ({"schema": 2}, "schema 2"),
        ({"job": None}, "holds no job"),
        ({"job": "rounds = ["}, "TOML"),
        ({"modes": ["weather"]}, "weather"),
    ],
    ids=str,
)
def test_a_submission_that_is_none_ends_in_a_sentence(
    tmp_path: Path, wrong: Mapping[str, Any], word: str
) -> None:
    there = house(tmp_path)
    ended = ServerJob(tmp_path / "server", {**there.spec(), **wrong}, {}, ANNA).play(
        tmp_path / "out"
    )
    assert (ended["done"], ended["refused"]) == (False, True)
    assert word in ended["error"]
    assert isinstance(RemoteEngine(job=there.job, peers={}, welcome=str).session, str)
