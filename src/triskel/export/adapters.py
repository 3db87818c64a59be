"""Trained adapters as PEFT folders that `PeftModel.from_pretrained` loads, and merged models.

A folder appears whole or not at all: it is written beside its place, flushed, and renamed. Beside
PEFT's two files it holds `triskel.json` and a model card.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from triskel.config.job import Job
from triskel.config.read import dump, parse
from triskel.core.registry import TASKS
from triskel.core.result_file import ended_with, run_in, stage_in
from triskel.core.result_parts import FIGURES
from triskel.core.source import VERSION
from triskel.core.untrusted import TOML_MOST, copied, json_in, safetensors_at, table_of, text_of
from triskel.data.assets import resolve
from triskel.errors import CheckpointError, JobError, ModelError
from triskel.export.manifest import (
    BASELINES,
    MANIFEST,
    Manifest,
    Training,
    read_manifest,
    to_json,
    training_of,
)
from triskel.export.model_card import CARD, card
from triskel.export.saved import ADAPTERS, choose
from triskel.export.whole_folder import whole
from triskel.model import load, peft_folder
from triskel.model.peft_options import base_of
from triskel.model.quantised import how_of
from triskel.model.shared import SharedModel
from triskel.model.side_factors import side_rank
from triskel.report.catalogue import one_run
from triskel.report.conclusions import better_off
from triskel.report.descriptions import about_in
from triskel.report.reading import read
from triskel.types import Tensors

PACKAGES = ("torch", "transformers", "peft")
COLUMNS = ("everybody", "own")
Say = Callable[[str], None]


# --- one adapter ------------------------------------------------------------------------------


def save_adapter(
    folder: Path,
    body: SharedModel,
    tensors: Tensors,
    classes: tuple[str, ...],
    training: Training | None = None,
    *,
    task: str | None = None,
) -> None:
    """Write an adapter as a PEFT folder; one that is there already is replaced.

    Args:
        folder: Where to.
        body: The model it belongs to.
        tensors: All of the body's trainable tensors, and side factors where there are some.
        classes: Class names by index; empty where there are none.
        training: How it came about, for the card.
        task: What it was trained for; the first task of ours with such a head if left out.

    Raises:
        ModelError: The tensors are not this body's.
        CheckpointError: The disk is full or not writable; a folder that was there stays.
    """
    manifest = Manifest(
        task=task or next(one.name for one in TASKS.built_in() if one.head == body.ends),
        classes=classes,
        pooling=body.blocks.pool,
        base=base_of(body),
        fingerprint=peft_folder.fingerprint(body),
        dtype=str(body.dtype).removeprefix("torch."),
        padding=peft_folder.padding_token(body.tokenizer),
        kind=body.adapter.kind,
        rank=body.adapter.rank,
        alpha=body.adapter.alpha,
        side=side_rank(tensors),
        blocks=body.adapter.blocks,
        training=training,
        versions={"triskel": VERSION, **{name: version(name) for name in PACKAGES}},
        attention=body.blocks.attention,
        quantise=how_of(body.blocks.model),
        tokens=body.blocks.virtual or body.blocks.ahead,
    )
    with whole(folder) as making:
        peft_folder.write(making, body, tensors)
        _describe(making, manifest, merged=False)


def read_adapter(folder: Path, body: SharedModel) -> Tensors:
    """Return the tensors of a saved adapter.

    Raises:
        ModelError: It was trained on another base, or does not fit this body.
        CheckpointError: Its `triskel.json` is missing or damaged.
    """
    manifest = read_manifest(folder)
    tensors = peft_folder.read(folder, body, manifest.side)
    if manifest.fingerprint != peft_folder.fingerprint(body):
        raise ModelError(
            f"adapter {folder} was trained on another base model ({manifest.base}) than "
            f"{base_of(body)}: their numbers differ"
        )
    return tensors


# --- out of a run -----------------------------------------------------------------------------


def export_run(
    run: Path,
    target: Path,
    *,
    mode: str | None = None,
    client: str | None = None,
    merge: bool = False,
    say: Say,
) -> Path:
    """Write what a run trained to a folder of its own, with a full model card; return that folder.

    Args:
        run: A run folder, finished or not.
        target: A folder that is empty or not there.
        mode: A mode, `central` or `local`; the job's own mode if left out and there, else the only
            one there is.
        client: This client's own model, where a stage leaves such.
        merge: Write a whole transformers model instead of an adapter.
        say: Told what happens.

    Raises:
        CheckpointError: It is not a run folder, or the target cannot be written.
        JobError: It is several runs, the run has no such adapter, or the target is not empty.
        ModelError: The adapter cannot be merged.
    """
    one_run(run)
    job = _job_of(run)
    stage, named = choose(run, job, mode=mode, client=client)
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise JobError(f"{target} is not an empty folder; name another one")
    source = run / ADAPTERS / named
    manifest = replace(read_manifest(source), training=_training(run, job, stage, named))
    with whole(target) as making:
        if merge:
            base = _base(job, manifest, client, say)
            say(f"merging {named} into {base}")
            pad = _padding(manifest)
            with TemporaryDirectory(prefix="triskel-") as name:  # peft would follow links
                adapter_copied(source, Path(name))
                peft_folder.merge(Path(name), base, making, classes=manifest.classes, pad=pad)
        else:
            adapter_copied(source, making)
        _describe(making, manifest, merged=merge)
    say(f"{named} is in {target}")
    return target


def tensors_of(run: Path, *, mode: str | None = None, client: str | None = None) -> Tensors:
    """Return the tensors of an adapter that a run left, named as in the base model.

    Args:
        run: A run folder, finished or not.
        mode: As of `export_run`.
        client: As of `export_run`.

    Raises:
        CheckpointError: It is not a run folder.
        JobError: It is several runs, or the run has no such adapter.
        ModelError: The adapter is damaged.
    """
    one_run(run)
    _, named = choose(run, _job_of(run), mode=mode, client=client)
    return peft_folder.tensors_in(run / ADAPTERS / named)


def model_of(run: Path, *, mode: str | None = None, client: str | None = None, say: Say) -> Any:  # noqa: ANN401 - PEFT's
    """Return the base model in float32 with an adapter that a run left on it, as PEFT has it.

    Args:
        run: A run folder, finished or not.
        mode: As of `export_run`.
        client: As of `export_run`.
        say: Told what happens.

    Raises:
        CheckpointError: It is not a run folder, or the adapter is damaged.
        JobError: It is several runs, or the run has no such adapter.
        ModelError: The base cannot be loaded, or the adapter does not fit it.
    """
    source, base, manifest = _meant(run, mode, client, say)
    with TemporaryDirectory(prefix="triskel-") as name:  # peft would follow links
        adapter_copied(source, Path(name))
        model, tokenizer, _ = peft_folder.opened(Path(name), base, classes=manifest.classes)
    peft_folder.pad_with(model, tokenizer, _padding(manifest))
    return model


def tokenizer_of(run: Path, *, mode: str | None = None, client: str | None = None, say: Say) -> Any:  # noqa: ANN401 - of transformers
    """Return the tokenizer that goes with `model_of`.

    Args:
        run: A run folder, finished or not.
        mode: As of `export_run`.
        client: As of `export_run`.
        say: Told what happens.

    Raises:
        CheckpointError: It is not a run folder.
        JobError: It is several runs, or the run has no such adapter.
        ModelError: The tokenizer cannot be loaded.
    """
    _, base, manifest = _meant(run, mode, client, say)
    tokenizer = load.tokenizer_in(base)
    if token := _padding(manifest):
        tokenizer.pad_token = token
    return tokenizer


def _meant(run: Path, mode: str | None, client: str | None, say: Say) -> tuple[Path, str, Manifest]:
    """Return the folder of the adapter that is meant, where its base is, and what it is."""
    one_run(run)
    job = _job_of(run)
    _, named = choose(run, job, mode=mode, client=client)
    source = run / ADAPTERS / named
    manifest = read_manifest(source)
    return source, _base(job, manifest, client, say), manifest


def _padding(manifest: Manifest) -> str:
    """Return what a decoder that classifies is padded with; empty where nothing is to be set."""
    return manifest.padding if manifest.classes and manifest.pooling == "last" else ""


def adapter_copied(source: Path, making: Path) -> None:
    """Copy an adapter's two files, once they are what they are called.

    Raises:
        CheckpointError: One is missing, a link, or something else.
    """
    names = (peft_folder.CONFIG, peft_folder.WEIGHTS)
    try:
        copied(source, making, wanted=lambda place: place in names)
        table_of(json_in(making / peft_folder.CONFIG))
        with safe_open(safetensors_at(making / peft_folder.WEIGHTS), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                file.get_tensor(name)
    except (OSError, ValueError, SafetensorError) as error:
        why = f"{source} holds no adapter that can be exported: {error}"
        raise CheckpointError(why) from error


def _job_of(run: Path) -> Job:
    place = run / "job.toml"
    try:
        return parse(text_of(place, most=TOML_MOST), where=str(place), imports=())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run} is not a run folder: {error}; it needs a job.toml") from error


def _base(job: Job, manifest: Manifest, client: str | None, say: Say) -> str:
    """Return where the base is now; an asset may have moved since the run."""
    own = job.client(client).model if client else None
    named = resolve(own or job.model.path, fetch=True, say=say)
    return named if Path(named).is_dir() else manifest.base


# --- what the card says -----------------------------------------------------------------------


def _training(run: Path, job: Job, stage: str, named: str) -> Training:
    """Return how a stage trained, with the figures that the run has written so far."""
    owner = named.removeprefix(f"{stage}-") if named != stage else None
    result: Mapping[str, Any] = run_in(run) or {}
    found = _stage_of(run, result, stage, named)
    rounds = cast("list[dict[str, Any]]", found.get("rounds", []))
    scores = cast("dict[str, Any]", found.get("final", {}))
    if owner is not None and rounds:
        scores = ended_with(found).get("per_client", {}).get(owner, {})
    totals: Any = found.get("totals", {})
    traffic = None
    if stage not in BASELINES and totals:
        traffic = (totals["up"]["message_bytes"], totals["down"]["message_bytes"])
    holdings: dict[str, Any] = result.get("data", {}).get("clients", {})
    active = sum(1 for one in holdings.values() if one.get("train"))
    seen = len({client for row in rounds for client in row.get("clients", {})})
    training = training_of(
        job,
        stage,
        clients=1 if stage == "local" else active or seen,
        scores=_figures(scores) | {c: _figures(scores[c]) for c in COLUMNS if c in scores},
        own=owner is not None,
        rounds=len(rounds) or None,
        traffic=traffic,
        judge=_json(run / "request.json").get("judge", "test"),
        about=about_in({"job": dump(job), **result}, stage),
        data=result.get("data", {}),
        row=found,
    )
    if owner is not None or "summary" not in result:  # nobody is told how other clients do
        return training
    return replace(training, **_spread(result, stage))


def _spread(result: Mapping[str, Any], stage: str) -> dict[str, dict[str, Any]]:
    """Return how far clients differ in a finished run, for a model that is not one client's."""
    seen = read(result)
    row = seen.modes.get(stage) or seen.baselines.get(stage)
    if row is None:
        return {}
    name = "perplexity" if seen.by_loss else "accuracy"
    each = [one for one in row.per_client.values() if one.examples != 0]
    figures = [value for one in each if (value := getattr(one, name)) is not None]
    told: dict[str, dict[str, Any]] = {}
    if len(figures) > 1:
        told["worst"] = {name: max(figures) if seen.by_loss else min(figures)}
    if (counts := better_off(seen, stage)) is not None:
        names = ("better", "better_sure", "worse_sure", "clients")
        told["alone"] = dict(zip(names, counts, strict=True))
    return told


def _figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(scores[k]) for k in FIGURES if scores.get(k) is not None}


def _stage_of(run: Path, result: Mapping[str, Any], stage: str, named: str) -> dict[str, Any]:
    """Return a stage's rows: from the result, or from the stage itself while the run goes on."""
    found: dict[str, Any] = result.get("modes", {}).get(stage, {})
    if stage == "central":
        found = result.get("baselines", {}).get(stage, {})
    over = named if stage == "local" else stage
    return found or cast("dict[str, Any]", stage_in(run / "stages" / over) or {})


def _json(place: Path) -> dict[str, Any]:
    if not place.exists():
        return {}
    try:
        return cast("dict[str, Any]", json_in(place))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error


def _describe(folder: Path, manifest: Manifest, *, merged: bool) -> None:
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
    (folder / CARD).write_text(card(manifest, merged=merged), encoding="utf-8")
