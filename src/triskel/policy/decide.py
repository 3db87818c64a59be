"""Whether a job may run at a site: a pure function of policy, job and circumstances.

No clock, no disk and no network in here; whoever asks says what time it is, who submits the job and
what model it names. What a limit needs to know and nobody can say is refused: a site that sets a
limit wants it held.

A refusal has two sentences: one for the site's own log and screen, with what the policy allows, and
one for who asked, without it, since a policy never leaves its site.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from triskel.core.registry import AGGREGATES, CODECS, MODES, TASKS, Origin
from triskel.job import Job
from triskel.policy.budget import Amounts
from triskel.policy.expected import models_tested
from triskel.policy.rules import DAYS, Hours, Policy

MB = 1_000_000
FEW = 8
"""Names that a refusal lists before it says how many more there are."""
LONGEST = 100
"""Characters of somebody else's word that a refusal repeats."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a decision needs beside policy and job; None is "not known".

    Attributes:
        now: The time, with its zone.
        submitter: Who submits the job, as whoever authenticated them says.
        model: What the job calls the model, where it is not the one that the site trains.
        model_sha256: SHA-256 of all that is loaded of the model at this site.
        blocks: How many blocks that model has.
        clients: How many clients the federation has.
        round_bytes: What this site would send in a round, as `expected.round_bytes` says.
        train_rows: How many rows the job would train on here, after caps and after tokenising.
        test_rows: How many it would score models on; none tells nothing of any.
        plugin: Whose code the job's mode is here, where it is of another package and is here.
        task: The same of the job's task.
        aggregate: The same of the aggregate of the job's mode.
        codecs: The same of codecs of other packages, by name.
        short: Keys of the budget that have no room for the job, as `budget.Spent.short` says.
    """

    now: datetime
    submitter: str | None = None
    model: str | None = None
    model_sha256: str | None = None
    blocks: int | None = None
    clients: int | None = None
    round_bytes: int | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    plugin: Origin | None = None
    task: Origin | None = None
    aggregate: Origin | None = None
    codecs: Mapping[str, Origin | None] = field(default_factory=dict[str, "Origin | None"])
    short: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason why a job may not run.

    Attributes:
        key: The key of the policy that refuses.
        asks: What the job asks, or what is not known of it; nothing of the policy, nor of what else
            is on this machine.
        allows: What the policy allows, and what was found here.
    """

    key: str
    asks: str
    allows: str

    def __str__(self) -> str:
        """Return it as one sentence for the site itself."""
        return f"{self.key}: the job {self.asks}; this site {self.allows}"

    @property
    def told(self) -> str:
        """The sentence that may leave the site."""
        return f"{self.key}: the job {self.asks}; this site does not allow it"


def decide_who_and_when(policy: Policy, circumstances: Circumstances) -> list[Refusal]:
    """Return why nothing else of a job is looked at: who submits it, or else the time; or nothing.

    Raises:
        ValueError: The time has no zone.
    """
    _zoned(circumstances)
    return list(_submitter(policy, circumstances)) or list(_hours(policy, circumstances))


def decide(policy: Policy, job: Job, circumstances: Circumstances) -> list[Refusal]:
    """Return every reason why the job may not run at the site; none if it may.

    Raises:
        ValueError: The time has no zone.
    """
    _zoned(circumstances)
    first = [*_submitter(policy, circumstances), *_hours(policy, circumstances)]
    barred = decide_mode(policy, job.mode, circumstances.plugin)
    foreign = decide_foreign(policy, job, circumstances)
    if foreign or (barred and job.mode not in MODES.ours):  # whose code is not to be imported
        return [*first, *barred, *foreign]
    return [
        *first,
        *barred,
        *_model(policy, job, circumstances),
        *_data(policy, job),
        *_leaving(policy, job),
        *_of_mode(policy, job, circumstances),
        *_limits(policy, job, circumstances),
        *_floors(policy, job, circumstances),
        *_budget(policy, circumstances),
        *_codecs(policy, job, circumstances),
        *_privacy(policy),
    ]


