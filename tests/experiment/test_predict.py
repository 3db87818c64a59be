"""What a trained model makes of rows is what transformers and PEFT make of them without Triskel."""

import json
import runpy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers

import triskel
from triskel.data.batches import Prompts
from triskel.data.files import load
from triskel.engines.local import LocalEngine
from triskel.errors import DataError, JobError, ModelError
from triskel.experiment.chat import Chat
from triskel.experiment.compare import Request, run
from triskel.experiment.predict import Prediction, Predictor, _Pieces, left
from triskel.experiment.reevaluate import assess
from triskel.experiment.trained import trained
from triskel.export.adapters import export_run
from triskel.export.manifest import read_manifest
from triskel.model.generate import Sampling

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
TEXTS = [small.text(2 + (3 * i) % 7, 5 * i + 1) for i in range(9)]
TURNS = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
"""A chat template of words that the tokenizer does not know, and its end of text."""
Said = list[dict[str, Any]]


def played(folder: Path, job: Any, *modes: str, baselines: Sequence[str] = ()) -> Path:  # noqa: ANN401 - a job
    request = Request(modes=modes, baselines=tuple(baselines))
    run(job, request, folder / "run", LocalEngine(job), small.watch)
    return folder / "run"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of all modes, in which one client has a wider model of its own."""
    folder = tmp_path_factory.mktemp("classes")
    model = small.save_model(folder / "model")
    wider = small.save_model(folder / "wider", hidden_size=24)
    rows = small.save_rows(folder / "rows.csv", 60)
    own = {"each": {"client-02": {"model": str(wider), "rank": 3}}}
    plain = small.job(model, rows, train={"lr": 0.05})
    run(plain, Request(modes=("params", "split"), baselines=("local",)), folder / "run",
        LocalEngine(plain), small.watch)  # fmt: skip
    prompt = small.job(model, rows, train={"lr": 0.05}, adapter={"kind": "ptuning", "tokens": 4})
    run(prompt, Request(modes=("params",), baselines=()), folder / "prompt", LocalEngine(prompt),
        small.watch)  # fmt: skip
    mixed = small.job(model, rows, train={"lr": 0.05}, clients=own, mode="logits")
    run(mixed, Request(modes=("logits",), baselines=()), folder / "mixed", LocalEngine(mixed),
        small.watch)  # fmt: skip
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that writes, with the layout of a template."""
    folder = tmp_path_factory.mktemp("texts")
    model = small.save_model(folder / "model", request.param)
    rows = small.save_rows(folder / "rows.csv", 40)
    job = small.job(model, rows, task="causal", train={"lr": 0.05})
    return played(folder, job, "params")


def plain(run_: Path, target: Path, **which: Any) -> tuple[Any, Any]:  # noqa: ANN401 - of `export_run`
    """Return the exported adapter on its base, by PEFT alone, and the tokenizer."""
    folder = export_run(run_, target, say=lambda _: None, **which)
    manifest = read_manifest(folder)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    kind: Any = transformers.AutoModelForCausalLM
    if manifest.classes:
        kind = transformers.AutoModelForSequenceClassification
        options |= {"num_labels": len(manifest.classes)}
    model = peft.PeftModel.from_pretrained(
        kind.from_pretrained(manifest.base, **options), str(folder)
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(manifest.base)


def predictor(run_: Path, batch: int | None = None, **sampling: Any) -> Predictor:  # noqa: ANN401 - of `Sampling`
    how = Sampling(**sampling) if sampling else None
    return Predictor(trained(run_, watch=small.watch), sampling=how, batch=batch)


def answers(ready: Predictor, prompts: Sequence[str], **more: Any) -> list[str | None]:  # noqa: ANN401 - of `predict`
    rows = ready.read(ready.named(prompts), "the test")
    found = dict(ready.predict(rows, "the test", **more))
    return [found[row].answer for row in range(len(rows))]


# --- classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_", "mode", "client"),
    [
        ("run", "params", None),
        ("run", "split", None),
        ("run", "local", "client-03"),
        ("prompt", "params", None),
        ("mixed", "logits", None),
        ("mixed", "logits", "client-01"),
        ("mixed", "logits", "client-02"),
    ],
)
def test_probabilities_are_those_of_peft_on_the_exported_adapter(
    run_: str, mode: str, client: str | None, classes: Path, tmp_path: Path
) -> None:
    found = triskel.Result(classes / run_).predict(TEXTS, mode, client)
    model, tokenizer = plain(classes / run_, tmp_path / "out", mode=mode, client=client)
    for text, one in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            shares = model(torch.tensor([tokenizer(text)["input_ids"]])).logits.softmax(1)[0]
        assert list(one.probabilities) == list(small.LABELS)
        torch.testing.assert_close(
            torch.tensor(list(one.probabilities.values())), shares, rtol=1e-4, atol=1e-6
        )
        assert one.answer == small.LABELS[int(shares.argmax())]
        assert (one.read, one.cut, one.written) == (len(text.split()), 0, 0)
    assert len({one.answer for one in found}) > 1


