"""What several commands take: options, names in a list, and the next free run folder."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from triskel.config.job import MODE_NAMES, ModeName
from triskel.core.registry import MODES
from triskel.errors import JobError

Name = TypeVar("Name", bound=str)
Row = TypeVar("Row", bound=str)
# `baselines` loads torch, so its names are said again here
BaselineName = Literal["base", "local", "central", "local_equal"]
BASELINE_NAMES: tuple[BaselineName, ...] = ("base", "local", "central", "local_equal")


def mode_names() -> list[str]:
    """Return the modes that there are, for a shell that completes one."""
    return list(MODES.names())


def trained_names() -> list[str]:
    """Return what may have been trained, for a shell that completes one."""
    return [*MODES.names(), "central", "local"]


JobOrDemo = Annotated[
    Path | None,
    typer.Argument(metavar="JOB", help="A job file; without one, the demo's job."),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the base model lies here, if not where the job says.",
        exists=True,
        file_okay=False,
    ),
]
SETTING = "Change one key of the job, such as train.lr=3e-4; repeat for more."
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SETTING)]
Start = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Start from this adapter: a PEFT folder, or what a run left (adapter.start).",
        show_default=False,
    ),
]
Moved = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=PATH",
        help="Where the run's data lie by now: data.train, data.test or data.public.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the run.", show_default="runs/NAME-N, next free", metavar="DIR"),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run.", show_default=False, exists=True, file_okay=False
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(MODE_NAMES)}; the job's own when left out.",
        autocompletion=mode_names,
    ),
]
Trained = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="A mode, central or local; may be left out where there is one.",
        autocompletion=trained_names,
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        help=f"Which baselines, separated by commas: {', '.join(BASELINE_NAMES)}; or none."
    ),
]


def starting(settings: Sequence[str] | None, start: Path | None) -> list[str]:
    """Return settings with what `--start` names, whose place is seen from the current folder."""
    if start is None:
        return list(settings or ())
    place = json.dumps(str(start.expanduser().resolve()), ensure_ascii=False)
    return [*(settings or ()), f"adapter.start={place}"]


def names_in(
    what: str, text: str, known: Sequence[Name], *, empty: bool = False
) -> tuple[Name, ...]:
    """Return the names in a comma-separated text, each once; `none` where none may be.

    Raises:
        JobError: A name is unknown, or there is none.
    """
    found: list[Name] = []
    given = [part.strip() for part in text.split(",") if part.strip()]
    if empty and given in ([], ["none"]):
        return ()
    for one in given:
        name = next((name for name in known if name == one), None)
        if name is None:
            near = difflib.get_close_matches(one, known, n=1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise JobError(f"unknown {what} {one!r}; {hint} are {', '.join(known)}")
        if name not in found:
            found.append(name)
    if not found:
        raise JobError(f"no {what} given; there are {', '.join(known)}")
    return tuple(found)


def rows_in(
    modes: str, baselines: str, known: Sequence[Row]
) -> tuple[tuple[ModeName, ...], tuple[Row, ...]]:
    """Return the modes and the baselines to run; one of them may be `none`.

    Raises:
        JobError: A name is unknown, or there is nothing to run.
    """
    chosen = names_in("mode", modes, MODES.names(), empty=True)
    beside = names_in("baseline", baselines, known, empty=True)
    if not chosen and not beside:
        raise JobError(
            f"nothing to run: name --modes ({', '.join(MODES.names())}) or --baselines "
            f"({', '.join(known)})"
        )
    return chosen, beside


def seeds_in(text: str, first: int) -> list[int]:
    """Return the seeds that `--seeds` names: so many from the job's own on, or a list.

    >>> seeds_in("3", 7), seeds_in("0,4", 7)
    ([7, 8, 9], [0, 4])

    Raises:
        JobError: It is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise JobError(f"--seeds takes a number such as 5, or a list such as 0,1,7; got {text!r}")
    found = [int(part) for part in parts]
    if "," in text:
        if len(set(found)) < len(found):
            raise JobError(f"--seeds names a seed twice: {text!r}")
        return found
    if not found[0]:
        raise JobError("--seeds 0 would run nothing; leave it out for the job's own seed")
    return [first + step for step in range(found[0])]
