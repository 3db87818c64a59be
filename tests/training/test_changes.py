"""Both sides of a wire that remembers, round by round, against sums worked out beside it.

The mode of these tests trains nothing: client c moves what it is sent by a drawn vector. So what
everybody must end with is a sum of these vectors, less what is still owed.
"""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.codec import decode, encode
from triskel.codec.change import OF, is_change
from triskel.config.job import Job, unsupported
from triskel.core.mode_spec import WHOLE
from triskel.engines.local import LocalEngine
from triskel.engines.waves import groups_in_flight
from triskel.errors import MessageError, RoundError
from triskel.experiment.checkpoint import freeze, thaw
from triskel.experiment.compare import Request, resume, run
from triskel.model.meter import Meter
from triskel.training.changes import HELD, OWED, Changes, kept_by_mode
from triskel.training.mode_setting import allowed
from triskel.training.worker import Worker
from triskel.types import ClientState, Message, Mode, Section
from triskel.wire.ledger import Ledger

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
WHO = ("ann", "bob", "cid")
TOP = {"name": "topk", "share": 0.1}
INT4 = {"name": "int4", "change": True}
PAIRS: list[tuple[Any, Any]] = [
    ("topk", "topk"), ("sign", "sign"), (INT4, INT4), (TOP, INT4), ("sign", "int8"),
    ("fp32", TOP), ({"name": "bf16", "change": True}, "fp32"), ("int8", "sign"),
]  # fmt: skip
SIZE = 700


def drawn(*of: object) -> Tensor:
    seed = int.from_bytes(repr(of).encode()[-6:], "little") % 2**31
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class WalkState:
    at: Mapping[str, Tensor]
    closed: int = 0


