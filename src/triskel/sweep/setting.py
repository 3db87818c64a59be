"""One setting: played as a comparison on validation rows, to its end or a rung's.

A row that diverges is left out, and the others go on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from triskel.config.grid import Setting
from triskel.config.job import Job
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.result_file import run_in
from triskel.core.sweep_file import Reached, SettingRecord
from triskel.core.untrusted import TOML_MOST, text_of
from triskel.errors import CheckpointError, TrainingError, TriskelError
from triskel.experiment.compare import Request, read_run, resume, run
from triskel.experiment.one_source import venue_in
from triskel.experiment.rounds import Engine
from triskel.report.columns import columns
from triskel.sweep.asked import Sweep, digest_of
from triskel.sweep.cost import spent_in
from triskel.types import Event, Watch

Engines = Callable[[Job], Engine]


@dataclass(frozen=True)
class Player:
    """What plays a setting in the folder of a sweep, is told of it, and writes the record down."""

    folder: Path
    engine: Engines
    watch: Watch
    save: Callable[[], None]


Goals = Mapping[str, int]
"""After which round each row of a setting stops for now."""


def left(entry: SettingRecord, goals: Goals) -> list[str]:
    """Return the rows that a setting still has to play to reach its goals."""
    out = {*entry["skipped"], *entry["diverged"]}
    return [row for row, goal in goals.items() if row not in out and not _there(entry, row, goal)]


def _there(entry: SettingRecord, row: str, goal: int) -> bool:
    """Return whether a row has been played so far; early records do not say how far it was."""
    return row in entry["rows"] and entry["rows"][row].get("rounds", goal) >= goal


def settle(
    asked: Sweep, setting: Setting, entry: SettingRecord, player: Player, goals: Goals
) -> None:
    """Play a setting until its rows reach their goals, leaving out rows that fail.

    A row that diverged once is not tried again; what failed for another reason is, the next time.

    Raises:
        CheckpointError: A file of the run is damaged, or cannot be written.
    """
    place = player.folder / entry["folder"]
    entry["failed"] = {row: why for row, why in entry["failed"].items() if row not in goals}
    while missing := [row for row in left(entry, goals) if row not in entry["failed"]]:
        request = _request(asked, setting, entry, goals)
        begun, lost = list[str](), list[str]()
        try:
            result = _played(setting, request, place, player, begun)
        except CheckpointError:
            raise
        except TriskelError as error:
            result = run_in(place) or {}  # what it had finished
            lost = _lost(begun, missing, result, goals)
            why = entry["diverged"] if isinstance(error, TrainingError) else entry["failed"]
            why |= dict.fromkeys(lost, str(error))
            word = "diverged" if isinstance(error, TrainingError) else "failed"
            player.watch(events.warning(f"{setting.name}: {', '.join(lost)} {word}: {error}"))
        _note(asked, entry, place, cast("Mapping[str, Any]", result), goals)
        player.save()
        if not lost:
            return


def _request(asked: Sweep, setting: Setting, entry: SettingRecord, goals: Goals) -> Request:
    """Return what is asked of the run: rows that are not tried any more stay where they are."""
    out = {*entry["diverged"], *entry["failed"]}
    stopped = {row: told["rounds"] for row, told in entry["rows"].items() if "rounds" in told}
    until = {row: goal for row, goal in {**stopped, **goals}.items() if row not in out}
    return Request(
        modes=tuple(mode for mode in asked.modes if mode not in out),
        baselines=tuple(name for name in asked.baselines if name not in out),
        judge="validation",
        until={row: goal for row, goal in until.items() if goal < setting.job.rounds},
    )


def _note(
    asked: Sweep, entry: SettingRecord, place: Path, result: Mapping[str, Any], goals: Goals
) -> None:
    """Write into a setting's record what its rows reached, and what they cost.

    What a row that is not played any more reached stays as it is.
    """
    out = {*entry["diverged"], *entry["failed"]}
    stay = {row: one for row, one in entry["rows"].items() if row not in goals}
    told = {row: _row(result, row) or stay.get(row) for row in asked.rows if row not in out}
    entry["rows"] = {row: one for row, one in told.items() if one}
    entry["skipped"] = dict(result.get("skipped", {}))
    entry["spent"] = {
        row: spent_in(place, row, federated=row in asked.modes, failed=row in out)
        for row in asked.rows
    }


def _lost(
    begun: Sequence[str], missing: Sequence[str], result: Mapping[str, Any], goals: Goals
) -> Sequence[str]:
    """Return the row that an error ended; all that are missing where none had begun."""
    there = {row for row in missing if _row(result, row).get("rounds", 0) >= goals[row]}
    there |= {*result.get("skipped", {})}
    unfinished = [row for row in missing if row not in there]
    last = begun[-1].partition(":")[0] if begun else ""
    return [last] if last in unfinished else unfinished[: 1 if begun else None]


def _played(
    setting: Setting, request: Request, place: Path, player: Player, begun: list[str]
) -> Mapping[str, Any]:
    """Begin a setting's run or go on with it; note the run and the stages that begin."""

    def told(event: Event) -> None:
        if events.kind_of(event) in {"run_start", "stage_start"}:
            begun.append(str(event.get("stage", "")))
        player.watch(event)

    venue = venue_in(player.folder)
    if (place / "request.json").exists():
        if read_run(place)[1] != request:
            _ask(place, request)
        return resume(place, player.engine, told, venue)
    return run(setting.job, request, place, player.engine(setting.job), told, venue)


def _ask(place: Path, request: Request) -> None:
    """Ask a run folder for other rows, so that it goes on without one that failed."""
    digest = digest_of(text_of(place / "job.toml", most=TOML_MOST))
    asked = {**request.asked(), "job_sha256": digest}
    write_text(place / "request.json", json.dumps(asked, indent=1))


def _row(result: Mapping[str, Any], row: str) -> Reached:
    """Return what a setting reached in one row, after how many rounds, and what it cost."""
    found = columns(result, row) if result else None
    if found is None:
        return {}
    beside = result["baselines"].get(row, {})
    totals = result["modes"].get(row, beside).get("totals", {})
    told = cast("Reached", dict(found))
    until = result["request"].get("until", {})
    told["rounds"] = min(until.get(row, result["job"]["rounds"]), result["job"]["rounds"])
    flops = totals.get("client_flops", beside.get("client_flops"))
    if flops is not None:
        told["client_flops"] = flops
    if row in result["modes"]:
        told["server_flops"] = totals["server_flops"]
        told["bytes"] = sum(totals[way]["message_bytes"] for way in ("up", "down"))
    return told
