"""What is done with a finished run: its page written anew, its adapters exported, models scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from triskel.cli.options import Base, Moved, Run, Trained
from triskel.cli.output import console_for
from triskel.cli.quick_import import loading
from triskel.cli.torch_import import settle_threads
from triskel.core.console import echo
from triskel.core.crash import during, logs_in
from triskel.report.catalogue import kind_of
from triskel.report.names import COLUMNS as WHERE


def report(folder: Run) -> None:
    """Write report.html of a run, of several seeds or of a sweep anew."""
    with logs_in(folder):
        if kind_of(folder) == "sweep":
            from triskel.report.sweeps import write_page
            from triskel.sweep import read_record

            page = write_page(folder, read_record(folder))
        else:
            from triskel.report.page import write_report

            page = write_report(folder)
    echo(f"{page}\nopen it in a browser: {page.resolve().as_uri()}")


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
    from triskel.export.adapters import export_run

    with logs_in(folder), during("while exporting an adapter"):
        export_run(folder, target, mode=mode, client=client, merge=merge, say=echo)


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
    model: Base = None,
    settings: Moved = None,
) -> None:
    """Score what a run trained, on the texts it was scored on or on others."""
    console = console_for(stderr=True)
    settle_threads(console, folder)
    with console.status("loading torch and transformers"), loading():
        from triskel.experiment.reevaluate import assess
        from triskel.report.terminal import Live
    with logs_in(folder), Live(console) as live:
        found = assess(
            folder, mode=mode, data=data, model=model, settings=settings or (), watch=live
        )
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
