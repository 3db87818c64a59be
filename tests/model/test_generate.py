"""Text is written as if every prompt were alone, without padding and without a cache."""

import math
import runpy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from triskel.data.batches import batch_of
from triskel.errors import JobError
from triskel.model.generate import Sampling, Writer
from triskel.model.shared import SharedModel
from triskel.model.side_factors import blank
from triskel.types import Examples, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
PROMPTS = [row.tolist() for row in tiny.examples(7, "causal", long=12).ids]
NEW = 6


def made(family: str) -> tuple[SharedModel, Tensors]:
    body: SharedModel = tiny.body(family, tiny.job(task="causal"))
    return body, tiny.random_like(body.initial, 1)


def one_by_one(body: SharedModel, tensors: Tensors, prompt: Sequence[int]) -> list[int]:
    """Return the likeliest tokens behind a prompt, each from all that stands before it."""
    ids, parameters = list(prompt), body.parameters(tensors)
    for _ in range(NEW):
        scored = torch.tensor([*(False for _ in ids), True])
        text = Examples(ids=[torch.tensor([*ids, 0])], labels=(), scored=[scored])
        ids.append(int(body.logits(parameters, batch_of(text, [0]))[0].argmax()))
    return ids[len(prompt) :]


def until(tokens: list[int], stop: int) -> list[int]:
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_prompts_side_by_side_are_answered_as_each_alone(family: str) -> None:
    body, tensors = made(family)
    wanted = [until(one_by_one(body, tensors, prompt), 2) for prompt in PROMPTS]
    writer = Writer(body, tensors, Sampling(max_new_tokens=NEW))
    assert writer.write(PROMPTS, range(7)) == wanted
    assert [writer.write([one], [0])[0] for one in PROMPTS] == wanted
    assert len(set(map(tuple, wanted))) > 4


def test_side_factors_write_too() -> None:
    body, tensors = made("llama")
    tensors = {**tensors, **tiny.random_like(blank(body.initial, 3), 2)}
    wanted = [until(one_by_one(body, tensors, prompt), 2) for prompt in PROMPTS]
    assert Writer(body, tensors, Sampling(max_new_tokens=NEW)).write(PROMPTS, range(7)) == wanted


def test_a_text_ends_at_the_tokenizers_end_and_at_those_of_the_base() -> None:
    body, tensors = made("llama")
    how = Sampling(max_new_tokens=NEW)
    wanted = [one_by_one(body, tensors, prompt) for prompt in PROMPTS]
    own = wanted[0][2]
    body.tokenizer.eos_token = f"w{own}"
    assert body.tokenizer.eos_token_id == own
    found = Writer(body, tensors, how).write(PROMPTS, range(7))
    assert found == [until(until(row, 2), own) for row in wanted]
    assert len(found[0]) <= 2
    assert max(map(len, found)) == NEW, "those beside it go on"
    base = wanted[1][1]
    body.blocks.model.generation_config.eos_token_id = [base, 2]
    told: list[list[int]] = []
    (alone,) = Writer(body, tensors, how).write([PROMPTS[1]], [0], lambda x: told.append([*x]))
    assert alone == until(until(wanted[1], base), own)
    assert [one for one in told if one][-1:] == [alone]


def test_other_settings_of_the_base_are_left_out() -> None:
    body, tensors = made("llama")
    how = Sampling(max_new_tokens=NEW)
    wanted = Writer(body, tensors, how).write(PROMPTS, range(7))
    settings = body.blocks.model.generation_config
    settings.repetition_penalty, settings.do_sample, settings.top_k = 5.0, True, 3
    settings.temperature, settings.bad_words_ids = 3.0, [[wanted[0][0]]]
    assert Writer(body, tensors, how).write(PROMPTS, range(7)) == wanted


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_tokens_are_drawn_by_their_probability(temperature: float, top_p: float) -> None:
    body, tensors = made("gpt2")
    count, prompt = 1500, PROMPTS[0]
    scored = torch.tensor([*(False for _ in prompt), True])
    text = Examples(ids=[torch.tensor([*prompt, 0])], labels=(), scored=[scored])
    logits = body.logits(body.parameters(tensors), batch_of(text, [0]))[0].detach()
    shares = (logits / temperature).softmax(0)
    ranked = shares.argsort(descending=True).tolist()
    kept = next(n for n in range(1, 38) if float(shares[ranked[:n]].sum()) >= top_p - 1e-6)
    whole = float(shares[ranked[:kept]].sum())
    how = Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p, seed=1)
    found = Writer(body, tensors, how).write([prompt] * count, range(count))
    drawn = Counter(row[0] if row else 2 for row in found)
    assert set(drawn) <= set(ranked[:kept])
    for token in ranked[:kept]:
        p = float(shares[token]) / whole
        spread = math.sqrt(count * p * (1 - p))
        assert abs(drawn[token] - count * p) <= 4.5 * spread + 1, token


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.5}, "temperature must be 0 or above, got -0.5"),
        ({"temperature": math.nan}, "temperature must be 0 or above, got nan"),
        ({"temperature": math.inf}, "temperature must be 0 or above, got inf"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": 0.9}, "top_p is not read at temperature 0"),
    ],
)
def test_what_nobody_can_draw_by_is_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(JobError, match=said):
        Sampling(**given)  # type: ignore[arg-type]
