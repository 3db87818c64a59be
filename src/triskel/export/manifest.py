"""What a saved adapter is, as `triskel.json`.

A `Manifest` holds every fact that a model card states, so a card can be written again from a
folder. No text, no example and no client's name is among them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.core.registry import TASKS
from triskel.core.result_parts import FIGURES, Reached
from triskel.core.untrusted import json_in
from triskel.data.assets import ASSETS, cache_folder
from triskel.errors import CheckpointError

SCHEMA = 1
MANIFEST = "triskel.json"
NOTHING: Mapping[str, Any] = {}
Told = Reached | Mapping[str, Reached]
"""A figure, or the figures of a column."""
BASELINES = ("central", "local")
"""Stages that are no mode and leave models."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an adapter came about.

    Attributes:
        job: Name of the job.
        mode: A mode, or the baseline `central` or `local`.
        own: Whether it is one client's own model rather than the server's.
        rounds: Rounds played.
        clients: How many clients hold training examples.
        seed: The job's seed.
        max_tokens: Tokens of a text that were read.
        overlong: What became of longer texts: `cut`, `drop` or `refuse`.
        prompt: For `causal`, the layout of prompt and response; empty for plain text.
        personal: Whether clients ended with models of their own.
        how: How an adapter of this mode comes about, in words; empty for a baseline.
        privacy: What left the clients, in words; empty for a baseline.
        scores: Final figures, such as `accuracy`; may be empty. Of a client's own model they are
            on its own test texts, else on everybody's.
        everybody: Final figures on everybody's test texts, where both columns are known.
        own_texts: Final figures on each client's own test texts, of its own model if it has one.
        up_bytes: Bytes that all clients sent, after codecs; None where nothing is sent.
        down_bytes: Bytes that all clients received.
        judge: Which texts the figures are on: test texts, or validation texts in their place.
        worst: The figure that ranks, of the client that does worst on its own texts.
        alone: How clients do on their own texts beside training alone: `clients`, how many of
            them are `better`, and how many `better_sure` and `worse_sure`, beyond chance.
        unread: Share of the training texts' tokens that were not read, where that is known.
        kept: Which round it is of, where the best on validation texts was kept.
        start: The adapter that training started from, where there was one: `name` and `sha256`.
    """

    job: str
    mode: str
    own: bool = False
    rounds: int
    clients: int
    seed: int
    max_tokens: int
    prompt: str = ""
    personal: bool = False
    how: str = ""
    privacy: str = ""
    scores: Mapping[str, float]
    up_bytes: int | None = None
    down_bytes: int | None = None
    everybody: Mapping[str, float] = field(default_factory=dict[str, float])
    own_texts: Mapping[str, float] = field(default_factory=dict[str, float])
    judge: Judge = "test"
    worst: Mapping[str, float] = field(default_factory=dict[str, float])
    alone: Mapping[str, int] = field(default_factory=dict[str, int])
    unread: float | None = None
    overlong: str = "cut"
    kept: int | None = None
    start: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a saved adapter is.

    Attributes:
        task: The task that it was trained for.
        classes: Class names by index; empty for `causal`.
        pooling: The token a class is read off: `last` or `first`.
        base: The base model: a folder or a hub id.
        fingerprint: Hash of the base.
        dtype: What hidden states were computed in, such as `float32`.
        padding: The token to pad with.
        kind: Kind of adapter.
        rank: Its rank.
        alpha: Its numerator of scale.
        side: Rank of the frozen side factors behind those that trained; its folder holds them
            stacked, as one adapter of rank `rank + side` and the same scale.
        blocks: The blocks it sits in, as the job names them.
        training: How it came about; None where that was not said.
        versions: Versions of the packages that wrote it.
        attention: The kernel that attention was computed with.
        tokens: How many virtual tokens it has, where it has such.
        quantise: How the base was held in fewer bits; `none` where it was not.
    """

    task: str
    classes: tuple[str, ...]
    pooling: Literal["last", "first"]
    base: str
    fingerprint: str
    dtype: str
    padding: str
    kind: str
    rank: int
    alpha: float
    blocks: str
    training: Training | None
    versions: Mapping[str, str]
    attention: str = "eager"
    side: int = 0
    quantise: str = "none"
    tokens: int = 0


