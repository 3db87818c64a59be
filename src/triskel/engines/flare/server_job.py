"""The server's side of a job between organisations: from a submission to a run folder.

Rounds, checkpoints and the run folder are those of a comparison in one process; only the engine
differs, and who holds what is known as numbers the sites tell. The run folder lies in the node's
own storage, so that a job that was cut off goes on there when it is submitted again.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from triskel.config.job import Job, ModeName, unfederated
from triskel.config.sections import Judge
from triskel.core import events
from triskel.core.files import write_text
from triskel.core.registry import MODES
from triskel.core.untrusted import copied
from triskel.data.federate import federate_none
from triskel.engines.flare.protocol import Lost, Peer, patience, text
from triskel.engines.flare.server_resources import ServerResources
from triskel.engines.flare.server_roster import READY_S, Roster, who
from triskel.engines.flare.server_rounds import RemoteEngine, nobody, uncounted
from triskel.engines.flare.submission import job_of, owned, run_of
from triskel.errors import (
    JobError,
    MessageError,
    RoundError,
    TriskelError,
)
from triskel.experiment.client_store import Store
from triskel.experiment.compare import Request, Venue, read_run, resume, run
from triskel.experiment.models import models_of
from triskel.experiment.rounds import Scores, Stage
from triskel.experiment.starts import Starts
from triskel.experiment.tokens import Tokens
from triskel.policy.decide import decide_for_server, decide_who_and_when
from triskel.policy.hash_chain import now
from triskel.policy.limits import least_by, quorum_of
from triskel.policy.model_hash import Seals
from triskel.policy.paths import (
    adapter_folder,
    datasets,
    importable,
    origins_of,
    placed,
    weights_of,
)
from triskel.policy.read import load
from triskel.policy.refusal import Circumstances, Refusal
from triskel.policy.rules import Policy, unsaid
from triskel.training.mode_setting import mode_of
from triskel.training.worker import Worker
from triskel.types import ClientId, ClientState, Event, Watch

LOGGER = logging.getLogger("triskel.server")
AGAIN_S = 1.0
LINGER_S = 60.0
"""How long a job waits for another one of the same run to end."""
ENDED = "ended.json"
ROSTER = "-sites.json"
"""Who took part when the run began, and what each said it holds."""


class ServerJob:
    """One job at a server.

    Args:
        root: The folder of its node: `local/policy.toml` is read, `triskel/` is written.
        spec: What was submitted: the run's name, the job as TOML, its modes.
        peers: The way to each site of the job.
        submitter: Who signed it, as this side verified it; nobody where it did not hold.
        strange: Why it is not taken, where the signature does not hold: "is not signed", say.
        stopped: Says why the job must stop, or nothing.
        clock: What time it is.
        crossed: Returns the bytes that came from sites and went to them so far, if it is known.
    """

    def __init__(  # noqa: PLR0913 - what the engine below has
        self,
        root: Path,
        spec: Mapping[str, Any],
        peers: Mapping[ClientId, Peer],
        submitter: str | None,
        *,
        strange: str = "",
        stopped: Callable[[], str] = nobody,
        clock: Callable[[], datetime] = now,
        crossed: Callable[[], tuple[int, int] | None] = uncounted,
    ) -> None:
        self._policy_file = root / "local" / "policy.toml"
        self._spec, self._peers, self._submitter = spec, peers, submitter
        self._stopped, self._clock, self._crossed = stopped, clock, crossed
        self._root, self._strange = root, strange
        self._told: dict[str, Any] = {"text": "asking the sites"}
        self._lock = threading.Lock()
        self._seals = Seals()
        self.engine: RemoteEngine | None = None
        self._job, self._modes = Job(), tuple[ModeName, ...]()

    def play(self, out: Path) -> dict[str, Any]:
        """Play the job to its end, whatever that is; the run folder is copied to `out`.

        Returns:
            What `ended.json` says: `done`, and if not, `error`, whether it was `refused`, and
            whether to submit it `again` may help, since sites were lost.
        """
        ended: dict[str, Any] = {"done": False, "refused": False}
        folder: Path | None = None  # of a job that was admitted; nothing else is copied
        try:
            with _alone(self._folder):
                refusal = self._admitted()
                if refusal:
                    ended |= {"error": refusal, "refused": True}
                else:
                    folder = self._folder
                    self._compared(folder)
                    ended["done"] = True
        except TriskelError as error:
            ended |= {"error": str(error), "refused": isinstance(error, JobError)}
            ended["again"] = isinstance(error, RoundError) and not self._stopped()
            LOGGER.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 - one sentence
        except Exception as error:
            LOGGER.exception("the job stopped")
            ended["error"] = f"{type(error).__name__}; the server's log says more"
        with self._lock:
            self._told["text"] = ended.get("error", "done")
        try:
            if folder is not None and folder.is_dir():
                copied(folder, out, wanted=_told)
        except (OSError, ValueError) as error:
            LOGGER.exception("the result was not copied")
            why = getattr(error, "strerror", "") or "the server's log says more"
            ended = {"done": False, "refused": False, "error": f"the result was not copied: {why}"}
        write_text(out / ENDED, json.dumps(ended, indent=1))
        return ended

    def status(self) -> dict[str, Any]:
        """Return how far the job is, as JSON values."""
        with self._lock:
            found = dict(self._told)
        inbox = self.engine.inbox if self.engine is not None else None
        clients = self.engine.standing() if self.engine is not None else {}
        if inbox is not None and clients:
            found |= {"play": inbox.play.rpartition("/")[0], "clients": clients}
            found["waiting_for"] = [c for c, one in clients.items() if one["state"] == "working"]
        return found

    @cached_property
    def _roster(self) -> Roster:
        place = self._folder.with_name(self._folder.name + ROSTER)
        return Roster(place=place, peers=self._peers, stopped=self._stopped)

    @property
    def _folder(self) -> Path:
        return self._root / "triskel" / "runs" / owned(run_of(self._spec), self._submitter)

    # --- before the first round ---------------------------------------------------------------

    def _admitted(self) -> str:
        """Ask the policy of the server, then every site; return why the job may not run."""
        if self._strange:
            return f"the server refuses: submitters: the job {self._strange}"
        policy, _ = load(self._policy_file)
        if line := unsaid(policy):
            LOGGER.info("%s: %s", self._policy_file, line)
        job, modes = job_of(self._spec, ())  # nothing of other packages is imported
        self._roster.begin()
        here = Circumstances(now=self._clock(), submitter=self._submitter)
        against = decide_who_and_when(policy, here) or [
            refusal
            for mode in modes
            for refusal in self._decided(policy, job.model_copy(update={"mode": mode}))
        ]
        for refusal in dict.fromkeys(against):
            LOGGER.warning("%s", refusal)  # in full, with what the policy allows
        if against:
            return "the server refuses: " + "; ".join(dict.fromkeys(r.told for r in against))
        job, modes = job_of(self._spec, importable(policy))
        unfit = next(filter(None, (unfederated(job, mode) for mode in modes)), None)
        if unfit or not self._peers:
            return f"the server refuses: {unfit}" if unfit else "no site takes part"
        self._policy, self._job, self._modes = policy, job, modes
        met = self._roster.meet(job, modes)
        if refused := who(met, "refuses") or self._never_closes(job):
            return refused
        self._away = {c: one.why for c, one in met.items() if one.present is None}
        if len(met) - len(self._away) < quorum_of(job, len(met)):
            if failed := who(met, "failed"):
                return failed  # which another try does not mend
            raise RoundError(
                f"{who(met, 'away')}; the others are fewer than {least_by(job)} asks for: see "
                "to it, then `triskel federation resume` goes on"
            )
        self._roster.keep()
        return ""

    def _never_closes(self, job: Job) -> str:
        """Return that more updates are asked for than there can be, or nothing."""
        able = sum(one is None or one.examples > 0 for one in self._roster.present.values())
        if job.federation.buffer <= able:
            return ""
        return (
            f"the server refuses: federation.buffer is {job.federation.buffer}, and {able} sites "
            "hold training examples, so no round would close"
        )

    def _decided(self, policy: Policy, job: Job) -> Sequence[Refusal]:
        model = weights_of(job.model.path, self._policy_file, self._seals)
        here = Circumstances(
            now=self._clock(),
            submitter=self._submitter,
            model_sha256=model.sha256 if model else None,
            blocks=model.blocks if model else None,
            clients=len(self._roster.present),
            round_bytes=0,
            **origins_of(job),
        )
        return decide_for_server(policy, job, here)

    # --- the run ------------------------------------------------------------------------------

    def _compared(self, folder: Path) -> None:
        engine = RemoteEngine(
            job=self._job,
            peers=self._peers,
            stopped=self._stopped,
            welcome=self._roster.welcome,
            absent=dict(self._away),
            crossed=self._crossed,
            examples=self._roster.examples,
        )
        self.engine = engine
        find = partial(adapter_folder, policy=self._policy_file)
        venue = Venue(prepare=self._prepared, stage=self._stage, find=find)
        request = Request(modes=self._modes, baselines=(), strict=True)
        if (folder / "request.json").exists():
            if read_run(folder) != (self._job, request):
                raise JobError(
                    f"run {folder.name} began with another job or other modes; submit this one as "
                    "a run of its own"
                )
            resume(folder, lambda _job: engine, self._note, venue)
        else:
            run(self._job, request, folder, engine, self._note, venue)

    def _prepared(
        self,
        job: Job,
        watch: Watch,
        choices: Path,
        *,
        modes: Sequence[ModeName],
        judge: Judge = "test",
        starts: Starts | None = None,
    ) -> ServerResources:
        if judge != "test":
            raise JobError("sites score models on their test rows; ask for no other")
        federation = federate_none(job, self._roster.present, datasets(self._policy))
        job = placed(job, self._policy_file)
        models = models_of(
            job, federation, watch, modes=modes, choices=choices, seals=self._seals, starts=starts
        )
        return ServerResources(
            job=job,
            federation=federation,
            models=models,
            tokens=Tokens(job=job, federation=federation, models=models),
            present=self._roster.present,
        )

    def _stage(self, name: ModeName, resources: ServerResources, watch: Watch) -> Stage[Any, Any]:
        """Return a mode whose clients are the sites."""
        setting, engine = resources.setting(name, events.stamped(watch, stage=name)), self.engine
        mode = mode_of(setting)
        if engine is None:
            raise RoundError("a stage needs the engine that plays it")
        engine.stage = name

        def scores(state: Any, client_states: Mapping[ClientId, ClientState]) -> Scores:  # noqa: ANN401
            engine.counted = _counted(client_states)  # what they keep is at the sites
            personal = MODES.spec(name).carries(resources.job).personal_models
            student = mode.server_model(state) if personal else None
            who, body = resources.testers(), resources.body()
            return engine.scores(mode, state, who, body, student=student)

        def closing(state: Any, client_states: Mapping[ClientId, ClientState]) -> None:  # noqa: ANN401
            del state
            self._finish(name, _counted(client_states))

        return Stage(
            name=name,
            mode=mode,
            clients=resources.active(),
            worker=_nobody,
            evaluate=scores,
            body=resources.body(),
            job=resources.job,
            closing=closing,
            server=setting.meter,
            sizes=resources.sizes,
        )

    def _finish(self, stage: str, counted: Mapping[ClientId, int]) -> None:
        """Let every site keep the model of its own that the stage leaves it with."""
        for client in sorted(self._peers.keys() & self._roster.present.keys()):
            if why := self._unfinished(client, stage, counted.get(client, 0)):
                self._note(events.warning(f"{client} at the end of {stage}: {why}"))

    def _unfinished(self, client: ClientId, stage: str, counted: int) -> str:
        """Tell a site that a stage is over; return why it could not keep its model, or nothing."""
        start = time.monotonic()
        end = start + self._job.federation.patience_s
        while not self._stopped():
            try:
                told = {"stage": stage, "counted": counted}
                reply = self._peers[client].call("finish", patience(), told)
                if text(reply, "state") != "working":
                    return text(reply, "error") if text(reply, "state") == "failed" else ""
                if time.monotonic() > start + READY_S:
                    return f"it was not done after {READY_S:g} s"
                end = time.monotonic() + self._job.federation.patience_s  # it is there, and saves
            except MessageError as error:
                return f"its reply cannot be read: {error}"
            except Lost:
                gone = self.engine is None or client in self.engine.absent
                if gone or time.monotonic() > end:
                    return "it was not there"
                time.sleep(AGAIN_S)
        return "the job was stopped"

    def _note(self, event: Event) -> None:
        """Keep what the status shows, and write the log."""
        name = events.kind_of(event)
        with self._lock:
            told = self._told
            if name == "round_start":
                told |= {"stage": event["stage"], "round": event["round"]}
                told |= {"rounds": self._job.rounds, "text": ""}  # what was said before is past
            if name == "message":
                way = f"{event['direction']}_bytes"
                told[way] = told.get(way, 0) + event["bytes"]
            if name == "round_end":
                told["metrics"] = {k: event[k] for k in ("accuracy", "loss") if k in event}
            if "text" in event:
                told["text"] = event["text"]
        if name not in events.QUIET:
            LOGGER.info("%s", json.dumps(dict(event), default=str))


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep every other job of this server from playing the same run.

    Raises:
        JobError: One does, and did not end: two supervisors, or a run resumed while it runs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=LINGER_S)  # what holds it may be the process of a killed server
    except Timeout:
        raise JobError(
            f"run {folder.name} is played by another job of this server; wait for its end"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _counted(client_states: Mapping[ClientId, ClientState]) -> dict[ClientId, int]:
    """Return which round of each site counted last."""
    return dict(client_states.counted) if isinstance(client_states, Store) else {}


def _nobody(client: ClientId, watch: Watch) -> Worker:
    del watch
    raise RoundError(f"client {client!r} works at its site, not here")


def _told(place: str) -> bool:
    """Leave out of the result what only a server that goes on needs."""
    return not place.endswith(".safetensors") or not place.startswith(("stages/", "start/"))
