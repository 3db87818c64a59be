"""Checkpoints: what goes in comes out, and nothing that was damaged does."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import dataclasses
import errno
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triskel.core.files import write_text
from triskel.errors import CheckpointError
from triskel.experiment import checkpoint
from triskel.experiment.checkpoint import Filed, Frozen, Saved, freeze, named, read, thaw, write
from triskel.types import Section


@dataclass(frozen=True)
class Inner:
    mean: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    adapter: Mapping[str, Tensor]
    inner: Inner = field(default_factory=Inner)
    closed: int = 0
    waiting: object = field(default=None, metadata={"open": True})


FULL = State(
    adapter={"z.weight": torch.randn(2, 3), "a.weight": torch.randn(4)},
    inner=Inner(
        mean={"k.weight": torch.randn(3, dtype=torch.float64)}, steps={"k.weight": 7, "b": 0}
    ),
    closed=2,
    waiting=object(),
)


def saved(closed: int = 1, state: State = FULL) -> Saved:
    clients = {
        "ann/../b": Filed(round=closed, sha256="0" * 64),
        "bob": Filed(round=1, sha256="f" * 64),
    }
    return Saved(closed=closed, state=freeze(state), clients=clients, rows=[{"loss": 1 / 3}])


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        torch.equal(t, right[n]) and t.dtype == right[n].dtype for n, t in left.items()
    )


def test_a_state_survives_freezing_and_a_file_with_names_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, saved())
    found = read(tmp_path)
    assert found is not None
    empty = State(adapter={"other": torch.zeros(9)}, waiting=3)
    back = thaw(empty, found.state)
    assert equal(back.adapter, FULL.adapter)
    assert equal(back.inner.mean, FULL.inner.mean)
    assert back.inner.steps == FULL.inner.steps
    assert back.closed == 2
    assert back.waiting == 3, "an open field is not saved; it stays as it is at the start"
    assert (found.closed, found.rows) == (1, [{"loss": 1 / 3}])
    assert list(found.clients) == ["ann/../b", "bob"]
    assert found.clients["ann/../b"] == Filed(round=1, sha256="0" * 64)
    assert found.clients["bob"] == Filed(round=1, sha256="f" * 64)


names = st.text("abz_.10", min_size=1, max_size=8)
tensors = st.dictionaries(
    names,
    st.sampled_from(
        [
            torch.zeros(0),
            torch.tensor(2.5),
            torch.arange(6).reshape(2, 3),
            torch.randn(3, 2).T,
            torch.randn(2, 2).to(torch.bfloat16),
            torch.tensor([True, False]),
            torch.tensor([float("nan"), float("inf")]),
            torch.randn(4)[::2],
        ]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(tensors)
def test_any_tensors_come_back_bit_for_bit_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, some: dict[str, Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("c")
    write(folder, dataclasses.replace(saved(), state=freeze(State(adapter=some))))
    found = read(folder)
    assert found is not None
    back = thaw(State(adapter={}), found.state).adapter
    assert list(back) == list(some)
    for name, t in some.items():
        assert back[name].dtype == t.dtype
        assert back[name].shape == t.shape
        assert torch.equal(back[name].nan_to_num(7), t.nan_to_num(7)), name


def test_a_state_without_any_tensor_can_be_saved(tmp_path: Path) -> None:
    nothing = Saved(closed=1, state=freeze(State(adapter={})), clients={}, rows=[])
    write(tmp_path, nothing)
    found = read(tmp_path)
    assert found is not None
    assert thaw(FULL, found.state).adapter == {}


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    write(tmp_path, dataclasses.replace(saved(), state=freeze(State(adapter={"a": one, "b": one}))))
    found = read(tmp_path)
    assert found is not None
    back = thaw(State(adapter={}), found.state).adapter
    assert torch.equal(back["a"], one)
    assert torch.equal(back["b"], one)


@dataclass(frozen=True)
class Sided:
    """A state of what an aggregate returned beside the adapter."""

    adapter: Mapping[str, Tensor]
    further: Mapping[str, Section] = field(default_factory=dict)


SIDES = {
    "z": Section(
        kind="lowrank", tensors={"q/up": torch.randn(3, 2), "a": torch.randn(2)},
        facts={"scale": 0.5, "ranks": [2, 1]}, codec=("bf16",),
    ),
    "a": Section(kind="dense", tensors={"z": torch.randn(4), "k": torch.randn(1)}),
    "none": Section(kind="dense", tensors={}),
}  # fmt: skip


def test_a_state_may_hold_sections(tmp_path: Path) -> None:
    for further in (SIDES, {}):
        frozen = freeze(Sided(adapter=FULL.adapter, further=further))
        write(tmp_path, dataclasses.replace(saved(), state=frozen))
        found = read(tmp_path)
        assert found is not None
        back = thaw(Sided(adapter={}, further={"other": SIDES["a"]}), found.state)
        assert equal(back.adapter, FULL.adapter)
        assert list(back.further) == list(further)
        for name, section in further.items():
            one = back.further[name]
            assert equal(one.tensors, section.tensors)
            assert (one.kind, one.codec) == (section.kind, section.codec)
            assert list(one.facts.items()) == list(section.facts.items())


@pytest.mark.parametrize("told", [[["z", {}]], [["z", 3]], [["z", {"kind": "dense", "codec": 3}]]])
def test_what_is_no_section_is_refused_with_its_name(told: Any) -> None:
    frozen = Frozen(tensors={"adapter/x": torch.zeros(1)}, facts={"further#sections": told})
    with pytest.raises(CheckpointError, match="checkpoint has no section 'z'"):
        thaw(Sided(adapter={}), frozen)


def test_a_field_that_the_checkpoint_lacks_is_named() -> None:
    frozen = freeze(FULL)
    facts = {k: v for k, v in frozen.facts.items() if k != "closed"}
    with pytest.raises(CheckpointError, match=r"^checkpoint lacks 'closed'; it belongs to another"):
        thaw(FULL, Frozen(tensors=frozen.tensors, facts=facts))


def test_an_empty_folder_and_a_missing_one_hold_no_checkpoint(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "nowhere") is None
    (tmp_path / "round-000001.part").write_bytes(b"half a file")
    (tmp_path / "round-1.safetensors").write_bytes(b"somebody else's")
    assert read(tmp_path) is None


def test_the_last_two_rounds_are_kept_and_the_last_is_read(tmp_path: Path) -> None:
    for closed in (1, 2, 3, 4):
        assert write(tmp_path, saved(closed)).name == f"round-{closed:06d}.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "round-000003.safetensors",
        "round-000004.safetensors",
    ]
    found = read(tmp_path)
    assert found is not None
    assert found.closed == 4


def damages(whole: bytes) -> dict[str, bytes]:
    """Return ways in which a file is spoilt."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])

    def with_header(new: Any) -> bytes:
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    meta = header["__metadata__"]
    facts = meta["facts"].replace('"closed": 2', '"closed": 1')
    fewer = {n: v for n, v in header.items() if n != "server/closed"}
    fewer.pop("server/adapter/z.weight", None)
    return {
        "nothing left": b"",
        "cut short": whole[:-1],
        "cut in the header": whole[:50],
        "one bit in a tensor": whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:],
        "one bit in a name": whole.replace(b"a.weight", b"c.weight", 1),
        "a fact changed": with_header({**header, "__metadata__": {**meta, "facts": facts}}),
        "no checksum": with_header({**header, "__metadata__": {"facts": meta["facts"]}}),
        "no metadata": with_header({n: v for n, v in header.items() if n != "__metadata__"}),
        "a tensor gone": with_header(fewer),
        "zeros": bytes(len(whole)),
        "text": b"<html>",
        "a pickle": b"\x80\x04K\x01.",
    }


