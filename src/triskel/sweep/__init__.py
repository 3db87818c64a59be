"""Many settings of one job: each is a run, chosen between on validation rows, tested once chosen.

    play      every setting is a comparison of its own, scored on validation rows
    rank      for each row the setting of the best figure; the first of those that are level
    test      only now each row's winner, from its saved adapters, on the test rows

No test row is read before the ranking is on disk. A sweep folder holds

    sweep.json  report.html
    SETTING/        a run folder

and `sweep.json` is written whenever a setting is done, so that a killed sweep goes on where it was.
A row that diverges is left out of its setting, and named; the setting's other rows go on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triskel.core import events
from triskel.experiment.reevaluate import assess
from triskel.report.columns import COLUMNS, Columns, column_of, columns_of
from triskel.report.sweeps import write_page
from triskel.sweep.asked import Sweep, begun, read_record, read_sweep, save
from triskel.sweep.setting import Engines, Player, left, settle
from triskel.types import Watch

__all__ = ["Sweep", "ranked", "read_record", "read_sweep", "sweep"]


def sweep(asked: Sweep, folder: Path, engine: Engines, watch: Watch) -> dict[str, Any]:
    """Play what is not done yet of a sweep, rank, score the winners on test rows, and write it all.

    Args:
        asked: The sweep.
        folder: Where it is, or will be.
        engine: Makes the engine of a job.
        watch: Told about every run, and with `setting_start` about which it is.

    Returns:
        What `sweep.json` holds.

    Raises:
        JobError: A job cannot be judged so, or the folder holds something else.
        CheckpointError: A run folder in it is not what the sweep left.
    """
    asked = asked.playing()
    record = begun(asked, folder)
    player = Player(folder, engine, watch, lambda: save(folder, record))
    for number, (setting, entry) in enumerate(
        zip(asked.settings, record["settings"], strict=True), 1
    ):
        place = folder / entry["folder"]
        if left(asked, entry):
            watch(events.setting_start(setting.name, number=number, of=len(asked.settings)))
            settle(asked, setting, entry, place, player)
    before = record["winners"]
    record["winners"] = ranked(record["settings"], asked.rows, record["figure"])
    for row, winner in record["winners"].items():  # what was tested before a kill stays so
        if before.get(row, {}).get("setting") == winner["setting"]:
            winner.update(before[row])
    save(folder, record)
    for row, winner in record["winners"].items():
        if "test" not in winner:
            winner["test"] = _tested(_place(folder, record, winner["setting"]), row, watch)
            save(folder, record)
    write_page(folder, record)
    return record


def ranked(
    settings: Sequence[Mapping[str, Any]], rows: Sequence[str], figure: str
) -> dict[str, dict[str, Any]]:
    """Return each row's winner: the setting of the best figure, the first of those level.

    Args:
        settings: Entries of `sweep.json`.
        rows: Rows to choose for; one that no setting has a number for has no winner.
        figure: `accuracy`, of which more is better, or `perplexity`, of which less is.
    """
    winners: dict[str, dict[str, Any]] = {}
    for row in rows:
        reached = [
            (value if figure == "accuracy" else -value, one)
            for one in settings
            if (value := one["rows"].get(row, {}).get(column_of(row), {}).get(figure)) is not None
            and math.isfinite(value)
        ]
        if reached:
            best = max(value for value, _ in reached)
            first = next(one for value, one in reached if value == best)
            told = first["rows"][row]
            winners[row] = {
                "setting": first["name"],
                "validation": {column: told[column] for column in COLUMNS if column in told},
            }
    return winners


def _place(folder: Path, record: Mapping[str, Any], name: str) -> Path:
    return folder / next(one["folder"] for one in record["settings"] if one["name"] == name)


def _tested(place: Path, row: str, watch: Watch) -> Columns:
    """Return what a winner's saved adapters reach on test rows."""
    found = assess(place, mode=row, judge="test", watch=watch)
    return columns_of(row, found)
