"""One setting: played to its end as a comparison on validation rows, without rows that diverge."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triskel.config.grid import Setting
from triskel.config.job import Job
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.result_file import run_in
from triskel.core.untrusted import TOML_MOST, text_of
from triskel.errors import CheckpointError, TrainingError, TriskelError
from triskel.experiment.compare import Request, read_run, resume, run
from triskel.experiment.one_source import venue_in
from triskel.experiment.rounds import Engine
from triskel.report.columns import columns
from triskel.sweep.asked import Sweep, digest_of
from triskel.types import Event, Watch

Engines = Callable[[Job], Engine]


@dataclass(frozen=True)
class Player:
    """What plays a setting in the folder of a sweep, is told of it, and writes the record down."""

    folder: Path
    engine: Engines
    watch: Watch
    save: Callable[[], None]


def left(asked: Sweep, entry: Mapping[str, Any]) -> list[str]:
    """Return the rows that a setting still lacks."""
    done = {*entry["rows"], *entry["skipped"], *entry["diverged"]}
    return [row for row in asked.rows if row not in done]


def settle(
    asked: Sweep, setting: Setting, entry: dict[str, Any], place: Path, player: Player
) -> None:
    """Play a setting to its end, leaving out rows that fail.

    A row that diverged once is not tried again; what failed for another reason is, the next time.

    Raises:
        CheckpointError: A file of the run is damaged, or cannot be written.
    """
    entry["failed"] = {}
    while missing := [row for row in left(asked, entry) if row not in entry["failed"]]:
        out = {*entry["diverged"], *entry["failed"]}
        request = Request(
            modes=tuple(mode for mode in asked.modes if mode not in out),
            baselines=tuple(name for name in asked.baselines if name not in out),
            judge="validation",
        )
        begun, lost = list[str](), list[str]()
        try:
            result = _played(setting, request, place, player, begun)
        except CheckpointError:
            raise
        except TriskelError as error:
            result = _result(place)
            lost = _lost(begun, missing, result)
            why = "diverged" if isinstance(error, TrainingError) else "failed"
            entry[why] |= dict.fromkeys(lost, str(error))
            told = f"{setting.name}: {', '.join(lost)} {why}: {error}"
            player.watch(events.warning(told))
        entry["rows"] = {row: told for row in asked.rows if (told := _row(result, row))}
        entry["skipped"] = dict(result.get("skipped", {}))
        player.save()
        if not lost:
            return


def _lost(begun: Sequence[str], missing: Sequence[str], result: Mapping[str, Any]) -> Sequence[str]:
    """Return the row that an error ended; all that are missing where none had begun."""
    there = {*result.get("baselines", {}), *result.get("modes", {}), *result.get("skipped", {})}
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
    asked = {**asdict(request), "job_sha256": digest}
    write_text(place / "request.json", json.dumps(asked, indent=1))


def _result(place: Path) -> Mapping[str, Any]:
    """Return what a run that stopped had finished."""
    return run_in(place) or {}


def _row(result: Mapping[str, Any], row: str) -> dict[str, Any]:
    """Return what a setting reached in one row, and what it cost."""
    found = columns(result, row) if result else None
    if found is None:
        return {}
    beside = result["baselines"].get(row, {})
    totals = result["modes"].get(row, beside).get("totals", {})
    told: dict[str, Any] = dict(found)
    flops = totals.get("client_flops", beside.get("client_flops"))
    if flops is not None:
        told["client_flops"] = flops
    if row in result["modes"]:
        told["server_flops"] = totals["server_flops"]
        told["bytes"] = sum(totals[way]["message_bytes"] for way in ("up", "down"))
    return told
