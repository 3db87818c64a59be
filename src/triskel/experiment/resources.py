"""A job, loaded: its models, its tokens, its memory, and the workers that stages hand these to.

`Resources` is what a comparison needs of a job wherever its texts lie; `LocalResources` is a job
whose texts are all here. The server of a federation, which knows numbers only, has its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from triskel.config.job import Job, ModeName
from triskel.config.sections import Judge
from triskel.core import events
from triskel.core.crash import during
from triskel.core.registry import MODES
from triskel.core.result_data import Data
from triskel.core.result_parts import Started
from triskel.data.assets import resolve
from triskel.data.federate import Federation, describe, federate
from triskel.data.rows import Rows, Table
from triskel.experiment.lengths import left_of, lost_of, said, together
from triskel.experiment.models import Loaded, Models, models_of
from triskel.experiment.stage_memory import Memory
from triskel.experiment.starts import Starts
from triskel.experiment.tokens import Share, Tokens
from triskel.model.shared import SharedModel
from triskel.policy.model_hash import Seals
from triskel.training.mode_setting import ModeSetting, options_in
from triskel.training.worker import WHOLE, Worker
from triskel.types import ClientId, Watch


@runtime_checkable
class Resources(Protocol):
    """What a comparison needs of a job that is loaded, wherever its texts lie."""

    @property
    def job(self) -> Job:
        """The job."""
        ...

    @property
    def judge(self) -> Judge:
        """Which rows models are scored on."""
        ...

    @property
    def federation(self) -> Federation:
        """Who holds what, as far as it is known here."""
        ...

    @property
    def clients(self) -> list[ClientId]:
        """Everyone, by name."""
        ...

    def active(self) -> list[ClientId]:
        """Return the clients that hold at least one training example, by name."""
        ...

    def testers(self) -> list[ClientId]:
        """Return the clients that hold at least one text to be scored on, by name."""
        ...

    def body(self, client: ClientId | None = None) -> SharedModel:
        """Return the model of a client, or the server's; loaded at first use."""
        ...

    def tokenizers(self) -> Mapping[str, Any]:
        """Return every tokenizer that is known here: a client's own, the server's under ""."""
        ...

    def setting(self, mode: ModeName, watch: Watch) -> ModeSetting[Any]:
        """Return what a mode is built from, with a fresh meter of the server's.

        What trains from here on starts from what the mode starts from.
        """
        ...

    def started(self, stage: str) -> Started | None:
        """Return what a result says of the adapter that a stage starts from, if there is one."""
        ...

    def epoch_tokens(self) -> Mapping[ClientId, int]:
        """Return training tokens of one epoch of each client that holds any."""
        ...

    def public_tokens(self) -> int:
        """Return how many tokens the public set has for the server's model."""
        ...

    def described(self) -> Data:
        """Return a table, as JSON values, of what every client holds."""
        ...

    def count(self) -> None:
        """Count what a training step costs, before anything is timed."""
        ...

    def forget(self) -> None:
        """Let go of what a stage kept in memory, unless there is ample room for the next's."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalResources:
    """A job whose texts are all here.

    Attributes:
        job: The job.
        federation: Who holds what, as text.
        judge: Which rows models are scored on.
        watch: Told about whatever a user should know.
        memory: What may be kept.
        models: Everybody's models.
        tokens: Everybody's texts as tokens.
    """

    job: Job
    federation: Federation
    judge: Judge
    watch: Watch
    memory: Memory
    models: Models
    tokens: Tokens

    @classmethod
    def of(  # noqa: PLR0913 - what a job is loaded with
        cls,
        job: Job,
        federation: Federation,
        watch: Watch,
        *,
        modes: Sequence[ModeName] | None = None,
        judge: Judge = "test",
        choices: Path | None = None,
        loaded: Loaded | None = None,
        seals: Seals | None = None,
        starts: Starts | None = None,
    ) -> "LocalResources":
        """Return a job with these texts; models are loaded and texts tokenised when asked for.

        Args:
            job: The job.
            federation: Who holds what, as text.
            watch: Told about whatever a user should know.
            modes: What is played; None is the job's own mode.
            judge: Which rows models are scored on.
            choices: Where is written how each model computes.
            loaded: What other seeds of the job loaded.
            seals: What models are held to while they are loaded.
            starts: What stages start from.
        """
        models = models_of(
            job, federation, watch, modes=modes, choices=choices, loaded=loaded, seals=seals,
            starts=starts,
        )  # fmt: skip
        return cls(
            job=job,
            federation=federation,
            judge=judge,
            watch=watch,
            memory=models.memory,
            models=models,
            tokens=Tokens(job=job, federation=federation, models=models),
        )

    @property
    def clients(self) -> list[ClientId]:
        """Everyone, by name."""
        return sorted(self.federation.clients)

    def active(self) -> list[ClientId]:
        """Return the clients that hold at least one training example, by name."""
        return [c for c in self.clients if len(self.tokens.share(c).train)]

    def sizes(self) -> dict[ClientId, int]:
        """Return how many training examples each client holds."""
        return {c: len(self.tokens.share(c).train) for c in self.clients}

    def testers(self) -> list[ClientId]:
        """Return the clients that hold at least one text to be scored on, by name."""
        return [c for c in self.clients if len(self.tokens.share(c).test)]

    def body(self, client: ClientId | None = None) -> SharedModel:
        """Return the model of a client, or the server's; loaded at first use."""
        return self.models.body(client)

    def tokenizers(self) -> Mapping[str, Any]:
        """Return every tokenizer: a client's own, the server's under an empty name."""
        own = [c for c in self.clients if self.job.client(c).model]
        return {"": self.models.tokenizer(), **{c: self.models.tokenizer(c) for c in own}}

    def party(self, stage: str, client: ClientId) -> SharedModel:
        """Return the model that a client runs in a stage: its own, or the server's."""
        one = stage in MODES.loaded() and MODES.spec(stage).carries(self.job).one_body
        return self.body(None if one else client)

    def worker(self, client: ClientId, watch: Watch, body: SharedModel | None = None) -> Worker:
        """Return a client's worker, with a fresh meter.

        Args:
            client: Whose.
            watch: Told of its steps.
            body: The model that it runs; None is its own.
        """
        share = self.tokens.share(client)
        return self.worker_with(client, body or self.body(client), share, watch)

    def worker_with(
        self,
        client: ClientId,
        body: SharedModel,
        share: Share,
        watch: Watch,
        rounds: int | None = None,
    ) -> Worker:
        """Return a worker with a given model and examples, and a fresh meter.

        Args:
            client: Whose.
            body: Its model.
            share: Its examples.
            watch: Told of its steps.
            rounds: How many there are, where these are not the job's.
        """
        return Worker(
            client=client,
            training=self.job.training(client),
            rounds=rounds or self.job.rounds,
            seed=self.job.seed,
            body=body,
            train=share.train,
            test=share.test,
            public=self.tokens.public(body),
            meter=self.models.costs(body).meter(),
            watch=watch,
        )

    def validating(self) -> "LocalResources | None":
        """Return the same models with validation texts as test texts, to choose a round by.

        None where nothing is chosen, or models are scored on these texts anyway.
        """
        if self.job.train.keep == "last" or self.judge == "validation":
            return None
        clients = {
            client: replace(held, train=Rows(), test=held.held_out)
            for client, held in self.federation.clients.items()
        }
        federation = replace(self.federation, clients=clients)
        tokens = Tokens(job=self.job, federation=federation, models=self.models)
        return replace(self, federation=federation, judge="validation", tokens=tokens)

    def setting(self, mode: ModeName, watch: Watch) -> ModeSetting[Any]:
        """Return what a mode is built from, with a fresh meter of the server's."""
        return setting_of(self.job, mode, self.tokens, self._everyone, watch)

    def started(self, stage: str) -> Started | None:
        """Return what a result says of the adapter that a stage starts from, if there is one."""
        return self.models.started(stage)

    def _everyone(self) -> Iterator[tuple[ClientId, SharedModel]]:
        yield from ((client, self.body(client)) for client in self.clients)

    def epoch_tokens(self) -> Mapping[ClientId, int]:
        """Return training tokens of one epoch of each client that holds any."""
        return {c: sum(len(ids) for ids in self.tokens.share(c).train.ids) for c in self.active()}

    def public_tokens(self) -> int:
        """Return how many tokens the public set has for the server's model."""
        return sum(len(ids) for ids in self.tokens.public(self.body()).ids)

    def described(self) -> Data:
        """Return a table, as JSON values, of what every client holds once texts are tokens."""
        return self._described

    @cached_property
    def _described(self) -> Data:
        held, share = self.federation.clients.items(), self.tokens.share
        left = {c: left_of(one, share(c).train, share(c).test, self.judge) for c, one in held}
        found = describe(replace(self.federation, clients=left))
        for client, told in found["clients"].items():
            share = self.tokens.share(client)
            told["train"], told["test"] = len(share.train), len(share.test)
            told["lost"] = together({"train": lost_of(share.train), "test": lost_of(share.test)})
        if len(self.federation.public):
            found["public_lost"] = lost_of(self.tokens.public(self.body()))
        return found

    def count(self) -> None:
        """Count what a training step costs, before anything is timed."""
        self.models.say("counting what a training step costs")
        with during("while counting what a training step costs"):
            self.models.costs(self.body()).know(WHOLE)

    def forget(self) -> None:
        """Let go of what a stage kept in memory, unless there is ample room for the next's."""
        self.memory.forget(self.models.in_memory)


