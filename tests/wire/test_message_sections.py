"""Each kind of section holds what its rule says, when packed, when unpacked and when decoded."""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from triskel.codec import decode, encode
from triskel.errors import MessageError
from triskel.types import Fact, Message, Section, SectionKind
from triskel.wire import SECTIONS, check, pack, unpack

MADE: dict[str, Message] = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make.py"))[
    "messages"
]()
A, B = torch.ones(2, 5), torch.ones(3, 2)
IDS = torch.zeros(2, 3, dtype=torch.int32)
V = torch.ones(2, 3)
BYTES, PEAK = IDS.to(torch.uint8), torch.tensor([7, 65_535]).to(torch.uint16)
INDEX = torch.tensor([0, 4])
TWO = torch.ones(2)


def section(
    kind: SectionKind, facts: Mapping[str, Fact] | None = None, **tensors: Tensor
) -> Section:
    named = {name.replace("__", "."): x for name, x in tensors.items()}
    return Section(kind=kind, tensors=named, facts=facts or {})


GOOD = [
    section("dense"),
    section("dense", w=torch.tensor(1.0)),
    section("lowrank", {"scale": 1}, a__lora_A__w=A, a__lora_B__w=B, lora_A=A[:1], lora_B=B[:, :1]),
    section("lowrank", {"scale": 0.5}),
    section("sparse", {"size": 5}, values=TWO, indices=INDEX),
    section("sparse", {"size": 5}, values=TWO, indices=INDEX.to(torch.uint16)),
    section("sparse", {"size": 0}, values=TWO[:0], indices=INDEX[:0]),
    section("sparse", values=TWO, mask=torch.tensor([True, False, True])),
    section("mask", m=V > 0),
    section("labels", y=IDS),
    section("counts", y=IDS),
    section("seeds", seeds=INDEX, scalars=TWO),
    section("seeds", scalars=TWO),
    section("knowledge", values=V),
    section("knowledge", values=V, ids=IDS, tail=TWO),
    section("knowledge", shares=BYTES, peak=PEAK),
    section("knowledge", shares=BYTES, peak=PEAK, ids=BYTES),
    section("knowledge", values=V, ids=IDS.to(torch.uint16)),
    section("knowledge", values=V[:0], ids=IDS[:0]),
    section("activations", {"lengths": [1, 1]}, values=V),
    section("activations", {"lengths": []}, values=V[:0]),
    section("activations", values=V),
]
BAD = [
    (section("dense", w=IDS), "tensor 'w' holds integers, expected floats"),
    (section("dense", w=V > 0), "tensor 'w' holds bools, expected floats"),
    (section("mask", m=V), "tensor 'm' holds floats, expected bools"),
    (section("labels", y=V), "tensor 'y' holds floats, expected integers"),
    (section("counts", y=V), "tensor 'y' holds floats, expected integers"),
    (section("counts", y=-1 - IDS), "nothing is counted below 0"),
    (section("labels", y=V > 0), "tensor 'y' holds bools, expected integers"),
    (section("lowrank", {"scale": 1.0}, w=A), "'w' is neither a lora_A nor a lora_B"),
    (section("lowrank", {"scale": 1.0}, xlora_A=A), "'xlora_A' is neither"),
    (section("lowrank", {"scale": 1.0}, lora_A=IDS), "holds integers"),
    (section("lowrank", {"scale": 1.0}, x__lora_A=A), "lacks its other half 'x.lora_B'"),
    (section("lowrank", {"scale": 1.0}, x__lora_B__w=B), "lacks its other half 'x.lora_A.w'"),
    (section("lowrank", {"scale": 1.0}, lora_A=A, lora_B=B[0]), "must be matrices, got 2 and 1"),
    (section("lowrank", {"scale": 1.0}, lora_B=B, lora_A=A[0]), "must be matrices, got 2 and 1"),
    (section("lowrank", {"scale": 1.0}, lora_A=A, lora_B=B.t()), "has ranks 2 and 3"),
    (section("lowrank", lora_A=A, lora_B=B), "fact 'scale' must be a number above 0, got None"),
    (section("lowrank", {"scale": 0}, lora_A=A, lora_B=B), "'scale' must be .* above 0, got 0"),
    (section("lowrank", {"scale": True}, lora_A=A, lora_B=B), "'scale' must be .* got True"),
    (section("lowrank", {"scale": "2"}, lora_A=A, lora_B=B), "'scale' must be .* got '2'"),
    (section("sparse", {"size": 5}, values=TWO), "lacks tensor 'indices'"),
    (section("sparse", {"size": 5}, indices=INDEX), "lacks tensor 'values'"),
    (
        section("sparse", {"size": 5}, values=TWO, indices=INDEX, mask=V > 0),
        "has tensor 'indices', and only values, mask may be there",
    ),
    (section("sparse", {"size": 5}, values=V, indices=INDEX), r"'values': shape is \[2, 3\]"),
    (section("sparse", {"size": 5}, values=INDEX, indices=INDEX), "'values' holds integers"),
    (section("sparse", {"size": 5}, values=TWO, indices=TWO), "'indices' holds floats"),
    (section("sparse", {"size": 5}, values=TWO, indices=INDEX[:1]), r"expected \[2\]"),
    (section("sparse", {"size": 4}, values=TWO, indices=INDEX), "indices must rise within 0-3"),
    (section("sparse", {"size": 9}, values=TWO, indices=INDEX - 1), "rise within 0-8"),
    (section("sparse", {"size": 9}, values=TWO, indices=INDEX * 0), "rise within 0-8"),
    (section("sparse", {"size": -1}, values=TWO, indices=INDEX), "'size' must be .* got -1"),
    (section("sparse", {"size": 5.0}, values=TWO, indices=INDEX), "'size' must be .* got 5.0"),
    (section("sparse", values=TWO, indices=INDEX), "'size' must be .* got None"),
    (section("sparse", values=TWO, mask=V > 0), "'mask': shape is"),
    (section("sparse", values=TWO, mask=INDEX), "'mask' holds integers"),
    (section("sparse", values=TWO, mask=TWO > 1), "mask keeps 0 entries, and there are 2 values"),
    (section("seeds", seeds=INDEX), "lacks tensor 'scalars'"),
    (section("seeds", seeds=TWO, scalars=TWO), "'seeds' holds floats"),
    (section("seeds", seeds=IDS, scalars=TWO), "'seeds': shape is"),
    (section("seeds", seeds=INDEX, scalars=INDEX), "'scalars' holds integers"),
    (section("seeds", seeds=INDEX, scalars=TWO[:1]), r"'seeds': shape is \[2\], expected \[1\]"),
    (section("seeds", scalars=V), r"'scalars': shape is"),
    (section("seeds", seeds=INDEX, scalars=TWO, more=TWO), "only scalars, seeds may be there"),
    (section("knowledge", ids=IDS), "lacks tensor 'values'"),
    (section("knowledge", values=TWO), "'values': shape is"),
    (section("knowledge", values=IDS), "'values' holds integers"),
    (section("knowledge", values=V, more=V), "only values, ids, tail may be there"),
    (section("knowledge", values=V, tail=TWO[:1]), "'tail': shape is"),
    (section("knowledge", values=V, tail=INDEX), "'tail' holds integers"),
    (section("knowledge", values=V, ids=IDS[:, :1]), "'ids': shape is"),
    (section("knowledge", values=V, ids=V), "'ids' holds floats"),
    (section("knowledge", values=V, ids=IDS.to(torch.int64)), "ids are torch.int64, expected"),
    (section("knowledge", values=V, ids=IDS - 3), "ids must not be negative, got -3"),
    (section("knowledge", shares=V, peak=PEAK), "'shares' holds floats"),
    (section("knowledge", shares=BYTES), "lacks tensor 'peak'"),
    (
        section("knowledge", shares=BYTES, peak=PEAK, tail=TWO),
        "only shares, peak, ids may be there",
    ),
    (section("knowledge", shares=IDS, peak=PEAK), "shares are torch.int32, expected torch.uint8"),
    (section("knowledge", shares=BYTES, peak=BYTES[:, 0]), "peak are torch.uint8, expected"),
    (section("knowledge", shares=BYTES, peak=PEAK[:1]), "'peak': shape is"),
    (
        section("knowledge", shares=BYTES, peak=torch.zeros(2).to(torch.uint16)),
        "there is no share of nothing",
    ),
    (section("activations"), "lacks tensor 'values'"),
    (section("activations", values=TWO), "'values': shape is"),
    (section("activations", values=IDS), "'values' holds integers"),
    (section("activations", values=V, more=V), "only values may be there"),
    (section("activations", {"lengths": [1]}, values=V), "sums to 1, and there are 2 rows"),
    (section("activations", {"lengths": [2, 0]}, values=V), "integers of at least 1, got 0"),
    (section("activations", {"lengths": [2.0]}, values=V), "integers of at least 1, got 2.0"),
    (section("activations", {"lengths": 2}, values=V), "must be a list of integers, got 2"),
    (section("activations", {"lengths": "2"}, values=V), "must be a list of integers, got '2'"),
]


def message(section: Section) -> Message:
    return Message(kind="update", sections={"s": section})


def sent(section: Section) -> Message:
    """Return a section that was packed while its codec kept the rule from being applied."""
    return unpack(pack(encode(message(section), "raw")))


def test_every_kind_has_a_rule_and_a_golden_section() -> None:
    assert set(SECTIONS) == set(get_args(SectionKind))
    assert {s.kind for m in MADE.values() for s in m.sections.values()} == set(SECTIONS)
    assert {s.kind for s in GOOD} == {s.kind for s, _ in BAD} == set(SECTIONS)


@pytest.mark.parametrize("good", GOOD, ids=lambda s: s.kind)
def test_a_section_of_its_kind_travels(good: Section) -> None:
    check(unpack(pack(message(good))))
    assert decode(sent(good)).sections["s"].codec == ()


def received(message: Message) -> Message:
    return decode(sent(message.sections["s"]))


@pytest.mark.parametrize("step", [check, pack, received])
@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_section_that_is_not_of_its_kind_is_refused(
    step: Callable[[Message], object], bad: Section, reason: str
) -> None:
    with pytest.raises(MessageError, match=rf"section 's' \({bad.kind}\): .*{reason}"):
        step(message(bad))
