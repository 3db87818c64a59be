"""Rows to token ids, and token ids to batches."""

import itertools
import string
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from triskel.config import read as jobs
from triskel.config.job import Job
from triskel.data.batches import WINDOW, batch_of, lengths_of, plan, task_of, tokenise
from triskel.data.rows import Rows
from triskel.errors import DataError, JobError
from triskel.numerics.tensors import eval_plan
from triskel.tasks.causal.spec import PLAIN

CORPUS = [string.printable, "the answer is blue and the question was what colour the sky has"] * 3
UNKNOWN, BEFORE, AFTER = "[UNK]", "[CLS]", "[SEP]"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def words(**special: str) -> PreTrainedTokenizerFast:
    """One id a word, in the order below; what it does not know is 0."""
    known = [UNKNOWN, BEFORE, AFTER, "good", "bad", "film", "book"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, **special)


def encoder() -> PreTrainedTokenizerFast:
    """As `words`, with an encoder's tokens around a text."""
    tokenizer = words(cls_token=BEFORE, sep_token=AFTER)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def pieces(*, end: bool = True, start: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE, with no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<start>", "<end>", "<user>", "<assistant>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<start> $A", special_tokens=[("<start>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>" if start else None,
        eos_token="<end>" if end else None,
    )


def job(task: str, *, max_tokens: int = 64, template: str = "", text: bool = False) -> Job:
    columns = (
        'text = "t"\nlabel = "l"'
        if task == "classify"
        else 'text = "t"'
        if text
        else 'prompt = "p"\nresponse = "r"'
    )
    return jobs.parse(
        f'[data]\ntask = "{task}"\nsource = "csv"\ntrain = "x"\n{columns}\n'
        f"[train]\nmax_tokens = {max_tokens}",
        overrides=[f"data.template={template}"] if template else [],
    )


def ask(
    prompt: str,
    response: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str = "",
    max_tokens: int = 64,
) -> tuple[str, str]:
    """Return the whole text of one example and the part of it that is scored."""
    rows = Rows(prompt=(prompt,), response=(response,))
    ours = job("causal", template=template, max_tokens=max_tokens)
    examples = tokenise(rows, tokenizer, job=ours, classes=())
    if not len(examples):
        return "", ""
    ids, scored = examples.ids[0], examples.scored[0]
    assert not scored[0]
    return str(tokenizer.decode(ids.tolist())), str(tokenizer.decode(ids[scored].tolist()))


# --- classify ---------------------------------------------------------------------------------


def test_a_text_becomes_its_ids_and_its_class() -> None:
    rows = Rows(text=("good film", "bad book"), label=("yes", "no"))
    found = tokenise(rows, words(), job=job("classify"), classes=("no", "yes"))
    assert [ids.tolist() for ids in found.ids] == [[3, 5], [4, 6]]
    assert list(found.labels) == [1, 0]
    assert not found.scored
    assert found.ids[0].dtype == torch.int64


def test_rows_without_labels_are_unknown() -> None:
    found = tokenise(Rows(text=("good", "bad")), words(), job=job("classify"), classes=("a", "b"))
    assert list(found.labels) == [-1, -1]


def test_an_encoder_keeps_its_special_tokens_when_a_text_is_cut() -> None:
    rows = Rows(text=("good bad good bad",))
    found = tokenise(rows, encoder(), job=job("classify", max_tokens=4), classes=())
    assert found.ids[0].tolist() == [1, 3, 4, 2]


@pytest.mark.parametrize(
    ("special", "token"),
    [
        ({}, 0),
        ({"eos_token": "film"}, 5),
        ({"bos_token": "book", "eos_token": "film"}, 6),
    ],
)
def test_an_empty_text_is_one_token(special: dict[str, str], token: int) -> None:
    rows = Rows(text=("", "good"))
    found = tokenise(rows, words(**special), job=job("classify"), classes=())
    assert [ids.tolist() for ids in found.ids] == [[token], [3]]


