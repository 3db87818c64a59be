"""A site's half of a federation: its policy, its data, and its part in every play.

The server calls; this side answers at once and works in one thread of its own. Before anything of
the site is read, the policy decides on the job, and the decision is in the site's audit log. Before
anything leaves, it is written there too and counted against the policy's limit of a round. The
policy, paths, texts and traces of errors stay here: the server is told what the job asked in vain,
or what went wrong, in one sentence, or only that the site's own log has it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch

from triskel.about import about_of
from triskel.config.job import Job, ModeName
from triskel.core.registry import CODECS, MODES
from triskel.data.federate import federate_own
from triskel.engines.flare.about import (
    job_of,
    other_code,
    other_plugins,
    own_code,
    own_plugins,
    owned,
    run_of,
)
from triskel.engines.flare.answered import Answered
from triskel.engines.flare.calls import HOLD_S, Peer, Reply, What, span, text, whole
from triskel.engines.flare.drive import Drive, Left, Part
from triskel.engines.flare.gate import Gate
from triskel.engines.flare.kept import Kept
from triskel.engines.flare.sizes import sizes_of
from triskel.errors import (
    JobError,
    LimitError,
    MessageError,
    MeterError,
    RoundError,
    TrainingError,
)
from triskel.evaluate import evaluate, score_message
from triskel.exchange import adapter_of
from triskel.export import save_adapter
from triskel.folder import safe
from triskel.message import show
from triskel.policy.audit import Audit
from triskel.policy.budget import Spent
from triskel.policy.chain import AuditError, now
from triskel.policy.decide import decide_who_and_when
from triskel.policy.draws import Draws, files_of
from triskel.policy.expected import round_bytes
from triskel.policy.foreign import decide_foreign, decide_mode
from triskel.policy.limits import MB, asked_of
from triskel.policy.place import datasets, decided, importable, origins_of, placed
from triskel.policy.read import load
from triskel.policy.refusal import Circumstances, Refusal
from triskel.policy.rounding import rounded
from triskel.policy.rules import Policy, unsaid
from triskel.policy.weights import Seals
from triskel.runner.resources import LocalResources
from triskel.setting import allowed, mode_of, unfit
from triskel.sheet import training_of
from triskel.types import Event, Message, Mode
from triskel.worker import Worker

LOGGER = logging.getLogger("triskel.site")
TELLABLE = (JobError, MessageError, TrainingError, MeterError, RoundError)
"""Errors whose sentence names nothing of the site's own; of others only the kind is told."""
LONGEST_TOLD = 2000
"""Characters of such a sentence."""
PARTS: tuple[What, ...] = ("work", "probe", "student")


