"""What is in run folders: how far each is, what it reached, and how some of them differ.

A run folder holds one run, several seeds of one job, or a sweep; all are told alike. Nothing here
loads a model, and a folder that cannot be read is named rather than passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from triskel.config.read import dump, parse
from triskel.core import events
from triskel.core.result_file import run_in, several_in
from triskel.core.untrusted import TOML_MOST, json_in, text_of
from triskel.errors import CheckpointError, JobError, TriskelError
from triskel.report.columns import COLUMNS, Column, columns, ranked_by

Json = Mapping[str, Any]
Kind = Literal["run", "seeds", "sweep"]
DEEPEST = 4
"""Folders below each other in which runs are looked for."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run folder.

    Attributes:
        folder: Where it is.
        kind: What it holds.
        name: The job's name.
        began: When it began, as far as its files tell.
        seeds: The seeds of its runs.
        state: `finished`, or how far it is.
        job: Every key of the job, flat; of a sweep, what its settings have in common.
        figure: What `rows` holds.
        rows: The figure of each row by column; of several seeds the mean, of a sweep the winner's
            on test rows.
        judge: Which rows the figures are on.
    """

    folder: Path
    kind: Kind
    name: str
    began: datetime
    seeds: tuple[int, ...]
    state: str
    job: Mapping[str, object]
    figure: str
    rows: Mapping[str, Mapping[Column, float]]
    judge: str = "test"


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A run folder that cannot be read, and why."""

    folder: Path
    why: str


def below(folder: Path) -> list[Entry | Unreadable]:
    """Return the run folders in a folder, itself included, the oldest first."""
    found: list[Entry | Unreadable] = []
    for place in _places(folder, DEEPEST):
        try:
            found.append(entry_of(place))
        except TriskelError as error:
            found.append(Unreadable(folder=place, why=str(error)))
    last = datetime.max.replace(tzinfo=UTC)
    return sorted(found, key=lambda e: (e.began if isinstance(e, Entry) else last, e.folder))


def kind_of(folder: Path) -> Kind | None:
    """Return what a folder holds, or None where it is no run folder.

    Raises:
        CheckpointError: A file in it cannot be read.
    """
    if (folder / "sweep.json").exists():
        return "sweep"
    if not (folder / "job.toml").exists():
        return None
    several = "seeds" in _json(folder / "request.json") or any(folder.glob("seed-*/"))
    return "seeds" if several else "run"


def one_run(folder: Path) -> None:
    """Refuse a folder that holds several runs, and name one of them.

    Raises:
        JobError: It holds several seeds or a sweep.
        CheckpointError: A file in it cannot be read.
    """
    kind = kind_of(folder)
    if kind in {"seeds", "sweep"}:
        what = "several seeds" if kind == "seeds" else "a sweep"
        first = next(iter(sorted(folder.glob("*/job.toml"))), None)
        such = f", such as {first.parent}" if first else ""
        each = "seed" if kind == "seeds" else "setting"
        raise JobError(f"{folder} holds {what}; name the folder of one {each}{such}")


def taken(folder: Path) -> str:
    """Return why a new run cannot be in a folder, and how to go on with what is there."""
    text = f"{folder} is not empty; choose another --out"
    if (folder / "sweep.json").exists():
        return f"{text}, or resume it with `triskel sweep --resume {folder}`"
    if (folder / "request.json").exists():
        return f"{text}, or resume it with `triskel run --resume {folder}`"
    return text


def entry_of(folder: Path) -> Entry:
    """Return what a run folder holds.

    Raises:
        CheckpointError: It is none, or a file in it cannot be read.
    """
    kind = kind_of(folder)
    if kind == "sweep":
        return _sweep(folder)
    if kind is None:
        raise CheckpointError(
            f"{folder} is not a run folder; it has neither job.toml nor sweep.json"
        )
    job = _job(folder / "job.toml")
    asked = _json(folder / "request.json")
    seeds = sorted(p for p in folder.glob("seed-*") if p.is_dir())
    if kind == "seeds":
        return _several(folder, job, asked, seeds)
    result: Json = run_in(folder) or {}
    rows, figure = _asked(asked), ranked_by({"job": job, **result})
    done = {*result.get("baselines", {}), *result.get("modes", {}), *result.get("skipped", {})}
    reached = {row: columns(result, row) or {} for row in rows}
    return Entry(
        folder=folder,
        kind="run",
        name=str(job["name"]),
        began=_began(folder, [folder]),
        seeds=(job["seed"],),
        state=_state(sum(row in done for row in rows), len(rows), "row"),
        job=flat(job),
        figure=figure,
        rows=_figures(reached, figure),
        judge=str(asked.get("judge", "test")),
    )


def differing(entries: Sequence[Entry]) -> dict[str, list[object]]:
    """Return the job keys whose values differ, and each entry's; None where it has none."""
    keys = sorted({key for entry in entries for key in entry.job})
    told = {key: [entry.job.get(key) for entry in entries] for key in keys}
    return {key: values for key, values in told.items() if any(v != values[0] for v in values)}


