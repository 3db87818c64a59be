"""The commands of a federation: make it, start it, send it jobs, fetch what they left."""

import contextlib
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.markup import escape
from rich.table import Table

from triskel.cli.output import console_for, safe_name
from triskel.errors import FederationError, JobError
from triskel.job import MODE_NAMES, ModeName

if TYPE_CHECKING:
    from triskel.federation.follow import Progress, Say, Show
    from triskel.federation.kits import Kit
    from triskel.federation.session import Session

app = typer.Typer(no_args_is_help=True, help="Federations of organisations, on NVIDIA FLARE.")
STARTS_S = 30.0
"""Seconds that `start` waits for nodes to be there; they take 2 to 5."""

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


# --- Making -----------------------------------------------------------------------------------


@app.command()
def new(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)
    ],
    sites: Sites = None,
    server: Annotated[
        str, typer.Option(metavar="HOST", help="Where every site reaches the server.")
    ] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's one port.")] = 8002,
    admin: Annotated[
        str, typer.Option(metavar="NAME@ORG", help="Who submits jobs.")
    ] = "lead@federation.local",
    name: Annotated[str, typer.Option(help="The federation's name.")] = "triskel",
    scheme: Annotated[
        str, typer.Option(help="tcp, which is faster, or http, which passes proxies.")
    ] = "tcp",
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Each site makes its key itself, and keeps it.")
    ] = False,
) -> None:
    """Make the kits of a federation: certificates, keys, and what each party allows."""
    if scheme not in {"tcp", "http"}:
        raise JobError(f"--scheme must be tcp or http, got {scheme!r}")
    if distributed and sites:
        raise JobError("--distributed takes no --site; each site runs `triskel federation request`")
    from triskel.federation.provision import Plan
    from triskel.federation.provision import new as make

    kind = cast("Literal['tcp', 'http']", scheme)
    plan = Plan(tuple(sites or ()), name, server, port, admin, kind)
    if not distributed:
        _list_kits(make(folder, plan))
        typer.echo(_after_new(folder, plan.sites))
        return
    from triskel.federation.distributed import found

    made, print_ = found(folder, plan)
    _list_kits(made)
    typer.echo(
        f"\nThe authority's key is in {folder / 'ca'}: keep it here, and safe.\n"
        f"Its fingerprint: {print_}\n"
        "Tell it to every site over another channel than the files, by telephone for example.\n"
        f"Next, at each site: triskel federation request FOLDER --site NAME --federation {name}"
    )


def _after_new(folder: Path, sites: Sequence[str]) -> str:
    first = folder / "kits" / sites[0]
    return (
        f"\nThe authority's key is in {folder / 'ca'}: keep it here, and safe.\n"
        "Next: let each site allow something, as these policies refuse every job:\n"
        f"  edit {first / 'local' / 'policy.toml'}\n"
        f"Then, on one machine: triskel federation start {folder}\n"
        f"On several: copy each folder in {folder / 'kits'} to its host over a safe channel, remove"
        " it here, and there: triskel federation start KIT"
    )


@app.command()
def add(folder: Folder, sites: Sites = None) -> None:
    """Make kits for more sites; those that are there stay as they are."""
    from triskel.federation.provision import add as more

    if not sites:
        raise JobError("--site must name the sites to add, such as --site clinic")
    made = more(folder, sites)
    _list_kits(made)
    typer.echo(f"Next: edit local/policy.toml there, then start {', '.join(k.name for k in made)}")


@app.command()
def request(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder.", show_default=False)
    ],
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="The site's name.")
    ] = None,
    admin: Annotated[
        str | None, typer.Option(metavar="NAME@ORG", help="Or one more who submits jobs.")
    ] = None,
    federation: Annotated[
        str, typer.Option(metavar="NAME", help="The federation's name.")
    ] = "triskel",
) -> None:
    """Make a key that stays here, and a request that goes to the lead."""
    named = [name for name in (site, admin) if name]
    if len(named) != 1 or (admin is None) == ("@" in named[0]):
        raise JobError("give --site NAME for a site, or --admin NAME@ORG for an administrator")
    from triskel.federation.distributed import ask

    file = ask(folder, named[0], federation)
    typer.echo(
        f"{file} holds no key: send it to the lead.\n"
        f"{file.parent / named[0]}.key is the key: it never leaves this machine.\n"
        f"When the signed file is back: triskel federation join {folder} {named[0]}.signed.zip "
        "--fingerprint ..."
    )


