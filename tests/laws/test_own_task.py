"""A task of another package is learnt, scored, told of and governed like those of the house.

`examples/own_task` is installed beside Triskel, in which nothing is edited, and removed again.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import Job
from triskel.config.read import parse, to_toml
from triskel.core.registry import TASKS
from triskel.data.batches import batch_of, task_of
from triskel.engines.local import LocalEngine
from triskel.errors import DataError, JobError
from triskel.experiment.compare import Request, resume, run
from triskel.training.loop import StepId

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
sites = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "sites.py")))
RUNNER = CliRunner()
ALL = ("params", "logits", "split")
PINNED = '\n[plugins.last_word]\npackage = "own-task"\n'


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    found: Path = plugins.install("own_task", tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the example beside Triskel."""
    with plugins.beside(package, "own_task"):
        yield


def job(folder: Path, **sections: Any) -> Job:
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 60)
    one: Job = small.job(model, rows, **{"rounds": 2, **sections})
    data = {"source": "csv", "train": str(rows), "task": "last_word", "text": "text"}
    return Job.model_validate({**one.model_dump(exclude_none=True), "data": data})


@pytest.fixture(scope="module")
def finished(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of all three modes on the task."""
    folder = tmp_path_factory.mktemp("finished")
    with plugins.beside(package, "own_task"):
        one = job(folder)
        run(
            one, Request(modes=ALL, baselines=("base", "local")), folder / "run",
            LocalEngine(one), small.watch,
        )  # fmt: skip
    return folder / "run"


@pytest.mark.usefixtures("installed")
def test_every_token_of_the_last_word_is_a_target_and_no_other(tmp_path: Path) -> None:
    one = job(tmp_path)
    resources = small.resources(one)
    share = resources.tokens.share("client-01")
    words = [ids.tolist() for ids in share.train.ids]
    held = resources.federation.clients["client-01"].train.text
    vocabulary = resources.body().tokenizer.get_vocab()
    for text, ids, scored in zip(held, words, share.train.scored, strict=True):
        assert ids == [vocabulary[word] for word in text.split()]
        assert scored.tolist() == [False] * (len(ids) - 1) + [True]


@pytest.mark.usefixtures("installed")
def test_what_is_made_small_is_the_tasks_own_loss_in_every_mode(tmp_path: Path) -> None:
    """The first step's loss of a client, computed by hand from the start of the model."""
    one = job(tmp_path, rounds=1, logits={"mix": 0.0})
    resources = small.resources(one)
    body, share = resources.body(), resources.tokens.share("client-01")
    losses: dict[str, float] = {}

    def watch(event: Any) -> None:
        if event.get("event") == "step" and event["client"] == "client-01":
            losses.setdefault(event["stage"], event["loss"])

    run(one, Request(modes=ALL, baselines=()), tmp_path / "run", LocalEngine(one), watch)
    worker = resources.worker("client-01", small.watch)
    rows = worker.plan(share.train, StepId("client-01", 1), 1)[0]
    batch = batch_of(share.train, rows, pool="last")
    with torch.no_grad():
        logits = body.logits(body.parameters(body.initial), batch).float()
    logp = logits.log_softmax(-1)
    right = logp[torch.arange(len(batch.targets)), batch.targets]
    wanted = -(0.9 * right + 0.1 * logp.mean(-1)).mean()
    plain = cross_entropy(logits, batch.targets)
    assert abs(wanted - plain) > 1e-4, "the two losses can be told apart"
    for stage in ALL:
        assert losses[stage] == pytest.approx(float(wanted), rel=1e-4), stage


def test_rows_are_ranked_by_its_figure_and_scored_by_plain_cross_entropy(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["task"] == {"name": "last_word", "head": "vocabulary", "figure": "accuracy"}
    assert [*result["modes"]] == [*ALL]
    assert result["summary"]["figure"] == "accuracy"
    base = result["baselines"]["base"]
    assert base["what"] == "zero-shot"
    page = (finished / "report.html").read_text()
    assert ">Perplexity<" in page
    assert "last_word" in page


def test_page_export_and_evaluation_do_without_its_package_where_no_text_is_read(
    finished: Path, tmp_path: Path
) -> None:
    assert "last_word" not in TASKS.names()
    run_ = shutil.copytree(finished, tmp_path / "run")
    before = (run_ / "report.html").read_bytes()
    (run_ / "report.html").unlink()
    for words in (["report", run_], ["export", run_, tmp_path / "out", "--mode", "split"]):
        got = RUNNER.invoke(cli.app, list(map(str, words)))
        assert got.exit_code == 0, got.output
    assert (run_ / "report.html").read_bytes() == before
    assert json.loads((tmp_path / "out" / "triskel.json").read_text())["task"] == "last_word"
    got = RUNNER.invoke(cli.app, ["evaluate", str(run_), "--mode", "params"])
    assert got.exit_code == 2
    assert "there is no task 'last_word' here" in got.stderr


def test_it_is_evaluated_and_resumed_with_its_package(
    package: Path, finished: Path, tmp_path: Path
) -> None:
    run_ = shutil.copytree(finished, tmp_path / "run")
    final = json.loads((run_ / "result.json").read_text())["modes"]["params"]["final"]
    with plugins.beside(package, "own_task"):
        got = RUNNER.invoke(cli.app, ["evaluate", str(run_), "--mode", "params"])
        assert got.exit_code == 0, got.output
        again = resume(run_, LocalEngine, small.watch)
    assert f"{final['everybody']['accuracy']:.3f}" in got.stdout
    assert again["modes"]["params"]["final"] == final


@pytest.mark.usefixtures("installed")
def test_what_it_needs_and_does_not_read_is_refused_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"data\.text must name a column for last_word"):
        parse('[data]\ntask = "last_word"\nsource = "csv"\ntrain = "x.csv"')
    one = job(tmp_path)
    told = parse(to_toml(one), overrides=['data.classes=["a", "b"]'])
    with pytest.raises(DataError, match=r"data\.classes is given and is not read for last_word"):
        small.resources(told)


def test_a_task_that_is_not_here_is_refused_and_ours_are_named() -> None:
    said = r"data\.task must be one of classify, causal, got 'last_word'"
    with pytest.raises(JobError, match=said):
        parse('[data]\ntask = "last_word"\nsource = "csv"\ntrain = "x"\ntext = "t"')
    assert type(task_of("causal")).__name__ == "Causal"


# --- between organisations --------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_a_task_that_does_not_say_how_it_is_prompted_writes_nothing(finished: Path) -> None:
    got = RUNNER.invoke(cli.app, ["predict", str(finished), "-"], input="w1 w2\n")
    assert got.exit_code == 2
    assert "task 'last_word' does not say how a model that it trained is prompted" in got.stderr


def governed(tmp_path: Path, more: str) -> tuple[Any, dict[str, Any]]:
    """Sites whose policies say more, and what is submitted to them."""
    there = sites.house(tmp_path, task="causal")
    for name in ("server", *sites.SITES):
        place = there.root / name / "local" / "policy.toml"
        place.write_text(place.read_text() + more)
    text = there.text.replace('task = "causal"', 'task = "last_word"')
    old = 'prompt = "text"\nresponse = "answer"\ntemplate = "{prompt} {response}"'
    assert old in text
    there = sites.House(there.root, text.replace(old, 'text = "text"'))
    spec = {"schema": 1, "run": sites.RUN, "job": there.text, "modes": ["params"]}
    return there, spec


@pytest.mark.usefixtures("installed")
def test_a_policy_pins_its_package_and_then_sites_learn_it(tmp_path: Path) -> None:
    there, spec = governed(tmp_path, PINNED)
    ended = sites.Meeting(there, spec).play()
    assert ended == {"done": True, "refused": False}
    result = json.loads((there.root / "out" / "result.json").read_text())
    assert result["task"]["name"] == "last_word"


@pytest.mark.usefixtures("installed")
def test_a_policy_that_pins_nothing_refuses_it_and_nothing_is_imported(tmp_path: Path) -> None:
    there, spec = governed(tmp_path, "")
    ended = sites.Meeting(there, spec).play()
    assert ended["refused"]
    assert "plugins.last_word: the job learns task 'last_word'" in ended["error"]
    assert "own_task" not in sys.modules