def decide_for_server(policy: Policy, job: Job, circumstances: Circumstances) -> list[Refusal]:
    """Return every reason why the job may not run at a server, which has no texts but public ones.

    Raises:
        ValueError: The time has no zone.
    """
    _zoned(circumstances)
    named = {job.data.public: wanted(job)[job.data.public]} if job.data.public else {}
    return [
        *_submitter(policy, circumstances),
        *_hours(policy, circumstances),
        *decide_mode(policy, job.mode, circumstances.plugin),
        *decide_task(policy, job.data.task, circumstances.task),
        *_aggregate(policy, job, circumstances),
        *_model(policy, job, circumstances),
        *_named(policy, job, named),
        *_limits(policy, job, circumstances),
        *_codecs(policy, job, circumstances),
    ]


def _zoned(here: Circumstances) -> None:
    if here.now.tzinfo is None:
        raise ValueError("circumstances.now must carry its time zone, got a naive time")


# --- One rule for each key --------------------------------------------------------------------


def _submitter(policy: Policy, here: Circumstances) -> Iterator[Refusal]:
    if here.submitter not in policy.submitters:
        who = "nobody known" if here.submitter is None else _show(here.submitter)
        yield Refusal(
            key="submitters",
            asks=f"is submitted by {who}",
            allows=f"takes jobs from {_names(policy.submitters, 'nobody')}",
        )


def _hours(policy: Policy, here: Circumstances) -> Iterator[Refusal]:
    hours = policy.hours
    if hours is not None and not _open(hours, here.now):
        local = here.now.astimezone(hours.zone)
        yield Refusal(
            key="hours",
            asks=f"would start on {_moment(here.now.astimezone(UTC))} (UTC)",
            allows=f"runs jobs from {hours.opens:%H:%M} to {hours.closes:%H:%M} on "
            f"{', '.join(day for day in DAYS if day in hours.days)}, and in {hours.zone.key} it "
            f"would be {_moment(local)}",
        )


def _moment(when: datetime) -> str:
    return f"{DAYS[when.weekday()]} at {when:%H:%M}"


def _open(hours: Hours, now: datetime) -> bool:
    """Return whether a window is open; one over midnight belongs to the day it opens on."""
    local = now.astimezone(hours.zone)
    clock, day = local.time(), local
    if hours.opens < hours.closes:
        inside = hours.opens <= clock < hours.closes
    else:
        inside = clock >= hours.opens or clock < hours.closes
        if clock < hours.closes:
            day = local - timedelta(days=1)
    return inside and DAYS[day.weekday()] in hours.days


def decide_mode(policy: Policy, mode: str, plugin: Origin | None) -> list[Refusal]:
    """Return why a mode may not be played; nothing of it is imported.

    Args:
        policy: The policy.
        mode: Its name.
        plugin: Whose code it is here, where it is of another package and there.
    """
    if mode not in policy.modes:
        asks = f"runs in mode {_show(mode)}"
        return [Refusal(key="modes", asks=asks, allows=f"allows {_names(policy.modes)}")]
    return (
        [] if mode in MODES.ours else _pinned(policy, mode, plugin, f"runs in mode {_show(mode)}")
    )


def decide_task(policy: Policy, task: str, plugin: Origin | None) -> list[Refusal]:
    """Return why a task of another package may not be read; nothing of it is imported.

    Args:
        policy: The policy; whose plug-in it pins, that it allows.
        task: Its name.
        plugin: Whose code it is here, where it is of another package and there.
    """
    return [] if task in TASKS.ours else _pinned(policy, task, plugin, f"learns task {_show(task)}")


def decide_foreign(policy: Policy, job: Job, here: Circumstances) -> list[Refusal]:
    """Return why a job's task or codecs are not even imported; of ours there is no reason."""
    strange = {job.wire.up, job.wire.down} - set(CODECS.ours)
    found = decide_task(policy, job.data.task, here.task)
    return [*found, *_codecs(policy, job, here)] if strange else found


