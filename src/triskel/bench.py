"""Everything a job's stages share: who holds what, the models in memory, tokens, and meters.

One base model is loaded per distinct (model, rank); all clients and the server run through it.
Texts are tokenised once per client and model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from triskel.choices import Choices
from triskel.config.job import Job, ModeName
from triskel.config.sections import Judge, Model
from triskel.core.registry import TASKS
from triskel.data.assets import cache_folder, resolve
from triskel.data.federate import Federation, federate
from triskel.data.rows import Rows
from triskel.data.text import task_of, tokenise
from triskel.data.tokens import concatenated
from triskel.errors import JobError
from triskel.evaluate import Group, grouped
from triskel.model.body import Body, Choice
from triskel.model.choose import choose
from triskel.model.load import load
from triskel.model.meter import Costs
from triskel.model.prefix import Prefix
from triskel.policy.weights import Seals
from triskel.room import ROOM, free_memory, kept
from triskel.setting import ModeSetting
from triskel.types import ClientId, Examples, Watch
from triskel.worker import WHOLE, Worker

MB = 1_000_000
DEPTHS = 3
"""Depths at which a stage keeps hidden states, at most: `split` below, in and above the trunk."""


@dataclass(frozen=True, slots=True)
class Share:
    """One client's tokenised examples."""

    train: Examples
    test: Examples


@dataclass(frozen=True)
class Loaded:
    """What runs of one job with other seeds have in common: it is loaded and counted once.

    Attributes:
        bodies: Models, by where they come from, their rank and how they compute.
        costs: What their pieces cost, by the model's identity.
        tokens: Texts as tokens, by the model's identity and the rows.
    """

    bodies: dict[tuple[str, int, Model], Body] = field(
        default_factory=dict[tuple[str, int, Model], Body]
    )
    costs: dict[int, Costs] = field(default_factory=dict[int, Costs])
    tokens: dict[tuple[int, Rows], Examples] = field(
        default_factory=dict[tuple[int, Rows], Examples]
    )


