"""Rows to token ids, as a task lays them out, and token ids to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from triskel.config.job import Job
from triskel.config.sections import Data, Train
from triskel.core.registry import TASKS, imported
from triskel.data.holdout import permutation
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.errors import DataError, PluginError
from triskel.numerics.metrics import Score
from triskel.numerics.objective import Objective
from triskel.numerics.rng import stream
from triskel.types import Batch, ClientId, Examples, Lost

WINDOW = 8
"""Batches that are sorted by length together."""
Turn = tuple[str, str]
"""What was asked in a conversation, and what was answered."""


@dataclass(frozen=True)
class Prompts:
    """What a trained model goes on from.

    Attributes:
        ids: Token ids of each row; a row may have none.
        tails: What each row's layout has behind an answer, special tokens left out.
    """

    ids: Sequence[Sequence[int]]
    tails: Sequence[str]


@runtime_checkable
class Task(Protocol):
    """What `TaskSpec.algorithm` names.

    A class that names `Task` among its bases may leave out what has a default here.
    """

    @property
    def objective(self) -> Objective:
        """What is made small, and how predictions are counted; cross-entropy by default."""
        return Objective()

    def tokens(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: Data,
        max_tokens: int,
        classes: Sequence[str],
    ) -> Examples:
        """Return rows as token ids, with what is to be predicted.

        Args:
            rows: With the columns that the task's spec names.
            tokenizer: Of the model that will read them.
            data: The job's section `data`.
            max_tokens: Tokens of a text that may be kept. How many a text had before it was cut
                goes into `Examples.whole`, so that what is lost is counted.
            classes: Class names by index; empty where there are none.

        Raises:
            DataError: The rows, or the tokenizer, are not what the task needs.
        """
        ...

    def untrained(
        self,
        train: Mapping[ClientId, Examples],
        tests: Mapping[ClientId, Examples],
        classes: Sequence[str],
    ) -> tuple[Mapping[ClientId, Score], str] | None:
        """Return what is reached on each client's test texts without training, and how.

        None, the default, is the model as it came.
        """
        del train, tests, classes
        return None

    def prompts(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: Data,
        before: Sequence[Turn] = (),
    ) -> Prompts:
        """Return what a trained model goes on from, laid out as in training; of tasks that write.

        Args:
            rows: With the columns that the task's spec names, `response` left out.
            tokenizer: Of the model that will read them.
            data: The job's section `data`.
            before: What was said before, where the layout is a chat.

        Raises:
            DataError: The task does not say how its models are prompted, which is the default; or
                the tokenizer cannot do what the job asks.
        """
        del rows, tokenizer, before
        raise DataError(
            f"task {data.task!r} does not say how a model that it trained is prompted; export the "
            "adapter, and prompt it as the task's package says"
        )


def task_of(name: str) -> Task:
    """Import how a task's texts become tokens.

    Raises:
        PluginError: There is no such task, or its package is broken.
    """
    place, whose = TASKS.spec(name).algorithm, f"task {name!r}"
    found = imported(place, whose)()
    if not isinstance(found, Task):
        raise PluginError(f"{whose}: {place} is no `data.text.Task`")
    return found


def tokenise(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, job: Job, classes: Sequence[str]
) -> Examples:
    """Return rows as token ids, with what is to be predicted, as the job's task has it.

    Rows of which nothing is left to be predicted are left out.

    Raises:
        DataError: The rows, or the tokenizer, are not what the task needs, or texts are too long.
    """
    found = task_of(job.data.task).tokens(
        rows, tokenizer, data=job.data, max_tokens=job.train.length, classes=classes
    )
    return within(found, len(rows), job.train)


def within(examples: Examples, rows: int, train: Train) -> Examples:
    """Return what is kept of texts of which some are too long, and what is lost.

    Args:
        examples: All texts, cut, with `whole`; a task may have left some out itself.
        rows: How many texts there were.
        train: How long they may be, and what becomes of longer ones.

    Raises:
        DataError: Some are too long, and are to be refused.
    """
    lengths = lengths_of(examples)
    whole = list(examples.whole) or lengths
    cut = [size > kept for size, kept in zip(whole, lengths, strict=True)]
    if train.overlong == "refuse" and any(cut):
        raise DataError(
            f"{sum(cut):,} of {rows:,} texts are longer than train.max_tokens = "
            f"{train.length} (the longest has {max(whole):,} tokens); raise it, or choose "
            'train.overlong = "cut" or "drop"'
        )
    blind = [not hits for hits in _hits(examples.scored)] or [False] * len(lengths)
    gone = [b or (c and train.overlong == "drop") for b, c in zip(blind, cut, strict=True)]
    lost = Lost(
        texts=sum(c or g for c, g in zip(cut, gone, strict=True)) + rows - len(lengths),
        tokens=sum(w - n * (not g) for w, n, g in zip(whole, lengths, gone, strict=True)),
        rows=sum(gone) + rows - len(lengths),
    )
    places = [place for place, left_out in enumerate(gone) if not left_out]
    if len(places) == len(lengths):
        return replace(examples, whole=(), lost=lost)
    return Examples(
        ids=_take(examples.ids, places),
        labels=[examples.labels[i] for i in places] if examples.labels else (),
        scored=_take(examples.scored, places) if examples.scored else (),
        lost=lost,
        left=places if len(lengths) == rows else (),
    )


def _hits(marks: Sequence[Tensor]) -> list[int]:
    return marks.hits() if isinstance(marks, Ragged) else [int(row.sum()) for row in marks]


def _take(rows: Sequence[Tensor], places: Sequence[int]) -> Sequence[Tensor]:
    return rows.take(places) if isinstance(rows, Ragged) else [rows[i] for i in places]


def batch_of(
    examples: Examples,
    indices: Sequence[int],
    *,
    pool: Literal["first", "last"] = "last",
    ahead: int = 0,
) -> Batch:
    """Return the named examples side by side, in the order named.

    Args:
        examples: Tokenised examples.
        indices: At least one.
        pool: Which token stands for a text that is classified: the last for decoders, which have
            read all of it there, the first for encoders.
        ahead: How many virtual tokens each text begins with; their ids stand for nothing.
    """
    ids = [examples.ids[i] for i in indices]
    lengths = torch.tensor([len(row) for row in ids]) + ahead
    if examples.scored:
        hits = [examples.scored[i].nonzero().flatten() for i in indices]
        counts = torch.tensor([len(hit) for hit in hits])
        rows = torch.arange(len(ids)).repeat_interleave(counts)
        columns = torch.cat(hits) - 1 + ahead
        targets = torch.cat([row[hit] for row, hit in zip(ids, hits, strict=True)])
    else:
        rows = torch.arange(len(ids))
        columns = lengths - 1 if pool == "last" else torch.zeros_like(lengths)
        targets = torch.tensor([examples.labels[i] for i in indices])
    return Batch(
        ids=pad(pad_sequence(ids, batch_first=True), (ahead, 0)),
        lengths=lengths,
        rows=rows,
        columns=columns,
        targets=targets,
        examples=examples,
        indices=indices,
    )


def lengths_of(examples: Examples, *, ahead: int = 0) -> list[int]:
    """Return the number of tokens of each example, with so many virtual ones before it."""
    ids = examples.ids
    found = ids.lengths if isinstance(ids, Ragged) else [len(row) for row in ids]
    return [length + ahead for length in found] if ahead else found


def plan(
    lengths: Sequence[int], *, batch: int, seed: int, path: Sequence[str | int]
) -> list[list[int]]:
    """Return the batches of one epoch: random, yet alike in length within a batch.

    Examples are shuffled, sorted by length within windows of `WINDOW` batches, cut into batches of
    `batch` (one may be smaller), and the batches are shuffled. Every example comes exactly once.

    Args:
        lengths: Tokens of each example.
        batch: Examples a batch.
        seed: The job's seed.
        path: Names of the random stream, such as round, client and epoch.
    """
    source = stream(seed, *path)
    order = permutation(len(lengths), source)
    batches: list[list[int]] = []
    for start in range(0, len(order), WINDOW * batch):
        window = sorted(order[start : start + WINDOW * batch], key=lambda i: lengths[i])
        batches += [window[low : low + batch] for low in range(0, len(window), batch)]
    return [batches[i] for i in permutation(len(batches), source)]