def flat(job: Json, before: str = "") -> dict[str, object]:
    """Return a job with `section.key` names.

    >>> flat({"seed": 0, "train": {"lr": 0.1}})
    {'seed': 0, 'train.lr': 0.1}
    """
    found: dict[str, object] = {}
    for key, value in job.items():
        if isinstance(value, Mapping):
            found |= flat(cast("Json", value), f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


# --- kinds of folders -------------------------------------------------------------------------


def _several(folder: Path, job: Json, asked: Json, places: Sequence[Path]) -> Entry:
    """Return what a folder of several seeds holds."""
    result: Json = several_in(folder) or {}
    figure, rows = ranked_by({"job": job, **result}), _asked(asked)
    runs: list[Json] = [run_in(place) or {} for place in places]
    done = sum(all(_has(run, row) for row in rows) for run in runs)
    known = result.get("seeds") or asked.get("seeds")
    seeds = tuple(known or [int(p.name.removeprefix("seed-")) for p in places])
    summary = cast("Json", result.get("summary", {}))
    reached = {
        row: {c: {figure: summary[row][c]["mean"]} for c in COLUMNS if c in summary[row]}
        for row in rows
        if row in summary
    }
    return Entry(
        folder=folder,
        kind="seeds",
        name=str(job["name"]),
        began=_began(folder, places),
        seeds=seeds,
        state="finished" if "readings" in result else _state(done, len(seeds), "seed", over=False),
        job=flat(job),
        figure=str(summary.get("figure", figure)),
        rows=_figures(reached, figure),
        judge=str(asked.get("judge", "test")),
    )


def _sweep(folder: Path) -> Entry:
    record = _json(folder / "sweep.json")
    try:
        settings, figure = record["settings"], str(record["figure"])
        rows = [*record["request"]["baselines"], *record["request"]["modes"]]
        told = ("rows", "skipped", "diverged", "failed")
        done = sum(set(rows) <= {row for part in told for row in one[part]} for one in settings)
        won = {row: one.get("test", {}) for row, one in record["winners"].items()}
        drawn = record["request"].get("sampling", {}).get("samples", 0)
        count = max(len(settings), drawn)
        searched = "cost" in record or "halving" not in record["request"]
        over = done == count and all(won.values()) and searched
        return Entry(
            folder=folder,
            kind="sweep",
            name=str(record["job"]["name"]),
            began=_began(folder, [folder / str(one["folder"]) for one in settings]),
            seeds=(record["job"]["seed"],),
            state=_state(done, count, "setting", over=over),
            job=flat(record["job"]),
            figure=figure,
            rows=_figures(won, figure),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'sweep.json'} is no sweep that this version can read: {error!r}"
        ) from error


# --- reading ----------------------------------------------------------------------------------


def _places(folder: Path, deep: int) -> Iterator[Path]:
    if (folder / "sweep.json").exists() or (folder / "job.toml").exists():
        yield folder
    elif deep and folder.is_dir():
        for place in sorted(folder.iterdir()):
            if place.is_dir() and not place.is_symlink() and not place.name.startswith("."):
                yield from _places(place, deep - 1)


def _job(file: Path) -> dict[str, Any]:
    try:
        return dump(parse(text_of(file, most=TOML_MOST), where=str(file)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _json(file: Path) -> Json:
    """Return what a JSON file holds; nothing where there is none yet."""
    try:
        found: object = json_in(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return cast("Json", found)


def _asked(request: Json) -> list[str]:
    """Return what a run was asked for.

    Raises:
        CheckpointError: `request.json` does not say it.
    """
    parts = [request.get("baselines", []), request.get("modes", [])]
    if not all(isinstance(part, list) and all(isinstance(x, str) for x in part) for part in parts):
        raise CheckpointError("request.json does not name baselines and modes")
    return [*parts[0], *parts[1]]


def _has(result: Json, row: str) -> bool:
    return any(row in result.get(part, {}) for part in ("baselines", "modes", "skipped"))


def _state(done: int, count: int, what: str, *, over: bool = True) -> str:
    if count and done == count and over:
        return "finished"
    return f"{done} of {count} {what}{'' if count == 1 else 's'}"


def _figures(
    reached: Mapping[str, Mapping[str, Json]], figure: str
) -> dict[str, dict[Column, float]]:
    return {
        row: {c: found[c][figure] for c in COLUMNS if figure in found.get(c, {})}
        for row, found in reached.items()
        if found
    }


def _began(folder: Path, runs: Sequence[Path]) -> datetime:
    """Return when the first of some runs wrote its first line, or else when its files are from."""
    times = [time for run in runs if (time := events.began(run)) is not None]
    return datetime.fromtimestamp(min(times, default=folder.stat().st_mtime), tz=UTC)
