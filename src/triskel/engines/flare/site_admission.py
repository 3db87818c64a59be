"""Whether a job runs at a site: who submitted it, whose code it needs, what it reads and sends.

In this order, each decision in the site's audit log before what it allows is done: nothing is
looked for on the machine before who and when are settled, nothing of another package is imported
before its mode is allowed, no row is read before the job is, and nothing leaves before its size is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from triskel.config.job import Job, ModeName
from triskel.core.registry import CODECS, MODES
from triskel.data.federate import federate_own
from triskel.engines.flare.protocol import whole
from triskel.engines.flare.site_outbox import Outbox
from triskel.engines.flare.site_payload import sizes_of
from triskel.engines.flare.submission import job_of, other_code, other_plugins, own_plugins
from triskel.errors import DataError, JobError
from triskel.experiment import data_record, lengths
from triskel.experiment.odd_rows import odd_rows
from triskel.experiment.resources import LocalResources
from triskel.plan.payload import round_bytes
from triskel.policy.audit import Audit
from triskel.policy.budget import Spent
from triskel.policy.decide import decide_who_and_when
from triskel.policy.draws import Draws, files_of
from triskel.policy.foreign import decide_foreign, decide_mode
from triskel.policy.limits import asked_of
from triskel.policy.model_hash import Seals
from triskel.policy.paths import datasets, decided, importable, origins_of, placed
from triskel.policy.read import load
from triskel.policy.refusal import Circumstances, Refusal
from triskel.policy.rules import Policy, unsaid
from triskel.training.mode_setting import ModeSetting, mode_of, unfit
from triskel.training.worker import Worker
from triskel.types import Event, Mode
from triskel.wire import show

LOGGER = logging.getLogger("triskel.site")


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A job that runs at a site, loaded.

    Attributes:
        job: The job, with what of other packages it names.
        policy: What the site allows.
        clients: How many take part.
        plugins: Whose code of other packages runs here, as the server is told.
        facts: What the server may know of what the site holds.
        resources: The site's models and rows.
        modes: What it plays, by name.
        outbox: The way out.
        spent: What all jobs together had of its datasets.
    """

    job: Job
    policy: Policy
    clients: int
    plugins: Mapping[str, str]
    facts: Mapping[str, int]
    resources: LocalResources
    modes: Mapping[str, Mode[Any, Any, Worker]]
    outbox: Outbox
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Decides on one job at one site.

    Attributes:
        name: What the federation calls the site.
        root: The folder of its node.
        home: Where it keeps what it has of this run.
        run: What the run is called here.
        spec: What was submitted: the run's name, the job as TOML, its modes.
        submitter: Who signed the job, as this side verified it; nobody where it did not hold.
        strange: Why it is not taken, where the signature does not hold: "is not signed", say.
        audit: The site's log.
        clock: What time it is.
        watch: Told about whatever somebody at the site should know.
    """

    name: str
    root: Path
    home: Path
    run: str
    spec: Mapping[str, Any]
    submitter: str | None
    strange: str
    audit: Audit
    clock: Callable[[], datetime]
    watch: Callable[[Event], None]

    @property
    def policy_file(self) -> Path:
        """Where the site's policy is."""
        return self.root / "local" / "policy.toml"

    def decide(self, about: Mapping[str, Any]) -> Admitted | str:
        """Load everything, or return why the job may not run here, as the server may know it.

        Args:
            about: What the server said of itself.

        Raises:
            TriskelError: It cannot run here, whatever the policy says.
        """
        if strange := other_code(about, "the server"):
            return strange
        policy, sha256 = load(self.policy_file)
        if line := unsaid(policy):
            LOGGER.info("%s: %s", self.policy_file, line)
        job, modes = job_of(self.spec, ())  # nothing of other packages is imported
        clients = whole(about, "clients", most=1_000_000)
        door = self._at_the_door(policy)
        # what a job asks of this site alone is asked under its name
        policy = policy.model_copy(update={"site": self.name})
        held = _Held(self, policy, sha256, clients)
        barred = [(one, door or held.barred(one)) for one in _each(job, modes)]
        if any(found for _, found in barred):
            return held.written("read", [(one, found) for one, found in barred if found])
        if strange := other_plugins(about, "the server", job, modes):
            return strange
        plugins = own_plugins(job, modes)  # before any of them can change what is told
        job, modes = job_of(self.spec, importable(policy))
        return self._loaded(held, job, modes, plugins)

    def _at_the_door(self, policy: Policy) -> list[Refusal]:
        """Return why nothing is looked for on this machine, or nothing."""
        if self.strange:
            only = "takes jobs that one person signed, once"
            return [Refusal(key="submitters", asks=self.strange, allows=only)]
        here = Circumstances(now=self.clock(), submitter=self.submitter)
        found, own = decide_who_and_when(policy, here), policy.site
        if not found and own and own != self.name:
            asks, is_ = f"came to site {show(self.name)}", f"is {show(own)} in its policy"
            found.append(Refusal(key="site", asks=asks, allows=is_))
        return found

    def _loaded(
        self, held: "_Held", job: Job, modes: Sequence[ModeName], plugins: Mapping[str, str]
    ) -> Admitted | str:
        """Read the site's rows for a job that may read them, and return it, if it may send."""
        files = files_of(held.policy, [n for n in (job.data.train, job.data.test) if n])
        spent = Spent(self.root / "triskel", files, held.policy.budget, self.run, self.clock)
        jobs = _each(job, modes)
        short = tuple(spent.short(asked_of(jobs)))
        if refused := held.written("read", [(one, held.against(one, short=short)) for one in jobs]):
            return refused
        spent.job()
        resources = self._read(held, job, modes, files)  # only now is anything of the site read
        if strange := self._other_data(resources, write=False):
            return strange
        for codec in job.wire.names:
            CODECS.spec(codec)  # what arrives may name no other
        settings = {mode: self._setting(resources, mode) for mode in modes}
        for line in lengths.warnings(resources.described(), job):
            LOGGER.warning("%s", line)
        share, sizes = resources.tokens.share(self.name), sizes_of(resources, self.name)
        rows = (len(share.train), len(share.test))
        sent = [
            (one, held.against(one, size=round_bytes(one, sizes, self.name), rows=rows))
            for one in jobs
        ]
        if refused := held.written("send", sent):
            return refused
        self._other_data(resources, write=True)
        tokens = resources.epoch_tokens().get(self.name, 0)
        facts = {"examples": rows[0], "tests": rows[1], "tokens": tokens}
        self.audit.told(facts)  # from here on they may be told
        resources.count()
        return Admitted(
            job=job,
            policy=held.policy,
            clients=held.clients,
            plugins=plugins,
            facts=facts,
            resources=resources,
            modes={mode: mode_of(setting) for mode, setting in settings.items()},
            outbox=Outbox(
                self.audit, job.wire, held.policy.limits.round_mb, spent, held.policy.leave
            ),
            spent=spent,
        )

    def _read(
        self, held: "_Held", job: Job, modes: Sequence[ModeName], files: list[str]
    ) -> LocalResources:
        """Read the site's rows, and what its model needs to be loaded.

        What is odd about the rows is said in the site's own log only.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        draws = Draws(self.root / "triskel", files)
        rows = federate_own(job, self.name, datasets(held.policy), draws.seed)
        for fault in odd_rows(job, rows, "test"):
            if fault.key != "data.public_count":  # the other sites have rows too
                LOGGER.warning("%s: %s", fault.key, fault.text)
        return LocalResources.of(
            placed(job, self.policy_file, self.name),
            rows,
            self.watch,
            modes=modes,
            choices=self.home / "choices.json",
            seals=held.seals,
        )

    def _other_data(self, resources: LocalResources, *, write: bool) -> str:
        """Return that the site's rows are not those it began the run with, or nothing.

        How they differ is said in its own log only. A run begins with what was admitted.
        """
        tokenizers = resources.tokenizers()
        try:
            data_record.hold(self.home, resources.job, resources.federation, write=write)
            data_record.hold_tokenizers(self.home, tokenizers, write=write)
        except DataError as error:
            LOGGER.error("%s", error)  # noqa: TRY400 - one sentence
            return (
                f"the data of site {self.name!r} are not those that it began this run with; its "
                "log says more"
            )
        return ""

    def _setting(self, resources: LocalResources, mode: ModeName) -> ModeSetting[Any]:
        """Return what a mode is built from.

        Raises:
            JobError: It cannot be played on the site's models and texts.
        """
        setting = resources.setting(mode, self.watch)
        if strange := unfit(setting):
            raise JobError(strange)
        return setting


@dataclass(frozen=True)
class _Held:
    """A site's policy, held against a job.

    Attributes:
        admission: Which job, at which site.
        policy: What the site allows.
        sha256: Of the policy's file.
        clients: How many take part.
        seals: Which weights the policy allows.
    """

    admission: Admission
    policy: Policy
    sha256: str
    clients: int
    seals: Seals = field(default_factory=Seals)

    def barred(self, job: Job) -> list[Refusal]:
        """Return why a mode or task of another package is not even imported."""
        here = Circumstances(now=self.admission.clock(), **origins_of(job))
        found = decide_foreign(self.policy, job, here)
        if job.mode not in MODES.ours:
            found += decide_mode(self.policy, job.mode, here.plugin)
        return found

    def against(
        self,
        job: Job,
        *,
        size: int = 0,
        rows: tuple[int | None, int | None] = (None, None),
        short: Sequence[str] = (),
    ) -> list[Refusal]:
        """Return why a job may not run that would send so many bytes in a round.

        Args:
            job: The job, in one of its modes.
            size: Bytes of a round.
            rows: How many rows it trains on and is tested on, once that is known.
            short: Keys of the budget that have no room for it.
        """
        asked = self.admission
        here = Circumstances(
            now=asked.clock(),
            submitter=asked.submitter,
            clients=self.clients,
            round_bytes=size,
            train_rows=rows[0],
            test_rows=rows[1],
            short=tuple(short),
        )
        return decided(self.policy, asked.policy_file, job, asked.name, here, self.seals)

    def written(
        self, to: Literal["read", "send"], decisions: Sequence[tuple[Job, list[Refusal]]]
    ) -> str:
        """Write decisions to the log; return what the server is told of refusals, or nothing."""
        for job, found in decisions:
            self.admission.audit.decided(
                job,
                found,
                to=to,
                policy_sha256=self.sha256,
                submitter=self.admission.submitter,
            )
        return "; ".join(dict.fromkeys(r.told for _, found in decisions for r in found))


def _each(job: Job, modes: Sequence[ModeName]) -> list[Job]:
    """Return a job in each of its modes."""
    return [job.model_copy(update={"mode": mode}) for mode in modes]
