"""What a site writes to its log: decisions, and everything that leaves.

A message is logged before it is sent, so that nothing leaves unless its line is on disk; a line
says that the site was about to send it. Facts are named and not shown: a loss is about the data.
Each line says of which run it is, so that those of two jobs at once can be told apart.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from triskel.config.job import Job
from triskel.config.read import to_toml
from triskel.policy.hash_chain import Chain, now
from triskel.policy.refusal import Refusal
from triskel.types import Message, Section
from triskel.wire import DTYPE_NAMES, section_bytes

LONGEST = 200
"""Characters of a name that somebody else chose."""


class Audit:
    """The site's log, as an engine writes it.

    Args:
        path: The log; several writers may share it.
        run: The run whose lines are written.
        clock: What time it is.
    """

    def __init__(self, path: Path, run: str, clock: Callable[[], datetime] = now) -> None:
        self._chain, self._run = Chain(path, clock), run

    def decided(
        self,
        job: Job,
        refusals: Sequence[Refusal],
        *,
        to: Literal["read", "send"],
        policy_sha256: str,
        submitter: str | None = None,
    ) -> str:
        """Log a decision; return the hash of its line.

        Args:
            job: The job, as it was decided on.
            refusals: What `decide` returned.
            to: What the job may do or not: read the site's data, or send what that would make.
            policy_sha256: The policy it was decided by, as `load` returned it.
            submitter: Who submitted the job.

        Raises:
            AuditError: The line cannot be written.
        """
        about = {
            "allowed": not refusals,
            "to": to,
            "job": job.name[:LONGEST],
            "mode": job.mode,
            "by": None if submitter is None else submitter[:LONGEST],
            "job_sha256": hashlib.sha256(to_toml(job).encode()).hexdigest(),
            "job_toml": to_toml(job) if to == "read" else None,
            "policy_sha256": policy_sha256,
            "refusals": [str(refusal) for refusal in refusals],
        }
        return self._append("decided", about)

    def told(self, facts: Mapping[str, int]) -> str:
        """Log what the server is told of the site before the first round; return the line's hash.

        Raises:
            AuditError: The line cannot be written; do not tell it.
        """
        return self._append("told", {"facts": dict(facts)})

    def failed(self, error: str, told: str, *, stage: str = "", round_: int = 0) -> str:
        """Log that the job failed here; return the hash of the line.

        Args:
            error: The kind of the error.
            told: The sentence that the server will be told.
            stage: The mode that was played; before the first round none.
            round_: Of which round, counted from 1; before the first round 0.

        Raises:
            AuditError: The line cannot be written; do not tell the sentence.
        """
        return self._append("failed", {"error": error, "told": told, **_where(stage, round_)})

    def left(self, message: Message, data: bytes, *, stage: str, round_: int) -> str:
        """Log a message that is about to be sent; return the hash of its line.

        Args:
            message: What was packed, codecs applied.
            data: What `pack` made of it.
            stage: The mode that is played.
            round_: The round that the site plays, counted from 1, whatever the message says; of a
                test the round that left what is tested, 0 for the start.

        Raises:
            AuditError: The line cannot be written; do not send the message.
        """
        about: dict[str, object] = {
            "kind": message.kind,
            "topic": message.topic,
            "facts": sorted(message.facts),
            "sections": {name: _row(section) for name, section in message.sections.items()},
            "bytes": len(data),
            "message_sha256": hashlib.sha256(data).hexdigest(),
            "stage": stage,
            "round": round_,
        }
        return self._append("left", about)

    def _append(self, what: str, about: Mapping[str, object]) -> str:
        return self._chain.append(what, {"run": self._run, **about})


def _where(stage: str, round_: int) -> dict[str, object]:
    return {name: value for name, value in (("stage", stage), ("round", round_)) if value}


def _row(section: Section) -> dict[str, Any]:
    """Return what a section holds: tensors of one dtype and shape are counted together."""
    shapes = Counter(
        f"{DTYPE_NAMES.get(x.dtype, str(x.dtype))} {list(x.shape)}"
        for x in section.tensors.values()
    )
    return {
        "kind": section.kind,
        "codec": list(section.codec),
        "facts": sorted(section.facts),
        "tensors": dict(shapes),
        "bytes": section_bytes(section),
    }
