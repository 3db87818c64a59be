"""A run's trained model on texts without labels: a class for each, or the text that it writes.

Classes are those that an evaluation of the same rows counts, up to rounding: the same tokens, cut
to `train.max_tokens`, through the same model on its reference path. What a model writes goes on
behind the prompt, laid out as in training (`Task.prompts`). A prompt may be longer than
`train.max_tokens`, which is a length of training texts, but prompt and answer must fit into the
model: of a prompt that is too long the end is read, next to the answer. `train.overlong` says what
becomes of rows that are too long.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from triskel.core.formats import plural
from triskel.core.task_spec import names_of
from triskel.data.batches import Prompts, Turn, batch_of, lengths_of, task_of
from triskel.data.files import Columns, Wanted, select
from triskel.data.reading import columns_of
from triskel.data.rows import Rows
from triskel.errors import DataError, JobError
from triskel.experiment.trained import TrainedModel
from triskel.model.fast import Parameters
from triskel.model.generate import Sampling, Writer
from triskel.numerics.tensors import eval_plan, wide
from triskel.training.evaluate import BATCH_TOKENS

BATCH = 8
"""Rows that are written side by side, unless it is said."""
READ = ("text", "prompt")
"""Roles of columns that a trained model reads."""
NAMED = 5
"""Rows that a sentence names."""
Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model makes of one row.

    Attributes:
        answer: The class, or the text that was written; None where the row was left out.
        probabilities: Of every class, by name; empty where text is written.
        read: Tokens that the model read.
        cut: Tokens of the row that it did not, because the row is too long.
        written: Tokens that it wrote.
    """

    answer: str | None
    probabilities: Mapping[str, float] = field(default_factory=dict[str, float])
    read: int
    cut: int = 0
    written: int = 0


