"""What a stage keeps in memory: hidden states of texts, and activations for backward passes.

Whether hidden states are kept is a function of the job alone, so that a resumed run keeps what the
stopped one kept; whether activations fit is a matter of what is free, and written down once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from triskel.config.job import Job, ModeName
from triskel.data.federate import Federation
from triskel.model.hidden_cache import HiddenCache
from triskel.model.meter import Costs
from triskel.model.shared import SharedModel
from triskel.plan.memory import ROOM, free_memory, kept

MB = 1_000_000
DEPTHS = 3
"""Depths at which a stage keeps hidden states, at most: `split` below, in and above the trunk."""


def model_of(job: Job, client: str | None) -> tuple[str, int]:
    """Return the path and the rank of a client's model, or the server's."""
    own = job.client(client) if client else None
    path = (own.model if own else None) or job.model.path
    return path, (own.rank if own else None) or job.adapter.rank


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How much of a job may lie in memory.

    Attributes:
        texts: How many texts a stage keeps hidden states of at one depth, at most.
        max_tokens: Tokens of a text, at most.
        clients: How many take part in a round.
        job: Batches, and options of modes.
        modes: What is played.
        hidden: Where hidden states of all models are kept.
    """

    texts: int
    max_tokens: int
    clients: int
    job: Job
    modes: Sequence[ModeName]
    hidden: HiddenCache

    @classmethod
    def of(
        cls, job: Job, federation: Federation, modes: Sequence[ModeName], say: Callable[[str], None]
    ) -> "Memory":
        """Return what a job may keep.

        Training texts count once, public ones for every model, test texts (and those that a round
        is chosen by) as their owner's and for every model that is scored on all of them.
        """
        clients, best = federation.clients, job.train.keep == "best"
        share = 1.0 if job.clients.sampling == "poisson" else job.clients.cohort
        models = len({model_of(job, client) for client in (None, *clients)})
        own = (
            len(one.train) + (1 + models) * (len(one.test) + best * len(one.held_out))
            for one in clients.values()
        )
        return cls(
            texts=models * len(federation.public) + sum(own),
            max_tokens=job.train.length,
            clients=math.ceil(share * len(clients)),
            job=job,
            modes=modes,
            hidden=HiddenCache(job.model.cache_mb * MB, say=say),
        )

    def keeps(self, body: SharedModel) -> bool:
        """Return whether a model's hidden states below the first block that trains are kept."""
        return body.frozen > 0 and 0 < self._most(body) <= self.job.model.cache_mb * MB

    def short(self, body: SharedModel, costs: Costs) -> bool:
        """Return whether what training keeps would fill most of the memory that is free."""
        most = kept(body, costs, self.job, self.modes, self.clients)
        return most > ROOM * free_memory(body.device)

    def forget(self, bodies: Iterable[SharedModel]) -> None:
        """Let go of the hidden states that were kept, unless there is ample room for the next's.

        What is kept of a text is a function of its owner's texts, so a stage that finds it rounds
        as one that computes it.

        Args:
            bodies: The models that the next stage may run.
        """
        next_ = DEPTHS * max(map(self._most, bodies), default=0)
        if self.hidden.size + next_ > self.job.model.cache_mb * MB:
            self.hidden.forget()

    def release(self) -> None:
        """Let go of all hidden states that were kept: no stage follows."""
        self.hidden.forget()

    def _most(self, body: SharedModel) -> int:
        """Return the most bytes of hidden states that a stage keeps at one depth.

        As if all texts were as long as they may be and ran through a model of this width.
        """
        return self.texts * self.max_tokens * body.blocks.width * body.dtype.itemsize
