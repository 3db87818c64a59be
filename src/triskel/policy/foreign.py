"""Whose code a job may run at a site: Triskel's own, or what the policy allows by its package.

A job names a mode, a task, codecs, and an aggregate of its mode. Each decision is made before
anything of another package is imported, by the names and by whose they are on this machine.
"""

from collections.abc import Iterator

from triskel.config.job import Job
from triskel.core.choice import name_of
from triskel.core.registry import AGGREGATES, CODECS, MODES, TASKS, Origin
from triskel.policy.refusal import Circumstances, Refusal, listed, show
from triskel.policy.rules import Policy


def decide_mode(policy: Policy, mode: str, plugin: Origin | None) -> list[Refusal]:
    """Return why a mode may not be played; nothing of it is imported.

    Args:
        policy: The policy.
        mode: Its name.
        plugin: Whose code it is here, where it is of another package and there.
    """
    if mode not in policy.modes:
        asks = f"runs in mode {show(mode)}"
        return [Refusal(key="modes", asks=asks, allows=f"allows {listed(policy.modes)}")]
    return [] if mode in MODES.ours else _pinned(policy, mode, plugin, f"runs in mode {show(mode)}")


def decide_task(policy: Policy, task: str, plugin: Origin | None) -> list[Refusal]:
    """Return why a task of another package may not be read; nothing of it is imported.

    Args:
        policy: The policy; whose plug-in it pins, that it allows.
        task: Its name.
        plugin: Whose code it is here, where it is of another package and there.
    """
    return [] if task in TASKS.ours else _pinned(policy, task, plugin, f"learns task {show(task)}")


def decide_foreign(policy: Policy, job: Job, here: Circumstances) -> list[Refusal]:
    """Return why a job's task or codecs are not even imported; of ours there is no reason."""
    strange = set(job.wire.names) - set(CODECS.ours)
    found = decide_task(policy, job.data.task, here.task)
    return [*found, *decide_codecs(policy, job, here)] if strange else found


def decide_codecs(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse codecs that the policy does not name, and those of packages that it does not pin."""
    for key, codec in ((key, name_of(chosen)) for key, chosen in job.wire.codecs):
        if codec not in policy.codecs:
            yield Refusal(
                key="codecs",
                asks=f"travels as {show(codec)} ({key})",
                allows=f"allows {listed(policy.codecs)}",
            )
        elif codec not in CODECS.ours:
            asks = f"travels as {show(codec)} ({key})"
            yield from _pinned(policy, codec, here.codecs.get(codec), asks)


def decide_aggregate(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse to add up by a package that is not pinned; it is the server alone that adds up."""
    named = aggregate_in(job)
    if named is not None and named not in AGGREGATES.ours:
        yield from _pinned(policy, named, here.aggregate, f"adds up by {show(named)}")


def aggregate_in(job: Job) -> str | None:
    """Return the aggregate that a job names for its mode, where it names one."""
    if job.mode not in MODES.loaded():
        return None
    spec = MODES.spec(job.mode)
    found = getattr(spec.of(job), spec.aggregate_key) if spec.aggregate_key else None
    return None if found is None else name_of(found)


def _pinned(policy: Policy, name: str, plugin: Origin | None, asks: str) -> list[Refusal]:
    pin = policy.plugins.get(name)
    other = "pins no package of it" if pin is None else pin.against(plugin)
    if not other:
        return []
    asks += ", which is of another package than Triskel"
    return [Refusal(key=f"plugins.{name}", asks=asks, allows=other)]