def test_no_rows_are_no_examples() -> None:
    for task in ("classify", "causal"):
        found = tokenise(Rows(), pieces(), job=job(task), classes=())
        assert len(found) == 0
        assert len(found.labels) == 0


def test_a_strange_label_is_named() -> None:
    with pytest.raises(DataError, match="label 'maybe' is not a class; the classes are no, yes"):
        tokenise(
            Rows(text=("good",), label=("maybe",)),
            words(),
            job=job("classify"),
            classes=("no", "yes"),
        )


def test_too_few_tokens_for_the_special_ones_are_refused() -> None:
    with pytest.raises(DataError, match=r"max_tokens must leave room .* 2 special tokens, got 2"):
        tokenise(Rows(text=("good",)), encoder(), job=job("classify", max_tokens=2), classes=())


# --- causal -----------------------------------------------------------------------------------


def test_only_the_response_and_the_end_are_targets() -> None:
    whole, scored = ask("what colour?", "blue", pieces())
    assert whole == PLAIN.format(prompt="what colour?", response="blue") + "<end>"
    assert scored == "blue<end>"


def test_without_an_end_token_only_the_response_is_a_target() -> None:
    assert ask("what colour?", "blue", pieces(end=False))[1] == "blue"


def test_the_start_token_is_never_a_target() -> None:
    whole, scored = ask("x?", "blue", pieces(start=True), template="{prompt}{response}")
    assert (whole, scored) == ("<start>x?blue<end>", "blue<end>")


def test_a_template_s_last_words_are_targets_too() -> None:
    _, scored = ask("a", "blue", pieces(), template="Q {prompt} A {response} ###")
    assert scored.strip() == "blue ###<end>"


def test_a_piece_that_straddles_the_border_is_a_target() -> None:
    tokenizer = pieces()
    assert "Ġthe" in tokenizer.get_vocab()
    whole, scored = ask("x", "the answer", tokenizer, template="{prompt} {response}")
    assert (whole, scored) == ("x the answer<end>", " the answer<end>")


def test_braces_in_a_prompt_are_not_a_template() -> None:
    whole, scored = ask("{response} {0} {x}", "blue {prompt}", pieces())
    assert "{response} {0} {x}" in whole
    assert scored == "blue {prompt}<end>"


@given(
    prompt=st.text(max_size=20),
    response=st.text(min_size=1, max_size=20),
    template=st.sampled_from(["", "chat", "{prompt}|{response}", "A {prompt}\n{response}\nB"]),
)
def test_what_is_scored_ends_with_the_response(prompt: str, response: str, template: str) -> None:
    tokenizer = pieces()
    tokenizer.chat_template = CHAT
    whole, scored = ask(prompt, response, tokenizer, template=template, max_tokens=1000)
    assert whole.endswith(scored)
    assert response in whole
    tail = {"": "<end>", "chat": "<end>", "{prompt}|{response}": "<end>"}.get(template, "\nB<end>")
    before = whole.removesuffix(response + tail)
    assert before != whole
    beyond = scored.removesuffix(response + tail)
    assert beyond != scored
    assert len(beyond) <= 2, "at most the piece that straddles the border"


def test_a_chat_template_is_cut_after_its_end_token() -> None:
    tokenizer = pieces()
    tokenizer.chat_template = CHAT
    whole, scored = ask("what colour?", "blue", tokenizer, template="chat")
    assert whole == "<user>what colour?<end>\n<assistant>blue<end>"
    assert scored == "blue<end>"


def test_a_chat_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="has no chat template"):
        ask("a", "b", pieces(), template="chat")


def test_a_chat_template_that_hides_the_answer_is_refused() -> None:
    tokenizer = pieces()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="does not show the assistant's words"):
        ask("a", "b", tokenizer, template="chat")


# --- what a trained model goes on from --------------------------------------------------------


