"""The job: everything a run depends on, typed and checked before anything is loaded.

A job is a TOML file. `load` reads it, applies `section.key=value` overrides and returns a frozen
`Job`; whatever cannot work is refused here, with the place, the value and a way out. What needs
files (is there such a column, does the model have that block?) is checked in `data` and `model`
before round 1. The sections of modes are typed by their specs (`core.mode_spec`): a job has those
of the built-in modes, of the mode it names, and others that are given.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Count, Options, Positive, Rate, partial, typed
from triskel.core.registry import AGGREGATES, CODECS, MODES, TASKS, Registry
from triskel.errors import JobError
from triskel.untrusted import TOML_MOST, text_of, toml_of

ModeName = str
"""A mode that `core.registry` knows."""
CodecName = str
"""A codec that `core.registry` knows."""
AdapterKind = Literal["lora", "dora", "rslora", "ia3", "loha", "lokr"]
Judge = Literal["test", "validation"]
"""Which rows models are scored on."""
Partition = Literal["natural", "iid", "dirichlet", "quantity", "shards", "length"]

LONGEST_SHOWN = 80
"""Characters of a value that an error repeats."""
ANY_DEPTH = 1_000_000
"""Blocks of a model that is not known yet."""
MODE_NAMES: tuple[ModeName, ...] = MODES.ours
"""The modes that come with Triskel, which are compared unless others are named."""
IMPORTS = "imports"
MODES_STAND_BEFORE = "evaluate"
"""Where the sections of modes stand among those of a job."""
DROPPING: tuple[AdapterKind, ...] = ("lora", "dora", "rslora")
"""Kinds whose dropout is on the adapter's input."""


class Model(Options):
    """Which language model, and how it computes."""

    path: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    device: str = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    compute: Literal["auto", "fast", "reference"] = "auto"
    recompute: Literal["auto", "always", "never"] = "auto"
    cache_mb: Count = 4096


class Adapter(Options):
    """The tensors that train."""

    kind: AdapterKind = "lora"
    rank: Positive = 8
    alpha: Rate = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ()
    blocks: str = "all"

    @field_validator("blocks")
    @classmethod
    def _readable(cls, value: str) -> str:
        blocks_of(value, ANY_DEPTH)
        return value


