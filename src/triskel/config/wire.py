"""How messages travel: a codec for each direction, for all sections alike or by section.

    up = "int8"
    up = {name = "topk", share = 0.02}

    [wire.up]
    adapter = {name = "int4", change = true}
    head = "bf16"
    other = "fp32"

A codec may carry the change against what the receiver holds in place of values
(`core.codec_spec.ChangeOptions`).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, field_validator

from triskel.config.names import known_choice, known_name
from triskel.core.choice import Choice, Chosen, name_of, options_of, readable
from triskel.core.codec_spec import ChangeOptions
from triskel.core.options import Options, Rate
from triskel.core.registry import CODECS

Direction = Literal["up", "down"]
WAYS: tuple[Direction, ...] = ("up", "down")
OTHER = "other"
"""Stands for every section that is not named."""
PLAIN = "fp32"


class BySection(Options):
    """Codecs by the names of sections."""

    model_config = ConfigDict(frozen=True, extra="allow")

    other: Chosen = PLAIN

    def __hash__(self) -> int:
        """Return a hash of all that is named."""
        return hash(tuple(sorted((key, hash(one)) for key, one in self.named.items())))

    @property
    def named(self) -> dict[str, Chosen]:
        """Codecs by section, and of every other section."""
        return {**(self.__pydantic_extra__ or {}), OTHER: self.other}


def _readable(given: object) -> object:
    """Return a name, a table with a name, or codecs by section.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(given, BySection) or not isinstance(given, Mapping):
        return readable(given)
    table = cast("Mapping[str, Any]", given)
    if "name" in table:
        return Choice.model_validate(readable(table))
    return BySection.model_validate({key: _chosen(key, one) for key, one in table.items()})


def _chosen(section: str, given: object) -> Chosen:
    try:
        found = readable(given)
    except ValueError as error:
        raise ValueError(f"({section}) {error}") from None
    return found if isinstance(found, str) else Choice.model_validate(found)


Codecs = Annotated[str | Choice | BySection, BeforeValidator(_readable)]


class Wire(Options):
    """How messages travel."""

    up: Codecs = PLAIN
    down: Codecs = PLAIN
    max_mb: Rate = 256.0

    @field_validator("up", "down")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:  # noqa: ANN401 - pydantic's
        for section, chosen in _each(value):
            known_name(CODECS, name_of(chosen), info, f"({section}) " if section else "")
        return value

    def codec(self, way: Direction, section: str) -> Chosen:
        """Return how the floats of a section travel."""
        codecs: str | Choice | BySection = getattr(self, way)
        return codecs.named.get(section, codecs.other) if isinstance(codecs, BySection) else codecs

    @property
    def codecs(self) -> list[tuple[str, Chosen]]:
        """Every codec that is chosen, each with the key that it stands at."""
        return [
            (f"wire.{way}.{section}" if section else f"wire.{way}", chosen)
            for way in WAYS
            for section, chosen in _each(getattr(self, way))
        ]

    @property
    def names(self) -> list[str]:
        """The names of all that are chosen, each once."""
        return list(dict.fromkeys(name_of(chosen) for _, chosen in self.codecs))

    def has_changes(self, way: Direction) -> bool:
        """Return whether anything travels as a change this way."""
        codecs = (chosen for _, chosen in _each(getattr(self, way)))
        return any(change_options(chosen) for chosen in codecs)

    def sections(self, way: Direction) -> list[str]:
        """Return the sections that have a codec of their own."""
        return [section for section, _ in _each(getattr(self, way)) if section not in {"", OTHER}]


def change_options(chosen: Chosen) -> ChangeOptions | None:
    """Return how a codec carries changes; None where it carries values.

    One of another package that was not loaded, since it may not be, carries none.
    """
    name = name_of(chosen)
    if name not in CODECS.loaded():
        return None
    kind = CODECS.spec(name).options
    found = options_of(chosen, kind)
    return found if isinstance(found, ChangeOptions) and found.change else None


def problems(wire: Wire, info: Any) -> Iterator[str]:  # noqa: ANN401 - pydantic's
    """Yield what is wrong with what is set beside the codecs."""
    for key, chosen in wire.codecs:
        wrong = list(known_choice(CODECS, chosen, info, key))
        yield from wrong
        change = None if wrong else change_options(chosen)
        if change and not change.feedback and key.startswith("wire.down"):
            yield (
                f"{key}.feedback must be true: what a change lost on its way down is part of the "
                "next one, as that is taken against what clients hold"
            )


def _each(codecs: str | Choice | BySection) -> Iterator[tuple[str, Chosen]]:
    if isinstance(codecs, BySection):
        yield from codecs.named.items()
    else:
        yield "", codecs
