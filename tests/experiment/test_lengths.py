"""Nothing is cut in silence: what does not fit is counted, told, shown, or refused."""

# ruff: noqa: ANN401 - results are JSON

import io
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from triskel.config.job import Job
from triskel.config.read import parse, to_toml
from triskel.data.batches import tokenise, within
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.engines.local import LocalEngine
from triskel.errors import DataError, JobError
from triskel.experiment.compare import Request, run
from triskel.experiment.resources import prepare
from triskel.export.adapters import export_run
from triskel.report.page import render
from triskel.report.tables import final_table, markdown
from triskel.types import Examples, Lost

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
CLASSES = ("bad", "good")
TASKS = ("classify", "causal")


def texts(*words: int) -> tuple[str, ...]:
    return tuple(" ".join(["w1"] * count) for count in words)


def job_of(task: str, **train: Any) -> Job:
    data = {"task": task, "source": "csv", "train": "x.csv", "text": "text"} | (
        {"label": "label"} if task == "classify" else {}
    )
    return Job.model_validate({"data": data, "train": {"max_tokens": 5, **train}})


def tokens(task: str, rows: Rows, **train: Any) -> Examples:
    return tokenise(rows, small.tokenizer(), job=job_of(task, **train), classes=CLASSES)


# --- what is lost, counted by hand ------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("overlong", "kept", "lost"),
    [
        ("cut", [3, 5, 5, 5, 1], Lost(texts=2, tokens=4 + 1, rows=0)),
        ("drop", [3, 5, 1], Lost(texts=2, tokens=9 + 6, rows=2)),
    ],
)
def test_what_is_longer_is_cut_or_left_out_and_counted(
    task: str, overlong: str, kept: list[int], lost: Lost
) -> None:
    label = ("bad", "good", "bad", "good", "bad") if task == "classify" else ()
    found = tokens(task, Rows(text=texts(3, 9, 5, 6, 1), label=label), overlong=overlong)
    if task == "causal":  # one token alone predicts nothing
        kept, lost = kept[:-1], lost + Lost(texts=1, tokens=1, rows=1)
    if overlong == "drop":
        kept = [n for n in [3, 5, 1] if task == "classify" or n > 1]
    assert [len(row) for row in found.ids] == kept
    assert found.lost == lost
    assert not found.whole
    if task == "classify":
        order = [0, 1, 0, 1, 0] if overlong == "cut" else [0, 0, 0]
        assert list(found.labels) == order
    else:
        assert [len(row) for row in found.scored] == kept


@pytest.mark.parametrize("task", TASKS)
def test_what_fits_is_left_as_it_is(task: str) -> None:
    label = ("bad", "good") if task == "classify" else ()
    for overlong in ("cut", "drop", "refuse"):
        found = tokens(task, Rows(text=texts(3, 5), label=label), overlong=overlong)
        assert (found.lost, [len(row) for row in found.ids]) == (Lost(), [3, 5])


@pytest.mark.parametrize("task", TASKS)
def test_what_is_longer_may_be_refused(task: str) -> None:
    label = ("bad", "good", "bad") if task == "classify" else ()
    said = r"1 of 3 texts are longer than train\.max_tokens = 5 \(the longest has 12 tokens\)"
    with pytest.raises(DataError, match=said):
        tokens(task, Rows(text=texts(3, 12, 5), label=label), overlong="refuse")


def test_a_response_that_is_wholly_cut_off_is_a_row_left_out() -> None:
    rows = Rows(prompt=texts(2, 9), response=("good", "bad"))
    one = job_of("causal")
    data = one.data.model_copy(
        update={"prompt": "p", "response": "r", "text": "", "template": "{prompt} {response}"}
    )
    one = one.model_copy(update={"data": data})
    found = tokenise(rows, small.tokenizer(), job=one, classes=())
    assert len(found) == 1
    assert found.lost == Lost(texts=1, tokens=9 + 2, rows=1)


def test_a_task_of_another_package_may_leave_rows_out_itself() -> None:
    """It says nothing of lengths: how many rows are gone is all that is known."""
    ids = Ragged.ids([[1, 2], [3, 4, 5]])
    marks = Ragged.marks([[False, True], [False, False, True]])
    found = within(Examples(ids=ids, labels=(), scored=marks), 5, job_of("causal").train)
    assert found.lost == Lost(texts=3, tokens=0, rows=3)
    assert len(found) == 2
    plain = Examples(ids=list(ids), labels=(), scored=list(marks), whole=[2, 9])
    found = within(plain, 2, job_of("causal", overlong="drop").train)
    assert [row.tolist() for row in found.ids] == [[1, 2]]
    assert found.lost == Lost(texts=1, tokens=9, rows=1)


