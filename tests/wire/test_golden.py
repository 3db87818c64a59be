"""Golden messages: read by hand, from the page on the wire format alone, and through `unpack`."""

import hashlib
import json
import runpy
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from triskel.codec import decode
from triskel.types import Message
from triskel.wire import pack, unpack

GOLDEN = Path(__file__).parents[1] / "golden"
MAKE = runpy.run_path(str(GOLDEN / "make.py"))
MADE: dict[str, Message] = MAKE["messages"]()


def by_hand(name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the JSON header and the raw bytes of each payload tensor."""
    data = (GOLDEN / f"v1-{name}.tsk").read_bytes()
    magic, version, size = struct.unpack("<4sIQ", data[:16])
    assert (magic, version) == (b"TRSK", 1)
    header = json.loads(zlib.decompress(data[16 : 16 + size]))
    inner = data[16 + size :]
    length = int.from_bytes(inner[:8], "little")
    spans = json.loads(inner[8 : 8 + length])
    body = inner[8 + length :]
    return header, {key: body[slice(*span["data_offsets"])] for key, span in spans.items()}


def floats(raw: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def brains(raw: bytes) -> list[float]:
    """Return bfloat16 numbers: the upper halves of float32."""
    return [struct.unpack("<f", b"\0\0" + raw[i : i + 2])[0] for i in range(0, len(raw), 2)]


def test_there_is_one_file_for_each_message_that_the_script_makes() -> None:
    assert {p.name for p in GOLDEN.glob("*.tsk")} == {f"v1-{name}.tsk" for name in MADE}


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_golden_message_is_read_as_it_was_made(name: str) -> None:
    read, made = unpack((GOLDEN / f"v1-{name}.tsk").read_bytes()), MADE[name]
    assert (read.kind, read.topic, list(read.sections)) == (made.kind, made.topic, [*made.sections])
    assert json.dumps(read.facts) == json.dumps(made.facts)
    for key, section in made.sections.items():
        got = read.sections[key]
        assert (got.kind, got.codec) == (section.kind, section.codec)
        assert json.dumps(got.facts) == json.dumps(section.facts)
        assert list(got.tensors) == list(section.tensors)
        for tensor, x in section.tensors.items():
            assert got.tensors[tensor].dtype == x.dtype
            assert torch.equal(got.tensors[tensor], x)


@pytest.mark.parametrize("name", sorted(MADE))
def test_packing_a_golden_message_again_gives_the_same_header_and_payload(name: str) -> None:
    def parts(data: bytes) -> tuple[bytes, bytes]:
        end = 16 + int.from_bytes(data[8:16], "little")
        return zlib.decompress(data[16:end]), data[end:]  # deflate differs between zlib builds

    data = (GOLDEN / f"v1-{name}.tsk").read_bytes()
    assert parts(pack(unpack(data))) == parts(pack(MADE[name])) == parts(data)


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_payload_is_a_safetensors_file_to_others(name: str) -> None:
    data = (GOLDEN / f"v1-{name}.tsk").read_bytes()
    start = 16 + int.from_bytes(data[8:16], "little")
    _, raw = by_hand(name)
    read = load(data[start:])
    assert {key: bytes(x.view(torch.uint8).tolist()) for key, x in read.items()} == raw


def test_the_header_says_what_was_packed() -> None:
    header, raw = by_hand("task-dense")
    assert header == {
        "kind": "task",
        "topic": "",
        "facts": {"round": 3, "loss": 0.5, "who": "Zoë", "last": True, "none": None, "n": [1, 2]},
        "sections": {
            "head": {
                "kind": "dense",
                "codec": [],
                "facts": {},
                "tensors": {
                    "w": ["F32", 2, 2],
                    "scalar": ["F64"],
                    "half": ["F16", 2],
                    "brain": ["BF16", 2],
                    "empty": ["F32", 0, 3],
                },
            }
        },
    }
    assert floats(raw["head/F32"]) == [1.5, -2.0, 0.25, 3.0]
    assert struct.unpack("<d", raw["head/F64"]) == (0.1,)
    assert struct.unpack("<2e", raw["head/F16"]) == (65504.0, -0.5)
    assert brains(raw["head/BF16"]) == [1.0, -3.0]


def test_low_rank_factors_lie_end_to_end() -> None:
    header, raw = by_hand("update-lowrank")
    section = header["sections"]["adapter"]
    assert section["tensors"] == {
        "q.lora_A.weight": ["F32", 1, 3],
        "q.lora_B.weight": ["F32", 2, 1],
    }
    assert (section["kind"], section["facts"]) == ("lowrank", {"scale": 2.0})
    assert floats(raw["adapter/F32"]) == [1.0, 2.0, 3.0, -1.0, 4.0]


def test_sparse_values_travel_with_indices_or_a_bit_for_each_entry() -> None:
    header, raw = by_hand("state-sparse")
    assert header["sections"]["listed"]["facts"] == {"size": 5}
    assert floats(raw["listed/F32"]) == [2.0, -8.0]
    assert struct.unpack("<2q", raw["listed/I64"]) == (1, 4)
    assert floats(raw["masked/F32"]) == [9.0, 5.0]
    assert header["sections"]["masked"]["tensors"]["mask"] == ["BOOL", 10]
    assert raw["masked/BOOL"] == bytes([0b1, 0b10])


def test_a_mask_is_bits_lowest_first() -> None:
    header, raw = by_hand("answer-mask")
    assert header["sections"]["m"]["tensors"] == {"kept": ["BOOL", 2, 3]}
    assert raw == {"m/BOOL": bytes([0b011101])}


def test_seeds_are_64_bits() -> None:
    _, raw = by_hand("evaluate-seeds")
    assert struct.unpack("<2q", raw["s/I64"]) == (7, -(2**63))
    assert floats(raw["s/F32"]) == [0.5, -0.25]


def test_knowledge_has_ids_of_16_or_32_bits() -> None:
    header, raw = by_hand("ask-knowledge")
    assert (header["kind"], header["topic"]) == ("ask", "knowledge")
    assert struct.unpack("<4H", raw["top/U16"]) == (65535, 0, 3, 49151)
    assert floats(raw["top/F32"]) == [0.75, 0.125, 0.5, 0.25, 0.125, 0.25]
    assert struct.unpack("<i", raw["wide/I32"]) == (65536,)


def test_activations_have_lengths_and_labels_any_integers() -> None:
    header, raw = by_hand("ask-activations")
    assert header["sections"]["hidden"]["facts"] == {"lengths": [2, 1]}
    assert floats(raw["hidden/F32"]) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    integers = {"I64": "<2q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}
    read = [struct.unpack(form, raw[f"labels/{dtype}"]) for dtype, form in integers.items()]
    assert read == [(2, -1), (5,), (-300,), (-128,), (255,)]


GRID = [[0.5, -127.0, 3.0], [0.0, 0.0, 0.0], [1e-3, -2e-3, 7e-3]]
FLAT = [x for row in GRID for x in row]


@pytest.mark.parametrize(
    ("codec", "dtype", "form", "error"),
    [("raw", "F32", "f", 2**-24), ("fp32", "F32", "f", 2**-24), ("fp16", "F16", "e", 2**-11)],
)
def test_a_cast_is_the_nearest_number_of_its_type(
    codec: str, dtype: str, form: str, error: float
) -> None:
    header, raw = by_hand(f"codec-{codec}")
    section = header["sections"]["grid"]
    assert section["codec"] == [codec]
    assert section["facts"] == ({} if codec == "raw" else {f"{codec}:dtype": "F32"})
    assert section["tensors"] == {"x": [dtype, 3, 3], "one": [dtype]}
    assert list(struct.unpack(f"<10{form}", raw[f"grid/{dtype}"])) == pytest.approx(
        [*FLAT, -6.0], rel=error
    )


def test_bf16_is_the_upper_half_of_float32() -> None:
    header, raw = by_hand("codec-bf16")
    assert header["sections"]["grid"]["tensors"] == {"x": ["BF16", 3, 3], "one": ["BF16"]}
    assert brains(raw["grid/BF16"]) == pytest.approx([*FLAT, -6.0], rel=2**-8)


def test_int8_is_codes_and_a_scale_for_each_row() -> None:
    header, raw = by_hand("codec-int8")
    assert header["sections"]["grid"]["facts"] == {"int8:dtype": "F32"}
    assert header["sections"]["grid"]["tensors"] == {
        "x": ["I8", 3, 3],
        "x:scale8": ["F32", 3],
        "one": ["I8"],
        "one:scale8": ["F32"],
    }
    codes, scales = struct.unpack("<10b", raw["grid/I8"]), floats(raw["grid/F32"])
    assert codes == (0, -127, 3, 0, 0, 0, 18, -36, 127, -127)
    assert scales == pytest.approx([1.0, 2.0**-126, 7e-3 / 127, 6 / 127], rel=1e-6)
    read = [codes[i] * scales[i // 3] for i in range(10)]
    for i, (x, y) in enumerate(zip([*FLAT, -6.0], read, strict=True)):
        assert abs(x - y) <= scales[i // 3] / 2 * 1.00001


def test_int4_is_two_codes_a_byte_and_a_scale_for_each_group() -> None:
    header, raw = by_hand("codec-int4")
    assert header["sections"]["grid"]["facts"] == {"int4:last": [3, -1], "int4:dtype": "F32"}
    assert header["sections"]["grid"]["tensors"] == {
        "x": ["U8", 3, 2],
        "x:scale4": ["BF16", 3, 1],
        "one": ["U8", 1],
        "one:scale4": ["BF16", 1],
    }
    scales = brains(raw["grid/BF16"])
    nibbles = [n - 8 for byte in raw["grid/U8"] for n in (byte & 15, byte >> 4)]
    assert nibbles == [0, -7, 0, 0, 0, 0, 0, 0, 1, -2, 7, 0, -7, 0]
    assert scales == pytest.approx([127 / 7, 2.0**-126, 1e-3, 6 / 7], rel=2**-7)
    for row, peak in enumerate((127.0, 0.0, 7e-3, 6.0)):
        assert scales[row] >= peak / 7
    assert abs(GRID[0][2] - nibbles[2] * scales[0]) <= scales[0] / 2


def bits(raw: bytes) -> list[int]:
    return [byte >> place & 1 for byte in raw for place in range(8)]


def places(low: list[int], high: list[int], r: int) -> list[int]:
    """Return where entries stand, from their low bits and the ones of their high bits."""
    found, quotient = list[int](), 0
    for bit in high:
        if bit:
            j = len(found)
            found.append((quotient << r) + sum(low[j * r + b] << b for b in range(r)))
        else:
            quotient += 1
    return found


def test_sign_is_a_bit_an_entry_and_a_scale_for_each_row() -> None:
    header, raw = by_hand("codec-sign")
    assert header["sections"]["grid"]["tensors"] == {
        "x": ["BOOL", 3, 3], "x:scale1": ["BF16", 3], "one": ["BOOL"], "one:scale1": ["BF16"],
    }  # fmt: skip
    signs = [*bits(raw["grid/BOOL"])[:9], bits(raw["grid/BOOL"])[16]]
    assert signs == [int(x >= 0) for x in [*FLAT, -6.0]]
    assert brains(raw["grid/BF16"]) == pytest.approx([130.5 / 3, 0, 1e-2 / 3, 6.0], rel=2**-8)


def test_topk_is_codes_and_where_they_stand() -> None:
    header, raw = by_hand("codec-topk")
    assert header["sections"]["grid"]["facts"] == {
        "topk:axes": [2, 0], "topk:shape": [3, 3], "topk:dtype": "F32",
    }  # fmt: skip
    assert struct.unpack("<2b", raw["grid/I8"]) == (-127, -127)
    assert floats(raw["grid/F32"]) == pytest.approx([1.0, 6 / 127])
    low, high, *one = (bits(raw["grid/BOOL"][i : i + 1]) for i in range(3))
    assert places(low[:3], high[:2], 3) == [1]
    assert places([], one[0][:1], 0) == [0]


def test_a_change_is_the_largest_of_its_numbers_and_what_it_is_the_change_of() -> None:
    header, raw = by_hand("update-change")
    section, (now, before) = header["sections"]["s"], MAKE["moved"]()
    sha = hashlib.sha256()
    for name, axes, x in (("a", "[20, 5]", before["a"]), ("b", "[201]", before["b"])):
        sha.update(f"{name}\nF32 {axes}\n".encode() + x.numpy().tobytes())
    assert section["codec"] == ["change", "topk"]
    assert section["facts"]["change:of"] == sha.hexdigest()
    assert (section["facts"]["topk:axes"], section["facts"]["topk:shape"]) == ([2, 1], [1, 256, 45])
    assert section["tensors"] == {
        "change": ["I8", 26], "change:scalek": ["F32", 1], "change:low": ["BOOL", 26, 3],
        "change:high": ["BOOL", 57], "rest": ["I8", 5], "rest:scalek": ["F32", 1],
        "rest:low": ["BOOL", 5, 3], "rest:high": ["BOOL", 10],
    }  # fmt: skip
    told, at = raw["s/BOOL"], 0
    strings = list[list[int]]()
    for size in (26 * 3, 57, 5 * 3, 10):
        strings.append(bits(told[at : at + (size + 7) // 8])[:size])
        at += (size + 7) // 8
    steps = [(i % 7 - 3) * i / 64 for i in range(301)]
    for part, start, string in ((steps[:256], 0, strings[:2]), (steps[256:], 26, strings[2:])):
        k = -(-len(part) // 10)
        largest = sorted(sorted(range(len(part)), key=lambda i: (-abs(part[i]), i))[:k])
        assert places(*string, 3) == largest
        codes = struct.unpack(f"<{k}b", raw["s/I8"][start : start + k])
        scale = floats(raw["s/F32"])[start // 26]
        assert [c * scale for c in codes] == pytest.approx([part[i] for i in largest], abs=scale)
    assert sum(map(float, (now["b"] - before["b"])[-2:])) == pytest.approx(steps[299] + steps[300])


@pytest.mark.parametrize("codec", ["raw", "fp32", "bf16", "fp16", "int8", "int4", "topk", "sign"])
def test_a_golden_codec_file_decodes_to_the_shape_and_type_it_had(codec: str) -> None:
    message = decode(unpack((GOLDEN / f"v1-codec-{codec}.tsk").read_bytes()))
    tensors = message.sections["grid"].tensors
    assert {n: (x.dtype, tuple(x.shape)) for n, x in tensors.items()} == {
        "x": (torch.float32, (3, 3)),
        "one": (torch.float32, ()),
    }
    assert message.sections["grid"].facts == {}
    assert message.sections["grid"].codec == ()
