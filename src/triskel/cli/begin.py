"""What one begins with: a job file, and the model and the texts of the demo."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from triskel.cli.options import names_in
from triskel.cli.output import console_for, write_text
from triskel.core.console import echo

assets = typer.Typer(no_args_is_help=True, help="The model and the texts of the demo.")


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
    from triskel.config.template import text

    write_text(file, text(mode or ()), force=force)
    echo(f"{file} holds the demo's job; edit it, then run `triskel compare {file}`")


@assets.command("list")
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


@assets.command("get")
def get_assets(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which; without any, all.")
    ] = None,
) -> None:
    """Fetch the model and the texts of the demo, unless they are here."""
    from triskel.data.assets import ASSETS, get

    for name in names_in("asset", ",".join(names), tuple(ASSETS)) if names else ASSETS:
        get(name, say=echo)
