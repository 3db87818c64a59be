"""What a run amounted to, typed; a number that was not measured stays `None`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation."""

    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    perplexity: float | None = None
    examples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What crossed in one direction: the whole, and the payload of each section."""

    payload_bytes: float | None = None
    message_bytes: float | None = None
    messages: float | None = None
    sections: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one client spent in one round, or in all of them."""

    up: Traffic
    down: Traffic
    flops: float | None = None
    peak_bytes: float | None = None
    compute_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of one mode.

    `costs` are those of every client, or of the slowest on each link where clients are many; `each`
    is the mean over all who took part. `absent` has the clients of the round that its result does
    without, and why.
    """

    number: int
    score: Score
    per_client: Mapping[str, Score]
    costs: Mapping[str, Cost]
    each: Cost | None = None
    seconds: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class ModeRun:
    """All rounds of one mode.

    `total` is over all clients, `each` the mean over those who took part at all, and `members` how
    many that were, where it is known. `wire` are the bytes up and down that the engine counted on
    a network, where it does; `scoring` those of the messages that tested models, which are in no
    other sum, where there were any.
    """

    name: str
    rounds: tuple[Round, ...]
    planned: int
    final: Score
    total: Cost
    each: Cost | None = None
    members: int | None = None
    seconds: float | None = None
    wire: tuple[float, float] | None = None
    scoring: tuple[float, float] | None = None

    @property
    def per_client(self) -> Mapping[str, Score]:
        """The last score of each client."""
        latest: dict[str, Score] = {}
        for one in self.rounds:
            latest |= one.per_client
        return latest


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What can be reached without a federation."""

    name: str
    score: Score
    what: str
    global_accuracy: float | None
    per_client: Mapping[str, Score]
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How many examples one client holds."""

    train: int
    test: int
    labels: Mapping[str, int]
    words: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of a run: its modes and baselines, and whether a mode may not be skipped."""

    modes: tuple[str, ...]
    baselines: tuple[str, ...]
    strict: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run folder's result."""

    version: str
    job: Json
    environment: Json
    classes: tuple[str, ...]
    public: int | None
    holdings: Mapping[str, Holding]
    baselines: Mapping[str, Baseline]
    skipped: Mapping[str, str]
    modes: Mapping[str, ModeRun]
    stopped: str
    asked: Asked | None = None

    @property
    def causal(self) -> bool:
        """Whether the task is to continue text, so that perplexity ranks and not accuracy."""
        if inner(self.job, "data").get("task") == "causal":
            return any(final(run).perplexity is not None for run in self.scored)
        return False

    @property
    def scored(self) -> tuple[Baseline | ModeRun, ...]:
        """Every baseline and mode."""
        return (*self.baselines.values(), *self.modes.values())

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client that is mentioned, in the order of the data."""
        names: dict[str, None] = dict.fromkeys(self.holdings)
        for run in self.modes.values():
            names |= dict.fromkeys(run.per_client)
            for one in run.rounds:
                names |= dict.fromkeys(one.costs)
        for base in self.baselines.values():
            names |= dict.fromkeys(base.per_client)
        return tuple(names)

    @property
    def tested(self) -> int | None:
        """How many test examples the scores rest on, where it is known."""
        counts = [
            sum(s.examples or 0 for s in run.per_client.values()) for run in self.modes.values()
        ]
        held = sum(share.test for share in self.holdings.values())
        return max([held, *counts]) or None


def final(run: Baseline | ModeRun) -> Score:
    """Return the score that a baseline or a mode ended with."""
    return run.score if isinstance(run, Baseline) else run.final


# --- JSON that may lack anything ---------------------------------------------------------------


def inner(raw: Json, key: str) -> Json:
    """Return the mapping below a key, empty when there is none."""
    value = raw.get(key)
    return cast("Json", value) if isinstance(value, Mapping) else {}


def items(value: object) -> Sequence[Any]:
    """Return a list, empty when the value is none."""
    return cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()


def number(raw: Json, key: str) -> float | None:
    """Return a finite number, or None."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