@app.command()
def approve(
    folder: Folder,
    asked: Annotated[
        Path,
        typer.Argument(metavar="REQUEST", help="A site's request.", exists=True, dir_okay=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Sign a site's request, at the lead."""
    from triskel.federation.distributed import approve as sign
    from triskel.federation.distributed import request_of

    said = request_of(asked)
    whom = f"{said.get('kind')} {said.get('name')} of {said.get('org')}"
    if not yes:
        typer.confirm(f"Does this request come from {whom}?", abort=True)
    signed = sign(folder, asked)
    typer.echo(
        f"{signed.path} admits {whom}: send it back.\n"
        f"Fingerprint, over another channel: {signed.fingerprint}"
    )


@app.command()
def join(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder.", show_default=False)
    ],
    signed: Annotated[
        Path,
        typer.Argument(metavar="SIGNED", help="What the lead sent.", exists=True, dir_okay=False),
    ],
    fingerprint: Annotated[
        str, typer.Option(help="The authority's, which the lead told over another channel.")
    ],
) -> None:
    """Make the site's kit from its key and what the lead signed."""
    from triskel.federation.distributed import join as make

    kit = make(folder, signed, fingerprint)
    _list_kits((kit,))
    typer.echo(
        f"Next: edit {_short(kit.local / 'policy.toml')}, then triskel federation start {folder}"
        if kit.kind == "site"
        else f"Next: triskel federation status {folder}"
    )


@app.command()
def harden(folder: Folder) -> None:
    """Write the rules of a hardened node again, where they were changed."""
    from triskel.federation.harden import harden as tighten
    from triskel.federation.harden import weakness
    from triskel.federation.kits import nodes_in

    for kit in nodes_in(folder):
        lost = weakness(kit)
        tighten(kit)
        typer.echo(f"{kit.name}: {lost or 'was hardened already'}")


def _list_kits(kits: Sequence["Kit"]) -> None:
    for kit in kits:
        typer.echo(f"{kit.kind:6}  {kit.name:24}  {_short(kit.path)}")


def _short(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path


# --- Nodes ------------------------------------------------------------------------------------

Nodes = Annotated[
    list[str] | None, typer.Argument(metavar="NODE", help="Which; without any, all that are here.")
]


@app.command()
def start(folder: Folder, names: Nodes = None) -> None:
    """Start the server and the sites of this folder, in the background."""
    from triskel.federation.kits import nodes_in
    from triskel.federation.nodes import start as begin
    from triskel.federation.nodes import waiting_for

    since, kits = time.time(), nodes_in(folder, names or ())
    begun: list[Kit] = []
    for kit in kits:
        number = begin(kit)
        if number is None:
            typer.echo(f"{kit.name} runs already")
        else:
            begun.append(kit)
            typer.echo(f"{kit.name} started, process {number}")
    missing = waiting_for(begun, since, STARTS_S)
    if missing:
        raise FederationError("; ".join(missing))
    typer.echo(f"all are there; `triskel federation status {folder}` shows them")


@app.command()
def stop(folder: Folder, names: Nodes = None) -> None:
    """Stop nodes, and what runs on them."""
    from triskel.federation.kits import nodes_in
    from triskel.federation.nodes import stop as end

    ran = end(nodes_in(folder, names or ()))
    typer.echo(f"stopped {', '.join(ran)}" if ran else "nothing ran")


@app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until Ctrl-C.")] = False,
    who: As = None,
) -> None:
    """Show nodes, connected sites, and the job that runs."""
    console = console_for()
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
    found = cast("Mapping[str, Mapping[str, Any]]", (progress or {}).get("clients", {}))
    return {
        name: f"{each.get('state', '?')}"
        + (f", {each['tokens']:,} tokens" if "tokens" in each else "")
        for name, each in found.items()
    }


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
    waiting = cast("Sequence[str]", progress.get("waiting_for") or ())
    clients = cast("Mapping[str, Mapping[str, Any]]", progress.get("clients") or {})
    down = [name for name, each in clients.items() if each.get("state") == "down"]
    parts += [f"waits for {', '.join(waiting)}"] if waiting else []
    parts += [f"down: {', '.join(down)}"] if down else []
    for key, way in (("up_bytes", "up"), ("down_bytes", "down")):
        found = progress.get(key)
        parts += [f"{found / 1e6:.1f} MB {way}"] if isinstance(found, int | float) else []
    metrics = cast("Mapping[str, Any]", progress.get("metrics") or {})
    parts += [f"{key} {value:.3f}" for key, value in metrics.items() if isinstance(value, float)]
    parts += [str(progress["text"])] if progress.get("text") else []
    return " · ".join(parts)


# --- Jobs -------------------------------------------------------------------------------------


@app.command()
def submit(
    folder: Folder,
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file.", show_default=False)],
    modes: Annotated[
        list[str] | None,
        typer.Option(
            "--mode", metavar="MODE", help="Which mode; repeat for more.", show_default="the job's"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key of the job."),
    ] = None,
    sites: Sites = None,
    supervise: Supervise = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
    out: Out = None,
    who: As = None,
) -> None:
    """Send a job to the sites, follow it, and fetch its result."""
    from triskel.federation.follow import Line, follow, free
    from triskel.federation.follow import submit as send
    from triskel.federation.job import read_job
    from triskel.federation.job import request as ask
    from triskel.federation.kits import admin_in

    if supervise and not wait:
        raise JobError("--supervise waits for the job's end; leave out --no-wait")
    asked = ask(read_job(job, settings or ()), _modes(modes or ()), sites or ())
    kit = admin_in(folder, who)
    target = out or Path("runs") / f"{safe_name(asked.job.name)}-{asked.run}"
    free(target)
    with _watching() as (say, show), Line(kit, patient=supervise, say=say) as line:
        entry = send(line, asked)
        say(f"job {entry.job}, run {entry.run}, sent to {', '.join(entry.sites)}")
        if not wait:
            say(f"`triskel federation status {folder}` shows it, `result {folder}` fetches it")
            return
        with _leaving(folder):
            follow(line, asked, entry, target, (say, show))
    _fetched(target)


@app.command()
def resume(
    folder: Folder,
    job: Number = None,
    supervise: Supervise = False,
    out: Out = None,
    who: As = None,
) -> None:
    """Go on with a run that ended before its time, or follow it where it still runs."""
    from triskel.federation.follow import Line, free
    from triskel.federation.follow import resume as take_up
    from triskel.federation.kits import admin_in
    from triskel.federation.record import asked_of, find

    kit = admin_in(folder, who)
    entry = find(kit, job)
    asked = asked_of(kit, entry.run)
    target = out or Path("runs") / f"{safe_name(entry.name)}-{entry.run}"
    free(target, over=True)
    with _watching() as (say, show), Line(kit, patient=supervise, say=say) as line:
        say(f"run {entry.run}, last submitted as job {entry.job}")
        with _leaving(folder):
            take_up(line, asked, entry, target, (say, show))
    _fetched(target)


@contextlib.contextmanager
def _leaving(folder: Path) -> "Generator[None, None, None]":
    """Say what Ctrl-C leaves."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(
            f"the job goes on; `triskel federation resume {folder}` follows it again, "
            f"`abort {folder}` ends it"
        )
        raise


def _modes(given: Sequence[str]) -> tuple[ModeName, ...]:
    for name in given:
        if name not in MODE_NAMES:
            raise JobError(f"unknown mode {name!r}; there are {', '.join(MODE_NAMES)}")
    return tuple(cast("Sequence[ModeName]", given))


@contextlib.contextmanager
def _watching() -> "Generator[tuple[Say, Show], None, None]":
    """Give what prints sentences, and what shows the progress on one line."""
    console = console_for(stderr=True)
    last = ""

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    if console.is_terminal:
        with console.status("submitted") as line:
            yield say, lambda progress: line.update(escape(sentence(progress)))
        return

    def show(progress: "Progress | None") -> None:
        nonlocal last
        text = sentence(progress)
        if text != last:
            last = text
            say(text)

    yield say, show


def _fetched(target: Path) -> None:
    typer.echo(f"Results  {target}")
    if (target / "report.html").is_file():
        typer.echo(f"Report   {target / 'report.html'}")


@app.command()
def logs(
    folder: Folder,
    job: Number = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    who: As = None,
) -> None:
    """Print the server's log of a job; each site has its own in its kit."""
    from triskel.federation.kits import admin_in
    from triskel.federation.record import find
    from triskel.federation.session import FINISHED, opened

    kit = admin_in(folder, who)
    number, shown = find(kit, job).job, ""
    with opened(kit) as session:
        while True:
            ended = str(session.meta(number).get("status", "")).startswith(FINISHED)
            text = session.log(number)
            sys.stdout.write(text.removeprefix(shown))
            sys.stdout.flush()
            shown = text
            if ended or not follow:
                return
            time.sleep(2)


@app.command()
def abort(folder: Folder, job: Number = None, who: As = None) -> None:
    """End a job that runs."""
    from triskel.federation.kits import admin_in
    from triskel.federation.record import find
    from triskel.federation.session import opened

    kit = admin_in(folder, who)
    entry = find(kit, job)
    with opened(kit) as session:
        session.abort(entry.job)
    typer.echo(f"job {entry.job} is being ended; what it had finished stays on the server")


@app.command()
def result(
    folder: Folder,
    job: Number = None,
    out: Out = None,
    who: As = None,
) -> None:
    """Fetch what a job left, once it has ended."""
    from triskel.federation.follow import Line, fetch, free
    from triskel.federation.kits import admin_in
    from triskel.federation.record import find

    kit = admin_in(folder, who)
    entry = find(kit, job)
    target = out or Path("runs") / f"{safe_name(entry.name)}-{entry.run}"
    free(target)
    with Line(kit, patient=False, say=typer.echo) as line:
        ended = fetch(line, entry.job, target)
    if ended is None:
        raise FederationError(
            f"job {entry.job} left no result; `triskel federation logs {folder}` shows why"
        )
    if not ended.get("done"):
        raise FederationError(f"the job ended: {ended.get('error', 'the engine gave no reason')}")
    _fetched(target)