@dataclass(frozen=True)
class Walk(Mode[WalkState, Any, Any]):
    """Clients move what they are sent; the server takes the mean of where they are.

    Attributes:
        told: What each client was sent, by round.
    """

    told: dict[tuple[str, int], Tensor] = field(default_factory=dict, compare=False)

    def start(self) -> WalkState:
        return WalkState({"x": drawn("start")})

    def task(self, state: WalkState, client: str) -> Message:
        del client
        sections = {"s": Section(kind="dense", tensors=state.at)}
        return Message(kind="task", sections=sections, facts={"round": state.closed + 1})

    def work(self, task: Message, worker: Any, client_state: ClientState) -> Any:
        x, round_ = task.sections["s"].tensors["x"], int(str(task.facts["round"]))
        assert task.kind == "task"
        assert dict(task.sections["s"].facts) == {}
        assert not [name for name in client_state.groups if name.startswith("wire:")]
        self.told[worker.client, round_] = x.clone()
        section = Section(kind="dense", tensors={"x": x + drawn(worker.client, round_)})
        facts = {"round": round_, "examples": 1}
        yield from ()
        return Message(kind="update", sections={"s": section}, facts=facts), client_state

    def zero(self, state: WalkState) -> list[Tensor]:
        del state
        return []

    def add(self, state: WalkState, total: list[Tensor], client: str, update: Message) -> Any:
        del state, client
        (section,) = update.sections.values()
        assert (section.codec, dict(section.facts)) == ((), {})
        return [*total, section.tensors["x"]]

    def merge(self, state: WalkState, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        del state
        return left + right

    def close(self, state: WalkState, total: list[Tensor]) -> WalkState:
        mean = torch.stack(total).double().mean(0).float()
        return WalkState({"x": mean}, state.closed + 1)

    def probe(self, task: Message, worker: Any, client_state: ClientState) -> Any:
        update, _ = yield from self.work(task, worker, client_state)
        return update, client_state

    def server_model(self, state: WalkState) -> Mapping[str, Tensor]:
        return state.at


class Free(Meter):
    """An account of a client that computes nothing."""

    def __init__(self) -> None:
        self.flops = self.peak_bytes = 0


class Walker(Worker):
    """A client that brings its name."""

    def __init__(self, client: str) -> None:
        object.__setattr__(self, "client", client)
        object.__setattr__(self, "meter", Free())


class Played:
    """A walk under a pair of codecs, round by round in one process."""

    def __init__(self, up: Any, down: Any, *, initial: bool = True) -> None:
        self.job = Job.model_validate({"wire": {"up": up, "down": down}})
        self.walk = Walk()
        start = {"s": Section(kind="dense", tensors=self.walk.start().at)} if initial else {}
        self.mode: Changes[Any, Any] = Changes(
            mode=self.walk, wire=self.job.wire, sections=("s",), initial=start
        )
        self.state, self.kept = self.mode.start(), dict[str, ClientState]()

    def round(self, who: Sequence[str] = WHO, gone: Sequence[str] = (), **_: Any) -> Ledger:
        ledger = Ledger()
        self.state = LocalEngine(self.job).round(
            self.mode, self.state, who, worker=Walker, client_states=self.kept,
            keep=self.kept.__setitem__, ledger=ledger, watch=lambda _: None, gone=gone,
        )  # fmt: skip
        return ledger

    @property
    def at(self) -> Tensor:
        return self.state.inner.at["x"]

    def owed(self, client: str) -> Tensor:
        return self.kept[client].groups.get(OWED + "s", {}).get("x", torch.zeros(SIZE))


@pytest.mark.parametrize(("up", "down"), PAIRS)
def test_nothing_is_lost_but_what_is_still_owed(up: Any, down: Any) -> None:
    walk = Played(up, down)
    for _ in range(6):
        walk.round()
    moved = sum(drawn(c, r) for c in WHO for r in range(1, 7)) / 3
    owed = sum(walk.owed(c) for c in WHO) / 3
    left = walk.at - drawn("start") - moved + owed
    rounded = {"fp32": 1e-5, "int8": 0.2}.get(str(up), 1e-5)
    assert left.abs().max() < rounded, "int8 values of an update are rounded for good"


@pytest.mark.parametrize(("up", "down"), PAIRS)
def test_all_clients_train_from_the_same_bits_whoever_was_away(up: Any, down: Any) -> None:
    walk = Played(up, down)
    for who in (WHO, WHO[:2], WHO[1:], WHO, WHO[:1], WHO):
        walk.round(who)
    for round_ in range(1, 7):
        each = [x for (_, r), x in walk.walk.told.items() if r == round_]
        assert all(torch.equal(each[0], one) for one in each)


def test_those_who_were_away_are_sent_everything_and_others_the_change() -> None:
    walk = Played("fp32", "sign")
    sizes = [walk.round(who).rows() for who in (WHO, WHO[:2], WHO)]
    down = [{c: row["down"]["message_bytes"] for c, row in rows.items()} for rows in sizes]
    assert max(down[0].values()) < 400, "before round 1 everybody holds the start"
    assert max(down[1].values()) < 600
    assert down[2]["ann"] == down[2]["bob"] < 600
    assert down[2]["cid"] > 4 * SIZE
    asks = [row["up"]["messages"] for rows in sizes for row in rows.values()]
    assert set(asks) == {1}, "the server knows whom it did not count"


def test_a_client_that_dropped_out_holds_what_it_held_and_owes_what_it_owed() -> None:
    walk = Played(TOP, "sign")
    walk.round()
    before = walk.kept["cid"]
    rows = [walk.round(gone=["cid"]).rows(), walk.round().rows()]
    assert walk.state.holders == list(WHO)
    assert rows[0]["cid"]["down"]["message_bytes"] < 600
    assert rows[1]["cid"]["down"]["message_bytes"] > 4 * SIZE
    lost = Played(TOP, "sign")
    lost.round()
    lost.round()
    lost.kept["cid"] = before  # as if round 2 had not been counted
    owed = before.groups[OWED + "s"]["x"]
    moved = drawn("cid", 3) + owed
    lost.state = replace(lost.state, holders=list(WHO[:2]))
    lost.round()
    assert torch.allclose((moved - lost.owed("cid")).abs().sum(), moved.abs().topk(70).values.sum(),
                          rtol=0.02)  # fmt: skip


@pytest.mark.parametrize(("up", "down"), [(TOP, "sign"), ("fp32", INT4)])
def test_a_client_whose_disk_is_new_asks_for_everything(up: Any, down: Any) -> None:
    walk, other = Played(up, down), Played(up, down)
    for one in (walk, other, walk, other):
        one.round()
    walk.kept.pop("bob")
    rows = walk.round().rows()
    other.round()
    assert (rows["bob"]["up"]["messages"], rows["bob"]["down"]["messages"]) == (2, 2)
    assert rows["ann"]["down"]["messages"] == 1
    assert torch.equal(walk.walk.told["bob", 3], other.walk.told["bob", 3])
    assert torch.equal(walk.walk.told["bob", 3], walk.walk.told["ann", 3])
    assert walk.round().rows()["bob"]["down"]["messages"] == 1


def test_where_the_server_alone_has_the_start_all_are_sent_it_whole() -> None:
    walk = Played("sign", "sign", initial=False)
    assert all(r["down"]["message_bytes"] > 4 * SIZE for r in walk.round().rows().values())
    assert all(r["down"]["message_bytes"] < 600 for r in walk.round().rows().values())


def test_a_client_that_begins_from_another_start_asks() -> None:
    walk = Played("sign", "sign")
    other = {"s": Section(kind="dense", tensors={"x": drawn("elsewhere")})}
    theirs = replace(walk.mode, initial=other)
    talk = theirs.work(walk.mode.task(walk.state, "ann"), Walker("ann"), ClientState())
    asked: Any = next(talk)
    assert (asked.ask.kind, asked.ask.topic, asked.ask.sections) == ("ask", WHOLE, {})
    _, answers = walk.mode.answer(walk.state, {"ann": asked.ask})
    with pytest.raises(StopIteration):
        talk.send(answers["ann"])
    assert torch.equal(walk.walk.told["ann", 1], drawn("start"))
    for bad in (walk.mode.task(walk.state, "ann"), 3, None):
        again = theirs.work(walk.mode.task(walk.state, "ann"), Walker("ann"), ClientState())
        next(again)
        with pytest.raises(MessageError, match="asked for a whole task and sent none"):
            again.send(bad)


def test_a_test_is_of_what_the_change_makes_and_leaves_no_trace() -> None:
    walk = Played("sign", "sign")
    walk.round()
    task = decode(encode(walk.mode.task(walk.state, "ann"), "sign"), changes=True)
    talk = walk.mode.probe(task, Walker("ann"), walk.kept["ann"])
    with pytest.raises(StopIteration) as ended:
        next(talk)
    assert ended.value.value[1] == walk.kept["ann"]
    tested = walk.walk.told["ann", 2].clone()
    walk.round()
    assert torch.equal(walk.walk.told["ann", 2], tested)


def test_a_state_is_the_same_after_a_checkpoint() -> None:
    walk = Played(TOP, "sign")
    for state in (walk.state, *(walk.round() and walk.state for _ in range(2))):
        again = thaw(walk.mode.start(), freeze(state))
        assert again.holders == state.holders
        assert torch.equal(again.inner.at["x"], state.inner.at["x"])
        assert all(torch.equal(again.held[n], x) for n, x in state.held.items())


def update_of(walk: Played, client: str = "ann") -> Message:
    task = decode(encode(walk.mode.task(walk.state, client), "sign"), changes=True)
    talk = walk.mode.work(task, Walker(client), walk.kept.get(client, ClientState()))
    with pytest.raises(StopIteration) as ended:
        next(talk)
    return ended.value.value[0]


def test_an_update_against_something_else_is_refused() -> None:
    walk = Played("sign", "sign")
    old = update_of(walk)
    assert is_change(old.sections["s"])
    walk.round()
    with pytest.raises(MessageError, match="section 's' is the change of '"):
        walk.mode.add(walk.state, walk.mode.zero(walk.state), "ann", old)
    lie = replace(old.sections["s"], facts={OF: walk_hash(update_of(walk))}, tensors={})
    told = replace(old, sections={"s": lie})
    assert walk.mode.add(walk.state, walk.mode.zero(walk.state), "ann", told).clients == ("ann",)


def walk_hash(update: Message) -> str:
    return str(update.sections["s"].facts[OF])


def test_totals_of_other_clients_are_merged() -> None:
    walk = Played("sign", "sign")
    walk.round()
    mode, state = walk.mode, walk.state
    one = mode.add(state, mode.zero(state), "ann", update_of(walk, "ann"))
    two = mode.add(state, mode.zero(state), "bob", update_of(walk, "bob"))
    both = mode.merge(state, mode.merge(state, mode.zero(state), one), two)
    at_once = mode.add(state, one, "bob", update_of(walk, "bob"))
    assert both.clients == at_once.clients == ("ann", "bob")
    assert torch.equal(
        mode.close(state, both).inner.at["x"], mode.close(state, at_once).inner.at["x"]
    )


def test_without_feedback_a_client_keeps_nothing_of_what_was_lost() -> None:
    walk = Played({**TOP, "feedback": False}, "fp32")
    walk.round()
    assert walk.kept["ann"] == ClientState()
    assert Played(TOP, "fp32").mode.asks == {}


def test_what_the_wire_keeps_is_not_the_mode_s() -> None:
    mine = {"own": {"x": torch.ones(1)}}
    state = ClientState(groups={**mine, HELD + "s": {}, OWED + "s": {}}, facts={"n": 1})
    assert kept_by_mode(state) == ClientState(groups=mine, facts={"n": 1})
    wires = ClientState(groups={HELD + "s": {}})
    assert allowed(Job(), "params", wires) is wires
    with pytest.raises(RoundError, match="client_state"):
        allowed(Job(), "params", state)


def test_who_asks_for_everything_holds_nobody_up() -> None:
    walk = Played("sign", "sign")
    who = [f"c{i:02d}" for i in range(40)]
    assert [len(group) for group in groups_in_flight(walk.mode, who, free=16)] == [16, 16, 8]
    assert [len(group) for group in groups_in_flight(walk.mode, who, free=40)] == [40]


@pytest.mark.parametrize(("up", "down"), [(TOP, "sign"), (INT4, INT4), ("sign", TOP)])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(
    up: Any, down: Any, tmp_path: Path
) -> None:
    model, rows = small.save_model(tmp_path / "model"), small.save_rows(tmp_path / "rows.csv", 40)
    clients = {"cohort": 0.7, "drop_share": 0.3, "count": 4}
    asked, ends = Request(modes=("params",), baselines=()), list[Any]()
    for name, rounds in (("whole", 4), ("parts", 2)):
        job = small.job(model, rows, rounds=rounds, wire={"up": up, "down": down}, clients=clients)
        found = run(job, asked, tmp_path / name, LocalEngine(job), small.watch)
        if name == "parts":
            found = resume(tmp_path / name, LocalEngine, small.watch, rounds=4)
        adapter = tmp_path / name / "adapters" / "params" / "adapter_model.safetensors"
        costs = [
            {c: (row["up"], row["down"]) for c, row in one["clients"].items()}
            for one in found["modes"]["params"]["rounds"]
        ]
        ends.append((adapter.read_bytes(), costs))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("mode", "wire", "reason"),
    [
        ("params", {"up": "sign", "down": TOP}, None),
        ("logits", {"up": "sign"}, "wire.up has section 'knowledge' travel as sign"),
        ("split", {"down": TOP}, "wire.down has section 'gradient' travel as topk"),
        ("split", {"up": {"adapter": "sign"}}, "wire.up has section 'adapter' travel as sign"),
        ("split", {"up": {"activations": "int8"}}, None),
        ("logits", {"up": {"adapter": "sign", "head": "bf16"}}, None),
    ],
)
def test_a_mode_says_what_it_cannot_send_as_changes(
    mode: str, wire: Any, reason: str | None
) -> None:
    found = unsupported(Job.model_validate({"wire": wire, "logits": {"public": 3}}), mode)
    assert (found or "").startswith(reason or "")
    assert bool(found) == bool(reason)


def test_clients_of_other_ranks_hold_no_common_adapter() -> None:
    raw = {"wire": {"down": "sign"}, "clients": {"each": {"ann": {"rank": 8}}}}
    assert "use different ranks" in str(unsupported(Job.model_validate(raw), "params"))
