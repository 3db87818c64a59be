"""What others wrote, read within limits: files, JSON, TOML, archives and folders.

A run folder, a job, a request or a model may come from anybody. Nothing here follows a link, reads
what is no plain file, takes more memory than a stated amount, or fails otherwise than with an
`OSError` or a `ValueError`, which whoever reads turns into a sentence with the file's name.
"""

import errno
import json
import lzma
import math
import os
import re
import shutil
import stat
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

MIB = 1 << 20
TEXT_MOST = 64 * MIB
"""Bytes of a JSON file."""
HEADER_MOST = 32 * MIB
"""Bytes of the header of a file of tensors, with the text that is kept beside them."""
HEADER_PARTS = 250_000
"""Commas in it outside of strings: those of tensors and of their sizes."""
JSON_STRING = re.compile(rb'"(?:\\.|[^"\\])*+"?', re.DOTALL)
TOML_MOST = MIB
VALUES_MOST = 1_500_000
"""Values in a JSON file; each takes about a hundred bytes of memory."""
DEEP_MOST = 64
"""Lists and tables within each other."""
PARTS_MOST = 16
"""Parts of a key in TOML, such as `clients.each.bank.split`."""
DOTS_MOST = 16_384
"""Dots in TOML outside of strings: each may be a table, of half a kilobyte and more."""
STRINGS = re.compile(
    r""""{3}(?:\\.|[^\\"]|"(?!""))*+(?:"{3,5}|\Z)|'{3}(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"""
    r"""|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?|#[^\n]*+""",
    re.DOTALL,
)
"""Strings and comments of TOML; what is not closed goes on to the end, where TOML ends too."""
KEYS = re.compile(r"[=,{}\[\]\n]")
"""What stands between keys, values and headers of TOML."""
BACKSLASH = re.compile(r'"[^"\n]*\\[^"\n]*"')
"""A text in double quotes with a backslash."""
WINDOWS = (
    "; in double quotes a backslash begins a special character, so put a Windows path in single "
    r"quotes, as in 'C:\data\train.csv'"
)
WHOLE = 2**63
"""Whole numbers lie between minus and plus this, as TOML has it."""
FILES_MOST = 100_000
"""Files in a folder that is copied."""
LONG_NUMBER = re.compile(r"\d{19}")
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, EOFError, OverflowError, LookupError),
)
"""What zipfile raises of an archive that is damaged."""


class UnreadableError(ValueError):
    """Somebody else's file is no plain file, or goes beyond a limit."""


