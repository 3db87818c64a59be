"""A site that has a valid certificate and a part in the job, and abuses both.

It runs on a machine of its own, so nothing of ours keeps it from naming this class; what it tried,
and what it was told, is in `triskel/tried.json` of its kit.
"""

# ruff: noqa: ANN401, BLE001 - an intruder respects nothing

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.collab import collab
from nvflare.collab.api.call_opt import CallOption

from triskel.engines.flare import Client as Honest

MB = 1_000_000
REPLY_S = 8.0 * float(os.environ.get("TRISKEL_SLOWNESS", "1"))
"""How long it waits for a reply: as tests do (`tests/helpers/patience.py`)."""
TRIED: dict[str, str] = {}


def tried(what: str, attempt: Callable[[], Any]) -> None:
    try:
        reply = attempt()
        said = reply.get("gone") or reply.get("error") or str(reply)
    except Exception as error:
        said = str(error)
    TRIED[what] = said


def raw(method: str, arguments: Mapping[str, Any], *, name: str | None = None) -> Any:
    """Call the server past the checks of the caller's own proxy, under any name."""
    backend = collab.server.backend
    honest, backend.caller = backend.caller, name or backend.caller
    try:
        option = CallOption(timeout=REPLY_S)
        return backend._call_target(collab.context, "server", option, method, **arguments)
    finally:
        backend.caller = honest


class Client(Honest):
    """A site's object; each round of it does something else."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self._round = 0
        self._old = b""

    @collab.publish
    def begin(self, order: dict[str, Any]) -> Any:
        """Try everything that the round has in store, then play on."""
        play, root = order["play"], Path(collab.workspace.get_root_dir())
        if order["what"] == "work" and order["round"] != self._round:
            self._round = order["round"]
            if self._round == 1:
                self._loud(play)
            ask = {"play": play, "ticket": 1, "taken": 0, "waits": True}
            if self._round == 3:
                garbage = b"\x93NUMPY" * 999
                tried("garbage", lambda: collab.server(timeout=REPLY_S).ask(**ask, data=garbage))
            if self._round == 4:
                large = bytes(3 * MB)
                tried("large", lambda: collab.server(timeout=REPLY_S).ask(**ask, data=large))
            file = root / "triskel" / "tried.json"
            file.write_text(json.dumps(TRIED), encoding="utf-8")
        return super().begin(order)

    def _loud(self, play: str) -> None:
        """Calls that must change nothing; after them it still has its place."""
        for method in ("_board", "play", "__init__"):
            tried(f"method {method}", lambda method=method: raw(method, {}))
        tried("forged name", lambda: raw("fetch", {"play": play}, name="bank"))
        (bank,) = collab.get_clients(["bank"])
        tried("another client", lambda: bank(timeout=REPLY_S).hand_over(play=play))
        tried("old play", lambda: collab.server(timeout=REPLY_S).fetch(play="params/0/work"))
        ask = {"play": play, "ticket": 1, "taken": 0, "waits": False}
        tried("no bytes", lambda: collab.server(timeout=REPLY_S).ask(**ask, data={"a": 1}))
        tried("no play", lambda: collab.server(timeout=REPLY_S).fetch(play=["params/1/work"]))
        huge = bytes(9 * 2**20)
        tried("oversized", lambda: collab.server(timeout=REPLY_S).ask(**ask, data=huge))

    @collab.publish
    def hand_over(self, play: str) -> Any:
        """Hand over the update of round 1 in round 2."""
        reply, part = super().hand_over(play), play.rpartition("/")[0]
        if part == "params/1/work":
            self._old = reply["update"]
        if part == "params/2/work":
            return {**reply, "update": self._old}
        return reply
