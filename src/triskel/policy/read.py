"""The policy file: read within limits, and what is wrong with it said in one sentence."""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from triskel.core.registry import MODES
from triskel.core.untrusted import TOML_MOST, data_of, toml_of
from triskel.errors import TriskelError
from triskel.policy.rules import (
    Budget,
    Dataset,
    Flare,
    Floors,
    Hours,
    Leave,
    Limits,
    Pin,
    Policy,
    Privacy,
    ScoresOut,
)

SECTIONS: Mapping[str, type[BaseModel]] = {
    "leave": Leave,
    "plugins": Pin,
    "limits": Limits,
    "floors": Floors,
    "scores": ScoresOut,
    "budget": Budget,
    "flare": Flare,
    "privacy": Privacy,
    "hours": Hours,
    "datasets": Dataset,
}
"""Every table of a policy whose keys are fixed; a dataset stands under its name."""


class PolicyError(TriskelError):
    """A policy file cannot be read, or does not say what it means."""

    exit_code = 2


def load(path: Path) -> tuple[Policy, str]:
    """Read a policy file; relative paths of datasets are relative to its folder.

    Returns:
        The policy, and the SHA-256 of the file as it was read, for the audit log.

    Raises:
        PolicyError: The file is missing, is not TOML, or is not a policy.
    """
    try:
        data = data_of(path.resolve(), most=TOML_MOST)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise PolicyError(
            f"policy file {path} does not exist; `triskel site init` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise PolicyError(f"policy file {path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise PolicyError(f"policy file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"policy file {path} cannot be read: {error}") from error
    policy = parse(text, where=str(path))
    base = path.resolve().parent
    rooted = {
        name: dataset.model_copy(update={"paths": tuple(str(base / p) for p in dataset.paths)})
        for name, dataset in policy.datasets.items()
    }
    return policy.model_copy(update={"datasets": rooted}), hashlib.sha256(data).hexdigest()


def parse(text: str, *, where: str = "policy") -> Policy:
    """Read a policy from TOML text.

    >>> parse('modes = ["params"]').modes
    ('params',)

    Raises:
        PolicyError: The text is not TOML, or is not a policy.
    """
    try:
        raw = toml_of(text)
    except ValueError as error:
        raise PolicyError(f"{where} is not valid TOML: {error}") from error
    try:
        return Policy.model_validate(raw)
    except ValidationError as error:
        raise PolicyError(f"{where}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key, text = ".".join(place), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing; give it, or leave {'.'.join(place[:-1])} out"
    if first["type"] == "value_error":
        return f"{key} {text}"
    return f"{key}: {text[0].lower()}{text[1:]}, got {first.get('input')!r}"


def _known(place: Sequence[str]) -> list[str]:
    if not place:
        return sorted({*Policy.model_fields, *(s.name for s in MODES.built_in() if s.limits)})
    part = SECTIONS.get(place[0]) or MODES.spec(place[0]).limits
    return sorted(part.model_fields if part else ())
