"""Whether a job may run at a site: a pure function of policy, job and circumstances.

No clock, no disk and no network in here; whoever asks says what time it is, who submits the job and
what model it names. What a limit needs to know and nobody can say is refused: a site that sets a
limit wants it held.

Here are who may submit and when, which model and data a job may name, and what may leave. Whose
code it may run is in `foreign`, how much it may ask for in `limits`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from triskel.config.job import Job
from triskel.core.registry import MODES, TASKS
from triskel.core.task_spec import names_of, words_in
from triskel.policy.foreign import (
    decide_aggregate,
    decide_codecs,
    decide_foreign,
    decide_mode,
    decide_task,
)
from triskel.policy.limits import decide_budget, decide_floors, decide_limits
from triskel.policy.refusal import Circumstances, Refusal, listed, show
from triskel.policy.rules import DAYS, Hours, Policy


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
        *decide_limits(policy, job, circumstances),
        *decide_floors(policy, job, circumstances),
        *decide_budget(policy, circumstances),
        *decide_codecs(policy, job, circumstances),
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
        *decide_aggregate(policy, job, circumstances),
        *_model(policy, job, circumstances),
        *_named(policy, job, named),
        *decide_limits(policy, job, circumstances),
        *decide_codecs(policy, job, circumstances),
    ]


def _zoned(here: Circumstances) -> None:
    if here.now.tzinfo is None:
        raise ValueError("circumstances.now must carry its time zone, got a naive time")


# --- One rule for each key --------------------------------------------------------------------


def _submitter(policy: Policy, here: Circumstances) -> Iterator[Refusal]:
    if here.submitter not in policy.submitters:
        who = "nobody known" if here.submitter is None else show(here.submitter)
        yield Refusal(
            key="submitters",
            asks=f"is submitted by {who}",
            allows=f"takes jobs from {listed(policy.submitters, 'nobody')}",
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


def _model(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    got = here.model_sha256
    if got is None or got not in policy.models.values():
        name = here.model or job.client(policy.site).model or job.model.path
        has = "no weights of this one" if got is None else f"this one with SHA-256 {show(got)}"
        yield Refusal(
            key="models",
            asks=f"runs model {show(name)}",
            allows=f"allows {listed(policy.models)}, each by its SHA-256, and has {has}",
        )


def _data(policy: Policy, job: Job) -> Iterator[Refusal]:
    if job.data.source == "hub":
        yield Refusal(
            key="datasets",
            asks=f"reads {show(job.data.hub)} from the hub",
            allows=f"gives named datasets only: {listed(policy.datasets)}",
        )
        return
    yield from _named(policy, job, wanted(job))


def _named(policy: Policy, job: Job, named: Mapping[str, set[str]]) -> Iterator[Refusal]:
    for name, columns in sorted(named.items()):
        dataset = policy.datasets.get(name)
        if dataset is None:
            yield Refusal(
                key="datasets",
                asks=f"reads dataset {show(name)}",
                allows=f"gives {listed(policy.datasets)}",
            )
            continue
        if name == job.data.public and not dataset.public:
            yield Refusal(
                key=f"datasets.{name}.public",
                asks=f"uses dataset {show(name)} as its public texts",
                allows="keeps its texts private",
            )
        for column in sorted(columns - set(dataset.columns)):
            yield Refusal(
                key=f"datasets.{name}.columns",
                asks=f"reads column {show(column)} of dataset {show(name)}",
                allows=f"gives {listed(dataset.columns)}",
            )


def wanted(job: Job) -> dict[str, set[str]]:
    """Return the datasets that a job names, and the columns it reads of each.

    Under a policy `data.train`, `data.test` and `data.public` name datasets of the site, and the
    demo's texts are the dataset `opinions`. Every column counts that the job names, read or not;
    labels of public texts are never read.
    """
    data = job.data
    texts = {*names_of(data.text), *names_of(data.prompt), data.response}
    texts |= {*words_in(data.template)} - {"prompt", "response"}
    more = {data.label, job.clients.by}
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
    if spec.carries(job).needs_public_data and not job.data.public and not policy.leave.texts:
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
