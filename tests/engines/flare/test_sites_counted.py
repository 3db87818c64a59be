"""A site starts a round from what the round left that counted last, wherever the count was lost.

The mode of these tests is parameter exchange whose clients count their rounds: each update says how
many rounds its client's state holds. It stands under the name of a mode whose clients keep states.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triskel.engines.flare.protocol import Lost
from triskel.engines.flare.site_store import SiteStore
from triskel.errors import CheckpointError, RoundError
from triskel.experiment.client_store import Store
from triskel.experiment.sampling import Sampling
from triskel.types import ClientState, Message
from triskel.wire import pack

sites = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py")))
STAGE = "logits"
QUORUM = {"quorum": 0.6}
LOST = [
    (method, when)
    for method in ("begin", "fetch", "collect", "hand_over")
    for when in ("before", "after")
]


class Counting:
    """A mode whose clients' states hold how many rounds they took part in."""

    def __init__(self, inner: Any, told: list[tuple[str, int, int]]) -> None:
        self.inner, self.told = inner, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def work(self, task: Message, worker: Any, client_state: ClientState) -> Any:
        held = int(str(client_state.facts.get("held", 0)))
        self.told.append((worker.client, int(str(task.facts["round"])), held))
        update, _ = yield from self.inner.work(task, worker, client_state)
        return update, ClientState(facts={"held": held + 1})


@pytest.fixture
def told() -> list[tuple[str, int, int]]:
    """Client, round, and how many rounds its state held when it began."""
    return []


@pytest.fixture
def party(tmp_path: Path, told: list[tuple[str, int, int]]) -> Iterator[Any]:
    """A server and three sites, all with the counting mode."""
    found = sites.Party(sites.house(tmp_path, rounds="9"), ("params", STAGE))
    found.modes[STAGE] = Counting(found.modes["params"], told)
    for site in found.meeting.sites.values():
        site._here.modes[STAGE] = Counting(site._here.modes["params"], told)
    yield found
    found.close()


def losing(who: str, round_: int, method: str, when: str) -> Any:
    """Cut a site's link in one round, from one of its calls on, and for good."""
    cut: list[str] = []

    def twist(name: str, called: str, arguments: Mapping[str, Any], real: Any) -> Any:
        play = arguments.get("play") or arguments.get("order", {}).get("play", "")
        if name != who or not play.startswith(f"{STAGE}/{round_}/work"):
            return real()
        if called == method and when == "after" and not cut:
            real()
        if called == method or cut:
            cut.append(called)
            raise Lost(called)
        return real()

    return twist


def played(party: Any, rounds: range, engine: Any, state: Any = None) -> Any:
    for _ in rounds:
        state, _ = party.round(STAGE, engine=engine, state=state)
    return state


@pytest.mark.parametrize(("method", "when"), LOST)
def test_a_round_that_was_lost_is_none_that_a_site_goes_on_from(
    party: Any, told: list[tuple[str, int, int]], method: str, when: str
) -> None:
    engine = party.engine(STAGE, **QUORUM)
    state = played(party, range(1), engine)
    party.twist = losing("clinic", 2, method, when)
    state, ledger = party.round(STAGE, engine=engine, state=state)
    assert "clinic" in ledger.absent
    party.twist = sites.plain
    played(party, range(2), engine, state)
    began = {(client, round_): held for client, round_, held in told}
    assert (began["clinic", 3], began["clinic", 4]) == (1, 2), "rounds 1, and 1 and 3"
    assert (began["bank", 3], began["bank", 4]) == (2, 3)


def test_an_update_that_cannot_be_read_is_none_that_a_site_goes_on_from(
    party: Any, told: list[tuple[str, int, int]]
) -> None:
    engine = party.engine(STAGE, **QUORUM)
    state = played(party, range(1), engine)

    def twist(name: str, called: str, _a: Any, real: Any) -> Any:
        reply = real()
        spoilt = (name, called) == ("clinic", "hand_over")
        return {**reply, "update": pack(Message(kind="ask"))} if spoilt else reply

    party.twist = twist
    state, ledger = party.round(STAGE, engine=engine, state=state)
    assert "clinic" in ledger.absent
    party.twist = sites.plain
    played(party, range(1), engine, state)
    assert ("clinic", 2, 1) in told, "it played round 2"
    assert ("clinic", 3, 1) in told, "and goes on from round 1"


