"""`triskel site`: a policy is written, a job is held against it, a log is verified."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.cli import site as commands
from triskel.policy.budget import Spent
from triskel.policy.hash_chain import Chain
from triskel.policy.model_hash import weights as weights_of
from triskel.policy.read import load
from triskel.policy.rules import Budget, Policy
from triskel.policy.template import TEMPLATE

RUNNER = CliRunner()
POLICY = """
modes = ["params", "split"]
submitters = ["ann"]
[models]
small = "SHA"
[datasets.tickets]
paths = ["secret.csv"]
columns = { text = "message", label = "team" }
[leave]
activations = true
[split]
first = 4
last = 2
[limits]
round_mb = 1.9
message_mb = 256
[hours]
zone = "UTC"
opens = "18:00"
closes = "20:00"
"""
JOB = """
[model]
path = "small"
[data]
source = "csv"
train = "tickets"
text = "text"
label = "label"
"""
GOOD = ["--by", "ann", "--clients", "4", "--up-mb", "1.9", "--at", "2026-11-16T18:00:00"]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRISKEL_CACHE", str(tmp_path / "cache"))
    Path("jobs").mkdir()
    model(Path("models/small"), b"weights")
    Path("jobs/job.toml").write_text(JOB, encoding="utf-8")
    admit()


def admit() -> None:
    """Write the policy, with the model as it is now."""
    text = POLICY.replace("SHA", digest("models/small"))
    Path("policy.toml").write_text(text, encoding="utf-8")


def digest(folder: str) -> str:
    found = weights_of(Path(folder))
    assert found is not None
    return found.sha256


def model(folder: Path, weights: bytes, blocks: int = 30) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(f'{{"num_hidden_layers": {blocks}}}', encoding="utf-8")


def site(*words: str) -> tuple[int, str, str]:
    got = RUNNER.invoke(cli.app, ["site", *words])
    return got.exit_code, got.stdout, got.stderr


def check(*more: str, job: str = "jobs/job.toml") -> tuple[int, str, str]:
    return site("check", "policy.toml", job, *GOOD, *more)


def test_a_job_that_may_run_is_told_so_in_one_line() -> None:
    said = "jobs/job.toml may run here: mode params, datasets tickets\n"
    assert check()[:2] == (0, said)


def test_what_every_job_is_held_to_stands_beside_the_decision() -> None:
    _, _, beside = check()
    assert [line.partition(":")[0] for line in beside.splitlines()] == [
        "not in this policy, so the strict values hold",
        *("floors.train", "floors.test", "scores"),
        *("budget.jobs", "budget.rounds", "budget.scores", "budget.mb"),
    ]
    more = "\n[floors]\ntrain = 20\ntest = 9\n[scores]\nloss_step = 0.1\nshare_step = 0.1\n"
    text = Path("policy.toml").read_text() + more + "table = true\n[budget]\n"
    for what, most in (("jobs", 5), ("rounds", 6), ("scores", 7), ("mb", 8.0)):
        text += f"{what}_day = {most}\n{what} = {most}\n"
    Path("policy.toml").write_text(text, encoding="utf-8")
    code, _, beside = check()
    assert (code, beside.splitlines()[:3]) == (0, [
        "floors.train: 20 training rows at least",
        "floors.test: 9 test rows at least, or none",
        "scores: losses in steps of 0.1, shares in steps of 0.1; the table leaves",
    ])  # fmt: skip
    assert beside.splitlines()[5] == "budget.scores: of a dataset 7 tests of a model, 7 a day"


def test_what_a_dataset_gave_is_told_file_by_file() -> None:
    Path("kit/local").mkdir(parents=True)
    shutil.copy("policy.toml", "kit/local/policy.toml")
    code, out, _ = site("budget", "kit/local/policy.toml")
    assert (code, out.startswith("nothing was given yet")) == (0, True)
    place = str(Path("kit/tickets.csv").resolve())
    Spent(Path("kit/triskel").resolve(), [place], Budget(), "a").job()
    code, out, _ = site("budget", "kit/local/policy.toml")
    assert (code, out.startswith(f"{place}: jobs 1 of 50 (1 of 4 on 20")) == (0, True)
    Path("kit/triskel/spent.json").write_text("{")
    code, out, said = site("budget", "kit/local/policy.toml")
    assert code
    assert "spent.json does not say what was given before" in said


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (["--by", "eve"], "submitters"),
        (["--clients", "2"], "limits.cohort"),
        (["--up-mb", "1.900001"], "limits.round_mb"),
        (["--at", "2026-11-16T20:00:00"], "hours"),
    ],
)
def test_each_option_is_held_against_its_key(more: list[str], key: str) -> None:
    code, out, said = check(*more)
    assert (code, "error" in said) == (1, False)
    assert [line.partition(":")[0] for line in out.splitlines()] == [key]


def test_every_refusal_is_a_line_and_what_is_left_out_counts_as_not_known() -> None:
    job = JOB.replace('"tickets"', '"letters"').replace('"small"', '"org/elsewhere"')
    Path("jobs/job.toml").write_text('mode = "logits"\n' + job, encoding="utf-8")
    code, out, said = site("check", "policy.toml", "jobs/job.toml", "--at", "2026-11-16T18:00:00")
    assert (code, "error" in said) == (1, False)
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *("submitters", "modes", "models", "datasets", "leave.texts", "limits.round_mb"),
        "limits.cohort",
    ]
    assert "secret" not in out


def test_without_a_time_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    class At(commands.datetime):
        hour_ = 19

        @classmethod
        def now(cls, tz: object = None) -> commands.datetime:  # type: ignore[override]
            assert tz is commands.UTC
            return commands.datetime(2026, 11, 16, cls.hour_, tzinfo=commands.UTC)

    monkeypatch.setattr(commands, "datetime", At)
    words = ("check", "policy.toml", "jobs/job.toml", *GOOD[:-2])
    assert site(*words)[0] == 0
    At.hour_ = 21
    assert site(*words)[1].startswith("hours: ")


def test_the_cut_that_the_job_leaves_open_is_that_of_the_model_on_this_machine() -> None:
    Path("jobs/job.toml").write_text('mode = "split"\n' + JOB, encoding="utf-8")
    assert check()[0] == 0, "[4, 28] of 30 blocks"
    model(Path("models/small"), b"weights", blocks=12)
    admit()
    assert [line.partition(":")[0] for line in check()[1].splitlines()] == [
        *("split.first", "split.last"),
    ]


def test_a_model_lies_beside_the_policy_and_not_beside_the_job() -> None:
    shutil.move("models", "jobs/models")
    for beside in (Path("jobs/small"), Path("small")):
        model(beside, b"weights")
    code, out, _ = check()
    assert code == 1
    assert out == (
        "models: the job runs model 'small'; this site allows small, each by its SHA-256, and has "
        "no weights of this one\n"
    )
    for path in ("./small", "models/../small", "/etc", "jobs/models/small"):
        text = JOB.replace('"small"', f'"{path}"')
        Path("jobs/job.toml").write_text(text, encoding="utf-8")
        code, out, said = check()
        assert (code, "error" in said) == (1, False)
        assert out == (
            f"models: the job names a model by '{path}', which is no name; this site opens models "
            "by their names only\n"
        )


def test_every_model_that_the_site_would_load_is_held_against_the_policy() -> None:
    small = digest("models/small")
    policy = POLICY.replace('["params", "split"]', '["logits"]').replace("SHA", small)
    policy = 'site = "bank"\n' + policy.replace("[leave]", "[leave]\ntexts = true")
    job = 'mode = "logits"\n' + JOB + "[logits]\nstudent = false\n"
    job += '[clients.each.bank]\nmodel = "own"\n'
    Path("jobs/job.toml").write_text(job, encoding="utf-8")
    Path("policy.toml").write_text(policy, encoding="utf-8")
    model(Path("models/own"), b"others")
    other = digest("models/own")
    code, out, _ = check()
    assert code == 1
    assert out == (
        "models: the job runs model 'own'; this site allows small, each by its SHA-256, and has "
        f"this one with SHA-256 '{other}'\n"
    )
    listed = policy.replace("[models]", f'[models]\nown = "{other}"')
    Path("policy.toml").write_text(listed, encoding="utf-8")
    assert check()[0] == 0
    Path("policy.toml").write_text(listed.replace(small, "0" * 64), encoding="utf-8")
    code, out, _ = check()
    assert code == 1, "the server's model is loaded too, with a student or without"
    assert f"SHA-256 '{small}'" in out


def test_the_site_itself_is_told_what_its_policy_allows_and_what_it_has() -> None:
    Path("models/small/model.safetensors").write_bytes(b"others")
    has = digest("models/small")
    assert check("--by", "eve", "--at", "2026-11-16T20:00:00")[1].splitlines() == [
        "submitters: the job is submitted by 'eve'; this site takes jobs from ann",
        (
            "hours: the job would start on mon at 20:00 (UTC); this site runs jobs from 18:00 to "
            "20:00 on mon, tue, wed, thu, fri, sat, sun, and in UTC it would be mon at 20:00"
        ),
        (
            "models: the job runs model 'small'; this site allows small, each by its SHA-256, and "
            f"has this one with SHA-256 '{has}'"
        ),
    ]


def test_an_asset_that_is_not_here_is_a_model_that_is_not_here() -> None:
    Path("jobs/job.toml").write_text(JOB.replace('"small"', '"smollm2-135m"'), encoding="utf-8")
    code, out, _ = check()
    assert code == 1
    assert out.startswith("models: the job runs model 'smollm2-135m'; this site allows small, ")
    assert out.endswith(" and has no weights of this one\n")


@pytest.mark.parametrize(
    ("policy", "job", "sentence"),
    [
        ("none.toml", "jobs/job.toml", "policy file none.toml does not exist"),
        ("policy.toml", "none.toml", "job file none.toml does not exist"),
        ("bad.toml", "jobs/job.toml", "bad.toml: unknown key 'mods'; did you mean 'modes'?"),
        ("policy.toml", "bad.toml", "bad.toml: unknown key 'mods'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence_and_code_2(
    policy: str, job: str, sentence: str
) -> None:
    Path("bad.toml").write_text("mods = 1\n", encoding="utf-8")
    code, out, said = site("check", policy, job)
    assert (code, out) == (2, "")
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1


def test_a_policy_is_written_once_and_allows_nothing() -> None:
    code, out, _ = site("init", "here/policy.toml")
    assert code == 0
    assert out.startswith("here/policy.toml allows nothing yet")
    assert Path("here/policy.toml").read_text(encoding="utf-8") == TEMPLATE
    assert load(Path("here/policy.toml"))[0] == Policy()
    code, _, said = site("init")
    assert (code, said) == (2, "error: policy.toml exists; --force replaces it\n")
    assert site("init", "--force")[0] == 0
    assert site("check", "policy.toml", "jobs/job.toml", *GOOD)[0] == 1


def test_a_log_is_listed_and_verified() -> None:
    log = Chain(Path("audit.jsonl"))
    first = log.append("note", {})
    last = log.append("note", {})
    code, out, said = site("audit", "audit.jsonl", "--seen", first)
    assert (code, said) == (0, "")
    assert out.splitlines()[-1].endswith(f"2 lines, none changed; the last one's SHA-256: {last}")
    assert len(out.splitlines()) == 3
    assert site("audit", "audit.jsonl", "--seen", first[:8].upper())[0] == 0
    code, _, said = site("audit", "audit.jsonl", "--seen", "5f0c5f0c")
    assert code == 1
    assert said.startswith("error: audit log audit.jsonl no longer holds 5f0c5f0c")
    for short in (first[:7], "", first + "0", "0x" + first[:8], "notahash", first[:8] + "\n"):
        code, out, said = site("audit", "audit.jsonl", "--seen", short)
        assert (code, out) == (2, "")
        assert said.startswith("error: a hash that was noted has 8 to 64 hex digits, got ")
        assert said.count("\n") == 1


def test_a_changed_log_is_listed_up_to_the_change() -> None:
    for _ in range(3):
        Chain(Path("audit.jsonl")).append("note", {})
    text = Path("audit.jsonl").read_text(encoding="utf-8")
    Path("audit.jsonl").write_text(text.replace('{"n":2', '{"n":7'), encoding="utf-8")
    code, out, said = site("audit", "audit.jsonl")
    assert code == 1
    assert len(out.splitlines()) == 1
    assert said.startswith("error: audit log audit.jsonl is broken at line 2: ")
    assert said.count("\n") == 1


def test_a_log_that_is_not_there_is_code_2() -> None:
    code, _, said = site("audit", "none.jsonl")
    assert code == 2
    assert said == "error: audit log none.jsonl cannot be read: No such file or directory\n"