KINDS = list(damages(struct.pack("<Q", 67) + b'{"__metadata__": {"facts": "", "sha256": ""}}'))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(kind: str, tmp_path: Path) -> None:
    write(tmp_path, saved(1))
    last = write(tmp_path, saved(2))
    last.write_bytes(damages(last.read_bytes())[kind])
    found = read(tmp_path)
    assert found is not None
    assert found.closed == 1


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_that_are_all_damaged_are_refused_and_the_last_is_named(
    kind: str, tmp_path: Path
) -> None:
    for closed in (1, 2):
        place = write(tmp_path, saved(closed))
    for other in tmp_path.iterdir():
        other.write_bytes(damages(other.read_bytes())[kind])
    with pytest.raises(CheckpointError, match=rf"^checkpoint {place} is damaged: "):
        read(tmp_path)


def test_a_checkpoint_of_another_format_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    write(tmp_path, saved())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format"):
        read(tmp_path)


def test_a_checkpoint_whose_files_are_damaged_is_passed_over_too(tmp_path: Path) -> None:
    def check(one: Saved) -> None:
        if one.closed > bad:
            raise CheckpointError(f"a file of round {one.closed} is gone")

    write(tmp_path, saved(1))
    write(tmp_path, saved(2))
    bad = 1
    found = read(tmp_path, check)
    assert found is not None
    assert found.closed == 1
    bad = 0
    with pytest.raises(CheckpointError, match=r"^a file of round 2 is gone$"):
        read(tmp_path, check)


