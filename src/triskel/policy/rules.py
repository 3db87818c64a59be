"""The site's policy: what an organisation lets a job do with its data, typed and checked.

A policy belongs to the site and never travels; `read` has it from a file. What it does not name, it
does not allow: an empty policy refuses every job. `decide` holds a job against it.
"""

import re
from collections.abc import Collection, Mapping
from datetime import time
from typing import Annotated, Any, Literal, Self, cast
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.types import Strict

from triskel.core.dialect import Delimiter, Encoding
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Options, typed
from triskel.core.registry import CODECS, MODES, Origin, Registry
from triskel.errors import PluginError

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# A policy is read strictly: true is not 1, and "yes" is not true.
Number = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Step = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Least = Annotated[int, Strict(), Field(ge=1)]
Count = Annotated[int, Strict(), Field(ge=0)]
Name = Annotated[StrictStr, Field(min_length=1)]


def _clock(value: object) -> object:
    """Return a time of day out of TOML's own or of `"18:00"`."""
    try:
        found = time.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, time) or found.tzinfo is not None:
        raise ValueError(f'must be a time of day such as "18:00", got {str(value)!r}')
    return found


def _zone(value: object) -> object:
    """Return a time zone by its name; it is loaded here, so that deciding reads no file."""
    try:
        return ZoneInfo(cast("str", value))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(
            f'must be a time zone such as "Europe/Zurich" or "UTC", got {value!r}; where none is '
            "known, install the package tzdata"
        ) from None


Clock = Annotated[time, BeforeValidator(_clock)]
Zone = Annotated[ZoneInfo, BeforeValidator(_zone)]


class Dataset(Options):
    """Where a named dataset lies, which of its columns a job may name, and who may read it.

    How its files are written is found by looking, unless it is said here.
    """

    paths: Annotated[tuple[Name, ...], Field(min_length=1)]
    columns: Annotated[Mapping[Name, Name], Field(min_length=1)]
    public: StrictBool = False
    delimiter: Delimiter = ""
    encoding: Encoding = ""
    header: StrictBool | None = None


class Leave(Options):
    """What may leave the site, beyond what the allowed modes always send."""

    activations: StrictBool = False
    labels: StrictBool = False
    texts: StrictBool = False


class Limits(Options):
    """How much may leave, and among how many."""

    round_mb: Number = 100.0
    message_mb: Number = 256.0
    cohort: Least = 3


class Floors(Options):
    """How few rows a job may rest on here, counted after caps and after tokenising."""

    train: Least = 50
    test: Least = 50


class ScoresOut(Options):
    """How exactly a site says what a model reaches on its texts; a step of 0 is exact."""

    loss_step: Step = 0.05
    share_step: Annotated[Step, Field(lt=1)] = 0.02
    table: StrictBool = False


class Budget(Options):
    """How much all jobs together may have of one dataset, by day (UTC) and ever."""

    jobs_day: Least = 4
    jobs: Least = 50
    rounds_day: Least = 40
    rounds: Least = 400
    scores_day: Least = 40
    scores: Least = 200
    mb_day: Number = 2_000.0
    mb: Number = 20_000.0


class Privacy(Options):
    """What a job must do to what leaves."""

    clip: Number | None = None
    noise: Number | None = None
    secure_aggregation: StrictBool = False


class Hours(Options):
    """When a job may start; a window that ends before it opens ends on the next day."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    zone: Zone
    opens: Clock
    closes: Clock
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS

    @model_validator(mode="after")
    def _a_window(self) -> Self:
        if self.opens == self.closes:
            raise ValueError("opens and closes are equal; leave [hours] out to allow any time")
        return self


class Flare(Options):
    """What the site knows of FLARE's own rules."""

    filters_do_not_apply: StrictBool = False


class Pin(Options):
    """Whose code a mode of another package must be; anybody can give a package's mode a name."""

    package: Name
    version: StrictStr = ""
    sha256: Annotated[StrictStr, Field(pattern="^([0-9a-fA-F]{64})?$")] = ""

    def against(self, found: Origin | None) -> str:
        """Return what is other than pinned, or nothing."""
        if found is None:
            return "has no such mode installed"
        for key, wanted in (
            ("package", self.package),
            ("version", self.version),
            ("sha256", self.sha256.lower()),
        ):
            if wanted and wanted != getattr(found, key):
                return f"has it of {key} {getattr(found, key)!r}, and pins {wanted!r}"
        return ""


