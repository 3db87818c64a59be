"""The models of a job: one base model in memory for each path and rank, whoever runs it."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triskel.config.job import Job, ModeName
from triskel.config.sections import Model
from triskel.core import events
from triskel.core.crash import during
from triskel.core.registry import TASKS
from triskel.core.result_parts import Started
from triskel.data.assets import cache_folder, resolve
from triskel.data.batches import task_of
from triskel.data.federate import Federation
from triskel.data.rows import Rows
from triskel.errors import JobError
from triskel.experiment.compute_record import ComputeRecord
from triskel.experiment.stage_memory import Memory, model_of
from triskel.experiment.starts import Starts
from triskel.model.load import load, tokenizer_in
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.policy.model_hash import Seals
from triskel.training.autotune import choose
from triskel.types import ClientId, Examples, Watch


@dataclass(frozen=True)
class Loaded:
    """What runs of one job with other seeds have in common: it is loaded and counted once.

    Attributes:
        bodies: Models, by where they come from, their rank and how they compute.
        costs: What their pieces cost, by the model's identity.
        tokens: Texts as tokens, by the model's identity and the rows.
    """

    bodies: dict[tuple[str, int, Model], SharedModel] = field(
        default_factory=dict[tuple[str, int, Model], SharedModel]
    )
    costs: dict[int, Costs] = field(default_factory=dict[int, Costs])
    tokens: dict[tuple[int, Rows], Examples] = field(
        default_factory=dict[tuple[int, Rows], Examples]
    )


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a job, loaded when they are first asked for.

    Attributes:
        job: Which models, and how they compute.
        classes: How many classes a head over classes has.
        modes: What is played.
        memory: Decides what of their work is kept.
        say: Told whatever a user should know.
        choices: Where is written how each model computes, so that a resumed run does the same.
        loaded: What is shared with other seeds of the job.
        seals: What models are held to while they are loaded; None takes any, as what a job names is
            its own.
        starts: What stages start from; None is what the seed makes.
    """

    job: Job
    classes: int
    modes: Sequence[ModeName]
    memory: Memory
    say: Callable[[str], None]
    choices: Path | None = None
    loaded: Loaded = field(default_factory=Loaded)
    seals: Seals | None = None
    starts: Starts | None = None
    _bodies: dict[tuple[str, int], SharedModel] = field(
        default_factory=dict[tuple[str, int], SharedModel]
    )
    _tokenizers: dict[str, Any] = field(default_factory=dict[str, Any])

    def body(self, client: ClientId | None = None) -> SharedModel:
        """Return the model of a client, or the server's.

        Raises:
            ModelError: It cannot be loaded.
            JobError: Its texts are longer than it can read.
        """
        path, rank = model_of(self.job, client)
        if (path, rank) not in self._bodies:
            name, choices = f"{path} rank {rank}", ComputeRecord(self.choices, self.modes)
            choices.settle(self.say)
            body = self._load(path, rank, choices.model(name, self.job.model))
            _long_enough(body, self.job)
            if (choice := choices.choice(name)) is None:
                choice = self._choice(body)
                choices.keep(name, body, choice)
            body.use(choice)
            body.prefix = self.memory.hidden if self.memory.keeps(body) else None
            self._bodies[path, rank] = body
        return self._bodies[path, rank]

    def tokenizer(self, client: ClientId | None = None) -> Any:  # noqa: ANN401 - of transformers
        """Return the tokenizer of a client's model, or of the server's, and load no model for it.

        A model that is held to its seals is read once, whole.

        Raises:
            ModelError: It cannot be loaded.
        """
        path, rank = model_of(self.job, client)
        if self.seals is not None or (path, rank) in self._bodies:
            return self.body(client).tokenizer
        if path not in self._tokenizers:
            self._tokenizers[path] = tokenizer_in(resolve(path, fetch=True, say=self.say))
        return self._tokenizers[path]

    def reader(self, client: ClientId) -> SharedModel:
        """Return the model whose tokens a client's texts are: the server's, if it is of one path.

        What they differ in, the rank of the adapter, no text depends on.
        """
        path, _ = model_of(self.job, client)
        return self.body(None if path == self.job.model.path else client)

    def whose(self, client: ClientId, body: SharedModel) -> bool:
        """Return whether a client's texts are read as this model's; no model is loaded for it."""
        path, rank = model_of(self.job, client)
        same = (path, self.job.adapter.rank) if path == self.job.model.path else (path, rank)
        return self._bodies.get(same) is body

    def begin(self, stage: str) -> None:
        """Let whatever trains from here on start from what a stage starts from.

        Raises:
            JobError: It does not fit the model.
            CheckpointError: It is damaged.
        """
        if self.starts is not None:
            body = self.body()  # a job that starts from an adapter has one model
            body.start_from(self.starts.tensors(stage, body))

    def started(self, stage: str) -> Started | None:
        """Return what a result says of what a stage starts from."""
        return None if self.starts is None else self.starts.told(stage)

    @property
    def in_memory(self) -> Collection[SharedModel]:
        """Models that were loaded so far."""
        return self._bodies.values()

    def costs(self, body: SharedModel) -> Costs:
        """Return what pieces of a model cost, counted once."""
        costs = self.loaded.costs
        if id(body) not in costs:
            costs[id(body)] = Costs(body, cache_folder(), self.say)
        return costs[id(body)]

    def _load(self, path: str, rank: int, model: Model) -> SharedModel:
        """Return a model at this job's start: from memory, where another seed loaded it."""
        job, key = self.job, (path, rank, model)
        if key in self.loaded.bodies:
            body = self.loaded.bodies[key]
            body.reseed(job.seed)
            return body
        source = resolve(path, fetch=True, say=self.say)
        with nullcontext() if self.seals is None else self.seals.held(source) as place:
            body = load(
                source,
                model,
                job.adapter.model_copy(update={"rank": rank}),
                head=TASKS.spec(job.data.task).head,
                classes=self.classes,
                seed=job.seed,
                place=place,
            )
        body.objective = task_of(job.data.task).objective
        self.loaded.bodies[key] = body
        return body

    @during("while timing a training step")
    def _choice(self, body: SharedModel) -> Choice:
        """Return how a model computes best on this machine."""
        model = self.job.model
        choice = choose(body, model.compute, cache=cache_folder(), say=self.say)
        if model.recompute == "never":
            return choice
        body.use(choice)
        twice = model.recompute == "always" or self.memory.short(body, self.costs(body))
        if twice:
            choice = replace(choice, recompute=True)
            body.use(choice)
            self.loaded.costs.pop(id(body), None)  # it was weighed as if activations were kept
            if model.recompute == "auto" and self.memory.short(body, self.costs(body)):
                self.say(
                    "memory may run out although activations are computed twice: lower "
                    "train.batch or train.max_tokens, or set split.wave"
                )
        return choice


def _long_enough(body: SharedModel, job: Job) -> None:
    """Refuse texts longer than a model that learned a vector for each position has such.

    Raises:
        JobError: `train.max_tokens` is beyond them.
    """
    most, asked = body.blocks.positions, job.train.length
    if most is not None and asked > most:
        raise JobError(
            f"train.max_tokens is {asked}, and a {body.blocks.config.model_type} model of this job "
            f"knows {most} positions; --set train.max_tokens={most}"
        )


def models_of(  # noqa: PLR0913 - what models are loaded with
    job: Job,
    federation: Federation,
    watch: Watch,
    *,
    modes: Sequence[ModeName] | None = None,
    choices: Path | None = None,
    loaded: Loaded | None = None,
    seals: Seals | None = None,
    starts: Starts | None = None,
) -> Models:
    """Return a job's models, to be loaded; see `LocalResources.of`."""

    def say(text: str) -> None:
        watch(events.note(text))

    played = (job.mode,) if modes is None else tuple(modes)
    return Models(
        job=job,
        classes=len(federation.classes),
        modes=played,
        memory=Memory.of(job, federation, played, say),
        say=say,
        choices=choices,
        loaded=loaded or Loaded(),
        seals=seals,
        starts=starts,
    )
