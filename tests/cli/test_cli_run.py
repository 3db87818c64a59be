"""The whole of it, from job file to report, on a random model of a few thousand parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from typer.testing import CliRunner

from triskel import cli
from triskel.cli import options
from triskel.engines import local
from triskel.experiment import compare
from triskel.report.tables import final_table

SPECIAL = ("<unk>", "</s>")
WORDS = ["bread", "milk", "train", "bus", "late", "fresh", "old", "new"]
JOB = """
name = "tiny"
rounds = 2
[model]
path = "model"
dtype = "float32"
device = "cpu"
[adapter]
rank = 2
[data]
source = "csv"
train = "texts.csv"
text = "text"
label = "topic"
[clients]
count = 2
[train]
max_tokens = 4
batch = 8
[logits]
public = 4
"""


def write_model(folder: Path) -> None:
    unknown, end = SPECIAL
    names = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token=unknown))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=unknown, eos_token=end
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in cli.QUIET:
        monkeypatch.setenv(name, "")
    write_model(tmp_path / "model")
    rows = [
        f"{WORDS[i % 8]} {WORDS[(i * 3) % 8]},{'food' if i % 8 < 2 else 'way'}" for i in range(40)
    ]
    (tmp_path / "texts.csv").write_text("\n".join(["text,topic", *rows]))
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return file


def test_a_comparison_runs_stops_goes_on_and_reports(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CliRunner()
    words = ["compare", str(job), "--modes", "params,split", "--baselines", "base"]
    whole = runner.invoke(cli.app, words)
    assert whole.exit_code == 0, whole.stderr
    assert "2 clients · " in whole.stderr
    assert "params   round 2/2" in whole.stderr
    result = json.loads(Path("runs/tiny-1/result.json").read_text())
    assert set(result["modes"]) == {"params", "split"}
    assert "on everybody's texts" in whole.stdout
    for row in ("base (always way)", "params", "split"):
        assert row in whole.stdout
    assert final_table(result).row_count == 3
    assert Path("runs/tiny-1/report.html").is_file()

    played = local.LocalEngine.round
    rounds: list[int] = []

    def stopped(*given: object, **named: object) -> object:
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return played(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(local.LocalEngine, "round", stopped)
    half = runner.invoke(cli.app, ["run", str(job)])
    assert half.exit_code == 130
    assert half.stderr.endswith(
        "interrupted\nwhat was finished is in runs/tiny-2; "
        "`triskel run --resume runs/tiny-2` goes on\n"
    )
    rest = runner.invoke(cli.app, ["run", "--resume", "runs/tiny-2"])
    assert rest.exit_code == 0, rest.stderr
    again = json.loads(Path("runs/tiny-2/result.json").read_text())
    assert len(rounds) == 3, "a round, the one that was stopped, and that one again"
    assert again["modes"]["params"]["final"] == result["modes"]["params"]["final"]
    assert runner.invoke(cli.app, ["report", "runs/tiny-2"]).exit_code == 0


def test_data_that_are_not_what_the_job_says_are_refused_and_leave_no_folder(job: Path) -> None:
    words = ["run", str(job), "--set", "data.label=colour", "--out", "here"]
    got = CliRunner().invoke(cli.app, words)
    assert got.exit_code == 2
    assert "colour" in got.stderr
    assert got.stderr.splitlines()[-1].startswith("error: ")
    assert not Path("here").exists()


def test_a_mode_that_cannot_run_the_job_is_refused(job: Path) -> None:
    words = ["--set", "clients.each.client-01.rank=4"]
    got = CliRunner().invoke(cli.app, ["run", str(job), "--mode", "params", *words])
    assert got.exit_code == 2
    assert got.stderr.splitlines()[-1].startswith("error: mode params cannot run this job: ")
    assert compare.BASELINES == options.BASELINE_NAMES


def test_baselines_alone_are_compared_and_swept(job: Path) -> None:
    runner = CliRunner()
    alone = ["--modes", "none", "--baselines", "central"]
    whole = runner.invoke(cli.app, ["compare", str(job), *alone, "--seeds", "2"])
    assert whole.exit_code == 0, whole.stderr
    assert "centralised" in whole.stdout
    assert "Only baselines were run." in whole.stdout
    page = Path("runs/tiny-1/report.html").read_text()
    assert "--modes none --baselines central" in page
    found = json.loads(Path("runs/tiny-1/result.json").read_text())
    assert found["summary"]["central"]["everybody"]["n"] == 2
    pairs = ["--set", "data.validation_share=0.25", "--set", "train.lr=1e-3,0.05"]
    swept = runner.invoke(cli.app, ["sweep", str(job), *alone, *pairs])
    assert swept.exit_code == 0, swept.stderr
    assert "★" in swept.stdout


def test_a_run_starts_from_an_adapter_and_goes_on_for_more_rounds(job: Path) -> None:
    def told(*words: str) -> tuple[int, str]:
        got = CliRunner().invoke(cli.app, ["run", *words])
        return got.exit_code, got.stderr.splitlines()[-1]

    def result(folder: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
        return found

    assert told(str(job), "--out", "old/first")[0] == 0
    reached = result("old/first")["modes"]["params"]["final"]
    words = ["--start", "old/first", "--out", "second", "--baselines", "base"]
    assert told(str(job), *words)[0] == 0
    second = result("second")
    assert second["baselines"]["base"]["loss"] == reached["loss"]
    assert second["modes"]["params"]["start"]["name"] == "first/params"

    code, said = told(str(job), "--start", "old", "--out", "third")
    assert (code, Path("third").exists()) == (2, False)
    assert said.startswith(f"error: adapter.start {Path('old').resolve()} holds no adapter; ")
    words = ["--start", "old/first", "--set", "adapter.blocks=top:1", "--out", "third"]
    code, said = told(str(job), *words)
    assert (code, Path("third").exists()) == (2, False)
    assert "sits in blocks" in said

    assert told("--resume", "old/first", "--set", "rounds=3")[0] == 0
    assert len(result("old/first")["modes"]["params"]["rounds"]) == 3
    code, said = told("--resume", "old/first", "--set", "rounds=2")
    assert (code, "asks for fewer" in said) == (2, True)
    code, said = told("--resume", "old/first", "--set", "rounds=many")
    assert (code, "must be a whole number above 0" in said) == (2, True)
    code, said = told("--resume", "old/first", "--start", "second")
    assert (code, "--resume goes on with the job as it was" in said) == (2, True)
