"""A section as its change: what travels, what its receiver makes of it, and changes that lie."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triskel.codec import decode, encode, travelling
from triskel.codec.change import (
    OF,
    OtherReferenceError,
    change,
    difference,
    digest,
    numbers_of,
    restored,
)
from triskel.config.wire import Wire
from triskel.errors import MessageError
from triskel.types import Message, Section
from triskel.wire import pack, payload_bytes, unpack


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"q.lora_A": (4, 100), "q.lora_B": (60, 4), "one": ()}
    return {n: torch.randn(s, generator=stream).to(dtype) for n, s in shapes.items()}


HELD = drawn(1)


def section(tensors: Mapping[str, Tensor]) -> Section:
    return Section(kind="dense", tensors=tensors, facts={"scale": 2.0})


def sent(of: Section, wire: Wire, held: Mapping[str, Tensor] = HELD) -> Section:
    """Return a section after it travelled as its change."""
    told = change(of, held, difference(of.tensors, held))
    message = travelling(Message(kind="update", sections={"s": told}), wire, "up")
    return decode(unpack(pack(message)), changes=True).sections["s"]


def whole(found: Section, held: Mapping[str, Tensor] = HELD) -> Section:
    return restored("s", found, held, numbers_of("s", found, held))


def test_the_reference_is_known_by_names_types_shapes_and_bytes() -> None:
    by_hand = hashlib.sha256()
    for name, words, x in (("a", "F32 [2]", HELD["one"].repeat(2)), ("b", "F32 []", HELD["one"])):
        by_hand.update(f"{name}\n{words}\n".encode() + x.numpy().tobytes())
    tensors = {"a": HELD["one"].repeat(2), "b": HELD["one"]}
    assert digest(tensors) == by_hand.hexdigest()
    others = [
        {"b": tensors["b"], "a": tensors["a"]},
        {**tensors, "b": tensors["b"].reshape(1)},
        {**tensors, "b": tensors["b"] + 1},
        {**tensors, "b": tensors["b"].to(torch.bfloat16)},
    ]
    assert len({digest(one) for one in [tensors, *others]}) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_change_comes_back_with_names_shapes_types_and_facts(dtype: torch.dtype) -> None:
    held, new = drawn(1, dtype), drawn(2, dtype)
    found = sent(section(new), Wire.model_validate({"up": {"name": "int8", "change": True}}), held)
    read = whole(found, held)
    assert (read.kind, read.codec, read.facts) == ("dense", (), {"scale": 2.0})
    assert list(read.tensors) == list(new)
    for name, x in new.items():
        assert (read.tensors[name].dtype, read.tensors[name].shape) == (dtype, x.shape)
        step = float((x.double() - held[name].double()).abs().max()) / 127
        off = (read.tensors[name].double() - x.double()).abs().max()
        assert off <= 5 * step / 2 + 4 * torch.finfo(dtype).eps


def test_what_travels_is_rows_of_256_numbers_and_no_names() -> None:
    found = change(section(HELD), HELD, torch.arange(641.0))
    assert {n: tuple(x.shape) for n, x in found.tensors.items()} == {
        "change": (2, 256), "rest": (129,),
    }  # fmt: skip
    assert torch.cat([x.reshape(-1) for x in found.tensors.values()]).equal(torch.arange(641.0))
    assert found.facts == {"scale": 2.0, "change:of": digest(HELD)}
    assert payload_bytes(found) == payload_bytes(section(HELD)) == 4 * 641


def test_where_nothing_changed_nothing_travels() -> None:
    found = sent(section(HELD), Wire.model_validate({"up": "topk"}))
    assert not found.tensors
    assert all(torch.equal(x, HELD[n]) for n, x in whole(found).tensors.items())


def test_both_sides_hold_the_same_bits_whatever_was_lost() -> None:
    ours, theirs = dict(HELD), dict(HELD)
    for seed in range(2, 6):
        new = section(drawn(seed))
        told = change(new, ours, difference(new.tensors, ours))
        coded = encode(Message(kind="task", sections={"s": told}), "sign")
        here = decode(coded, changes=True).sections["s"]
        there = decode(unpack(pack(coded)), changes=True).sections["s"]
        ours, theirs = dict(whole(here, ours).tensors), dict(whole(there, theirs).tensors)
        assert digest(ours) == digest(theirs)


def test_what_is_no_change_travels_whole_under_a_codec_of_changes() -> None:
    message = Message(kind="update", sections={"s": section(HELD)})
    for told in ("topk", "sign", {"name": "int4", "change": True}):
        coded = travelling(message, Wire.model_validate({"up": told}), "up").sections["s"]
        assert coded.codec == ("raw",)
    by_section = Wire.model_validate({"up": {"t": "topk", "other": "bf16"}})
    assert travelling(message, by_section, "up").sections["s"].codec == ("bf16",)


def lying(**changes: object) -> Section:
    told = change(section(HELD), HELD, torch.ones(641))
    return replace(told, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lie", "kind", "reason"),
    [
        (lying(facts={OF: "0" * 64}), OtherReferenceError, "is the change of '0000"),
        (lying(facts={}), OtherReferenceError, "is the change of None"),
        (lying(facts={OF: 3}), OtherReferenceError, "is the change of 3"),
        (lying(tensors={"change": torch.ones(2, 256)}), MessageError, "641 numbers"),
        (lying(tensors={"change": torch.ones(512), "rest": torch.ones(129)}), MessageError, "641"),
        (
            lying(tensors={"change": torch.ones(2, 256), "rest": torch.ones(130)}),
            MessageError,
            "expected .* for a change of 641 numbers",
        ),
        (
            lying(tensors={"change": torch.ones(2, 256).double(), "rest": torch.ones(129)}),
            MessageError,
            "in torch.float32",
        ),
        (lying(tensors={"q.lora_A": torch.ones(4, 100)}), MessageError, "641 numbers"),
    ],
)
def test_changes_that_lie_are_refused(lie: Section, kind: type[MessageError], reason: str) -> None:
    with pytest.raises(kind, match=f"section 's' .*{reason}"):
        whole(lie)


def test_a_sum_that_is_not_finite_is_refused() -> None:
    huge = {"x": torch.full((3,), 3e38)}
    told = change(section(huge), huge, torch.full((3,), 3e38))
    with pytest.raises(MessageError, match="section 's', tensor 'x' is not finite once it changes"):
        whole(told, huge)


@pytest.mark.parametrize(
    ("codec", "facts", "reason"),
    [
        (("int4", "change"), {}, "carries the unknown codec 'change'"),
        (("change",), {"int4:last": 3}, "'int4:last' belongs to no codec it carries"),
    ],
)
def test_only_the_innermost_codec_is_a_change(
    codec: tuple[str, ...], facts: dict[str, int], reason: str
) -> None:
    message = Message(kind="update", sections={"s": lying(codec=codec, facts=facts)})
    with pytest.raises(MessageError, match=reason):
        decode(unpack(pack(message)), changes=True)


def test_a_change_is_refused_where_none_was_agreed() -> None:
    message = Message(kind="update", sections={"s": lying()})
    with pytest.raises(MessageError, match="'s' is a change, and this job sends none that way"):
        decode(unpack(pack(message)))
