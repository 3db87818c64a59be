"""Follow a job to its end, fetch what it left, and submit it again where its server died.

A run ended when its folder holds `ended.json`, whatever FLARE's label says: done, or the engine's
own sentence on why not. A run without one lost its server or its job; a supervised one is submitted
again under the same run number, with the sites that are connected, and the engine goes on from its
last closed round. A run whose supervisor died is taken up again from the administrator's kit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar, cast

from triskel.core.untrusted import copied, json_in, table_of
from triskel.errors import CheckpointError, FederationError, JobError
from triskel.federation import submissions
from triskel.federation.job_folder import Request, write
from triskel.federation.kits import Kit
from triskel.federation.session import FINISHED, Session, UnreachableError, opened
from triskel.report.page import write_report

Progress = Mapping[str, Any]
Say = Callable[[str], None]
Show = Callable[[Progress | None], None]
T = TypeVar("T")

POLL_S = 1.0
RESTARTS = 10
"""Most restarts without a round that was not seen before."""
SILENT_S = 3.0
"""Seconds between questions to an engine that does not answer; each one is an error in its log."""
LOST_S = 20.0
"""Seconds a job may be called running without being among the jobs that run."""
RETURN_S = 15.0
"""Seconds that a restart waits for the sites of the run to come back; they take about 10."""
ABORTED = "FINISHED:ABORTED"
ENDED = "ended.json"
RESULT_MOST = 4e9
"""Bytes of a result that are copied."""
TAKEN = frozenset({".json", ".jsonl", ".toml", ".csv", ".md", ".safetensors"})
"""What the names of files end in that a run leaves, its page apart."""
LOST = "LOST"
"""Our word for a job that FLARE still calls running."""


@dataclass
class Trail:
    """What a supervised run has shown of itself.

    Attributes:
        seen: Every stage and round that it was in.
        idle: Restarts since one of them was new.
    """

    seen: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    idle: int = 0

    def note(self, progress: Progress | None) -> None:
        """Take up where the run is."""
        if progress and "round" in progress:
            at = (str(progress.get("stage", "")), int(progress["round"]))
            if at not in self.seen:
                self.seen.add(at)
                self.idle = 0


class Line:
    """A connection that is made again when it was lost."""

    def __init__(self, kit: Kit, *, patient: bool, say: Say) -> None:
        self.kit, self.patient, self.say = kit, patient, say
        self._stack = ExitStack()
        self._session: Session | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def session(self) -> Session:
        """Return a session, waiting for the server as long as it takes where patient.

        Raises:
            UnreachableError: The server is not there and nobody is to wait for it.
        """
        told = False
        while self._session is None:
            try:
                self._session = self._stack.enter_context(opened(self.kit))
            except UnreachableError:
                if not self.patient:
                    raise
                if not told:
                    self.say(
                        f"the server at {self.kit.host}:{self.kit.port} does not answer; waiting"
                    )
                    told = True
                time.sleep(POLL_S)
        return self._session

    def drop(self) -> None:
        """Give up a connection that failed."""
        self._stack.close()
        self._session = None


def submit(line: Line, asked: Request, *, again: bool = False) -> submissions.Entry:
    """Send a job to the sites that it names and that are connected, and note it.

    A reply can be lost while its job runs. So the same folder is sent until there is one, where
    the line is patient, and under a token by which the server knows it again: a run's submissions
    are counted, and each is one job however often it was sent.

    Raises:
        FederationError: No site is connected, or FLARE refuses.
    """
    submissions.keep(line.kit, asked)
    token = f"{asked.run}-{submissions.count(line.kit, asked.run) + 1}"
    on = _until_answered(line, lambda: _sites(line, asked, again=again))
    with TemporaryDirectory(prefix="triskel-") as name:
        folder = write(Path(name) / "job", asked, on)
        number = _until_answered(line, lambda: line.session().submit(folder, token))
    return submissions.note(line.kit, number, asked, on)


def _until_answered(line: Line, ask: Callable[[], T]) -> T:
    """Return an answer, asking again where the line is patient and the server was gone.

    Raises:
        UnreachableError: The server is gone and nobody is to wait for it.
    """
    while True:
        try:
            return ask()
        except UnreachableError:
            line.drop()
            if not line.patient:
                raise


def _sites(line: Line, asked: Request, *, again: bool) -> tuple[str, ...]:
    if asked.sites and not again:
        return asked.sites  # FLARE keeps the job until they are connected
    before = asked.sites or submissions.sites_of(line.kit, asked.run)
    end, told = time.monotonic() + (RETURN_S if again else 0.0), False
    while True:
        there = line.session().sites()
        found = tuple(site for site in there if not before or site in before)
        if (set(found) == set(before) or not before) and found:
            return found
        late = time.monotonic() >= end
        if late and (found or not (again and line.patient)):
            break
        if late and not told:
            line.say("no site of the run is connected; waiting")
            told = True
        time.sleep(POLL_S)
    if not found:
        raise FederationError("no site is connected; start the sites, then submit again")
    return found


@dataclass(frozen=True)
class End:
    """How a submission ended.

    Attributes:
        label: FLARE's word for it.
        detail: What FLARE says of the nodes.
    """

    label: str
    detail: str = ""


def wait(line: Line, job: str, trail: Trail, show: Show) -> End:
    """Wait until FLARE counts a job as finished, or until it is lost.

    Raises:
        UnreachableError: The server is gone and nobody is to wait for it.
    """
    running, first, asked = time.monotonic(), 0.0, 0.0
    while True:
        try:
            session = line.session()
            meta = session.meta(job)
            label = str(meta.get("status", ""))
            if label.startswith(FINISHED):
                return End(label, _detail(meta))
            jobs, started = session.running()
            first, active = first or started, job in jobs
            progress = None
            if active and time.monotonic() > asked:
                progress = session.progress(job)
                asked = 0.0 if progress else time.monotonic() + SILENT_S
        except UnreachableError:
            line.drop()
            if not line.patient:
                raise
            continue
        trail.note(progress)
        show(progress or {"text": _waiting(label, meta, begun=bool(trail.seen))})
        if active or label == "SUBMITTED":
            running = time.monotonic()
        elif started != first:
            return End(LOST, "the server was started anew")
        elif time.monotonic() - running > LOST_S:
            return End(LOST, "the server does not run it any more")
        time.sleep(POLL_S)


def _waiting(label: str, meta: Mapping[str, Any], *, begun: bool) -> str:
    if label != "SUBMITTED":
        return "between rounds, or ending" if begun else "the sites start their processes"
    history = cast("Sequence[str]", meta.get("schedule_history", ()))
    return f"waits to be started: {history[-1].split(': ', 1)[-1]}" if history else "submitted"


def _detail(meta: Mapping[str, Any]) -> str:
    said = cast("Sequence[str]", meta.get("job_deploy_detail", ()))
    return "; ".join(line for line in said if not line.endswith(": OK"))


class NotTakenError(FederationError):
    """A result is there and is refused: to submit the run again would cost the sites for nothing.

    What was finished stays with the server.
    """


def fetch(line: Line, job: str, out: Path) -> Progress | None:
    """Copy a run's folder, where there is one; return what its `ended.json` says.

    Files of kinds that no run leaves stay behind, and so does the server's page, which a browser
    would run: the report is made here, of what the result holds.

    Raises:
        FederationError: The server refuses, or has no result of this job.
        NotTakenError: It has one that is damaged, or holds what no run leaves.
    """
    try:
        ended = _fetched(line, job, out)
        if (out / "result.json").is_file():
            write_report(out)
    except (ValueError, CheckpointError) as error:
        raise NotTakenError(f"the result of job {job} is not taken: {error}") from error
    return ended


def _fetched(line: Line, job: str, out: Path) -> Progress | None:
    with TemporaryDirectory(prefix="triskel-") as name:
        folder = line.session().fetch(job, Path(name))
        said = folder / ENDED
        if not said.is_file():
            return None
        ended = table_of(json_in(said))
        if ended.get("done") or any(path.name != ENDED for path in folder.iterdir()):
            try:
                copied(folder, out, most=RESULT_MOST, wanted=_taken)
            except OSError as error:
                raise NotTakenError(f"{out} cannot be written: {error.strerror}") from error
    return ended


def _taken(place: str) -> bool:
    return PurePosixPath(place).suffix in TAKEN


def free(out: Path, *, over: bool = False) -> None:
    """Refuse a folder for a result that holds something.

    Args:
        out: The folder.
        over: What a run that ended before its time left there may be written over.

    Raises:
        JobError: It does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if over and _cut_short(out / ENDED):
            return
        raise JobError(f"{out} is not empty; --out must name a new folder")


