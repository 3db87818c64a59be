"""Which models a site tested: one of each kind a round, so that it is not probed without end.

A test is bound to the bytes of its task. It may be made again with the same bytes, as a server does
that was started anew; with others only once the site has played the round anew.
"""

import json
from pathlib import Path
from typing import Any

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.engines.flare.protocol import What
from triskel.errors import CheckpointError, LimitError


class Answered:
    """The tests of a stage at a site.

    Args:
        folder: The stage's folder at the site.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tests.json"

    def take(self, round_: int, what: What, sha256: str) -> None:
        """Note a part that is about to be played.

        Raises:
            LimitError: Another model of this round was tested before.
            CheckpointError: What was tested before cannot be read or written down.
        """
        known, place = self._read(), str(round_)
        if what == "work":
            known.pop(place, None)
        else:
            before = known.setdefault(place, {}).setdefault(what, sha256)
            if before != sha256:
                raise LimitError(
                    f"round {round_} was tested here with another model; a site tests one a round"
                )
        write_text(self._file, json.dumps(known))

    def _read(self) -> dict[str, dict[str, str]]:
        if not self._file.exists():
            return {}
        try:
            found: Any = json_in(self._file)
            return {str(r): {str(w): str(s) for w, s in one.items()} for r, one in found.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self._file} does not say what was tested: {error}") from error
