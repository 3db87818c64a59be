"""The command line: reads what is asked for, calls one function, and says what came of it.

Progress and errors go to standard error, results to standard output. Exit codes: 0 done, 1 a run or
a command failed, 2 bad input, 130 interrupted. torch and what builds on it load inside commands, so
that help, typing mistakes and mistakes in a job are answered at once.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from triskel import __version__
from triskel.catalogue import kind_of, taken
from triskel.cli import federation, runs, site, sweep
from triskel.cli import plugins as plugins_
from triskel.cli import schema as schema_
from triskel.cli.options import Name, rows_in, seeds_in
from triskel.cli.options import names_in as _names
from triskel.cli.options import next_folder as _next_folder
from triskel.cli.output import conclude, console_for, write_text
from triskel.core.registry import MODES
from triskel.errors import JobError, TriskelError
from triskel.job import MODE_NAMES, Job, ModeName, load
from triskel.loading import loading
from triskel.owned import OTHERS
from triskel.report.names import COLUMNS as WHERE
from triskel.terminal import echo
from triskel.threads import begun_with, settle

# `types` and `compare` load torch, so what is needed of them is said again here
Event = Mapping[str, Any]
Watch = Callable[[Event], None]
BaselineName = Literal["base", "local", "central", "local_equal"]
BASELINE_NAMES: tuple[BaselineName, ...] = ("base", "local", "central", "local_equal")
INTERRUPTED = 130
LEFT_BY_A_REFUSAL = {"job.toml", "request.json", "events.jsonl"}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
}
"""What transformers, datasets and the hub read once, when they are imported."""


class Commands(TyperGroup):
    """All commands: an error becomes one sentence on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps its own copy of click
        """Run a command."""
        debug = bool(ctx.params.get("debug"))
        try:
            _quieten(debug=debug)
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as stop:
            _fail("interrupted", stop, INTERRUPTED, debug=False)
        except TriskelError as error:
            _fail(f"[bold red]error:[/] {escape(str(error))}", error, error.exit_code, debug=debug)
        except Exception as error:
            if hasattr(error, "show"):  # a usage error: typer shows it, with the usage
                raise
            text = f"{type(error).__name__}: {_first_line(error)}"
            more = "" if debug else "; run again with --debug for the traceback"
            _fail(f"[bold red]error:[/] {escape(text + more)}", error, 1, debug=debug)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models on data that stays where it is.",
    epilog="`triskel compare` alone runs a demo: four organisations, one small model, three modes.",
)
assets_app = typer.Typer(no_args_is_help=True, help="The model and the texts of the demo.")
app.add_typer(assets_app, name="assets")
app.add_typer(site.app, name="site")
app.add_typer(federation.app, name="federation")


def main() -> None:
    """Run the command line; a request to end is treated like Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.umask(OTHERS)  # run folders hold what texts left in adapters and figures
    app(prog_name="triskel")


# --- Options ----------------------------------------------------------------------------------


def _show_version(value: bool) -> bool:
    if value:
        echo(f"triskel {__version__}")
        raise typer.Exit
    return value


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command; `Commands` reads them."""
    del debug, version


def _mode_names() -> list[str]:
    return list(MODES.names())


def _trained_names() -> list[str]:
    return [*MODES.names(), "central", "local"]


SETTING = "Change one key of the job, such as train.lr=3e-4; repeat for more."
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SETTING)]
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
        autocompletion=_mode_names,
    ),
]
Trained = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="A mode, central or local; may be left out where there is one.",
        autocompletion=_trained_names,
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        help=f"Which baselines, separated by commas: {', '.join(BASELINE_NAMES)}; or none."
    ),
]


# --- Running ----------------------------------------------------------------------------------


@app.command()
def compare(
    job: Annotated[
        Path | None,
        typer.Argument(metavar="JOB", help="A job file; without one, the demo's job."),
    ] = None,
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
) -> None:
    """Run baselines and modes on one model, data split and seed, and write a report.

    Without a job file and settings it is the demo, as large as the machine does in minutes.
    """
    chosen, beside = rows_in(modes, baselines, BASELINE_NAMES)
    if job is None and not (settings or seeds or drop_outs):
        _start_demo(out, chosen, beside)
        return
    asked = load(job, settings or ())
    more = None if seeds is None else seeds_in(seeds, asked.seed)
    _start(asked, out, chosen, beside, seeds=more, drop_share=drop_outs)


