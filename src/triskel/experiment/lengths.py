"""How long texts are, and what of them nobody reads: `train.max_tokens`, said or not."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, cast

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.core.formats import percent
from triskel.core.result_data import Data, Held, LostByShare, LostTexts
from triskel.data.assets import resolve
from triskel.data.batches import lengths_of, task_of
from triskel.data.federate import Federation, Holding
from triskel.errors import DataError
from triskel.model.load import tokenizer_in
from triskel.types import Examples

WHOLE = 1 << 30
"""More tokens than a text has."""
MOST = 0.95
"""The share of texts that a length is proposed for."""
TOLD = 0.01
"""The share of tokens that may be lost without a warning."""
SHARES: tuple[Literal["train", "test"], ...] = ("train", "test")


def said(job: Job, federation: Federation, say: Callable[[str], None]) -> None:
    """Refuse a job that must say how long its texts are and does not; name a length that would do.

    Raises:
        DataError: It does not say `train.max_tokens`, and its task has no default.
        ModelError: The tokenizer cannot be loaded.
    """
    if job.train.max_tokens is not None:
        return
    tokenizer = tokenizer_in(resolve(job.model.path, fetch=True, say=say))
    found: list[int] = []
    for held in federation.clients.values():
        examples = task_of(job.data.task).tokens(
            held.train, tokenizer, data=job.data, max_tokens=WHOLE, classes=federation.classes
        )
        found += lengths_of(examples)
    found.sort()
    enough = found[math.ceil(MOST * len(found)) - 1] if found else 1
    raise DataError(
        f"train.max_tokens must be set, as a {job.data.task} task has no default: "
        f"{percent(MOST)} of {len(found):,} training rows have at most {enough:,} tokens, the "
        f"longest {found[-1] if found else 0:,}; --set train.max_tokens={enough}"
    )


def lost_of(examples: Examples) -> LostTexts:
    """Return what of these texts is not read, as it stands in a result."""
    lost = examples.lost
    return {
        "texts": lost.texts,
        "tokens": lost.tokens,
        "rows": lost.rows,
        "of": lost.tokens + sum(lengths_of(examples)),
    }


def left_of(held: Holding, train: Examples, test: Examples, judge: Judge) -> Holding:
    """Return what a client holds without the rows of which nothing is left as tokens."""
    rows = held.train.take(train.left) if train.left or not len(train) else held.train
    gone = len(held.test) - len(test) if judge == "validation" else 0
    return replace(held, train=rows, validation=held.validation - gone)


def together(parts: Mapping[str, LostTexts]) -> LostByShare:
    """Return what of a client's texts is not read: all its shares together, and each."""
    found: LostByShare = {"texts": 0, "tokens": 0, "rows": 0, "of": 0}
    for one in parts.values():
        for key in ("texts", "tokens", "rows", "of"):
            found[key] += one[key]
    return cast("LostByShare", {**found, **parts})


def warnings(data: Data, job: Job) -> Iterator[str]:
    """Return a sentence for each kind of texts of which more than a little is not read."""
    clients = data["clients"].items()
    for share in SHARES:
        each = {c: part for c, one in clients if (part := _part(one, share)) is not None}
        yield from _warning(f"{'training' if share == 'train' else share} texts", each, job)
    if "public_lost" in data:
        yield from _warning("public texts", {"": data["public_lost"]}, job)


def _part(held: Held, share: Literal["train", "test"]) -> LostTexts | None:
    return held.get("lost", {}).get(share)


def _warning(what: str, each: Mapping[str, LostTexts], job: Job) -> Iterator[str]:
    tokens, of = (sum(one[key] for one in each.values()) for key in ("tokens", "of"))
    if tokens <= TOLD * of:
        return
    texts, rows = (sum(one[key] for one in each.values()) for key in ("texts", "rows"))
    worst = max(each, key=lambda c: each[c]["tokens"] / max(each[c]["of"], 1))
    most = each[worst]["tokens"] / max(each[worst]["of"], 1)
    left_out = f", {rows:,} of them left out" if rows else ""
    where = f", {percent(most)} at {worst}" if len(each) > 1 else ""
    yield (
        f"{percent(tokens / of)} of the tokens of {what} are not read{where}: train.max_tokens = "
        f"{job.train.length} and {texts:,} texts are longer{left_out}"
    )
