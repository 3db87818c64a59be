"""Which model a folder holds: the SHA-256 of all that a loader opens, and its number of blocks.

The digest is that of a list with a line for each file, its SHA-256 and its name, in the order of
the names: configuration, tokenizer, and the weights that are loaded, which an index may name. What
the loader would open and this does not cover is refused. `Seals` then holds a folder to what was
hashed: the loader is shown these files and no others, out of a folder that is opened once, and each
must afterwards be the very file of that folder, unchanged, down to the time at which the system
last touched it, which nobody but the system can set.
"""

import hashlib
import os
import re
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triskel.core.untrusted import json_of, table_of
from triskel.errors import DataError

DEPTH = ("num_hidden_layers", "n_layer")
"""Where configurations keep the number of blocks."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = "config.json"
NAMED = frozenset(
    {
        *(CONFIG, "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
        *("spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
    }
)
"""What a loader opens of a folder beside weights, where it is there."""
TOKENIZER = re.compile(r"(tokenizer[\w.-]*|tekken|tiktoken)\.(json|model)(\.\w+)?")
"""More of it: tokenizers for single versions of the library, and of other makes."""
REFUSED = {
    "adapter_config.json": "an adapter that the loader would put on top",
    "additional_chat_templates": "chat templates that are not covered",
}
INDEX_MOST = 64 << 20
"""Bytes of a file that is JSON."""
SNAPSHOTS, BLOBS = "snapshots", "blobs"
"""In the hub's cache: the folder that holds a model's folder, and the one its links lead to."""
FOLDERS = Path("/proc/self/fd")
"""Where Linux has the folders that this process has open."""
Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Weights:
    """A model folder, as a policy sees it.

    Attributes:
        sha256: Of all that is loaded; see the head of this file.
        blocks: How many blocks its configuration names, None where it names none.
    """

    sha256: str
    blocks: int | None


@dataclass
class Seals:
    """What folders were when they were hashed, to be held against when they were loaded.

    Attributes:
        stamps: The files of each folder, and what the system says of each.
    """

    stamps: dict[str, Mapping[str, Stamp]] = field(default_factory=dict[str, Mapping[str, Stamp]])

    def close(self, folder: Path) -> Weights | None:
        """Hash a folder and seal it; None where it holds no safetensors weights.

        Raises:
            DataError: A file cannot be read, or the loader would open what is not covered.
        """
        found, stamps = _read(folder)
        if found is not None:
            self.stamps[str(folder.resolve())] = stamps
        return found

    @contextmanager
    def held(self, folder: str) -> Generator[str]:
        """Open a folder, give a path to load from, and refuse it if it is not what was hashed.

        The path is of a folder with links to the files that were hashed. Where the system has such
        paths, they lead into this very folder whatever is put in its place meanwhile.

        Raises:
            DataError: It was not hashed, or a file of it was touched since.
        """
        before = self.stamps.get(str(Path(folder).resolve()))
        if before is None:
            raise DataError(f"model folder {folder} was not held to the policy")
        try:
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise DataError(f"model folder {folder} cannot be read: {error.strerror}") from error
        try:
            opened = FOLDERS / str(number) if FOLDERS.is_dir() else Path(folder).resolve()
            with TemporaryDirectory(prefix="triskel-model-") as shown:
                for name in before:
                    (Path(shown) / name).symlink_to(opened / name)
                yield shown
            self._compare(folder, opened, before)
        finally:
            os.close(number)

    def _compare(self, folder: str, place: Path, before: Mapping[str, Stamp]) -> None:
        names = _names(place)
        now = {name: _stamp(_inside(place, name).stat()) for name in names}
        if now != before:
            changed = sorted(n for n in {*now, *before} if now.get(n) != before.get(n))
            raise DataError(
                f"{changed[0]} of model folder {folder} was changed while it was loaded; find out "
                "by whom, then submit the job again"
            )


def weights(folder: Path) -> Weights | None:
    """Return what a folder holds, or None where it holds no safetensors weights.

    Raises:
        DataError: A file cannot be read, or the loader would open what is not covered.
    """
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Weights | None, Mapping[str, Stamp]]:
    place = folder.resolve()
    try:
        names = _names(place)
        if not names:
            return None, {}
        lines, stamps, blocks = list[str](), dict[str, Stamp](), None
        for name in names:
            with _inside(place, name).open("rb") as file:
                before = _stamp(os.fstat(file.fileno()))
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if _stamp(os.fstat(file.fileno())) != before:
                    raise DataError(f"{name} of model folder {folder} changes while it is read")
                if name == CONFIG:
                    file.seek(0)
                    blocks = _blocks_in(file.read(INDEX_MOST))
            stamps[name] = before
            lines.append(f"{digest}  {name}\n")
    except OSError as error:
        raise DataError(f"model folder {folder} cannot be read: {error.strerror}") from error
    return Weights(hashlib.sha256("".join(lines).encode()).hexdigest(), blocks), stamps


def _names(folder: Path) -> list[str]:
    """Return the files of a folder that a loader opens, by name; none without weights.

    Raises:
        DataError: It would open more than these.
    """
    there = {entry.name for entry in os.scandir(folder)}
    for name, what in REFUSED.items():
        if name in there:
            raise DataError(f"model folder {folder} holds {name}: {what}; remove it")
    found = {name for name in there if name in NAMED or TOKENIZER.fullmatch(name)}
    if WEIGHTS in there:
        found |= {WEIGHTS}
    elif INDEX in there:
        found |= {INDEX, *_indexed(folder)}
    else:
        return []
    return sorted(found)


def _indexed(folder: Path) -> set[str]:
    """Return the files that an index of weights names.

    Raises:
        DataError: It names none, or places that are no files of the folder.
    """
    with _inside(folder, INDEX).open("rb") as file:
        data = file.read(INDEX_MOST + 1)
    try:
        if len(data) > INDEX_MOST:
            raise ValueError(f"it has more than {INDEX_MOST:,} bytes")  # noqa: TRY301 - told below
        named = list(table_of(table_of(json_of(data.decode("utf-8")))["weight_map"]).values())
    except (ValueError, KeyError) as error:
        raise DataError(f"{INDEX} of model folder {folder} cannot be read: {error}") from error
    strange = [n for n in named if not isinstance(n, str) or not _plain(n)]
    if strange or not named:
        what = f"{strange[0]!r}, which is no file of the folder" if strange else "no file"
        raise DataError(f"{INDEX} of model folder {folder} names {what}")
    return set(map(str, named))


def _plain(name: str) -> bool:
    return name.endswith(".safetensors") and not set(name) & set("/\\\0") and name[0] != "."


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a folder, where it is a plain one, or the hub's cache keeps it for it.

    The folder may be one that is open; the places of links are told by where it is.

    Raises:
        DataError: It is a link that leads elsewhere, or no plain file.
    """
    place = folder / name
    about = place.lstat()
    if stat.S_ISLNK(about.st_mode):
        here = folder.resolve()
        cached = here.parent.parent / BLOBS if here.parent.name == SNAPSHOTS else None
        goal = place.resolve()
        if cached is None or goal.parent != cached or not goal.is_file():
            raise DataError(
                f"{name} of model folder {folder} is a link out of it; put the file there"
            )
        return goal
    if not stat.S_ISREG(about.st_mode):
        raise DataError(f"{name} of model folder {folder} is no plain file")
    return place


def _stamp(about: os.stat_result) -> Stamp:
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _blocks_in(text: bytes) -> int | None:
    try:
        config: Any = json_of(text.decode("utf-8"))
    except ValueError:
        return None
    found = [config.get(key) for key in DEPTH] if isinstance(config, dict) else []
    return next((n for n in found if type(n) is int and n > 0), None)