def training_of(  # noqa: PLR0913 - what a job does not say, named one by one
    job: Job,
    mode: str,
    *,
    clients: int,
    scores: Mapping[str, Told],
    own: bool = False,
    rounds: int | None = None,
    traffic: tuple[int, int] | None = None,
    judge: Judge = "test",
    about: Mapping[str, Any] = NOTHING,
    data: Mapping[str, Any] = NOTHING,
    row: Mapping[str, Any] = NOTHING,
) -> Training:
    """Return how a stage of a job trained; `rounds` are the job's unless given.

    `row` is the stage as a result has it, of which the round that was kept and what training
    started from are told.

    `about` is what a result says of a mode (`descriptions.about_of`).

    `scores` are the final figures as a result holds them, columns `everybody` and `own` within, and
    `data` is who holds what.
    """
    return Training(
        job=job.name,
        mode=mode,
        own=own,
        rounds=job.rounds if rounds is None else rounds,
        clients=clients,
        seed=job.seed,
        max_tokens=job.train.length,
        overlong=job.train.overlong,
        prompt=layout_of(job),
        personal=bool(about.get("personal")),
        how=str(about.get("trained_own" if own else "trained", "")),
        privacy=str(about.get("privacy", "")),
        scores=_figures(scores),
        everybody=_column(scores, "everybody"),
        own_texts=_column(scores, "own"),
        up_bytes=traffic[0] if traffic else None,
        down_bytes=traffic[1] if traffic else None,
        judge=judge,
        unread=_unread(data),
        kept=row.get("kept"),
        start=row.get("start", NOTHING),
    )


def _unread(data: Mapping[str, Any]) -> float | None:
    """Return the share of the training texts' tokens that were not read."""
    clients = cast("Mapping[str, Any]", data.get("clients", {})).values()
    lost = [one["lost"]["train"] for one in clients if "train" in one.get("lost", {})]
    of = sum(one["of"] for one in lost)
    return sum(one["tokens"] for one in lost) / of if of else None


def layout_of(job: Job) -> str:
    """Return how prompt and response are laid out, as far as the task's package is here."""
    return TASKS.spec(job.data.task).layout(job.data) if job.data.task in TASKS.names() else ""


def _column(scores: Mapping[str, Told], name: str) -> Mapping[str, float]:
    found = scores.get(name)
    return _figures(found) if isinstance(found, Mapping) else {}


def _figures(scores: Mapping[str, Told]) -> dict[str, float]:
    """Return the figures among a result's keys, in one order."""
    return {k: v for k in FIGURES if not isinstance(v := scores.get(k), Mapping | None)}


def to_json(manifest: Manifest) -> str:
    """Return a manifest as the text of `triskel.json`."""
    return json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a saved adapter.

    Raises:
        CheckpointError: There is none, or it is of another version.
    """
    try:
        raw = cast("dict[str, Any]", json_in(folder / MANIFEST))
        schema, told = raw.pop("schema"), raw.pop("training")
        if told is not None:
            told.pop("shared_labels", None)  # of early versions
        training = Training(**told) if told is not None else None
        side = _rank(raw.pop("side", 0))
        classes = tuple(raw.pop("classes"))
        manifest = Manifest(classes=classes, training=training, side=side, **raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is missing or damaged: {error}") from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"{folder / MANIFEST} has schema {schema}; this version reads {SCHEMA}"
        )
    return manifest


def _rank(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"side is {value!r}")
    return value


def asset_of(base: str) -> str | None:
    """Return the name of the asset that a base model is, or None."""
    folder = Path(base)
    known = folder.name in ASSETS and folder.parent == cache_folder().resolve()
    return folder.name if known else None