class Data(Options):
    """Where the examples are, and what is to be learnt from them."""

    task: str = TASKS.default
    source: Literal["opinions", "hub", "csv", "jsonl", "parquet", "clients"] = "opinions"
    train: str = ""
    test: str = ""
    public: str = ""
    public_count: Count | None = None
    hub: str = ""
    config: str = ""
    text: str = ""
    label: str = ""
    prompt: str = ""
    response: str = ""
    template: str = ""
    classes: tuple[str, ...] = ()
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str, info: Any) -> str:  # noqa: ANN401 - pydantic's
        return _known_name(TASKS, value, info)

    @field_validator("classes", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [str(v) for v in cast("Sequence[object]", value)]
        return value


class Override(Options):
    """What one client does differently: its model, its rank, and options of modes.

    Options of a mode stand in a section of its name; those of built-in modes may stand right here,
    where their specs say so.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str | None = None
    rank: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, given: object, info: Any) -> object:  # noqa: ANN401 - pydantic's
        if not isinstance(given, Mapping):
            return given
        own = cast("Mapping[str, Any]", given)
        short: dict[str, Any] = {}
        for spec in MODES.built_in():
            mine = {key: own[key] for key in spec.short_client_keys if key in own}
            if mine:
                some = partial(spec.options, spec.client_keys)(**mine)
                short |= {key: getattr(some, key) for key in mine}
        foreign = _foreign(own, cls.model_fields, info)
        rest = {k: v for k, v in own.items() if k not in {*short, *foreign}}
        return {**typed(rest, cls.model_fields, _of_client), **short, **foreign}

    def of(self, spec: ModeSpec[Any]) -> dict[str, Any]:
        """Return what this client does differently in a mode, by the mode's options."""
        extra = self.__pydantic_extra__ or {}
        section = extra.get(spec.name)
        given = section.model_dump(exclude_none=True) if isinstance(section, Options) else {}
        short = {key: extra[key] for key in spec.short_client_keys if key in extra}
        return {**short, **given}


class Clients(Options):
    """Who holds which examples, and who takes part in a round."""

    partition: Partition | None = None
    by: str = ""
    count: Positive = 4
    alpha: Rate = 0.5
    shards: Positive = 2
    examples: Count = 0
    test_examples: Count = 0
    cohort: Annotated[float, Field(gt=0, le=1)] = 1.0
    drop_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    each: Mapping[str, Override] = Field(default_factory=dict)


class Train(Options):
    """One client's local training."""

    epochs: Positive = 1
    batch: Positive = 16
    lr: Rate = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 48


class Evaluate(Options):
    """When models are tested."""

    every: Count = 1


class Wire(Options):
    """How messages travel."""

    up: CodecName = "fp32"
    down: CodecName = "fp32"
    max_mb: Rate = 256.0

    @field_validator("up", "down")
    @classmethod
    def _known_codec(cls, value: str, info: Any) -> str:  # noqa: ANN401 - pydantic's
        return _known_name(CODECS, value, info)


class Between(Options):
    """How rounds go where clients are organisations with machines of their own."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience_s: Rate = 60.0
    deadline_s: Annotated[float, Field(ge=0)] = 0.0
    order: Literal["wave", "arrival"] = "wave"
    window_s: Rate = 0.02


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
    federation: Between = Between()

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
            and not _kept(MODES, named, info)
        ):
            found[named] = {}
        for spec in MODES.built_in():
            found.setdefault(spec.name, {})
        foreign = _foreign(found, cls.model_fields, info)
        rest = {k: v for k, v in found.items() if k not in foreign}
        _one_count(rest)
        return {**typed(rest, cls.model_fields, _of_mode), **foreign}

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, value: str, info: Any) -> str:  # noqa: ANN401 - pydantic's
        return _known_name(MODES, value, info)

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
        for problem in _contradictions(self, info):
            raise ValueError(problem)
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


def _kept(registry: Registry[Any], name: str, info: Any) -> bool:  # noqa: ANN401 - pydantic's
    """Return whether a name is of what may not be imported, so that it is kept as it is."""
    imports = (info.context or {}).get(IMPORTS)
    return imports is not None and name not in registry.ours and registry.key(name) not in imports


def _known_name(
    registry: Registry[Any],
    value: str,
    info: Any,  # noqa: ANN401 - pydantic's
    place: str = "",
) -> str:
    """Return a name that there is here, or that may not be looked for.

    Raises:
        ValueError: There is none.
    """
    if value not in registry.names() and not _kept(registry, value, info):
        raise ValueError(f"{place}must be one of {', '.join(registry.names())}, got {value!r}")
    return value


def _foreign(given: Mapping[str, Any], own: Collection[str], info: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return sections that are kept untyped."""
    apart = {k: v for k, v in given.items() if k not in own and isinstance(v, Mapping)}
    return {k: v for k, v in apart.items() if _kept(MODES, k, info)}


def _of_mode(name: str) -> type[Options] | None:
    """Return what a section of this name is, if a mode is called so."""
    return MODES.spec(name).options if name in MODES.names() else None


def _of_client(name: str) -> type[Options] | None:
    """Return what a mode's section of one client is; None where nothing may differ."""
    if name not in MODES.names():
        return None
    spec = MODES.spec(name)
    return partial(spec.options, spec.client_keys) if spec.client_keys else None


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
    yield from _about_data(job.data, may_import=not _kept(TASKS, job.data.task, info))
    yield from _about_clients(job)
    if job.adapter.dropout and job.adapter.kind not in DROPPING:
        yield f"adapter.dropout works with {', '.join(DROPPING)}, not with {job.adapter.kind}"
    for spec in job.specs:
        named = getattr(spec.of(job), spec.aggregate_key) if spec.aggregate_key else None
        if named is not None:
            _known_name(AGGREGATES, named, info, f"{spec.name}.{spec.aggregate_key} ")
        for problem in spec.problems(spec.of(job)):
            yield f"{spec.name}.{problem}"
        for client, own in job.clients.each.items():
            if given := own.of(spec):
                short = (
                    given.keys() & spec.short_client_keys & (own.__pydantic_extra__ or {}).keys()
                )
                place = f"clients.each.{client}." + ("" if short else f"{spec.name}.")
                yield from (f"{place}{problem}" for problem in spec.problems(spec.of(job, client)))


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


def blocks_of(text: str, blocks: int) -> range:
    """Return the blocks that `adapter.blocks` names, out of `blocks`.

    >>> blocks_of("top:2", 6), blocks_of("0-3", 6), blocks_of("all", 6)
    (range(4, 6), range(0, 4), range(0, 6))

    Raises:
        ValueError: The text is none of `all`, `top:N` and `FIRST-LAST`.
    """
    if text == "all":
        return range(blocks)
    head, _, tail = text.partition("-")
    if text.startswith("top:") and text[4:].isdigit() and 1 <= int(text[4:]) <= blocks:
        return range(blocks - int(text[4:]), blocks)
    if head.isdigit() and tail.isdigit() and int(head) <= int(tail) < blocks:
        return range(int(head), int(tail) + 1)
    raise ValueError(
        f'must be "all", "top:N" or "FIRST-LAST" within 0-{blocks - 1}, got {text!r}'
        if blocks < ANY_DEPTH
        else f'must be "all", "top:N" or "FIRST-LAST", got {text!r}'
    )


# --- Reading and writing ----------------------------------------------------------------------

DEMO = """
rounds = 3
[adapter]
blocks = "top:4"
[clients]
examples = 70
test_examples = 70
[train]
epochs = 2
lr = 4e-3
[logits]
public = 35
"""
"""What runs without a job file: the built-in texts, few enough for ten minutes on two cores.

Where a processor is too slow for it, `demo` makes it smaller.
"""


def load(
    path: Path | None, overrides: Sequence[str] = (), *, imports: Collection[str] | None = None
) -> Job:
    """Read a job file; without one, the demonstration.

    Args:
        path: A TOML file; relative paths inside it are relative to its folder.
        overrides: `section.key=value` pairs, applied in order; values are TOML or bare words.
        imports: As of `parse`.

    Raises:
        JobError: The file is missing, is not TOML, or does not describe a job that can run.
    """
    if path is None:
        return parse(DEMO, overrides=overrides, where="the demonstration")
    try:
        text = text_of(path.resolve(), most=TOML_MOST)  # a link to a job file is as good
    except FileNotFoundError:
        raise JobError(f"job file {path} does not exist; `triskel init` writes one") from None
    except (OSError, ValueError) as error:
        raise JobError(f"job file {path} cannot be read: {error}") from error
    base = path.resolve().parent
    return parse(text, overrides=overrides, where=str(path), base=base, imports=imports)


def parse(
    text: str,
    *,
    overrides: Sequence[str] = (),
    where: str = "job",
    base: Path | None = None,
    imports: Collection[str] | None = None,
) -> Job:
    """Read a job from TOML text.

    Args:
        text: The job.
        overrides: `section.key=value` pairs, applied in order.
        where: What errors call it.
        base: The folder that relative paths are relative to; None leaves them.
        imports: What of other packages may be imported, each as `Registry.key` calls it; what a
            job says of others is kept as it is, which is enough where these are not played. None:
            whatever is named.

    Raises:
        JobError: The text is not TOML, or does not describe a job that can run.
        PluginError: A mode is of a package that is not here, or is broken.
    """
    try:
        raw = toml_of(text)
    except ValueError as error:
        raise JobError(f"{where} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(raw, override)
    try:
        job = Job.model_validate(raw, context={IMPORTS: imports})
    except ValidationError as error:
        raise JobError(f"{where}: {_sentence(error)}") from error
    return job if base is None else _rooted(job, base)


def dump(job: Job) -> dict[str, Any]:
    """Return the job as JSON values, defaults included."""
    return cast("dict[str, Any]", json.loads(job.model_dump_json(exclude_none=True)))


def to_toml(job: Job) -> str:
    """Return the job as TOML, defaults included; `parse` reads it back to an equal job."""
    return tomli_w.dumps(dump(job))


def setting_of(override: str) -> tuple[tuple[str, ...], object]:
    """Return the key that a `section.key=value` pair names, in parts, and its value.

    >>> setting_of("split.cut=[4, 28]"), setting_of("adapter.blocks=top:2")
    ((('split', 'cut'), [4, 28]), (('adapter', 'blocks'), 'top:2'))

    Raises:
        JobError: It is no such pair.
    """
    key, equals, value = override.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise JobError(f"--set takes section.key=value, got {override!r}")
    try:
        found = toml_of(f"value = {value}")
    except tomllib.TOMLDecodeError:
        found = {"value": value.strip()}
    if set(found) != {"value"}:
        raise JobError(f"--set takes one section.key=value at a time, got {override!r}")
    return parts, found["value"]


def _apply(raw: dict[str, Any], override: str) -> None:
    parts, parsed = setting_of(override)
    place = raw
    for part in parts[:-1]:
        below = place.setdefault(part, {})
        if not isinstance(below, dict):
            raise JobError(f"--set {override!r}: {part!r} is a value, not a section")
        place = cast("dict[str, Any]", below)
    place[parts[-1]] = parsed


def called(model: str) -> str:
    """Return what a reader calls a model: an asset's name, a hub id, or a folder's own name.

    >>> called("/home/anna/models/llama-1b"), called("org/llama-1b")
    ('llama-1b', 'org/llama-1b')
    """
    return Path(model).name if Path(model).is_absolute() else model


def is_name(data: str) -> bool:
    """Return whether data are named as sites of a federation name them, and are not a path.

    >>> is_name("tickets"), is_name("/home/anna/tickets"), is_name("./tickets")
    (True, False, False)
    """
    return not set(data) & set("/\\~") and not data.startswith(".")


def _rooted(job: Job, base: Path) -> Job:
    """Return the job with paths that exist relative to `base` made absolute."""

    def find(value: str, *, always: bool) -> str:
        there = base / value
        try:
            if not value or Path(value).is_absolute() or not (always or there.exists()):
                return value
            return str(there.resolve())
        except (OSError, ValueError) as error:  # too long, or with a zero byte
            raise JobError(f"{value[:LONGEST_SHOWN]!r} is no path: {error}") from error

    local = job.data.source in {"csv", "jsonl", "parquet", "clients"}
    files = {
        key: find(cast("str", getattr(job.data, key)), always=local)
        for key in ("train", "test", "public")
    }
    each = {
        name: e if e.model is None else e.model_copy(update={"model": find(e.model, always=False)})
        for name, e in job.clients.each.items()
    }
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=files) if local else job.data,
            "model": job.model.model_copy(update={"path": find(job.model.path, always=False)}),
            "clients": job.clients.model_copy(update={"each": each}),
        }
    )


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key, got = ".".join(place), first.get("input")
    if first["type"] == "extra_forbidden":
        known = _known(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        if len(place) == 1 and isinstance(got, Mapping) and not near:
            hint += (
                "; a mode of another package must be installed beside Triskel (`triskel plugins`)"
            )
        return f"unknown key {key!r}; {hint}"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key} {text}" if key else text
    return f"{key}: {text[0].lower()}{text[1:]}, got {got!r}"


def _known(place: Sequence[str]) -> list[str]:
    """Return the keys that there are at a place of the job."""
    part: type[BaseModel] = Job
    for depth, name in enumerate(place):
        if part is Clients and name == "each":
            within = _of_client(place[-1]) if len(place) > depth + 2 else None
            return sorted(
                within.model_fields if within else {*Override.model_fields, *_short_keys()}
            )
        field = part.model_fields.get(name)
        inner = field.annotation if field is not None else _of_mode(name) if part is Job else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        part = inner
    modes = MODES.names() if part is Job else ()
    return sorted({*part.model_fields, *modes})


def _short_keys() -> set[str]:
    return {key for spec in MODES.built_in() for key in spec.short_client_keys}
