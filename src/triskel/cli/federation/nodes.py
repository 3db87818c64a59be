"""The commands of a federation's nodes: start them, stop them, look at them."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from triskel.cli.federation.arguments import As, Folder
from triskel.cli.output import console_for
from triskel.core.console import echo
from triskel.errors import FederationError, JobError

if TYPE_CHECKING:
    from triskel.federation.job_watch import Progress
    from triskel.federation.kits import Kit
    from triskel.federation.session import Session

app = typer.Typer()
STARTS_S = 30.0
"""Seconds that `start` waits for nodes to be there; they take 2 to 5."""

Nodes = Annotated[
    list[str] | None, typer.Argument(metavar="NODE", help="Which; without any, all that are here.")
]


@app.command()
def start(folder: Folder, names: Nodes = None) -> None:
    """Start the server and the sites of this folder, in the background."""
    from triskel.federation.authority import ending
    from triskel.federation.kits import nodes_in
    from triskel.federation.nodes import start as begin
    from triskel.federation.nodes import waiting_for

    since, kits = time.time(), nodes_in(folder, names or ())
    for line in _soon(folder, kits):
        echo(line)
    begun: list[Kit] = []
    for kit in kits:
        if line := ending(kit):
            echo(line, err=True)
        number = begin(kit)
        if number is None:
            echo(f"{kit.name} runs already")
        else:
            begun.append(kit)
            echo(f"{kit.name} started, process {number}")
    missing = waiting_for(begun, since, STARTS_S)
    if missing:
        raise FederationError("; ".join(missing))
    echo(f"all are there; `triskel federation status {folder}` shows them")


@app.command()
def stop(folder: Folder, names: Nodes = None) -> None:
    """Stop nodes, and what runs on them."""
    from triskel.federation.kits import nodes_in
    from triskel.federation.nodes import stop as end

    ran = end(nodes_in(folder, names or ()))
    echo(f"stopped {', '.join(ran)}" if ran else "nothing ran")


@app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until Ctrl-C.")] = False,
    who: As = None,
) -> None:
    """Show nodes, connected sites, and the job that runs."""
    from triskel.federation.kits import kits_in

    console = console_for()
    for line in _soon(folder, kits_in(folder)):
        console.print(escape(line), soft_wrap=True)
    with contextlib.ExitStack() as stack:
        session, why = _session_or_why(folder, who, stack)
        if not watch:
            console.print(_table(folder, session, why))
            return
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_table(folder, session, why), refresh=True)
                time.sleep(2)


def _soon(folder: Path, kits: "Sequence[Kit]") -> list[str]:
    """Return what is to be done about certificates that end soon, or that should be revoked.

    What cannot be read is a line too: it is no reason not to start or to say nothing else.
    """
    from triskel.federation.authority import ending, left_over

    lines: list[str] = []
    for look in (*(partial(ending, kit) for kit in kits), partial(left_over, folder)):
        try:
            found = look()
        except JobError as error:
            found = str(error)
        lines += [found] if isinstance(found, str) else found
    return [line for line in lines if line]


def _session_or_why(
    folder: Path, who: str | None, stack: contextlib.ExitStack
) -> "tuple[Session | None, str]":
    from triskel.federation.kits import admin_in, kits_in
    from triskel.federation.session import opened

    if not any(kit.kind == "admin" for kit in kits_in(folder)):
        return None, "only the administrator's kit can ask the server"
    try:
        return stack.enter_context(opened(admin_in(folder, who), 5.0)), ""
    except FederationError as error:
        return None, str(error)


def _table(folder: Path, session: "Session | None", why: str) -> Table:
    from triskel.federation.kits import kits_in
    from triskel.federation.nodes import alive

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("node", "kind", "process", "connected"):
        table.add_column(heading)
    there = set(session.sites()) if session else set[str]()
    for kit in kits_in(folder):
        if kit.kind != "admin":
            number = alive(kit)
            on = "–" if kit.kind == "server" else "yes" if kit.name in there else "no"
            here = str(number) if number else "not running here"
            table.add_row(escape(kit.name), kit.kind, here, on if session else "?")
            there.discard(kit.name)
    for name in sorted(there):
        table.add_row(escape(name), "site", "elsewhere", "yes")
    if session is None:
        table.caption, table.caption_justify = escape(why), "left"
        return table
    for job in session.running()[0]:
        progress = session.progress(job)
        table.add_row(f"job {job[:8]}", "", "", escape(sentence(progress)))
        for name, state in _clients(progress).items():
            table.add_row(f"  {escape(name)}", "", "", escape(state))
    return table


def _clients(progress: "Progress | None") -> Mapping[str, str]:
    return {
        name: f"{each.get('state', '?')}"
        + (f", {each['tokens']:,} tokens" if isinstance(each.get("tokens"), int) else "")
        for name, each in _told(progress, "clients").items()
        if isinstance(each, Mapping)
    }


def _told(progress: "Progress | None", key: str) -> Mapping[str, Any]:
    """Return a table that the server tells, as far as it is one."""
    found = (progress or {}).get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def sentence(progress: "Progress | None") -> str:
    """Return what the engine says of a running job, on one line.

    >>> sentence({"stage": "params", "round": 1, "rounds": 3, "up_bytes": 2_000_000})
    'params · round 1 of 3 · 2.0 MB up'
    """
    if not progress:
        return "no word from the engine yet"
    parts = [str(progress[key]) for key in ("stage",) if progress.get(key)]
    if progress.get("round") is not None:
        parts.append(f"round {progress['round']} of {progress.get('rounds', '?')}")
    names = progress.get("waiting_for")
    waiting = [str(name) for name in names] if isinstance(names, list | tuple) else []
    down = [name for name, state in _clients(progress).items() if state.startswith("down")]
    parts += [f"waits for {', '.join(waiting)}"] if waiting else []
    parts += [f"down: {', '.join(down)}"] if down else []
    for key, way in (("up_bytes", "up"), ("down_bytes", "down")):
        found = progress.get(key)
        parts += [f"{found / 1e6:.1f} MB {way}"] if isinstance(found, int | float) else []
    metrics = _told(progress, "metrics").items()
    parts += [f"{key} {value:.3f}" for key, value in metrics if isinstance(value, float)]
    parts += [str(progress["text"])] if progress.get("text") else []
    return " · ".join(parts)
