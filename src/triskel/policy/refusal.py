"""What a decision rests on, and what it is made of: circumstances, and reasons to refuse a job.

A refusal has two sentences: one for the site's own log and screen, with what the policy allows, and
one for who asked, without it, since a policy never leaves its site.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from triskel.core.registry import Origin

FEW = 8
"""Names that a refusal lists before it says how many more there are."""
LONGEST = 100
"""Characters of somebody else's word that a refusal repeats."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a decision needs beside policy and job; None is "not known".

    Attributes:
        now: The time, with its zone.
        submitter: Who submits the job, as whoever authenticated them says.
        model: What the job calls the model, where it is not the one that the site trains.
        model_sha256: SHA-256 of all that is loaded of the model at this site.
        blocks: How many blocks that model has.
        clients: How many clients the federation has.
        round_bytes: What this site would send in a round, as `payload.round_bytes` says.
        train_rows: How many rows the job would train on here, after caps and after tokenising.
        test_rows: How many it would score models on; none tells nothing of any.
        plugin: Whose code the job's mode is here, where it is of another package and is here.
        task: The same of the job's task.
        aggregate: The same of the aggregate of the job's mode.
        codecs: The same of codecs of other packages, by name.
        short: Keys of the budget that have no room for the job, as `budget.Spent.short` says.
    """

    now: datetime
    submitter: str | None = None
    model: str | None = None
    model_sha256: str | None = None
    blocks: int | None = None
    clients: int | None = None
    round_bytes: int | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    plugin: Origin | None = None
    task: Origin | None = None
    aggregate: Origin | None = None
    codecs: Mapping[str, Origin | None] = field(default_factory=dict[str, "Origin | None"])
    short: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason why a job may not run.

    Attributes:
        key: The key of the policy that refuses.
        asks: What the job asks, or what is not known of it; nothing of the policy, nor of what else
            is on this machine.
        allows: What the policy allows, and what was found here.
    """

    key: str
    asks: str
    allows: str

    def __str__(self) -> str:
        """Return it as one sentence for the site itself."""
        return f"{self.key}: the job {self.asks}; this site {self.allows}"

    @property
    def told(self) -> str:
        """The sentence that may leave the site."""
        return f"{self.key}: the job {self.asks}; this site does not allow it"


def show(value: str) -> str:
    """Return a word that somebody else chose: quoted, escaped, and of bounded length."""
    text = ascii(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def listed(names: Iterable[str], nothing: str = "none") -> str:
    """Return names in order of the alphabet; a long list is cut."""
    found = sorted(set(names))
    more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
    return ", ".join(found[:FEW]) + more if found else nothing
