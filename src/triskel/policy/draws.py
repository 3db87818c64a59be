"""What a site draws of its own: which rows are held out and which a cap keeps, by a secret.

A job's seed is public, so a subsample drawn by it is known: two jobs whose caps differ by one would
differ by one row that who submits them can name. A site draws by a secret that it keeps for every
dataset and shows nobody. The same question has the same answer in every job; any other question
(another cap, another share) has an answer of its own, and no sample is nested in another.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from filelock import FileLock

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.errors import DataError
from triskel.policy.rules import Policy

FILE = "draws.json"
BYTES = 32


def key_of(path: str, known: Iterable[str] = ()) -> str:
    """Return what a file of a dataset is called: its real place, whatever names lead there.

    Args:
        path: The file.
        known: Places that are known; one that is the same file by another name is returned.
    """
    place = os.path.realpath(path)
    for other in known:
        try:
            if Path(place).samefile(other):
                return other
        except OSError:
            continue
    return place


def files_of(policy: Policy, names: Sequence[str]) -> list[str]:
    """Return the real places of the files of some datasets; of one that is not there, nothing."""
    found: list[str] = []
    for name in names:
        if (dataset := policy.datasets.get(name)) is not None:
            found += [key_of(path, found) for path in dataset.paths]
    return list(dict.fromkeys(found))


class Draws:
    """Draws rows of a site.

    Args:
        folder: Where the site keeps its secrets: `draws.json`, which nobody else may read.
        files: Real places of the dataset's files.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._place, self._files = folder / FILE, sorted(files)

    def seed(self, *question: str | float) -> int:
        """Return the seed of a draw, named by everything that the draw depends on.

        Raises:
            DataError: The secrets cannot be read or kept.
        """
        text = json.dumps([self._files, *question])
        digest = hmac.digest(self._secret(), text.encode(), hashlib.sha256)
        return int.from_bytes(digest, "big")

    def _secret(self) -> bytes:
        """Return the secret of the dataset's first file, made when it is first asked for."""
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._place.with_suffix(".lock")):
                known = self._known()
                name = key_of(self._files[0], known) if self._files else ""
                if name not in known:
                    known = {**known, name: secrets.token_hex(BYTES)}
                    write_text(self._place, json.dumps(known, indent=1))
                return bytes.fromhex(known[name])
        except (OSError, ValueError) as error:
            why = f"{self._place}, by which rows are drawn, cannot be kept: {error}"
            raise DataError(why) from error

    def _known(self) -> Mapping[str, str]:
        if not self._place.exists():
            return {}
        found: object = json_in(self._place)
        if not isinstance(found, dict) or not all(
            isinstance(one, str) and len(one) == 2 * BYTES for one in found.values()
        ):
            raise ValueError("it is not what a site wrote")
        return cast("Mapping[str, str]", found)
