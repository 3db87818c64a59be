"""The command that tries settings: chosen on validation texts, tested once chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from triskel.cli.options import JobOrDemo, rows_in
from triskel.cli.output import Event, Watch, console_for
from triskel.cli.quick_import import loading
from triskel.config.grid import Setting, settings_of
from triskel.config.job import MODE_NAMES, Job
from triskel.config.space import Sampler, Sampling, sampled
from triskel.core.crash import logs_in
from triskel.core.run_folder import next_folder
from triskel.errors import JobError, TriskelError

CHOOSING: tuple[Literal["local", "central"], ...] = ("local", "central")
"""Baselines that have something to choose."""
ALL_MODES = ",".join(MODE_NAMES)


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE,VALUE",
        help="Values to try of one key, such as train.lr=1e-3,2e-3, or with --samples a range, "
        "such as log:1e-4..1e-2; repeat for their product.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the sweep; one that was begun with the same words goes on.",
        show_default="runs/NAME-N, next free",
        metavar="DIR",
    ),
]
Modes = Annotated[str, typer.Option(help="Which modes, separated by commas; or none.")]
Baselines = Annotated[
    str,
    typer.Option(help=f"Which baselines, separated by commas: {', '.join(CHOOSING)}; or none."),
]
Halving = Annotated[
    int | None,
    typer.Option(
        metavar="ETA",
        help="Let settings play a few rounds, and the best 1/ETA of them go on, again and again.",
        min=2,
        show_default=False,
    ),
]
FirstRounds = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Rounds that all settings play, with --halving.",
        min=1,
        show_default="as few as leave one setting at the end",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Draw so many settings out of the ranges and values, not their product.",
        min=1,
        show_default=False,
    ),
]
Drawn = Annotated[
    Sampler | None,
    typer.Option(
        help="How they are drawn: each by itself, or where those before it did well (optuna).",
        show_default="random",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Go on with this sweep where it stopped.",
        exists=True,
        file_okay=False,
    ),
]


def sweep(
    job: JobOrDemo = None,
    settings: Settings = None,
    out: Out = None,
    modes: Modes = ALL_MODES,
    baselines: Baselines = "none",
    halving: Halving = None,
    first_rounds: FirstRounds = None,
    samples: Samples = None,
    sampler: Drawn = None,
    resume: Resume = None,
) -> None:
    """Try settings, choose between them on validation texts, and test what was chosen."""
    if resume is not None:
        more = (job, settings, out, halving, first_rounds, samples, sampler)
        if any(more) or modes != ALL_MODES or baselines != "none":
            raise JobError("--resume goes on with the sweep as it was; leave out everything else")
        _play(resume, lambda: _again(resume))
        return
    chosen, beside = rows_in(modes, baselines, CHOOSING)
    base, several, how = _settings(job, settings or (), samples, sampler)
    if first_rounds and not halving:
        raise JobError("--first-rounds is of --halving; give both, such as --halving 3")
    from triskel.experiment.check import refuse_early

    refuse_early(*(setting.job for setting in several))

    def asked() -> Any:  # noqa: ANN401 - its type loads torch
        from triskel.sweep import Sweep
        from triskel.sweep.halving import halving_of

        count, rounds = len(several), base.rounds
        rungs = (
            halving_of(halving, first_rounds, settings=count, rounds=rounds) if halving else None
        )
        whole = Sweep(job=base, settings=several, modes=chosen, baselines=beside, halving=rungs)
        if how is None:
            return whole
        drawn = () if how.sampler is Sampler.TPE else several
        return replace(whole, settings=drawn, sampling=how)

    _play(next_folder(base.name) if out is None else out, asked)


def _settings(
    job: Path | None, given: Sequence[str], samples: int | None, sampler: Sampler | None
) -> tuple[Job, tuple[Setting, ...], Sampling | None]:
    """Return the job, its settings, and how they were drawn where they were.

    Raises:
        JobError: There are none, or a job cannot run.
    """
    if samples:
        return sampled(job, given, samples, sampler or Sampler.RANDOM)
    if sampler:
        raise JobError("--sampler draws settings; say how many: --samples 16")
    return *settings_of(job, given), None


def _again(folder: Path) -> Any:  # noqa: ANN401 - its type loads torch
    from triskel.sweep import read_sweep

    return read_sweep(folder)


def _play(folder: Path, asked: Callable[[], Any]) -> None:
    """Play a sweep with a display, and say what came out; what stops it says how to go on."""
    console = console_for(stderr=True)
    try:
        with console.status("loading torch and transformers"), loading():
            from triskel import sweep as sweeps
            from triskel.engines.local import LocalEngine
            from triskel.report.terminal import Live
        with logs_in(folder), Live(console) as live:
            record = sweeps.sweep(asked(), folder, LocalEngine, _announcing(console, live))
    except BaseException as stop:
        refused = isinstance(stop, TriskelError) and stop.exit_code == JobError.exit_code
        if not refused and (folder / "sweep.json").exists():
            stop.add_note(
                f"what was finished is in {folder}; `triskel sweep --resume {folder}` goes on"
            )
        raise
    _conclude(record, folder)
    if not record["winners"]:
        raise typer.Exit(1)


def _announcing(console: Console, watch: Watch) -> Watch:
    """Return a watch that says which setting begins, and passes everything on."""

    def told(event: Event) -> None:
        if event.get("event") == "setting_start":
            until = f", to round {event['rounds']}" if "rounds" in event else ""
            which = f"setting {event['number']} of {event['of']}{until}: {event['setting']}"
            console.print(f"[bold]{escape(which)}[/]", soft_wrap=True)
        watch(event)

    return told


def _conclude(record: Mapping[str, Any], folder: Path) -> None:
    from triskel.report.sweep_search import terminal_costs
    from triskel.report.sweeps import failures, terminal_table

    console, page = console_for(), folder / "report.html"
    console.print()
    console.print(terminal_table(record))
    for line in failures(record):
        console.print(escape(line), soft_wrap=not console.is_terminal)
    if "cost" in record:
        console.print()
        console.print(terminal_costs(record))
    console.print()
    console.print(f"Results  {escape(str(folder))}", soft_wrap=True)
    console.print(f"Report   {escape(str(page))}", soft_wrap=True)
    console.print(f"         open it in a browser: {page.resolve().as_uri()}", soft_wrap=True)
