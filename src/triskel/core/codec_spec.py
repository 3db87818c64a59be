"""What a codec is to everybody but who encodes: a value, which imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from triskel.core.mode_spec import NAME
from triskel.core.options import Options

CHANGE = "change"
"""In the codecs of a section: its tensors are the change against what the receiver holds."""


class ChangeOptions(Options):
    """What may be set beside a codec that can carry changes."""

    change: Annotated[
        bool, Field(description="what travels is the change against what the receiver holds")
    ] = False
    feedback: Annotated[
        bool, Field(description="what a change lost on its way is added to the next one")
    ] = True


class OnlyChangeOptions(ChangeOptions):
    """The same of a codec that is of no use for anything but changes."""

    change: Annotated[bool, Field(description="what travels is always a change")] = True

    @field_validator("change")
    @classmethod
    def _always(cls, value: bool) -> bool:  # noqa: FBT001 - pydantic's
        if not value:
            raise ValueError("must be true: what this codec leaves out, only a change can spare")
        return value


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """One way for the floats of a message to travel.

    Attributes:
        name: Lower-case letters, digits and `_`: a value of `wire.up` and `wire.down`, the name of
            the entry point where it is of another package.
        gloss: In a few words, what travels.
        algorithm: `package.module:attribute` of a `codec.Codec`, or of a class that is made of
            `options`.
        float_bytes: The most bytes that a float takes, for limits before a run.
        float64_bytes: The same of a float64, where that takes more.
        options: What may be set beside its name (`core.choice`); every field has a default and a
            description. Of `ChangeOptions`, where it can carry changes.
    """

    name: str
    gloss: str
    algorithm: str
    float_bytes: int = 4
    float64_bytes: int = 0
    options: type[Options] = Options

    def __post_init__(self) -> None:
        """Refuse what nobody could name.

        Raises:
            ValueError: The name is not what it must be, or a float takes nothing.
        """
        if self.name == CHANGE:
            raise ValueError(f"no codec may be called {CHANGE!r}, which means something else")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a codec must match {NAME.pattern}, got {self.name!r}")
        if self.float_bytes < 1:
            raise ValueError(f"codec {self.name}: a float takes a byte at least")

    def bytes_of(self, *, float64: bool) -> int:
        """Return the most bytes that a float takes."""
        return max(self.float_bytes, self.float64_bytes if float64 else 0)
