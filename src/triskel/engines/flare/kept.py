"""What a site keeps between rounds, so that a round can be played a second time."""

import json
from pathlib import Path
from typing import Any

from triskel.checkpoint import KEPT, Filed, write_text
from triskel.store import Store
from triskel.types import ClientId, ClientState
from triskel.untrusted import json_in


class Kept:
    """What a site keeps of a stage between rounds, for the last two rounds it took part in.

    A round that is played again, because the server went back to its last checkpoint, starts from
    what the rounds before it left.

    Args:
        folder: The stage's folder at the site.
        client: Whose it is.
    """

    def __init__(self, folder: Path, client: ClientId) -> None:
        self._folder, self._client = folder, client
        self._index = folder / "kept.json"
        known: Any = {"rounds": [], "filed": {}}
        if self._index.exists():
            known = json_in(self._index)
        self._rounds: list[int] = known["rounds"]
        self._filed: dict[int, str | None] = {int(r): s for r, s in known["filed"].items()}

    def took_part_before(self, round_: int) -> bool:
        """Return whether the site took part in a round before this one."""
        return any(r < round_ for r in self._rounds)

    def before(self, round_: int) -> ClientState:
        """Return what the last round before this one left.

        Raises:
            CheckpointError: Its file is missing or damaged.
        """
        earlier = [r for r in self._filed if r < round_]
        sha256 = self._filed[max(earlier)] if earlier else None
        if sha256 is None:
            return ClientState()
        filed = Filed(round=max(earlier), sha256=sha256)
        return Store(self._folder / "clients", {self._client: filed})[self._client]

    def keep(self, state: ClientState, round_: int) -> None:
        """Take what a round left, on disk when this returns."""
        store = Store(self._folder / "clients")
        store.keep(self._client, state, round_)
        store.flush()
        filed = store.filed.get(self._client)
        self._filed = {r: s for r, s in self._filed.items() if r < round_}
        self._filed[round_] = filed.sha256 if filed else None
        for old in sorted(self._filed)[:-KEPT]:
            del self._filed[old]
        self._rounds = sorted({r for r in self._rounds if r < round_} | {round_})
        index = {"rounds": self._rounds, "filed": {str(r): s for r, s in self._filed.items()}}
        write_text(self._index, json.dumps(index))
        store.sweep([{self._client: Filed(round=r, sha256=s)} for r, s in self._filed.items() if s])