def test_a_server_that_went_back_finds_sites_where_they_were(
    party: Any, told: list[tuple[str, int, int]]
) -> None:
    """Its last checkpoint is lost: round 3 is played again, from what round 2 left."""
    engine = party.engine(STAGE, **QUORUM)
    state = played(party, range(2), engine)
    counted = dict(engine.counted)
    assert counted == dict.fromkeys(sites.SITES, 2)
    played(party, range(1), engine, state)
    again = party.engine(STAGE, **QUORUM)
    again.counted = counted
    played(party, range(1), again, state)
    assert [one for one in told if one[:2] == ("shop", 3)] == [("shop", 3, 2)] * 2


def test_a_test_of_a_round_is_of_what_counted(party: Any) -> None:
    """The part `probe` begins from the same state as the next round would."""
    orders: list[Mapping[str, Any]] = []
    engine = party.engine(STAGE, **QUORUM)
    state = played(party, range(1), engine)
    party.twist = losing("clinic", 2, "hand_over", "after")
    state, _ = party.round(STAGE, engine=engine, state=state)

    def twist(_name: str, called: str, arguments: Mapping[str, Any], real: Any) -> Any:
        if called == "begin":
            orders.append({**arguments["order"], "site": _name})
        return real()

    party.twist = twist
    engine.absent.clear()
    party.scores(STAGE, engine=engine, state=state)
    asked = {one["site"]: (one["round"], one["counted"]) for one in orders}
    assert asked == {"bank": (2, 2), "clinic": (2, 1), "shop": (2, 2)}


def test_a_site_that_lost_the_state_that_counts_says_so(party: Any) -> None:
    engine = party.engine(STAGE, **QUORUM)
    state = played(party, range(1), engine)
    site = party.meeting.sites["clinic"]
    shutil.rmtree(site._home / STAGE)
    _, ledger = party.round(STAGE, engine=engine, state=state)
    said = "the server counted round 1 of site 'clinic' last, which keeps what no round left"
    assert said in ledger.absent["clinic"]


def test_a_site_of_a_mode_that_keeps_nothing_may_have_lost_everything(party: Any) -> None:
    engine = party.engine("params", **QUORUM)
    state, _ = party.round("params", engine=engine)
    shutil.rmtree(party.meeting.sites["clinic"]._home / "params")
    _, ledger = party.round("params", engine=engine, state=state)
    assert not ledger.absent


def test_a_mode_that_says_it_keeps_nothing_may_keep_nothing(
    party: Any, told: list[tuple[str, int, int]]
) -> None:
    for site in party.meeting.sites.values():
        site._here.modes["params"] = Counting(site._here.modes["params"], told)
    with pytest.raises(RoundError, match="set the trait client_state"):
        party.round("params", quorum=1.0)


def test_a_site_keeps_what_two_rounds_left_that_counted_and_the_last(tmp_path: Path) -> None:
    kept = SiteStore(tmp_path, "clinic")
    for round_, counted in ((1, 0), (2, 1), (3, 1), (4, 3), (5, 4)):
        kept.keep(ClientState(facts={"of": round_}), round_, counted)
    again = SiteStore(tmp_path, "clinic")
    assert [dict(again.left_by(r, needed=True).facts) for r in (3, 4, 5)] == [
        {"of": 3}, {"of": 4}, {"of": 5},
    ]  # fmt: skip
    for gone in (1, 2):
        with pytest.raises(RoundError, match=f"counted round {gone}"):
            again.left_by(gone, needed=True)
    assert again.left_by(0, needed=True) == ClientState()
    assert len(list((tmp_path / "clients").iterdir())) == 3
    assert json.loads((tmp_path / "kept.json").read_text())["counted"] == [3, 4]


def test_who_counted_is_read_from_closed_rounds(party: Any) -> None:
    rows = [
        {"clients": {name: {} for name in sites.SITES}},
        {"clients": {name: {} for name in sites.SITES}, "absent": {"clinic": "late"}},
        {"sum": {}, "absent": {"bank": "away"}},  # of many clients, whose rows hold sums
    ]
    found = Sampling(party.resources.job, list(sites.SITES)).counted(rows)
    assert found == {"bank": 2, "clinic": 3, "shop": 3}
    assert Store(Path("none"), counted={"a": 1}).counted == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"rounds": [1]}',
        '{"rounds": [], "filed": 3}',
        '{"rounds": 5, "filed": {}}',
        '{"rounds": ["a"], "filed": {}}',
        '{"rounds": [], "filed": {}, "counted": null}',
    ],
)
def test_a_damaged_account_of_what_is_kept_is_refused_with_its_place(
    text: str, tmp_path: Path
) -> None:
    SiteStore(tmp_path, "bank").keep(ClientState(), 1, 0)
    (tmp_path / "kept.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"kept\.json is damaged .* submit the job as a new"):
        SiteStore(tmp_path, "bank")
