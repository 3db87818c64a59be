"""The job: everything a run depends on, typed and checked before anything is loaded.

A job is a TOML file. `load` reads it, applies `section.key=value` overrides and returns a frozen
`Job`; whatever cannot work is refused here, with the place, the value and a way out. What needs
files (is there such a column, does the model have that block?) is checked in `data` and `model`
before round 1. `CAPABILITIES` says what each mode can carry; a contract test compares the table
with the implementations.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from triskel.errors import JobError
from triskel.untrusted import TOML_MOST, text_of, toml_of

ModeName = Literal["params", "logits", "split"]
CodecName = Literal["raw", "fp32", "bf16", "fp16", "int8", "int4"]
AdapterKind = Literal["lora", "dora", "rslora", "ia3", "loha", "lokr"]
Judge = Literal["test", "validation"]
"""Which rows models are scored on."""
Partition = Literal["natural", "iid", "dirichlet", "quantity", "shards", "length"]

LONGEST_SHOWN = 80
"""Characters of a value that an error repeats."""
ANY_DEPTH = 1_000_000
"""Blocks of a model that is not known yet."""
MODE_NAMES: tuple[ModeName, ...] = ("params", "logits", "split")
DROPPING: tuple[AdapterKind, ...] = ("lora", "dora", "rslora")
"""Kinds whose dropout is on the adapter's input."""


@dataclass(frozen=True)
class Capability:
    """What a mode can carry.

    Attributes:
        streams: Clients talk to the server during a round, batch by batch.
        needs_public_data: A public set must exist.
        linear_in_upload: The next state is a linear function of the updates, so that a sum of
            them is enough (secure aggregation).
        needs_individual_uploads: The server must see updates one by one.
        mutates_base: The frozen base model changes.
        heterogeneous_rank: Clients may differ in adapter rank.
        heterogeneous_model: Clients may differ in model.
        heterogeneous_cut: Clients may differ in cut.
    """

    streams: bool = False
    needs_public_data: bool = False
    linear_in_upload: bool = False
    needs_individual_uploads: bool = False
    mutates_base: bool = False
    heterogeneous_rank: bool = False
    heterogeneous_model: bool = False
    heterogeneous_cut: bool = False


CAPABILITIES: Mapping[ModeName, Capability] = {
    "params": Capability(linear_in_upload=True),
    "logits": Capability(needs_public_data=True, heterogeneous_rank=True, heterogeneous_model=True),
    "split": Capability(streams=True, linear_in_upload=True, heterogeneous_cut=True),
}

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Cut = Annotated[tuple[Count, Count], Field(description="first and one past the last trunk block")]


class Part(BaseModel):
    """A section of the job: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Part):
    """Which language model, and how it computes."""

    path: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    device: str = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    compute: Literal["auto", "fast", "reference"] = "auto"
    recompute: Literal["auto", "always", "never"] = "auto"
    cache_mb: Count = 4096


class Adapter(Part):
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


class Data(Part):
    """Where the examples are, and what is to be learnt from them."""

    task: Literal["classify", "causal"] = "classify"
    source: Literal["opinions", "hub", "csv", "jsonl", "parquet", "clients"] = "opinions"
    train: str = ""
    test: str = ""
    public: str = ""
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

    @field_validator("classes", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [str(v) for v in cast("Sequence[object]", value)]
        return value


class Override(Part):
    """What one client does differently."""

    model: str | None = None
    rank: Positive | None = None
    cut: Cut | None = None


class Clients(Part):
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


class Train(Part):
    """One client's local training."""

    epochs: Positive = 1
    batch: Positive = 16
    lr: Rate = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 48


class ParamsOptions(Part):
    """The server's step in `params`."""

    server_lr: Rate = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class LogitsOptions(Part):
    """What clients predict on, and how they learn from each other's predictions."""

    public: Count = 200
    temperature: Rate = 2.0
    mix: Share = 0.5
    top_k: Positive = 8
    aggregate: Literal["logits", "probabilities", "confidence"] = "probabilities"
    student: bool = True
    epochs: Positive = 1


class SplitOptions(Part):
    """Where the model is cut, and who sees the labels."""

    cut: Cut | None = None
    labels: Literal["private", "shared"] = "private"
    wave: Count = 0


class Evaluate(Part):
    """When models are tested."""

    every: Count = 1


class Wire(Part):
    """How messages travel."""

    up: CodecName = "fp32"
    down: CodecName = "fp32"
    max_mb: Rate = 256.0


