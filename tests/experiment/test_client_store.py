"""What clients keep: what goes in comes out, memory is bounded, and damage is never read."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from triskel.errors import CheckpointError
from triskel.experiment import client_store
from triskel.experiment import client_store as store_
from triskel.experiment.checkpoint import Filed
from triskel.experiment.client_store import OVERHEAD, Store
from triskel.types import ClientState


def state(value: float, size: int = 3, **facts: float) -> ClientState:
    return ClientState(groups={"own": {"w": torch.full((size,), float(value))}}, facts=facts)


def values(kept: ClientState) -> list[float]:
    return kept.groups["own"]["w"].tolist()


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


names = st.text(min_size=1, max_size=6)
some = st.sampled_from(
    [
        torch.zeros(0),
        torch.tensor(2.5),
        torch.randn(3, 2).T,
        torch.randn(2, 2).to(torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), float("-inf")]),
        torch.randn(8)[::3],
    ]
)
groups = st.dictionaries(names, st.dictionaries(names, some, max_size=3), max_size=3)
facts = st.dictionaries(names, st.floats(allow_nan=False) | st.just([1, 2]), max_size=2)
strange = st.sampled_from(["../a", "a/b", "A", "a", "é" * 200])


@settings(max_examples=40)
@given(st.dictionaries(names | strange, st.tuples(groups, facts)))
def test_any_states_of_any_names_come_back_from_their_files_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writing = Store(folder)
    given_ = {c: ClientState(groups=g, facts=f) for c, (g, f) in parts.items()}
    for client, one in given_.items():
        writing.keep(client, one, 1)
    kept = {c: one for c, one in given_.items() if one.groups or one.facts}
    reading = Store(folder, writing.filed)
    assert list(reading) == sorted(kept)
    assert len(files(folder)) == len(reading) == len(kept), "nothing is written for an empty state"
    for client, one in kept.items():
        for found in (reading[client], writing[client]):
            assert found.facts == one.facts
            assert list(found.groups) == list(one.groups)
            for group, tensors in one.groups.items():
                assert list(found.groups[group]) == list(tensors)
                for name, t in tensors.items():
                    back = found.groups[group][name]
                    assert (back.dtype, back.shape) == (t.dtype, t.shape)
                    assert torch.equal(back.nan_to_num(7), t.nan_to_num(7))


def test_a_store_is_a_mapping_that_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    writing = Store(tmp_path)
    for client in ("b", "a"):
        writing.keep(client, state(1.0), 4)
    reading = Store(tmp_path, writing.filed)
    for place in tmp_path.iterdir():
        place.unlink()
    assert (list(reading), len(reading)) == (["a", "b"], 2)
    assert ("a" in reading, "c" in reading) == (True, False)
    assert reading.get("c", ClientState()) == ClientState()
    with pytest.raises(KeyError):
        reading["c"]


def test_the_last_state_counts_and_an_empty_one_clears_it(tmp_path: Path) -> None:
    it = Store(tmp_path)
    it.keep("a", state(1.0), 1)
    it.keep("a", state(2.0), 2)
    assert values(it["a"]) == [2.0] * 3
    it.keep("a", ClientState(), 3)
    assert "a" not in it
    assert it.get("a") is None
    assert it.filed == {}


def test_what_is_kept_shares_no_memory_with_what_was_given(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    it = Store(tmp_path)
    it.keep("a", ClientState(groups={"own": {"w": whole[:3]}}), 1)
    whole.zero_()
    assert values(it["a"]) == [0.0, 1.0, 2.0]
    assert it["a"].groups["own"]["w"].untyped_storage().nbytes() == 12


# --- memory -----------------------------------------------------------------------------------


def test_states_used_last_stay_in_memory_and_others_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = store_.data_of
    monkeypatch.setattr(
        store_, "data_of", lambda p, **most: (seen.append(p.name), real(p, **most))[1]
    )
    each = 4 * 100 + OVERHEAD
    it = Store(tmp_path, cache_bytes=2 * each)
    for client in "abc":
        it.keep(client, state(ord(client), 100), 1)
    assert [values(it[c])[0] for c in "cb"] == [99, 98]
    assert not seen, "b and c are the two used last"
    assert values(it["a"])[0] == 97  # c goes, used longest ago
    assert len(seen) == 1
    assert [values(it[c])[0] for c in "ab"] == [97, 98]
    assert len(seen) == 1
    assert values(it["c"])[0] == 99
    assert len(seen) == 2
    it.keep("c", state(1.0, 100), 2)
    assert values(it["c"])[0] == 1.0, "what is kept anew replaces what was in memory"
    assert len(seen) == 2


@pytest.mark.parametrize("room", [0, 1, 4 * 100 + OVERHEAD - 1])
def test_a_state_larger_than_the_memory_is_read_each_time(room: int, tmp_path: Path) -> None:
    it = Store(tmp_path, cache_bytes=room)
    for client in "ab":
        it.keep(client, state(ord(client), 100), 1)
    for _ in range(2):
        assert [values(it[c])[0] for c in "ab"] == [97, 98]
    assert not it._cache
    assert it._used == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 600), st.booleans())))
def test_memory_stays_within_its_bound_and_holds_the_truth(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]]
) -> None:
    it = Store(tmp_path_factory.mktemp("store"), cache_bytes=6000)
    truth: dict[str, int] = {}
    for round_, (client, size, writes) in enumerate(steps, 1):
        if writes:
            it.keep(client, state(round_, size) if size else ClientState(), round_)
            truth[client] = round_
            if not size:
                del truth[client]
        elif client in truth:
            assert set(values(it[client])) == {truth[client]}
        held: list[Tensor] = [
            t for _, one in it._cache.values() for g in one.groups.values() for t in g.values()
        ]
        assert sum(t.nbytes + OVERHEAD for t in held) == it._used <= 6000
        assert set(it) == set(truth)


# --- files ------------------------------------------------------------------------------------


def test_a_file_names_its_client_and_holds_bare_numbers(tmp_path: Path) -> None:
    it = Store(tmp_path)
    it.keep("ann/../b", state(1.5, spent=0.25), 7)
    (place,) = tmp_path.iterdir()
    whole = place.read_bytes()
    assert place.name == f"{hashlib.sha256(b'ann/../b').hexdigest()[:24]}-000007.safetensors"
    assert it.filed == {"ann/../b": Filed(round=7, sha256=hashlib.sha256(whole).hexdigest())}
    with safe_open(place, framework="pt") as file:
        about = json.loads(file.metadata()["state"])
        assert list(file.keys()) == ["0/w"]
        assert file.get_tensor("0/w").tolist() == [1.5] * 3
    assert about == {
        "client": "ann/../b", "round": 7, "groups": {"own": ["w"]}, "facts": {"spent": 0.25},
    }  # fmt: skip
    assert len(whole) == 8 + struct.unpack("<Q", whole[:8])[0] + 12, "a header, numbers, no more"


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    found: list[Any] = []
    for folder in ("a", "b"):
        it = Store(tmp_path / folder)
        it.keep("c", state(1.0, x=1, y=2), 1)
        found.append(it.filed)
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["gone", "cut", "bit", "empty", "longer", "pickle", "folder"])
def test_a_damaged_file_is_never_read_and_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    writing = Store(folder)
    for client in "ab":
        writing.keep(client, state(1.0), 1)
    place = folder / client_store._name("b", writing.filed["b"])
    raw = place.read_bytes()
    place.unlink()
    spoilt = {
        "cut": raw[:-1], "bit": raw[:-2] + bytes([raw[-2] ^ 4]) + raw[-1:], "empty": b"",
        "longer": raw + b"\0", "pickle": b"\x80\x04K\x01.",
    }  # fmt: skip
    if damage == "folder":
        place.mkdir()
    elif damage in spoilt:
        place.write_bytes(spoilt[damage])
    it = Store(folder, writing.filed)
    assert values(it["a"]) == [1.0] * 3
    for look in (lambda: it["b"], lambda: it.check(writing.filed)):
        with pytest.raises(CheckpointError) as caught:
            look()
        said = str(caught.value)
        assert said.startswith("state of client 'b' ")
        assert str(place) in said
        assert "\n" not in said
        assert said.endswith(
            "; resume the run to go on from the round before, or delete "
            f"{tmp_path} to play the stage anew"
        )
    it.check({"a": writing.filed["a"]})


def test_a_whole_file_that_is_no_state_is_refused_in_a_sentence(tmp_path: Path) -> None:
    it = Store(tmp_path)
    it.keep("a", state(1.0), 1)
    (place,) = tmp_path.iterdir()
    strange = b"\x02\0\0\0\0\0\0\0{}"
    place.write_bytes(strange)
    filed = {"a": Filed(round=1, sha256=hashlib.sha256(strange).hexdigest())}
    with pytest.raises(CheckpointError, match=r"^state of a client belongs to another version: "):
        Store(tmp_path, filed)["a"]


def test_files_that_no_checkpoint_names_are_swept_and_others_stay(tmp_path: Path) -> None:
    it, named = Store(tmp_path), list[Any]()
    for round_, cohort in enumerate(("abc", "ab", "a", ""), 1):
        for client in cohort:
            it.keep(client, state(round_), round_)
        named = [*named, it.filed][-2:]
        (tmp_path / "left-by-a-kill.part").write_bytes(b"half")
        it.sweep(named)
        wanted = {client_store._name(c, f) for one in named for c, f in one.items()}
        assert set(files(tmp_path)) == wanted
    assert [len(one) for one in named] == [3, 3]
    assert {f.round for f in it.filed.values()} == {1, 2, 3}
    it.check(it.filed)
    Store(tmp_path / "nowhere").sweep([])


def test_a_thousand_files_are_flushed_and_swept(tmp_path: Path) -> None:
    it = Store(tmp_path)
    for i in range(1000):
        it.keep(f"c{i}", ClientState(facts={"i": i}), 1)
    it.flush()
    assert len(files(tmp_path)) == 1000
    it.sweep([{"c7": it.filed["c7"]}])
    assert files(tmp_path) == [client_store._name("c7", it.filed["c7"])]


def test_every_new_file_and_the_folder_are_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(client_store, "flush", lambda place: flushed.append(place.name))
    it = Store(tmp_path / "clients")
    it.flush()
    assert not flushed
    for client in "ab":
        it.keep(client, state(1.0), 1)
    it.flush()
    it.flush()
    assert flushed[-1] == "clients", "names last"
    assert sorted(flushed[:-1]) == files(tmp_path / "clients")


@pytest.mark.parametrize("at", ["keep", "flush"])
def test_a_full_disk_is_one_sentence_and_the_state_before_stays(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    it = Store(tmp_path)
    it.keep("a", state(1.0), 1)
    before = it.filed
    if at == "keep":
        monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(client_store, "flush", full)

    def both() -> None:
        it.keep("a", state(2.0), 2)
        it.flush()

    with pytest.raises(CheckpointError, match=r"cannot be written to .*; free some space and re"):
        both()
    monkeypatch.undo()
    if at == "keep":
        assert it.filed == before
        assert values(it["a"]) == [1.0] * 3
        assert len(files(tmp_path)) == 1