def prompted(
    tokenizer: Any,  # noqa: ANN401 - of transformers
    rows: Rows,
    template: str = "",
    before: Sequence[tuple[str, str]] = (),
) -> tuple[list[str], list[str]]:
    """Return what a model goes on from, as text, and what comes behind its answers."""
    data = job("causal", template=template).data
    found = task_of("causal").prompts(rows, tokenizer, data=data, before=before)
    return [tokenizer.decode(ids) for ids in found.ids], list(found.tails)


@given(
    prompt=st.text(max_size=20),
    response=st.text(min_size=1, max_size=20),
    template=st.sampled_from(["", "chat", "{prompt}|{response}", "A {prompt}\n{response}\nB"]),
)
def test_a_prompt_is_what_stood_before_the_response_in_training(
    prompt: str, response: str, template: str
) -> None:
    tokenizer = pieces()
    tokenizer.chat_template = CHAT
    whole, _ = ask(prompt, response, tokenizer, template=template, max_tokens=1000)
    (before,), (tail,) = prompted(tokenizer, Rows(prompt=(prompt,)), template)
    assert whole.removeprefix(before).startswith(response)
    assert whole.removesuffix("<end>") == before + response + tail
    assert tail == ("\nB" if template.endswith("B") else "")


def test_what_was_said_before_stands_before_the_prompt() -> None:
    tokenizer = pieces()
    tokenizer.chat_template = CHAT
    rows = Rows(prompt=("what colour?",))
    found, _ = prompted(tokenizer, rows, "chat", [("hello", "good day"), ("x", "the answer")])
    said = "<user>hello<end>\n<assistant>good day<end>\n<user>x<end>\n<assistant>the answer<end>\n"
    assert found == [f"{said}<user>what colour?<end>\n<assistant>"]


def test_a_text_goes_on_from_its_end_and_is_not_closed() -> None:
    tokenizer = pieces()
    inner = tokenizer.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", tokenizer.eos_token_id)]
    )
    found, tails = prompted(tokenizer, Rows(text=("the answer", "x<end>", "")))
    assert found == ["<end>the answer", "<end>x<end>", "<end>"]
    assert tails == ["", "", ""]
    assert prompted(pieces(), Rows()) == ([], [])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "TemplateError, 'roles must'"),
        ("{% for m in messages %}\n{{ m['content'] }", "TemplateSyntaxError in line 2, "),
        ("{{ messages[0].content.nothing.there }}", "UndefinedError, "),
        ("{{ messages[0]['content'] + 1 }}", "TypeError, "),
        ({"other": CHAT}, "ValueError, 'This model has multiple chat templates with no default"),
    ],
)
def test_a_chat_template_that_fails_is_quoted(template: object, words: str) -> None:
    tokenizer = pieces()
    tokenizer.chat_template = template
    with pytest.raises(DataError) as error:
        ask("a", "b", tokenizer, template="chat")
    said = str(error.value)
    assert said.startswith(
        f"the tokenizer's chat template cannot lay out a prompt and its response: {words}"
    )
    assert said.endswith("; write a data.template with {prompt} and {response}")
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "template", ["{prompt}", "{response}", "{response} {prompt}", "{prompt}{response}{response}"]
)
def test_a_template_without_both_places_is_refused(template: str) -> None:
    with pytest.raises(JobError, match=r"data.template must be"):
        ask("a", "b", pieces(), template=template)


def test_a_response_beyond_the_limit_drops_its_row() -> None:
    rows = Rows(prompt=("x", "the question " * 40), response=("blue", "blue"))
    found = tokenise(rows, pieces(), job=job("causal", max_tokens=48), classes=())
    assert len(rows) - len(found) == 1
    assert found.scored[0].any()


def test_a_long_response_is_cut() -> None:
    rows = Rows(prompt=("x",), response=("blue " * 100,))
    found = tokenise(rows, pieces(), job=job("causal", max_tokens=48), classes=())
    assert len(found.ids[0]) == len(found.scored[0]) == 48