class Predictor:
    """A trained model, ready to be applied.

    Attributes:
        model: Which.
        sampling: How it writes; not read where it tells classes.
    """

    def __init__(
        self, model: TrainedModel, *, sampling: Sampling | None = None, batch: int | None = None
    ) -> None:
        """Put the adapter in place.

        Args:
            model: What a run trained.
            sampling: How it writes; only for what writes.
            batch: Rows that run together.

        Raises:
            JobError: The batch has no rows, or a model of classes is told how to write.
        """
        if batch is not None and batch < 1:
            raise JobError(f"batch must be at least 1, got {batch}")
        if sampling is not None and not model.writes:
            raise JobError(
                f"{model.run} tells classes and writes nothing; leave out max_new_tokens, "
                "temperature, top_p and seed"
            )
        self.model, self.sampling, self._batch = model, sampling or Sampling(), batch
        body, tensors = model.body, model.tensors
        self._task = task_of(model.task.name)
        self._writer = Writer(body, tensors, self.sampling) if model.writes else None
        self._parameters: Parameters = {} if model.writes else body.parameters(tensors)

    # --- rows ---------------------------------------------------------------------------------

    def read(self, columns: Columns, where: str) -> Rows:
        """Return the rows of a table, with the columns that the task reads and no others.

        Raises:
            DataError: A column is missing, or a row has no text in it.
        """
        return select(columns, self._wanted, where=where)

    def named(self, lines: Sequence[str]) -> Columns:
        """Return lines as the one column that the task reads.

        Raises:
            JobError: It reads several.
        """
        names = list(dict.fromkeys(n for one in self._wanted.values() for n in names_of(one)))
        if len(names) != 1:
            raise JobError(
                f"a row of {self.model.run} is made of the columns {', '.join(names)}, and a line "
                "holds one; give a file that has them"
            )
        return {names[0]: lines}

    @property
    def _wanted(self) -> Wanted:
        wanted = columns_of(self.model.job, labelled=False)
        return {role: column for role, column in wanted.items() if role in READ}

    # --- predictions --------------------------------------------------------------------------

    def predict(
        self, rows: Rows, where: str, *, in_order: bool = False, told: Told | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """Return the place of each row and what the model makes of it, as rows are done.

        Args:
            rows: What `read` returned.
            where: Name of the file, for errors.
            in_order: Rows come in their order, rather than sorted by length, which is faster.
            told: Told of a single row's answer piece by piece, as it is written.

        Raises:
            DataError: A row is too long and the job refuses such, or the task cannot read it.
            JobError: What is to be written leaves no room for a prompt.
        """
        if not self.model.writes:
            yield from self._classified(rows, where)
            return
        found = self.prompts(rows)
        cut = [self.beyond(ids) for ids in found.ids]
        most = self.sampling.max_new_tokens
        dropped = self._overlong(cut, where, f"the model can read before {most} new tokens")
        for row, ids in enumerate(found.ids):
            if row in dropped or not ids:
                yield row, Prediction(answer=None, read=0, cut=len(ids))
        able = [row for row, ids in enumerate(found.ids) if ids and row not in dropped]
        if not in_order:
            able.sort(key=lambda row: (len(found.ids[row]), row))
        size = self._batch or BATCH
        for start in range(0, len(able), size):
            batch = able[start : start + size]
            yield from zip(batch, self.write(found, batch, told if len(able) == 1 else None),
                           strict=True)  # fmt: skip

    # --- text that is written -----------------------------------------------------------------

    def prompts(self, rows: Rows, before: Sequence[Turn] = ()) -> Prompts:
        """Return what is written behind, whole.

        Args:
            rows: What `read` returned.
            before: What was said before, where the layout is a chat.

        Raises:
            DataError: The task does not say how it is prompted, or the tokenizer cannot do it.
        """
        model = self.model
        return self._task.prompts(rows, model.body.tokenizer, data=model.job.data, before=before)

    def beyond(self, ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt the model cannot read.

        Raises:
            JobError: It can read none, so much is to be written.
        """
        writer, most = self._written(), self.sampling.max_new_tokens
        if writer.context is None:
            return 0
        if most >= writer.context:
            raise JobError(
                f"max_new_tokens is {most}, and the model reads and writes {writer.context} "
                "tokens together; lower it"
            )
        return max(len(ids) - (writer.context - most), 0)

    def write(
        self,
        prompts: Prompts,
        places: Sequence[int],
        told: Told | None = None,
        *,
        numbers: Sequence[int] | None = None,
    ) -> list[Prediction]:
        """Return what is written behind some prompts, side by side; of a long one its end is read.

        Args:
            prompts: Of all rows.
            places: Which of them; each has a token.
            told: Told of the answer to a single one, piece by piece.
            numbers: Of rows, for what is drawn; their places, if left out.
        """
        cut = [self.beyond(prompts.ids[place]) for place in places]
        ids = [prompts.ids[place][lost:] for place, lost in zip(places, cut, strict=True)]
        tails = [prompts.tails[place] for place in places]
        pieces = None if told is None else _Pieces(self._text, tails[0], told)
        more = None if pieces is None else pieces.more
        written = self._written().write(ids, numbers or places, more)
        found = [
            Prediction(
                answer=self._text(tokens).removesuffix(tail),
                read=len(prompt), cut=lost, written=len(tokens),
            )
            for tokens, tail, prompt, lost in zip(written, tails, ids, cut, strict=True)
        ]  # fmt: skip
        if pieces is not None:
            pieces.last(found[0].answer or "")
        return found

    def _written(self) -> Writer:
        if self._writer is None:
            raise JobError(f"{self.model.run} tells classes; it writes nothing")
        return self._writer

    def _text(self, tokens: Sequence[int]) -> str:
        tokenizer: Any = self.model.body.tokenizer
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode(list(tokens), **options))

    # --- classes ------------------------------------------------------------------------------

    def _classified(self, rows: Rows, where: str) -> Iterator[tuple[int, Prediction]]:
        model, body = self.model, self.model.body
        examples = self._task.tokens(
            rows,
            body.tokenizer,
            data=model.job.data,
            max_tokens=model.job.train.length,
            classes=model.classes,
        )
        lengths = lengths_of(examples)
        if len(lengths) != len(rows):
            raise DataError(
                f"task {model.task.name!r} reads {len(lengths):,} of the {len(rows):,} rows of "
                f"{where} and does not say which; take out rows that it cannot read"
            )
        whole = list(examples.whole) or lengths
        cut = [size - kept for size, kept in zip(whole, lengths, strict=True)]
        dropped = self._overlong(cut, where, f"train.max_tokens = {model.job.train.length}")
        yield from ((row, Prediction(answer=None, read=0, cut=whole[row])) for row in dropped)
        able = [row for row in range(len(lengths)) if row not in dropped]
        for batch in self._plan([lengths[row] + body.blocks.ahead for row in able]):
            places = [able[place] for place in batch]
            inputs = batch_of(examples, places, pool=body.blocks.pool, ahead=body.blocks.ahead)
            parts = [part for _, part in body.logits_by_part(self._parameters, inputs)]
            logits = torch.cat(parts)
            shares = logits.to(wide(logits.dtype)).softmax(dim=1)
            for row, each in zip(places, shares, strict=True):
                yield (
                    row,
                    Prediction(
                        answer=model.classes[int(each.argmax())],
                        probabilities=dict(zip(model.classes, each.tolist(), strict=True)),
                        read=lengths[row],
                        cut=cut[row],
                    ),
                )

    def _plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return texts of like length together."""
        if self._batch is None:
            return eval_plan(lengths, tokens=BATCH_TOKENS)
        order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
        return [order[low : low + self._batch] for low in range(0, len(order), self._batch)]

    def _overlong(self, cut: Sequence[int], where: str, limit: str) -> set[int]:
        """Return which of the rows that are too long are left out."""
        long = [row for row, tokens in enumerate(cut) if tokens]
        what = self.model.job.train.overlong
        if long and what == "refuse":
            raise DataError(
                f"{len(long):,} of {plural(len(cut), 'row')} of {where} are longer than {limit}, "
                f'the first is row {long[0] + 1}; shorten them, as train.overlong is "refuse"'
            )
        return set(long) if what == "drop" else set()


class _Pieces:
    """Tells a text piece by piece: not half a character, nor what may be its layout's tail."""

    def __init__(self, text_of: Callable[[Sequence[int]], str], tail: str, told: Told) -> None:
        self._text_of, self._tail, self._told = text_of, tail, told
        self._done = 0

    def more(self, tokens: Sequence[int]) -> None:
        """Tell what is sure of a text once these are its tokens."""
        text = self._text_of(tokens).rstrip("\ufffd")
        sizes = range(len(self._tail), 0, -1)
        held = next((size for size in sizes if text.endswith(self._tail[:size])), 0)
        self.last(text[: len(text) - held])

    def last(self, text: str) -> None:
        """Tell what was not told of a text."""
        if len(text) > self._done:
            self._told(text[self._done :])
            self._done = len(text)


def left(predictions: Sequence[Prediction], rows: Rows) -> Iterator[str]:
    """Return a sentence for each kind of rows that were empty, left out, or cut."""
    each = list(enumerate(predictions))
    texts = rows.text or rows.prompt
    kinds = {
        "without a token, and left without an answer": [
            row for row, one in each if one.answer is None and not one.cut
        ],
        'too long, and left without an answer, as train.overlong is "drop"': [
            row for row, one in each if one.answer is None and one.cut
        ],
        "empty, and answered like any other text": [
            row for row, one in each if one.answer is not None and not texts[row].strip()
        ],
    }
    for what, found in kinds.items():
        if found:
            yield f"{_rows(found)} {what}"
    if cut := [row for row, one in each if one.answer is not None and one.cut]:
        tokens = sum(predictions[row].cut for row in cut)
        of = tokens + sum(one.read for one in predictions)
        yield f"{_rows(cut)} too long and cut: {tokens:,} of {of:,} tokens were not read"


def _rows(rows: Sequence[int]) -> str:
    named = ", ".join(str(row + 1) for row in rows[:NAMED]) + (", ..." if len(rows) > NAMED else "")
    return f"row {named} is" if len(rows) == 1 else f"{len(rows):,} rows ({named}) are"