# --- a job that does not say how long ---------------------------------------------------------


def prompts(folder: Path, **train: Any) -> Job:
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 40)
    one = small.job(model, rows, task="causal").model_dump(exclude_none=True)
    return Job.model_validate({**one, "train": {"batch": 4, **train}})


def test_a_causal_job_must_say_it_and_is_told_what_would_do(tmp_path: Path) -> None:
    """Prompts of 2 to 9 words, two of a response and an end."""
    one = prompts(tmp_path)
    assert one.train.max_tokens is None
    said = r"95 % of 26 training rows have at most 12 tokens, the longest 12; --set train\.max_"
    with pytest.raises(DataError, match=said):
        prepare(one, small.watch)
    with pytest.raises(DataError, match="a causal task has no default"):
        run(one, Request(), tmp_path / "run", LocalEngine(one), small.watch)
    with pytest.raises(JobError, match=r"train\.max_tokens must be set"):
        _ = one.train.length
    again = parse(to_toml(one))
    assert again.train.max_tokens is None
    assert prepare(prompts(tmp_path, max_tokens=12), small.watch).described()["clients"]


def test_a_classify_job_has_a_default() -> None:
    assert parse("").train.max_tokens == 48
    assert parse("[train]\nlr = 0.1").train.max_tokens == 48
    assert parse("[train]\nmax_tokens = 7").train.max_tokens == 7
    with pytest.raises(JobError, match=r"train\.max_tokens: input should be greater than or equal"):
        parse("[train]\nmax_tokens = 0")


# --- where it is told -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose texts have 2 to 9 words, of which 5 are read."""
    folder, told = tmp_path_factory.mktemp("cut"), list[Any]()
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 60)
    one = small.job(model, rows, train={"max_tokens": 5})
    request = Request(modes=("params", "logits"), baselines=())
    run(one, request, folder / "run", LocalEngine(one), told.append)
    found = json.loads((folder / "run" / "result.json").read_text())
    resources = prepare(one, small.watch)
    return {"folder": folder / "run", "told": told, "resources": resources, "result": found}


def by_length(told: list[Any]) -> list[str]:
    """Return the warnings that are about lengths."""
    said = [event["text"] for event in told if event["event"] == "warning"]
    return [text for text in said if "train.max_tokens" in text]


def by_hand(rows: Rows) -> Mapping[str, int]:
    lengths = [len(text.split()) for text in rows.text]
    over = [n - 5 for n in lengths if n > 5]
    return {"texts": len(over), "tokens": sum(over), "rows": 0, "of": sum(lengths)}


def test_a_result_says_per_client_and_share_what_was_lost(cut: Any) -> None:
    clients = cut["resources"].federation.clients
    for name, told in cut["result"]["data"]["clients"].items():
        shares = {"train": by_hand(clients[name].train), "test": by_hand(clients[name].test)}
        whole = {key: sum(one[key] for one in shares.values()) for key in shares["train"]}
        assert told["lost"] == {**whole, **shares}
    public = cut["result"]["data"]["public_lost"]
    assert public == by_hand(cut["resources"].federation.public)


def test_the_log_warns_once_for_each_kind_of_texts(cut: Any) -> None:
    said = by_length(cut["told"])
    kinds = [
        what for what in ("training", "test", "public") for text in said if f"{what} texts" in text
    ]
    assert kinds == ["training", "test", "public"]
    rows = [h.train for h in cut["resources"].federation.clients.values()]
    lost = sum(by_hand(one)["tokens"] for one in rows) / sum(by_hand(one)["of"] for one in rows)
    texts = sum(by_hand(one)["texts"] for one in rows)
    assert f"{lost * 100:.0f} % of the tokens of training texts are not read" in said[0]
    assert f"train.max_tokens = 5 and {texts} texts are longer" in said[0]


def test_table_page_and_card_say_it(cut: Any, tmp_path: Path) -> None:
    shown = io.StringIO()
    Console(file=shown, width=200).print(final_table(cut["result"]))
    assert "Texts are longer than train.max_tokens" in shown.getvalue()
    assert "Texts are longer than train.max_tokens" in markdown(cut["result"])
    page = render(cut["result"])
    assert "Tokens not read" in page
    assert "longer than train.max_tokens = 5" in page
    export_run(cut["folder"], tmp_path / "out", mode="params", say=lambda _: None)
    clients = cut["result"]["data"]["clients"].values()
    lost, of = (sum(one["lost"]["train"][key] for one in clients) for key in ("tokens", "of"))
    for card in (cut["folder"] / "adapters" / "params", tmp_path / "out"):
        said = (card / "README.md").read_text(encoding="utf-8")
        assert f"tokens of a text were read: {lost / of:.1%} of what the training texts" in said


