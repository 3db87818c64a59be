r"""Text that a model writes, by transformers' own `generate`: token by token behind a prompt.

Prompts are put side by side with padding on their left, so that all of them end where their answers
begin. The next token t has the largest logit z_t; with a temperature T above 0 it is drawn from the
softmax of z / T, cut to the smallest set of tokens that have `top_p` of the probability:

    t = argmax_t (z_t / T + g_t),    g_t = -log e_t,    e_t ~ Exp(1)

which is such a draw (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). Each row has a random
stream of its own, a function of seed and row number, so what is drawn for a row does not depend on
the rows beside it. Whatever else the base's own `generation_config.json` asks for is left out, but
for the tokens it stops at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from triskel.errors import JobError
from triskel.model.blocks import Blocks
from triskel.model.shared import SharedModel
from triskel.numerics.rng import stream
from triskel.types import Tensors

Told = Callable[[Sequence[int]], None]
"""Told of all tokens written so far, as each is there."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when a text is long enough.

    Attributes:
        max_new_tokens: Tokens of an answer, at most.
        temperature: What logits are divided by; at 0 the most likely token is taken.
        top_p: The probability that tokens to draw from have together, at least.
        seed: What is drawn follows from it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nobody can draw by.

        Raises:
            JobError: A value is outside its range, or is not read without a temperature.
        """
        if self.max_new_tokens < 1:
            raise JobError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise JobError(f"temperature must be 0 or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise JobError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise JobError("top_p is not read at temperature 0; set a temperature, such as 0.7")


class Writer:
    """A model with an adapter, made ready to write.

    Attributes:
        context: Tokens that the model reads and writes together, at most; None: no such limit.
        sampling: How it writes.
    """

    def __init__(self, body: SharedModel, tensors: Tensors, sampling: Sampling) -> None:
        """Put the tensors in place.

        Raises:
            ModelError: They are not this body's.
        """
        self._model = body.whole(tensors)
        self._blocks, self._device = body.blocks, body.device
        self.sampling = sampling
        self.context = _context(body.blocks)
        self._stops = _stops(self._model, body.tokenizer)
        self._pad = next((token for token in (body.tokenizer.pad_token_id, *self._stops, 0)
                          if token is not None), 0)  # fmt: skip
        settings = transformers.GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self._pad,
            eos_token_id=self._stops or None,
        )
        self._model.generation_config = settings
        body.blocks.model.generation_config = settings  # which PEFT's model of a prefix asks

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        told: Told | None = None,
    ) -> list[list[int]]:
        """Return the tokens behind each prompt, up to a token that ends a text.

        Args:
            prompts: At least one token each.
            rows: Number of each row.
            told: Told of tokens as they are written; of one prompt only.
        """
        ids, mask = self._side_by_side(prompts)
        with torch.no_grad():
            found = self._model.generate(
                **self._read(ids, mask),
                attention_mask=mask,
                logits_processor=self._processors(rows),
                streamer=None if told is None else _Streamer(told, self._stops),
            )
        written = found if self._blocks.ahead else found[:, ids.shape[1] :]
        return [_until(row, self._stops) for row in written.tolist()]

    def _read(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return what the model reads: ids, or embeddings where virtual tokens are among them."""
        if not self._blocks.ahead:
            return {"input_ids": ids}
        found = self._blocks.words(ids)
        found[(mask == 1) & (mask.cumsum(1) <= self._blocks.ahead)] = self._blocks.made().repeat(
            len(ids), 1
        )
        return {"inputs_embeds": found}

    def _side_by_side(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
        """Return prompts behind virtual tokens, padded on the left, and what is no padding."""
        prompts = [[*[self._pad] * self._blocks.ahead, *prompt] for prompt in prompts]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def _processors(self, rows: Sequence[int]) -> transformers.LogitsProcessorList:
        """Return what becomes of logits before the largest is taken."""
        how, found = self.sampling, transformers.LogitsProcessorList()
        if how.temperature:
            found.append(transformers.TemperatureLogitsWarper(how.temperature))
            if how.top_p < 1:
                found.append(transformers.TopPLogitsWarper(how.top_p))
            found.append(_Drawn([stream(how.seed, "write", row) for row in rows]))
        return found


class _Drawn(transformers.LogitsProcessor):
    """Adds Gumbel noise to logits, each row's from its own stream."""

    def __init__(self, streams: Sequence[torch.Generator]) -> None:
        self._streams = streams

    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Return logits with noise, in float32."""
        del input_ids
        size, least = scores.shape[1], torch.finfo(torch.float32).tiny
        waits = [torch.empty(size).exponential_(generator=one) for one in self._streams]
        return scores.float() - torch.stack(waits).clamp(min=least).log().to(scores.device)


class _Streamer(BaseStreamer):
    """Passes tokens on as they are written; the prompt comes first, and is none of them."""

    def __init__(self, told: Told, stops: Sequence[int]) -> None:
        self._told, self._stops = told, stops
        self._written: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, or the next token."""
        if self._written is None:
            self._written = []
            return
        self._written += value.flatten().tolist()
        self._told(_until(self._written, self._stops))

    def end(self) -> None:
        """Take note of nothing."""


def _context(blocks: Blocks) -> int | None:
    """Return how many tokens a model reads and writes together, at most, where that is known."""
    if blocks.positions is not None:
        return blocks.positions
    seen: int | None = getattr(blocks.config, "max_position_embeddings", None)
    return None if seen is None else seen - blocks.ahead - blocks.virtual


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a text: the tokenizer's, and those of the base's own settings."""
    named: int | list[int] | None = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({token for token in found if token is not None})


def _until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """Return tokens up to the first that ends a text."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
