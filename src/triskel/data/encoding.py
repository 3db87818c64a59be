"""The text of a data file: out of the archive that it is in, and in the encoding that it has.

What is UTF-8 is read as UTF-8, with a byte-order mark or without; UTF-16 and UTF-32 are known by
their marks, or by their zeros. Of what is left, only Western European texts are taken for what
they are (Windows-1252, of which Latin-1 is the printable part), and only where nothing speaks
against it: other encodings look alike to a program, so a job must name them.
"""

import bz2
import gzip
import lzma
import re
import zipfile
from pathlib import Path, PurePosixPath

from triskel.core.untrusted import BROKEN
from triskel.errors import DataError

WESTERN = "cp1252"
"""What is taken for granted where a text is not UTF-8 and looks Western European."""
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte-order marks; the longer first."""
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
PACKED = (
    b"\x1f\x8b",
    *(b"BZh%d1AY&SY" % level for level in range(1, 10)),
    b"\xfd7zXZ\x00",
    *ZIP,
)
"""How archives of gzip, bzip2, xz and zip begin."""
LOOKED_AT = 1 << 16
"""Bytes that tell UTF-16 without a mark."""
ZEROS = 0.4
"""Share of one of two bytes that is zero, above which a text is UTF-16."""
FEW = 0.3
"""Letters beyond ASCII by letters of ASCII, below which a text is Western."""
SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
"""A character beyond ASCII in UTF-8."""
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
LOWER = "a-zß-öø-ÿœšžªº"
UPPER = "A-ZÀ-ÖØ-ÞŒŠŽŸ"
BETWEEN = "\u2018\u2019\u00b4\u2013\u2014\u00b7\u00ad"
"""What stands within words and is no letter: apostrophes, dashes, a dot, a soft hyphen."""
UNLIKELY = re.compile(
    rf"(?<=[{LOWER}{UPPER}])[^\x00-\x7f{LOWER}{UPPER}{BETWEEN}](?=[{LOWER}{UPPER}])"
    rf"|(?<=[{LOWER}])[À-ÖØ-ÞŒŠŽŸ]"
)
"""A sign within a word, or a capital after a small letter: the text is in another encoding."""


# --- archives ---------------------------------------------------------------------------------


def data_of(path: Path, most: int | None = None) -> bytes:
    """Return a file's bytes, unpacked where the file is an archive of one.

    Args:
        path: The file.
        most: How many bytes are wanted; None is all.

    Raises:
        DataError: It cannot be read, or is an archive that is damaged or holds several files.
    """
    size = -1 if most is None else most
    try:
        with path.open("rb") as file:
            start = file.read(10)
            if not start.startswith(PACKED):
                return start + file.read(size if size < 0 else max(0, size - len(start)))
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                return file.read(size)
        if start[:4] in ZIP:
            return _zipped(path, size)
        with bz2.open(path) if start[:3] == b"BZh" else lzma.open(path) as file:
            return file.read(size)
    except BROKEN as error:
        raise DataError(
            f"data file {path} is a damaged archive: {_reason(error)}; pack it again"
        ) from None
    except OSError as error:
        why = error.strerror or _reason(error)
        raise DataError(f"data file {path} cannot be read: {why}") from None


def _zipped(path: Path, size: int) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/")
            and not PurePosixPath(name).name.startswith(".")
            and not name.startswith("__MACOSX/")
        ]
        if "[Content_Types].xml" in names or "mimetype" in names:
            raise DataError(
                f"data file {path} is a spreadsheet: name it as one (.xlsx, .ods), or save it as "
                "CSV"
            )
        if len(names) != 1:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")  # noqa: PLR2004
            raise DataError(
                f"data file {path} is an archive of {len(names)} files ({some}), and one is read; "
                "unpack it and name the one that is meant"
            )
        with archive.open(names[0]) as file:
            return file.read(size)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- encodings --------------------------------------------------------------------------------


def text_of(path: Path, encoding: str = "") -> str:
    """Return a file's text.

    Args:
        path: The file.
        encoding: What it is encoded in; empty: found by looking.

    Raises:
        DataError: The file cannot be read, or is no text in that encoding.
    """
    data = data_of(path)
    name = encoding or encoding_of(data, path)
    try:
        return data.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"data file {path} is not {_known(name)} text (line {line}, byte {error.start}); "
            "set data.encoding to what it is, or save it as UTF-8"
        ) from None


def start_of(path: Path, most: int, encoding: str = "") -> str:
    """Return the first characters of a file's text; what cannot be read there is replaced.

    Raises:
        DataError: The file cannot be read, or is in an encoding that a job must name.
    """
    data = data_of(path, most)
    whole = len(data) < most
    name = encoding or encoding_of(data if whole else data[: data.rfind(b"\n") + 1] or data, path)
    return data.decode(name, "replace").removeprefix("\ufeff")


def encoding_of(data: bytes, path: Path) -> str:
    """Return what a text is encoded in, found by looking.

    Raises:
        DataError: It is in none that can be told from others; the sentence names the file.
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    start = data[:LOOKED_AT]
    if len(start) > 1:
        zero = [part.count(0) / len(part) for part in (start[0::2], start[1::2])]
        if zero[1] > ZEROS and zero[0] < zero[1] / 4:
            return "utf-16-le"
        if zero[0] > ZEROS and zero[1] < zero[0] / 4:
            return "utf-16-be"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if _western(data):
            return WESTERN
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"data file {path} is not UTF-8 text (line {line}, byte {error.start}), nor clearly "
            "another; set data.encoding to what it is (cp1252, cp1250, shift_jis, ...), or save it "
            "as UTF-8"
        ) from None
    return "utf-8"


def _western(data: bytes) -> bool:
    """Return whether a text that is not UTF-8 is Western European, as far as can be seen."""
    sequences = SEQUENCE.findall(data)
    beyond = sum(byte > 0x7F for byte in data)  # noqa: PLR2004 - the last of ASCII
    if 2 * sum(map(len, sequences)) > beyond:
        return False  # UTF-8, and damaged
    try:
        text = data.decode(WESTERN)
    except UnicodeDecodeError:
        return False
    letters = len(re.findall(r"[A-Za-z]", text))
    return beyond < FEW * letters and not CONTROL.search(text) and not UNLIKELY.search(text)


def _known(name: str) -> str:
    return "UTF-8" if name in {"utf-8", "utf-8-sig"} else name
