"""Which model a folder holds: the SHA-256 of its weights, and its number of blocks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triskel.errors import DataError
from triskel.untrusted import json_in

DEPTH = ("num_hidden_layers", "n_layer")
"""Where configurations keep the number of blocks."""


@dataclass(frozen=True)
class Weights:
    """A model folder, as a policy sees it.

    Attributes:
        sha256: Of the weights; see `weights`.
        blocks: How many blocks its configuration names, None where it names none.
    """

    sha256: str
    blocks: int | None


def weights(folder: Path) -> Weights | None:
    """Return what a folder holds, or None where it holds no safetensors weights.

    With one file of weights the checksum is that file's. With several it is that of what
    `sha256sum *.safetensors` prints, files in the order of their names.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        files = sorted(folder.glob("*.safetensors"), key=lambda file: file.name)
        sums = [(_sha256_of(file), file.name) for file in files]
        if not sums:
            return None
        printed = "".join(f"{one}  {name}\n" for one, name in sums)
        whole = sums[0][0] if len(sums) == 1 else hashlib.sha256(printed.encode()).hexdigest()
        return Weights(whole, _blocks_of(folder / "config.json"))
    except OSError as error:
        raise DataError(f"model folder {folder} cannot be read: {error.strerror}") from error


def _blocks_of(file: Path) -> int | None:
    try:
        config: Any = json_in(file)
    except (FileNotFoundError, ValueError):
        return None
    found = [config.get(key) for key in DEPTH] if isinstance(config, dict) else []
    return next((n for n in found if type(n) is int and n > 0), None)


def _sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