def test_running_text_is_scored_after_its_first_token() -> None:
    tokenizer = pieces()
    rows = Rows(text=("the answer is blue", "t", ""))
    found = tokenise(rows, tokenizer, job=job("causal", text=True), classes=())
    assert len(found) == 1
    assert tokenizer.decode(found.ids[0].tolist()) == "the answer is blue"
    assert found.scored[0].tolist() == [False] + [True] * (len(found.ids[0]) - 1)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow(PreTrainedTokenizerFast):
        @property
        def is_fast(self) -> bool:
            return False

    with pytest.raises(DataError, match="a slow tokenizer lacks"):
        ask("a", "b", Slow(tokenizer_object=pieces().backend_tokenizer))


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "columns"), [("last", [2, 0]), ("first", [0, 0])])
def test_one_pooled_token_stands_for_a_text(
    pool: Literal["first", "last"], columns: list[int]
) -> None:
    rows = Rows(text=("good", "bad", "good bad film"), label=("x", "y", "x"))
    examples = tokenise(rows, words(), job=job("classify"), classes=("x", "y"))
    batch = batch_of(examples, [2, 1], pool=pool)
    assert batch.ids.tolist() == [[3, 4, 5], [4, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.rows.tolist() == [0, 1]
    assert batch.columns.tolist() == columns
    assert batch.targets.tolist() == [0, 1]


def test_each_target_is_predicted_one_column_before() -> None:
    rows = Rows(prompt=("x", "the question"), response=("blue", "the answer is"))
    examples = tokenise(rows, pieces(), job=job("causal"), classes=())
    batch = batch_of(examples, [1, 0])
    assert len(batch.targets) == sum(int(s.sum()) for s in examples.scored)
    for row, column, target in zip(batch.rows, batch.columns, batch.targets, strict=True):
        example = [1, 0][int(row)]
        assert examples.scored[example][int(column) + 1]
        assert batch.ids[row, column + 1] == target
        assert column + 1 < batch.lengths[row]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=200),
    batch=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_example_once(lengths: list[int], batch: int, seed: int) -> None:
    batches = plan(lengths, batch=batch, seed=seed, path=("round", 1))
    assert sorted(i for one in batches for i in one) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch)
    assert all(1 <= len(one) <= batch for one in batches)
    assert batches == plan(lengths, batch=batch, seed=seed, path=("round", 1))


def test_an_epoch_differs_by_its_name_and_seed() -> None:
    lengths = [1 + i % 7 for i in range(100)]
    plans = [plan(lengths, batch=8, seed=s, path=("round", r)) for s, r in [(0, 1), (0, 2), (1, 1)]]
    assert plans[0] != plans[1]
    assert plans[0] != plans[2]


def test_batches_waste_little_on_padding_and_come_in_random_order() -> None:
    lengths = [1 + (i * 37) % 100 for i in range(16 * WINDOW * 4)]
    batches = plan(lengths, batch=16, seed=0, path=("x",))
    padded = sum(max(lengths[i] for i in one) * len(one) for one in batches)
    assert padded < 1.2 * sum(lengths)
    longest = [max(lengths[i] for i in one) for one in batches]
    assert longest != sorted(longest)
    assert sum(a < b for a, b in itertools.pairwise(longest)) > len(longest) // 4


@given(lengths=st.lists(st.integers(1, 50), max_size=100), tokens=st.integers(1, 200))
def test_evaluation_batches_stay_within_their_tokens(lengths: list[int], tokens: int) -> None:
    batches = eval_plan(lengths, tokens=tokens)
    assert sorted(i for one in batches for i in one) == list(range(len(lengths)))
    for one in batches:
        assert len(one) == 1 or len(one) * max(lengths[i] for i in one) <= tokens


def test_lengths_are_those_of_the_ids() -> None:
    rows = Rows(text=("good", "good bad film"))
    examples = tokenise(rows, words(), job=job("classify"), classes=())
    assert lengths_of(examples) == [1, 3]
