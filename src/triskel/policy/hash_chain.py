"""A log that can be added to and not quietly changed: JSON lines, each holding the hash before it.

A line ends with the SHA-256 of itself, and says the one of the line before. So a line that is
edited, removed, inserted or moved breaks the chain there. There is no secret in it: whoever can
write the file can forge all of it, or cut off its end. A hash noted elsewhere shows that, since it
must still be in the log.

A line is on disk before `append` returns. What a kill in the middle of a line leaves stays in the
file: the next line begins right behind it and says how many bytes they were, and their SHA-256.
"""

import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from triskel.core.untrusted import UnreadableError, plain
from triskel.errors import DataError, TriskelError

Entry = Mapping[str, Any]
"""A line: `n`, `at`, `what`, `previous`, `sha256`, and what it is about."""

START = "0" * 64
"""What the first line has before it."""
BEGINS = b'{"n":'
SEAL = (b',"sha256":"', b'"}')
LEAST = 8
"""Hex digits of a hash that was noted; fewer would be found in a log by chance."""
NOTED = re.compile(rf"[0-9a-fA-F]{{{LEAST},64}}")
LONGEST_LINE = 1 << 20
"""Bytes; a longer one is not written, and one far longer is not read."""
PATIENCE_S = 10.0
"""How long a writer waits for another one's line."""


class AuditError(TriskelError):
    """An audit log cannot be written, or is not what was written."""


@dataclass(frozen=True)
class Head:
    """Where a chain has come to: lines, the last one's hash, and bytes up to its end."""

    n: int = 0
    sha256: str = START
    end: int = 0


@dataclass(frozen=True)
class _Tail:
    """What stands behind the last whole line: nothing, a piece of one, or a lacking newline."""

    head: Head
    piece: bytes = b""
    open: bool = False


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


