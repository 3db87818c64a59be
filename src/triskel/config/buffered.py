"""What rounds that close with their first updates (`federation.buffer`) ask of a job."""

from collections.abc import Iterator
from typing import Any

from triskel.config.sections import FederationOptions
from triskel.config.wire import WAYS
from triskel.core.registry import MODES


def problems(options: FederationOptions) -> Iterator[str]:
    """Yield what contradicts a buffer in the section that it is an option of."""
    if not options.buffer:
        return
    if options.quorum != 1.0:
        yield (
            "federation.quorum is the share of clients that a round waits for, and with "
            f"federation.buffer it waits for {options.buffer}; leave quorum at 1.0"
        )
    if options.deadline_s:
        yield (
            "federation.deadline_s leaves out who is slow, and with federation.buffer no round "
            "waits for the slow (federation.staleness says how late they may be); leave it at 0"
        )


def unbuffered(job: Any, mode: str) -> str | None:  # noqa: ANN401 - a job, known above
    """Return why rounds of a job cannot close with their first updates, or None when they can.

    A late update is moved by what the model became meanwhile. That takes whole tensors that every
    client was sent and sends back, a mean, and clients of whom nothing must be counted in order.
    """
    if not job.federation.buffer:
        return None
    spec = MODES.spec(mode)
    can, options = spec.carries(job), spec.of(job)
    heads = ("classes", "vocabulary")
    sections = {name for head in heads for name in spec.disclosure(options, head).sections}
    whole = bool(sections) and sections <= set(can.changes)
    if not (whole and can.linear_in_updates) or can.client_state:
        return (
            "federation.buffer needs a mode that averages whole tensors and whose clients keep "
            f"nothing between rounds, which {mode} does not do under these options; set buffer to 0"
        )
    if way := next((way for way in WAYS if job.wire.has_changes(way)), None):
        return (
            f"wire.{way} carries changes of what every client holds alike, and with "
            "federation.buffer clients hold models of different rounds; choose a codec that "
            "carries values"
        )
    if job.evaluate.every:
        return (
            "evaluate.every must be 0 with federation.buffer: a test in between would have every "
            "site stop what it is at; the last round is tested"
        )
    if job.clients.cohort < 1 or job.clients.sampling == "size":
        return (
            "with federation.buffer every client is at work all the time, and the buffer says with "
            'how many updates a round closes: leave clients.cohort at 1.0 and sampling at "uniform"'
        )
    return None
