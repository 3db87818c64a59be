"""The job: everything a run depends on, typed and checked before anything is loaded.

Whatever cannot work is refused here, with the place, the value and a way out: sections that
contradict each other, and a mode that cannot carry what the job asks. The sections of modes are
typed by their specs (`core.mode_spec`): a job has those of the built-in modes, of the mode it
names, and others that are given.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, cast

from pydantic import ConfigDict, field_validator, model_serializer, model_validator

from triskel.config.names import kept, known_name, mode_section, untyped
from triskel.config.sections import (
    BESIDE_FEW_BITS,
    DROPPING,
    EVERY_BLOCK,
    LOWRANK,
    Adapter,
    Clients,
    Data,
    Evaluate,
    FederationOptions,
    Model,
    Override,
    Partition,
    Train,
    Wire,
    is_name,
)
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Count, Options, Positive, typed
from triskel.core.registry import AGGREGATES, MODES, TASKS

ModeName = str
"""A mode that `core.registry` knows."""
MODE_NAMES: tuple[ModeName, ...] = MODES.ours
"""The modes that come with Triskel, which are compared unless others are named."""
ALSO = "\n"
"""Stands between several contradictions of one job."""
ALONE = "alone"
"""In a context: keys are looked at one by one, and may contradict each other."""
MODES_STAND_BEFORE = "evaluate"
"""Where the sections of modes stand among those of a job."""


class Job(Options):
    """Everything a run depends on.

    Beside these sections it holds those of modes, by their names: `ModeSpec.of` returns one.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "opinions"
    mode: ModeName = MODES.default
    seed: Count = 0
    rounds: Positive = 2
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    clients: Clients = Clients()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    wire: Wire = Wire()
    federation: FederationOptions = FederationOptions()

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, given: object, info: Any) -> object:  # noqa: ANN401 - pydantic's
        """Type the sections of modes, and add those that every job has."""
        if not isinstance(given, Mapping):
            return given
        found = dict(cast("Mapping[str, Any]", given))
        named = found.get("mode", MODES.default)
        if (
            isinstance(named, str)
            and named not in found
            and named in MODES.names()
            and not kept(MODES, named, info)
        ):
            found[named] = {}
        for spec in MODES.built_in():
            found.setdefault(spec.name, {})
        foreign = untyped(found, cls.model_fields, info)
        rest = {k: v for k, v in found.items() if k not in foreign}
        _one_count(rest)
        _length(rest, info)
        return {**typed(rest, cls.model_fields, mode_section), **foreign}

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, value: str, info: Any) -> str:  # noqa: ANN401 - pydantic's
        return known_name(MODES, value, info)

    @model_serializer(mode="wrap")
    def _in_order(self, write: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Return sections of modes where they always stood, the built-in ones first."""
        found = write(self)
        extra = (self.__pydantic_extra__ or {}).keys()
        order = (*MODES.ours, *sorted(extra - set(MODES.ours)))
        modes = {name: found.pop(name) for name in order if name in found}
        head = dict[str, Any]()
        for key in list(found):
            if key == MODES_STAND_BEFORE:
                break
            head[key] = found.pop(key)
        return {**head, **modes, **found}

    @model_validator(mode="after")
    def _coherent(self, info: Any) -> Self:  # noqa: ANN401 - pydantic's
        problems = list(_contradictions(self, info))
        if problems and not (info.context or {}).get(ALONE):
            raise ValueError(ALSO.join(problems))
        return self

    @property
    def partition(self) -> Partition:
        """How examples are dealt to clients, once defaults are applied."""
        if self.clients.partition is not None:
            return self.clients.partition
        return "natural" if self.data.source in {"opinions", "clients"} else "iid"

    def tested(self, round_: int) -> bool:
        """Return whether models are tested after a round; they are after the last one."""
        every = self.evaluate.every
        return round_ == self.rounds or (every > 0 and round_ < self.rounds and not round_ % every)

    @property
    def tests(self) -> int:
        """After how many rounds models are tested."""
        return math.ceil(self.rounds / self.evaluate.every) if self.evaluate.every else 1

    @property
    def specs(self) -> tuple[ModeSpec[Any], ...]:
        """The modes whose sections this job holds: the built-in ones, then others by name."""
        extra = self.__pydantic_extra__ or {}
        names = (*MODES.ours, *sorted(extra.keys() - set(MODES.ours)))
        return tuple(MODES.spec(name) for name in names if isinstance(extra.get(name), Options))

    @property
    def public_count(self) -> int:
        """How many public texts are held out or read: `data.public_count`, however it was given."""
        if self.data.public_count is not None:
            return self.data.public_count
        specs = [spec for spec in MODES.built_in() if spec.public_key]
        return max((getattr(spec.of(self), spec.public_key) for spec in specs), default=0)

    def playing(self, modes: Iterable[str]) -> Self:
        """Return the job with a section for each of these modes, the default where it has none."""
        extra = self.__pydantic_extra__ or {}
        more = {name: MODES.spec(name).options() for name in modes if name not in extra}
        return self.model_copy(update=more) if more else self

    def client(self, name: str) -> Override:
        """Return what client `name` does differently."""
        return self.clients.each.get(name, Override())


def _length(found: dict[str, Any], info: Any) -> None:  # noqa: ANN401 - pydantic's
    """Give `train.max_tokens` the default of the task, where it has one and the job says none."""
    data, train = found.get("data", {}), found.get("train", {})
    if isinstance(data, Options):
        data = data.model_dump()
    if isinstance(train, Options):
        train = train.model_dump()
    if not isinstance(data, Mapping) or not isinstance(train, Mapping):
        return
    task = cast("Mapping[str, Any]", data).get("task", TASKS.default)
    if not isinstance(task, str) or task not in TASKS.names() or kept(TASKS, task, info):
        return
    default = TASKS.spec(task).max_tokens
    if default and cast("Mapping[str, Any]", train).get("max_tokens") is None:
        found["train"] = {**train, "max_tokens": default}


def _one_count(found: dict[str, Any]) -> None:
    """Make `data.public_count`, where it is given, what modes say of public texts as well.

    Raises:
        ValueError: A mode's own key says another number.
    """
    data = found.get("data")
    count = (
        cast("Mapping[str, Any]", data).get("public_count") if isinstance(data, Mapping) else None
    )
    for spec in MODES.built_in() if isinstance(count, int) else ():
        name, key, section = spec.name, spec.public_key, found[spec.name]
        if isinstance(section, Options):
            section = section.model_dump(exclude_unset=True)
        if not key or not isinstance(section, Mapping):
            continue
        own = cast("Mapping[str, Any]", section)
        if own.get(key, count) != count:
            raise ValueError(
                f"data.public_count is {count} and {name}.{key} is {own[key]}; give one of them"
            )
        found[name] = {**own, key: count}


def _contradictions(job: Job, info: Any) -> Iterator[str]:  # noqa: ANN401 - pydantic's
    yield from _about_data(job.data, may_import=not kept(TASKS, job.data.task, info))
    yield from _about_clients(job)
    yield from _about_adapter(job.adapter)
    yield from _about_quantised(job)
    yield from _about_ends(job)
    for spec in job.specs:
        named = getattr(spec.of(job), spec.aggregate_key) if spec.aggregate_key else None
        if named is not None:
            known_name(AGGREGATES, named, info, f"{spec.name}.{spec.aggregate_key} ")
            sums_up = None if kept(AGGREGATES, named, info) else AGGREGATES.spec(named)
            if sums_up is not None and sums_up.side_factors and job.adapter.kind not in LOWRANK:
                yield (
                    f"{spec.name}.{spec.aggregate_key} {named!r} works with adapters of low rank "
                    f"({', '.join(LOWRANK)}), not with {job.adapter.kind}"
                )
        for problem in spec.problems(spec.of(job)):
            yield f"{spec.name}.{problem}"
        for client, own in job.clients.each.items():
            if given := own.of(spec):
                short = (
                    given.keys() & spec.short_client_keys & (own.__pydantic_extra__ or {}).keys()
                )
                place = f"clients.each.{client}." + ("" if short else f"{spec.name}.")
                yield from (f"{place}{problem}" for problem in spec.problems(spec.of(job, client)))


def _about_adapter(adapter: Adapter) -> Iterator[str]:
    """Yield which options a kind does not read."""
    if adapter.dropout and adapter.kind not in DROPPING:
        yield f"adapter.dropout works with {', '.join(DROPPING)}, not with {adapter.kind}"
    if adapter.projection is not None and adapter.kind != "vera":
        yield f"adapter.projection is read by vera only, not by {adapter.kind}; leave it out"
    if adapter.kind in EVERY_BLOCK:
        for key in ("targets", "blocks"):
            if getattr(adapter, key) != Adapter.model_fields[key].default:
                yield (
                    f"adapter.{key} is not read by {adapter.kind}, which stands before a text "
                    "in every block; leave it out"
                )


def _about_quantised(job: Job) -> Iterator[str]:
    """Yield what a base in fewer bits cannot do."""
    how, kind = job.model.quantise, job.adapter.kind
    if how == "none":
        return
    if kind not in (can := BESIDE_FEW_BITS[how]):
        yield (
            f'model.quantise "{how}" works with {", ".join(can)}, not with {kind}, which '
            "needs the weights themselves"
        )
    if job.model.dtype == "float64":
        yield f'model.quantise "{how}" computes in float32 or bfloat16, not in float64'
    if job.model.compute == "fast":
        yield f'model.quantise "{how}" has no fused blocks: model.compute must be reference or auto'


def _about_ends(job: Job) -> Iterator[str]:
    """Yield what is wrong with what training starts from, and with the round that it ends with."""
    if job.train.keep == "best" and not job.data.validation_share:
        yield (
            'train.keep "best" needs rows to choose a round by: set data.validation_share, to 0.2 '
            "for one"
        )
    for client, own in job.clients.each.items() if job.adapter.start else ():
        if own.model or own.rank:
            key = "model" if own.model else "rank"
            yield (
                f"adapter.start is one adapter for all clients, and clients.each.{client}.{key} is "
                "its own; leave one of them out"
            )


def _about_data(data: Data, *, may_import: bool) -> Iterator[str]:
    if data.source == "hub" and not data.hub:
        yield 'data.hub must name a dataset such as "org/name" when data.source is "hub"'
    if data.source not in {"hub", "opinions"} and not data.train:
        yield f'data.train must name a file or folder when data.source is "{data.source}"'
    if may_import:
        yield from TASKS.spec(data.task).problems(data)


def _about_clients(job: Job) -> Iterator[str]:
    named = job.data.source in {"opinions", "clients"}
    if job.partition in {"dirichlet", "shards"} and not (job.data.label or named):
        yield f'clients.partition "{job.partition}" needs data.label to name a column'
    if job.partition == "natural" and not (job.clients.by or named):
        yield 'clients.by must name a column when clients.partition is "natural"'


def unfederated(job: Job, mode: ModeName) -> str | None:
    """Return why `mode` cannot run this job between organisations, or None when it can.

    What a job starts from is at the server, and its sites get it with the first task; where they
    keep models of their own, they would have to have it.
    """
    start = job.adapter.start
    if start and not is_name(start):
        return (
            "adapter.start must be the name of an adapter that the server has (adapters/NAME "
            f"beside its policy), got {start!r}: no path of a job is opened"
        )
    if start and MODES.spec(mode).traits.personal_models:
        return (
            f"adapter.start works with modes that send every site the common model; in {mode} a "
            "site has a model of its own, and the adapter is not there: leave it out"
        )
    if job.train.keep == "best":
        return (
            'train.keep must be "last": sites score models on their test rows, so no validation '
            "figure reaches the server"
        )
    return None


def unsupported(job: Job, mode: ModeName) -> str | None:
    """Return why `mode` cannot run this job, or None when it can.

    `compare` skips a mode with the reason; `run` refuses the job with it.
    """
    can = MODES.spec(mode).traits
    each = job.clients.each
    other = sorted({e.model for e in each.values() if e.model and e.model != job.model.path})
    ranks = sorted({e.rank for e in each.values() if e.rank and e.rank != job.adapter.rank})
    if other and not can.mixed_models:
        return f"clients use different models ({', '.join(other)}), and {mode} needs one model"
    if ranks and not can.mixed_ranks:
        return f"clients use different ranks ({ranks}), and {mode} averages factors of one rank"
    if can.needs_public_data and not (job.public_count or job.data.public):
        return "there is no public set; set data.public_count or name data.public"
    return None
