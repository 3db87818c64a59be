"""The command that looks at a job, its data and its model before anything is trained."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from triskel.cli.options import JobOrDemo, Set
from triskel.cli.output import console_for, write_text
from triskel.core.console import echo
from triskel.core.faults import refused
from triskel.errors import JobError


def check(
    job: JobOrDemo = None,
    settings: Set = None,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what is found to FILE.")
    ] = None,
) -> None:
    """Say all that is wrong with a job, and what is odd about its data; train nothing."""
    from triskel.experiment.check import checked

    faults = checked(job, settings or ())
    if file is not None:
        told = {"job": str(job) if job else "", "faults": [asdict(one) for one in faults]}
        write_text(file, json.dumps(told, indent=1, ensure_ascii=False), force=True)
    console = console_for()
    for one in faults:
        word = "[bold red]refused[/]" if one.refuses else "[yellow]odd[/]    "
        named = one.key and not one.text.startswith(one.key)
        key = f"[bold]{escape(one.key)}[/]: " if named else ""
        console.print(f"{word} {key}{escape(one.text)}", soft_wrap=True)
    if wrong := len(refused(faults)):
        echo(f"{wrong} of {len(faults)} keep this job from running")
        raise typer.Exit(JobError.exit_code)
    echo("nothing keeps this job from running" + (f"; {len(faults)} odd" if faults else ""))
