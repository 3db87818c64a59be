"""What a codec is: two functions, and a state that comes in and goes out."""

from typing import Protocol, runtime_checkable

from triskel.types import Facts, Tensors


@runtime_checkable
class Codec(Protocol):
    """One way for floats to travel.

    `state` belongs to one peer, section and direction: what the receiver has reconstructed so
    far, or the error still owed to it. Codecs without memory hand it back untouched.
    """

    def encode(self, tensors: Tensors, state: Tensors, /) -> tuple[Tensors, Facts, Tensors]:
        """Return what travels for these floats, the facts to read it, and the next state.

        What is added for tensor `name` is called `name:word`.

        Raises:
            CodecError: A tensor holds numbers that this codec cannot carry.
        """
        ...

    def decode(self, tensors: Tensors, facts: Facts, state: Tensors, /) -> tuple[Tensors, Tensors]:
        """Return all tensors with those that `encode` wrote as floats again, and the next state.

        Raises:
            MessageError: The tensors and facts are not what `encode` writes.
        """
        ...
