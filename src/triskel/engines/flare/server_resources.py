"""A job, loaded at the server of a federation: its model, the public set, and of sites numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triskel.config.job import Job, ModeName
from triskel.config.sections import Judge
from triskel.core.result_data import Data
from triskel.core.result_parts import Started
from triskel.data.federate import Federation
from triskel.engines.flare.server_roster import Present
from triskel.experiment.models import Models
from triskel.experiment.resources import setting_of
from triskel.experiment.tokens import Tokens
from triskel.model.shared import SharedModel
from triskel.training.mode_setting import ModeSetting
from triskel.types import ClientId, Watch


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

    def sizes(self) -> dict[ClientId, int]:
        """Return how many training examples each site said that it holds."""
        return {c: one.examples for c, one in sorted(self.present.items()) if one is not None}

    def testers(self) -> list[ClientId]:
        """Return the sites that may hold a test example, by name."""
        return [c for c, one in sorted(self.present.items()) if one is None or one.tests]

    def body(self, client: ClientId | None = None) -> SharedModel:
        """Return the server's model, or the one that a site's options name."""
        return self.models.body(client)

    def tokenizers(self) -> Mapping[str, Any]:
        """Return the server's; sites hold their own against what they began with."""
        return {"": self.body().tokenizer}

    def setting(self, mode: ModeName, watch: Watch) -> ModeSetting[Any]:
        """Return what a mode is built from; each site compares its model with the server's."""
        return setting_of(
            self.job, mode, self.tokens, tuple[tuple[ClientId, SharedModel], ...], watch
        )

    def started(self, stage: str) -> Started | None:
        """Return what a result says of the adapter that a stage starts from, if there is one."""
        return self.models.started(stage)

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
