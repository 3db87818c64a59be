"""What readers of a result must know of a mode, as its spec says it: kept in `result.json`.

A page, a table and a model card are made of this, so that they can be made where the mode's package
is not installed.
"""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from triskel.config.job import Job
from triskel.core.mode_spec import ModeSpec
from triskel.core.registry import MODES, TASKS
from triskel.core.result_parts import About, TaskAbout


def about_of(job: Job, mode: str) -> About:
    """Return what a mode is under a job, as JSON values."""
    spec = MODES.spec(mode)
    options = spec.of(job)
    return described(spec, options, TASKS.spec(job.data.task).head)


def described(spec: ModeSpec[Any], options: Any, head: str) -> About:  # noqa: ANN401 - the mode's
    """Return what a mode is under options of its own, as JSON values."""
    told = spec.disclosure(options, head)
    return {
        "gloss": spec.gloss,
        "colour": spec.colour,
        "marker": spec.marker,
        "common": spec.common(options),
        "personal": spec.under(options).personal_models,
        "sections": {name: list(words) for name, words in told.sections.items()},
        "stays": told.stays,
        "risk": told.risk,
        "trained": told.trained,
        "trained_own": told.trained_own or told.trained,
        "privacy": told.privacy,
    }


def about_in(result: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
    """Return what a result says of a mode: empty where it says nothing and the mode is not ours.

    Early results say nothing; of a built-in mode its spec then does.
    """
    told = _inner(result, "about").get(mode)
    if isinstance(told, Mapping):
        return cast("Mapping[str, Any]", told)
    if mode not in MODES.ours:
        return {}
    spec, job = MODES.spec(mode), _inner(result, "job")
    try:
        options = spec.options.model_validate(dict(_inner(job, mode)))
    except ValidationError:
        options = spec.options()
    return described(spec, options, str(task_in(result).get("head", "")))


def task_about(job: Job) -> TaskAbout:
    """Return what the task of a job is, as JSON values."""
    spec = TASKS.spec(job.data.task)
    return {"name": spec.name, "head": spec.head, "figure": spec.figure}


def task_in(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a result says of its task: empty where it says nothing and the task is not ours.

    Early results say nothing; of a built-in task its spec then does.
    """
    if told := _inner(result, "task"):
        return told
    name = _inner(_inner(result, "job"), "data").get("task", TASKS.default)
    if name not in TASKS.ours:
        return {}
    spec = TASKS.spec(name)
    return {"name": spec.name, "head": spec.head, "figure": spec.figure}


def _inner(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = told.get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
