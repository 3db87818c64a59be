"""The commands that train: baselines and modes compared, one mode run, and a run gone on with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from triskel.cli.options import (
    BASELINE_NAMES,
    BaselineName,
    Baselines,
    JobOrDemo,
    Mode,
    Name,
    Out,
    Set,
    Start,
    names_in,
    rows_in,
    seeds_in,
    starting,
)
from triskel.cli.output import Event, Watch, conclude, console_for
from triskel.cli.quick_import import loading
from triskel.cli.torch_import import settle_threads
from triskel.config.job import MODE_NAMES, Job, ModeName
from triskel.config.read import load, places_in, rounds_in
from triskel.core.console import echo
from triskel.core.crash import logs_in
from triskel.core.registry import MODES
from triskel.core.run_folder import clear_refused, is_free, next_folder
from triskel.errors import JobError, TriskelError
from triskel.report.catalogue import kind_of, taken


def compare(
    job: JobOrDemo = None,
    out: Out = None,
    modes: Annotated[
        str, typer.Option(help="Which modes, separated by commas; or none.")
    ] = ",".join(MODE_NAMES),
    baselines: Baselines = ",".join(BASELINE_NAMES),
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N | A,B,...",
            help="Repeat with so many seeds, from the job's own on, or with these; `4,` is seed 4.",
        ),
    ] = None,
    drop_outs: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Play each mode once more with this share of a round's clients dropping out.",
            min=0.0,
            max=0.99,
        ),
    ] = 0.0,
    settings: Set = None,
    start: Start = None,
) -> None:
    """Run baselines and modes on one model, data split and seed, and write a report.

    Without a job file and settings it is the demo, as large as the machine does in minutes.
    """
    chosen, beside = rows_in(modes, baselines, BASELINE_NAMES)
    settings = starting(settings, start)
    if job is None and not (settings or seeds or drop_outs):
        _start_demo(out, chosen, beside)
        return
    asked = load(job, settings)
    more = None if seeds is None else seeds_in(seeds, asked.seed)
    _start(asked, out, chosen, beside, seeds=more, drop_share=drop_outs)


def run(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="A job file.", show_default=False)
    ] = None,
    mode: Mode = None,
    out: Out = None,
    baselines: Baselines = "none",
    settings: Set = None,
    start: Start = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with this run, of `run` or `compare`, where it stopped.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Run one mode, or go on with a run that was stopped."""
    if resume is not None:
        if job or mode or out or start or baselines != "none":
            raise JobError(
                "--resume goes on with the job as it was; leave out everything else but where its "
                "data lie by now (--set data.train=FILE) and more rounds (--set rounds=6)"
            )
        rounds, places = rounds_in(settings or ())
        places_in(places)
        _resume(resume, places, rounds)
        return
    if job is None:
        raise JobError(
            "give a job file, or --resume RUN; `triskel init` writes a job file, "
            "and `triskel compare` needs none"
        )
    asked = load(job, starting(settings, start))
    chosen = _one_of(MODES.names(), mode) or asked.mode
    beside = names_in("baseline", baselines, BASELINE_NAMES, empty=True)
    _start(asked.model_copy(update={"mode": chosen}), out, (chosen,), beside, strict=True)


def _start(
    job: Job,
    out: Path | None,
    modes: tuple[ModeName, ...],
    baselines: tuple[BaselineName, ...],
    *,
    strict: bool = False,
    seeds: Sequence[int] | None = None,
    drop_share: float = 0.0,
) -> None:
    from triskel.experiment.check import refuse_early

    refuse_early(job, modes=modes)
    folder = next_folder(job.name) if out is None else out
    ours = is_free(folder)

    def go(watch: Watch) -> Mapping[str, Any]:
        from triskel.engines.local import LocalEngine
        from triskel.experiment.compare import Request, run
        from triskel.experiment.seeds import compare_seeds

        request = Request(modes=modes, baselines=baselines, strict=strict, drop_share=drop_share)
        if seeds is not None:
            return compare_seeds(job, request, seeds, folder, LocalEngine, watch)
        return run(job, request, folder, LocalEngine(job), watch)

    try:
        _play(folder, go)
    except TriskelError as error:
        if ours and error.exit_code == JobError.exit_code:
            clear_refused(folder)
        raise


