"""What was submitted, and whose code runs it: both sides read the same, and must be the same."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import triskel
from triskel.code import code_sha256
from triskel.engines.flare.calls import text
from triskel.errors import JobError
from triskel.job import MODE_NAMES, Job, ModeName, parse, unsupported

SCHEMA = 1


def run_of(spec: Mapping[str, Any]) -> str:
    """Return the name of a run: submitted again, it goes on where it was.

    Raises:
        JobError: The submission names none.
    """
    run = spec.get("run")
    if type(run) is not str or not re.fullmatch(r"[0-9a-f]{12}", run):
        raise JobError("the submission names no run; submit with `triskel federation submit`")
    return run


def owned(run: str, submitter: str | None) -> str:
    """Return the folder of a run: of a run of the same number by somebody else it is another.

    >>> owned("0123456789ab", "anna@lab.example") == owned("0123456789ab", "eve@lab.example")
    False
    """
    whose = hashlib.sha256((submitter or "").encode()).hexdigest()
    return f"{run}-{whose[:16]}"


def job_of(spec: Mapping[str, Any]) -> tuple[Job, tuple[ModeName, ...]]:
    """Return the job of a submission and the modes to run.

    Raises:
        JobError: It is of another version, or is not a job that can run.
    """
    if spec.get("schema") != SCHEMA:
        raise JobError(
            f"the submission has schema {spec.get('schema')!r}, this version reads {SCHEMA}; run "
            "the same release of triskel everywhere"
        )
    written = spec.get("job")
    if type(written) is not str:
        raise JobError("the submission holds no job")
    job, asked = parse(written, where="the submitted job"), spec.get("modes") or []
    modes: tuple[ModeName, ...] = tuple(mode for mode in MODE_NAMES if mode in asked)
    strange = sorted(map(str, set(asked) - set(MODE_NAMES)))
    if strange:
        raise JobError(f"the submission asks for mode {strange[0]!r}; there are {MODE_NAMES}")
    modes = modes or (job.mode,)
    for mode in modes:
        if reason := unsupported(job, mode):
            raise JobError(f"mode {mode} cannot run this job: {reason}")
    return job, modes


def own_code() -> dict[str, str]:
    """Return which package runs here."""
    return {"version": triskel.__version__, "code": code_sha256()}


def other_code(about: Mapping[str, Any], who: str) -> str:
    """Return why a peer's package is not this one, or nothing."""
    version = text(about, "version")
    if version != triskel.__version__:
        return (
            f"{who} runs triskel {version or 'of no version'} and this side {triskel.__version__}; "
            "install the same release everywhere"
        )
    if text(about, "code") != code_sha256():
        return (
            f"{who} runs other code under the same version {version}; install the same release "
            "everywhere"
        )
    return ""
