"""The tables that `result.json` is made of; `result_file` has the whole, and writes and reads it.

What every version has written is required, what came later or stands in some rows only is not.
"""

from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic takes these before Python 3.12
)

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, with_config
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

FIGURES = ("accuracy", "macro_f1", "token_accuracy", "perplexity", "loss")
"""Keys of one evaluation, in the order of a final row."""
Reached = float | None
"""A figure; null where nothing was scored."""
CHECKED = ConfigDict(extra="allow", strict=True)
"""Of outermost tables; those within take it over."""
Number = Annotated[float, Field(strict=True)]
Bound = Number | None
"""An end of an interval; null where it bounds nothing."""


@dataclass(frozen=True)
class _Like:
    """Checks a table in which some keys are known and all others are names of rows."""

    model: type[BaseModel]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return how the table is checked."""
        del source  # any table, to a type checker
        return handler.generate_schema(self.model)


class _Named(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)  # help comes sooner


# --- Figures ----------------------------------------------------------------------------------


class _Further(TypedDict):
    macro_f1: NotRequired[Reached]
    token_accuracy: NotRequired[Reached]
    perplexity: NotRequired[Reached]
    loss: NotRequired[Reached]
    n: NotRequired[int]


class Figures(_Further):
    """One evaluation: shares of right predictions, and the loss in nats a prediction.

    `n` predictions are what they rest on; all are null where there is none.
    """

    accuracy: Reached


class ClientFigures(Figures):
    """One client's own texts; where it trained alone, also its model on everybody's."""

    examples: NotRequired[int]
    everybody: NotRequired[Figures]
    global_accuracy: NotRequired[Reached]
    flops: NotRequired[int]
    kept: NotRequired[int]


class Final(Figures):
    """What a stage ends with, on everybody's texts and on each client's own."""

    own: NotRequired[Figures]
    everybody: NotRequired[Figures]


# --- Costs ------------------------------------------------------------------------------------


class Sums(TypedDict):
    """What crossed in one direction, in bytes."""

    payload_bytes: int
    message_bytes: int
    messages: NotRequired[int]


class SectionBytes(TypedDict):
    """What one section of all messages came to."""

    payload_bytes: int


class Way(Sums):
    """One direction of one client in one round."""

    sections: NotRequired[dict[str, SectionBytes]]


class Spent(TypedDict):
    """What one client spent in one round; `share` is its part in what the round ends with.

    `staleness` is how many rounds earlier the model was sent that its update began from, where
    rounds close with the first updates (`federation.buffer`).
    """

    up: Way
    down: Way
    flops: int
    peak_client_bytes: int
    compute_s: float
    share: NotRequired[float]
    staleness: NotRequired[int]


class SpentTogether(Spent):
    """What many clients spent in one round; `seen` took part in it or before."""

    clients: int
    seen: int


class Server(TypedDict):
    """What the server computed in one round."""

    flops: int


class BothWays(TypedDict):
    """What an engine counted on the network, in bytes."""

    up: int
    down: int


class Scoring(TypedDict):
    """What testing a model sent."""

    up: Sums
    down: Sums


class TotalWay(Sums):
    """One direction of all clients in all rounds."""

    wire_bytes: NotRequired[int]


class Totals(TypedDict):
    """All clients in all rounds; memory is the largest of any."""

    up: TotalWay
    down: TotalWay
    scoring: NotRequired[Scoring]
    client_flops: int
    server_flops: NotRequired[int]
    peak_client_bytes: int
    seconds: float


# --- Rows -------------------------------------------------------------------------------------


class RoundRow(_Further):
    """One round of one stage.

    Rounds that were not tested have no figures; `validation` are those by which a round is chosen
    that a stage ends with. Where clients are many, `sum` and `slowest` stand
    in place of `clients`, and `per_client` in the last round only.
    """

    round: int
    accuracy: NotRequired[Reached]
    own: NotRequired[Figures]
    validation: NotRequired[Figures]
    per_client: NotRequired[dict[str, ClientFigures]]
    everybody: NotRequired[Figures]
    seconds: NotRequired[float]
    server: NotRequired[Server]
    clients: NotRequired[dict[str, Spent]]
    sum: NotRequired[SpentTogether]
    slowest: NotRequired[dict[str, Spent]]
    wire_bytes: NotRequired[BothWays]
    scoring: NotRequired[Scoring]
    absent: NotRequired[dict[str, str]]


class Started(TypedDict):
    """The adapter that training started from: its folder's name, and its tensors' SHA-256."""

    name: str
    sha256: str


@with_config(CHECKED)
class StageRow(TypedDict):
    """A mode, or another stage, from its first round to its last.

    `kept` is the round that it ends with, where that was chosen; `start` what it started from.
    """

    rounds: list[RoundRow]
    totals: Totals
    final: Final
    kept: NotRequired[int]
    start: NotRequired[Started]


class BaselineRow(Final):
    """A baseline: its figures, and what else its kind has.

    `base` has `what`, clients alone `client_flops` and `seconds`, at equal FLOPs also `mode` and
    `rounds_each`, and `central` is a stage.
    """

    what: NotRequired[str]
    mode: NotRequired[str]
    rounds_each: NotRequired[dict[str, int]]
    global_accuracy: NotRequired[Reached]
    client_flops: NotRequired[int]
    seconds: NotRequired[float]
    per_client: dict[str, ClientFigures]
    rounds: NotRequired[list[RoundRow]]
    totals: NotRequired[Totals]
    final: NotRequired[Final]
    kept: NotRequired[int]
    start: NotRequired[Started]


class DroppedRow(TypedDict):
    """A mode played once more with drop-outs."""

    drop_share: float
    everybody: Figures
    own: Figures


# --- What a run was ---------------------------------------------------------------------------


class About(TypedDict):
    """What a mode is, as its package says it."""

    gloss: str
    colour: str
    marker: str
    common: bool
    personal: bool
    sections: dict[str, list[str]]
    stays: str
    risk: str
    trained: NotRequired[str]
    trained_own: NotRequired[str]
    privacy: NotRequired[str]


class TaskAbout(TypedDict):
    """What a task is."""

    name: str
    head: str
    figure: str


class Asked(TypedDict):
    """What was asked of a run; `until` are rows that stop for now, and after which round."""

    modes: NotRequired[list[str]]
    baselines: NotRequired[list[str]]
    drop_share: NotRequired[float]
    strict: NotRequired[bool]
    judge: NotRequired[str]
    until: NotRequired[dict[str, int]]


# --- What tests say, and readings -------------------------------------------------------------


class Interval(TypedDict):
    """A mean with its interval, over `n` runs."""

    mean: Bound
    low: Bound
    high: Bound
    n: int


class Worst(TypedDict):
    """The client whose figure on its own texts is worst."""

    client: str
    own: float


class BetterOff(TypedDict):
    """How many clients do better in a mode than alone, and how many differ beyond chance."""

    clients: int
    more: int
    gain: int
    lose: int


@with_config(CHECKED)
class SummaryRow(TypedDict):
    """What one row reaches."""

    everybody: NotRequired[Interval]
    own: NotRequired[Interval]
    worst: NotRequired[Worst]
    better_off: NotRequired[BetterOff]


@with_config(CHECKED)
class Gap(TypedDict):
    """Two rows in one column: left minus right."""

    left: str
    right: str
    column: str
    figure: str
    primary: NotRequired[bool]
    difference: Bound
    low: Bound
    high: Bound
    p: float
    beyond: bool


@with_config(CHECKED)
class BesideAlone(TypedDict):
    """A client in a mode, beside training alone."""

    difference: Bound
    low: Bound
    high: Bound
    p: float
    verdict: str


class _Summary(_Named):
    """What tests say, and of each row what it reaches."""

    __pydantic_extra__: dict[str, SummaryRow]  # pyright: ignore[reportIncompatibleVariableOverride]
    figure: str
    level: Number
    differences: list[Gap]
    clients: dict[str, dict[str, BesideAlone]] = Field(default={})


class _Within(_Named):
    """The best figure of each mode within a budget; null where no round is."""

    __pydantic_extra__: dict[str, Number | None]  # pyright: ignore[reportIncompatibleVariableOverride]
    budget: Number


class _Reached(_Named):
    """What each mode had spent when it reached a figure; null where it never did."""

    __pydantic_extra__: dict[str, dict[str, Number] | None]  # pyright: ignore[reportIncompatibleVariableOverride]
    target: Number
    what: str


Summary = Annotated[dict[str, Any], _Like(_Summary)]


class LostByDropping(DroppedRow):
    """What a mode reaches with drop-outs, and how far that is from without."""

    difference: NotRequired[Bound]
    low: NotRequired[Bound]
    high: NotRequired[Bound]
    p: NotRequired[float]
    beyond: NotRequired[bool]


class Readings(TypedDict):
    """One comparison read in three ways, and what drop-outs cost."""

    budget: dict[str, list[Annotated[dict[str, Any], _Like(_Within)]]]
    target: list[Annotated[dict[str, Any], _Like(_Reached)]]
    stragglers: dict[str, dict[str, float]]
    robustness: NotRequired[dict[str, LostByDropping]]


class Amounts(TypedDict):
    """What one run or several seeds amount to."""

    summary: NotRequired[Summary]
    readings: NotRequired[Readings]
