"""What a codec is to everybody but who encodes: a value, which imports no torch."""

from dataclasses import dataclass

from triskel.core.mode_spec import NAME


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """One way for the floats of a message to travel.

    Attributes:
        name: Lower-case letters, digits and `_`: a value of `wire.up` and `wire.down`, the name of
            the entry point where it is of another package.
        gloss: In a few words, what travels.
        algorithm: `package.module:attribute` of a `codec.Codec`.
        float_bytes: The most bytes that a float takes, for limits before a run.
        float64_bytes: The same of a float64, where that takes more.
    """

    name: str
    gloss: str
    algorithm: str
    float_bytes: int = 4
    float64_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what nobody could name.

        Raises:
            ValueError: The name is not what it must be, or a float takes nothing.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a codec must match {NAME.pattern}, got {self.name!r}")
        if self.float_bytes < 1:
            raise ValueError(f"codec {self.name}: a float takes a byte at least")

    def bytes_of(self, *, float64: bool) -> int:
        """Return the most bytes that a float takes."""
        return max(self.float_bytes, self.float64_bytes if float64 else 0)