@app.command()
def run(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="A job file.", show_default=False)
    ] = None,
    mode: Mode = None,
    out: Out = None,
    baselines: Baselines = "none",
    settings: Set = None,
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
        if job or mode or out or settings or baselines != "none":
            raise JobError("--resume goes on with the job as it was; leave out everything else")
        _resume(resume)
        return
    if job is None:
        raise JobError(
            "give a job file, or --resume RUN; `triskel init` writes a job file, "
            "and `triskel compare` needs none"
        )
    asked = load(job, settings or ())
    chosen = _one_of(MODES.names(), mode) or asked.mode
    beside = _names("baseline", baselines, BASELINE_NAMES, empty=True)
    _start(asked.model_copy(update={"mode": chosen}), out, (chosen,), beside, strict=True)


app.command()(sweep.sweep)
app.command()(runs.runs)
app.command()(plugins_.plugins)
app.command()(schema_.schema)


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
    folder = _next_folder(job.name) if out is None else out
    ours = not folder.exists() or not any(folder.iterdir())

    def go(watch: Watch) -> Mapping[str, Any]:
        from triskel.compare import Request, run
        from triskel.engines.local import LocalEngine
        from triskel.seeds import compare_seeds

        request = Request(modes=modes, baselines=baselines, strict=strict, drop_share=drop_share)
        if seeds is not None:
            return compare_seeds(job, request, seeds, folder, LocalEngine, watch)
        return run(job, request, folder, LocalEngine(job), watch)

    try:
        _play(folder, go)
    except TriskelError as error:
        if ours and error.exit_code == JobError.exit_code:
            _clear(folder)
        raise


def _start_demo(
    out: Path | None, modes: tuple[ModeName, ...], baselines: tuple[BaselineName, ...]
) -> None:
    """Play the rung of the demo that a timed training step chooses, and say which and why."""
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise JobError(taken(out))
    console = console_for(stderr=True)
    _settle_threads(console, out or Path())
    with console.status("timing a training step, for a demo that takes minutes here"), loading():
        from triskel import demo

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


def _resume(folder: Path) -> None:
    if kind_of(folder) == "sweep":
        raise JobError(f"{folder} holds a sweep; `triskel sweep --resume {folder}` goes on")

    def go(watch: Watch) -> Mapping[str, Any]:
        from triskel.compare import resume
        from triskel.engines.local import LocalEngine
        from triskel.seeds import resume_seeds, seeds_of

        again = resume if seeds_of(folder) is None else resume_seeds
        return again(folder, LocalEngine, watch)

    _play(folder, go)


def _play(folder: Path, go: Callable[[Watch], Mapping[str, Any]]) -> None:
    """Run with a display, then say what came out; what stops it says how to go on."""
    console = console_for(stderr=True)
    _settle_threads(console, folder)
    try:
        with console.status("loading torch and transformers"), loading():
            from triskel import compare
            from triskel.engines import local
            from triskel.live import Live
        del compare, local  # `go` needs them, and what they bring
        with Live(console) as live:
            result = go(_opening(folder, console, live))
    except (KeyboardInterrupt, TriskelError) as stop:
        refused = isinstance(stop, TriskelError) and stop.exit_code == JobError.exit_code
        if not refused and (any(folder.glob("stages")) or any(folder.glob("seed-*/stages"))):
            stop.add_note(
                f"what was finished is in {folder}; `triskel run --resume {folder}` goes on"
            )
        raise
    conclude(result, folder)


def _settle_threads(console: Console, folder: Path) -> None:
    """Say how torch computes, before it is imported: as the run of a folder began, if one did."""
    if "torch" not in sys.modules:
        places = [folder, *sorted(folder.glob("seed-*"))]
        begun = [begun_with(place / "choices.json") for place in places]
        said = settle(os.environ, next((n for n in begun if n is not None), None))
        if said is not None:
            console.print(escape(said), soft_wrap=True)


def _opening(folder: Path, console: Console, watch: Watch) -> Watch:
    """Return a watch that says in one line what is about to run, and passes everything on."""

    def told(event: Event) -> None:
        if event.get("event") == "run_start":
            console.print(escape(_sentence(folder, event)), soft_wrap=True)
        watch(event)

    return told


def _sentence(folder: Path, event: Event) -> str:
    import torch

    from triskel.compare import read_run
    from triskel.data.assets import ASSETS
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


# --- After a run ------------------------------------------------------------------------------


