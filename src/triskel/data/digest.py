"""What identifies the texts that were dealt, so that changed ones are noticed; no text is in it.

A share of rows is known by one hash over all of them in order. Beside it stand how many there are
and two sums, over texts and over texts with their labels, by which a change is told: they add up
over shares, so rows that lie in another order leave them as they are, whoever holds them then. A
sum is modulo 2⁶⁴, in two lanes, of 16-byte hashes; a label is an odd factor of its texts' hashes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from triskel.data.rows import Rows

WIDTH = 16
"""Bytes of a row's hash: two lanes."""
LANES = 1 << 64
Sum = tuple[int, int]
Total = tuple[int, Sum, Sum]
"""How many rows some shares have, and their sums over texts and over labelled texts."""
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """What a share of rows is known by.

    Attributes:
        rows: How many there are.
        whole: Hash over all of them, in order, in hexadecimal digits.
        texts: Sum over the texts.
        labelled: Sum over the texts with their labels.
    """

    rows: int
    whole: str
    texts: Sum
    labelled: Sum

    @property
    def row(self) -> dict[str, Any]:
        """The digest as JSON values, which `digest_in` reads back."""
        return asdict(self)


def digest_of(rows: Rows) -> Digest:
    """Return what a share of rows is known by; whose they are plays no part in it."""
    texts = _hashes(_text(row) for row in _texts(rows))
    known = {label: _label(label) for label in set(rows.label)}
    labels = _hashes(known[label] for label in rows.label) if rows.label else np.zeros_like(texts)
    order = hashlib.sha256(texts.tobytes())
    order.update(labels.tobytes())
    return Digest(
        rows=len(texts),
        whole=order.hexdigest(),
        texts=_sum(texts),
        labelled=_sum(texts * (labels | np.uint64(1))),
    )


def digest_in(row: Any) -> Digest:  # noqa: ANN401 - JSON
    """Return a digest as `Digest.row` wrote it.

    Raises:
        ValueError: It is none.
    """
    try:
        found = Digest(
            rows=int(row["rows"]),
            whole=str(row["whole"]),
            texts=_pair(row["texts"]),
            labelled=_pair(row["labelled"]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{error} is no digest of rows") from error
    return found


def together(digests: Iterable[Digest]) -> Total:
    """Return how many rows some shares have, and their sums over texts and labelled texts."""
    rows, texts, labelled = 0, (0, 0), (0, 0)
    for one in digests:
        rows += one.rows
        texts, labelled = _added(texts, one.texts), _added(labelled, one.labelled)
    return rows, texts, labelled


def text_digest(text: str) -> str:
    """Return what a text is known by, such as a template."""
    return hashlib.sha256(_bytes(text)).hexdigest()


def _texts(rows: Rows) -> Iterable[tuple[str, ...]]:
    """Return each row's text, or its prompt and response."""
    return zip(*filter(None, (rows.text, rows.prompt, rows.response)), strict=True)


def _text(row: tuple[str, ...]) -> bytes:
    parts = [_bytes(part) for part in row]
    start = parts[0] if len(parts) == 1 else b"%d:" % len(parts[0]) + b"".join(parts)
    return hashlib.blake2b(start, digest_size=WIDTH).digest()


def _label(label: str) -> bytes:
    return hashlib.blake2b(_bytes(label), digest_size=WIDTH, person=b"label").digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _hashes(hashes: Iterable[bytes]) -> Hashes:
    """Return hashes in two lanes, [rows, 2]."""
    return np.frombuffer(b"".join(hashes), dtype="<u8").reshape(-1, 2)


def _sum(hashes: Hashes) -> Sum:
    left, right = hashes.sum(axis=0, dtype=np.uint64)
    return int(left), int(right)


def _added(left: Sum, right: Sum) -> Sum:
    return (left[0] + right[0]) % LANES, (left[1] + right[1]) % LANES


def _pair(value: Any) -> Sum:  # noqa: ANN401 - JSON
    left, right = cast("list[int]", value)
    return int(left), int(right)
