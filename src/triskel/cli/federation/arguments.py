"""The arguments that the commands of federations share."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="A federation's folder, or one kit.", show_default=False),
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--site", metavar="NAME", help="A site; repeat for more.", show_default=False),
]
Number = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="A job or run, by its first digits; else the last one."),
]
Supervise = Annotated[
    bool, typer.Option("--supervise", help="Submit again where the server or the job dies.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder for the result.", show_default="runs/NAME-RUN", metavar="DIR"
    ),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME@ORG", help="Which administrator, where there are several."),
]
