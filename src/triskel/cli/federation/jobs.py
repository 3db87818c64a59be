"""The commands of a federation's jobs: send them, follow them, fetch what they left."""

import contextlib
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from triskel.cli.federation.arguments import As, Folder, Number, Out, Sites, Supervise
from triskel.cli.federation.nodes import sentence
from triskel.cli.output import conclude, console_for
from triskel.config.job import ModeName
from triskel.core.console import clean, echo
from triskel.core.crash import logs_in
from triskel.core.registry import MODES
from triskel.core.result_file import result_in
from triskel.core.run_folder import safe_name
from triskel.errors import CheckpointError, FederationError, JobError

if TYPE_CHECKING:
    from triskel.federation.job_watch import Progress, Say, Show

app = typer.Typer()


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
    from triskel.federation.job_folder import read_job
    from triskel.federation.job_folder import request as ask
    from triskel.federation.job_watch import Line, follow, free
    from triskel.federation.job_watch import submit as send
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
        with _leaving(folder, target), logs_in(target):
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
    from triskel.federation.job_watch import Line, free
    from triskel.federation.job_watch import resume as take_up
    from triskel.federation.kits import admin_in
    from triskel.federation.submissions import asked_of, find

    kit = admin_in(folder, who)
    entry = find(kit, job)
    asked = asked_of(kit, entry.run)
    target = out or Path("runs") / f"{safe_name(entry.name)}-{entry.run}"
    free(target, over=True)
    with _watching() as (say, show), Line(kit, patient=supervise, say=say) as line:
        say(f"run {entry.run}, last submitted as job {entry.job}")
        with _leaving(folder, target), logs_in(target):
            take_up(line, asked, entry, target, (say, show))
    _fetched(target)


@contextlib.contextmanager
def _leaving(folder: Path, target: Path) -> "Generator[None, None, None]":
    """Say what Ctrl-C leaves, and what a run that ended before its time."""
    try:
        with _finished(target):
            yield
    except KeyboardInterrupt as stop:
        stop.add_note(
            f"the job goes on; `triskel federation resume {folder}` follows it again, "
            f"`abort {folder}` ends it"
        )
        raise


@contextlib.contextmanager
def _finished(target: Path) -> "Generator[None, None, None]":
    """Say where what a run had finished is, where it ended before its time."""
    try:
        yield
    except FederationError as stop:
        if target.is_dir() and any(target.iterdir()):
            stop.add_note(f"what was finished is in {target}")
        raise


def _modes(given: Sequence[str]) -> tuple[ModeName, ...]:
    for name in given:
        if name not in MODES.names():
            raise JobError(f"unknown mode {name!r}; there are {', '.join(MODES.names())}")
    return tuple(given)


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
    """Say what a fetched run came to; an engine without a report leaves a folder and no more."""
    if not (target / "report.html").is_file():
        echo(f"Results  {target}")
        return
    try:
        conclude(result_in(target), target)
    except CheckpointError as error:
        error.add_note(f"what was fetched is in {target}")
        raise


@app.command()
def logs(
    folder: Folder,
    job: Number = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    who: As = None,
) -> None:
    """Print the server's log of a job; each site has its own in its kit."""
    from triskel.federation.kits import admin_in
    from triskel.federation.session import FINISHED, opened
    from triskel.federation.submissions import find

    kit = admin_in(folder, who)
    number, shown = find(kit, job).job, ""
    with opened(kit) as session:
        while True:
            ended = str(session.meta(number).get("status", "")).startswith(FINISHED)
            text = session.log(number)
            sys.stdout.write(clean(text.removeprefix(shown)))
            sys.stdout.flush()
            shown = text
            if ended or not follow:
                return
            time.sleep(2)


@app.command()
def abort(folder: Folder, job: Number = None, who: As = None) -> None:
    """End a job that runs."""
    from triskel.federation.kits import admin_in
    from triskel.federation.session import opened
    from triskel.federation.submissions import find

    kit = admin_in(folder, who)
    entry = find(kit, job)
    with opened(kit) as session:
        session.abort(entry.job)
    echo(f"job {entry.job} is being ended; what it had finished stays on the server")


@app.command()
def result(
    folder: Folder,
    job: Number = None,
    out: Out = None,
    who: As = None,
) -> None:
    """Fetch what a job left, once it has ended."""
    from triskel.federation.job_watch import Line, fetch, free
    from triskel.federation.kits import admin_in
    from triskel.federation.submissions import find

    kit = admin_in(folder, who)
    entry = find(kit, job)
    target = out or Path("runs") / f"{safe_name(entry.name)}-{entry.run}"
    free(target)
    with _finished(target):
        with Line(kit, patient=False, say=echo) as line:
            ended = fetch(line, entry.job, target)
        if ended is None:
            raise FederationError(
                f"job {entry.job} left no result; `triskel federation logs {folder}` shows why"
            )
        if not ended.get("done"):
            why = ended.get("error", "the engine gave no reason")
            raise FederationError(f"the job ended: {why}")
    _fetched(target)
