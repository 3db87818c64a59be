"""What a codec is: two functions without memory.

What is remembered (what the receiver holds, the error still owed to it) is no codec's: it lies in
`training.changes`, beside whichever codec carries a change.
"""

from typing import Protocol, runtime_checkable

from triskel.types import Facts, Tensors


@runtime_checkable
class Codec(Protocol):
    """One way for floats to travel."""

    def encode(self, tensors: Tensors, /) -> tuple[Tensors, Facts]:
        """Return what travels for these floats, and the facts to read it.

        What is added for tensor `name` is called `name:word`.

        Raises:
            CodecError: A tensor holds numbers that this codec cannot carry.
        """
        ...

    def decode(self, tensors: Tensors, facts: Facts, most_bytes: int, /) -> Tensors:
        """Return all tensors, with those that `encode` wrote as floats again.

        Args:
            tensors: What arrived, and beside it tensors that are no floats and not the codec's.
            facts: Those of this codec.
            most_bytes: What tensors may take once decoded, where few bytes may stand for many.

        Raises:
            MessageError: The tensors and facts are not what `encode` writes.
            LimitError: They would take more than that.
        """
        ...