class Chain:
    """The log's writer; several, in one process or in many, may share a file.

    Args:
        path: The file; it is made when the first line is written. Beside it lies its lock.
        clock: What time it is.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = now) -> None:
        self._path, self._clock = path, clock
        self._turn = threading.Lock()
        self._head, self._file = Head(), (0, 0)

    def append(self, what: str, about: Mapping[str, object]) -> str:
        """Write one line, on disk when this returns; return its SHA-256.

        Raises:
            AuditError: The disk is full or not writable, another writer does not let go, or what
                is in the file is not a whole chain; nothing was said to be written.
        """
        lock = FileLock(f"{self._path}.lock", timeout=PATIENCE_S)
        try:
            with self._turn, lock, _opened(self._path) as file:
                return self._append(file, what, about)
        except Timeout:
            raise AuditError(
                f"audit log {self._path} is held by another process; nothing may leave until a "
                "line can be written"
            ) from None
        except OSError as error:
            raise AuditError(
                f"audit log {self._path} cannot be written: {error.strerror or error}; nothing may "
                "leave until it can"
            ) from error

    def _append(self, file: io.FileIO, what: str, about: Mapping[str, object]) -> str:
        tail = self._caught_up(file)
        head, data = tail.head, b"\n" if tail.open else b""
        if tail.piece:
            torn = {"bytes": len(tail.piece), "piece": hashlib.sha256(tail.piece).hexdigest()}
            head, data = self._sealed(head, "torn", torn)
        head, line = self._sealed(head, what, about)
        data += line
        new = not os.fstat(file.fileno()).st_size
        written = 0
        while written < len(data):
            written += os.write(file.fileno(), data[written:])
        os.fsync(file.fileno())
        if new:
            _flush(self._path.resolve().parent)
        self._head = Head(head.n, head.sha256, os.fstat(file.fileno()).st_size)
        return head.sha256

    def _caught_up(self, file: io.FileIO) -> _Tail:
        """Read what others wrote since, or all of it at first."""
        there = os.fstat(file.fileno())
        same = self._file in ((0, 0), (there.st_dev, there.st_ino))
        if not same or there.st_size < self._head.end:
            raise AuditError(
                f"audit log {self._path} was cut or replaced while it was in use; keep it, find "
                "out why, and begin another"
            )
        self._file = (there.st_dev, there.st_ino)
        file.seek(self._head.end)
        walk = _walk(io.BufferedReader(_Borrowed(file)), self._head, str(self._path))
        while True:
            try:
                next(walk)
            except StopIteration as done:
                return cast("_Tail", done.value)

    def _sealed(self, head: Head, what: str, about: Mapping[str, object]) -> tuple[Head, bytes]:
        at = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        own = {"n": head.n + 1, "at": at, "what": what, "previous": head.sha256}
        body = json.dumps({**own, **about, **own}, separators=(",", ":"), allow_nan=False).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        line = body[:-1] + SEAL[0] + sha256.encode() + SEAL[1] + b"\n"
        if len(line) > LONGEST_LINE:
            raise AuditError(
                f"a line of the audit log has at most {LONGEST_LINE} bytes, this one {len(line)}"
            )
        return Head(head.n + 1, sha256), line


def read(path: Path, *, seen: str | None = None) -> Iterator[Entry]:
    """Yield the lines of a log in order, each after it was checked.

    An end without a newline, as a kill leaves it, is yielded as an entry `cut` without number.

    Args:
        path: The log.
        seen: A hash noted earlier, or its first digits; a line with it must be in the log.

    Raises:
        AuditError: The chain is broken, at the line that is named, or `seen` is not in it.
        DataError: The log is missing or cannot be read, or `seen` is no hash.
    """
    if seen is not None and not NOTED.fullmatch(seen):
        raise DataError(
            f"a hash that was noted has {LEAST} to 64 hex digits, got {seen[:100]!r}; "
            "`triskel site audit` prints it"
        )
    found = seen is None
    try:
        with os.fdopen(plain(path), "rb") as file:
            walk = _walk(file, Head(), str(path))
            while True:
                try:
                    entry = next(walk)
                except StopIteration as done:
                    tail = cast("_Tail", done.value)
                    break
                found = found or entry["sha256"].startswith(cast("str", seen).lower())
                yield entry
    except UnreadableError as error:
        raise DataError(f"audit log {path} cannot be read: {error}") from error
    except OSError as error:
        raise DataError(f"audit log {path} cannot be read: {error.strerror}") from error
    if tail.piece:
        yield {"what": "cut", "bytes": len(tail.piece)}
    if not found:
        raise AuditError(
            f"audit log {path} no longer holds {seen}: lines were removed, or all of it was "
            "written anew"
        )


# --- Lines ------------------------------------------------------------------------------------


def _walk(file: io.BufferedReader, head: Head, where: str) -> Generator[Entry, None, _Tail]:
    """Yield entries from where the file stands; return what is behind the last one."""
    while line := file.readline(4 * LONGEST_LINE):
        whole = line.endswith(b"\n")
        text = line[:-1] if whole else line
        entry = _entry(text, head) or (_behind_a_piece(text, head) if whole else None)
        if entry is None:
            if not whole and len(line) < 4 * LONGEST_LINE:
                return _Tail(head, piece=line)
            raise AuditError(
                f"audit log {where} is broken at line {head.n + 1}: it was edited, removed, "
                "inserted or moved; the lines above it are whole"
            )
        head = Head(head.n + 1, entry["sha256"], head.end + len(line))
        yield entry
        if not whole:
            return _Tail(head, open=True)
    return _Tail(head)


def _entry(text: bytes, head: Head) -> Entry | None:
    """Return what a line says if it is the next one of the chain."""
    opening, closing = SEAL
    at = len(text) - len(closing) - 64 - len(opening)
    body, seal = text[: max(at, 0)] + b"}", text[max(at, 0) :]
    sha256 = hashlib.sha256(body).hexdigest()
    if not text.startswith(BEGINS) or seal != opening + sha256.encode() + closing:
        return None
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    entry = cast("dict[str, Any]", found if isinstance(found, dict) else {})
    words = (entry.get("what"), entry.get("at"))
    next_one = (entry.get("n"), entry.get("previous")) == (head.n + 1, head.sha256)
    return {**entry, "sha256": sha256} if next_one and all(type(w) is str for w in words) else None


def _behind_a_piece(text: bytes, head: Head) -> Entry | None:
    """Return the entry `torn` that stands behind the piece of a line that it describes."""
    at = text.rfind(BEGINS)
    entry = _entry(text[at:], head) if at > 0 else None
    piece = hashlib.sha256(text[: max(at, 0)]).hexdigest()
    told = (entry or {}).get("what"), (entry or {}).get("bytes"), (entry or {}).get("piece")
    return entry if told == ("torn", at, piece) else None


class _Borrowed(io.RawIOBase):
    """A file that stays open when its reader goes."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer
        """Read what fits."""
        return self._file.readinto(buffer)


def _opened(path: Path) -> io.FileIO:
    """Open a file to add to it, no link; one that is made here is read by its owner only."""

    def opener(name: str | os.PathLike[str], flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    return io.FileIO(path, "ab+", opener=opener)


def _flush(folder: Path) -> None:
    """Bring the name of a new file to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
