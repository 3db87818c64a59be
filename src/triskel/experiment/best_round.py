"""The best round of a stage by validation figures: which one it is, and its state on disk.

With `train.keep = "best"` a stage ends with the round whose figure on validation texts is best, the
earlier of equals. What that round left lies in a folder `best` beside the checkpoints, as another
checkpoint; that of the best round before it is kept too, as the last checkpoint may turn out to be
damaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from triskel.core.result_parts import RoundRow
from triskel.core.task_spec import Figure
from triskel.errors import CheckpointError
from triskel.experiment.checkpoint import Saved, read, write

FOLDER = "best"


def best_of(rows: Sequence[RoundRow], figure: Figure) -> int | None:
    """Return the round of the best validation figure, the earlier of equals.

    None where no round has one: a figure over no text, or one that is not finite, is never best.

    >>> best_of([{"round": 1, "validation": {"accuracy": 0.5, "n": 4}}], "accuracy")
    1
    """
    best: tuple[float, int] | None = None
    for row in rows:
        mark = _mark(row.get("validation", {}), figure)
        if mark is not None and (best is None or mark > best[0]):
            best = mark, row["round"]
    return None if best is None else best[1]


def _mark(figures: Mapping[str, Any], figure: Figure) -> float | None:
    """Return what ranks a round; more is better."""
    value = figures.get(figure)
    if value is None or not figures.get("n") or not math.isfinite(value):
        return None
    return value if figure == "accuracy" else -value


def keep(folder: Path, saved: Saved, figure: Figure) -> None:
    """Write what the round left that closed last, where it is the best so far.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    if best_of(cast("list[RoundRow]", saved.rows), figure) == saved.closed:
        write(folder / FOLDER, replace(saved, rows=[]))


def kept(folder: Path, round_: int) -> Saved:
    """Return what the best round left.

    Raises:
        CheckpointError: It is not there, or damaged.
    """

    def that_round(saved: Saved) -> None:
        if saved.closed != round_:
            raise CheckpointError(
                f"{folder / FOLDER} does not hold what round {round_} left; {way}"
            )

    way = f"delete {folder}, and `triskel run --resume` plays the stage anew"
    found = read(folder / FOLDER, that_round)
    if found is None:
        raise CheckpointError(f"{folder / FOLDER} is gone, and round {round_} was the best; {way}")
    return found
