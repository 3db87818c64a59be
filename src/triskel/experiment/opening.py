"""What is settled before a run begins: its data, who takes part, what is skipped, how much work."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triskel.config.job import ModeName, unsupported
from triskel.core import events
from triskel.core.registry import MODES
from triskel.core.result_data import Data
from triskel.data.check import unreadable
from triskel.errors import DataError
from triskel.experiment import data_record, lengths
from triskel.experiment.baselines import BaselineName
from triskel.experiment.odd_rows import odd_rows
from triskel.experiment.resources import Resources
from triskel.experiment.starts import Starts
from triskel.training.mode_setting import unfit
from triskel.types import ClientId, Event, Watch


def same_data(folder: Path, resources: Resources, told: Watch) -> None:
    """Hold what was read against what the run began with, or write it down.

    Raises:
        DataError: It is not what the run began with, or nobody can train on it.
    """
    began = (folder / "stages").exists()
    known = data_record.hold(folder, resources.job, resources.federation, write=True)
    if began and not known:
        told(events.warning(data_record.unsaid(folder)))
    _sound(resources, told)
    _somebody(resources)
    data_record.hold_tokenizers(folder, resources.tokenizers(), write=True)


def same_start(starts: Starts | None, resources: Resources, told: Watch) -> None:
    """Hold the adapters that a run starts from against its data, and tell what is not known.

    Raises:
        JobError: They tell other classes apart.
    """
    if starts is not None:
        starts.fit(resources.federation.classes)
        for text in starts.unsure(resources.job):
            told(events.warning(text))


def _sound(resources: Resources, told: Watch) -> None:
    """Tell what is odd about the rows that are here, and refuse what nothing can be learnt from.

    Raises:
        DataError: Nothing can be learnt from them.
    """
    for fault in odd_rows(resources.job, resources.federation, resources.judge):
        if fault.refuses:
            raise DataError(fault.text)
        told(events.warning(fault.text))
    if any(len(held.train) for held in resources.federation.clients.values()):  # rows are here
        for fault in unreadable(resources.job, tests=resources.judge == "test"):
            if not fault.refuses:  # how a file was read that could be read otherwise
                told(events.warning(fault.text))


def warnings(resources: Resources, skipped: Mapping[str, str], data: Data) -> Iterator[str]:
    """Return what a user should know before a run begins.

    Args:
        resources: The job, loaded.
        skipped: Modes that are not played, each with the reason.
        data: What everybody holds, as a result has it.
    """
    yield from lengths.warnings(data, resources.job)
    yield from _beyond(resources)
    if idle := sorted(set(resources.clients) - set(resources.active())):
        yield _idle(idle)
    for mode, reason in skipped.items():
        yield f"{mode} is skipped: {reason}"


def _beyond(resources: Resources) -> Iterator[str]:
    """Return that texts are longer than what a model has seen, whose positions have no end."""
    blocks, asked = resources.body().blocks, resources.job.train.length
    before = blocks.virtual + blocks.ahead
    behind = f" behind {before:,} virtual tokens" if before else ""
    seen = getattr(blocks.config, "max_position_embeddings", None)
    if blocks.positions is None and isinstance(seen, int) and asked + before > seen:
        yield (
            f"train.max_tokens is {asked:,}{behind}, and this model was made for texts of up to "
            f"{seen:,} tokens: what it makes of more is not known"
        )


def _somebody(resources: Resources) -> None:
    """Refuse a job in which nobody can train, or nothing can be scored.

    Raises:
        DataError: No client holds a training example, or none holds one to be scored on.
    """
    held = resources.federation.clients.values()
    for kind, there, rows in (
        ("training", resources.active(), sum(len(one.train) for one in held)),
        (resources.judge, resources.testers(), sum(len(one.test) for one in held)),
    ):
        if there:
            continue
        if not rows:
            where = "clients.partition" if kind == "training" else f"data.{kind}_share"
            raise DataError(f"no client holds a {kind} example; look at {where}")
        train = resources.job.train
        is_ = "is as short as" if train.overlong == "drop" else "has a token of its response within"
        raise DataError(
            f"none of {rows} {kind} rows {is_} train.max_tokens = {train.length}; raise it, or "
            "look at what the tokenizer makes of them"
        )


def skipped_in(resources: Resources, modes: Sequence[ModeName], watch: Watch) -> dict[str, str]:
    """Return the modes that cannot play the job here, each with the reason."""
    found: dict[str, str] = {}
    for mode in modes:
        reason = unsupported(resources.job, mode)
        if reason is None:
            reason = unfit(resources.setting(mode, watch))
        if reason is not None:
            found[mode] = reason
    return found


def _idle(clients: Sequence[ClientId]) -> str:
    names = ", ".join(clients[:12]) + (", ..." if len(clients) > 12 else "")  # noqa: PLR2004 - what fits a line
    return f"{len(clients)} clients hold no training example and never take part: {names}"


def opening(
    resources: Resources,
    modes: Sequence[ModeName],
    baselines: Sequence[BaselineName],
    skipped: Mapping[str, str],
    examples: int,
    until: Mapping[str, int],
) -> Event:
    """Return the event that a run begins: its stages, who takes part, and about how much work."""
    rounds = {stage: until.get(stage, resources.job.rounds) for stage in (*baselines, *modes)}
    before = [name for name in baselines if name != "local_equal"]
    after = ["local_equal"] if {"local", "local_equal"} <= {*baselines} else []
    stages = [*before, *(m for m in modes if m not in skipped), *after]
    return events.run_start(
        stages,
        clients=resources.clients,
        rounds=max(rounds.values(), default=resources.job.rounds),
        examples=examples,
        work={one: rounds[one] * _work(resources, one, modes) for one in stages},
    )


def _work(resources: Resources, stage: str, modes: Sequence[ModeName]) -> int:
    """Return about how many tokens a stage trains on in a round, to estimate the time left."""
    job = resources.job
    if stage == "base":
        return 0
    held = resources.epoch_tokens()
    private = sum(tokens * job.training(client).epochs for client, tokens in held.items())
    # clients alone at equal FLOPs compute as much as the costliest mode
    played = modes if stage == "local_equal" else [stage] if stage in modes else []
    specs = [MODES.spec(mode) for mode in played]
    passes = max((spec.public_passes(spec.of(job)) for spec in specs), default=0)
    public = resources.public_tokens() if passes else 0
    return private + int(len(resources.active()) * public * passes)
