"""The sections of a job that every mode reads: model, adapter, data, clients, training, wire.

Each is frozen, with its defaults, and refuses values that cannot be meant. What only files can tell
(is there such a column, does the model have that block?) is checked in `data` and `model`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from triskel.config.names import client_section, known_name, untyped
from triskel.core.dialect import Delimiter, Dialect, Encoding
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Count, Options, Positive, Rate, partial, typed
from triskel.core.registry import MODES, TASKS
from triskel.core.seeds import derive
from triskel.errors import JobError

AdapterKind = Literal[
    "lora", "dora", "rslora", "ia3", "loha", "lokr", "vera", "bitfit", "full",
    "prefix", "prompt", "ptuning",
]  # fmt: skip
Judge = Literal["test", "validation"]
"""Which rows models are scored on."""
Partition = Literal["natural", "iid", "dirichlet", "quantity", "shards", "length"]


Source = Literal["opinions", "hub", "csv", "jsonl", "parquet", "arrow", "excel", "text", "clients"]
"""Where rows are: the demo's texts, a dataset of the hub, one file, or a file for each client."""
FILES: frozenset[Source] = frozenset({"csv", "jsonl", "parquet", "arrow", "excel", "text"})
"""Sources that are one file."""


def _as_name(given: object) -> object:
    """Return the name of a column that is given by its number."""
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


ColumnName = Annotated[str, BeforeValidator(_as_name)]
"""A column; where a table has no header, its number, the first being 1."""
Columns = ColumnName | tuple[ColumnName, ...]
"""A column, or several that are read one below the other."""
ANY_DEPTH = 1_000_000
"""Blocks of a model that is not known yet."""
DROPPING: tuple[AdapterKind, ...] = ("lora", "dora", "rslora", "vera")
"""Kinds whose dropout is on the adapter's input."""
LOWRANK: tuple[AdapterKind, ...] = ("lora", "rslora")
"""Kinds that add s B A to a weight and do nothing else."""
SCALED: tuple[AdapterKind, ...] = ("lora", "dora", "rslora", "loha", "lokr")
"""Kinds that have a rank and an alpha."""
RANKED: tuple[AdapterKind, ...] = (*SCALED, "vera")
"""Kinds that have a rank."""
OWN: tuple[AdapterKind, ...] = ("bitfit", "full")
"""Kinds that put nothing beside the model, and train tensors of its own."""
AHEAD: tuple[AdapterKind, ...] = ("prompt", "ptuning")
"""Kinds whose virtual tokens are the first tokens of a text."""
VIRTUAL: tuple[AdapterKind, ...] = ("prefix", *AHEAD)
"""Kinds that put virtual tokens before a text, and are beside no module."""

BESIDE_FEW_BITS: Mapping[str, tuple[AdapterKind, ...]] = {
    "nf4": ("lora", "dora", "rslora", "ia3", "vera", *AHEAD),
    "int8": ("lora", "rslora", "ia3", "loha", "lokr", "vera", *AHEAD),
}
"""Kinds that train with a base in 4 or 8 bit."""


class Model(Options):
    """Which language model, and how it computes."""

    path: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    device: str = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    compute: Literal["auto", "fast", "reference"] = "auto"
    recompute: Literal["auto", "always", "never"] = "auto"
    cache_mb: Count = 4096
    quantise: Literal["none", "int8", "nf4"] = "none"


class Adapter(Options):
    """The tensors that train."""

    kind: AdapterKind = "lora"
    rank: Positive = 8
    alpha: Rate = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ()
    blocks: str = "all"
    start: str = ""
    projection: Count | None = None
    tokens: Positive = 20

    @field_validator("blocks")
    @classmethod
    def _readable(cls, value: str) -> str:
        blocks_of(value, ANY_DEPTH)
        return value


def projection_seed(adapter: Adapter, seed: int) -> int:
    """Return what VeRA's frozen matrices are drawn from: the job's seed, or what the job names."""
    return derive(seed, "projection") if adapter.projection is None else adapter.projection


class Data(Options):
    """Where the examples are, and what is to be learnt from them."""

    task: str = TASKS.default
    source: Source = "opinions"
    train: str = ""
    test: str = ""
    public: str = ""
    public_count: Count | None = None
    hub: str = ""
    config: str = ""
    delimiter: Delimiter = ""
    encoding: Encoding = ""
    header: bool | None = None
    text: Columns = ""
    label: ColumnName = ""
    prompt: Columns = ""
    response: ColumnName = ""
    template: str = ""
    classes: tuple[str, ...] = ()
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str, info: Any) -> str:  # noqa: ANN401 - pydantic's
        return known_name(TASKS, value, info)

    @model_validator(mode="before")
    @classmethod
    def _lines(cls, given: object) -> object:
        """Read plain text by its lines, which are its only column."""
        if not isinstance(given, Mapping):
            return given
        data = cast("Mapping[str, Any]", given)
        named = data.get("text") or data.get("prompt")
        return data if data.get("source") != "text" or named else {**data, "text": "text"}

    @property
    def dialect(self) -> Dialect:
        """How files are written, as far as the job says it."""
        return Dialect(self.delimiter, self.encoding, self.header)

    @field_validator("classes", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [str(v) for v in cast("Sequence[object]", value)]
        return value


class Override(Options):
    """What one client does differently: its model, rank, local epochs, and options of modes.

    Options of a mode stand in a section of its name; those of built-in modes may stand right here,
    where their specs say so.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str | None = None
    rank: Positive | None = None
    epochs: Positive | None = None

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
        foreign = untyped(own, cls.model_fields, info)
        rest = {k: v for k, v in own.items() if k not in {*short, *foreign}}
        return {**typed(rest, cls.model_fields, client_section), **short, **foreign}

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
    by: ColumnName = ""
    count: Positive = 4
    alpha: Rate = 0.5
    shards: Positive = 2
    examples: Count = 0
    test_examples: Count = 0
    cohort: Annotated[float, Field(gt=0, le=1)] = 1.0
    sampling: Literal["uniform", "size", "poisson"] = "uniform"
    drop_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    each: Mapping[str, Override] = Field(default_factory=dict)


class Train(Options):
    """One client's local training."""

    epochs: Positive = 1
    batch: Positive = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Rate = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive | None = None
    overlong: Literal["cut", "drop", "refuse"] = "cut"
    keep: Literal["last", "best"] = "last"

    @property
    def length(self) -> int:
        """`max_tokens`, once it is needed.

        Raises:
            JobError: The job does not say it, and its task has no default.
        """
        if self.max_tokens is None:
            raise JobError(
                "train.max_tokens must be set: this task has no default, as texts that are cut "
                "would teach something else"
            )
        return self.max_tokens


class Evaluate(Options):
    """When models are tested."""

    every: Count = 1


class FederationOptions(Options):
    """How rounds go where clients are organisations with machines of their own."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience_s: Rate = 60.0
    deadline_s: Annotated[float, Field(ge=0)] = 0.0
    order: Literal["wave", "arrival"] = "wave"
    window_s: Rate = 0.02
    buffer: Count = 0
    staleness: Count = 10


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