@app.command()
def report(folder: Run) -> None:
    """Write report.html of a run, of several seeds or of a sweep anew."""
    if kind_of(folder) == "sweep":
        from triskel.report.sweeps import write_page
        from triskel.sweep import read_record

        page = write_page(folder, read_record(folder))
    else:
        from triskel.report.page import write_report

        page = write_report(folder)
    echo(f"{page}\nopen it in a browser: {page.resolve().as_uri()}")


@app.command()
def export(
    folder: Run,
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write.", show_default=False)
    ],
    mode: Trained = None,
    client: Annotated[
        str | None, typer.Option(help="This client's own model, where clients have one.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a whole model instead of an adapter.")
    ] = False,
) -> None:
    """Write what a run trained as a PEFT adapter, or as a whole model."""
    from triskel.export import export_run

    export_run(folder, target, mode=mode, client=client, merge=merge, say=echo)


@app.command()
def evaluate(
    folder: Run,
    mode: Trained = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts to evaluate on instead of the run's own, with the columns of its job.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the base model lies here, if not where the job says.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Score what a run trained, on the texts it was scored on or on others."""
    console = console_for(stderr=True)
    _settle_threads(console, folder)
    with console.status("loading torch and transformers"), loading():
        from triskel.assess import assess
        from triskel.live import Live
    with Live(console) as live:
        found = assess(folder, mode=mode, data=data, model=model, watch=live)
    console_for().print(_scores(found))
    texts = f"the texts of {data}" if data else f"the run's own {found.get('judge', 'test')} texts"
    echo(f"\nScored on {texts}.")


def _scores(found: Mapping[str, Any]) -> Table:
    each = cast("Mapping[str, Mapping[str, Any]]", found.get("per_client", {}))
    known = ("accuracy", "macro_f1", "token_accuracy", "perplexity", "loss", "global_accuracy")
    shown = [
        key
        for key in (*known, "examples")
        if key in found or any(key in row for row in each.values())
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(str(found.get("mode", "")))
    for key in shown:
        table.add_column(key.replace("_", " "), justify="right")
    for name, row in each.items():
        table.add_row(escape(name), *(_figure(row.get(key)) for key in shown))
    columns = {WHERE[name]: found[name] for name in WHERE if name in found}
    for name, row in (columns or {"all together": found}).items():
        told = {"examples": found.get("examples"), **row}
        table.add_row(name, *(_figure(told.get(key)) for key in shown), style="bold")
    return table


def _figure(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else "–"


# --- Beginning --------------------------------------------------------------------------------


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path(
        "job.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With the section of this mode of another package."),
    ] = None,
) -> None:
    """Write a job file that holds every key, its default and what it means."""
    from triskel.template import text

    write_text(file, text(mode or ()), force=force)
    echo(f"{file} holds the demo's job; edit it, then run `triskel compare {file}`")


@assets_app.command("list")
def list_assets() -> None:
    """Show what there is to fetch, and what is on this machine."""
    from triskel.data.assets import listing

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "size", "licence", "here", "what"):
        table.add_column(heading, justify="right" if heading == "size" else "left", no_wrap=True)
    table.columns[-1].no_wrap = False
    for row in listing():
        here = "[green]yes[/]" if row["present"] else "no"
        size = f"{row['megabytes']} MB"
        table.add_row(row["name"], size, row["licence"], here, f"{row['about']}; {row['citation']}")
    console_for().print(table)


@assets_app.command("get")
def get_assets(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which; without any, all.")
    ] = None,
) -> None:
    """Fetch the model and the texts of the demo, unless they are here."""
    from triskel.data.assets import ASSETS, get

    for name in _names("asset", ",".join(names), tuple(ASSETS)) if names else ASSETS:
        get(name, say=echo)


# --- Small things -----------------------------------------------------------------------------


def _one_of(known: Sequence[Name], text: str | None) -> Name | None:
    """Return the mode that an option names, or None where it is not given.

    Raises:
        JobError: It is no mode, or several.
    """
    if text is None:
        return None
    first, *more = _names("mode", text, known)
    if more:
        raise JobError(f"--mode takes one name, got {text!r}; `triskel compare` takes several")
    return first


def _clear(folder: Path) -> None:
    """Remove what a refused job wrote, unless there is more than that."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= LEFT_BY_A_REFUSAL:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _quieten(*, debug: bool) -> None:
    """Keep other libraries' advice and progress bars off the terminal."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")


def _fail(text: str, error: BaseException, code: int, *, debug: bool) -> NoReturn:
    console = console_for(stderr=True)
    if debug:
        traceback.print_exception(error)
    console.print(text, soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        console.print(escape(note), soft_wrap=True)
    raise typer.Exit(code)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt
