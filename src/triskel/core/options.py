"""What a section of a job or of a policy is made of: frozen, typed, closed to unknown keys."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Proportion = Annotated[float, Field(ge=0, le=1)]
BlockRange = Annotated[
    tuple[Count, Count], Field(description="first and one past the last trunk block")
]


class Options(BaseModel):
    """A section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def typed(
    given: Mapping[str, Any], own: Iterable[str], kind_of: Callable[[str], type[Options] | None]
) -> dict[str, Any]:
    """Return a table whose sections beyond a model's own fields are typed.

    Args:
        given: Keys and values as they were read.
        own: Keys that the model types itself; they are left as they are.
        kind_of: What a section of this name is; None where there is no such section.

    Raises:
        ValidationError: A section is not what it should be, or there is none of this name; each
            error stands at its key.
    """
    fields = set(own)
    return {
        key: value if key in fields else _section(key, value, kind_of(key))
        for key, value in given.items()
    }


def _section(name: str, value: object, kind: type[Options] | None) -> Options:
    if kind is None:
        unknown = {"type": "extra_forbidden", "loc": (name,), "input": value}
        raise ValidationError.from_exception_data("section", [unknown])  # type: ignore[list-item]
    return getattr(_alone(name, kind)(**{name: value}), name)  # type: ignore[no-any-return]


@functools.cache
def _alone(name: str, kind: type[Options]) -> type[BaseModel]:
    """Return a model of one section, so that errors in it begin with its name."""
    fields: dict[str, Any] = {name: (kind, ...)}
    return create_model("Alone", **fields)


@functools.cache
def partial(kind: type[Options], keys: tuple[str, ...]) -> type[Options]:
    """Return options of which only some keys may be given, and none must be."""
    fields: dict[str, Any] = {}
    for key in keys:
        field = kind.model_fields[key]
        checks = tuple(field.metadata)
        hint: Any = field.annotation
        typed_: Any = Annotated[hint, *checks] if checks else hint
        fields[key] = (typed_ | None, None)
    return create_model(f"Some{kind.__name__}", __base__=Options, **fields)
