"""How a model computes: on which path, and which clients run in one pass."""

from dataclasses import dataclass
from typing import Literal

PathName = Literal["reference", "fast"]


@dataclass(frozen=True)
class Choice:
    """How a body computes; results do not depend on it beyond rounding.

    Attributes:
        path: `reference`, or `fast` where the model has fused blocks.
        flash: From how many tokens on the fast path takes the library's fused attention.
        join: Clients' batches of fewer padded tokens than this are run in one pass; 0 for never.
        recompute: Whether no activations inside a block are kept for backward, but computed twice.
    """

    path: PathName = "reference"
    flash: int = 1024
    join: int = 0
    recompute: bool = False
