"""What is wrong with what a user brings, as values: all of it can be shown at once."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or may be.

    Attributes:
        key: The key of the job that it is about, or the part of it: `data.label`, `data`, `model`.
        text: What is wrong, where, and what to do, in one sentence.
        refuses: Whether the job cannot run so; else it is only worth knowing.
    """

    key: str
    text: str
    refuses: bool = True


def refused(faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults with which a job cannot run."""
    return [fault for fault in faults if fault.refuses]
