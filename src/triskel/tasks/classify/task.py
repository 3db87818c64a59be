"""A class for every text.

The text with the tokenizer's own special tokens, cut to `train.max_tokens`; one target, the class,
predicted at one pooled token.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from triskel.config.sections import Data
from triskel.data.batches import Task
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.errors import DataError
from triskel.numerics.metrics import Score, Tally
from triskel.types import ClientId, Examples


class Classify(Task):
    """A class for every text."""

    def tokens(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: Data,
        max_tokens: int,
        classes: Sequence[str],
    ) -> Examples:
        """Return texts as token ids, with their classes.

        Raises:
            DataError: A label is not a class, or no token of a text fits.
        """
        del data
        return _classify(rows, tokenizer, limit=max_tokens, classes=classes)

    def untrained(
        self,
        train: Mapping[ClientId, Examples],
        tests: Mapping[ClientId, Examples],
        classes: Sequence[str],
    ) -> tuple[Mapping[ClientId, Score], str]:
        """Predict the most frequent training label; its loss is that of label shares, add-one."""
        seen = Counter(x for held in train.values() for x in held.labels if x >= 0)
        counts = torch.tensor([seen[c] + 1 for c in range(len(classes))], dtype=torch.float64)
        found: dict[ClientId, Score] = {}
        for client, held in tests.items():
            targets = torch.tensor(held.labels, dtype=torch.int64)
            tally = Tally(len(classes), len(targets))
            logits = counts.log().expand(len(targets), -1)
            tally.add(logits, targets, torch.arange(len(targets)))
            found[client] = tally.score()
        most = int(counts.argmax())  # the first of equals
        return found, f"always {classes[most]}"


def _classify(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, limit: int, classes: Sequence[str]
) -> Examples:
    extra = tokenizer.num_special_tokens_to_add(pair=False)
    if extra >= limit:
        raise DataError(
            f"train.max_tokens must leave room beside the tokenizer's {extra} special tokens, "
            f"got {limit}"
        )
    ids = _encoded(tokenizer, rows.text)
    whole = [max(len(row), 1) for row in ids]
    long = [place for place, size in enumerate(whole) if size > limit]
    cut = _encoded(tokenizer, [rows.text[i] for i in long], limit)
    for place, row in zip(long, cut, strict=True):
        ids[place] = row
    blank = _blank(tokenizer)
    return Examples(
        ids=Ragged.ids([row or [blank] for row in ids]),
        labels=_labels(rows, classes),
        whole=whole,
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int | None = None
) -> list[list[int]]:
    """Return the tokens of each text, cut to a length."""
    if not texts:
        return []
    options: Any = {} if limit is None else {"truncation": True, "max_length": limit}
    return cast("list[list[int]]", tokenizer(list(texts), verbose=False, **options)["input_ids"])


def _blank(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that stands for an empty text."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token is not None:
            return cast("int", token)
    return 0


def _labels(rows: Rows, classes: Sequence[str]) -> tuple[int, ...]:
    if not rows.label:
        return (-1,) * len(rows)
    index = {name: number for number, name in enumerate(classes)}
    strange = sorted(set(rows.label) - index.keys())
    if strange:
        raise DataError(
            f"label {strange[0]!r} is not a class; the classes are {', '.join(classes)}"
        )
    return tuple(index[label] for label in rows.label)