def test_as_many_classes_are_right_as_an_evaluation_counts(classes: Path, tmp_path: Path) -> None:
    file = small.save_rows(tmp_path / "more.csv", 30, start=7)
    columns = load(file)
    found = triskel.Result(classes / "run").predict(columns, "params")
    right = [one.answer == label for one, label in zip(found, columns["label"], strict=True)]
    wanted = assess(classes / "run", mode="params", data=file, watch=small.watch)["accuracy"]
    assert sum(right) / len(right) == pytest.approx(wanted)


def test_rows_that_run_together_change_no_class(classes: Path) -> None:
    result = triskel.Result(classes / "run")
    wanted = result.predict(TEXTS, "params", batch=1)
    for batch in (4, 100):
        for one, alone in zip(result.predict(TEXTS, "params", batch=batch), wanted, strict=True):
            assert one.answer == alone.answer
            assert list(one.probabilities.values()) == pytest.approx(
                list(alone.probabilities.values()), abs=1e-6
            )


def changed(run_: Path, target: Path, old: str, new: str) -> Path:
    """Return a run whose job says something else."""
    import hashlib  # noqa: PLC0415 - of this helper

    shutil.copytree(run_, target)
    text = (target / "job.toml").read_text().replace(old, new)
    assert new in text
    (target / "job.toml").write_text(text)
    asked = json.loads((target / "request.json").read_text())
    asked["job_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (target / "request.json").write_text(json.dumps(asked))
    return target


def test_what_is_too_long_is_cut_dropped_or_refused_and_said(classes: Path, tmp_path: Path) -> None:
    long, rows = " ".join(["w1"] * 15), ["w2 w3", " ".join(["w1"] * 15), "", "w4"]
    result = triskel.Result(classes / "run")
    found = result.predict(rows, "params")
    cut = result.predict([" ".join(["w1"] * 12)], "params")[0]
    assert found[1].probabilities == pytest.approx(cut.probabilities)
    assert [(one.read, one.cut) for one in found] == [(2, 0), (12, 3), (1, 0), (1, 0)]
    ready = predictor(classes / "run")
    read = ready.read(ready.named(rows), "the test")
    assert list(left(found, read)) == [
        "row 3 is empty, and answered like any other text",
        "row 2 is too long and cut: 3 of 19 tokens were not read",
    ]
    dropping = changed(classes / "run", tmp_path / "drop", '"cut"', '"drop"')
    dropped = triskel.Result(dropping).predict(rows, "params")
    assert dropped[1] == Prediction(answer=None, read=0, cut=15)
    assert dropped[0] == found[0]
    assert next(iter(left(dropped, read))).startswith("row 2 is too long, and left without an")
    refusing = changed(classes / "run", tmp_path / "refuse", '"cut"', '"refuse"')
    with pytest.raises(DataError, match=r"1 of 2 rows of the list of texts are longer than train"
                       r"\.max_tokens = 12, the first is row 2; shorten"):  # fmt: skip
        triskel.Result(refusing).predict(["w1", long], "params")


# --- text that is written ---------------------------------------------------------------------


def by_hand(model: Any, tokenizer: Any, text: str, tokens: int) -> str:  # noqa: ANN401 - PEFT's
    """Return what transformers writes behind a prompt that is alone."""
    ids = tokenizer(text, return_tensors="pt")
    model.generation_config.pad_token_id = 0
    found = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_answers_are_those_of_transformers_alone_or_side_by_side(
    texts: Path, tmp_path: Path
) -> None:
    model, tokenizer = plain(texts, tmp_path / "out")
    wanted = [by_hand(model, tokenizer, f"{text} ", 6) for text in TEXTS]
    assert len(set(wanted)) > 3
    result = triskel.Result(texts)
    for batch in (1, 4, None):
        found = result.predict(TEXTS, max_new_tokens=6, batch=batch)
        assert [one.answer for one in found] == wanted
    assert [one.read for one in found] == [len(text.split()) for text in TEXTS]
    assert all(one.written == len(tokenizer(one.answer)["input_ids"]) for one in found)
    in_order = predictor(texts, 4, max_new_tokens=6)
    rows = in_order.read(in_order.named(TEXTS), "the test")
    assert [row for row, _ in in_order.predict(rows, "", in_order=True)] == list(range(9))


def test_what_is_drawn_follows_from_seed_and_row_and_not_from_the_rows_beside(
    texts: Path,
) -> None:
    result, how = triskel.Result(texts), {"temperature": 1.5, "max_new_tokens": 8}
    first = result.predict(TEXTS, **how, seed=3)
    for batch in (1, 4):
        again = result.predict(TEXTS, **how, seed=3, batch=batch)
        assert [one.answer for one in again] == [one.answer for one in first]
    other = result.predict(TEXTS, **how, seed=4)
    assert all(a.answer != b.answer for a, b in zip(first, other, strict=True))
    same = result.predict([TEXTS[0]] * 3, **how)
    assert len({one.answer for one in same}) == 3
    narrow = result.predict(TEXTS, **how, top_p=1e-6)
    assert narrow == result.predict(TEXTS, max_new_tokens=8)


def test_a_prompt_longer_than_the_model_is_read_at_its_end(texts: Path, tmp_path: Path) -> None:
    long = " ".join(small.WORDS[i % 40] for i in range(140))
    end = " ".join(long.split()[-124:])
    result = triskel.Result(texts)
    found = result.predict([long, end, ""], max_new_tokens=4)
    assert found[0].answer == found[1].answer
    assert [(one.read, one.cut) for one in found] == [(124, 16), (124, 0), (0, 0)]
    assert found[2].answer is None
    ready = predictor(texts, max_new_tokens=4)
    told = list(left(found, ready.read(ready.named([long, end, ""]), "")))
    assert told == [
        "row 3 is without a token, and left without an answer",
        "row 1 is too long and cut: 16 of 264 tokens were not read",
    ]
    with pytest.raises(JobError, match="max_new_tokens is 128, and the model reads and writes 128"):
        result.predict(["w1"])
    dropping = changed(texts, tmp_path / "drop", '"cut"', '"drop"')
    assert triskel.Result(dropping).predict([long], max_new_tokens=4)[0].answer is None


def test_an_answer_is_told_piece_by_piece_as_it_is_returned(texts: Path) -> None:
    ready, pieces = predictor(texts, max_new_tokens=6), list[str]()
    (answer,) = answers(ready, TEXTS[:1], told=pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) == len((answer or "").split())
    pieces.clear()
    answers(ready, TEXTS[:2], told=pieces.append)
    assert pieces == []  # whose would they be?


def test_what_a_layout_has_behind_an_answer_is_none_of_it(texts: Path) -> None:
    ready = predictor(texts, max_new_tokens=6)
    found = ready.prompts(ready.read(ready.named(TEXTS), "the test"))
    wanted = ready.write(found, range(9))
    place = max(range(9), key=lambda row: wanted[row].written)
    before, _, last = (wanted[place].answer or "").rpartition(" ")
    assert last
    pieces: list[str] = []
    ends = Prompts(ids=found.ids, tails=[f" {last}"] * 9)
    (one,) = ready.write(ends, [place], pieces.append)
    assert (one.answer, "".join(pieces)) == (before, before)
    assert one.written == wanted[place].written


def test_a_piece_is_no_half_character_nor_what_may_be_a_tail() -> None:
    told: list[str] = []
    spelled = ["a", "a\ufffd", "aé", "aé\n", "aé\n#b", "aé\n#b\n##", "aé\n#b\n##"]
    pieces = _Pieces(lambda tokens: spelled[len(tokens)], "\n## end", told.append)
    for size in range(len(spelled)):
        pieces.more([0] * size)
    assert told == ["a", "é", "\n#b"]
    pieces.last(spelled[-1])
    assert "".join(told) == spelled[-1]


# --- what it computes in ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "wanted"), [("classes", "auto"), ("talk", "float32")])
def test_text_is_written_in_float32_where_the_type_is_open(
    kind: str, wanted: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    run_ = folder if kind == "talk" else folder / "run"
    opened = changed(run_, tmp_path / "auto", 'dtype = "float32"', 'dtype = "auto"')
    for dtype, computes in ((None, wanted), ("auto", "auto"), ("bfloat16", "bfloat16")):
        model = trained(opened, dtype=dtype, watch=small.watch)  # type: ignore[arg-type]
        assert model.job.model.dtype == computes
        if computes != "auto":
            assert model.body.dtype == getattr(torch, computes)
        assert model.body.prefix is None, "nothing is kept of texts that run once"


# --- conversations ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose texts are laid out as a chat."""
    folder = tmp_path_factory.mktemp("talk")
    model = small.save_model(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(model)
    rows = small.save_rows(folder / "rows.csv", 40)
    top = {"blocks": "2-2"}
    job = small.job(
        model, rows, task="causal", data={"template": "chat"}, train={"lr": 0.05}, adapter=top
    )
    return played(folder, job, "params")


def test_a_chat_is_answered_behind_what_was_said_before(talk: Path, tmp_path: Path) -> None:
    model, tokenizer = plain(talk, tmp_path / "out")
    chat = Chat(predictor(talk, max_new_tokens=5))
    assert chat.remembers
    said: Said = []
    for line in ("w1 w2", "w3", "w4 w5 w6"):
        said.append({"role": "user", "content": line})
        laid_out = tokenizer.apply_chat_template(
            [*said, {"role": "assistant", "content": "HERE"}], tokenize=False
        )
        wanted = by_hand(model, tokenizer, laid_out.partition("HERE")[0], 5)
        found, gone = chat.answer(line)
        assert (found.answer, gone) == (wanted, 0)
        said.append({"role": "assistant", "content": wanted})
    assert chat.turns == [(a["content"], b["content"]) for a, b in zip(said[::2], said[1::2])]  # noqa: B905 - pairs
    chat.reset()
    assert chat.answer("w1 w2")[0].answer == said[1]["content"]


def test_the_oldest_turns_are_forgotten_when_a_talk_is_longer_than_the_model(talk: Path) -> None:
    chat = Chat(predictor(talk, max_new_tokens=20))
    lines = [" ".join([f"w{i}"] * 25) for i in range(5)]
    gone = [chat.answer(line)[1] for line in lines]
    assert gone[:2] == [0, 0]
    assert sum(gone) == 5 - len(chat.turns) > 0
    assert [asked for asked, _ in chat.turns] == lines[-len(chat.turns) :]
    found, _ = chat.answer(" ".join(["w1"] * 200))
    assert found.read == 108
    assert found.cut > 90
    assert len(chat.turns) == 1


def test_a_chat_without_a_chats_layout_knows_one_line(texts: Path) -> None:
    chat = Chat(predictor(texts, max_new_tokens=5))
    assert not chat.remembers
    first = chat.answer("w1 w2")[0].answer
    chat.answer("w3")
    assert chat.answer("w1 w2")[0].answer == first
    assert chat.turns == []
    with pytest.raises(JobError, match="the line has no token"):
        chat.answer("")


def test_a_model_of_classes_does_not_talk_nor_is_it_told_how_to_write(classes: Path) -> None:
    ready = Predictor(trained(classes / "run", mode="split", watch=small.watch))
    with pytest.raises(JobError, match=r"tells classes and writes no text; `triskel predict"):
        Chat(ready)
    with pytest.raises(JobError, match="tells classes and writes nothing; leave out max_new"):
        triskel.Result(classes / "run").predict(["w1"], "params", seed=1)


# --- what cannot be ---------------------------------------------------------------------------


def test_which_model_is_meant_is_said_as_of_an_export(classes: Path) -> None:
    result = triskel.Result(classes / "run")
    assert result.predict(TEXTS) == result.predict(TEXTS, "params")
    for which, said in (
        ({"mode": "parms"}, "no adapter of mode parms; it has local of client client-01"),
        ({"mode": "local"}, "more than one adapter of mode local"),
        ({"mode": "params", "client": "ann"}, "no adapter of mode params of client ann"),
    ):
        with pytest.raises(JobError, match=said):
            result.predict(TEXTS, **which)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"txt": ["w1"]}, r"the list of texts has no column 'text'; did you mean 'txt'\?"),
        ({"text": ["w1", None]}, r"has 1 rows of 2 without a value in column 'text', .* row 2"),
        ({"text": ["w1", float("nan")]}, r"without a value in column 'text', the first is row 2"),
        ({"text": ["w1", ["w2"]]}, r"row 2 holds a list in column 'text'"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    columns: Mapping[str, Sequence[object]], said: str, classes: Path
) -> None:
    with pytest.raises(DataError, match=said):
        triskel.Result(classes / "run").predict(columns)


def _another_base(folder: Path) -> None:
    shutil.rmtree(folder)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(small.config())
    model.save_pretrained(folder)
    small.tokenizer().save_pretrained(folder)


def _other_tokens(folder: Path) -> None:
    place = folder / "tokenizer.json"
    place.write_text(place.read_text().replace('"w1"', '"v1"'))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (_another_base, ModelError, "was trained on another base model"),
        (_other_tokens, DataError, "the tokenizer of the model makes other tokens than when"),
        (shutil.rmtree, DataError, "does not exist"),
    ],
)
def test_another_base_is_refused(
    spoil: Callable[[Path], None], error: type[Exception], said: str, classes: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(classes / "model", tmp_path / "model")
    moved = changed(
        classes / "run", tmp_path / "run", str(classes / "model"), str(tmp_path / "model")
    )
    for place in (moved / "adapters").glob("*/triskel.json"):
        place.write_text(place.read_text().replace(str(classes), str(tmp_path)))
    assert triskel.Result(moved).predict(["w1"]) == triskel.Result(classes / "run").predict(["w1"])
    spoil(tmp_path / "model")
    with pytest.raises(error, match=said) as refused:
        triskel.Result(moved).predict(["w1"])
    if spoil is shutil.rmtree:
        assert refused.value.__notes__[0].startswith("`--model DIR` says where")
        here = trained(moved, model=classes / "model", watch=small.watch)
        assert here.body.path == str((classes / "model").resolve())