@pytest.mark.parametrize("task", TASKS)
def test_what_is_dropped_is_in_no_count_and_the_card_says_dropped(
    task: str, tmp_path: Path
) -> None:
    model = small.save_model(tmp_path / "model")
    rows = small.save_rows(tmp_path / "rows.csv", 60)
    limit = 6 if task == "classify" else 9  # beside the prompt: a response of two words, and an end
    sections: dict[str, Any] = {
        "train": {"max_tokens": limit, "overlong": "drop"},
        "data": {"validation_share": 0.2, "label": "label"},
        "clients": {"partition": "dirichlet"},
    }
    one = small.job(model, rows, task=task, **sections)
    request = Request(modes=("params",), baselines=(), judge="validation")
    found = run(one, request, tmp_path / "run", LocalEngine(one), small.watch)
    resources = prepare(one, small.watch, judge="validation")
    judged = 0
    for name, told in found["data"]["clients"].items():
        held = resources.federation.clients[name]
        sides = zip(held.train.text or held.train.prompt, held.train.label, strict=True)
        short = [(text, label) for text, label in sides if len(text.split()) <= 6]
        assert told["train"] == len(short) < len(held.train)
        assert told["labels"] == {
            label: sum(own == label for _, own in short) for label in small.LABELS
        }
        judged += told["test"]
    assert found["data"]["validation"] == judged
    said = (tmp_path / "run" / "adapters" / "params" / "README.md").read_text(encoding="utf-8")
    assert f"Texts of more than {limit} tokens were dropped: " in said
    assert "of what the training texts have was not read. The figures hold" in said
    assert "Only the first" not in said


def test_nothing_is_said_where_nothing_is_lost(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model")
    one, told = small.job(model, small.save_rows(tmp_path / "rows.csv", 60)), list[Any]()
    request = Request(modes=("params",), baselines=())
    found = run(one, request, tmp_path / "run", LocalEngine(one), told.append)
    assert not by_length(told)
    lost = [held["lost"] for held in found["data"]["clients"].values()]
    assert {(one["texts"], one["tokens"], one["rows"]) for one in lost} == {(0, 0, 0)}
    assert "Tokens not read" not in render(json.loads((tmp_path / "run/result.json").read_text()))


@pytest.mark.parametrize(
    ("adapter", "seen", "behind"),
    [({}, 8, ""), ({"kind": "prompt", "tokens": 4}, 15, " behind 4 virtual tokens")],
)
def test_texts_beyond_what_a_rotary_model_has_seen_are_warned_of(
    adapter: dict[str, Any], seen: int, behind: str, tmp_path: Path
) -> None:
    model = small.save_model(tmp_path / "model", max_position_embeddings=seen)
    rows, told = small.save_rows(tmp_path / "rows.csv", 60), list[Any]()
    one = small.job(model, rows, adapter=adapter)
    request = Request(modes=("params",), baselines=())
    run(one, request, tmp_path / "run", LocalEngine(one), told.append)
    (only,) = by_length(told)
    start = f"train.max_tokens is 12{behind}, and this model was made for texts of up to {seen} "
    assert only.startswith(start)


def test_absolute_positions_are_refused(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model", "gpt2", n_positions=8)
    one = small.job(model, small.save_rows(tmp_path / "rows.csv", 60))
    with pytest.raises(JobError, match=r"knows 8 positions; --set train\.max_tokens=8"):
        run(one, Request(), tmp_path / "run", LocalEngine(one), small.watch)


def test_a_run_says_how_it_read_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model")
    rows = small.save_rows(tmp_path / "rows.csv", 40)
    text = rows.read_text(encoding="utf-8").replace("w1 ", "caf\u00e9 ")
    rows.write_bytes(text.encode("latin-1"))
    told: list[str] = []

    def watch(event: Any) -> None:
        if event["event"] == "warning":
            told.append(event["text"])

    asked = Request(modes=("params",), baselines=())
    for number, encoding in enumerate(("", "latin-1")):
        told.clear()
        job = small.job(model, rows, data={"encoding": encoding})
        run(job, asked, tmp_path / str(number), LocalEngine(job), watch)
        said = [line for line in told if "is read as Windows-1252" in line]
        assert len(said) == (0 if encoding else 1)
