"""Ranges that settings are drawn from: `1e-4..1e-2`, `2..32`, `log:1e-4..1e-2`."""

import re
from dataclasses import dataclass

from triskel.errors import JobError

NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, which are among them.

    Attributes:
        low: The least.
        high: The largest.
        log: Whether the logarithm is uniform.
        whole: Whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """Return the number that this share of the range lies below."""
        room = 0.5 if self.whole else 0.0  # what is rounded to an end
        low, high = self.low - room, self.high + room
        if self.log:
            return low * (high / low) ** share
        return low + share * (high - low)

    def text(self, value: float) -> str:
        """Return a number of the range as it is written: whole, or with three digits.

        >>> Range(1e-4, 1e-2).text(0.00123456), Range(2, 32, whole=True).text(7.6)
        ('0.00123', '8')
        """
        near = round(value) if self.whole else float(f"{value:.3g}")
        inside = min(max(near, self.low), self.high)
        return str(int(inside)) if self.whole else repr(float(inside))


def range_of(text: str) -> Range | None:
    """Return the range that a text is, or None where it is none.

    >>> range_of("log:1e-4..1e-2"), range_of("../rows.csv")
    (Range(low=0.0001, high=0.01, log=True, whole=False), None)

    Raises:
        JobError: It ends before it begins, or its logarithm has no beginning.
    """
    found = RANGE.fullmatch(text.strip())
    if found is None:
        return None
    log, low, high = found[1] is not None, float(found[2]), float(found[3])
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in found.group(2, 3))
    if low >= high:
        raise JobError(f"range {text!r} must go from less to more")
    if log and low <= 0:
        raise JobError(f"range {text!r} must begin above 0, as its logarithm is drawn")
    return Range(low, high, log, whole)
