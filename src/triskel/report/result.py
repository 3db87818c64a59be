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
class Span:
    """A mean and its interval, over `n` runs and, where they were kept, over test texts."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of one mode.

    `score` is on everybody's texts, and `band` the interval over seeds of its figure that ranks.
    `costs` are those of every client, or of the slowest on each link where clients are many;
    `total` is the sum over all who took part and `each` their mean. `absent` has the clients of the
    round that its result does without, and why.
    """

    number: int
    score: Score
    per_client: Mapping[str, Score]
    costs: Mapping[str, Cost]
    total: Cost | None = None
    each: Cost | None = None
    band: Span | None = None
    seconds: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class About:
    """What a mode is, as the result says it (`descriptions.about_of`).

    `common` says whether the server ends with a model, `personal` whether clients end with models
    of their own; `sections` are in words what a section is on its way up, and down.
    """

    gloss: str = ""
    colour: str = "#7d848d"
    marker: str = "circle"
    common: bool = True
    personal: bool = False
    sections: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    stays: str = "nobody says"
    risk: str = "Nobody says."


@dataclass(frozen=True, kw_only=True)
class ModeRun:
    """All rounds of one mode.

    `everybody` is the common model on everybody's test texts, `own` each client's own model where
    it has one, else the common one, on the client's own test texts, pooled over texts. `total` is
    over all clients, `each` the mean over those who took part at all, and `members` how
    many that were, where it is known. `server_flops` are the server's, all rounds together,
    `scoring` the bytes up and down that scoring took where it crossed a wire, and `wire` those that
    the engine counted on a network, where it does. `kept` is the round that it ends with, where
    that was the best on validation texts, and `start` the adapter that it started from.
    """

    name: str
    rounds: tuple[Round, ...]
    planned: int
    everybody: Score
    own: Score
    total: Cost
    each: Cost | None = None
    members: int | None = None
    seconds: float | None = None
    server_flops: float | None = None
    wire: tuple[float, float] | None = None
    scoring: tuple[float, float] | None = None
    about: About = About()
    kept: int | None = None
    start: str = ""

    @property
    def per_client(self) -> Mapping[str, Score]:
        """The last score of each client, or that of the round kept."""
        latest: dict[str, Score] = {}
        for one in self.rounds:
            if self.kept is None or one.number <= self.kept:
                latest |= one.per_client
        return latest


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What can be reached without a federation.

    The columns are those of a mode; where every client trained alone, `everybody` is the mean over
    their models. `flops` are the mean of a client, where it was counted; `kept` and `start` are
    as of a mode.
    """

    name: str
    everybody: Score
    own: Score
    what: str
    per_client: Mapping[str, Score]
    seconds: float | None = None
    flops: float | None = None
    kept: int | None = None
    start: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two rows are apart on one column: left minus right, and whether beyond chance."""

    left: str
    right: str
    column: str
    lower_is_better: bool
    difference: float
    low: float
    high: float
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What tests say over runs and texts; without one nothing is called a difference.

    `spans` are by row and column, `clients` by mode and client: `gain`, `lose` or `even` beside
    training alone, and the difference, positive where the client gains.
    """

    level: float
    spans: Mapping[str, Mapping[str, Span]]
    differences: tuple[Difference, ...]
    clients: Mapping[str, Mapping[str, tuple[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How many examples one client holds.

    `unread` is the share of its texts' tokens that nobody reads, as they are longer than the job
    has it.
    """

    train: int
    test: int
    labels: Mapping[str, int]
    words: float | None = None
    unread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of a run.

    `strict` says that no mode may be skipped, `drop_share` the share of clients with which each
    mode is played once more, and `seeds` are those of a comparison over several.
    """

    modes: tuple[str, ...]
    baselines: tuple[str, ...]
    strict: bool
    drop_share: float = 0.0
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run folder's result.

    `figure` ranks rows (`accuracy` or `perplexity`), `head` is what the model ends with, and
    `about` says what each mode is that was played or skipped.
    `validation` says that figures are on validation texts and test texts were not read. Of several
    seeds, every figure is the mean over them, `runs` has each by itself, and job, data
    and environment are those of the first.
    """

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
    figure: str = "accuracy"
    head: str = "classes"
    about: Mapping[str, About] = field(default_factory=dict[str, About])
    summary: Summary | None = None
    readings: Json = field(default_factory=dict[str, Any])
    validation: bool = False
    seeds: tuple[int, ...] = ()
    runs: tuple["Result", ...] = ()

    @property
    def by_loss(self) -> bool:
        """Whether perplexity ranks and not accuracy; only where it was measured."""
        return self.figure == "perplexity" and any(
            run.own.perplexity is not None for run in self.scored
        )

    @property
    def texts(self) -> str:
        """What the scores rest on, as it is called."""
        return "validation texts" if self.validation else "test texts"

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
        """How many test texts the scores rest on, where it is known; one of many tokens is one."""
        held = sum(share.test for share in self.holdings.values())
        if held or self.head == "vocabulary":  # its clients count tokens
            return held or None
        counts = [
            sum(s.examples or 0 for s in run.per_client.values()) for run in self.modes.values()
        ]
        return max(counts, default=0) or None


def mark(result: Result, score: Score) -> float | None:
    """Return the figure that ranks: perplexity (lower is better) or accuracy.

    A score on no texts has none.
    """
    if score.examples == 0:
        return None
    return score.perplexity if result.by_loss else score.accuracy


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
