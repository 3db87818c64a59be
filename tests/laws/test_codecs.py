"""The contract of every codec: names, shapes and types come back, within the error it states."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triskel.codec import decode, encode
from triskel.core.registry import CODECS
from triskel.errors import CodecError
from triskel.types import Facts, Message, Section
from triskel.wire import pack, payload_bytes, section_bytes, unpack

NAMES = CODECS.ours
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(), (1,), (7,), (32,), (33,), (2, 31), (3, 64), (2, 3, 5), (8, 576), (576, 8)]
EMPTY = [(0,), (0, 5), (5, 0), (2, 0, 3)]
TINY = 2.0**-126


def relative(bits: int) -> Callable[[Tensor], Tensor]:
    """The bound of a cast: half the last bit, or of the smallest number there is."""
    smallest = 2.0**-24 if bits == 10 else 2.0**-133
    return lambda x: (x.abs() * 2.0 ** -(bits + 1)).clamp(min=smallest / 2)


def rows(x: Tensor) -> Tensor:
    """The bound of int8: half of max|x| / 127 of the row."""
    most = x.abs().amax(-1, keepdim=True) if x.dim() else x.abs()
    return (most / 127).clamp(min=TINY).expand(x.shape) / 2


def groups(x: Tensor) -> Tensor:
    """The bound of int4: half of max|x| / 7 of each 32 in a row, rounded up to bfloat16."""
    flat = x.reshape(1) if x.dim() == 0 else x
    parts = [
        (part.abs().amax(-1, keepdim=True) / 7 * (1 + 2**-7)).clamp(min=TINY).expand(part.shape)
        for part in flat.split(32, -1)
    ]
    return torch.cat(parts, -1).reshape(x.shape) / 2


def largest(x: Tensor) -> Tensor:
    """The bound of topk: half a scale of what travels, and all of what does not."""
    if not x.numel():
        return x
    size, k = x.abs(), max(1, math.ceil(0.01 * x.numel()))
    least = size.reshape(-1).sort(descending=True).values[k - 1]
    half = (size.max() / 127).clamp(min=TINY) / 2
    return torch.where(size > least, half, size + half)


def signs(x: Tensor) -> Tensor:
    """The bound of sign: how far the magnitude is from the row's mean, rounded to bfloat16."""
    mean = x.abs().mean(-1, keepdim=True) if x.dim() else x.abs()
    return (x.abs() - mean).abs() + mean * 2.0**-8 + 2.0**-134


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": torch.zeros_like,
    "fp32": relative(23),
    "bf16": relative(7),
    "fp16": relative(10),
    "int8": rows,
    "int4": groups,
    "topk": largest,
    "sign": signs,
}


def message(facts: Facts | None = None, **tensors: Tensor) -> Message:
    section = Section(kind="dense", tensors=tensors, facts=facts or {})
    return Message(kind="update", topic="t", facts={"round": 1}, sections={"s": section})


def travel(sent: Message, codec: str) -> Message:
    return decode(unpack(pack(encode(sent, codec))))


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_every_codec_of_the_job_is_there_with_its_bound() -> None:
    assert set(NAMES) == set(BOUNDS)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
def test_names_shapes_and_types_come_back(
    codec: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sent = message({"scale": 2.0}, a=numbers(shape, dtype), b=torch.ones(2))
    read = travel(sent, codec)
    assert (read.kind, read.topic, read.facts) == (sent.kind, sent.topic, sent.facts)
    section = read.sections["s"]
    assert (section.kind, section.codec, section.facts) == ("dense", (), {"scale": 2.0})
    assert list(section.tensors) == ["a", "b"]
    for name, x in sent.sections["s"].tensors.items():
        assert (section.tensors[name].dtype, section.tensors[name].shape) == (x.dtype, x.shape)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-6, 1.0, 500.0])
def test_the_error_is_within_the_bound(codec: str, shape: tuple[int, ...], size: float) -> None:
    x = numbers(shape, torch.float32) * size
    y = travel(message(x=x), codec).sections["s"].tensors["x"]
    slack = 1 + 2**-16  # the products x / s and s * q are rounded themselves
    assert bool(((x.double() - y.double()).abs() <= BOUNDS[codec](x.double()) * slack).all())


@given(
    st.sampled_from(NAMES),
    st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=70),
    st.sampled_from(FLOATS),
)
@settings(max_examples=300)
def test_any_numbers_stay_within_the_bound(
    codec: str, values: list[float], dtype: torch.dtype
) -> None:
    x = torch.tensor(values).to(dtype)
    if not bool(torch.isfinite(x).all()):
        return
    y = travel(message(x=x), codec).sections["s"].tensors["x"]
    wide = x.double()
    own = (wide.abs() + BOUNDS[codec](wide)) * torch.finfo(dtype).eps  # rounded to dtype again
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    error = (wide - y.double()).abs()
    assert bool((error <= BOUNDS[codec](wide) * (1 + 2**-16) + own + least).all())


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_stay_zeros(codec: str, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 40, dtype=dtype)
    assert torch.equal(travel(message(x=x), codec).sections["s"].tensors["x"], x)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_numbers_of_a_type_stay_finite_or_are_refused(
    codec: str, dtype: torch.dtype
) -> None:
    x = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max, 0.0], dtype=dtype)
    try:
        y = travel(message(x=x), codec).sections["s"].tensors["x"]
    except CodecError:
        assert codec != "raw"
        assert x.double().abs().max() > (65504 if codec == "fp16" else 3.38e38)
        return
    assert bool(torch.isfinite(y).all())
    assert y[0] > 0
    assert y[1] < 0 or codec == "topk", "one entry in a hundred"