def data_of(path: Path, *, most: int = TEXT_MOST) -> bytes:
    """Return the bytes of a plain file that is no link.

    Raises:
        OSError: It is not there, or cannot be read.
        UnreadableError: It is a link or no plain file, or has more bytes than `most`.
    """
    with os.fdopen(plain(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnreadableError(f"{path} has more than {most:,} bytes")
    return data


def plain(path: Path) -> int:
    """Open a plain file that is no link, and return its descriptor.

    Raises:
        OSError: It is not there, or cannot be read.
        UnreadableError: It is a link, or no plain file.
    """
    try:
        # not waiting: a pipe that nobody writes into would never open
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnreadableError(f"{path} is a link, and links are not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnreadableError(f"{path} is no plain file")
    return handle


def safetensors_at(path: Path) -> Path:
    """Return a path of tensors for a reader that opens files by name, once it may read them.

    The library reads the header, which is JSON, whole: a small tensor takes half a kilobyte there,
    and each of its sizes fifty bytes.

    Raises:
        OSError: It is not there, or cannot be read.
        UnreadableError: It is a link, or no plain file, or its header is larger than is read.
    """
    with os.fdopen(plain(path), "rb") as file:
        check_header(file.read(8), file.read(HEADER_MOST + 1))
    return path


def check_header(size: bytes, header: bytes) -> None:
    """Refuse a header of tensors, of which these are the first bytes.

    Raises:
        UnreadableError: It is larger than is read.
    """
    header = header[: int.from_bytes(size, "little")]
    if len(header) > HEADER_MOST or JSON_STRING.sub(b"", header).count(b",") > HEADER_PARTS:
        raise UnreadableError("its header is larger than is read")


def text_of(path: Path, *, most: int = TEXT_MOST) -> str:
    """Return the text of a plain file in UTF-8; errors are those of `data_of`, and ValueError."""
    return data_of(path, most=most).decode("utf-8")


def json_in(path: Path, *, most: int = TEXT_MOST) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what a JSON file holds; errors are those of `data_of` and of `json_of`."""
    return json_of(text_of(path, most=most))


def json_of(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what JSON text holds.

    >>> json_of('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}

    Raises:
        ValueError: It is no JSON, holds too many values or a number beyond 64 bits, or is too deep.
    """
    opens = text.count("[") + text.count("{")
    if opens + text.count(",") > VALUES_MOST:
        raise UnreadableError(f"it holds more than {VALUES_MOST:,} values")
    whole = _whole if LONG_NUMBER.search(text) else None
    try:
        found = json.loads(text, parse_int=whole)
    except RecursionError:
        raise UnreadableError(f"it is nested deeper than {DEEP_MOST}") from None
    if opens > DEEP_MOST:
        _shallow(found)
    return found


def mistyped(path: str) -> str:
    """Return why there is no such path where TOML read it out of double quotes; else nothing.

    >>> mistyped("data/train.csv")
    ''
    """
    if not any(sign in path for sign in "\t\n\r\f\b\a\v"):
        return ""
    return (
        f"{path!r} does not exist, and its name holds control characters: in double quotes a "
        "backslash begins one, so put a Windows path in single quotes"
    )


def toml_of(text: str) -> dict[str, Any]:
    """Return what TOML text holds.

    >>> toml_of("a = 1")
    {'a': 1}

    Raises:
        ValueError: It is no TOML, is too long or too deep, or holds a number beyond 64 bits or a
            key of too many parts.
    """
    text = text.removeprefix("\ufeff")  # a byte-order mark, as editors on Windows write it
    if len(text) > TOML_MOST:
        raise UnreadableError(f"it has more than {TOML_MOST:,} characters")
    _short_keys(text)
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise UnreadableError(f"it is nested deeper than {DEEP_MOST}") from None
    except tomllib.TOMLDecodeError as error:
        hint = WINDOWS if BACKSLASH.search(text) else ""
        raise tomllib.TOMLDecodeError(f"{error}{hint}") from None
    except ValueError as error:  # a number of thousands of digits
        raise UnreadableError(f"it holds a value that is too long: {error}") from None
    _shallow(found)
    for value in _values(found):
        if type(value) is int and not -WHOLE <= value < WHOLE:
            raise UnreadableError("it holds a whole number beyond 64 bits")
    return found


def _short_keys(text: str) -> None:
    """Refuse keys of many parts before they are read: each costs memory by its parts squared."""
    bare = STRINGS.sub("s", text)
    if bare.count(".") > DOTS_MOST:
        raise UnreadableError(f"its keys have more than {DOTS_MOST:,} parts")
    if any(piece.count(".") >= PARTS_MOST for piece in KEYS.split(bare)):
        raise UnreadableError(f"it holds a key of more than {PARTS_MOST} parts")


def _whole(digits: str) -> int:
    value = int(digits)
    if not -WHOLE <= value < 2 * WHOLE:
        raise UnreadableError("it holds a whole number beyond 64 bits")
    return value


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        yield from cast("list[object]", value)


def _shallow(found: object) -> None:
    """Refuse what is nested too deeply for whoever walks through it."""
    level: list[object] = [found]
    for _ in range(DEEP_MOST):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise UnreadableError(f"it is nested deeper than {DEEP_MOST}")


def _values(found: object) -> Iterator[object]:
    waiting: list[object] = [found]
    while waiting:
        value = waiting.pop()
        yield value
        waiting += _children(value)


def members(path: Path, *, most: int, names: int = 64) -> dict[str, bytes]:
    """Return the files of a zip archive by name, inflated within limits.

    Args:
        path: The archive.
        most: Bytes of all files together, as they are found, whatever the archive says.
        names: How many files at most.

    Raises:
        OSError: It is not there, or cannot be read.
        ValueError: It is no archive, a link, too large, or names places outside of a folder.
    """
    found, left = dict[str, bytes](), most
    with os.fdopen(plain(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as packed:
                infos = packed.infolist()
                if len(infos) > names:
                    raise UnreadableError(f"it holds more than {names} files")
                for info in infos:
                    if info.is_dir():
                        continue
                    _inside(info)
                    if info.filename in found:
                        raise UnreadableError(f"it holds {info.filename!r} twice")
                    with packed.open(info) as member:
                        data = member.read(left + 1)
                    if len(data) > left:
                        raise UnreadableError(f"it holds more than {most:,} bytes")
                    left -= len(data)
                    found[info.filename] = data
        except BROKEN as error:
            raise UnreadableError(f"it is no archive that can be read: {error}") from error
    return found


def _inside(info: zipfile.ZipInfo) -> None:
    """Refuse a member that is a link or would lie outside of a folder."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    parts = info.filename.replace("\\", "/").split("/")
    if kind not in {0, stat.S_IFREG} or ".." in parts or "" in parts or ":" in parts[0]:
        raise UnreadableError(f"it holds {info.filename!r}, which is no file of a folder")


def copied(
    source: Path,
    target: Path,
    *,
    most: float = math.inf,
    wanted: Callable[[str], bool] = lambda _place: True,
) -> None:
    """Copy the plain files of a folder into another, whole or with an error.

    Args:
        source: The folder.
        target: Where to; what is there under the same names is replaced.
        most: Bytes of all files together.
        wanted: Given a file's place in the folder, whether it is copied.

    Raises:
        OSError: A file cannot be read or written.
        UnreadableError: It holds a link or something that is no plain file, or more than `most`.
    """
    left = most
    for number, place in enumerate(_plain_below(source)):
        if not wanted(place.relative_to(source).as_posix()):
            continue
        goal = target / place.relative_to(source)
        with os.fdopen(plain(place), "rb") as file:
            left -= os.fstat(file.fileno()).st_size
            if left < 0 or number >= FILES_MOST:
                raise UnreadableError(f"{source.name} holds more than is copied")
            _folders(target, goal.parent)
            if goal.is_symlink():
                raise UnreadableError(f"{goal} is a link, and links are not followed")
            with goal.open("wb") as out:
                shutil.copyfileobj(file, out)


def _folders(root: Path, place: Path) -> None:
    """Make a folder below another, none of which is a link."""
    root.mkdir(parents=True, exist_ok=True)
    here = root
    for part in place.relative_to(root).parts:
        here = here / part
        if here.is_symlink():
            raise UnreadableError(f"{here} is a link, and links are not followed")
        here.mkdir(exist_ok=True)


def _plain_below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _plain_below(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            else:
                raise UnreadableError(f"{entry.path} is a link, or no plain file")


def printable(word: str) -> bool:
    """Return whether a word that somebody chose can be shown on a terminal as it is.

    >>> printable("bank-a"), printable("bank" + chr(13) + "all is well")
    (True, False)
    """
    return word.isprintable()


def table_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        UnreadableError: It is something else.
    """
    if not isinstance(value, dict):
        raise UnreadableError(f"it must hold an object, got {type(value).__name__}")
    return cast("Mapping[str, Any]", value)
