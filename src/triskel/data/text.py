r"""Rows to token ids, token ids to batches.

classify: the text with the tokenizer's own special tokens, cut to `train.max_tokens`; one target,
the class, predicted at one pooled token.

causal: a text is prefix, response, suffix, as the template lays them out. Token t is a target when
it ends after the first character of the response, found by character offsets and never by looking
for a template's token ids; the suffix and an end-of-text token are targets too, since a model must
learn to stop. The hidden state at t - 1 predicts token t:

    loss = - sum_{t scored} log p(token_t | tokens_{<t})
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from triskel.data.holdout import permutation
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.errors import DataError
from triskel.job import Job
from triskel.rng import stream
from triskel.types import Batch, Examples

PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n{response}"
"""How prompt and response are laid out when `data.template` is empty."""

WINDOW = 8
"""Batches that are sorted by length together."""

_PLACE = "\ue000"
Layout = Callable[[str], tuple[str, str]]
"""Prompt to prefix and suffix of the response."""


def tokenise(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, job: Job, classes: Sequence[str]
) -> Examples:
    """Return rows as token ids, with what is to be predicted.

    For `causal`, rows whose response lies wholly beyond `train.max_tokens` are dropped, so that
    `len(rows) - len(examples)` is their number.

    Raises:
        DataError: A label is not a class, or the tokenizer cannot do what the job asks.
    """
    if job.data.task == "classify":
        return _classify(rows, tokenizer, limit=job.train.max_tokens, classes=classes)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "a causal task finds responses by character offsets, which a slow tokenizer lacks; "
            "use a model with a tokenizer.json"
        )
    return _causal(rows, tokenizer, job=job)


def batch_of(
    examples: Examples, indices: Sequence[int], *, pool: Literal["first", "last"] = "last"
) -> Batch:
    """Return the named examples side by side, in the order named.

    Args:
        examples: Tokenised examples.
        indices: At least one.
        pool: Which token stands for a text that is classified: the last for decoders, which have
            read all of it there, the first for encoders.
    """
    ids = [examples.ids[i] for i in indices]
    lengths = torch.tensor([len(row) for row in ids])
    if examples.scored:
        hits = [examples.scored[i].nonzero().flatten() for i in indices]
        counts = torch.tensor([len(hit) for hit in hits])
        rows = torch.arange(len(ids)).repeat_interleave(counts)
        columns = torch.cat(hits) - 1
        targets = torch.cat([row[hit] for row, hit in zip(ids, hits, strict=True)])
    else:
        rows = torch.arange(len(ids))
        columns = lengths - 1 if pool == "last" else torch.zeros_like(lengths)
        targets = torch.tensor([examples.labels[i] for i in indices])
    return Batch(
        ids=pad_sequence(ids, batch_first=True),
        lengths=lengths,
        rows=rows,
        columns=columns,
        targets=targets,
        examples=examples,
        indices=indices,
    )


def lengths_of(examples: Examples) -> list[int]:
    """Return the number of tokens of each example."""
    return [len(ids) for ids in examples.ids]


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


# --- classify ---------------------------------------------------------------------------------


def _classify(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, limit: int, classes: Sequence[str]
) -> Examples:
    extra = tokenizer.num_special_tokens_to_add(pair=False)
    if extra >= limit:
        raise DataError(
            f"train.max_tokens must leave room beside the tokenizer's {extra} special tokens, "
            f"got {limit}"
        )
    ids: list[list[int]] = []
    if len(rows):
        ids = cast(
            "list[list[int]]",
            tokenizer(list(rows.text), truncation=True, max_length=limit)["input_ids"],
        )
    blank = _blank(tokenizer)
    return Examples(ids=Ragged.ids([row or [blank] for row in ids]), labels=_labels(rows, classes))


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


# --- causal -----------------------------------------------------------------------------------


def _causal(rows: Rows, tokenizer: PreTrainedTokenizerBase, *, job: Job) -> Examples:
    chat = job.data.template == "chat"
    end = cast("int | None", tokenizer.eos_token_id) if rows.prompt else None
    texts, starts = _laid_out(rows, tokenizer, job.data.template)
    encoded: Any = {"input_ids": [], "offset_mapping": []}
    if texts:
        encoded = tokenizer(
            texts, return_offsets_mapping=True, add_special_tokens=not chat, verbose=False
        )
    kept_ids: list[list[int]] = []
    kept_scored: list[list[bool]] = []
    for ids, offsets, start in zip(
        encoded["input_ids"], encoded["offset_mapping"], starts, strict=True
    ):
        row, scored = _scored(ids, [last for _, last in offsets], start, end)
        if any(scored[: job.train.max_tokens]):
            kept_ids.append(row[: job.train.max_tokens])
            kept_scored.append(scored[: job.train.max_tokens])
    return Examples(
        ids=Ragged.ids(kept_ids),
        labels=(),
        scored=Ragged.marks(kept_scored),
    )


def _scored(
    ids: Sequence[int], ends: Sequence[int], start: int | None, end: int | None
) -> tuple[list[int], list[bool]]:
    """Return token ids, closed by `end`, and which of them are targets.

    Args:
        ids: Token ids.
        ends: Where each token ends in the text, in characters; 0 for a special token.
        start: Where the response begins; None when every token is a target.
        end: The end-of-text token to close with, if any.
    """
    row = list(ids)
    scored = [start is None or last > start for last in ends]
    if end is not None and row[-1:] == [end]:
        scored[-1] = True
    elif end is not None:
        row, scored = [*row, end], [*scored, True]
    if scored:
        scored[0] = False
    return row, scored


def _laid_out(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[list[str], Sequence[int | None]]:
    """Return whole texts, and where the response begins in each."""
    if not rows.prompt:
        return list(rows.text), [None] * len(rows)
    layout = _chat(tokenizer) if template == "chat" else _template(template or PLAIN)
    texts: list[str] = []
    starts: list[int | None] = []
    for prompt, response in zip(rows.prompt, rows.response, strict=True):
        prefix, suffix = layout(prompt)
        texts.append(prefix + response + suffix)
        starts.append(len(prefix))
    return texts, starts


def _template(template: str) -> Layout:
    head, _, rest = template.partition("{prompt}")
    middle, _, suffix = rest.partition("{response}")
    if template.count("{prompt}") != 1 or rest.count("{response}") != 1 or "{response}" in head:
        raise DataError(
            'data.template must be "chat", or a text with {prompt} once and {response} once after '
            f"it, got {template!r}"
        )
    return lambda prompt: (head + prompt + middle, suffix)


def _chat(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Lay out by the tokenizer's chat template, cut after its end-of-text token."""
    chatty = cast("Any", tokenizer)
    if not chatty.chat_template:
        raise DataError(
            'data.template is "chat", and this tokenizer has no chat template; leave '
            "data.template out for a plain one"
        )
    stop = cast("str | None", tokenizer.eos_token)

    def layout(prompt: str) -> tuple[str, str]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _PLACE}]
        whole = str(chatty.apply_chat_template(turns, tokenize=False))
        prefix, place, suffix = whole.rpartition(_PLACE)
        if not place:
            raise DataError(
                "the tokenizer's chat template does not show the assistant's words; write a "
                "data.template with {prompt} and {response}"
            )
        if stop and stop in suffix:
            suffix = suffix[: suffix.index(stop) + len(stop)]
        return prefix, suffix

    return layout