def _cut_short(said: Path) -> bool:
    try:
        return json_in(said)["done"] is False
    except (OSError, ValueError, KeyError, TypeError):
        return False


def follow(
    line: Line, asked: Request, entry: submissions.Entry, out: Path, watch: tuple[Say, Show]
) -> None:
    """Bring a run to its end; submit it again as often as it takes, where the line is patient.

    Args:
        line: The connection; a patient one supervises.
        asked: What was asked for.
        entry: Its first submission.
        out: Where the run's folder is copied to.
        watch: What takes sentences, and what takes the progress.

    Raises:
        FederationError: The job ended without a result, or with the engine's own sentence.
    """
    say, show = watch
    trail = Trail()
    while True:
        end, ended = _one(line, entry, trail, show, out)
        if end.label == ABORTED:
            raise FederationError(f"job {entry.job} was aborted")
        if ended is not None and ended.get("done"):
            return
        if ended is not None and not (ended.get("again") and line.patient):
            raise FederationError(
                f"the job ended: {ended.get('error', 'the engine gave no reason')}"
            )
        why = ended.get("error") if ended is not None else None
        what = f"job {entry.job} ended without a result ({why or end.detail or end.label})"
        if not line.patient:
            raise FederationError(f"{what}; `triskel federation logs` shows the server's log")
        trail.idle += 1
        if trail.idle > RESTARTS:
            raise FederationError(f"{what}, {RESTARTS} times without a new round; given up")
        entry = submit(line, asked, again=True)
        say(f"{what}; submitted again as {entry.job} to {', '.join(entry.sites)}")


