"""Many settings of one job: each is a run, chosen between on validation rows, tested once chosen.

    play      every setting is a comparison of its own, scored on validation rows
    rank      for each row the setting of the best figure; the first of those that are level
    test      only now each row's winner, from its saved adapters, on the test rows

With halving, settings play a few rounds and are ranked, and only the best go on (`halving`). With a
sampler that learns, each setting is drawn once those before it have a figure (`sampler`). No test
row is read before the ranking is on disk. A sweep folder holds

    sweep.json  report.html
    SETTING/        a run folder

and `sweep.json` is written whenever a setting is done, so that a killed sweep goes on where it was.
A row that diverges is left out of its setting, and named; the setting's other rows go on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from triskel.config.grid import Setting
from triskel.core import events
from triskel.core.sweep_file import Reached, SettingRecord, SweepRecord, read_record, save
from triskel.errors import JobError
from triskel.experiment.reevaluate import assess
from triskel.report.columns import COLUMNS, Columns, column_of, columns_of
from triskel.report.sweeps import write_page
from triskel.sweep.asked import Sweep, begun, entry_of, placed, read_sweep
from triskel.sweep.cost import cost_of
from triskel.sweep.halving import best_first, going_on, rung_now
from triskel.sweep.sampler import suggested
from triskel.sweep.setting import Engines, Player, left, settle
from triskel.types import Watch

__all__ = ["Sweep", "ranked", "read_record", "read_sweep", "sweep"]

Rung = tuple[int | None, list[str] | None]
"""To which round a row is played now, None being each setting's last, and by whom; None is all."""


def sweep(asked: Sweep, folder: Path, engine: Engines, watch: Watch) -> SweepRecord:
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
    drawn = read_sweep(folder).settings if asked.learns else asked.settings
    search = _Search(asked, record, player, list(drawn))
    search.play()
    before = record["winners"]
    rounds = {one.name: one.job.rounds for one in search.settings}
    ended = [_ended(one, rounds[one["name"]]) for one in record["settings"]]
    record["winners"] = cast("Any", ranked(ended, asked.rows, record["figure"]))
    for row, winner in record["winners"].items():  # what was tested before a kill stays so
        if before.get(row, {}).get("setting") == winner["setting"]:
            winner.update(before[row])
    if all("spent" in one for one in record["settings"]):
        record["cost"] = cost_of(record, asked.rows, asked.job.rounds)
    save(folder, record)
    for row, winner in record["winners"].items():
        if "test" not in winner:
            place = folder / search.entry(winner["setting"])["folder"]
            winner["test"] = cast("Any", _tested(place, row, watch))
            save(folder, record)
    write_page(folder, cast("Mapping[str, Any]", record))
    return record


