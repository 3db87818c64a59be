"""Changes between a server and sites: as in one process, and whole where a site holds another."""

# ruff: noqa: ANN401 - results are JSON

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triskel.codec.change import OF
from triskel.engines.flare.protocol import Lost
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.training.changes import HELD, OWED
from triskel.wire import pack, unpack

sites = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py")))
CODECS = '["raw", "bf16", "topk", "sign"]'
WIRE = {
    "wire.up": '{adapter = {name = "topk", share = 0.1}, head = "sign", other = "raw"}',
    "wire.down": '"sign"',
}
QUORUM = {"quorum": 0.6, "patience_s": 20.0}


def house(tmp_path: Path, codecs: str = CODECS, **more: str) -> Any:
    there = sites.house(tmp_path, **WIRE, **more)
    for place in there.root.glob("*/local/policy.toml"):
        place.write_text(place.read_text().replace('["fp32", "raw", "int8"]', codecs))
    return there


@pytest.fixture
def party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server and three sites whose adapters travel as changes."""
    sites.hurry(monkeypatch)
    found = sites.Party(house(tmp_path, rounds="9"), ("params",))
    yield found
    found.close()


def test_sites_end_with_the_adapter_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.hurry(monkeypatch)
    there = house(tmp_path, rounds="3")
    ended = sites.Meeting(there, there.spec("params")).play()
    assert ended["done"], ended
    job, request = there.local, Request(modes=("params",), baselines=())
    run(job, request, tmp_path / "local", LocalEngine(job), lambda _: None)
    one, two = (
        load_file(tmp_path / place / "adapters" / "params" / "adapter_model.safetensors")
        for place in ("out", "local")
    )
    assert all(torch.equal(one[name], x) for name, x in two.items())
    rows = [
        json.loads((tmp_path / place / "result.json").read_text())["modes"]["params"]["rounds"]
        for place in ("out", "local")
    ]
    for mine, theirs in zip(*rows, strict=True):
        for client, spent in theirs["clients"].items():
            assert (mine["clients"][client]["up"], mine["clients"][client]["down"]) == (
                spent["up"], spent["down"],
            )  # fmt: skip


def began(ledger: Any) -> dict[str, tuple[int, int]]:
    """How many messages each client sent and was sent."""
    return {c: (r["up"]["messages"], r["down"]["messages"]) for c, r in ledger.rows().items()}


def test_a_site_whose_disk_is_new_is_sent_everything(party: Any) -> None:
    engine, state = party.engine("params"), None
    for _ in range(2):
        state, _ = party.round("params", engine=engine, state=state)
    shutil.rmtree(party.meeting.sites["clinic"]._home / "params")
    state, ledger = party.round("params", engine=engine, state=state)
    assert not ledger.absent
    assert began(ledger) == {"bank": (1, 1), "clinic": (2, 2), "shop": (1, 1)}
    _, ledger = party.round("params", engine=engine, state=state)
    assert set(began(ledger).values()) == {(1, 1)}


def test_a_round_that_was_not_counted_left_nothing_at_either_side(party: Any) -> None:
    engine, site = party.engine("params", **QUORUM), party.meeting.sites["clinic"]
    state, _ = party.round("params", engine=engine)

    cut: list[str] = []

    def twist(name: str, called: str, arguments: Mapping[str, Any], real: Any) -> Any:
        del arguments
        if name == "clinic" and (cut or called == "hand_over"):
            cut.append(called)
            raise Lost(called)
        return real()

    party.twist = twist
    state, ledger = party.round("params", engine=engine, state=state)
    assert "clinic" in ledger.absent
    assert state.holders == ["bank", "shop"]
    party.twist = sites.plain
    before = sites.site_job.SiteStore(site._home / "params", "clinic").left_by(1, needed=True)
    state, ledger = party.round("params", engine=engine, state=state)
    assert began(ledger)["clinic"] == (1, 1), "the server knew: it was sent everything at once"
    down = {c: row["down"]["message_bytes"] for c, row in ledger.rows().items()}
    assert down["clinic"] > 2 * down["bank"]
    held = {c: _held(party, c, 3) for c in sites.SITES}
    assert all(torch.equal(held["bank"][n], x) for n, x in held["clinic"].items())
    kept = {start + name for start in (HELD, OWED) for name in ("adapter", "head")}
    assert before.groups.keys() == kept


def _held(party: Any, client: str, round_: int) -> Mapping[str, torch.Tensor]:
    home = party.meeting.sites[client]._home / "params"
    state = sites.site_job.SiteStore(home, client).left_by(round_, needed=True)
    return state.groups[HELD + "adapter"]


def test_a_test_of_a_round_is_sent_as_a_change(party: Any) -> None:
    engine = party.engine("params")
    state, _ = party.round("params", engine=engine)
    orders: dict[str, int] = {}

    def twist(name: str, called: str, arguments: Mapping[str, Any], real: Any) -> Any:
        if called == "begin":
            orders[name] = arguments["order"]["size"]
        return real()

    party.twist = twist
    party.scores("params", engine=engine, state=state)
    whole = len(pack(state.inner and party.modes["params"].mode.task(state.inner, "bank")))
    assert max(orders.values()) < whole / 2


@pytest.mark.parametrize("lie", ["of", "numbers", "codec"])
def test_a_site_that_lies_about_its_change_is_left_out_and_nobody_else(
    party: Any, lie: str
) -> None:
    def twist(name: str, called: str, arguments: Mapping[str, Any], real: Any) -> Any:
        del arguments
        reply = real()
        if (name, called) != ("shop", "hand_over"):
            return reply
        message = unpack(reply["update"])
        section = message.sections["adapter"]
        if lie == "of":
            object.__setattr__(section, "facts", {**section.facts, OF: "0" * 64})
        elif lie == "numbers":
            more = {**section.facts, "topk:shape": [2**30, 2**9]}
            object.__setattr__(section, "facts", more)
        else:
            object.__setattr__(section, "codec", ("topk", "change"))
        return {**reply, "update": pack(message)}

    party.twist = twist
    state, ledger = party.round("params", **QUORUM)
    said = {
        "of": "is the change of '000", "numbers": "topk", "codec": "the unknown codec 'change'"
    }[lie]  # fmt: skip
    assert said in ledger.absent["shop"]
    assert state.holders == ["bank", "clinic"]


def test_a_site_allows_codecs_by_name_wherever_they_stand(tmp_path: Path) -> None:
    there = house(tmp_path, '["raw", "sign"]')
    ended = sites.Meeting(there, there.spec("params")).play()
    assert not ended["done"]
    assert "codecs: the job travels as 'topk' (wire.up.adapter)" in ended["error"]