def setting_of(
    job: Job,
    mode: ModeName,
    tokens: Tokens,
    models: Callable[[], Iterable[tuple[ClientId, SharedModel]]],
    watch: Watch,
) -> ModeSetting[Any]:
    """Return what a mode of a job is built from, its model at the start of the mode.

    Args:
        job: The job.
        mode: Which mode.
        tokens: The public set as tokens.
        models: Returns every client that is known here, with its model.
        watch: Told of the server's own training steps.
    """
    spec, body = MODES.spec(mode), tokens.models.body()
    tokens.models.begin(mode)
    options, each = options_in(job, spec)
    return ModeSetting(
        spec=spec,
        options=options,
        each=each,
        training=job.train,
        rounds=job.rounds,
        seed=job.seed,
        ranks={c: own.rank for c, own in job.clients.each.items() if own.rank},
        body=body,
        meter=tokens.models.costs(body).meter(),
        public=lambda: tokens.public(body),
        models=models,
        watch=watch,
        wire=job.wire,
        started=bool(job.adapter.start),
    )


def prepare(  # noqa: PLR0913 - what a job is loaded with
    job: Job,
    watch: Watch,
    choices: Path | None = None,
    *,
    modes: Sequence[ModeName] | None = None,
    judge: Judge = "test",
    loaded: Loaded | None = None,
    starts: Starts | None = None,
    seen: Callable[[Table], None] | None = None,
) -> LocalResources:
    """Read the data and deal them out.

    Args:
        job: The job.
        watch: Told about whatever a user should know.
        choices: A file of the run's folder, for how its models compute.
        modes: What is played; None is the job's own mode.
        judge: Which rows models are scored on.
        loaded: What other seeds of the job loaded.
        starts: What stages start from.
        seen: Called with what was read, before anything of it is dealt.

    Raises:
        DataError: The data are not what the job says.
    """

    def say(text: str) -> None:
        watch(events.note(text))

    if job.data.source == "opinions":
        resolve("opinions", fetch=True, say=say)
    with during("while reading the data"):
        federation = federate(job, judge, seen)
    said(job, federation, say)
    return LocalResources.of(
        job,
        federation,
        watch,
        modes=modes,
        judge=judge,
        choices=choices,
        loaded=loaded,
        starts=starts,
    )
