"""Bytes that lie are refused by name, in little memory, and never by another error."""

import json
import random
import runpy
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triskel.codec import decode
from triskel.errors import LimitError, MessageError
from triskel.numerics.rng import derive
from triskel.types import Message
from triskel.wire import pack, unpack

GOLDEN = Path(__file__).parents[1] / "golden"
cases = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "cases.py"))["cases"]
patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]
MADE: dict[str, Message] = runpy.run_path(str(GOLDEN / "make.py"))["messages"]()
Json = Any
PACKED = [pack(message) for message in MADE.values()]
DENSE = pack(MADE["task-dense"])
MASK = pack(MADE["answer-mask"])
INT8 = pack(MADE["codec-int8"])


def split(data: bytes) -> tuple[Any, bytes]:
    """Return the JSON header and the payload."""
    end = 16 + int.from_bytes(data[8:16], "little")
    return json.loads(zlib.decompress(data[16:end])), data[end:]


def join(header: object, payload: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    deflated = zlib.compress(text, 1)
    return struct.pack("<4sIQ", b"TRSK", 1, len(deflated)) + deflated + payload


def changed(data: bytes, change: Callable[[Any], object]) -> bytes:
    """Return the message with its JSON header changed in place."""
    header, payload = split(data)
    change(header)
    return join(header, payload)


def put(*path: str, value: object) -> Callable[[Any], object]:
    def change(header: Json) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


HEAD = ("sections", "head")
W = (*HEAD, "tensors", "w")
KEPT = ("sections", "m", "tensors", "kept")

HEADERS: list[tuple[Callable[[Any], object], str]] = [
    (put("kind", value="gossip"), "kind must be one of task, ask, .*, got 'gossip'"),
    (put("kind", value=None), "kind must be one of .*, got None"),
    (put("kind", value=["task"]), r"kind must be one of .*, got \['task'\]"),
    (put("topic", value=3), "topic must be letters, .*, got 3"),
    (put("topic", value="a\n"), r"topic must be letters, .*, got 'a\\n'"),
    (
        put("extra", value=3),
        "header must have the fields kind, topic, facts, sections, got",
    ),
    (lambda h: h.pop("facts"), "header must have the fields"),
    (put("facts", value=[]), r"facts must be an object, got \[\]"),
    (put("facts", value={"x": {}}), "'x' of facts must be a finite number"),
    (put("facts", value={"x": [[]]}), "'x' of facts must be a finite number"),
    (put("facts", value={"x": 2**63}), "within 64 bits"),
    (put("facts", value={"x": [1, "1"]}), "'x' of facts must be a list of numbers or of text"),
    (put("facts", value={"x": "\udfff"}), "'x' of facts has half a character"),
    (put("facts", value={"": 1}), "name in facts must be letters, .*, got ''"),
    (put("facts", value={"raw:x": 1}), "name in facts must be letters"),
    (put("sections", value=[]), "sections must be an object"),
    (put("sections", value={"a/b": {}}), "name in sections must be letters"),
    (put(*HEAD, value=None), "section 'head' must be an object, got None"),
    (put(*HEAD, "kind", value="weights"), "kind of section 'head' must be one of dense, "),
    (put(*HEAD, "kind", value="labels"), r"section 'head' \(labels\): tensor 'w' holds floats"),
    (put(*HEAD, "codec", value="raw"), "codec of section 'head' must be a list, got 'raw'"),
    (put(*HEAD, "codec", value=["zip"]), "codec of section 'head' must be one of raw, .* 'zip'"),
    (put(*HEAD, "codec", value=[["raw"]]), "codec of section 'head' must be one of raw, "),
    (put(*HEAD, "codec", value=["raw"] * 5), "codec of section 'head' has 5 entries, the limit"),
    (put(*HEAD, "facts", value={"raw:x": 1}), "name in facts of section 'head' must be letters"),
    (put(*HEAD, "more", value=1), "section 'head' must have the fields"),
    (put(*HEAD, "tensors", value=3), "tensors of section 'head' must be an object, got 3"),
    (put(*HEAD, "tensors", value={"../w": ["F32"]}), "name in tensors of section 'head' must be"),
    (put(*HEAD, "tensors", value={"w:scale": ["F32"]}), "name in tensors of section 'head'"),
    (put(*W, value=None), "tensor 'w' of section 'head' must be a list, got None"),
    (put(*W, value=[]), "dtype of tensor 'w' of section 'head' must be one of F64, .* got None"),
    (put(*W, value=[["F32"]]), "dtype of tensor 'w' of section 'head' must be one of"),
    (put(*W, value=["C64", 2, 2]), "dtype of tensor 'w' of section 'head' must be .* got 'C64'"),
    (put(*W, value=["F8_E4M3", 2, 2]), "dtype of tensor 'w'"),
    (put(*W, value=["F32", -2, -2]), "shape of tensor 'w' .* integers from 0, got -2"),
    (put(*W, value=["F32", 2.0, 2]), "shape of tensor 'w' .* integers from 0, got 2.0"),
    (put(*W, value=["F32", True, 4]), "shape of tensor 'w' .* integers from 0, got True"),
    (put(*W, value=["F32", "4"]), "shape of tensor 'w' .* integers from 0, got '4'"),
    (put(*W, value=["F32", *[1] * 9]), "tensor 'w' of section 'head' has 10 entries, the limit"),
    (put(*W, value=["F32", 2**40, 2]), "shape of tensor 'w' .* the limit is 1099511627776"),
    (put(*W, value=["F32", 2**62, 2**62]), "shape of tensor 'w' .* the limit is 1099511627776"),
    (put(*W, value=["F32", 0, 2**62]), "shape of tensor 'w' .* the limit is 1099511627776"),
    (put(*W, value=["F32", 2, 3]), "payload has .* bytes, and the table claims"),
    (put(*W, value=["F32", 2**40]), "payload has .* bytes, and the table claims"),
    (put(*W, value=["F64", 2]), "at byte .*, and the table implies"),
    (put(*W, value=["I32", 4]), "payload has .* bytes, and the table claims"),
]


@pytest.mark.parametrize(("change", "reason"), HEADERS)
def test_a_header_that_lies_is_refused_with_its_reason(
    change: Callable[[Any], object], reason: str
) -> None:
    with pytest.raises(MessageError, match=reason):
        unpack(changed(DENSE, change))


def again(text: bytes) -> bytes:
    """Return the dense message with the text of its header replaced."""
    return join(text, split(DENSE)[1])


TEXT = json.dumps(split(DENSE)[0]).encode()
TEXTS = [
    (b"", "header is not JSON that can be read"),
    (b"[]", r"header must be an object, got \[\]"),
    (b"nul", "header is not JSON that can be read"),
    (TEXT[:-1], "header is not JSON that can be read"),
    (TEXT + b"}", "header is not JSON that can be read: Extra data"),
    (TEXT.replace(b"0.5", b"NaN"), "header has the constant NaN, which is not JSON"),
    (TEXT.replace(b"0.5", b"-Infinity"), "header has the constant -Infinity"),
    (TEXT.replace(b"0.5", b"1e999"), "'loss' of facts must be a finite number .* got inf"),
    (TEXT.replace(b'"kind"', b'"kind": "ask", "kind"', 1), "header has the key 'kind' twice"),
    (TEXT.replace(b'"half"', b'"w"'), "header has the key 'w' twice"),
    (TEXT.replace(b"Zo", "Zö".encode()), "header has bytes above 127"),
    (TEXT.replace(b"Zo", b"\xff"), "header has bytes above 127"),
    (b"[" * 100_000, "header is not JSON that can be read: .*recursion"),
    (b'{"a":' * 100_000, "header is not JSON that can be read: .*recursion"),
    (b"1" * 5000, "header is not JSON that can be read: Exceeds the limit"),
    (b"[" + b"0," * 300_000 + b"0]", "header has 600003 bytes and about 300001 values"),
    (b"[" * 300_000, "header has 300000 bytes and about 300000 values"),
    (b"{" * 300_000, "header has 300000 bytes and about 300000 values"),
    (b" " * (4 << 20) + b"{}", "header has 419430[0-9] bytes"),
]


@pytest.mark.parametrize(("text", "reason"), TEXTS)
def test_a_header_that_is_not_plain_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        unpack(again(text))


def prefixed(version: int = 1, size: int | None = None, magic: bytes = b"TRSK") -> bytes:
    own = int.from_bytes(DENSE[8:16], "little")
    return struct.pack("<4sIQ", magic, version, own if size is None else size) + DENSE[16:]


def inner(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the mask message with the header of its payload changed, of the same length."""
    header, payload = split(MASK)
    size = int.from_bytes(payload[:8], "little")
    spans = json.loads(payload[8 : 8 + size])
    change(spans)
    text = json.dumps(spans, separators=(",", ":")).encode().ljust(size)
    return join(header, payload[:8] + text + payload[8 + size :])


DEFLATED = int.from_bytes(DENSE[8:16], "little")
BYTES = [
    (b"", "a message has at least 16 bytes, this one has 0"),
    (DENSE[:15], "a message has at least 16 bytes, this one has 15"),
    (prefixed(magic=b"PK\3\4"), r"a message starts with b'TRSK', this one with b'PK\\x03\\x04'"),
    (prefixed(version=2), "wire version 2, this side reads 1; run the same release"),
    (prefixed(version=0), "wire version 0"),
    (prefixed(size=2**64 - 1), "header claims 18446744073709551615 bytes, the limit is 4194304"),
    (prefixed(size=(4 << 20) + 1), "header claims 4194305 bytes, the limit is 4194304"),
    (prefixed(size=4 << 20), r"header claims 4194304 bytes, and \d+ follow the prefix"),
    (prefixed(size=len(DENSE) - 15), "follow the prefix"),
    (prefixed(size=DEFLATED - 1), "header is not one deflated stream"),
    (prefixed(size=DEFLATED + 1), "header is not one deflated stream"),
    (prefixed(size=0), "header is not one deflated stream"),
    (DENSE[:16] + b"\0" + DENSE[17:], "header cannot be inflated"),
    (DENSE[:-1], r"payload has \d+ bytes, and the table claims"),
    (DENSE + b"\0", r"payload has \d+ bytes, and the table claims"),
    (DENSE[: 16 + DEFLATED], "payload has 0 bytes, and the table claims"),
    (
        inner(lambda s: s["m/BOOL"].update(dtype="I8")),
        r"payload header has b'I8.*' at byte 28, and",
    ),
    (inner(lambda s: s["m/BOOL"].update(shape=[2])), "at byte .*, and the table implies"),
    (inner(lambda s: s["m/BOOL"].update(data_offsets=[0, 9])), "at byte .*, and the table implies"),
    (inner(lambda s: s.update({"n/BOOL": s.pop("m/BOOL")})), "at byte .*, and the table implies"),
    (MASK[:-1] + b"\xff", "section 'm', tensor 'kept' has bits set past its 6 entries"),
    (MASK[:-1] + b"\x40", "section 'm', tensor 'kept' has bits set past its 6 entries"),
    (DENSE[:-1] + b"\xff", None),
    (DENSE[:-2] + b"\x80\x7f", "section 'head', tensor 'brain' holds NaN or infinity"),
    (DENSE[:-2] + b"\xc0\xff", "section 'head', tensor 'brain' holds NaN or infinity"),
    (DENSE[:-32] + b"\0\0\xc0\x7f" + DENSE[-28:], "section 'head', tensor 'w' holds NaN"),
]


@pytest.mark.parametrize(("data", "reason"), BYTES)
def test_bytes_that_lie_are_refused_with_their_reason(data: bytes, reason: str | None) -> None:
    if reason is None:
        unpack(data)
        return
    with pytest.raises(MessageError, match=reason):
        unpack(data)


def test_every_truncation_is_refused() -> None:
    for data in PACKED:
        for size in range(len(data)):
            with pytest.raises(MessageError):
                unpack(data[:size])


def test_what_is_too_much_is_a_limit_and_what_is_wrong_is_not() -> None:
    with pytest.raises(LimitError):
        unpack(prefixed(size=2**40))
    with pytest.raises(LimitError):
        unpack(again(b"[" * 300_000))
    with pytest.raises(MessageError) as wrong:
        unpack(prefixed(version=2))
    assert not isinstance(wrong.value, LimitError)


# --- Memory and time --------------------------------------------------------------------------


def bomb(values: str) -> bytes:
    facts = f'{{"kind":"task","topic":"","facts":{{"x":{values}}},"sections":{{}}}}'
    return join(facts.encode(), b"")


BOMBS: dict[str, Callable[[], bytes]] = {
    "entries": lambda: changed(DENSE, put(*W, value=["F32", 2**40])),
    "bits": lambda: changed(MASK, put(*KEPT, value=["BOOL", 2**40])),
    "spaces": lambda: again(b" " * (1 << 30)),
    "lists": lambda: bomb("[" + ",".join(["[]"] * 120_000) + "]"),
    "objects": lambda: bomb("[" + ",".join(["{}"] * 120_000) + "]"),
    "pairs": lambda: bomb("{" + ",".join(f'"{i}":1' for i in range(200_000)) + "}"),
    "twice": lambda: bomb("{" + ",".join(['"a":1'] * 200_000) + "}"),
    "text": lambda: bomb('"' + "a" * 4_000_000 + '"'),
    "digits": lambda: bomb("1." + "1" * 4_000_000),
    "deep": lambda: again(b"[" * 260_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_refusal_costs_little_memory(name: str) -> None:
    data = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


# --- Many ---------------------------------------------------------------------------------------

POISON = [
    *("null", "true", "-1", "0", "1", "2.5", "1e308", "NaN", "Infinity", "[]", "[0]", "[1,2]"),
    *("[[]]", "{}", '["F32"]', '["F32",1]', '["U8",1]', '["BF16",2]', '{"a":1}'),
    *('{"int4:last":[0]}', '{"int8:dtype":"F16"}'),
    *(str(n) for n in (2**31, 2**63, 2**64, -(2**63), 10**30)),
    *(f'"{name}"' for name in ("", "a", "w", "F32", "BOOL", "U16", "raw", "int8", "int4")),
    *(f'"{name}"' for name in ("x:scale8", "a/b", "\\ud800", "a" * 300)),
]


def poison(node: Json, dice: random.Random) -> None:
    """Change one place of a JSON value: another value, another name, one more, one less."""
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = dice.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and dice.random() < 0.8:
            node = node[key]
            continue
        act = dice.randrange(4)
        if act == 0:
            del node[key]
        elif act == 1 and isinstance(node, dict):
            node[dice.choice(["w", "x", "one", "x:scale8", "facts", "codec"])] = node.pop(key)
        elif act == 2 and isinstance(node[key], int):
            node[key] += dice.choice([-1, 1, 7])
        else:
            node[key] = json.loads(dice.choice(POISON))
        return


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def lengthened(data: bytes, dice: random.Random) -> bytes:
    return data + dice.randbytes(dice.randrange(1, 9))


def spliced(data: bytes, dice: random.Random) -> bytes:
    other = dice.choice(PACKED)
    return data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]


def invented(data: bytes, dice: random.Random) -> bytes:
    return data[:16] + dice.randbytes(dice.randrange(64))


def flipped(data: bytes, dice: random.Random) -> bytes:
    own = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        own[dice.randrange(len(own))] ^= 1 << dice.randrange(8)
    return bytes(own)


def repaid(data: bytes, dice: random.Random) -> bytes:
    """Change bytes of the payload: offsets, signs, exponents, codes, scales."""
    header, payload = split(data)
    own = bytearray(payload)
    for _ in range(dice.randrange(1, 4)):
        own[dice.randrange(len(own))] = dice.choice([0, 127, 128, 192, 255])
    return join(header, bytes(own))


def retyped(data: bytes, dice: random.Random) -> bytes:
    """Change a character of the header."""
    header, payload = split(data)
    text = bytearray(json.dumps(header).encode())
    text[dice.randrange(len(text))] = dice.choice(b'{}[]",:0129.-eNaITru \\\xff')
    return join(bytes(text), payload)


def poisoned(data: bytes, dice: random.Random) -> bytes:
    """Change values, names and counts of the header."""
    header, payload = split(data)
    for _ in range(dice.randrange(1, 4)):
        poison(header, dice)
    return join(header, payload)


MUTATIONS = (cut, lengthened, spliced, invented, flipped, repaid, retyped, poisoned)


def accepted(data: bytes) -> bool:
    """Return whether bytes are a message; what is accepted must be a valid one."""
    try:
        message = unpack(data)
    except MessageError:
        return False
    assert pack(unpack(pack(message))) == pack(message)
    try:
        plain = decode(message)
    except MessageError:
        return False
    assert all(section.codec == () for section in plain.sections.values())
    pack(plain)
    return True


def tally(name: str, count: int) -> dict[bool, int]:
    """Return how many of `count` mutated messages were accepted, and how many were not."""
    counts = {True: 0, False: 0}
    for i in range(count):
        dice = random.Random(derive(0, "hostile", name, i))  # noqa: S311  not a secret
        counts[accepted(dice.choice(MUTATIONS)(dice.choice(PACKED), dice))] += 1
    return counts


def test_of_1_500_mutated_messages_each_is_refused_or_valid_and_well_typed() -> None:
    counts = tally("typed", 1_500)
    assert counts[True] > 15
    assert counts[False] > 1_000


@pytest.mark.slow
def test_of_30_000_mutated_messages_each_is_refused_or_valid() -> None:
    # In a process of its own: without the type checks of this one it is twenty times faster.
    count = cases(30_000)
    done = subprocess.run(
        [sys.executable, __file__, str(count)],
        capture_output=True, text=True, check=False, timeout=patience(count / 100),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yes, no = map(int, done.stdout.split())
    assert yes > count / 80
    assert no > count / 1.2
    assert yes + no == count


@given(st.binary(max_size=80))
@example(b"TRSK")
@settings(max_examples=200)
def test_random_bytes_are_refused(data: bytes) -> None:
    for forged in (data, DENSE[:16] + data, DENSE[: 16 + DEFLATED] + data):
        with pytest.raises(MessageError):
            unpack(forged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below),
    max_leaves=6,
)


@given(st.sampled_from([(), ("kind",), ("facts",), ("sections",), HEAD, W, (*HEAD, "facts")]), JSON)
@settings(max_examples=300)
def test_any_json_in_any_place_is_refused_or_valid(path: tuple[str, ...], value: object) -> None:
    accepted(changed(DENSE, put(*path, value=value)) if path else again(json.dumps(value).encode()))


def test_a_scale_that_overflows_stays_a_number() -> None:
    header, payload = split(INT8)
    huge = struct.pack("<4f", *[torch.finfo(torch.float32).max] * 4)
    x = decode(unpack(join(header, payload[:-16] + huge))).sections["grid"].tensors["x"]
    assert bool(torch.isfinite(x).all())


if __name__ == "__main__":
    print(*tally("many", int(sys.argv[1])).values())  # noqa: T201  read by the test above
