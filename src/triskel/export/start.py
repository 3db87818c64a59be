"""The adapter that training starts from: which folder a job means, and whether it fits the job.

Nothing here needs torch: what a folder's own files say is held against the job before anything slow
begins. Its tensors are held against the model once that is loaded (`model.start_folder`).
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from triskel.config.job import Job, ModeName
from triskel.config.sections import RANKED, SCALED, VIRTUAL, called, projection_seed
from triskel.core.registry import TASKS
from triskel.core.untrusted import data_of, json_of, safetensors_at, table_of
from triskel.errors import CheckpointError, JobError
from triskel.export.manifest import MANIFEST, Manifest, read_manifest
from triskel.export.saved import ADAPTERS, saved
from triskel.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triskel.report.catalogue import kind_of, one_run

KEY = "adapter.start"
ANY = ""
"""In the place of a mode: of whatever stage has no adapter of its own."""
KINDS = {
    "LORA": "lora",
    "IA3": "ia3",
    "LOHA": "loha",
    "LOKR": "lokr",
    "VERA": "vera",
    "LN_TUNING": "full",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "ptuning",
}
"""What a job calls PEFT's methods; `full` is written as copies of modules, which is LN tuning."""
IN_A_BLOCK = re.compile(r"\.\d+\.")
NETWORK = "base_model.virtual_tokens."
SHARED = ("base_model.vera_", NETWORK, "prompt_embeddings")
"""What names begin with that are of no block: VeRA's matrices, and virtual tokens."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways to begin a LoRA that put the rest into the base, which is then another one."""
FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A PEFT folder that a job starts from.

    Attributes:
        folder: Where it is.
        name: What results call it: no path of this machine.
    """

    folder: Path
    name: str

    @property
    def manifest(self) -> Manifest | None:
        """What Triskel wrote beside it, where it did."""
        return read_manifest(self.folder) if (self.folder / MANIFEST).exists() else None


def sources(place: Path, job: Job, modes: Sequence[ModeName]) -> dict[ModeName, Source]:
    """Return what each mode starts from, and under `ANY` what every other stage does.

    A PEFT folder, and a run that left one common adapter, are for every stage. Of a run that left
    several, each mode starts from that of its name, and baselines from that of the job's own mode.

    Args:
        place: A PEFT folder, or the folder of a run.
        job: The job.
        modes: What is played.

    Raises:
        JobError: There is no such folder, or no such adapter in it; says which there are.
        CheckpointError: It is a run folder that is damaged.
    """
    start = job.adapter.start
    if not place.is_dir():
        raise JobError(f"{KEY} {start} is no folder; name a PEFT folder, or that of a run")
    if (place / ADAPTER_CONFIG).exists():
        parts = [place.parent.parent.name] if place.parent.name == ADAPTERS else []
        return {ANY: Source(folder=place, name="/".join([*parts, place.name]))}
    if kind_of(place) is None and not (place / ADAPTERS).is_dir():
        whole = (place / "config.json").exists()
        way = (
            "it is a whole model: name it as model.path"
            if whole
            else (f"a PEFT folder has {ADAPTER_CONFIG}, and a run {ADAPTERS}/")
        )
        raise JobError(f"{KEY} {start} holds no adapter; {way}")
    one_run(place)
    there = saved(place)
    common = {
        stage: Source(folder=place / ADAPTERS / name, name=f"{place.name}/{name}")
        for name, (stage, owner) in there.items()
        if owner is None
    }
    listed = ", ".join(sorted(there)) or "none yet"
    such = f"name one by its folder: {start}/{ADAPTERS}/{min(there, default='NAME')}"
    if not common:
        raise JobError(f"{KEY} {start} has no adapter that is everybody's; it has {listed}: {such}")
    if len(common) == 1:
        return {ANY: next(iter(common.values()))}
    lacking = [mode for mode in modes or [job.mode] if mode not in common]
    if lacking:
        raise JobError(
            f"{KEY} {start} has no adapter of mode {lacking[0]}, and several others: {listed}; "
            f"{such}"
        )
    own = common.get(job.mode) or common[modes[0]]
    return {**{mode: common[mode] for mode in modes}, ANY: own}


def differing(source: Source, job: Job) -> Iterator[str]:
    """Yield in what an adapter differs from what a job trains, as far as its own files say."""
    where = f"{KEY} {source.name}"
    try:
        config = _json(source.folder / ADAPTER_CONFIG)
        shapes = _shapes(source.folder)
        manifest = source.manifest
    except (OSError, ValueError, SafetensorError, CheckpointError) as error:
        why = str(error).replace(str(source.folder), source.name)
        yield f"{where} cannot be read: {why}{_old(source.folder)}"
        return
    kind = _kind(config, manifest, shapes)
    if kind != job.adapter.kind:
        yield (
            f"{where} is an adapter of kind {kind}, and adapter.kind is {job.adapter.kind}; "
            f"--set adapter.kind={kind} takes it as it is"
        )
        return
    yield from (f"{where} {text}" for text in _shape(config, kind, job, manifest))
    yield from (f"{where} {text}" for text in _head(shapes, job, manifest))


def unsure(source: Source, job: Job) -> Iterator[str]:
    """Yield what nobody can tell of a folder that Triskel did not write."""
    if source.manifest is not None:
        return
    config = _json(source.folder / ADAPTER_CONFIG)
    base, ours = str(config.get("base_model_name_or_path") or ""), called(job.model.path)
    if Path(base).name.casefold() != Path(ours).name.casefold():
        yield (
            f"{KEY} {source.name} was trained on {called(base) or 'a base it does not name'}, and "
            f"model.path is {ours}: whether their numbers are the same, nothing here says"
        )
    if TASKS.spec(job.data.task).head == "classes":
        yield (
            f"{KEY} {source.name} does not say which class each output of its head is: they are "
            "taken in the order of the job's classes"
        )


def other_classes(source: Source, classes: Sequence[str]) -> str | None:
    """Return that an adapter's classes are not the job's, in their order, or None."""
    manifest = source.manifest
    if manifest is None or manifest.classes == tuple(classes):
        return None
    listed = ", ".join(f'"{one}"' for one in manifest.classes)
    return (
        f"{KEY} {source.name} tells the classes {', '.join(manifest.classes) or 'none'} apart, in "
        f"this order, and the job {', '.join(classes) or 'none'}; with the same classes, "
        f"--set 'data.classes=[{listed}]' gives their order"
    )


def sha256_of(folder: Path) -> str:
    """Return the SHA-256 of a PEFT folder's tensors, as a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no plain file.
    """
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- parts ------------------------------------------------------------------------------------


def _json(place: Path) -> Mapping[str, Any]:
    """Return a file's table; a cache of models is a folder of links."""
    return table_of(json_of(data_of(place.resolve()).decode("utf-8")))


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Return the sizes of a folder's tensors, by the names that they have there."""
    place = safetensors_at((folder / ADAPTER_WEIGHTS).resolve())
    with safe_open(place, framework="numpy") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def _old(folder: Path) -> str:
    """Return what to do about weights that can run code when they are read."""
    if (folder / ADAPTER_WEIGHTS).exists() or not (folder / "adapter_model.bin").exists():
        return ""
    return (
        "; adapter_model.bin can run code when it is read: load it with PEFT where you trust it, "
        "and save_pretrained(FOLDER)"
    )


