"""What only one codec does, and codes that lie."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triskel.codec import decode, encode
from triskel.codec.quantise import from_int4, from_int8, to_int4, to_int8
from triskel.core.choice import Choice
from triskel.errors import CodecError, LimitError, MessageError
from triskel.types import Facts, Message, Section
from triskel.wire import pack, section_bytes, unpack

BIG = torch.finfo(torch.float32).max


def coded(codec: str, facts: Facts, tensors: Mapping[str, Tensor], *more: str) -> Message:
    """Return a message that claims a codec, as a peer may send it."""
    section = Section(kind="dense", tensors=tensors, facts=facts, codec=(codec, *more))
    return unpack(pack(Message(kind="update", sections={"s": section})))


def dense(x: Tensor) -> Message:
    return Message(kind="update", sections={"s": Section(kind="dense", tensors={"x": x})})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_narrow_float_is_the_same_after_travelling_as_fp32(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = every.view(dtype) if dtype != torch.float32 else torch.randn(2**16)
    x = x[torch.isfinite(x)]
    read = decode(unpack(pack(encode(dense(x), "fp32")))).sections["s"].tensors["x"]
    assert read.dtype == dtype
    assert torch.equal(read, x)


@pytest.mark.parametrize(
    ("codec", "x", "reason"),
    [
        ("fp16", torch.tensor([1.0, -70000.0]), "reaches 70000, and torch.float16 ends at 65504"),
        ("fp32", torch.tensor([1e300], dtype=torch.float64), "torch.float32 ends at 3.40282e"),
        ("bf16", torch.tensor([BIG]), "reaches 3.40282e.38, and torch.bfloat16 ends at 3.3895"),
        ("int8", torch.tensor([1e300], dtype=torch.float64), "not finite in float32; choose raw"),
        ("int4", torch.tensor([1.0, float("nan")]), "not finite in float32; choose raw"),
    ],
)
def test_numbers_that_a_codec_cannot_carry_are_refused(codec: str, x: Tensor, reason: str) -> None:
    with pytest.raises(CodecError, match=f"section 's': tensor 'x' .*{reason}"):
        encode(dense(x), codec)


def test_each_row_has_its_own_scale_in_int8() -> None:
    x = torch.stack((torch.linspace(-1, 1, 64), torch.linspace(-840, 840, 64)))
    y = decode(encode(dense(x), "int8")).sections["s"].tensors["x"]
    assert (x - y)[0].abs().max() <= 1 / 254
    assert (x - y)[1].abs().max() > 1 / 254


def test_each_group_of_32_has_its_own_scale_in_int4() -> None:
    x = torch.cat((torch.linspace(-1, 1, 32), torch.linspace(-840, 840, 32)))
    codes, scales = to_int4(x)
    assert (codes.shape, scales.shape) == ((32,), (2,))
    assert (from_int4(codes, scales, 64) - x)[:32].abs().max() <= (1 + 2**-7) / 14


def test_the_first_code_of_a_byte_is_in_its_low_half() -> None:
    codes, scales = to_int4(torch.tensor([7.0, -7.0, 1.0]))
    assert codes.tolist() == [15 | 1 << 4, 9 | 8 << 4]
    assert scales.tolist() == [1.0]


def test_a_scale_of_int4_is_rounded_up_so_that_no_code_is_clipped() -> None:
    peaks = torch.rand(4096, generator=torch.Generator().manual_seed(1)) + 1e-3
    _, scales = to_int4(peaks.unsqueeze(1))
    exact = peaks / 7
    assert bool((scales.float().squeeze(1) >= exact).all())
    assert bool((scales.float().squeeze(1) <= exact * (1 + 2**-7)).all())


def test_products_beyond_float32_are_its_largest_number() -> None:
    q, s = to_int8(torch.tensor([BIG, -BIG]))
    assert bool(torch.isfinite(from_int8(q, s)).all())
    assert from_int8(torch.tensor([127, -127], dtype=torch.int8), torch.tensor(BIG)).tolist() == [
        BIG,
        -BIG,
    ]
    codes = torch.tensor([15 | 1 << 4], dtype=torch.uint8)
    huge = torch.tensor([3e38], dtype=torch.bfloat16)
    assert from_int4(codes, huge, 2).tolist() == [BIG, -BIG]


def test_a_code_beyond_a_narrow_original_is_its_largest_number() -> None:
    x = torch.tensor([65504.0, -65504.0, 1.0], dtype=torch.float16)
    y = decode(encode(dense(x), "int4")).sections["s"].tensors["x"]
    assert y.tolist() == [65504.0, -65504.0, 0.0]


Q = torch.zeros(2, 4, dtype=torch.int8)
S = torch.ones(2)
C = torch.zeros(2, 2, dtype=torch.uint8)
G = torch.ones(2, 1, dtype=torch.bfloat16)
K = {
    "x": torch.zeros(3, dtype=torch.int8),
    "x:scalek": torch.ones(1),
    "x:low": torch.tensor([[False], [False], [True]]),
    "x:high": torch.tensor([True, False, True, True, False]),
}
KF = {"topk:dtype": "F32", "topk:axes": [1], "topk:shape": [6]}
SF = {"sign:dtype": "F32"}
B = torch.ones(2, 4, dtype=torch.bool)
F8, F4, L4 = {"int8:dtype": "F32"}, {"int4:dtype": "F32"}, {"int4:dtype": "F32", "int4:last": [4]}
LIES: list[tuple[str, Facts, Mapping[str, Tensor], str]] = [
    (
        "fp32",
        {"fp32:dtype": "F32"},
        {"x": S.half()},
        "'x' is torch.float16, expected torch.float32",
    ),
    ("bf16", {"bf16:dtype": "F32"}, {"x": S}, "'x' is torch.float32, expected torch.bfloat16"),
    ("fp32", {}, {"x": S}, "fact 'dtype' must name 1 dtypes, got None"),
    ("fp32", {"fp32:dtype": 3}, {"x": S}, "fact 'dtype' must name 1 dtypes, got 3"),
    ("fp32", {"fp32:dtype": ["F32"] * 2}, {"x": S}, "fact 'dtype' must name 1 dtypes, got"),
    ("fp32", {"fp32:dtype": "I64"}, {"x": S}, "fact 'dtype' must name float dtypes, got 'I64'"),
    ("fp32", {"fp32:dtype": "F8"}, {"x": S}, "fact 'dtype' must name float dtypes, got 'F8'"),
    ("fp32", {"fp32:dtype": [1]}, {"x": S}, "fact 'dtype' must name float dtypes, got 1"),
    ("raw", {"int8:dtype": "F32"}, {"x": S}, "'int8:dtype' belongs to no codec it carries"),
    ("raw", {}, {"x:scale": S}, "'x:scale' belongs to no codec it carries"),
    ("int8", F8, {"x": Q, "x:scale8": S[:1]}, r"'x' has codes \[2, 4\] and scales \[1\]"),
    ("int8", F8, {"x": Q, "x:scale8": S.double()}, "'x' has torch.int8 codes and torch.float64"),
    ("int8", F8, {"x": Q.long(), "x:scale8": S}, "'x' has torch.int64 codes and torch.float32"),
    ("int8", F8, {"x": Q, "x:scale8": S - 1}, "'x:scale8' must hold finite numbers above 0"),
    ("int8", F8, {"x": Q, "x:scale8": -S}, "'x:scale8' must hold finite numbers above 0"),
    ("int8", F8, {"x:scale8": S}, "'x:scale8' is the scale of no tensor"),
    ("int8", F8, {"x": S}, "tensor 'x' is torch.float32, expected torch.int8 codes"),
    ("int8", F8, {"x": Q}, "holds integers, expected floats"),
    ("int8", {}, {"x": Q, "x:scale8": S}, "fact 'dtype' must name 1 dtypes, got None"),
    ("int4", F4, {"x": C, "x:scale4": G}, "fact 'last' must hold 1 integers from -1, got None"),
    ("int4", {**F4, "int4:last": 4}, {"x": C, "x:scale4": G}, "'last' must hold 1 .* got 4"),
    ("int4", {**F4, "int4:last": "4"}, {"x": C, "x:scale4": G}, "'last' must hold 1 .* got '4'"),
    ("int4", {**F4, "int4:last": [4, 4]}, {"x": C, "x:scale4": G}, "'last' must hold 1 integers"),
    ("int4", {**F4, "int4:last": [-2]}, {"x": C, "x:scale4": G}, "'last' must hold 1 integers"),
    ("int4", {**F4, "int4:last": [4.0]}, {"x": C, "x:scale4": G}, "'last' must hold 1 integers"),
    ("int4", {**F4, "int4:last": [5]}, {"x": C, "x:scale4": G}, "a last axis of 5"),
    ("int4", {**F4, "int4:last": [2]}, {"x": C, "x:scale4": G}, "a last axis of 2"),
    ("int4", {**F4, "int4:last": [-1]}, {"x": C[:, :1], "x:scale4": G}, "a last axis of -1"),
    ("int4", L4, {"x": C, "x:scale4": G[0]}, r"scales \[1\] and a last axis of 4"),
    ("int4", L4, {"x": C, "x:scale4": G.expand(2, 2)}, r"scales \[2, 2\] and a last axis of 4"),
    ("int4", L4, {"x": C[0, 0], "x:scale4": G}, r"codes \[\], scales"),
    ("int4", L4, {"x": C, "x:scale4": G.float()}, "'x' has torch.uint8 codes and torch.float32"),
    ("sign", SF, {"x": B, "x:scale1": G}, r"'x' has signs \[2, 4\] and scales \[2, 1\]"),
    ("sign", SF, {"x": B, "x:scale1": S}, "'x' has torch.bool codes and torch.float32 scales"),
    ("sign", SF, {"x": B, "x:scale1": -G[:, 0]}, "'x:scale1' must hold finite numbers from 0"),
    ("sign", SF, {"x:scale1": G[:, 0]}, "'x:scale1' is the scale of no tensor"),
    ("topk", KF, {**K, "x:scalek": -S[:1]}, "'x:scalek' must hold finite numbers above 0"),
    ("topk", KF, {**K, "x:scalek": S}, r"'x' has 3 codes and scales \[2\]"),
    ("topk", KF, {n: x for n, x in K.items() if n != "x:low"}, "'x' lacks 'x:low'"),
    ("topk", KF, {n: x for n, x in K.items() if n != "x:scalek"}, "'x:low' is of no tensor"),
    ("topk", KF, {**K, "x:high": K["x:high"][:4]}, "'x' does not say where its 3 entries"),
    ("topk", KF, {**K, "x:high": ~K["x:high"]}, "'x' does not say where its 3 entries"),
    ("topk", KF, {**K, "x:low": K["x:low"].byte()}, "'x' does not say where its 3 entries"),
    ("topk", KF, {**K, "x:low": K["x:low"].expand(3, 2)}, "'x' does not say where its 3 entries"),
    ("topk", KF, {**K, "x:low": ~K["x:low"] | K["x:low"]}, "'x': indices must rise within 0-5"),
    ("topk", {**KF, "topk:shape": [5]}, K, "'x' does not say where its 3 entries"),
    ("topk", {**KF, "topk:shape": [2]}, K, r"'x' of 2 entries has codes \[3\]"),
    ("topk", {**KF, "topk:shape": [0]}, K, r"'x' of 0 entries has codes \[3\]"),
    ("topk", {**KF, "topk:axes": [2], "topk:shape": [6]}, K, "facts 'axes' and 'shape' must be"),
    ("topk", {**KF, "topk:axes": [9], "topk:shape": [1] * 9}, K, "facts 'axes' and 'shape'"),
    ("topk", {**KF, "topk:axes": []}, K, "must be the shapes of 1 tensors"),
    ("topk", {**KF, "topk:shape": [-6]}, K, "fact 'shape' must hold integers from 0"),
    ("topk", {**KF, "topk:shape": "6"}, K, "fact 'shape' must hold integers from 0, got '6'"),
    ("topk", {"topk:dtype": "F32"}, K, "fact 'axes' must hold integers from 0, got None"),
    ("topk", {**KF, "topk:shape": [2**40]}, K, "entries stand for 4398046511104 bytes"),
]


@pytest.mark.parametrize(("codec", "facts", "tensors", "reason"), LIES)
def test_codes_that_lie_are_refused(
    codec: str, facts: Facts, tensors: Mapping[str, Tensor], reason: str
) -> None:
    with pytest.raises(MessageError, match=f"section 's'.*{reason}"):
        decode(coded(codec, facts, tensors))


def test_a_codec_claimed_twice_is_refused() -> None:
    facts = {"fp32:dtype": "F32"}
    with pytest.raises(MessageError, match="section 's', codec fp32: fact 'dtype'"):
        decode(coded("fp32", facts, {"x": S}, "fp32"))


def test_an_unknown_codec_is_refused() -> None:
    sent = dense(S)
    strange = replace(sent.sections["s"], codec=("zip",))
    with pytest.raises(MessageError, match="section 's' carries the unknown codec 'zip'"):
        decode(replace(sent, sections={"s": strange}))


def test_a_decoded_section_must_be_of_its_kind() -> None:
    sent = encode(dense(S), "int8")
    forged = replace(sent.sections["s"], kind="labels")
    read = unpack(pack(replace(sent, sections={"s": forged})))
    with pytest.raises(MessageError, match=r"section 's' \(labels\): tensor 'x' holds floats"):
        decode(read)


def test_a_message_that_was_never_encoded_is_checked_and_returned() -> None:
    assert decode(dense(S)).sections["s"].tensors["x"] is not None
    wrong = Message(kind="update", sections={"s": Section(kind="labels", tensors={"x": S})})
    with pytest.raises(MessageError, match="holds floats, expected integers"):
        decode(wrong)


def test_tensors_of_several_types_keep_theirs() -> None:
    tensors = {"a": S.double(), "b": S.half(), "c": S.bfloat16(), "i": torch.tensor([1])}
    section = Section(kind="dense", tensors={n: x for n, x in tensors.items() if n != "i"})
    sent = encode(Message(kind="update", sections={"s": section}), "int8")
    assert sent.sections["s"].facts["int8:dtype"] == ["F64", "F16", "BF16"]
    read = decode(unpack(pack(sent))).sections["s"].tensors
    assert [read[n].dtype for n in "abc"] == [torch.float64, torch.float16, torch.bfloat16]


def test_few_bytes_stand_for_no_more_than_the_receiver_reads() -> None:
    sent = encode(dense(torch.ones(1000)), "topk")
    assert decode(sent, limit_bytes=4000).sections["s"].tensors["x"].count_nonzero() == 10
    with pytest.raises(LimitError, match=r"stand for 4000 bytes, the limit is 3999 \(wire.max_mb"):
        decode(sent, limit_bytes=3999)
    section = sent.sections["s"]
    twice = replace(sent, sections={"s": section, "t": section})
    with pytest.raises(LimitError, match="section 't'"):  # the limit is one of the whole message
        decode(twice, limit_bytes=7999)


@pytest.mark.parametrize(("entries", "share"), [(1, 0.01), (5, 0.25), (1000, 0.01), (4097, 0.03)])
def test_topk_takes_the_bytes_that_it_says(entries: int, share: float) -> None:
    x = torch.randn(entries, generator=torch.Generator().manual_seed(entries))
    (section,) = encode(
        dense(x), Choice.model_validate({"name": "topk", "share": share})
    ).sections.values()
    k = max(1, math.ceil(share * entries))
    r = math.floor(math.log2(entries / k))
    bits = [k * r, k + (entries - 1) // 2**r]
    groups = math.ceil(k / 256)
    assert section_bytes(section) == k + 4 * groups + sum(math.ceil(b / 8) for b in bits)
    by_hand = sorted(range(entries), key=lambda i: (-abs(float(x[i])), i))[:k]
    read = decode(replace(dense(x), sections={"s": section})).sections["s"].tensors["x"]
    assert read.nonzero().squeeze(-1).tolist() == sorted(by_hand)


def test_of_equal_entries_the_first_travel() -> None:
    x = torch.tensor([1.0, -2.0, 2.0, 2.0, 0.0, -2.0, 2.0, 0.0])
    quarter = Choice.model_validate({"name": "topk", "share": 0.25})
    read = decode(encode(dense(x), quarter)).sections["s"].tensors["x"]
    assert read.tolist() == [0.0, -2.0, 2.0, *[0.0] * 5]


def test_a_sign_is_the_nearest_vector_of_one_magnitude() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, 0.0], [8.0, 0.0]])
    read = decode(encode(dense(x), "sign")).sections["s"].tensors["x"]
    assert read.tolist() == [[2.0, -2.0], [0.0, 0.0], [4.0, 4.0]]
