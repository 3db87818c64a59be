"""What is told of a run as it goes, in types, and the one place where its log is written and read.

Whoever plays a run tells a `Watch`: a display, and the log `events.jsonl`. An event is a plain
dictionary, since one is told for every training step and message; `event` names it. Functions here
make them, and nobody else does. `stamped` adds where it happened: the stage, and the round.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic takes these before Python 3.12
    Protocol,
    cast,
    runtime_checkable,
)

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from triskel.core.crash import EXPECTED, Place
from triskel.core.files import private
from triskel.core.untrusted import json_of, plain
from triskel.errors import TriskelError

NAME = "events.jsonl"
LISTED = 100
"""Longer lists are written to the log as their length."""
QUIET = frozenset({"step", "message"})
"""Events too frequent for the log file."""
LATEST = 1e11
"""Seconds since 1970 that a clock may show; the year 5138."""
LONGEST_LINE = 1 << 20
"""Characters of the first line of a log."""

Event = Mapping[str, Any]
"""One of the tables below; a reader passes over what it does not know."""


@runtime_checkable
class Watch(Protocol):
    """Whoever wants to see a run as it goes: a log file, a progress display."""

    def __call__(self, event: Event, /) -> None:
        """Take note of one event."""
        ...


# --- Events -----------------------------------------------------------------------------------


class _Told(TypedDict):
    """Where it happened, and in the log, in seconds since 1970, when."""

    time: NotRequired[float]
    stage: NotRequired[str]
    round: NotRequired[int]


class RunStart(_Told):
    """A run begins; `work` is about how many tokens each stage trains on.

    In the log, lists of more than 100 names are their length.
    """

    event: Literal["run_start"]
    stages: list[str] | int
    clients: list[str] | int
    rounds: int
    examples: int
    work: dict[str, int]


class RunEnd(_Told):
    """A run is over."""

    event: Literal["run_end"]
    seconds: float


class _Scored(_Told):
    accuracy: NotRequired[float | None]
    macro_f1: NotRequired[float | None]
    token_accuracy: NotRequired[float | None]
    perplexity: NotRequired[float | None]
    loss: NotRequired[float | None]
    n: NotRequired[int]


class StageStart(_Told):
    """A baseline or mode begins; `rounds` is 0 where it is only scored."""

    event: Literal["stage_start"]
    rounds: int


class StageEnd(_Scored):
    """A baseline or mode is over, with the figures it ends with."""

    event: Literal["stage_end"]
    own: NotRequired[dict[str, float | None]]
    everybody: NotRequired[dict[str, float | None]]
    seconds: NotRequired[float]


class RoundStart(_Told):
    """A round begins with these clients."""

    event: Literal["round_start"]
    clients: list[str] | int


class RoundEnd(_Scored):
    """A round is closed: its figures, and what all clients sent, received and computed."""

    event: Literal["round_end"]
    seconds: float
    up_bytes: int
    down_bytes: int
    flops: int


class Evaluate(_Told):
    """What a round ends with is scored."""

    event: Literal["evaluate"]


class Step(_Told):
    """A client took a training step; not in the log."""

    event: Literal["step"]
    client: str
    phase: str
    loss: float
    tokens: int


class MessageSent(_Told):
    """A message crossed; not in the log."""

    event: Literal["message"]
    client: str
    direction: Literal["up", "down"]
    kind: str
    topic: str
    bytes: int


class SeedStart(_Told):
    """One of several seeds begins."""

    event: Literal["seed_start"]
    seed: int
    number: int
    of: int


class SettingStart(_Told):
    """A setting of a sweep begins, or goes on; where it is halved, to which round."""

    event: Literal["setting_start"]
    setting: str
    number: int
    of: int
    rounds: NotRequired[int]


class Said(_Told):
    """Something that a user should know; `failed` is what ended a run."""

    event: Literal["note", "warning", "failed"]
    text: str


_ANY = Annotated[
    RunStart
    | RunEnd
    | StageStart
    | StageEnd
    | RoundStart
    | RoundEnd
    | Evaluate
    | Step
    | MessageSent
    | SeedStart
    | SettingStart
    | Said,
    Field(discriminator="event"),
]


def run_start(
    stages: list[str],
    *,
    clients: list[str],
    rounds: int,
    examples: int,
    work: dict[str, int],
) -> RunStart:
    """Return the event of a run that begins; `work` is in tokens, by stage."""
    return {
        "event": "run_start",
        "stages": stages,
        "clients": clients,
        "rounds": rounds,
        "examples": examples,
        "work": work,
    }


def run_end(seconds: float) -> RunEnd:
    """Return the event of a run that is over."""
    return {"event": "run_end", "seconds": seconds}


def stage_start(stage: str, rounds: int) -> StageStart:
    """Return the event of a stage that begins."""
    return {"event": "stage_start", "stage": stage, "rounds": rounds}


def stage_end(stage: str, figures: Mapping[str, object], seconds: float | None = None) -> StageEnd:
    """Return the event of a stage that is over, with what it ends with."""
    took = {} if seconds is None else {"seconds": seconds}
    return cast("StageEnd", {"event": "stage_end", "stage": stage, **figures, **took})


def round_start(clients: list[str]) -> RoundStart:
    """Return the event of a round that begins with these clients."""
    return {"event": "round_start", "clients": clients}


def round_end(figures: Mapping[str, float], *, up_bytes: int, down_bytes: int, flops: int) -> Event:
    """Return the event of a round that is closed."""
    spent = {"up_bytes": up_bytes, "down_bytes": down_bytes, "flops": flops}
    return cast("RoundEnd", {"event": "round_end", **figures, **spent})


def evaluate() -> Evaluate:
    """Return the event of a round that is scored."""
    return {"event": "evaluate"}


def step(client: str, *, round_: int, phase: str, loss: float, tokens: int) -> Step:
    """Return the event of a training step."""
    return {
        "event": "step",
        "client": client,
        "round": round_,
        "phase": phase,
        "loss": loss,
        "tokens": tokens,
    }


def message(
    client: str, direction: Literal["up", "down"], *, kind: str, topic: str, size: int
) -> MessageSent:
    """Return the event of a message of so many bytes."""
    return {
        "event": "message",
        "client": client,
        "direction": direction,
        "kind": kind,
        "topic": topic,
        "bytes": size,
    }


def seed_start(seed: int, *, number: int, of: int) -> SeedStart:
    """Return the event of a seed that begins."""
    return {"event": "seed_start", "seed": seed, "number": number, "of": of}


def setting_start(setting: str, *, number: int, of: int) -> SettingStart:
    """Return the event of a setting that begins."""
    return {"event": "setting_start", "setting": setting, "number": number, "of": of}


def note(text: str) -> Said:
    """Return the event of something worth knowing."""
    return {"event": "note", "text": text}


def warning(text: str) -> Said:
    """Return the event of something that a user should look at."""
    return {"event": "warning", "text": text}


def failed(text: str) -> Said:
    """Return the event of what ended a run."""
    return {"event": "failed", "text": text}


def kind_of(event: Event) -> str:
    """Return which event it is, empty where it does not say."""
    kind = event.get("event")
    return kind if isinstance(kind, str) else ""


def stamped(watch: Watch, **where: str | int) -> Callable[[Event], None]:
    """Return a watch that adds to every event where it happened."""

    def here(event: Event) -> None:
        watch({**event, **where})

    return here


def schema_of() -> dict[str, Any]:
    """Return the JSON schema of an event, which is a line of `events.jsonl`."""
    return {"title": f"a line of {NAME} of triskel", **TypeAdapter[Any](_ANY).json_schema()}


# --- The log ----------------------------------------------------------------------------------


class Log(AbstractContextManager["Log"]):
    """Writes events to a file, one JSON line each, and passes them on.

    A log that a kill cut in the middle of a line is mended before it goes on.
    """

    def __init__(self, place: Path, watch: Watch) -> None:
        """Open the log at its end."""
        self._watch = watch
        self._at = ""
        private(place.parent)
        if place.exists():
            whole = place.read_bytes()
            place.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self._file = place.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write an event down, unless it is one of thousands, and pass it on."""
        self._watch(event)
        self._at = _place(event, self._at)
        if kind_of(event) not in QUIET:
            line = json.dumps({"time": round(time.time(), 3), **_short(event)})
            self._file.write(f"{line}\n")
            self._file.flush()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write down what stopped the run, and close."""
        if isinstance(error, TriskelError):
            self(failed(str(error)))
        elif error is not None:
            if self._at and not isinstance(error, EXPECTED):
                error.add_note(Place(self._at))
            self(failed(f"{type(error).__name__}"))
        self._file.close()


def began(folder: Path) -> float | None:
    """Return when a run wrote the first line of its log, in seconds since 1970.

    A log that is not there, or that a kill cut in its first line, tells no time.
    """
    try:
        with os.fdopen(plain(folder / NAME), encoding="utf-8") as file:
            found = float(json_of(file.readline(LONGEST_LINE))["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if 0 <= found < LATEST else None


def _place(event: Event, before: str) -> str:
    """Return where a run is after an event: the stage, and the round."""
    stage, round_ = event.get("stage", ""), event.get("round")
    match kind_of(event):
        case "round_start":
            return f"in round {round_} of {stage}"
        case "stage_start" | "round_end":
            return f"in {stage}"
        case "stage_end":
            return ""
        case _:
            return before


def _short(event: Event) -> dict[str, Any]:
    """Return an event with its long lists counted: 10,000 names are no line of a log."""
    return {
        k: len(v) if isinstance(v, list | tuple) and len(v) > LISTED else v
        for k, v in event.items()
    }