class Site:
    """One organisation in one job.

    Args:
        name: What the federation calls it.
        root: The folder of its node: `local/policy.toml` is read, `triskel/` is written.
        spec: What was submitted: the run's name, the job as TOML, its modes.
        server: The way to the server.
        submitter: Who signed the job, as this side verified it; nobody where it did not hold.
        clock: What time it is.
        strange: Why it is not taken, where the signature does not hold: "is not signed", say.
    """

    def __init__(  # noqa: PLR0913 - what the engine below has
        self,
        name: str,
        root: Path,
        spec: Mapping[str, Any],
        server: Peer,
        submitter: str | None,
        clock: Callable[[], datetime] = now,
        *,
        strange: str = "",
    ) -> None:
        self.name, self._spec, self._server, self._submitter = name, spec, server, submitter
        self._policy_file = root / "local" / "policy.toml"
        self._root, self._run = root, owned(run_of(spec), submitter)
        self._home = root / "triskel" / "runs" / self._run
        self._audit = Audit(root / "triskel" / "audit.jsonl", run_of(spec), clock)
        self._clock, self._strange = clock, strange
        self._changed = threading.Condition()
        # a new thread would begin with as many as there are cores, and sum in another order
        threads = torch.get_num_threads()
        self._hand = ThreadPoolExecutor(
            1, "triskel-site", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._state, self._error = "new", ""
        self._part: Part | None = None
        self._begun: set[str] = set()
        self._saves: dict[str, Future[str]] = {}
        self._facts: dict[str, int] = {}
        self._plugins: dict[str, str] = {}
        self._gate = Gate(self._audit, "fp32", 0.0, None)  # which lets nothing out
        self._spent: Spent | None = None
        self._seals = Seals()
        self._policy, self._policy_sha256, self._clients = Policy(), "", 0
        self._job = Job()
        self._modes: dict[str, Mode[Any, Any, Worker]] = {}
        self._resources: LocalResources | None = None

    # --- what the server calls ----------------------------------------------------------------

    def hello(self, about: Mapping[str, Any]) -> Reply:
        """Say who this is and, once the policy allowed the job, what it holds.

        Args:
            about: `version` and `code` of the server's package, and `clients`, how many there are.
        """
        with self._changed:
            if self._state == "new":
                self._state = "preparing"
                self._hand.submit(self._prepare, dict(about))
            self._changed.wait_for(lambda: self._state != "preparing", HOLD_S)
            told = {"state": self._state, "error": self._error, **own_code()}
            return {**told, **self._facts, **self._plugins}

    def begin(self, order: Mapping[str, Any]) -> Reply:
        """Start a part, unless it is the one that is played; what was played before is dropped."""
        stage, what = text(order, "stage"), text(order, "what")
        round_ = whole(order, "round", most=self._job.rounds)
        # a test belongs to the round that left what is tested; round 0 leaves the start
        if stage not in self._modes or what not in PARTS or (what == "work" and not round_):
            raise MessageError(f"this site plays no {what!r} of {stage!r} in this job")
        size = whole(order, "size", most=self._most)
        if whole(order, "least") < self._policy.limits.cohort:
            raise LimitError(
                "the round may close with fewer clients than this site's policy asks for "
                "(limits.cohort)"
            )
        most = max(round_ - 1, 0) if what == "work" else round_
        counted = whole(order, "counted", most=most)
        part = Part(text(order, "play"), stage, round_, what, size, counted)
        with self._changed:
            if self._part is None or self._part.play != part.play:
                if part.play in self._begun:  # a call that was on its way for long
                    return {"state": "failed", "error": f"{part.play} is over here"}
                self._begun.add(part.play)
                if self._part is not None:
                    self._part.stop = True
                self._part = part
                self._hand.submit(self._play, part)
            return self._standing(self._part)

    def collect(self, play: str, hold_s: float) -> Reply:
        """Say how far a part is, once it is done or after a while."""
        with self._changed:
            part = self._part
            if part is None or part.play != play:
                return {"state": "unknown"}
            held = min(span({"hold_s": hold_s}, "hold_s"), HOLD_S)
            self._changed.wait_for(lambda: part.state != "working" or part.stop, held)
            return self._standing(part)

    def hand_over(self, play: str) -> Reply:
        """Return the update of a part that is done."""
        with self._changed:
            part = self._part
            if part is None or part.play != play or part.state != "done":
                return {"state": "unknown", "update": b""}
            return {"state": "done", "update": part.update}

    def finish(self, stage: str, counted: int) -> Reply:
        """Keep, at the site, the model of its own that a stage leaves it with, if it does.

        It is saved once, however often the call is made; while that lasts, the reply is `working`.
        """
        if stage not in self._modes:
            raise MessageError(f"this site plays no {stage!r} in this job")
        with self._changed:
            if stage not in self._saves:
                self._saves[stage] = self._hand.submit(self._finish, stage, counted)
            save = self._saves[stage]
        if not wait([save], HOLD_S).done:
            return {"state": "working"}
        error = save.result()
        return {"state": "failed", "error": error} if error else {"state": self._state}

    def close(self) -> None:
        """Stop whatever is played."""
        with self._changed:
            if self._part is not None:
                self._part.stop = True
            self._changed.notify_all()
        self._hand.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _standing(part: Part) -> Reply:
        if part.state == "failed":
            return {"state": "failed", "error": part.error}
        if part.state == "done":
            return {
                "state": "done", "size": len(part.update), "flops": part.flops,
                "peak_bytes": part.peak_bytes, "seconds": part.seconds, "tokens": part.tokens,
            }  # fmt: skip
        return {"state": "working", "tokens": part.tokens}

    # --- before the first round ---------------------------------------------------------------

    def _prepare(self, about: Mapping[str, Any]) -> None:
        """Decide, then read; nothing of the site is read before."""
        state, error = "failed", ""
        try:
            error = self._admitted(about)
            state = "refused" if error else "ready"
        except Exception as found:  # noqa: BLE001 - whatever it is stays here
            error = self._told(found)
        with self._changed:
            self._state, self._error = state, error
            self._changed.notify_all()

    def _admitted(self, about: Mapping[str, Any]) -> str:
        """Load everything, and return why the job may not run here, or nothing."""
        if strange := other_code(about, "the server"):
            return strange
        self._policy, self._policy_sha256 = load(self._policy_file)
        if line := unsaid(self._policy):
            LOGGER.info("%s: %s", self._policy_file, line)
        self._job, modes = job_of(self._spec, ())  # nothing of other packages is imported
        jobs = [self._job.model_copy(update={"mode": mode}) for mode in modes]
        self._clients = whole(about, "clients", most=1_000_000)
        door = self._at_the_door()
        # what a job asks of this site alone is asked under its name
        self._policy = self._policy.model_copy(update={"site": self.name})
        barred = [(job, door or self._barred(job)) for job in jobs]
        if any(found for _, found in barred):
            return self._written("read", [(job, found) for job, found in barred if found])
        if strange := other_plugins(about, "the server", self._job, modes):
            return strange
        self._plugins = own_plugins(self._job, modes)
        self._job, modes = job_of(self._spec, importable(self._policy))
        jobs = [self._job.model_copy(update={"mode": mode}) for mode in modes]
        self._spent = self._account()
        short = self._short(jobs)
        first = [(job, self._decided(job, size=0, short=short)) for job in jobs]
        if refused := self._written("read", first):
            return refused
        self._spent.job()
        resources = self._read(modes)  # only now is anything of the site read
        for codec in (self._job.wire.up, self._job.wire.down):
            CODECS.spec(codec)  # what arrives may name no other
        settings = {mode: resources.setting(mode, self._noted) for mode in modes}
        for setting in settings.values():
            if strange := unfit(setting):
                raise JobError(strange)
        held = sizes_of(resources, self.name)
        sizes = [round_bytes(job, held, self.name) for job in jobs]
        share = resources.tokens.share(self.name)
        rows = (len(share.train), len(share.test))
        second = [
            (job, self._decided(job, size=size, rows=rows))
            for job, size in zip(jobs, sizes, strict=True)
        ]
        if refused := self._written("send", second):
            return refused
        facts = {
            "examples": len(share.train),
            "tests": len(share.test),
            "tokens": resources.epoch_tokens().get(self.name, 0),
        }
        self._audit.told(facts)
        self._facts = facts  # from here on they may be told
        resources.count()
        self._gate = Gate(
            self._audit,
            self._job.wire.up,
            self._policy.limits.round_mb,
            self._spent,
            self._policy.leave,
        )
        self._modes = {mode: mode_of(setting) for mode, setting in settings.items()}
        return ""

    def _at_the_door(self) -> list[Refusal]:
        """Return why nothing is looked for on this machine, or nothing."""
        if self._strange:
            only = "takes jobs that one person signed, once"
            return [Refusal(key="submitters", asks=self._strange, allows=only)]
        here = Circumstances(now=self._clock(), submitter=self._submitter)
        found, own = decide_who_and_when(self._policy, here), self._policy.site
        if not found and own and own != self.name:
            asks, is_ = f"came to site {show(self.name)}", f"is {show(own)} in its policy"
            found.append(Refusal(key="site", asks=asks, allows=is_))
        return found

    def _barred(self, job: Job) -> list[Refusal]:
        """Return why a mode or task of another package is not even imported."""
        here = Circumstances(now=self._clock(), **origins_of(job))
        found = decide_foreign(self._policy, job, here)
        if job.mode not in MODES.ours:
            found += decide_mode(self._policy, job.mode, here.plugin)
        return found

    def _written(
        self, to: Literal["read", "send"], decisions: Sequence[tuple[Job, list[Refusal]]]
    ) -> str:
        """Write decisions to the log; return what the server is told of refusals, or nothing."""
        for job, found in decisions:
            self._audit.decided(
                job,
                found,
                to=to,
                policy_sha256=self._policy_sha256,
                submitter=self._submitter,
            )
        return "; ".join(dict.fromkeys(r.told for _, found in decisions for r in found))

    def _decided(
        self,
        job: Job,
        *,
        size: int,
        rows: tuple[int | None, int | None] = (None, None),
        short: Sequence[str] = (),
    ) -> list[Refusal]:
        """Hold the policy against a job that would send so many bytes in a round.

        Args:
            job: The job, in one of its modes.
            size: Bytes of a round.
            rows: How many rows it trains on and is tested on, once that is known.
            short: Keys of the budget that have no room for it.
        """
        here = Circumstances(
            now=self._clock(),
            submitter=self._submitter,
            clients=self._clients,
            round_bytes=size,
            train_rows=rows[0],
            test_rows=rows[1],
            short=tuple(short),
        )
        return decided(self._policy, self._policy_file, job, self.name, here, self._seals)

    @property
    def _files(self) -> list[str]:
        """Where the private rows are that the job names."""
        data = self._job.data
        return files_of(self._policy, [name for name in (data.train, data.test) if name])

    def _account(self) -> Spent:
        """Return what all jobs together had of the datasets that this one names."""
        home, budget = self._root / "triskel", self._policy.budget
        return Spent(home, self._files, budget, self._run, self._clock)

    def _short(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        """Return what the budget has no room for."""
        asked = asked_of(jobs)
        return tuple(self._spent.short(asked)) if self._spent is not None else ()

    def _read(self, modes: Sequence[ModeName]) -> LocalResources:
        """Read the site's data, and what its model needs to be loaded."""
        self._home.mkdir(parents=True, exist_ok=True)
        draws = Draws(self._root / "triskel", self._files)
        named = datasets(self._policy)
        self._resources = LocalResources.of(
            placed(self._job, self._policy_file, self.name),
            federate_own(self._job, self.name, named, draws.seed),
            self._noted,
            modes=modes,
            choices=self._home / "choices.json",
            seals=self._seals,
        )
        return self._resources

    @property
    def _held(self) -> LocalResources:
        if self._resources is None:
            raise RoundError(f"site {self.name!r} has not read its data")
        return self._resources

    # --- a part of a play ---------------------------------------------------------------------

    def _play(self, part: Part) -> None:
        try:
            self._played(part)
            part.state = "done"
        except Left as why:
            part.state, part.error = "failed", str(why)
        except Exception as error:  # noqa: BLE001 - whatever it is stays here
            part.error = self._told(error, part.stage, part.round)
            part.state = "failed"
        with self._changed:
            self._changed.notify_all()

    def _played(self, part: Part) -> None:
        resources, mode = self._held, self._modes[part.stage]
        if part.what != "work" and not self._job.tested(part.round):
            raise RoundError(f"this job tests no model of round {part.round} (evaluate.every)")
        drive = Drive(part, self.name, self._server, self._gate, self._most)
        if self._spent is not None:
            self._spent.take("rounds" if part.what == "work" else "scores")
        task = drive.task()
        Answered(self._home / part.stage).take(part.round, part.what, part.task_sha256)
        worker = resources.worker(self.name, lambda event: self._step(part, event))
        kept = Kept(self._home / part.stage, self.name)
        coming = part.round if part.what == "work" else part.round + 1
        worker.meter.returning = kept.took_part_before(coming)
        needed = MODES.spec(part.stage).traits.client_state
        mine = kept.left_by(part.counted, needed=needed)
        if part.what == "work":
            update, mine = drive.driven(mode.work(task, worker, mine))
            kept.keep(allowed(part.stage, mine), part.round, part.counted)
        elif part.what == "probe":
            update, _ = drive.driven(mode.probe(task, worker, mine))
        else:
            update = self._student(resources, task)
        told = rounded(update, self._policy.scores, resources.body(self.name).classes)
        part.update = drive.leaving(told)
        part.flops, part.peak_bytes = worker.meter.flops, worker.meter.peak_bytes

    def _student(self, resources: LocalResources, task: Message) -> Message:
        """Test the server's own model, where this site runs that model too."""
        body = resources.body()
        tensors = adapter_of(task, body.initial, body.layout, kind="evaluate")
        return score_message(evaluate(body, tensors, resources.tokens.tests(body)[self.name]))

    @property
    def _most(self) -> int:
        return int(self._job.wire.max_mb * MB)

    def _step(self, part: Part, event: Event) -> None:
        if event.get("event") == "step":
            part.tokens += int(event["tokens"])

    def _finish(self, stage: ModeName, counted: int) -> str:
        """Save what a stage leaves; return why that failed, as the server may know it."""
        try:
            self._keep_own(stage, counted)
        except Exception as error:  # noqa: BLE001 - whatever it is stays here
            return self._told(error, stage)
        return ""

    def _keep_own(self, stage: ModeName, counted: int) -> None:
        """Let go of a stage, once the site's own model of it is saved as an adapter folder."""
        resources, mode = self._held, self._modes[stage]
        resources.memory.release()
        own = mode.own(
            Kept(self._home / stage, self.name).left_by(
                counted, needed=MODES.spec(stage).traits.client_state
            )
        )
        if own is None:
            return
        place = self._home / "adapters" / f"{stage}-{safe(self.name)}"
        about = about_of(self._job, stage)
        training = training_of(
            self._job, stage, clients=self._clients, scores={}, own=True, about=about
        )
        task, classes = self._job.data.task, resources.federation.classes
        save_adapter(place, resources.body(self.name), own, classes, training, task=task)
        LOGGER.info("the site's own model of %s is in %s", stage, place)

    # --- words --------------------------------------------------------------------------------

    def _noted(self, event: Event) -> None:
        if "text" in event:
            LOGGER.info("%s", event["text"])

    def _told(self, error: Exception, stage: str = "", round_: int = 0) -> str:
        """Write an error to the site's own logs, and return what the server may know of it."""
        kind = type(error).__name__
        LOGGER.error("%s: %s", kind, error, exc_info=error)
        known = f"; the log of site {self.name!r} says more"
        told = str(error)[:LONGEST_TOLD] if isinstance(error, TELLABLE) else kind + known
        try:
            self._audit.failed(kind, told, stage=stage, round_=round_)
        except AuditError as full:
            LOGGER.error("%s: %s", type(full).__name__, full)  # noqa: TRY400 - one sentence
            return type(full).__name__ + known
        return told
