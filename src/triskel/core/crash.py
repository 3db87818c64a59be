"""An exception that nobody expected: what was being done, and a log of its traceback.

Libraries raise what they like. What Triskel was doing is noted on the exception as it passes
(`during`), innermost first; the command line makes one sentence of it (`told`) and writes the
traceback into a log (`log`): in the folder of the run where there is one, else where the system
keeps temporary files. Neither holds a token or a password, as far as it can be known for one.
"""

import os
import platform
import re
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from triskel.core.source import VERSION
from triskel.errors import TriskelError

NAME = "error.log"
MOST = 300
"""Characters of a message that are shown; the log has all of it."""
SHORTEST = 8
"""Characters of a value of the environment that can be a secret."""
SECRET_NAME = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
SECRET = re.compile(
    r"\bhf_\w{8,}"
    r"|(?<=://)[^\s/@]+(?=@)"
    r"|(?<=Bearer )\S+|(?<=Basic )\S+"
    r"|(?<=token=)[^\s&]+|(?<=password=)[^\s&]+|(?<=signature=)[^\s&]+",
    re.IGNORECASE,
)
HIDDEN = "***"
EXPECTED = (TriskelError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is said by its own words, or is no failure."""


class Place(str):
    """A note on an exception: what was being done when it came up."""

    __slots__ = ()


class Folder(str):
    """A note on an exception: the folder of the run that it came up in."""

    __slots__ = ()


@contextmanager
def during(what: str) -> Generator[None]:
    """Note on an exception that nobody expected what was being done: "while reading the data"."""
    try:
        yield
    except EXPECTED:
        raise
    except BaseException as error:
        error.add_note(Place(what))
        raise


@contextmanager
def logs_in(folder: Path) -> Generator[None]:
    """Note on an exception that nobody expected in which folder its log belongs."""
    try:
        yield
    except EXPECTED:
        raise
    except BaseException as error:
        error.add_note(Folder(folder))
        raise


def told(error: BaseException) -> str:
    r"""Return an exception in one clause: its type, the first line of its words, and the place.

    >>> with_place = OSError("no space left\non the device")
    >>> with_place.add_note(Place("while writing the report"))
    >>> told(with_place)
    'OSError: no space left, while writing the report'
    """
    line = next((one.strip() for one in str(error).splitlines() if one.strip()), "no message")
    line = masked(line).rstrip(".")
    shown = line if len(line) <= MOST else f"{line[:MOST]}..."
    places = dict.fromkeys(note for note in _notes(error) if isinstance(note, Place))
    return ", ".join([f"{type(error).__name__}: {shown}", *places])


def advice(error: BaseException) -> list[str]:
    """Return what else was noted on an exception: what is left, and how to go on."""
    return [note for note in _notes(error) if not isinstance(note, Place | Folder)]


def log(error: BaseException) -> Path:
    """Write the traceback of an exception into a log, and return where it is.

    Raises:
        OSError: It can be written nowhere.
    """
    text = masked("".join(traceback.format_exception(error)))
    head = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} triskel {VERSION}, Python"
    page = f"{head} {platform.python_version()}, {platform.platform()}\n{text}\n"
    for folder in (Path(note) for note in _notes(error) if isinstance(note, Folder)):
        try:
            if folder.is_dir() and any(folder.iterdir()):  # an empty one stays free for a run
                with open(folder / NAME, "a", encoding="utf-8", opener=_private) as file:
                    file.write(page)
                return folder / NAME
        except OSError:
            continue  # the disk that is full may be this one
    handle, name = tempfile.mkstemp(prefix="triskel-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(page)
    return Path(name)


def masked(text: str) -> str:
    """Return a text without what is known for a token or a password.

    >>> masked("GET https://ann:1234@hub/x?token=abc with hf_abcdefghijkl")
    'GET https://***@hub/x?token=*** with ***'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return SECRET.sub(HIDDEN, text)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