@pytest.mark.parametrize("codec", NAMES)
def test_a_round_trip_of_a_round_trip_changes_nothing_more(codec: str) -> None:
    once = travel(message(x=numbers((4, 96), torch.float32)), codec)
    twice = travel(once, codec)
    x, y = once.sections["s"].tensors["x"], twice.sections["s"].tensors["x"]
    assert bool(((x - y).abs() <= BOUNDS[codec](x) * (1 + 2**-16)).all())
    if codec in {"raw", "fp32", "bf16", "fp16"}:
        assert torch.equal(x, y)


@pytest.mark.parametrize("codec", NAMES)
def test_a_negated_tensor_decodes_to_the_negative(codec: str) -> None:
    x = numbers((5, 50), torch.float32)
    both = travel(message(x=x, y=-x), codec).sections["s"].tensors
    assert torch.equal(both["x"], -both["y"])


@pytest.mark.parametrize("codec", NAMES)
def test_a_view_travels_as_its_values(codec: str) -> None:
    x = numbers((6, 40), torch.float32)
    tensors = {"a": x.t(), "b": x.t().contiguous(), "c": x[:, ::3], "d": x[:, ::3].contiguous()}
    read = travel(message(None, **tensors), codec).sections["s"].tensors
    assert torch.equal(read["a"], read["b"])
    assert torch.equal(read["c"], read["d"])


@pytest.mark.parametrize("codec", NAMES)
def test_ids_labels_and_masks_travel_as_they_are(codec: str) -> None:
    ids = torch.tensor([[1, 2]], dtype=torch.int32)
    sections = {
        "k": Section(
            kind="knowledge",
            tensors={"values": torch.ones(1, 2), "ids": ids, "tail": torch.ones(1)},
        ),
        "y": Section(kind="labels", tensors={"y": torch.tensor([3, -1]), "z": ids.to(torch.int8)}),
        "m": Section(kind="mask", tensors={"m": torch.tensor([True, False])}),
    }
    sent = Message(kind="ask", topic="knowledge", sections=sections)
    read = travel(sent, codec)
    assert torch.equal(read.sections["k"].tensors["ids"], ids)
    assert read.sections["k"].tensors["ids"].dtype == torch.int32
    assert torch.equal(read.sections["y"].tensors["y"], torch.tensor([3, -1]))
    assert torch.equal(read.sections["y"].tensors["z"], ids.to(torch.int8))
    assert torch.equal(read.sections["m"].tensors["m"], torch.tensor([True, False]))
    coded = encode(sent, codec)
    assert {s.codec for s in coded.sections.values()} == {(codec,)}


@pytest.mark.parametrize("codec", NAMES)
def test_encoding_leaves_the_message_as_it_was(codec: str) -> None:
    x = numbers((3, 33), torch.float32).requires_grad_()
    before = x.detach().clone()
    sent = message(x=x)
    coded = encode(sent, codec)
    assert torch.equal(x.detach(), before)
    assert (sent.sections["s"].codec, sent.sections["s"].facts) == ((), {})
    assert not any(y.requires_grad for y in coded.sections["s"].tensors.values())


@pytest.mark.parametrize("codec", NAMES)
def test_the_same_tensors_give_the_same_bytes(codec: str) -> None:
    sent = message(x=numbers((3, 33), torch.float32))
    assert pack(encode(sent, codec)) == pack(encode(sent, codec))


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_does_not_get_past(codec: str, bad: float) -> None:
    x = torch.ones(3, 40)
    x[1, 7] = bad
    with pytest.raises(Exception, match="tensor 'x'") as refused:
        pack(encode(message(x=x), codec))
    assert type(refused.value).__module__ == "triskel.errors"


@pytest.mark.parametrize("codec", NAMES)
def test_a_message_is_encoded_once_with_a_codec(codec: str) -> None:
    with pytest.raises(CodecError, match=f"section 's' already carries {codec}"):
        encode(encode(message(x=torch.ones(1)), codec), codec)


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_codecs_chain_and_are_undone_in_reverse(first: str, second: str) -> None:
    if first == second or (second == "topk" and first in {"int8", "int4"}):
        return  # a scale that does not travel is none
    x = numbers((3, 40), torch.bfloat16).abs() + 1
    coded = encode(encode(message(x=x), first), second)
    assert coded.sections["s"].codec == (first, second)
    read = decode(unpack(pack(coded))).sections["s"]
    assert read.tensors["x"].dtype == torch.bfloat16
    if not {first, second} & {"topk", "sign"}:
        assert torch.allclose(read.tensors["x"], x, atol=1.2)


@pytest.mark.parametrize(
    ("codec", "smaller"),
    [
        *(("fp32", 1), ("bf16", 2), ("fp16", 2), ("int8", 3.97), ("int4", 7.1)),
        *(("sign", 31.1), ("topk", 192)),
    ],
)
def test_a_codec_saves_what_it_says(codec: str, smaller: float) -> None:
    sent = message(x=numbers((1000, 576), torch.float32))
    coded: Any = encode(sent, codec).sections["s"]
    assert payload_bytes(sent.sections["s"]) / section_bytes(coded) == pytest.approx(
        smaller, rel=0.01
    )