@dataclass
class Bench:
    """A job, loaded.

    Attributes:
        job: The job.
        federation: Who holds what, as text.
        watch: Told about whatever a user should know.
        choices: Where is written how each model computes, so that a resumed run does the same.
        modes: What is played; None is the job's own mode.
        loaded: What is shared with other seeds of the job.
        judge: Which rows models are scored on.
        seals: What models are held to while they are loaded; None takes any, as what a job names is
            its own.
    """

    job: Job
    federation: Federation
    watch: Watch
    choices: Path | None = None
    modes: Sequence[ModeName] | None = None
    loaded: Loaded = field(default_factory=Loaded)
    judge: Judge = "test"
    seals: Seals | None = None
    _bodies: dict[tuple[str, int], Body] = field(default_factory=dict[tuple[str, int], Body])
    _shares: dict[ClientId, Share] = field(default_factory=dict[ClientId, Share])
    _tests: dict[int, Mapping[ClientId, Examples]] = field(
        default_factory=dict[int, Mapping[ClientId, Examples]]
    )
    _groups: dict[int, Sequence[Group]] = field(default_factory=dict[int, Sequence[Group]])
    _public: dict[int, Examples] = field(default_factory=dict[int, Examples])

    @property
    def clients(self) -> list[ClientId]:
        """Everyone, by name."""
        return sorted(self.federation.clients)

    @property
    def played(self) -> Sequence[ModeName]:
        """The modes that are played."""
        return (self.job.mode,) if self.modes is None else self.modes

    @property
    def active(self) -> list[ClientId]:
        """Clients that hold at least one training example, by name."""
        return [c for c in self.clients if len(self.share(c).train)]

    def body(self, client: ClientId | None = None) -> Body:
        """Return the model of a client, or the server's; loaded at first use."""
        path, rank = self._model(client)
        if (path, rank) not in self._bodies:
            name, choices = f"{path} rank {rank}", Choices(self.choices, self.played)
            choices.settle(self._say)
            body = self._load(path, rank, choices.model(name, self.job.model))
            _long_enough(body, self.job)
            if (choice := choices.choice(name)) is None:
                choice = self._choice(body)
                choices.keep(name, body, choice)
            body.use(choice)
            body.prefix = self._prefix if self._keeps(body) else None
            self._bodies[path, rank] = body
        return self._bodies[path, rank]

    def _load(self, path: str, rank: int, model: Model) -> Body:
        """Return a model at this job's start: from memory, where another seed loaded it."""
        job, key = self.job, (path, rank, model)
        if key in self.loaded.bodies:
            body = self.loaded.bodies[key]
            body.reseed(job.seed)
            return body
        source = resolve(path, fetch=True, say=self._say)
        with nullcontext() if self.seals is None else self.seals.held(source) as place:
            body = load(
                source,
                model,
                job.adapter.model_copy(update={"rank": rank}),
                head=TASKS.spec(job.data.task).head,
                classes=len(self.federation.classes),
                seed=job.seed,
                place=place,
            )
        body.objective = task_of(job.data.task).objective
        self.loaded.bodies[key] = body
        return body

    def _model(self, client: ClientId | None) -> tuple[str, int]:
        """Return the path and the rank of a client's model, or the server's."""
        own = self.job.client(client) if client else None
        path = (own.model if own else None) or self.job.model.path
        return path, (own.rank if own else None) or self.job.adapter.rank

    def _choice(self, body: Body) -> Choice:
        """Return how a model computes best on this machine."""
        model = self.job.model
        choice = choose(body, model.compute, cache=cache_folder(), say=self._say)
        if model.recompute == "never":
            return choice
        body.use(choice)
        twice = model.recompute == "always" or self._short(body)
        if twice:
            choice = replace(choice, recompute=True)
            body.use(choice)
            self.loaded.costs.pop(id(body), None)  # it was weighed as if activations were kept
            if model.recompute == "auto" and self._short(body):
                self._say(
                    "memory may run out although activations are computed twice: lower "
                    "train.batch or train.max_tokens, or set split.wave"
                )
        return choice

    def _short(self, body: Body) -> bool:
        """Return whether what training keeps would fill most of the memory that is free."""
        clients = math.ceil(self.job.clients.cohort * len(self.clients))
        most = kept(body, self.costs(body), self.job, self.played, clients)
        return most > ROOM * free_memory(body.device)

    def _keeps(self, body: Body) -> bool:
        """Return whether hidden states below the first block that trains are kept.

        A function of the job alone, so that a resumed run keeps what the stopped one kept.
        """
        return body.frozen > 0 and self._most(body) <= self.job.model.cache_mb * MB

    def _most(self, body: Body) -> int:
        """Return the most bytes of hidden states that a stage keeps at one depth.

        It counts `train.max_tokens` for every text that a stage keeps: training texts once, public
        ones for every model, test texts as their owner's and for every model that is scored on all
        of them; and as if all of these ran through a model of this width.
        """
        models = len({self._model(client) for client in (None, *self.clients)})
        texts = models * len(self.federation.public) + sum(
            len(one.train) + (1 + models) * len(one.test)
            for one in self.federation.clients.values()
        )
        return texts * self.job.train.max_tokens * body.blocks.width * body.dtype.itemsize

    @cached_property
    def _prefix(self) -> Prefix:
        """Where hidden states of all models are kept."""
        return Prefix(self.job.model.cache_mb * MB, say=self._say)

    def forget(self) -> None:
        """Let go of the hidden states that were kept, unless there is ample room for the next's.

        What is kept of a text is a function of its owner's texts, so a stage that finds it rounds
        as one that computes it.
        """
        next_ = DEPTHS * max(map(self._most, self._bodies.values()), default=0)
        if self._prefix.size + next_ > self.job.model.cache_mb * MB:
            self._prefix.forget()

    def release(self) -> None:
        """Let go of all hidden states that were kept: no stage follows."""
        self._prefix.forget()

    def costs(self, body: Body) -> Costs:
        """Return what pieces of a model cost, counted once."""
        costs = self.loaded.costs
        if id(body) not in costs:
            costs[id(body)] = Costs(body, cache_folder(), self._say)
        return costs[id(body)]

    def share(self, client: ClientId) -> Share:
        """Return a client's examples as its own model's tokens."""
        if client not in self._shares:
            holding, body = self.federation.clients[client], self.body(client)
            self._shares[client] = Share(
                train=self._tokens(holding.train, body), test=self._tokens(holding.test, body)
            )
        return self._shares[client]

    def tests(self, body: Body) -> Mapping[ClientId, Examples]:
        """Return every client's test share as one model's tokens."""
        if id(body) not in self._tests:
            self._tests[id(body)] = {
                c: self.share(c).test
                if self.body(c) is body
                else self._tokens(self.federation.clients[c].test, body)
                for c in self.clients
            }
        return self._tests[id(body)]

    def groups(self, body: Body) -> Sequence[Group]:
        """Return every client's test share as one model's tokens, small ones together."""
        if id(body) not in self._groups:
            self._groups[id(body)] = grouped(self.tests(body))
        return self._groups[id(body)]

    def public(self, body: Body) -> Examples:
        """Return the public set as a model's tokens; its labels are unknown."""
        if id(body) not in self._public:
            self._public[id(body)] = self._tokens(self.federation.public, body)
        return self._public[id(body)]

    def worker(self, client: ClientId, watch: Watch) -> Worker:
        """Return a client's worker, with a fresh meter."""
        return self.hand(client, self.body(client), self.share(client), watch)

    def hand(
        self, client: ClientId, body: Body, share: Share, watch: Watch, job: Job | None = None
    ) -> Worker:
        """Return a worker with a given model and examples, and a fresh meter.

        Args:
            client: Whose.
            body: Its model.
            share: Its examples.
            watch: Told of its steps.
            job: What it does, where a stage has a job of its own.
        """
        return Worker(
            client=client,
            job=job or self.job,
            body=body,
            train=share.train,
            test=share.test,
            public=self.public(body),
            meter=self.costs(body).meter(),
            watch=watch,
        )

    def pooled(self) -> Share:
        """Return all clients' examples together, in the order of their names, as server tokens."""
        body = self.body()
        held = [self.federation.clients[c].train for c in self.clients]
        train = [
            self.share(c).train if self.body(c) is body else self._tokens(rows, body)
            for c, rows in zip(self.clients, held, strict=True)
        ]
        tests = list(self.tests(body).values())
        return Share(train=concatenated(train), test=concatenated(tests))

    def setting(self, watch: Watch) -> ModeSetting:
        """Return what a mode is built from, with a fresh meter of the server's."""
        body = self.body()
        return ModeSetting(
            job=self.job,
            body=body,
            meter=self.costs(body).meter(),
            public=lambda: self.public(body),
            models=self.models,
            watch=watch,
        )

    def models(self) -> Iterator[tuple[ClientId, Body]]:
        """Return every client's model."""
        yield from ((client, self.body(client)) for client in self.clients)

    def work(self, clients: list[ClientId]) -> Mapping[ClientId, int]:
        """Return training tokens of one epoch of each client."""
        return {c: sum(len(ids) for ids in self.share(c).train.ids) for c in clients}

    def count(self) -> None:
        """Count what a training step costs, before anything is timed."""
        self._say("counting what a training step costs")
        self.costs(self.body()).know(WHOLE)

    def _tokens(self, rows: Rows, body: Body) -> Examples:
        known, key = self.loaded.tokens, (id(body), rows)
        if key not in known:
            classes = self.federation.classes
            known[key] = tokenise(rows, body.tokenizer, job=self.job, classes=classes)
        return known[key]

    def _say(self, text: str) -> None:
        self.watch({"event": "note", "text": text})


def _long_enough(body: Body, job: Job) -> None:
    """Refuse texts longer than a model that learned a vector for each position has such.

    Raises:
        JobError: `train.max_tokens` is beyond them.
    """
    most, asked = body.blocks.positions, job.train.max_tokens
    if most is not None and asked > most:
        raise JobError(
            f"train.max_tokens is {asked}, and a {body.blocks.config.model_type} model of this job "
            f"knows {most} positions; --set train.max_tokens={most}"
        )


def prepare(
    job: Job,
    watch: Watch,
    choices: Path | None = None,
    *,
    judge: Judge = "test",
    loaded: Loaded | None = None,
) -> Bench:
    """Read the data and deal them out.

    Args:
        job: The job.
        watch: Told about whatever a user should know.
        choices: A file of the run's folder, for how its models compute.
        judge: Which rows models are scored on.
        loaded: What other seeds of the job loaded.

    Raises:
        DataError: The data are not what the job says.
    """
    if job.data.source == "opinions":
        resolve("opinions", fetch=True, say=lambda text: watch({"event": "note", "text": text}))
    return Bench(
        job=job,
        federation=federate(job, judge),
        watch=watch,
        choices=choices,
        loaded=loaded or Loaded(),
        judge=judge,
    )
