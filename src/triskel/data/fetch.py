"""One archive from the Python package index, through pip, checked before anyone opens it."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from triskel.errors import DataError

TIMEOUT_S = 1800


def archive(
    requirement: str, *, file: str, sha256: str, folder: Path, say: Callable[[str], None]
) -> Path:
    """Return the archive in `folder`, fetched unless it is there already.

    Args:
        requirement: A pinned requirement, such as `name==1.0`.
        file: The file that pip brings for it.
        sha256: What the file must hash to.
        folder: Where archives are kept.
        say: Shown a line before a download starts.

    Raises:
        DataError: pip is missing or fails, or the file is not the pinned one.
    """
    kept = folder / "archives" / file
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_file() and _sha256(kept) == sha256:
        return kept
    say(f"fetching {requirement} with pip")
    for left in kept.parent.glob(f".fetching-{file}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".fetching-{file}-", dir=kept.parent) as into:
        _pip(requirement, sha256=sha256, into=Path(into), kept=kept)
        brought = Path(into) / file
        if not brought.is_file():
            names = ", ".join(sorted(p.name for p in Path(into).iterdir())) or "nothing"
            raise DataError(f"pip brought {names} for {requirement}, and {file} is needed")
        if (found := _sha256(brought)) != sha256:
            raise DataError(
                f"{file} has SHA-256 {found} instead of {sha256}; whoever served it serves "
                "something else, so it was thrown away"
            )
        brought.replace(kept)
    return kept


def unpack(packed: Path, wanted: re.Pattern[str], into: Path) -> list[Path]:
    """Write those files of a zip or tar archive whose names match, without their folders.

    Only plain files are written, and only under their last name, so that no archive can reach
    outside `into`.

    Raises:
        DataError: The archive is damaged, or holds two wanted files of one name.
    """
    written: list[Path] = []

    def place(name: str) -> Path:
        path = into / Path(name.replace("\\", "/")).name
        if path in written:
            raise DataError(f"archive {packed.name} holds two files named {path.name}")
        written.append(path)
        return path

    try:
        if zipfile.is_zipfile(packed):
            with zipfile.ZipFile(packed) as source:
                for item in source.infolist():
                    if not item.is_dir() and wanted.search(item.filename):
                        with source.open(item) as data, place(item.filename).open("wb") as file:
                            shutil.copyfileobj(data, file)
        else:
            with tarfile.open(packed) as source:
                for member in source:
                    data = source.extractfile(member) if member.isfile() else None
                    if data is not None and wanted.search(member.name):
                        with place(member.name).open("wb") as file:
                            shutil.copyfileobj(data, file)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"archive {packed.name} cannot be unpacked: {error}") from error
    return written


def _pip(requirement: str, *, sha256: str, into: Path, kept: Path) -> None:
    by_hand = f"; offline, put {kept.name} into {kept.parent} yourself"
    pins = into / "pins.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(into), "--requirement", str(pins)]
    if kept.suffix != ".whl":
        command += ["--no-binary", requirement.partition("==")[0]]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"pip did not fetch {requirement} within {TIMEOUT_S} s; try again{by_hand}"
        ) from None
    finally:
        pins.unlink(missing_ok=True)
    if done.returncode:
        raise DataError(f"pip could not fetch {requirement}: {_reason(done.stderr)}{by_hand}")


def _reason(stderr: str) -> str:
    """Return the one line of pip's complaint that says most."""
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip (`python -m ensurepip` adds it)"
    if re.search(r"Retrying|connection|from versions: none", stderr):
        return "the package index cannot be reached, or does not have it"
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the index serves other bytes than the pinned ones"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return lines[-1].removeprefix("ERROR:").strip() if lines else "pip gave no reason"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