def _kind(
    config: Mapping[str, Any], manifest: Manifest | None, shapes: Mapping[str, Sequence[int]]
) -> str:
    """Return what a job calls this kind of adapter, or PEFT where no job can ask for it."""
    kind = str(config.get("peft_type"))
    if kind == "P_TUNING" and not any(name.startswith(NETWORK) for name in shapes):
        return "prompt"  # PEFT leaves the network out, and keeps the embeddings that it made
    if manifest is not None and manifest.kind == "bitfit":
        return manifest.kind  # to PEFT, biases beside a LoRA of zero
    rescaled, lengths = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    if kind != "LORA" or not (rescaled or lengths):
        return KINDS.get(kind, kind)
    return (
        "dora with the scale of rslora"
        if rescaled and lengths
        else ("rslora" if rescaled else "dora")
    )


def _shape(
    config: Mapping[str, Any], kind: str, job: Job, manifest: Manifest | None
) -> Iterator[str]:
    """Yield in what rank, scale and further options differ."""
    if kind in SCALED:
        yield from _scale(config, job, manifest)
    elif kind in RANKED and (rank := config.get("r")) != job.adapter.rank:
        yield (
            f"has rank {rank}, and adapter.rank is {job.adapter.rank}; "
            f"--set adapter.rank={rank} takes it as it is"
        )
    virtual, asked = config.get("num_virtual_tokens"), job.adapter.tokens
    if kind in VIRTUAL and virtual != asked:
        yield (
            f"has {virtual} virtual tokens, and adapter.tokens is {asked}; "
            f"--set adapter.tokens={virtual} takes it as it is"
        )
    if kind == "prefix" and config.get("prefix_projection"):
        yield "was trained through a network of its own (prefix_projection), and a job has none"
    ours = projection_seed(job.adapter, job.seed)
    if kind == "vera" and (seed := config.get("projection_prng_key")) != ours:
        yield (
            f"has projections drawn from {seed}, and the job's are drawn from {ours}; "
            f"--set adapter.projection={seed} takes it as it is"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            yield f"has a {key}, and a job has one rank and one alpha for all modules"
    bias = config.get("bias", "none")
    if (bias != "none" and kind != "bitfit") or config.get("lora_bias"):
        yield "trains biases, which no job does"
    begun = str(config.get("init_lora_weights", "")).casefold()
    if begun.startswith(CHANGE_THE_BASE):
        yield (
            f"began as {begun}, which changes the base model; convert it with PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _scale(config: Mapping[str, Any], job: Job, manifest: Manifest | None) -> Iterator[str]:
    """Yield in what rank and scale differ."""
    rank, alpha = config.get("r"), config.get("alpha", config.get("lora_alpha"))
    fits = rank == job.adapter.rank and _close(alpha, job.adapter.alpha)
    way = f"--set adapter.rank={rank} --set adapter.alpha={alpha} takes it as it is"
    if not fits and manifest is not None and manifest.side:
        yield (
            f"holds factors of rank {manifest.rank} and frozen ones of rank {manifest.side} "
            f"beside them, together of rank {rank} and alpha {alpha}, and the job trains rank "
            f"{job.adapter.rank} and alpha {job.adapter.alpha:g}; {way}"
        )
    elif rank != job.adapter.rank:
        yield f"has rank {rank}, and adapter.rank is {job.adapter.rank}; {way}"
    elif not fits:
        yield f"has alpha {alpha}, and adapter.alpha is {job.adapter.alpha:g}; {way}"


def _close(value: object, wanted: float) -> bool:
    return isinstance(value, int | float) and isclose(value, wanted, rel_tol=1e-6)


def _head(
    shapes: Mapping[str, Sequence[int]], job: Job, manifest: Manifest | None
) -> Iterator[str]:
    """Yield in what the head differs: whether there is one, and for how many classes."""
    head = sorted(n for n in shapes if not IN_A_BLOCK.search(n) and not n.startswith(SHARED))
    task, classes = job.data.task, job.data.classes
    if TASKS.spec(task).head == "vocabulary":
        if head:
            yield (
                f'brings a head of its own ({head[0]}), and with data.task = "{task}" none trains; '
                "it was made for another task"
            )
    elif not head:
        yield f'has no head over classes, and data.task is "{task}"; it was made for another task'
    elif manifest is None and classes:
        held = {shapes[name][0] for name in head if len(shapes[name]) > 1}
        if len(classes) not in held:
            many = " or ".join(map(str, sorted(held)))
            yield f"has a head of {many} outputs, and the job has {len(classes)} classes"
