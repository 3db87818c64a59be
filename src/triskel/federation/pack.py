"""A kit as one file that only its owner can read, encrypted where a password is given.

A kit holds a private key. `tar` as it is usually called writes a file that everybody on the machine
can read, and keeps it so on the way. Encryption is AES-256-GCM under a key that scrypt (RFC 7914)
makes of the password; a file that was changed on its way does not open.
"""

import io
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from triskel.core.files import private
from triskel.core.untrusted import data_of, plain, printable
from triskel.errors import JobError
from triskel.federation.kits import Kit, kit_at
from triskel.federation.startup import swap

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"TRISKEL-KIT-1\n"
MOST = 64 << 20
"""Bytes of a kit, and of a packed one."""
FILES = 10_000
INFLATED = MOST + 2_048 * FILES
"""Bytes of an archive as it is read; each file has a head, and an end that is filled up."""
LEFT_OUT = ("triskel", "jobs", "snapshots", "local/models")
"""What runs leave, and models, which are fetched where they are used."""
SALT, NONCE = 16, 12
BROKEN = (
    *(tarfile.TarError, zlib.error, OSError, EOFError, ValueError),
    *(RecursionError, OverflowError),  # headers about headers, and numbers beyond any file
)
"""What comes of an archive that is damaged."""
WORK = {"n": 2**15, "r": 8, "p": 1}
"""Of scrypt: 32 MB, about a tenth of a second."""


def pack(kit: Kit, target: Path, password: bytes = b"") -> Path:
    """Write a kit as one file of mode 0600.

    Raises:
        JobError: The file is there already, or cannot be written; the kit is too large.
    """
    data = _packed(kit)
    if password:
        salt, nonce = secrets.token_bytes(SALT), secrets.token_bytes(NONCE)
        data = MAGIC + salt + nonce + _cipher(password, salt).encrypt(nonce, data, MAGIC)
    if len(data) > MOST:
        raise JobError(f"{kit.path} packs to more than {MOST:,} bytes beside runs; clean it")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise JobError(f"{target} exists; name another file with --out, or remove it") from None
    except OSError as error:
        raise JobError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _packed(kit: Kit) -> bytes:
    out, total = io.BytesIO(), 0
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for place in _files(kit.path):
            info = tarfile.TarInfo(f"{kit.path.name}/{place.relative_to(kit.path).as_posix()}")
            with os.fdopen(plain(place), "rb") as file:
                about = os.fstat(file.fileno())
                info.size, info.mode = about.st_size, 0o700 if about.st_mode & 0o100 else 0o600
                total += info.size
                if total > MOST:
                    raise JobError(
                        f"{kit.path} holds more than {MOST:,} bytes beside runs; clean it"
                    )
                archive.addfile(info, file)
    return out.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    for place in sorted(folder.rglob("*")):
        inside = place.relative_to(folder).as_posix()
        if any(inside == name or inside.startswith(f"{name}/") for name in LEFT_OUT):
            continue
        if place.is_file() and not place.is_symlink() and not place.name.endswith((".log", ".pid")):
            yield place


def _cipher(password: bytes, salt: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers import aead
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return aead.AESGCM(Scrypt(salt=salt, length=32, **WORK).derive(password))


def encrypted(file: Path) -> bool:
    """Return whether a packed kit opens with a password only."""
    try:
        with os.fdopen(plain(file), "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError) as error:
        raise JobError(f"{file} cannot be read: {error}") from error


def unpack(file: Path, folder: Path, password: bytes = b"", *, renew: bool = False) -> Kit:
    """Write a packed kit below a folder, for its owner alone, whole or not at all.

    Args:
        file: The packed kit.
        folder: Where its folder goes.
        password: What it was encrypted with.
        renew: Whether the kit is there, and gets the new certificate and key only.

    Raises:
        JobError: It is no packed kit, the password is another one, or the kit is there already, or
            is not there and is renewed.
        FederationError: The node that is renewed runs.
    """
    try:
        data = data_of(file, most=MOST)
    except (OSError, ValueError) as error:
        raise JobError(f"{file} cannot be read: {error}") from error
    if data.startswith(MAGIC):
        data = _opened(file, data, password)
    private(folder)
    with TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        try:
            top = _unpacked(_inflated(data), work)
        except BROKEN as error:
            raise JobError(f"{file} is no packed kit: {error}") from error
        target, found = folder / top, kit_at(work / top)
        if found is None or not printable(found.name):
            raise JobError(f"{file} holds no kit; `triskel federation pack` makes one of a kit")
        if renew:
            return _renewed(target, work / top)
        if target.exists() or target.is_symlink():
            raise JobError(
                f"{target} exists; remove it to unpack anew, or give it the new certificate only "
                "with --renew"
            )
        shutil.move(work / top, target)
    return replace(found, path=target.resolve())


def _renewed(target: Path, fresh: Path) -> Kit:
    there = kit_at(target)
    if there is None:
        raise JobError(f"{target} is no kit; leave out --renew to make one")
    return swap(there, fresh)


def _inflated(data: bytes) -> bytes:
    """Return what gzip packed, within the bytes of a kit: also headers are read into memory."""
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    found = engine.decompress(data, INFLATED)
    if engine.unconsumed_tail or not engine.eof:
        raise ValueError("it holds more than a kit does, or was cut")
    return found


def _opened(file: Path, data: bytes, password: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    if not password:
        raise JobError(f"{file} is encrypted; give the file of its password with --password-file")
    start = len(MAGIC)
    salt, nonce = data[start : start + SALT], data[start + SALT : start + SALT + NONCE]
    try:
        return _cipher(password, salt).decrypt(nonce, data[start + SALT + NONCE :], MAGIC)
    except (InvalidTag, ValueError) as error:
        raise JobError(
            f"{file} does not open: the password is another one, or the file was changed"
        ) from error


def _unpacked(data: bytes, work: Path) -> str:
    """Write the plain files of an archive; return the one folder that they are in."""
    tops, left = set[str](), MOST
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for number, info in enumerate(archive):
            place = PurePosixPath(info.name)
            top, *inner = place.parts or ("",)
            if number >= FILES or info.size > left:
                raise ValueError("it holds more than a kit does")
            if info.isdir():
                continue
            outside = place.is_absolute() or ".." in place.parts or not inner
            if not info.isreg() or outside or not printable(info.name):
                raise ValueError(f"it holds {info.name!r}, which is no file of a kit")
            left -= info.size
            tops.add(top)
            goal = work / place
            goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            source = archive.extractfile(info)
            if source is None:
                raise ValueError(f"it holds {info.name!r} without its bytes")
            mode = 0o700 if info.mode & 0o100 else 0o600
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(goal, flags, mode), "wb") as out:
                shutil.copyfileobj(source, out)
    if len(tops) != 1:
        raise ValueError("it holds no kit, or several")
    (top,) = tops
    (work / top).chmod(0o700)
    return top
