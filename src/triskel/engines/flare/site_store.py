"""What a site keeps between rounds, so that a round can be played a second time.

A round that a site played need not have counted: its update may have come too late, or the server
may have gone back. What it left then is no state to go on from, so the server says which round
counted last, and the site starts from exactly what that one left.
"""

import json
from pathlib import Path
from typing import Any

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError, RoundError
from triskel.experiment.checkpoint import KEPT, Filed
from triskel.experiment.client_store import Store
from triskel.types import ClientId, ClientState


class SiteStore:
    """What a site keeps of a stage between rounds.

    Args:
        folder: The stage's folder at the site.
        client: Whose it is.

    Raises:
        CheckpointError: The file that says what is kept is damaged.
    """

    def __init__(self, folder: Path, client: ClientId) -> None:
        self._folder, self._client = folder, client
        self._index = folder / "kept.json"
        known: Any = {"rounds": [], "filed": {}, "counted": []}
        try:
            if self._index.exists():
                known = json_in(self._index)
            self._rounds = [int(one) for one in known["rounds"]]
            self._counted = [int(one) for one in known.get("counted", [])]
            self._filed: dict[int, str | None] = {int(r): s for r, s in known["filed"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self._index} is damaged and does not say what rounds left: {error}; put it "
                "back, or delete this run's folder at the site and submit the job as a new run"
            ) from error

    def took_part_before(self, round_: int) -> bool:
        """Return whether the site took part in a round before this one."""
        return any(r < round_ for r in self._rounds)

    def left_by(self, round_: int, *, needed: bool) -> ClientState:
        """Return what a round left; round 0 left nothing.

        Args:
            round_: The round that counted last.
            needed: Whether there must be something; if not, a site that lost it goes on.

        Raises:
            RoundError: This site does not keep what that round left.
            CheckpointError: Its file is missing or damaged.
        """
        if not round_ or (round_ not in self._filed and not needed):
            return ClientState()
        if round_ not in self._filed:
            held = ", ".join(map(str, sorted(self._filed))) or "no round"
            raise RoundError(
                f"the server counted round {round_} of site {self._client!r} last, which keeps "
                f"what {held} left; it cannot go on from there"
            )
        sha256 = self._filed[round_]
        if sha256 is None:
            return ClientState()
        filed = Filed(round=round_, sha256=sha256)
        return Store(self._folder / "clients", {self._client: filed})[self._client]

    def keep(self, state: ClientState, round_: int, counted: int) -> None:
        """Take what a round left, on disk when this returns.

        What is kept beside it is what the last two rounds left that counted, so that a server may
        go back to the checkpoint before its last.

        Args:
            state: What it left.
            round_: The round.
            counted: The round that it began from, which counted last.
        """
        store = Store(self._folder / "clients")
        store.keep(self._client, state, round_)
        store.flush()
        filed = store.filed.get(self._client)
        self._counted = sorted({r for r in self._counted if r < counted} | {counted})[-KEPT:]
        self._filed = {r: s for r, s in self._filed.items() if r in self._counted}
        self._filed[round_] = filed.sha256 if filed else None
        self._rounds = sorted({r for r in self._rounds if r < round_} | {round_})
        index = {
            "rounds": self._rounds,
            "filed": {str(r): s for r, s in self._filed.items()},
            "counted": self._counted,
        }
        write_text(self._index, json.dumps(index))
        store.sweep([{self._client: Filed(round=r, sha256=s)} for r, s in self._filed.items() if s])
