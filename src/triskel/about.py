"""What readers of a result must know of a mode, as its spec says it: kept in `result.json`.

A page, a table and a model card are made of this, so that they can be made where the mode's package
is not installed.
"""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from triskel.core import registry
from triskel.core.mode_spec import ModeSpec
from triskel.job import Job


def about_of(job: Job, mode: str) -> dict[str, Any]:
    """Return what a mode is under a job, as JSON values."""
    spec = registry.spec(mode)
    options = spec.of(job)
    return described(spec, options, job.data.task)


def described(spec: ModeSpec[Any], options: Any, task: str) -> dict[str, Any]:  # noqa: ANN401 - the mode's
    """Return what a mode is under options of its own, as JSON values."""
    told = spec.disclosure(options, task)
    return {
        "gloss": spec.gloss,
        "colour": spec.colour,
        "marker": spec.marker,
        "common": spec.common(options),
        "personal": spec.traits.personal_models,
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
    if mode not in registry.NAMES:
        return {}
    spec, job = registry.spec(mode), _inner(result, "job")
    try:
        options = spec.options.model_validate(dict(_inner(job, mode)))
    except ValidationError:
        options = spec.options()
    return described(spec, options, str(_inner(job, "data").get("task", "")))


def _inner(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = told.get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
