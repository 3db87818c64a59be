r"""Texts that a model writes.

A text is prefix, response, suffix, as the template lays them out. Token t is a target when it ends
after the first character of the response, found by character offsets and never by looking for a
template's token ids; the suffix and an end-of-text token are targets too, since a model must learn
to stop. The hidden state at t - 1 predicts token t:

    loss = - sum_{t scored} log p(token_t | tokens_{<t})
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from triskel.config.sections import Data
from triskel.core.task_spec import around, filled
from triskel.data.batches import Prompts, Task, Turn
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.errors import DataError
from triskel.tasks.causal.spec import PLAIN, more_in
from triskel.types import Examples

_PLACE = "\ue000"
LONGEST = 200
"""Characters of a template's complaint that are shown."""
Layout = Callable[[str], tuple[str, str]]
"""Prompt to prefix and suffix of the response."""


class Causal(Task):
    """The response to a prompt, or a text, token by token."""

    def tokens(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: Data,
        max_tokens: int,
        classes: Sequence[str],
    ) -> Examples:
        """Return texts as token ids, with which of them are targets; none where all were cut off.

        Raises:
            DataError: The tokenizer cannot do what the job asks.
        """
        del classes
        return _causal(rows, tokenizer, template=data.template, limit=max_tokens)

    def prompts(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: Data,
        before: Sequence[Turn] = (),
    ) -> Prompts:
        """Return what stands before each response, or the text that is to go on.

        Raises:
            DataError: The tokenizer cannot do what the job asks.
        """
        texts, tails = list(rows.text), [""] * len(rows)
        if rows.prompt:
            layout = _layout(tokenizer, data.template, before)
            texts, tails = map(list, zip(*map(layout, rows.prompt), strict=True))
        encoded = _encoded(texts, tokenizer, chat=data.template == "chat")
        end = cast("int | None", tokenizer.eos_token_id)
        rows_ = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return Prompts(
            ids=[_open(ids, offsets, end) for ids, offsets in rows_],
            tails=[_plain(tail, tokenizer) for tail in tails],
        )


def _causal(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, template: str, limit: int
) -> Examples:
    end = cast("int | None", tokenizer.eos_token_id) if rows.prompt else None
    texts, starts = _laid_out(rows, tokenizer, template)
    encoded = _encoded(texts, tokenizer, chat=template == "chat")
    kept_ids: list[list[int]] = []
    kept_scored: list[list[bool]] = []
    whole: list[int] = []
    for ids, offsets, start in zip(
        encoded["input_ids"], encoded["offset_mapping"], starts, strict=True
    ):
        row, scored = _scored(ids, [last for _, last in offsets], start, end)
        whole.append(len(row))
        kept_ids.append(row[:limit])
        kept_scored.append(scored[:limit])
    return Examples(
        ids=Ragged.ids(kept_ids), labels=(), scored=Ragged.marks(kept_scored), whole=whole
    )


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Any:  # noqa: ANN401 - of transformers
    """Return token ids of texts, and where each token stands; a chat has its own special tokens."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "a causal task finds responses by character offsets, which a slow tokenizer lacks; "
            "use a model with a tokenizer.json"
        )
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    return tokenizer(texts, return_offsets_mapping=True, add_special_tokens=not chat, verbose=False)


def _open(ids: list[int], offsets: Sequence[tuple[int, int]], end: int | None) -> list[int]:
    """Return token ids without the end-of-text token that a tokenizer may close them with."""
    closed = ids[-1:] == [end] and len(ids) > 1 and offsets[-1] == (0, 0)
    return ids[:-1] if closed else ids


def _plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text without special tokens."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text


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
    layout = _layout(tokenizer, template)
    texts: list[str] = []
    starts: list[int | None] = []
    for prompt, response in zip(rows.prompt, rows.response, strict=True):
        prefix, suffix = layout(prompt)
        texts.append(prefix + response + suffix)
        starts.append(len(prefix))
    return texts, starts


def _layout(
    tokenizer: PreTrainedTokenizerBase, template: str, before: Sequence[Turn] = ()
) -> Layout:
    return _chat(tokenizer, before) if template == "chat" else _template(template or PLAIN)


def _template(template: str) -> Layout:
    before, after = around(template, "response")
    start, suffix = filled(before, {}), filled(after, {}).tail
    if more_in(template):  # the prompt is all that stands before the response
        return lambda prompt: (prompt, suffix)
    head = start.parts[0][0]
    return lambda prompt: (head + prompt + start.tail, suffix)


def _words(error: Exception) -> str:
    """Return what a chat template says, in its own words."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = getattr(error, "lineno", None)
    where = f" in line {line}" if line is not None else ""
    return f"{type(error).__name__}{where}, {first[:LONGEST]!r}" if first else type(error).__name__


def _chat(tokenizer: PreTrainedTokenizerBase, before: Sequence[Turn]) -> Layout:
    """Lay out by the tokenizer's chat template, cut after its end-of-text token."""
    chatty = cast("Any", tokenizer)
    if not chatty.chat_template:
        raise DataError(
            'data.template is "chat", and this tokenizer has no chat template; leave '
            "data.template out for a plain one"
        )
    stop = cast("str | None", tokenizer.eos_token)

    def layout(prompt: str) -> tuple[str, str]:
        turns = [
            {"role": role, "content": content}
            for pair in (*before, (prompt, _PLACE))
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        try:
            whole = str(chatty.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # a template is a program of whoever made the model
            raise DataError(
                "the tokenizer's chat template cannot lay out a prompt and its response: "
                f"{_words(error)}; write a data.template with {{prompt}} and {{response}}"
            ) from error
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