def _start_demo(
    out: Path | None, modes: tuple[ModeName, ...], baselines: tuple[BaselineName, ...]
) -> None:
    """Play the rung of the demo that a timed training step chooses, and say which and why."""
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise JobError(taken(out))
    console = console_for(stderr=True)
    settle_threads(console, out or Path())
    with console.status("timing a training step, for a demo that takes minutes here"), loading():
        from triskel.experiment import demo

        choice = demo.choose(demo.timed(_notes(console)))
    console.print(escape(choice.sentence), soft_wrap=True)
    seeds = range(choice.rung.seeds) if choice.rung.seeds > 1 else None
    _start(choice.job, out, modes, baselines, seeds=seeds)
    echo(f"\nThis was {choice.sentence}.")


def _notes(console: Console) -> Watch:
    """Return a watch that prints notes and nothing else."""

    def told(event: Event) -> None:
        if event.get("event") == "note":
            console.print(escape(str(event["text"])), soft_wrap=True)

    return told


def _resume(folder: Path, settings: Sequence[str], rounds: int | None) -> None:
    if kind_of(folder) == "sweep":
        raise JobError(f"{folder} holds a sweep; `triskel sweep --resume {folder}` goes on")

    def go(watch: Watch) -> Mapping[str, Any]:
        from triskel.engines.local import LocalEngine
        from triskel.experiment.compare import resume
        from triskel.experiment.seeds import resume_seeds, seeds_of

        again = resume if seeds_of(folder) is None else resume_seeds
        return again(folder, LocalEngine, watch, settings=settings, rounds=rounds)

    _play(folder, go)


def _play(folder: Path, go: Callable[[Watch], Mapping[str, Any]]) -> None:
    """Run with a display, then say what came out; what stops it says how to go on."""
    console = console_for(stderr=True)
    settle_threads(console, folder)
    try:
        with console.status("loading torch and transformers"), loading():
            from triskel.engines import local
            from triskel.experiment import compare
            from triskel.report.terminal import Live
        del compare, local  # `go` needs them, and what they bring
        with logs_in(folder), Live(console) as live:
            result = go(_opening(folder, console, live))
    except BaseException as stop:
        refused = isinstance(stop, TriskelError) and stop.exit_code == JobError.exit_code
        if not refused and (any(folder.glob("stages")) or any(folder.glob("seed-*/stages"))):
            stop.add_note(
                f"what was finished is in {folder}; `triskel run --resume {folder}` goes on"
            )
        raise
    conclude(result, folder)


def _opening(folder: Path, console: Console, watch: Watch) -> Watch:
    """Return a watch that says in one line what is about to run, and passes everything on."""

    def told(event: Event) -> None:
        if event.get("event") == "run_start":
            console.print(escape(_sentence(folder, event)), soft_wrap=True)
        watch(event)

    return told


def _sentence(folder: Path, event: Event) -> str:
    import torch

    from triskel.data.assets import ASSETS
    from triskel.experiment.compare import read_run
    from triskel.model.load import device_of, dtype_of

    job, _ = read_run(folder)
    path, device = job.model.path, device_of(job.model)
    model = ASSETS[path].about.partition(",")[0] if path in ASSETS else Path(path).name
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    parts = [f"{len(event['clients'])} clients"]
    if "examples" in event:
        parts.append(f"{event['examples']:,} training texts")
    parts += [f"{model} ({str(dtype_of(job.model)).removeprefix('torch.')}, {where})", str(folder)]
    return " · ".join(parts)


def _one_of(known: Sequence[Name], text: str | None) -> Name | None:
    """Return the mode that an option names, or None where it is not given.

    Raises:
        JobError: It is no mode, or several.
    """
    if text is None:
        return None
    first, *more = names_in("mode", text, known)
    if more:
        raise JobError(f"--mode takes one name, got {text!r}; `triskel compare` takes several")
    return first
