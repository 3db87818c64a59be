"""One of a family, by its name, or by its name and what it is set to.

    aggregate = "krum"
    aggregate = {name = "krum", attackers = 2}

What may be set stands in the spec of whatever is named, as a model of options.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict

from triskel.core.options import Options

O = TypeVar("O", bound=Options)  # noqa: E741 - options


class Choice(Options):
    """A name, and options beside it that only the spec of this name can type."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    def __hash__(self) -> int:
        """Return a hash of name and options."""
        return hash((self.name, tuple(sorted(settings_of(self).items()))))


def readable(given: object) -> object:
    """Return a name, or a table with a name.

    Raises:
        ValueError: It is neither.
    """
    named = given
    if isinstance(given, Mapping):
        named = cast("Mapping[str, Any]", given).get("name")
    if isinstance(given, Choice) or isinstance(named, str):
        return given
    raise ValueError(f'must be a name, or a table with one: {{name = "..."}}, got {given!r}')


Chosen = Annotated[str | Choice, BeforeValidator(readable)]
"""How a job names one of a family."""


def name_of(chosen: Chosen) -> str:
    """Return the name of what is chosen.

    >>> name_of("krum"), name_of(Choice(name="krum"))
    ('krum', 'krum')
    """
    return chosen if isinstance(chosen, str) else chosen.name


def settings_of(chosen: Chosen) -> Mapping[str, Any]:
    """Return what is set beside the name.

    >>> dict(settings_of(Choice.model_validate({"name": "krum", "attackers": 2})))
    {'attackers': 2}
    """
    return {} if isinstance(chosen, str) else chosen.__pydantic_extra__ or {}


def options_of(chosen: Chosen, kind: type[O]) -> O:
    """Return what is set, typed.

    Raises:
        ValidationError: There is no such option, or it is not what it must be.
    """
    return kind.model_validate(dict(settings_of(chosen)))
