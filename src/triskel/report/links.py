"""How long the rounds would take if every client sat behind a stated network link.

    time = sum over rounds of max over clients of
           compute + 8 up_bytes / up_rate + 8 down_bytes / down_rate + messages * one_way_delay

Compute, bytes and messages are the run's own measurements; rates and delays are stated here. The
server's own time, retransmissions and overlap of sending with computing are left out.
"""

from dataclasses import dataclass
from statistics import fmean

from triskel.core.formats import duration
from triskel.report.result import Cost, ModeRun, Result, Round

FORMULA = (
    "time = Σ over rounds of the slowest client's (compute + 8 × bytes up ÷ upload rate "
    "+ 8 × bytes down ÷ download rate + messages × one-way delay)"
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network link: bits per second each way, and the delay of one message in seconds."""

    name: str
    up_bits: float
    down_bits: float
    delay_s: float

    @property
    def terms(self) -> str:
        """Its numbers in words."""
        return (
            f"{_rate(self.up_bits)} up, {_rate(self.down_bits)} down, "
            f"{duration(self.delay_s)} one way"
        )


GIGA = 1e9

LINKS = (
    Link(name="office", up_bits=1e9, down_bits=1e9, delay_s=0.002),
    Link(name="broadband", up_bits=20e6, down_bits=100e6, delay_s=0.015),
    Link(name="mobile", up_bits=5e6, down_bits=20e6, delay_s=0.040),
)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Seconds of a run on a link; `delay` is None where messages were not counted."""

    compute: float
    transfer: float
    delay: float | None

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.transfer + (self.delay or 0.0)


def seconds(link: Link, *, compute_s: float, up: float, down: float, messages: float) -> float:
    """Return the time of one client's round on a link; `up` and `down` in bytes."""
    sent = 8 * up / link.up_bits + 8 * down / link.down_bits
    return compute_s + sent + messages * link.delay_s


def wait_over(result: Result, name: str, link: Link) -> Wait | None:
    """Return how long a mode's rounds take on a link; of several seeds, the mean of their times.

    That is not the time of mean costs, since who is slowest may differ from seed to seed.
    """
    runs = [one.modes[name] for one in result.runs or (result,) if name in one.modes]
    waits = [wait(run, link) for run in runs]
    known = [one for one in waits if one is not None]
    if not known or len(known) < len(waits):
        return None
    delays = [one.delay for one in known if one.delay is not None]
    return Wait(
        compute=fmean(one.compute for one in known),
        transfer=fmean(one.transfer for one in known),
        delay=fmean(delays) if len(delays) == len(known) else None,
    )


def wait(run: ModeRun, link: Link) -> Wait | None:
    """Return how long a mode's rounds take on a link, or None where a measurement is missing."""
    compute = transfer = 0.0
    delay: float | None = 0.0
    for one in run.rounds:
        slowest = wait_of(one, link)
        if slowest is None:
            return None
        compute, transfer = compute + slowest.compute, transfer + slowest.transfer
        delay = None if delay is None or slowest.delay is None else delay + slowest.delay
    return Wait(compute=compute, transfer=transfer, delay=delay) if run.rounds else None


def wait_of(one: Round, link: Link, slowdown: float = 1.0) -> Wait | None:
    """Return how long one round takes on a link: that of the client who takes longest.

    The client that computes longest may be told to take `slowdown` times as long.
    """
    waits = [_client(cost, link) for cost in one.costs.values()]
    known = [w for w in waits if w is not None]
    if not known or len(known) < len(waits):
        return None
    late = max(known, key=lambda w: w.compute)
    known.append(Wait(compute=slowdown * late.compute, transfer=late.transfer, delay=late.delay))
    return max(known, key=lambda w: w.total)


def _client(cost: Cost, link: Link) -> Wait | None:
    up, down = cost.up, cost.down
    if cost.compute_s is None or up.message_bytes is None or down.message_bytes is None:
        return None
    transfer = 8 * up.message_bytes / link.up_bits + 8 * down.message_bytes / link.down_bits
    delay = None
    if up.messages is not None and down.messages is not None:
        delay = (up.messages + down.messages) * link.delay_s
    return Wait(compute=cost.compute_s, transfer=transfer, delay=delay)


def _rate(bits: float) -> str:
    return f"{bits / GIGA:g} Gbit/s" if bits >= GIGA else f"{bits / 1e6:g} Mbit/s"
