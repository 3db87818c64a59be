"""A site's half of a federation: its policy, its data, and its part in every play.

The server calls; this side answers at once and works in one thread of its own. Before anything of
the site is read, the policy decides on the job, and the decision is in the site's audit log. Before
anything leaves, it is written there too and counted against the policy's limit of a round. The
policy, paths, texts and traces of errors stay here: the server is told what the job asked in vain,
or what went wrong, in one sentence, or only that the site's own log has it.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from triskel.config.job import ModeName
from triskel.core.registry import MODES
from triskel.engines.flare.protocol import HOLD_S, Peer, Reply, What, span, text, whole
from triskel.engines.flare.site_admission import Admission, Admitted
from triskel.engines.flare.site_evaluations import Answered
from triskel.engines.flare.site_rounds import Drive, Left, Part
from triskel.engines.flare.site_store import SiteStore
from triskel.engines.flare.submission import own_code, owned, run_of
from triskel.errors import (
    JobError,
    LimitError,
    MessageError,
    MeterError,
    RoundError,
    TrainingError,
)
from triskel.experiment.folder import safe
from triskel.experiment.resources import LocalResources
from triskel.export.adapters import save_adapter
from triskel.export.manifest import training_of
from triskel.policy.audit import Audit
from triskel.policy.hash_chain import AuditError, now
from triskel.policy.limits import MB
from triskel.policy.rounding import rounded
from triskel.report.descriptions import about_of
from triskel.training.evaluate import evaluate, score_message
from triskel.training.mode_setting import allowed
from triskel.types import Event, Message
from triskel.wire.adapters import adapter_of

LOGGER = logging.getLogger("triskel.site")
TELLABLE = (JobError, MessageError, TrainingError, MeterError, RoundError)
"""Errors whose sentence names nothing of the site's own; of others only the kind is told."""
LONGEST_TOLD = 2000
"""Characters of such a sentence."""
PARTS: tuple[What, ...] = ("work", "probe", "student")


class SiteJob:
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
        self.name, self._server = name, server
        run = owned(run_of(spec), submitter)
        self._home = root / "triskel" / "runs" / run
        self._audit = Audit(root / "triskel" / "audit.jsonl", run_of(spec), clock)
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
        self._admission = Admission(
            name=name,
            root=root,
            home=self._home,
            run=run,
            spec=spec,
            submitter=submitter,
            strange=strange,
            audit=self._audit,
            clock=clock,
            watch=self._noted,
        )
        self._admitted: Admitted | None = None

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
            here = self._admitted
            return told if here is None else {**told, **here.facts, **here.plugins}

    def begin(self, order: Mapping[str, Any]) -> Reply:
        """Start a part, unless it is the one that is played; what was played before is dropped."""
        stage, what = text(order, "stage"), text(order, "what")
        here = self._here
        round_ = whole(order, "round", most=here.job.rounds)
        # a test belongs to the round that left what is tested; round 0 leaves the start
        if stage not in here.modes or what not in PARTS or (what == "work" and not round_):
            raise MessageError(f"this site plays no {what!r} of {stage!r} in this job")
        size = whole(order, "size", most=self._most)
        if whole(order, "least") < here.policy.limits.cohort:
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
        if stage not in self._here.modes:
            raise MessageError(f"this site plays no {stage!r} in this job")
        with self._changed:
            if self._part is not None and self._part.stage == stage:
                self._part.stop = True  # nothing of it counts any more
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
        state, error, admitted = "failed", "", None
        try:
            found = self._admission.decide(about)
            if isinstance(found, Admitted):
                admitted, state = found, "ready"
            else:
                state, error = "refused", found
        except Exception as failed:  # noqa: BLE001 - whatever it is stays here
            error = self._told(failed)
        with self._changed:
            self._admitted, self._state, self._error = admitted, state, error
            self._changed.notify_all()

    @property
    def _here(self) -> Admitted:
        if self._admitted is None:
            raise MessageError(f"site {self.name!r} has admitted no job")
        return self._admitted

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
        here, mode = self._here, self._here.modes[part.stage]
        if part.what != "work" and not here.job.tested(part.round):
            raise RoundError(f"this job tests no model of round {part.round} (evaluate.every)")
        drive = Drive(part, self.name, self._server, here.outbox, self._most)
        here.spent.take("rounds" if part.what == "work" else "scores")
        task = drive.task()
        Answered(self._home / part.stage).take(part.round, part.what, part.task_sha256)
        body = here.resources.party(part.stage, self.name)
        worker = here.resources.worker(self.name, lambda event: self._step(part, event), body)
        kept = SiteStore(self._home / part.stage, self.name)
        coming = part.round if part.what == "work" else part.round + 1
        worker.meter.returning = kept.took_part_before(coming)
        needed = MODES.spec(part.stage).carries(here.job).client_state
        mine = kept.left_by(part.counted, needed=needed)
        if part.what == "work":
            update, mine = drive.driven(mode.work(task, worker, mine))
            kept.keep(allowed(here.job, part.stage, mine), part.round, part.counted)
        elif part.what == "probe":
            update, _ = drive.driven(mode.probe(task, worker, mine))
        else:
            update = self._student(here.resources, task)
        told = rounded(update, here.policy.scores, here.resources.body(self.name).classes)
        part.update = drive.leaving(told)
        part.flops, part.peak_bytes = worker.meter.flops, worker.meter.peak_bytes

    def _student(self, resources: LocalResources, task: Message) -> Message:
        """Test the server's own model, where this site runs that model too."""
        body = resources.body()
        tensors = adapter_of(task, body.initial, body.layout, kind="evaluate")
        return score_message(evaluate(body, tensors, resources.tokens.tests(body)[self.name]))

    @property
    def _most(self) -> int:
        return int(self._here.job.wire.max_mb * MB)

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
        here, mode = self._here, self._here.modes[stage]
        here.resources.memory.release()
        own = mode.client_model(
            SiteStore(self._home / stage, self.name).left_by(
                counted, needed=MODES.spec(stage).carries(here.job).client_state
            )
        )
        if own is None:
            return
        place = self._home / "adapters" / f"{stage}-{safe(self.name)}"
        about = about_of(here.job, stage)
        training = training_of(
            here.job, stage, clients=here.clients, scores={}, own=True, about=about
        )
        task, classes = here.job.data.task, here.resources.federation.classes
        save_adapter(
            place, here.resources.party(stage, self.name), own, classes, training, task=task
        )
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
