"""How many random cases a test tries: few on every run of the checks, more where time is given.

Cases are numbered and the same on every machine; `TRISKEL_CASES=4` tries four times as many, and so
all that were ever tried before a release.
"""

import os

NAME = "TRISKEL_CASES"


def cases(few: int) -> int:
    """Return how many cases to try where the checks try a few."""
    return few * int(os.environ.get(NAME, "1"))
