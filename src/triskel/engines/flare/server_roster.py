"""Who takes part in a run, as its server knows it: what each site says it holds, numbers only."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from triskel.config.job import Job, ModeName
from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.engines.flare.protocol import Lost, Peer, Reply, patience, text, whole
from triskel.engines.flare.submission import other_code, other_plugins, own_code, own_plugins
from triskel.errors import CheckpointError, MessageError, RoundError
from triskel.types import ClientId

LOADING_S = 30.0
"""How long a site may be silent at least before the first round: its process begins to load."""
READY_S = 600.0
"""How long sites have to read their data and load their models, or to save one."""
AGAIN_S = 1.0
"""Pause before a call that got no reply is made again."""
PING_S = 3.0
"""How long a client that was lost before has to say that it is there."""


@dataclass(frozen=True, kw_only=True)
class Present:
    """What a site says it holds.

    Attributes:
        examples: Its training examples.
        tests: Its test examples.
        tokens: Of its training examples together.
    """

    examples: int
    tests: int
    tokens: int


@dataclass(frozen=True)
class Met:
    """How a site was found before it takes part.

    Attributes:
        why: Why it does not, as far as is known.
        standing: `away` if it may be there next time, `failed` if it says that it cannot,
            `refuses` if it will not have the job, with others or without.
        present: What it holds, once it is ready.
    """

    why: str = ""
    standing: Literal["away", "failed", "refuses"] = "away"
    present: Present | None = None


def met_in(reply: Reply, job: Job, modes: Sequence[ModeName]) -> Met:
    """Return what a site says of itself: nothing yet, while it is not ready.

    Args:
        reply: To `hello`.
        job: What was submitted; packages that bring what it names must be the same on both sides.
        modes: What is to be played.

    Raises:
        MessageError: It cannot be read.
    """
    state = text(reply, "state")
    if strange := other_code(reply, "the site"):
        return Met(strange, "refuses")
    if state in {"refused", "failed"}:
        why = text(reply, "error", longest=2000) or f"it {state}"
        return Met(why, "refuses" if state == "refused" else "failed")
    if state == "preparing":
        return Met()
    if state != "ready":
        raise MessageError(f"a site is never {state!r} before the first round")
    if strange := other_plugins(reply, "the site", job, modes):
        return Met(strange, "refuses")
    holds = ("examples", "tests", "tokens")
    return Met(present=Present(**{name: whole(reply, name) for name in holds}))


def who(met: Mapping[ClientId, Met], standing: str) -> str:
    """Return the sites of one standing that take no part, with their reasons."""
    some = {c: one.why for c, one in met.items() if one.standing == standing and not one.present}
    return "; ".join(f"{client}: {why}" for client, why in sorted(some.items()))


@dataclass(kw_only=True)
class Roster:
    """The sites of a run: asked before the first round, and again when one was away.

    Attributes:
        place: The file that says who takes part, there now or not, and what each said it holds.
        peers: The way to each site of the job.
        stopped: Says why the job must stop, or nothing.
        present: What each site of the run said it holds; nothing of one that has not said so yet.
        job: What was submitted.
        modes: What is played.
    """

    place: Path
    peers: Mapping[ClientId, Peer]
    stopped: Callable[[], str]
    present: dict[ClientId, Present | None] = field(default_factory=dict[ClientId, Present | None])
    job: Job = field(default_factory=Job)
    modes: Sequence[ModeName] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Take those with whom the run began, or all peers where it begins now.

        Raises:
            CheckpointError: The file that says who takes part is damaged.
        """
        self.present = dict(self._began() or dict.fromkeys(sorted(self.peers)))

    def meet(self, job: Job, modes: Sequence[ModeName]) -> Mapping[ClientId, Met]:
        """Ask every site of the run at the same time, wait for all, and note what they hold.

        Args:
            job: What was submitted.
            modes: What is played.

        Raises:
            RoundError: The job was stopped meanwhile.
        """
        self.job, self.modes = job, modes
        met = {client: Met("did not answer") for client in self.present}
        threads = [
            threading.Thread(target=self._greet, args=(client, met), daemon=True)
            for client in met
            if client in self.peers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(AGAIN_S)
                if why := self.stopped():
                    raise RoundError(why)
        self.present |= {c: one.present for c, one in met.items() if one.present is not None}
        return met

    def welcome(self, client: ClientId) -> str:
        """Ask a site that was away whether it is ready; return why it is not, or nothing.

        Raises:
            Lost: It is still away.
        """
        one = self._hello(client, PING_S)
        if one.present is None:
            return one.why or "it reads its data"
        with self._lock:  # several may be back at once
            if self.present[client] is None:
                self.present[client] = one.present
                self.keep()
        return "" if one.present.examples else "it holds no training example"

    def keep(self) -> None:
        """Write down who takes part, and what each said it holds."""
        held = {c: one and asdict(one) for c, one in sorted(self.present.items())}
        write_text(self.place, json.dumps(held))

    def examples(self, client: ClientId) -> int | None:
        """Return how many training examples a site said it holds."""
        one = self.present.get(client)
        return None if one is None else one.examples

    def _began(self) -> Mapping[ClientId, Present | None]:
        """Return with whom the run began; nobody before it did."""
        if not self.place.exists():
            return {}
        try:
            known = json_in(self.place)
            return {client: one and Present(**one) for client, one in known.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.place} does not say who takes part: {error}") from error

    def _greet(self, client: ClientId, met: dict[ClientId, Met]) -> None:
        """Ask a site who it is until it is ready, refuses, or is not heard of any more."""
        start = heard = time.monotonic()
        while not self.stopped():
            now = time.monotonic()
            if now - heard > max(self.job.federation.patience_s, LOADING_S):
                return
            if now - start > READY_S:
                met[client] = Met(f"it was not ready after {READY_S:g} s")
                return
            try:
                one = self._hello(client, patience())
                heard = time.monotonic()
                if one.present is not None or one.why:
                    met[client] = one
                    return
            except Lost:
                time.sleep(AGAIN_S)
            except MessageError as error:
                met[client] = Met(f"its reply cannot be read: {error}", "failed")
                return

    def _hello(self, client: ClientId, timeout_s: float) -> Met:
        about = {
            **own_code(),
            **own_plugins(self.job, self.modes),
            "clients": len(self.present),
        }
        reply = self.peers[client].call("hello", timeout_s, {"about": about})
        return met_in(reply, self.job, self.modes)
