"""What a server knows of its sites before the first round: numbers, as each of them says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triskel.config.job import Job, ModeName
from triskel.config.sections import Judge
from triskel.data.federate import Federation
from triskel.engines.flare.about import other_code, other_plugins
from triskel.engines.flare.calls import Reply, text, whole
from triskel.errors import MessageError
from triskel.model.body import Body
from triskel.result_parts import Data
from triskel.runner.models import Models
from triskel.runner.resources import setting_of
from triskel.runner.tokens import Tokens
from triskel.setting import ModeSetting
from triskel.types import ClientId, Watch


@dataclass(frozen=True, kw_only=True)
class Present:
    """What a site says it holds.

    Attributes:
        examples: Its training examples.
        tests: Its test examples.
        tokens: Of its training examples together.
    """

    examples: int
    tests: int
    tokens: int


@dataclass(frozen=True)
class Met:
    """How a site was found before it takes part.

    Attributes:
        why: Why it does not, as far as is known.
        standing: `away` if it may be there next time, `failed` if it says that it cannot,
            `refuses` if it will not have the job, with others or without.
        present: What it holds, once it is ready.
    """

    why: str = ""
    standing: Literal["away", "failed", "refuses"] = "away"
    present: Present | None = None


@dataclass(frozen=True, kw_only=True)
class ServerResources:
    """A job, loaded at a server: its model and the public set; of the sites, numbers only.

    Attributes:
        job: The job.
        federation: The sites, and the public set.
        models: The server's model.
        tokens: The public set as its tokens.
        present: What each site says it holds; nothing of one that has not said so yet.
        judge: Which rows sites score models on.
    """

    job: Job
    federation: Federation
    models: Models
    tokens: Tokens
    present: Mapping[ClientId, Present | None]
    judge: Judge = "test"

    @property
    def clients(self) -> list[ClientId]:
        """Every site, by name."""
        return sorted(self.present)

    def active(self) -> list[ClientId]:
        """Return the sites that may hold a training example, by name."""
        return [c for c, one in sorted(self.present.items()) if one is None or one.examples]

    @property
    def testers(self) -> list[ClientId]:
        """Sites that may hold a test example, by name."""
        return [c for c, one in sorted(self.present.items()) if one is None or one.tests]

    def body(self, client: ClientId | None = None) -> Body:
        """Return the server's model, or the one that a site's options name."""
        return self.models.body(client)

    def setting(self, mode: ModeName, watch: Watch) -> ModeSetting[Any]:
        """Return what a mode is built from; each site compares its model with the server's."""
        return setting_of(self.job, mode, self.tokens, tuple[tuple[ClientId, Body], ...], watch)

    def epoch_tokens(self) -> Mapping[ClientId, int]:
        """Return training tokens of one epoch of each site that was met, as it says."""
        return {c: one.tokens for c, one in sorted(self.present.items()) if one and one.examples}

    def public_tokens(self) -> int:
        """Return how many tokens the public set has for the server's model."""
        return sum(len(ids) for ids in self.tokens.public(self.body()).ids)

    def count(self) -> None:
        """What training costs is counted where it is done."""

    def forget(self) -> None:
        """Let go of hidden states that were kept, unless there is ample room for the next's."""
        self.models.memory.forget(self.models.in_memory)

    def described(self) -> Data:
        """Return a table, as JSON values, of what every site that was met says it holds."""
        return {
            "classes": list(self.federation.classes),
            "public": len(self.federation.public),
            "drawn_by": "sites",
            "clients": {
                client: {"train": one.examples, "test": one.tests}
                for client, one in sorted(self.present.items())
                if one is not None
            },
        }


def met_in(reply: Reply, job: Job, modes: Sequence[ModeName]) -> Met:
    """Return what a site says of itself: nothing yet, while it is not ready.

    Args:
        reply: To `hello`.
        job: What was submitted; packages that bring what it names must be the same on both sides.
        modes: What is to be played.

    Raises:
        MessageError: It cannot be read.
    """
    state = text(reply, "state")
    if strange := other_code(reply, "the site"):
        return Met(strange, "refuses")
    if state in {"refused", "failed"}:
        why = text(reply, "error", longest=2000) or f"it {state}"
        return Met(why, "refuses" if state == "refused" else "failed")
    if state == "preparing":
        return Met()
    if state != "ready":
        raise MessageError(f"a site is never {state!r} before the first round")
    if strange := other_plugins(reply, "the site", job, modes):
        return Met(strange, "refuses")
    holds = ("examples", "tests", "tokens")
    return Met(present=Present(**{name: whole(reply, name) for name in holds}))


def who(met: Mapping[ClientId, Met], standing: str) -> str:
    """Return the sites of one standing that take no part, with their reasons."""
    some = {c: one.why for c, one in met.items() if one.standing == standing and not one.present}
    return "; ".join(f"{client}: {why}" for client, why in sorted(some.items()))
