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

from triskel.config.buffered import unbuffered
from triskel.config.contradictions import SIDE, contradictions, sections_of
from triskel.config.names import kept, known_name, mode_section, untyped
from triskel.config.sections import (
    Adapter,
    Clients,
    Data,
    Evaluate,
    FederationOptions,
    Model,
    Override,
    Partition,
    Train,
    is_name,
)
from triskel.config.wire import WAYS, Wire, change_options
from triskel.core.choice import name_of
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Count, Options, Positive, typed
from triskel.core.registry import MODES, TASKS

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
        problems = list(contradictions(self, info))
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

    def training(self, client: str | None) -> Train:
        """Return how a client trains, or everybody who is not named."""
        own = self.client(client).epochs if client else None
        return self.train.model_copy(update={"epochs": own}) if own else self.train

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
    spec = MODES.spec(mode)
    if start and not spec.tensors_travel(spec.of(job)):
        return (
            f"adapter.start works where sites are sent tensors; {mode} sends them scalars along "
            "seeds, and the adapter is not there: leave it out"
        )
    if start and spec.carries(job).personal_models and not spec.carries(job).one_body:
        return (
            f"adapter.start works with modes that send every site the common model; in {mode} a "
            "site has a model of its own, and the adapter is not there: leave it out"
        )
    if job.train.keep == "best":
        return (
            'train.keep must be "last": sites score models on their test rows, so no validation '
            "figure reaches the server"
        )
    return unbuffered(job, mode)


def unsupported(job: Job, mode: ModeName) -> str | None:
    """Return why `mode` cannot run this job, or None when it can.

    `compare` skips a mode with the reason; `run` refuses the job with it.
    """
    spec = MODES.spec(mode)
    can = spec.carries(job)
    each = job.clients.each
    other = sorted({e.model for e in each.values() if e.model and e.model != job.model.path})
    ranks = sorted({e.rank for e in each.values() if e.rank and e.rank != job.adapter.rank})
    if other and not can.mixed_models:
        return f"clients use different models ({', '.join(other)}), and {mode} needs one model"
    if ranks and not can.mixed_ranks:
        return f"clients use different ranks ({ranks}), and {mode} needs factors of one rank here"
    if can.one_body and ranks and max(ranks) > job.adapter.rank:
        return (
            f"a client has rank {max(ranks)}, and in {mode} clients run the server's model, whose "
            f"adapter.rank is {job.adapter.rank}; --set adapter.rank={max(ranks)}"
        )
    if can.needs_public_data and not (job.public_count or job.data.public):
        return "there is no public set; set data.public_count or name data.public"
    return spec.unsuited(spec.of(job), job) or next(_unchanging(job, mode), None)


def _unchanging(job: Job, mode: ModeName) -> Iterator[str]:
    """Yield why sections of a mode cannot travel as the changes that codecs of a job carry."""
    spec = MODES.spec(mode)
    for way, told in zip(WAYS, (0, 1), strict=True):
        for name, words in sections_of(spec, job).items():
            chosen = job.wire.codec(way, name)
            if not words[told] or change_options(chosen) is None or name == SIDE:
                continue
            if name not in spec.carries(job).changes:
                yield (
                    f"wire.{way} has section {name!r} travel as {name_of(chosen)}, which carries "
                    f"changes, and in {mode} it holds something else each time; name the codecs by "
                    f"section ([wire.{way}], other is for those that are not named)"
                )
            if way == "down" and any(e.rank for e in job.clients.each.values()):
                yield (
                    "wire.down carries changes of one adapter that all clients hold, and clients "
                    "use different ranks; choose a codec that carries values"
                )
