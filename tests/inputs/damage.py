"""Tables written in many ways and damaged in many more, each by its number; run as a program.

`python damage.py FIRST COUNT` prints a line of JSON for each that is neither read as it is meant
nor refused in a sentence that names the file, and a last one with what was seen.
"""

# ruff: noqa: T201 - what it prints is read

import csv
import gzip
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from triskel.core.dialect import Dialect
from triskel.data.files import read_rows
from triskel.data.rows import Rows
from triskel.errors import DataError

Table = list[tuple[str, str]]
ASCII = [*"abcdefghij KLMNO .,;|\"'\t!?0123456789-", "\n", ", ", '"x"', " and "]
WIDE = [
    *"éüñßÀ",
    "\u2019",
    "\u2013",
    "日本",
    "ж",
    "😀",
    "\u2028",
    "{",
    "}",
    "[1]",
    "\\",
    "\\n",
    "null",
    "NaN",
]
LABELS = ("pos", "neg", "0", "1.5", "n/a", "très bien", "a;b", "a,b")
SLOWEST = 5.0
"""Seconds for one table of a few kilobytes."""


def table_of(rng: random.Random) -> Table:
    """Return the rows that are meant."""
    signs = ASCII + (WIDE if rng.random() < 0.5 else [])
    labels = rng.sample(LABELS, 3)
    return [
        ("t" + "".join(rng.choices(signs, k=rng.randint(0, 30))), rng.choice(labels))
        for _ in range(rng.randint(4, 20))
    ]


# --- written in many ways: they must be read as they are meant --------------------------------


def as_csv(rng: random.Random, rows: Table) -> tuple[str, bytes, Dialect, bool]:
    """Return a name, a file, what is said of it, and whether it may be refused."""
    out = io.StringIO(newline="")
    divide = rng.choice(",;\t|")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    if divide == "\t":
        quoting = csv.QUOTE_ALL  # tabs without quotes are another format
    end = rng.choice(["\n", "\r\n"])
    writer = csv.writer(out, delimiter=divide, quoting=quoting, lineterminator=end)
    tail = [""] * rng.choice([0, 0, 1, 3])
    header = rng.random() < 0.8
    if header:
        writer.writerow(
            ["label", "text", *tail] if rng.random() < 0.5 else ["text", "label", *tail]
        )
        first = out.getvalue().replace('"', "").startswith("label")
    else:
        first = False
    for text, label in rows:
        writer.writerow([label, text, *tail] if first else [text, label, *tail])
    content = out.getvalue()
    if rng.random() < 0.3:
        content = content.removesuffix(end)
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
    said = encoding if encoding != "utf-8" and rng.random() < 0.3 else ""
    try:
        data = content.encode(encoding)
    except UnicodeEncodeError:
        encoding, said, data = "utf-8", "", content.encode()
    if rng.random() < 0.2:
        data = gzip.compress(data)
    dialect = Dialect(divide if rng.random() < 0.3 else "", said, None if header else False)
    unsure = not said and encoding in {"utf-16-le", "cp1252"}
    if not header and not dialect.delimiter:
        dialect = Dialect(divide, said, header=False)
    return "table.csv", data, dialect, unsure


def as_json(rng: random.Random, rows: Table) -> tuple[str, bytes, Dialect, bool]:
    """Return JSON of one of its shapes."""
    objects = [
        {"label": label, "n": place, "text": text} for place, (text, label) in enumerate(rows)
    ]
    plain = rng.random() < 0.5
    shape = rng.choice(["lines", "array", "pretty", "key"])
    if shape == "lines":
        text = "".join(json.dumps(one, ensure_ascii=plain) + "\n" for one in objects)
    elif shape == "key":
        text = json.dumps({"version": 1, "rows": objects}, ensure_ascii=plain)
    else:
        text = json.dumps(objects, indent=1 if shape == "pretty" else None, ensure_ascii=plain)
    data = text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    return rng.choice(["table.jsonl", "table.json"]), data, Dialect(), False


def as_parquet(rng: random.Random, rows: Table) -> tuple[str, bytes, Dialect, bool]:
    """Return Parquet."""
    texts, labels = zip(*rows, strict=True)
    table = pa.table({"n": list(range(len(rows))), "label": list(labels), "text": list(texts)})
    out = io.BytesIO()
    kind = rng.choice(["none", "snappy", "zstd"])
    pq.write_table(table, out, compression=kind, row_group_size=rng.choice([3, 100]))
    return "table.parquet", out.getvalue(), Dialect(), False


WAYS: tuple[Callable[[random.Random, Table], tuple[str, bytes, Dialect, bool]], ...] = (
    *(as_csv, as_csv, as_json, as_json, as_parquet),
)


# --- damaged: a few bytes, the columns, the types ---------------------------------------------