@dataclass(frozen=True)
class _Search:
    """A sweep under way: its settings, of which there may be more and more."""

    asked: Sweep
    record: SweepRecord
    player: Player
    settings: list[Setting]

    def play(self) -> None:
        """Play every row rung by rung; one of which no setting has a figure stays where it is."""
        open_ = list(self.asked.rows)
        while open_:
            now = {row: self._rung(row) for row in open_}
            self._settle(now)
            open_ = [row for row in open_ if self._decided(row, *now[row])]
            self.player.save()

    def _rung(self, row: str) -> Rung:
        if self.asked.halving is None:
            return None, None
        decided = self.record.get("rungs", {}).get(row, [])
        return rung_now(self.asked.halving, decided, self.asked.count)

    def _settle(self, now: Mapping[str, Rung]) -> None:
        """Play the settings of the rungs that rows are at."""
        for number, setting in enumerate(self._lineup(now), 1):
            goals = {
                row: rounds or setting.job.rounds
                for row, (rounds, names) in now.items()
                if names is None or setting.name in names
            }
            entry = self.entry(setting.name)
            if not left(entry, goals):
                continue
            told = events.setting_start(setting.name, number=number, of=self.asked.count)
            if self.asked.halving:
                told["rounds"] = max(goals.values())
            self.player.watch(told)
            settle(self.asked, setting, entry, self.player, goals)

    def _lineup(self, now: Mapping[str, Rung]) -> Iterator[Setting]:
        """Return the settings; those that are still to be drawn once the others were played."""
        yield from self.settings
        while len(self.settings) < self.asked.count:
            ((row, (rounds, _)),) = now.items()
            setting = self._drawn(row, rounds)
            self.settings.append(setting)
            self.record["settings"].append(entry_of(setting))
            self.player.save()
            placed(self.player.folder, setting, self.record["settings"][-1])
            yield setting

    def _drawn(self, row: str, rounds: int | None) -> Setting:
        """Return the setting that comes after those that there are.

        One that is there already, or that is no job, is replaced by one that is drawn
        independently.
        """
        how = cast("Any", self.asked.learns)
        reached = self._reached(row, rounds, [one.name for one in self.settings])
        told = [(one.set, reached[one.name]) for one in self.settings]
        for values in (suggested(how, told, self.record["figure"]), *how.draws()):
            try:
                found: Setting = how.setting(self.asked.job, values, self.settings)
            except JobError:
                continue
            if all(one.set != found.set for one in self.settings):
                return found
        raise JobError("no further setting of the given ranges is a job; ask for fewer --samples")

    def _reached(
        self, row: str, rounds: int | None, names: Sequence[str]
    ) -> dict[str, float | None]:
        """Return the figure that ranks each setting after so many rounds, where it has one."""
        found: dict[str, float | None] = {}
        for name in names:
            told = self.entry(name)["rows"].get(row, {})
            there = rounds is None or told.get("rounds", 0) >= rounds
            value = mark(told, row, self.record["figure"]) if there else None
            found[name] = value
        return found

    def _decided(self, row: str, rounds: int | None, names: list[str] | None) -> bool:
        """Write down what a rung came to; return whether the row goes on to another."""
        halving = self.asked.halving
        if halving is None or rounds is None:
            return False
        known = [one.name for one in self.settings] if names is None else names
        reached = self._reached(row, rounds, known)
        best = best_first(reached, self.record["figure"])
        over = rounds == halving.rungs[-1] or not best
        on = [] if over else going_on(reached, halving.eta, self.record["figure"])
        rungs = self.record.setdefault("rungs", {}).setdefault(row, [])
        rungs[:] = [rung for rung in rungs if rung["rounds"] < rounds]
        if best:
            rungs.append({"rounds": rounds, "reached": reached, "on": on})
        return not over

    def entry(self, name: str) -> SettingRecord:
        """Return what the record says of a setting."""
        return next(one for one in self.record["settings"] if one["name"] == name)


def _ended(entry: SettingRecord, rounds: int) -> Mapping[str, Any]:
    """Return a setting with the rows that have all their rounds."""
    rows = {row: one for row, one in entry["rows"].items() if one.get("rounds", rounds) >= rounds}
    return {"name": entry["name"], "rows": rows}


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
        reached = {one["name"]: mark(one["rows"].get(row, {}), row, figure) for one in settings}
        if best := best_first(reached, figure):
            told = next(one for one in settings if one["name"] == best[0])["rows"][row]
            winners[row] = {
                "setting": best[0],
                "validation": {column: told[column] for column in COLUMNS if column in told},
            }
    return winners


def mark(told: Reached | Mapping[str, Any], row: str, figure: str) -> float | None:
    """Return the figure that ranks a setting in a row; None where it has none that is finite."""
    value = cast("Mapping[str, Any]", told).get(column_of(row), {}).get(figure)
    return value if value is not None and math.isfinite(value) else None


def _tested(place: Path, row: str, watch: Watch) -> Columns:
    """Return what a winner's saved adapters reach on test rows."""
    found = assess(place, mode=row, judge="test", watch=watch)
    return columns_of(row, found)
