"""The commands of a federation: make it, start it, send it jobs, fetch what they left."""

import typer

from triskel.cli.federation import jobs, kits, nodes

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Federations of organisations, on NVIDIA FLARE.",
    epilog="`new` makes one, each site says in its kit's policy what it allows, `start` runs it, "
    "`submit` sends it a job.",
)
for part in (kits, nodes, jobs):  # in the order of the help
    app.add_typer(part.app)