def bytes_damaged(rng: random.Random, data: bytes) -> bytes:
    """Return a file of which a few bytes are others, more, fewer, or which ends too early."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(found))
        kind = rng.randrange(4)
        if kind == 0:
            found[place] = rng.randrange(256)
        elif kind == 1:
            found[place:place] = rng.choice(
                [b'"', b",", b"\n", b"\0", b"\xff", b"{", b"\\", b"9" * 400]
            )
        elif kind == 2:
            del found[place : place + rng.choice([1, 1, 8])]
        else:
            found[place] ^= 1 << rng.randrange(8)
        if not found:
            return b""
    return bytes(found[: rng.randrange(len(found))] if rng.random() < 0.15 else found)


def types_damaged(rng: random.Random, rows: Table) -> bytes:
    """Return JSON lines in which one row is not what it must be."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    odd: list[str] = [
        *('{"text": ["a"], "label": "x"}', '{"text": {"a": 1}, "label": "x"}', "[]", '"a"', "3"),
        *('{"text": "a", "label": null}', '{"text": "a"}', '{"text": "a", "label": ""}', "null"),
        *('{"text": "a", "label": NaN}', '{"text": "a", "text": "b", "label": "x"}', "{"),
        *('{"text": "\\ud800", "label": "x"}', '{"text": "a\\u0000", "label": "x"}'),
        *('{"text": "a", "label": ' + "9" * 5000 + "}", "[" * 3000, '{"a": ' * 3000),
    ]
    lines[rng.randrange(len(lines))] = rng.choice(odd)
    return "\n".join(lines).encode()


def columns_damaged(rng: random.Random, rows: Table) -> bytes:
    """Return CSV whose header or one row does not fit."""
    out = io.StringIO(newline="")
    heads = [
        ["text", "text"],
        ["text", "label", "label"],
        ["txt", "label"],
        ["text"],
        ["label", ""],
    ]
    kind = rng.randrange(3)
    writer = csv.writer(out)
    writer.writerow(rng.choice(heads) if kind == 0 else ["text", "label"])
    place = rng.randrange(len(rows))
    for number, row in enumerate(rows):
        more = [["x"], ["x", "y", "z"]][kind - 1] if number == place and kind else None
        writer.writerow([*row, *more] if more and kind == 2 else more or row)
    return out.getvalue().encode()


# --- what comes of it -------------------------------------------------------------------------


def outcome(path: Path, dialect: Dialect) -> Table | str:
    """Return the rows that are read, or the sentence of a refusal."""
    named = (
        {"text": "1", "label": "2"}
        if dialect.header is False
        else {"text": "text", "label": "label"}
    )
    try:
        rows: Rows = read_rows(path, named, dialect=dialect)  # type: ignore[arg-type]
    except DataError as error:
        return str(error)
    return list(zip(rows.text, rows.label, strict=True))


def other(found: Table, meant: Table) -> int:
    """Return how many rows were read that nobody meant."""
    left = Counter(found) - Counter(meant)
    return sum(left.values())


def tried(number: int, folder: Path) -> tuple[str, str | None]:
    """Return what was tried, and what is wrong with what came of it."""
    rng = random.Random(number)  # noqa: S311 - not for secrets
    rows = table_of(rng)
    kind = ("written", "bytes", "bytes", "types", "columns")[number % 5]
    name, data, dialect, unsure = rng.choice(WAYS)(rng, rows)
    if kind == "types":
        name, data, dialect = "table.jsonl", types_damaged(rng, rows), Dialect()
    elif kind == "columns":
        name, data, dialect = "table.csv", columns_damaged(rng, rows), Dialect()
    elif kind == "bytes":
        data = bytes_damaged(rng, data)
    path = folder / name
    path.write_bytes(data)
    found = outcome(path, dialect)
    if isinstance(found, str):
        if kind == "written" and not unsure:
            return kind, f"refused: {found}"
        fits = str(path) in found and len(found) < 2000 and "\n" not in found
        return f"{kind}, refused", None if fits else f"says: {found[:300]}"
    wrong: str | None = None
    if kind in {"types", "columns"}:
        wrong = f"read as {found[:3]}"
    elif kind == "written" and found != rows:
        wrong = f"read as {found[:3]}, meant {rows[:3]}"
    elif kind == "bytes" and not name.endswith("parquet") and other(found, rows) > 5:
        wrong = f"{other(found, rows)} rows of {len(rows)} are others, {found[:3]}"
    return f"{kind}, read", wrong


def main(first: int, count: int) -> None:
    """Try `count` tables from number `first` on."""
    seen = Counter[str]()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as place:
        for number in range(20):  # libraries are loaded, and have taken what they take
            tried(number, Path(place))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for number in range(first, first + count):
            began = time.process_time()
            try:
                what, wrong = tried(number, Path(place))
            except Exception as error:  # noqa: BLE001 - what is looked for
                what, wrong = "raised", f"{type(error).__name__}: {error}"
            took = time.process_time() - began
            slowest = max(slowest, took)
            seen[what] += 1
            if wrong or took > SLOWEST:
                print(json.dumps({"number": number, "wrong": wrong, "took": took}))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    print(json.dumps({"seen": dict(seen), "slowest": slowest, "grown": grown}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