def resume(
    line: Line, asked: Request, entry: submissions.Entry, out: Path, watch: tuple[Say, Show]
) -> None:
    """Bring a run that was submitted before to its end: follow it, or submit it again first.

    Args:
        line: As of `follow`, and so are the others.
        asked: What was asked for.
        entry: The run's last submission.
        out: Where the run's folder is copied to.
        watch: What takes sentences, and what takes the progress.

    Raises:
        FederationError: As of `follow`.
    """
    if not _goes_on(line, entry.job):
        ended: Progress = {}
        try:
            ended = _until_answered(line, lambda: fetch(line, entry.job, out)) or {}
        except NotTakenError:
            raise
        except FederationError:
            pass  # it may have left nothing
        if ended.get("done"):
            return
        why = ended.get("error")
        old, entry = entry.job, submit(line, asked, again=True)
        said = f"job {old} ended without a result" + (f" ({why})" if why else "")
        watch[0](f"{said}; submitted again as {entry.job} to {', '.join(entry.sites)}")
    follow(line, asked, entry, out, watch)


def _goes_on(line: Line, job: str) -> bool:
    """Return whether a submission runs or waits to; one that is said to but does not is lost."""
    end = time.monotonic() + LOST_S
    while True:
        try:
            label = str(line.session().meta(job).get("status", ""))
            if label.startswith(FINISHED):
                return False
            if label == "SUBMITTED" or job in line.session().running()[0]:
                return True
            if time.monotonic() > end:
                return False
        except UnreachableError:
            line.drop()
            if not line.patient:
                raise
        time.sleep(POLL_S)


def _one(
    line: Line, entry: submissions.Entry, trail: Trail, show: Show, out: Path
) -> tuple[End, Progress | None]:
    end = wait(line, entry.job, trail, show)
    if end.label == LOST:
        return end, None
    try:
        return end, _until_answered(line, lambda: fetch(line, entry.job, out))
    except (UnreachableError, NotTakenError):
        raise
    except FederationError:
        if not line.patient and not end.detail:
            raise
        return end, None