def _aggregate(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse to add up by a package that is not pinned; it is the server alone that adds up."""
    named = aggregate_in(job)
    if named is not None and named not in AGGREGATES.ours:
        yield from _pinned(policy, named, here.aggregate, f"adds up by {_show(named)}")


def aggregate_in(job: Job) -> str | None:
    """Return the aggregate that a job names for its mode, where it names one."""
    if job.mode not in MODES.loaded():
        return None
    spec = MODES.spec(job.mode)
    found = getattr(spec.of(job), spec.aggregate_key) if spec.aggregate_key else None
    return found if isinstance(found, str) else None


def _pinned(policy: Policy, name: str, plugin: Origin | None, asks: str) -> list[Refusal]:
    pin = policy.plugins.get(name)
    other = "pins no package of it" if pin is None else pin.against(plugin)
    if not other:
        return []
    asks += ", which is of another package than Triskel"
    return [Refusal(key=f"plugins.{name}", asks=asks, allows=other)]


def _model(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    got = here.model_sha256
    if got is None or got not in policy.models.values():
        name = here.model or job.client(policy.site).model or job.model.path
        has = "no weights of this one" if got is None else f"this one with SHA-256 {_show(got)}"
        yield Refusal(
            key="models",
            asks=f"runs model {_show(name)}",
            allows=f"allows {_names(policy.models)}, each by its SHA-256, and has {has}",
        )


def _data(policy: Policy, job: Job) -> Iterator[Refusal]:
    if job.data.source == "hub":
        yield Refusal(
            key="datasets",
            asks=f"reads {_show(job.data.hub)} from the hub",
            allows=f"gives named datasets only: {_names(policy.datasets)}",
        )
        return
    yield from _named(policy, job, wanted(job))


def _named(policy: Policy, job: Job, named: Mapping[str, set[str]]) -> Iterator[Refusal]:
    for name, columns in sorted(named.items()):
        dataset = policy.datasets.get(name)
        if dataset is None:
            yield Refusal(
                key="datasets",
                asks=f"reads dataset {_show(name)}",
                allows=f"gives {_names(policy.datasets)}",
            )
            continue
        if name == job.data.public and not dataset.public:
            yield Refusal(
                key=f"datasets.{name}.public",
                asks=f"uses dataset {_show(name)} as its public texts",
                allows="keeps its texts private",
            )
        for column in sorted(columns - set(dataset.columns)):
            yield Refusal(
                key=f"datasets.{name}.columns",
                asks=f"reads column {_show(column)} of dataset {_show(name)}",
                allows=f"gives {_names(dataset.columns)}",
            )


def wanted(job: Job) -> dict[str, set[str]]:
    """Return the datasets that a job names, and the columns it reads of each.

    Under a policy `data.train`, `data.test` and `data.public` name datasets of the site, and the
    demo's texts are the dataset `opinions`. Every column counts that the job names, read or not;
    labels of public texts are never read.
    """
    data = job.data
    texts, more = {data.text, data.prompt, data.response}, {data.label, job.clients.by}
    named = {data.train, data.test}
    if data.source == "opinions":
        texts, more = texts | {"text"}, more | {"label", "silo"}
        named |= {"opinions"}
    found = {name: (texts | more) - {""} for name in named if name}
    if data.public:
        found[data.public] = found.get(data.public, set()) | (texts - {""})
    return found


def _leaving(policy: Policy, job: Job) -> Iterator[Refusal]:
    keeps, spec = "keeps them", MODES.spec(job.mode)
    options = spec.of(job, policy.site or None)
    for key, asks in spec.disclosure(options, TASKS.spec(job.data.task).head).leaves.items():
        if not getattr(policy.leave, key):
            yield Refusal(key=f"leave.{key}", asks=asks, allows=keeps)
    if spec.traits.needs_public_data and not job.data.public and not policy.leave.texts:
        yield Refusal(
            key="leave.texts",
            asks=f"makes training texts public (mode {job.mode!r} without data.public)",
            allows=keeps,
        )


def _of_mode(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse what the policy's section of the job's mode does not allow."""
    spec = MODES.spec(job.mode)
    if spec.limits is None:
        return
    options = spec.of(job, policy.site or None)
    for key, asks, allows in spec.refusals(policy.of(spec), options, here.blocks):
        yield Refusal(key=f"{spec.name}.{key}", asks=asks, allows=allows)


def _limits(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    limits, size = policy.limits, here.round_bytes
    if size is None or size > round(limits.round_mb * MB):
        yield Refusal(
            key="limits.round_mb",
            asks="sends a number of bytes in a round that is not known here"
            if size is None
            else f"sends {size:,} bytes in a round",
            allows=f"allows {limits.round_mb * MB:,.0f}",
        )
    if job.wire.max_mb > limits.message_mb:
        yield Refusal(
            key="limits.message_mb",
            asks=f"allows messages of {job.wire.max_mb * MB:,.0f} bytes (wire.max_mb)",
            allows=f"allows {limits.message_mb * MB:,.0f}",
        )
    together = None if here.clients is None else cohort_of(job, here.clients)
    least = None if together is None else quorum_of(job, together)
    if limits.cohort > 1 and (least is None or least < limits.cohort):
        asks = "has a number of clients that is not known here"
        if least is not None:
            asks = f"has {together} clients in a round"
            if least != together:
                asks += f", which may close with {least} (federation.quorum)"
        yield Refusal(
            key="limits.cohort", asks=asks, allows=f"takes part among at least {limits.cohort}"
        )


def _floors(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse what rests on few rows: a cap before anything is read, and then what is there."""
    floors, caps = policy.floors, job.clients
    for key, least, cap, rows, what in (
        ("train", floors.train, caps.examples, here.train_rows, "trains on"),
        ("test", floors.test, caps.test_examples, here.test_rows, "scores models on"),
    ):
        asks = ""
        if cap and cap < least:
            asks = f"{what} at most {cap} rows of a client"
        elif rows is not None and 0 < rows < least:
            asks = f"{what} fewer rows than it may"
        if asks:
            has = "" if rows is None else f", and here it would be {rows}"
            yield Refusal(key=f"floors.{key}", asks=asks, allows=f"asks for {least}{has}")


def _budget(policy: Policy, here: Circumstances) -> Iterator[Refusal]:
    for key in here.short:
        yield Refusal(
            key=f"budget.{key}",
            asks="asks for more of a dataset than is left for all jobs together",
            allows=f"gives {getattr(policy.budget, key):g}",
        )


def asked_of(jobs: Sequence[Job]) -> Amounts:
    """Return what a job, given once for each of its modes, asks of a dataset; bytes left out."""
    scores = sum(models_tested(job) * job.tests for job in jobs)
    return {"jobs": 1, "rounds": sum(job.rounds for job in jobs), "scores": scores}


def cohort_of(job: Job, clients: int) -> int:
    """Return how many of so many clients take part in a round, as `round.cohort` draws them."""
    return max(1, math.ceil(job.clients.cohort * clients - 1e-9)) if clients else 0


def quorum_of(job: Job, clients: int) -> int:
    """Return how many of so many clients must finish a round in a federation."""
    return max(1, math.ceil(job.federation.quorum * clients - 1e-9))


def _codecs(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    for key, codec in (("wire.up", job.wire.up), ("wire.down", job.wire.down)):
        if codec not in policy.codecs:
            yield Refusal(
                key="codecs",
                asks=f"travels as {_show(codec)} ({key})",
                allows=f"allows {_names(policy.codecs)}",
            )
        elif codec not in CODECS.ours:
            asks = f"travels as {_show(codec)} ({key})"
            yield from _pinned(policy, codec, here.codecs.get(codec), asks)


def _privacy(policy: Policy) -> Iterator[Refusal]:
    """Refuse what no job of this version has: train.max_grad_norm bounds no client's update."""
    privacy = policy.privacy
    if privacy.clip is not None:
        yield Refusal(
            key="privacy.clip",
            asks="clips nothing that leaves, as this version of Triskel cannot",
            allows=f"requires clipping to at most {privacy.clip:g}",
        )
    if privacy.noise is not None:
        yield Refusal(
            key="privacy.noise",
            asks="adds no noise to what leaves, as this version of Triskel cannot",
            allows=f"requires a noise multiplier of at least {privacy.noise:g}",
        )
    if privacy.secure_aggregation:
        yield Refusal(
            key="privacy.secure_aggregation",
            asks="shows the server each update, as this version of Triskel always does",
            allows="requires that it sees sums only",
        )


# --- Words ------------------------------------------------------------------------------------


def _show(value: str) -> str:
    """Return a word that somebody else chose: quoted, escaped, and of bounded length."""
    text = ascii(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _names(names: Iterable[str], nothing: str = "none") -> str:
    """Return names in order of the alphabet; a long list is cut."""
    found = sorted(set(names))
    more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
    return ", ".join(found[:FEW]) + more if found else nothing
