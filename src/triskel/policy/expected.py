"""What one client would send in a round, from the closed forms of docs/ledger.md.

An upper bound but for the headers of messages, which add less than 1 % above 100 kB. Floats count 4
bytes, 2 under `bf16` and `fp16`, and 8 under `raw` in a float64 model. `int8` and `int4` count as
4 as well, since what their scales take depends on shapes.
"""

from dataclasses import dataclass

from triskel.job import Job

SMALL_VOCABULARY = 65_536
"""Up to so many tokens an id takes two bytes, above it four."""
LABEL = 4
A_COUNT = 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the closed forms need of one client; what its mode has no use for may stay 0.

    Attributes:
        adapter: Numbers in the adapter that this client sends.
        head: Numbers in the task head that it sends.
        tokens: Unpadded tokens of its training texts.
        texts: Its training texts.
        labels: What `split` with shared labels sends: a label a text, or a scored token.
        width: Of the model's hidden states.
        public: Public texts; for `causal`, their scored tokens.
        classes: Of a classify task.
        tests: Its test texts.
        tested: Unpadded tokens of them.
        vocabulary: Of the tokenizer, for `causal`.
        pooled: The client's upper part is norm and head of a classifier alone.
        trains: Something below the upper cut trains, so that a gradient goes up.
    """

    adapter: int = 0
    head: int = 0
    tokens: int = 0
    texts: int = 0
    labels: int = 0
    width: int = 0
    public: int = 0
    classes: int = 0
    vocabulary: int = 0
    pooled: bool = False
    trains: bool = True
    tests: int = 0
    tested: int = 0


def round_bytes(job: Job, sizes: Sizes) -> int:
    """Return the bytes that a client sends in one round of the job's mode, its test included.

    >>> round_bytes(Job(), Sizes(adapter=460_800, head=1_728))
    1850112
    """
    floats, others = _COUNTS[job.mode](job, sizes)
    shown, told = _tested(job, sizes)
    return (floats + shown) * _width_of(job) + others + told


def _width_of(job: Job) -> int:
    if job.wire.up == "raw" and job.model.dtype == "float64":
        return 8
    return 2 if job.wire.up in {"bf16", "fp16"} else 4


def _params(_job: Job, sizes: Sizes) -> tuple[int, int]:
    return sizes.adapter + sizes.head, 0


def _logits(job: Job, sizes: Sizes) -> tuple[int, int]:
    if job.data.task == "classify":
        return sizes.public * sizes.classes, 0
    k = job.logits.top_k
    an_id = 2 if sizes.vocabulary <= SMALL_VOCABULARY else 4
    return sizes.public * (k + 1), sizes.public * k * an_id


def _split(job: Job, sizes: Sizes) -> tuple[int, int]:
    epochs, states = job.train.epochs, sizes.tokens * sizes.width
    if job.split.labels == "shared":
        return epochs * states + sizes.adapter, epochs * sizes.labels * LABEL
    rows = sizes.texts if sizes.pooled else sizes.tokens
    back = rows * sizes.width if sizes.trains else 0
    return epochs * (states + back) + sizes.adapter + sizes.head, 0


def _tested(job: Job, sizes: Sizes) -> tuple[int, int]:
    """Count what testing a round's model sends: in `split` hidden states, in all a table."""
    if not sizes.tests:
        return 0, 0
    table = A_COUNT * sizes.classes**2
    if job.mode == "split":
        labels = LABEL * sizes.tested if job.split.labels == "shared" else 0
        return sizes.tested * sizes.width, table + labels
    # in `logits` the server has a model of its own, tested beside the site's
    return 0, table * (2 if job.mode == "logits" else 1)


_COUNTS = {"params": _params, "logits": _logits, "split": _split}