class Between(Part):
    """How rounds go where clients are organisations with machines of their own."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience_s: Rate = 60.0
    deadline_s: Annotated[float, Field(ge=0)] = 0.0
    order: Literal["wave", "arrival"] = "wave"
    window_s: Rate = 0.02


class Job(Part):
    """Everything a run depends on."""

    name: str = "opinions"
    mode: ModeName = "params"
    seed: Count = 0
    rounds: Positive = 2
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    clients: Clients = Clients()
    train: Train = Train()
    params: ParamsOptions = ParamsOptions()
    logits: LogitsOptions = LogitsOptions()
    split: SplitOptions = SplitOptions()
    evaluate: Evaluate = Evaluate()
    wire: Wire = Wire()
    federation: Between = Between()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for problem in _contradictions(self):
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

    def client(self, name: str) -> Override:
        """Return what client `name` does differently."""
        return self.clients.each.get(name, Override())


def _contradictions(job: Job) -> Iterator[str]:
    yield from _about_data(job.data)
    yield from _about_clients(job)
    if job.adapter.dropout and job.adapter.kind not in DROPPING:
        yield f"adapter.dropout works with {', '.join(DROPPING)}, not with {job.adapter.kind}"
    cuts = [("split.cut", job.split.cut)]
    cuts += [(f"clients.each.{name}.cut", each.cut) for name, each in job.clients.each.items()]
    for where, cut in cuts:
        if cut is not None and job.split.labels == "private" and cut[0] >= cut[1]:
            yield (
                f"{where} must leave the server at least one block, got {list(cut)}; "
                "the first number must be smaller than the second"
            )


def _about_data(data: Data) -> Iterator[str]:
    if data.source == "hub" and not data.hub:
        yield 'data.hub must name a dataset such as "org/name" when data.source is "hub"'
    if data.source not in {"hub", "opinions"} and not data.train:
        yield f'data.train must name a file or folder when data.source is "{data.source}"'
    if data.task == "classify":
        if data.source != "opinions" and not (data.text and data.label):
            yield "data.text and data.label must name columns for a classify task"
        return
    if data.source == "opinions":
        yield 'data.source "opinions" is a classify task; give your own data for causal'
    if bool(data.prompt) != bool(data.response):
        yield "data.prompt and data.response go together; give both, or data.text alone"
    if not (data.prompt or data.text):
        yield "data.prompt and data.response, or data.text, must name columns for causal"


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
    can = CAPABILITIES[mode]
    each = job.clients.each
    other = sorted({e.model for e in each.values() if e.model and e.model != job.model.path})
    ranks = sorted({e.rank for e in each.values() if e.rank and e.rank != job.adapter.rank})
    if other and not can.heterogeneous_model:
        return f"clients use different models ({', '.join(other)}), and {mode} needs one model"
    if ranks and not can.heterogeneous_rank:
        return f"clients use different ranks ({ranks}), and {mode} averages factors of one rank"
    if can.needs_public_data and not (job.logits.public or job.data.public):
        return "there is no public set; set logits.public or name data.public"
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


def default_cut(blocks: int) -> tuple[int, int]:
    """Return the cut of a model with `blocks` blocks when the job names none.

    >>> default_cut(30)
    (4, 28)
    """
    low = max(1, round(2 * blocks / 15))
    high = blocks - max(1, round(blocks / 15))
    return (low, high) if low < high else (0, blocks)


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


def load(path: Path | None, overrides: Sequence[str] = ()) -> Job:
    """Read a job file; without one, the demonstration.

    Args:
        path: A TOML file; relative paths inside it are relative to its folder.
        overrides: `section.key=value` pairs, applied in order; values are TOML or bare words.

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
    return parse(text, overrides=overrides, where=str(path), base=path.resolve().parent)


def parse(
    text: str, *, overrides: Sequence[str] = (), where: str = "job", base: Path | None = None
) -> Job:
    """Read a job from TOML text.

    Raises:
        JobError: The text is not TOML, or does not describe a job that can run.
    """
    try:
        raw = toml_of(text)
    except ValueError as error:
        raise JobError(f"{where} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(raw, override)
    try:
        job = Job.model_validate(raw)
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
        return f"unknown key {key!r}; {hint}"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key} {text}" if key else text
    return f"{key}: {text[0].lower()}{text[1:]}, got {got!r}"


def _known(place: Sequence[str]) -> list[str]:
    part: type[BaseModel] = Job
    for name in place:
        if part is Clients and name == "each":
            return sorted(Override.model_fields)
        field = part.model_fields.get(name)
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return sorted(part.model_fields)
        part = inner
    return sorted(part.model_fields)
