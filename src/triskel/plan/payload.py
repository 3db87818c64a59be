"""What one client would send in a round, from the closed forms of docs/ledger.md.

An upper bound but for the headers of messages, which add less than 1 % above 100 kB. Floats count 4
bytes, 2 under `bf16` and `fp16`, and 8 under `raw` in a float64 model. `int8` and `int4` count as
4 as well, since what their scales take depends on shapes; a codec of changes counts as `raw`, which
what is no change travels as. Of codecs by section the widest counts.
"""

from triskel.config.job import Job
from triskel.config.wire import change_options
from triskel.core.choice import name_of
from triskel.core.mode_spec import Sizes
from triskel.core.registry import CODECS, MODES

A_COUNT = 8
"""Bytes of a number in the table of classes by predicted classes."""


def round_bytes(job: Job, sizes: Sizes, client: str | None = None) -> int:
    """Return the bytes that a client sends in one round of the job's mode, its test included.

    >>> round_bytes(Job(), Sizes(blocks=[15_360] * 30, head=1_728))
    1850112
    """
    spec = MODES.spec(job.mode)
    sent = spec.payload(spec.of(job, client), job.training(client).epochs, sizes)
    floats, others = sent.floats, sent.fixed_bytes
    if sizes.tests:
        floats += sent.tested_floats
        others += sent.tested_bytes + A_COUNT * sizes.classes**2 * models_tested(job)
    return floats * _width_of(job) + others


def models_tested(job: Job) -> int:
    """Return how many models a client tests after a round: the server's, and one of its own."""
    return 2 if MODES.spec(job.mode).carries(job).personal_models else 1


def _width_of(job: Job) -> int:
    """Return the most bytes that a float takes on its way up; a change may be sent whole."""
    names = {
        "raw" if change_options(chosen) else name_of(chosen)
        for key, chosen in job.wire.codecs
        if key.startswith("wire.up")
    }
    wide = job.model.dtype == "float64"
    return max(CODECS.spec(name).bytes_of(float64=wide) for name in names)