def test_the_files_that_checkpoints_name_are_known_of_each_that_can_be_read(tmp_path: Path) -> None:
    assert named(tmp_path) == []
    for closed in (1, 2, 3):
        last = write(tmp_path, saved(closed))
    assert named(tmp_path) == [saved(2).clients, saved(3).clients]
    last.write_bytes(last.read_bytes()[:60])
    assert named(tmp_path) == [saved(2).clients]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", ["save_file", "flush"])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, saved(1))
    monkeypatch.setattr(checkpoint, at, full_disk)
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, saved(2))
    monkeypatch.undo()
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'round-000002.safetensors'} cannot be written: [Errno 28] "
        "No space left on device; free some space and resume the run"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001.safetensors"]
    found = read(tmp_path)
    assert found is not None
    assert found.closed == 1


def test_a_write_that_the_system_cuts_short_is_one_sentence(tmp_path: Path) -> None:
    """The system refuses bytes past a limit, in the middle of the file, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limits on this system")
    write(tmp_path, saved(1))
    big = dataclasses.replace(saved(2), state=freeze(State(adapter={"a": torch.randn(300_000)})))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written: .*; free some space and "):
            write(tmp_path, big)
        with pytest.raises(CheckpointError, match=r"result\.json cannot be written: "):
            write_text(tmp_path / "result.json", "x" * 600_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001.safetensors"]
    found = read(tmp_path)
    assert found is not None
    assert found.closed == 1


def test_a_place_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"^checkpoint .*round-000001.* cannot be written: "):
        write(tmp_path / "stages", saved(1))
    with pytest.raises(CheckpointError, match=r"result\.json cannot be written: "):
        write_text(tmp_path / "stages" / "result.json", "")


def test_a_part_file_left_by_a_kill_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "round-000001.part").write_bytes(b"half")
    write(tmp_path, saved(1))
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001.safetensors"]


def test_a_text_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "deep" / "result.json"
    write_text(place, "première")
    assert place.read_text(encoding="utf-8") == "première"
    monkeypatch.setattr("triskel.core.files.flush", full_disk)
    with pytest.raises(CheckpointError, match=rf"^{place} cannot be written: \[Errno 28\] No spa"):
        write_text(place, "second")
    assert place.read_text(encoding="utf-8") == "première"
    assert [p.name for p in place.parent.iterdir()] == ["result.json"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    whole = write(tmp_path, saved()).read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    ends = [v["data_offsets"][1] for n, v in header.items() if n != "__metadata__"]
    assert 8 + size + max(ends) == len(whole), "a header of JSON, then bare numbers, and no more"
