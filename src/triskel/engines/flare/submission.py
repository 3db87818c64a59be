"""What was submitted, and whose code runs it: both sides read the same, and must be the same."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from triskel.config.job import MODE_NAMES, Job, ModeName, unsupported
from triskel.config.read import parse
from triskel.core.mode_spec import NAME
from triskel.core.registry import CODECS, MODES, TASKS, Registry
from triskel.core.source import VERSION, code_sha256
from triskel.engines.flare.protocol import text
from triskel.errors import JobError, PluginError
from triskel.wire import show

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


def job_of(spec: Mapping[str, Any], imports: Collection[str]) -> tuple[Job, tuple[ModeName, ...]]:
    """Return the job of a submission and the modes to run.

    Args:
        spec: What was submitted.
        imports: What of other packages may be imported to read it, each as `Registry.key` calls
            it; what it says of others is left as it is.

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
    job = parse(written, where="the submitted job", imports=imports)
    asked = spec.get("modes") or [job.mode]
    if strange := [mode for mode in asked if not (type(mode) is str and NAME.fullmatch(mode))]:
        raise JobError(f"the submission asks for mode {show(strange[0])}, which is no name")
    others = sorted(set(asked) - set(MODE_NAMES))
    modes = (*(mode for mode in MODE_NAMES if mode in asked), *others)
    for mode in modes:
        known = mode in MODE_NAMES or MODES.key(mode) in imports
        if known and (reason := unsupported(job, mode)):
            raise JobError(f"mode {mode} cannot run this job: {reason}")
    return job, modes


def own_code() -> dict[str, str]:
    """Return which package runs here."""
    return {"version": VERSION, "code": code_sha256()}


def other_code(about: Mapping[str, Any], who: str) -> str:
    """Return why a peer's package is not this one, or nothing."""
    version = text(about, "version")
    if version != VERSION:
        return (
            f"{who} runs triskel {version or 'of no version'} and this side {VERSION}; "
            "install the same release everywhere"
        )
    if text(about, "code") != code_sha256():
        return (
            f"{who} runs other code under the same version {version}; install the same release "
            "everywhere"
        )
    return ""


def own_plugins(job: Job, modes: Sequence[ModeName]) -> dict[str, str]:
    """Return whose code modes, task and codecs of other packages are here; nothing is imported."""
    named: list[tuple[Registry[Any], str]] = [(MODES, mode) for mode in modes]
    named += [(TASKS, job.data.task), *((CODECS, name) for name in job.wire.names)]
    return {
        registry.key(name): _plugin(registry, name)
        for registry, name in named
        if name not in registry.ours
    }


def other_plugins(about: Mapping[str, Any], who: str, job: Job, modes: Sequence[ModeName]) -> str:
    """Return why a peer's packages of what a job names are not those here, or nothing."""
    for name, mine in own_plugins(job, modes).items():
        if (theirs := text(about, name)) != mine:
            return (
                f"{who} has {theirs or 'nothing'} for {name} and this side {mine or 'nothing'}; "
                "install the same release of its package everywhere"
            )
    return ""


def _plugin(registry: Registry[Any], name: str) -> str:
    """Return a package's name, version and source hash."""
    try:
        found = registry.origin(name)
    except PluginError:
        return ""
    return f"{found.package} {found.version} ({found.sha256})" if found is not None else ""
