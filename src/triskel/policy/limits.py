"""How much a job may ask of a site: bytes, clients of a round, few rows, a dataset's budget."""

import math
from collections.abc import Iterator, Sequence

from triskel.config.job import Job
from triskel.plan.payload import models_tested
from triskel.policy.budget import Amounts
from triskel.policy.refusal import Circumstances, Refusal
from triskel.policy.rules import Policy

MB = 1_000_000


def decide_limits(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
    """Refuse what sends too much, or sends it among too few."""
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
                asks += f", which may close with {least} ({least_by(job)})"
        yield Refusal(
            key="limits.cohort", asks=asks, allows=f"takes part among at least {limits.cohort}"
        )


def decide_floors(policy: Policy, job: Job, here: Circumstances) -> Iterator[Refusal]:
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


def decide_budget(policy: Policy, here: Circumstances) -> Iterator[Refusal]:
    """Refuse what the budget of a dataset has no room for."""
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
    """Return how many of so many clients take part in a round at least (`experiment.sampling`)."""
    if job.clients.sampling == "poisson" and job.clients.cohort < 1:
        return min(1, clients)
    if job.clients.sampling == "size":  # one may be drawn every time
        return min(1, clients)
    return max(1, math.ceil(job.clients.cohort * clients - 1e-9)) if clients else 0


def least_by(job: Job) -> str:
    """Return the key that says how many clients must finish a round."""
    return "federation.buffer" if job.federation.buffer else "federation.quorum"


def quorum_of(job: Job, clients: int) -> int:
    """Return how many of so many clients must finish a round in a federation."""
    if job.federation.buffer:
        return min(job.federation.buffer, clients)
    return max(1, math.ceil(job.federation.quorum * clients - 1e-9))
