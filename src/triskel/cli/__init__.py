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
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup

from triskel.cli import (
    begin,
    check,
    federation,
    plugins,
    predict,
    results,
    runs,
    schema,
    site,
    sweep,
    training,
)
from triskel.cli.output import console_for
from triskel.core import crash
from triskel.core.console import echo
from triskel.core.files import OTHERS
from triskel.core.source import VERSION
from triskel.errors import TriskelError

INTERRUPTED = 130
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
        except (typer.Exit, typer.Abort, BrokenPipeError, SystemExit, GeneratorExit):
            raise
        except KeyboardInterrupt as stop:
            _fail("interrupted", stop, INTERRUPTED, debug=False)
        except TriskelError as error:
            _fail(f"[bold red]error:[/] {escape(str(error))}", error, error.exit_code, debug=debug)
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if hasattr(error, "show"):  # a usage error: typer shows it, with the usage
                raise
            text = f"{crash.told(error)}; {_logged(error)}"
            _fail(f"[bold red]error:[/] {escape(text)}", error, 1, debug=debug)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models on data that stays where it is.",
    epilog="`triskel compare` alone runs a demo: four organisations, one small model, three modes.",
)
app.add_typer(begin.assets, name="assets")
app.add_typer(site.app, name="site")
app.add_typer(federation.app, name="federation")
for command in (
    training.compare,
    training.run,
    check.check,
    sweep.sweep,
    runs.runs,
    plugins.plugins,
    results.report,
    results.export,
    results.evaluate,
    predict.predict,
    predict.chat,
    begin.init,
    schema.schema,
):
    app.command()(command)


def main() -> None:
    """Run the command line; a request to end is treated like Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.umask(OTHERS)  # run folders hold what texts left in adapters and figures
    app(prog_name="triskel")


def _show_version(value: bool) -> bool:
    if value:
        echo(f"triskel {VERSION}")
        raise typer.Exit
    return value


@app.callback()
def before_any_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command; `Commands` reads them."""
    del debug, version


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
    for note in crash.advice(error):
        console.print(escape(note), soft_wrap=True)
    raise typer.Exit(code)


def _logged(error: BaseException) -> str:
    """Write an exception's traceback down, and say where it is."""
    try:
        return f"the traceback is in {crash.log(error)}"
    except OSError as why:
        return f"its log cannot be written ({why.strerror}): run again with --debug for a traceback"


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt
