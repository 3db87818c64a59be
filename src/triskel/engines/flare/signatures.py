"""Who signed a job, found out by each party itself.

FLARE verifies that a job was signed by somebody, and passes a name along that its server wrote. So
every party reads the signatures of the folder that came to it: all of it, by one person, whose
certificate is of this federation. What was signed names the run, the sites, and the submission with
its time; each submission is admitted once.

Errors are the rest of a sentence that begins with "the job".
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from filelock import FileLock
from nvflare.lighter.tool_consts import NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.engines.flare.protocol import text
from triskel.errors import CheckpointError, JobError
from triskel.policy.revoked import Revoked

LOGGER = logging.getLogger("triskel.flare")
SEEN = "submissions.json"
OLDEST = timedelta(days=14)
"""How long a submission may be on its way; a server lets a job wait for its sites for a week."""
AHEAD = timedelta(hours=1)
"""How far a submitter's clock may be ahead."""


@dataclass(frozen=True)
class Signer:
    """Who signed a job.

    Attributes:
        name: As on the certificate.
        serial: The certificate's number.
    """

    name: str
    serial: int


def signer_of(app: Path, authority: Path, spec: Mapping[str, Any]) -> Signer:
    """Return who signed a job folder, and this very submission in it.

    Args:
        app: The folder as it came.
        authority: The certificate of the federation's authority.
        spec: What the engine was built with.

    Raises:
        JobError: It is not signed, by nobody or by several, or something else was signed.
    """
    verified, signers = verify_folder_signature_and_get_signers(str(app), str(authority))
    if not verified:
        raise JobError("is not signed by a member of this federation")
    papers = {path.read_bytes() for path in sorted(app.rglob(NVFLARE_SUBMITTER_CRT_FILE))}
    if len(signers) != 1 or len(papers) != 1:
        raise JobError("is signed by several, or by one under several certificates")
    if not any(_specs_in(file) == [dict(spec)] for file in sorted((app / "config").glob("*.json"))):
        raise JobError("is another one than the one that was signed")
    found = x509.load_pem_x509_certificates(papers.pop())[0]
    return Signer(str(signers[0][0]), found.serial_number)


def _specs_in(config: Path) -> list[Any]:
    """Return what a configuration builds our classes with."""
    found: Any = json_in(config)
    return [
        one["args"]["spec"]
        for one in found.get("components", ())
        if isinstance(one, dict) and "spec" in one.get("args", {})
    ]


def not_revoked(root: Path, signer: Signer) -> None:
    """Refuse a signer whose certificate was taken back, or of whom that is not known.

    Args:
        root: The party's folder, which holds the list of revoked certificates.
        signer: Who signed.

    Raises:
        JobError: It was, or the list cannot be read; where it lies is in this side's log alone.
    """
    try:
        revoked = Revoked(root).holds(signer.serial)
    except JobError as error:
        LOGGER.error("%s", error)  # noqa: TRY400 - one sentence, with a path of this machine
        raise JobError("is signed with a certificate that may have been revoked") from error
    if revoked:
        raise JobError("is signed with a certificate that was revoked")


def admit_once(folder: Path, spec: Mapping[str, Any], party: str, now: datetime) -> None:
    """Note a submission, and refuse one that was noted before.

    Args:
        folder: Where the party keeps what it saw.
        spec: What was signed.
        party: What the federation calls this party; empty at a server.
        now: The time.

    Raises:
        JobError: It is a replay, is too old, or was not sent to this party.
        CheckpointError: What was seen cannot be read or written down.
    """
    on, nonce, at = spec.get("on"), text(spec, "submission"), _time(spec)
    if party and (not isinstance(on, list) or party not in on):
        raise JobError(f"was not submitted to site {party!r}")
    if not nonce or not now - OLDEST <= at <= now + AHEAD:
        raise JobError("was submitted too long ago, or under a clock that is wrong")
    place = folder / SEEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            known = json_in(place) if place.exists() else {}
            kept = {n: t for n, t in known.items() if _moment(str(t)) >= now - OLDEST - AHEAD}
            if nonce not in kept:
                write_text(place, json.dumps(kept | {nonce: at.isoformat()}))
                return
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{place} does not say what was submitted: {error}") from error
    raise JobError("was played before, and cannot be replayed")


def _time(spec: Mapping[str, Any]) -> datetime:
    try:
        return _moment(text(spec, "at"))
    except ValueError as error:
        raise JobError("does not say when it was submitted") from error


def _moment(when: str) -> datetime:
    found = datetime.fromisoformat(when)
    if found.tzinfo is None:
        raise ValueError(f"{when} has no time zone")
    return found
