"""What contradicts itself in a job, as sentences: sections against each other, and modes' own."""

from collections.abc import Iterator
from typing import Any

from triskel.config.buffered import problems as buffer_problems
from triskel.config.names import kept, known_choice
from triskel.config.sections import (
    BESIDE_FEW_BITS,
    DROPPING,
    LOWRANK,
    VIRTUAL,
    Adapter,
    Data,
)
from triskel.config.wire import WAYS
from triskel.config.wire import problems as wire_problems
from triskel.core.choice import Chosen, name_of
from triskel.core.mode_spec import ModeSpec
from triskel.core.registry import AGGREGATES, TASKS

SIDE = "side"
"""The section of the side factors that an aggregate made, in every mode that has one."""


def contradictions(job: Any, info: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield what contradicts itself, with the keys.

    Args:
        job: The job.
        info: What it is validated with.
    """
    yield from _about_data(job.data, may_import=not kept(TASKS, job.data.task, info))
    yield from _about_clients(job)
    yield from _about_adapter(job.adapter)
    yield from _about_virtual(job)
    yield from _about_quantised(job)
    yield from _about_ends(job)
    yield from wire_problems(job.wire, info)
    yield from buffer_problems(job.federation)
    yield from _about_sections(job)
    for spec in job.specs:
        named = getattr(spec.of(job), spec.aggregate_key) if spec.aggregate_key else None
        if named is not None:
            yield from _about_aggregate(job, f"{spec.name}.{spec.aggregate_key}", named, info)
        for problem in spec.problems(spec.of(job)):
            yield f"{spec.name}.{problem}"
        for client, own in job.clients.each.items():
            if given := own.of(spec):
                short = (
                    given.keys() & spec.short_client_keys & (own.__pydantic_extra__ or {}).keys()
                )
                place = f"clients.each.{client}." + ("" if short else f"{spec.name}.")
                yield from (f"{place}{problem}" for problem in spec.problems(spec.of(job, client)))


def _about_aggregate(job: Any, place: str, chosen: Chosen, info: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield what is wrong with how updates are to become one."""
    yield from known_choice(AGGREGATES, chosen, info, place)
    name = name_of(chosen)
    if kept(AGGREGATES, name, info):
        return
    spec = AGGREGATES.spec(name)
    if (spec.side_factors or spec.lowrank) and job.adapter.kind not in LOWRANK:
        yield (
            f"{place} {name!r} works with adapters of low rank ({', '.join(LOWRANK)}), not with "
            f"{job.adapter.kind}"
        )


def sections_of(spec: ModeSpec[Any], job: Any) -> dict[str, tuple[str, str]]:  # noqa: ANN401 - a job, known above
    """Return the sections of a mode's messages: in words, what each is on its way up, and down."""
    told = [spec.disclosure(spec.of(job), head).sections for head in ("classes", "vocabulary")]
    side = {SIDE: ("", "side factors")} if spec.aggregate_key else dict[str, tuple[str, str]]()
    return {**told[0], **told[1], **side}


def _about_sections(job: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield which sections have a codec of their own that no mode of the job has."""
    known = dict.fromkeys(name for spec in job.specs for name in sections_of(spec, job))
    for way in WAYS:
        for name in job.wire.sections(way):
            if name not in known:
                yield (
                    f"wire.{way}.{name} is the codec of a section that no message has; there are "
                    f"{', '.join(known)}, and other for every other one"
                )


def _about_adapter(adapter: Adapter) -> Iterator[str]:
    """Yield which options a kind does not read."""
    if adapter.dropout and adapter.kind not in DROPPING:
        yield f"adapter.dropout works with {', '.join(DROPPING)}, not with {adapter.kind}"
    if adapter.projection is not None and adapter.kind != "vera":
        yield f"adapter.projection is read by vera only, not by {adapter.kind}; leave it out"
    if adapter.tokens != Adapter.model_fields["tokens"].default and adapter.kind not in VIRTUAL:
        yield (
            f"adapter.tokens is read by {', '.join(VIRTUAL)} only, not by {adapter.kind}; leave it "
            "out"
        )


def _about_virtual(job: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield which options virtual tokens do not have."""
    adapter, kind = job.adapter, job.adapter.kind
    if kind not in VIRTUAL:
        return
    own = ("rank", "alpha", "targets", "blocks")
    given = [k for k in own if getattr(adapter, k) != Adapter.model_fields[k].default]
    keys = [f"adapter.{key}" for key in given]
    keys += [f"clients.each.{name}.rank" for name, one in job.clients.each.items() if one.rank]
    for key in keys:
        yield (
            f"{key} is not read by {kind}, whose virtual tokens stand before a text and are beside "
            "no module; leave it out"
        )


def _about_quantised(job: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield what a base in fewer bits cannot do."""
    how, kind = job.model.quantise, job.adapter.kind
    if how == "none":
        return
    if kind not in (can := BESIDE_FEW_BITS[how]):
        yield (
            f'model.quantise "{how}" works with {", ".join(can)}, not with {kind}, which '
            "needs the weights themselves"
        )
    if job.model.dtype == "float64":
        yield f'model.quantise "{how}" computes in float32 or bfloat16, not in float64'
    if job.model.compute == "fast":
        yield f'model.quantise "{how}" has no fused blocks: model.compute must be reference or auto'


def _about_ends(job: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    """Yield what is wrong with what training starts from, and with the round that it ends with."""
    if job.train.keep == "best" and not job.data.validation_share:
        yield (
            'train.keep "best" needs rows to choose a round by: set data.validation_share, to 0.2 '
            "for one"
        )
    for client, own in job.clients.each.items() if job.adapter.start else ():
        if own.model or own.rank:
            key = "model" if own.model else "rank"
            yield (
                f"adapter.start is one adapter for all clients, and clients.each.{client}.{key} is "
                "its own; leave one of them out"
            )


def _about_data(data: Data, *, may_import: bool) -> Iterator[str]:
    if data.source == "hub" and not data.hub:
        yield 'data.hub must name a dataset such as "org/name" when data.source is "hub"'
    if data.source not in {"hub", "opinions"} and not data.train:
        yield f'data.train must name a file or folder when data.source is "{data.source}"'
    if may_import:
        yield from TASKS.spec(data.task).problems(data)


def _about_clients(job: Any) -> Iterator[str]:  # noqa: ANN401 - a job, known above
    named = job.data.source in {"opinions", "clients"}
    if job.partition in {"dirichlet", "shards"} and not (job.data.label or named):
        yield f'clients.partition "{job.partition}" needs data.label to name a column'
    if job.partition == "natural" and not (job.clients.by or named):
        yield 'clients.by must name a column when clients.partition is "natural"'
    if job.clients.sampling == "size" and job.clients.max_share < 1:
        yield (
            "clients.max_share bounds what an update counts by its examples, and with "
            'clients.sampling "size" it counts as often as its client was drawn; set max_share to 1'
        )
