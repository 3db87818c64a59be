"""A model that a run trained, loaded again without anybody's texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triskel.config.job import Job
from triskel.config.sections import Override
from triskel.core import events
from triskel.core.registry import MODES, TASKS
from triskel.core.task_spec import TaskSpec
from triskel.data.assets import resolve
from triskel.data.federate import Federation
from triskel.data.rows import Rows
from triskel.errors import DataError, ModelError
from triskel.experiment import data_record
from triskel.experiment.compare import read_run
from triskel.experiment.folder import safe
from triskel.experiment.resources import LocalResources
from triskel.export.adapters import read_adapter
from triskel.export.manifest import read_manifest
from triskel.export.saved import ADAPTERS, choose
from triskel.model.shared import SharedModel
from triskel.report.catalogue import one_run
from triskel.types import Tensors, Watch

Type = Literal["auto", "float32", "bfloat16"]
"""What a model may compute in, where that is asked for."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A base model and an adapter of a run.

    Attributes:
        run: The run's folder.
        name: The adapter's: a mode, `central`, or such a name with a client's.
        job: What was trained.
        task: What was learnt.
        classes: Class names by index; empty where a model writes.
        body: The base.
        tensors: The adapter, and the head of a classifier.
    """

    run: Path
    name: str
    job: Job
    task: TaskSpec
    classes: tuple[str, ...]
    body: SharedModel
    tensors: Tensors

    @property
    def writes(self) -> bool:
        """Whether it writes text, rather than telling classes."""
        return self.task.head == "vocabulary"


def trained(
    run: Path,
    *,
    mode: str | None = None,
    client: str | None = None,
    model: Path | None = None,
    dtype: Type | None = None,
    watch: Watch,
) -> TrainedModel:
    """Load a model that a run trained.

    Args:
        run: A run folder, finished or not.
        mode: A mode, `central` or `local`; the job's own mode if left out and there, else the only
            one there is.
        client: This client's own model, where a stage leaves such.
        model: Where the base lies here, if not where the job says.
        dtype: What it computes in. The job's own if left out; but where that is open, text is
            written in float32, as a batch in bfloat16 rounds otherwise than its rows alone.
        watch: Told about whatever a user should know.

    Raises:
        CheckpointError: It is not a run folder, or the adapter is damaged.
        JobError: It is several runs, or the run has no such adapter.
        DataError: The base's tokenizer is another than it was.
        ModelError: The base is not here, or the adapter does not fit it.
    """
    one_run(run)
    job, _ = read_run(run, imports=())
    stage, name = choose(run, job, mode=mode, client=client)
    task = TASKS.spec(job.data.task)
    computes = dtype or job.model.dtype
    if dtype is None and computes == "auto" and task.head == "vocabulary":
        computes = "float32"
    path = {} if model is None else {"path": str(model.resolve())}
    # nothing is trained, so nothing is timed or kept for that
    job = with_model(job, dtype=computes, compute="reference", recompute="never", cache_mb=0)
    client, own = _owner(job, name)
    resources = without_texts(run, with_model(_as(job, stage, own), **path), name, watch)
    body = resources.body()
    whose = client if own.model else ""
    data_record.hold_tokenizers(run, {whose: body.tokenizer}, write=False)
    return TrainedModel(
        run=run,
        name=name,
        job=job,
        task=task,
        classes=resources.federation.classes,
        body=body,
        tensors=read_adapter(run / ADAPTERS / name, body),
    )


def _owner(job: Job, name: str) -> tuple[str, Override]:
    """Return the client whose own an adapter is, and what it does differently; else nobody."""
    _, _, owner = name.partition("-")
    each = job.clients.each.items()
    return next(((c, own) for c, own in each if safe(c) == owner), (owner, Override()))


def _as(job: Job, stage: str, own: Override) -> Job:
    """Return a job whose model and rank are those that a client has in a stage."""
    job = with_model(job, path=own.model or job.model.path)
    one = stage in MODES.names() and MODES.spec(stage).carries(job).one_body
    rank = {"rank": job.adapter.rank if one else own.rank or job.adapter.rank}
    return job.model_copy(update={"adapter": job.adapter.model_copy(update=rank)})


def with_model(job: Job, **changes: object) -> Job:
    """Return a job with another section `model`."""
    return job.model_copy(update={"model": job.model.model_copy(update=changes)})


def without_texts(run: Path, job: Job, name: str, watch: Watch) -> LocalResources:
    """Return the resources of a job with its model loaded, and nobody's texts.

    Args:
        run: A run folder.
        job: Its job.
        name: Of an adapter that it saved, which says where its base was.
        watch: Told about whatever a user should know.

    Raises:
        CheckpointError: The adapter's `triskel.json` is missing or damaged.
        DataError: The model's folder is not here.
        ModelError: The model is not here, or cannot be loaded.
    """
    manifest = read_manifest(run / ADAPTERS / name)
    nobodys = Federation(clients={}, public=Rows(), classes=manifest.classes)
    try:
        place = _place(job.model.path, manifest.base, watch)
        resources = LocalResources.of(with_model(job, path=place), nobodys, watch, modes=())
        resources.body()
    except (DataError, ModelError) as error:
        error.add_note(f"`--model DIR` says where {job.model.path} lies on this machine")
        raise
    return resources


def _place(path: str, trained_on: str, watch: Watch) -> str:
    """Return where a base is: where the job says, or where it was when the adapter was saved."""
    there = Path(trained_on).is_dir()
    try:
        named = resolve(path, fetch=True, say=lambda text: watch(events.note(text)))
    except DataError:
        if there:
            return trained_on
        raise
    return trained_on if there and not Path(named).is_dir() else named