class Policy(Options):
    """What a site allows.

    Beside these sections it holds those of modes that have some, by their names: `of` returns one.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    site: StrictStr = ""
    plugins: Mapping[Name, Pin] = Field(default_factory=dict)
    modes: tuple[Name, ...] = ()
    submitters: tuple[Name, ...] = ()
    codecs: tuple[Name, ...] = ("fp32",)
    models: Mapping[Name, StrictStr] = Field(default_factory=dict)
    datasets: Mapping[Name, Dataset] = Field(default_factory=dict)
    leave: Leave = Leave()
    limits: Limits = Limits()
    floors: Floors = Floors()
    scores: ScoresOut = ScoresOut()
    budget: Budget = Budget()
    privacy: Privacy = Privacy()
    flare: Flare = Flare()
    hours: Hours | None = None

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, given: object) -> object:
        """Type the sections of modes: built-in ones, and others whose package is the pinned one."""
        if not isinstance(given, Mapping):
            return given
        found = dict(cast("Mapping[str, Any]", given))
        for spec in MODES.built_in():
            if spec.limits is not None:
                found.setdefault(spec.name, {})
        pins = found.get("plugins")
        pinned = set(cast("Mapping[str, Any]", pins)) if isinstance(pins, Mapping) else set[str]()
        other = {k: v for k, v in found.items() if k in pinned and not _trusted(k, pins)}
        rest = {k: v for k, v in found.items() if k not in other}

        def kind(name: str) -> type[Options] | None:
            known = name in MODES.ours or name in pinned
            return MODES.spec(name).limits if known else None

        return {**typed(rest, cls.model_fields, kind), **other}

    @field_validator("modes")
    @classmethod
    def _are_known(cls, modes: tuple[str, ...], info: Any) -> tuple[str, ...]:  # noqa: ANN401
        pins = info.data.get("plugins") or {}
        return _pinned(MODES, modes, pins)

    @field_validator("codecs")
    @classmethod
    def _travel(cls, codecs: tuple[str, ...], info: Any) -> tuple[str, ...]:  # noqa: ANN401
        return _pinned(CODECS, codecs, info.data.get("plugins") or {})

    def of(self, spec: ModeSpec[Any]) -> Options:
        """Return a mode's section, for a mode that has one; its defaults where none is given."""
        section = (self.__pydantic_extra__ or {}).get(spec.name)
        kind = spec.limits or Options
        return section if isinstance(section, kind) else kind()

    @field_validator("models")
    @classmethod
    def _checksums(cls, models: Mapping[str, str]) -> Mapping[str, str]:
        for name, sha256 in models.items():
            if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
                raise ValueError(
                    f"names {name!r} with {sha256!r}, and a SHA-256 has 64 hexadecimal digits; "
                    "`triskel site hash FOLDER` prints it"
                )
        return {name: sha256.lower() for name, sha256 in models.items()}


def _pinned(
    registry: Registry[Any], names: tuple[str, ...], pins: Collection[str]
) -> tuple[str, ...]:
    """Return names that are all ours or pinned.

    Raises:
        ValueError: One is neither.
    """
    for name in names:
        if name not in registry.ours and name not in pins:
            raise ValueError(
                f"names {name!r}, and Triskel brings {', '.join(registry.ours)}; a {registry.noun} "
                f'of another package needs its package as well: plugins.{name}.package = "..."'
            )
    return names


def _trusted(mode: str, pins: object) -> bool:
    """Return whether a mode's package is the one that is pinned, so that it may be imported."""
    try:
        pin = Pin.model_validate(cast("Mapping[str, Any]", pins)[mode])
        return mode in MODES.names() and not pin.against(MODES.origin(mode))
    except (ValidationError, PluginError):
        return False


STRICT: Mapping[str, type[BaseModel]] = {"floors": Floors, "scores": ScoresOut, "budget": Budget}
"""Tables that policies of earlier versions do not have."""


def unsaid(policy: Policy) -> str:
    """Return a line with the strict values that hold since the policy does not name them.

    >>> unsaid(Policy(floors=Floors(train=20)))[:58]
    'not in this policy, so the strict values hold: floors.test'
    """
    found: list[str] = []
    for name, kind in STRICT.items():
        part: BaseModel = getattr(policy, name)
        for key in kind.model_fields:
            if key not in part.model_fields_set:
                value = getattr(part, key)
                told = str(value).lower() if isinstance(value, bool) else f"{value:g}"
                found.append(f"{name}.{key} = {told}")
    return f"not in this policy, so the strict values hold: {', '.join(found)}" if found else ""


def held_to(policy: Policy) -> list[str]:
    """Return what every job is held to, whatever it asks: a line for each floor and budget.

    >>> held_to(Policy())[1]
    'floors.test: 50 test rows at least, or none'
    """
    floors, scores, budget = policy.floors, policy.scores, policy.budget
    loss, share = f"{scores.loss_step:g}", f"{scores.share_step:g}"
    table = "leaves" if scores.table else "stays"
    found = [
        f"floors.train: {floors.train} training rows at least",
        f"floors.test: {floors.test} test rows at least, or none",
        f"scores: losses in steps of {loss}, shares in steps of {share}; the table {table}",
    ]
    for key, what in (
        ("jobs", "jobs"), ("rounds", "rounds"), ("scores", "tests of a model"), ("mb", "MB"),
    ):  # fmt: skip
        most, day = getattr(budget, key), getattr(budget, f"{key}_day")
        found.append(f"budget.{key}: of a dataset {most:g} {what}, {day:g} a day")
    return found
