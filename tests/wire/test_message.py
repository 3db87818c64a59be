"""A message survives its bytes, and whatever does not fit is refused by name."""

import math
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triskel.codec import decode, encode
from triskel.errors import LimitError, MessageError
from triskel.types import Fact, Message, MessageKind, Section
from triskel.wire import (
    DTYPES,
    LIMIT_BYTES,
    expect,
    fact,
    pack,
    payload_bytes,
    section_bytes,
    unpack,
)

MADE: dict[str, Message] = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make.py"))[
    "messages"
]()
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
LISTS = (
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
    | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=4)
)
FACTS = st.dictionaries(NAMES, SCALARS | LISTS, max_size=4)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
FLOATS = [d for d in DTYPES.values() if d.is_floating_point]
INTEGERS = [d for d in DTYPES.values() if not d.is_floating_point and d != torch.bool]


@st.composite
def tensors_of(draw: st.DrawFn, dtypes: list[torch.dtype]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        shape, dtype = draw(SHAPES), draw(st.sampled_from(dtypes))
        seed = draw(st.integers(0, 2**32))
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
        found[name] = numbers > 0 if dtype == torch.bool else numbers.to(dtype)
    return found


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of a message; beartype, when it checks one, must not draw in here."""
    kinds = {"dense": FLOATS, "labels": INTEGERS, "mask": [torch.bool]}
    sections: dict[str, dict[str, Any]] = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=3)):
        kind = draw(st.sampled_from(sorted(kinds)))
        tensors = draw(tensors_of(kinds[kind]))
        sections[name] = {"kind": kind, "tensors": tensors, "facts": draw(FACTS)}
    kind = draw(st.sampled_from(get_args(MessageKind)))
    topic = draw(NAMES | st.just(""))
    return {"kind": kind, "topic": topic, "sections": sections, "facts": draw(FACTS)}


def listed(facts: Mapping[str, Fact]) -> dict[str, object]:
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in facts.items()}


def assert_same(got: Message, wanted: Message) -> None:
    assert (got.kind, got.topic, dict(got.facts)) == (
        wanted.kind,
        wanted.topic,
        listed(wanted.facts),
    )
    assert list(got.sections) == list(wanted.sections)
    for name, section in wanted.sections.items():
        read = got.sections[name]
        assert (read.kind, read.codec, dict(read.facts)) == (
            section.kind,
            section.codec,
            listed(section.facts),
        )
        assert list(read.tensors) == list(section.tensors)
        for key, x in section.tensors.items():
            y = read.tensors[key]
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            assert torch.equal(x, y)


def dense(**tensors: Tensor) -> Message:
    return Message(kind="update", sections={"s": Section(kind="dense", tensors=tensors)})


# --- Round trip -------------------------------------------------------------------------------


@given(parts())
@settings(max_examples=150)
def test_a_message_is_the_same_after_its_bytes(drawn: dict[str, Any]) -> None:
    sections = {name: Section(**each) for name, each in drawn["sections"].items()}
    message = replace(
        Message(kind=drawn["kind"], topic=drawn["topic"], facts=drawn["facts"]), sections=sections
    )
    assert_same(unpack(pack(message)), message)


def test_bytes_and_bytearray_read_the_same() -> None:
    data = pack(dense(w=torch.ones(3)))
    assert_same(unpack(bytearray(data)), unpack(data))


def test_facts_keep_their_types() -> None:
    facts: dict[str, Fact] = {"a": 1, "b": 1.0, "c": True, "d": None, "e": "1", "f": (1.0, 2.5)}
    read = unpack(pack(Message(kind="task", facts=facts))).facts
    assert read == facts
    assert [type(x) for x in read.values()] == [type(x) for x in facts.values()]


def test_what_is_read_owns_its_memory() -> None:
    sent = torch.ones(4)
    bits = torch.tensor([True, False])
    message = Message(
        kind="update",
        sections={
            "s": Section(kind="dense", tensors={"a": sent, "b": sent[1:3]}),
            "m": Section(kind="mask", tensors={"bits": bits}),
        },
    )
    data = bytearray(pack(message))
    first, second = unpack(data), unpack(data)
    data[:] = bytes(len(data))
    sent.zero_()
    read = {**first.sections["s"].tensors, **first.sections["m"].tensors}
    assert torch.equal(read["a"], torch.ones(4))
    assert torch.equal(read["b"], torch.ones(2))
    assert torch.equal(read["bits"], torch.tensor([True, False]))
    read["a"].fill_(7)
    assert torch.equal(read["b"], torch.ones(2)), "tensors may lie side by side, never over another"
    read["bits"].fill_(True)  # noqa: FBT003  the value, not a flag
    assert torch.equal(second.sections["s"].tensors["a"], torch.ones(4))
    assert second.sections["m"].tensors["bits"].tolist() == [True, False]


def test_views_and_tensors_under_gradient_travel_as_their_values() -> None:
    base = torch.arange(6.0).reshape(2, 3).requires_grad_()
    read = unpack(pack(dense(t=base.t(), every=base[:, ::2]))).sections["s"].tensors
    assert read["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read["every"].tolist() == [[0, 2], [3, 5]]
    assert not read["t"].requires_grad


def test_finite_numbers_that_sum_to_infinity_may_travel() -> None:
    big = torch.full((4,), 3e38)
    half = torch.full((9,), 65504.0, dtype=torch.float16)
    assert torch.equal(unpack(pack(dense(b=big, h=half))).sections["s"].tensors["b"], big)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_that_is_none_is_refused_before_it_travels(bad: float, dtype: torch.dtype) -> None:
    x = torch.zeros(40, dtype=dtype)
    x[17] = bad
    with pytest.raises(MessageError, match="section 's', tensor 'w' holds NaN or infinity"):
        pack(dense(w=x))


def test_opposite_infinities_do_not_cancel() -> None:
    with pytest.raises(MessageError, match="NaN or infinity"):
        pack(dense(w=torch.tensor([math.inf, -math.inf, 1.0])))


# --- Size -------------------------------------------------------------------------------------


def adapter(rank: int) -> Message:
    tensors: dict[str, Tensor] = {}
    for block in range(30):
        for name, out in (("q_proj", 576), ("v_proj", 192)):
            place = f"base_model.model.model.layers.{block}.self_attn.{name}.lora_"
            tensors[f"{place}A.default.weight"] = torch.randn(rank, 576)
            tensors[f"{place}B.default.weight"] = torch.randn(out, rank)
    section = Section(kind="lowrank", tensors=tensors, facts={"scale": 2.0})
    facts: dict[str, Fact] = {"round": 3, "examples": 400, "loss": 0.612}
    return Message(kind="update", sections={"adapter": section}, facts=facts)


@pytest.mark.parametrize(("rank", "payload"), [(1, 230_400), (8, 1_843_200)])
def test_a_message_in_fp32_adds_at_most_one_percent(rank: int, payload: int) -> None:
    message = adapter(rank)
    assert payload_bytes(message.sections["adapter"]) == payload
    size = len(pack(encode(message, "fp32")))
    assert payload < size <= 1.01 * payload
    assert len(message.sections["adapter"].tensors) == 120


def test_two_hundred_and_forty_tensors_with_long_names_add_one_percent_of_100_kb() -> None:
    tensors = {f"model.layers.{i}.self_attn.some_projection.weight.part": torch.randn(105)
               for i in range(240)}  # fmt: skip
    message = encode(dense(**tensors), "fp32")
    assert len(pack(message)) <= 1.02 * 100_800


def test_payload_counts_what_the_mode_wants_to_send() -> None:
    counted = {
        "task-dense": 4 * (4 + 1 + 2 + 2 + 0),
        "update-lowrank": 4 * 5,
        "answer-mask": 1,
        "evaluate-seeds": 2 * 8 + 2 * 4,
    }
    for name, bytes_ in counted.items():
        (section,) = MADE[name].sections.values()
        assert payload_bytes(section) == bytes_
    top, wide = MADE["ask-knowledge"].sections.values()
    assert (payload_bytes(top), payload_bytes(wide)) == (4 * 4 + 4 * 2 + 2 * 4, 4 + 4)
    hidden, labels = MADE["ask-activations"].sections.values()
    assert (payload_bytes(hidden), payload_bytes(labels)) == (6 * 4, 6 * 4)
    listed_, masked = MADE["state-sparse"].sections.values()
    assert (payload_bytes(listed_), payload_bytes(masked)) == (2 * 4 + 2 * 8, 2 * 4 + 2)


def test_bytes_on_the_wire_are_those_of_the_tensors_as_they_are() -> None:
    (section,) = MADE["task-dense"].sections.values()
    assert section_bytes(section) == 4 * 4 + 8 + 2 * 2 + 2 * 2
    (mask,) = MADE["answer-mask"].sections.values()
    assert section_bytes(mask) == 1
    (coded,) = encode(dense(w=torch.ones(2, 10)), "int8").sections.values()
    assert section_bytes(coded) == 20 + 2 * 4


def test_payload_of_an_encoded_section_is_not_guessed() -> None:
    (section,) = encode(dense(w=torch.ones(3)), "int8").sections.values()
    with pytest.raises(MessageError, match="carries int8; count it before"):
        payload_bytes(section)


# --- What the receiver waits for --------------------------------------------------------------

UPDATE = Message(
    kind="update",
    sections={
        "adapter": Section(kind="dense", tensors={"w": torch.zeros(2, 3), "b": torch.zeros(3)}),
        "labels": Section(kind="labels", tensors={"y": torch.zeros(4, dtype=torch.int64)}),
    },
)
WANTED: dict[str, Any] = {
    "adapter": {"w": torch.ones(2, 3), "b": (3,)},
    "labels": {"y": (-1,)},
}


def test_the_message_waited_for_passes() -> None:
    expect(UPDATE, kind="update", sections=WANTED)
    expect(UPDATE, kind="update", sections=WANTED, kinds={"adapter": "dense", "labels": "labels"})
    expect(Message(kind="ask", topic="forward"), kind="ask", topic="forward", sections={})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "ask"}, "message is 'update' about '', expected 'ask' about ''"),
        ({"topic": "forward"}, "message is 'update' about '', expected 'update' about 'forward'"),
        ({"sections": {**WANTED, "head": {}}}, "message lacks section 'head'"),
        (
            {"sections": {"adapter": WANTED["adapter"]}},
            "message has section 'labels', which nobody asked for",
        ),
        (
            {"sections": {**WANTED, "adapter": {"w": (2, 3), "c": (3,)}}},
            "section 'adapter' lacks tensor 'c', it has 'b' instead",
        ),
        (
            {"sections": {**WANTED, "adapter": {"w": (2, 3)}}},
            "section 'adapter' has tensor 'b', which nobody asked for",
        ),
        (
            {"sections": {**WANTED, "adapter": {"w": (3, 2), "b": (3,)}}},
            r"section 'adapter', tensor 'w': shape is \[2, 3\], expected \[3, 2\]",
        ),
        (
            {"sections": {**WANTED, "adapter": {"w": (-1, -1, -1), "b": (3,)}}},
            r"shape is \[2, 3\], expected \[-1, -1, -1\]",
        ),
        (
            {"sections": {**WANTED, "labels": {"y": torch.zeros(4)}}},
            "tensor 'y': holds int64, expected float32",
        ),
        (
            {"sections": {**WANTED, "labels": {"y": torch.zeros(4) > 0}}},
            "tensor 'y': holds int64, expected bool",
        ),
        (
            {"kinds": {"adapter": "activations"}},
            "section 'adapter' is of kind 'dense', expected 'activations'",
        ),
    ],
)
def test_another_message_is_refused_by_its_first_difference(
    change: dict[str, Any], reason: str
) -> None:
    wanted: dict[str, Any] = {"kind": "update", "sections": WANTED, **change}
    with pytest.raises(MessageError, match=reason):
        expect(UPDATE, **wanted)


def test_a_fact_is_read_with_its_type() -> None:
    facts: dict[str, Fact] = {"n": 3, "loss": 0.5, "ok": True, "who": "ann"}
    assert fact(facts, "n", int) == 3
    assert fact(facts, "loss", float) == 0.5
    assert isinstance(fact(facts, "n", float), float)
    assert fact(facts, "ok", bool) is True
    assert fact(facts, "who", str) == "ann"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("gone", int, "fact 'gone' is missing; the peer must send a int"),
        ("loss", int, "fact 'loss' must be a int, got 0.5"),
        ("ok", int, "fact 'ok' must be a int, got True"),
        ("ok", float, "fact 'ok' must be a float, got True"),
        ("n", str, "fact 'n' must be a str, got 3"),
    ],
)
def test_a_fact_of_another_type_is_refused(name: str, kind: type[Any], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        fact({"n": 3, "loss": 0.5, "ok": True}, name, kind)


# --- What the sender may not send -------------------------------------------------------------


def facts(**values: object) -> Message:
    there: dict[str, Any] = {}
    message = Message(kind="task", facts=there)
    there.update(values)  # past the types, as an untyped caller would
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (facts(x=math.nan), "'x' of facts must be a finite number"),
        (facts(x=math.inf), "'x' of facts must be a finite number"),
        (facts(x=2**63), "within 64 bits"),
        (facts(x=-(2**63) - 1), "within 64 bits"),
        (facts(x="\ud800"), "has half a character"),
        (facts(x="a" * 4097), "text of up to 4096 characters"),
        (facts(x=[1, "a"]), "must be a list of numbers or of text"),
        (facts(x=[True]), "must be a list of numbers or of text"),
        (facts(x=[[1]]), "a flat list"),
        (facts(x={"y": 1}), "a flat list"),
        (facts(x=b"raw"), "a flat list"),
        (Message(kind="task", facts={"a b": 1}), "name in facts must be letters, digits"),
        (Message(kind="task", facts={"int8:dtype": 1}), "name in facts must be letters"),
        (Message(kind="task", facts={"a" * 65: 1}), "name in facts must be letters"),
        (Message(kind="task", facts={str(i): i for i in range(257)}), "facts are 257, the limit"),
        (facts(x=[0] * 300_000), "about 30000[0-9] values"),
        (Message(kind="task", topic="a/b"), "topic must be letters, digits"),
        (Message(kind="task", sections={"a/b": Section(kind="dense", tensors={})}), "in sections"),
        (dense(**{"w:scale": torch.ones(1)}), "name in tensors of section 's' must be letters"),
        (dense(**{"w" * 257: torch.ones(1)}), "name in tensors of section 's' must be letters"),
        (dense(w=torch.ones(1, dtype=torch.complex64)), "dtype of tensor 'w' of section 's' must"),
        (dense(w=torch.ones(1, device="meta")), "on meta; send a plain tensor on the CPU"),
        (dense(w=torch.ones(2, 2).to_sparse()), "torch.sparse_coo on cpu; send a plain tensor"),
        (dense(w=torch.ones([1] * 9)), "has 10 entries, the limit is 9"),
        (dense(w=torch.ones(0, 2**40, 2)), "the limit is 1099511627776 entries"),
        (
            Message(
                kind="task",
                sections={str(i): Section(kind="dense", tensors={}) for i in range(257)},
            ),
            "sections are 257, the limit is 256",
        ),
    ],
)
def test_what_a_peer_would_refuse_is_refused_before_it_travels(
    message: Message, reason: str
) -> None:
    with pytest.raises(MessageError, match=reason):
        pack(message)


def test_the_largest_of_everything_still_travels() -> None:
    edge = Message(
        kind="task",
        topic="t" * 64,
        facts={
            **{str(i): i for i in range(250)},
            "n" * 64: "a" * 4096,
            "high": 2**63 - 1,
            "low": -(2**63),
            "empty": (),
        },
        sections={
            "s" * 64: Section(
                kind="dense", tensors={"w" * 256: torch.ones([1] * 8), "z": torch.ones(0, 2**40)}
            ),
            "m": Section(
                kind="mask", tensors={"none": torch.ones(0) > 0, "one": torch.tensor(0) > 0}
            ),
        },
    )
    assert_same(unpack(pack(edge)), edge)


def test_a_message_beyond_the_limit_is_refused_by_size() -> None:
    assert LIMIT_BYTES == 256_000_000
    data = pack(dense(w=torch.zeros(100)))
    assert_same(unpack(data, limit_bytes=len(data)), unpack(data))
    with pytest.raises(LimitError, match=f"{len(data)} bytes, the limit is {len(data) - 1}"):
        unpack(data, limit_bytes=len(data) - 1)


def test_a_section_may_be_encoded_when_it_is_packed() -> None:
    coded = encode(replace(UPDATE, facts={"round": 1}), "int8")
    assert_same(unpack(pack(coded)), coded)
    assert_same(decode(unpack(pack(coded))), replace(UPDATE, facts={"round": 1}))
