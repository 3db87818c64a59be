"""A mode of another package is played, saved, told of and governed like those of the house.

`examples/own_mode` is installed beside Triskel, in which nothing is edited, and removed again.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import hashlib
import json
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import Job
from triskel.config.read import dump, parse, to_toml
from triskel.config.sections import Override
from triskel.core.registry import MODES
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, PluginError
from triskel.experiment.baselines import BASELINES
from triskel.experiment.compare import Request, resume, run
from triskel.policy.rules import Policy

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
RUNNER = CliRunner()
DIES = """
import os, signal
from triskel.cli import main
from triskel.experiment import rounds

write, kept = rounds.write, []


def dying(folder, saved):
    write(folder, saved)
    kept.extend([folder] * (folder.name == "sign"))
    if len(kept) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


rounds.write = dying
main()
"""
"""The command line, killed once the second checkpoint of a stage is on disk."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    found: Path = plugins.install("own_mode", tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the example beside Triskel, in this process and in those it starts."""
    with plugins.beside(package, "own_mode"):
        yield


def job(folder: Path, **sections: Any) -> Job:
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 60)
    found: Job = small.job(model, rows, **{"rounds": 2, **sections})
    plain = found.model.model_copy(update={"compute": "reference"})
    return found.model_copy(update={"model": plain})


@pytest.fixture(scope="module")
def finished(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of `params` and `sign`."""
    folder = tmp_path_factory.mktemp("finished")
    with plugins.beside(package, "own_mode"):
        one = job(folder)
        request = Request(modes=("params", "sign"), baselines=("base", "local"))
        run(one, request, folder / "run", LocalEngine(one), small.watch)
    return folder / "run"


def triskel(*words: object) -> Any:
    got = RUNNER.invoke(cli.app, list(map(str, words)))
    assert got.exit_code == 0, got.output
    return got


# --- one process ------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_its_server_moves_by_the_mean_of_scaled_signs(tmp_path: Path) -> None:
    """One client, one round: θ + s sign(θ₁ - θ), with θ₁ as `params` trains it."""
    one = job(tmp_path, rounds=1, clients={"count": 1, "partition": "iid"}, sign={"step": 0.5})
    request = Request(modes=("params", "sign"), baselines=())
    run(one, request, tmp_path / "run", LocalEngine(one), small.watch)
    start = small.resources(one).body()
    trained, moved = (
        load_file(tmp_path / "run" / "adapters" / mode / "adapter_model.safetensors")
        for mode in ("params", "sign")
    )
    before = {
        name.replace(".default.", ".").removeprefix("base_model.model."): tensor
        for name, tensor in start.initial.items()
    }
    found = 0
    for name, after in moved.items():
        short = next((n for n in before if name.endswith(n) or n.endswith(name)), None)
        if short is None:
            continue
        change = trained[name] - before[short]
        scale = change.abs().mean()
        wanted = before[short] + 0.5 * scale * torch.where(change > 0, 1.0, -1.0)
        torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-7)
        found += 1
    assert found == len(moved)


def test_a_comparison_holds_its_section_and_sends_a_bit_a_number(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["job"]["sign"] == {"step": 1.0}
    assert [*result["modes"]] == ["params", "sign"]
    sent = {mode: one["totals"]["up"]["payload_bytes"] for mode, one in result["modes"].items()}
    numbers, tensors = sent["params"] // 4, 0
    rounds = result["modes"]["sign"]["rounds"][0]["clients"]["client-01"]["up"]["sections"]
    tensors = rounds["scales"]["payload_bytes"] // 4 * 3 * 2
    assert 4 * tensors + numbers / 8 <= sent["sign"] <= 4 * tensors + numbers / 8 + tensors


def test_a_killed_run_goes_on_to_the_same_bits(package: Path, tmp_path: Path) -> None:
    one, request = job(tmp_path, rounds=3), Request(modes=("params", "sign"), baselines=())
    (tmp_path / "job.toml").write_text(to_toml(one), encoding="utf-8")
    killed = tmp_path / "killed"
    words = ["compare", "job.toml", "--modes", "params,sign", "--baselines", "none"]
    ended = subprocess.run(
        [sys.executable, "-c", DIES, *words, "--out", str(killed)],
        cwd=tmp_path,
        env={**plugins.paths(package), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (killed / "stages" / "params" / "done.json").exists()
    assert any((killed / "stages" / "sign").glob("*.safetensors"))
    assert not (killed / "stages" / "sign" / "done.json").exists()
    gone = RUNNER.invoke(cli.app, ["run", "--resume", str(killed)])
    assert gone.exit_code == 2
    assert "there is no mode 'sign' here" in gone.stderr
    with plugins.beside(package, "own_mode"):
        run(one, request, tmp_path / "whole", LocalEngine(one), small.watch)
        resume(killed, LocalEngine, small.watch)
    for mode in request.modes:
        whole, again = (
            (folder / "adapters" / mode / "adapter_model.safetensors").read_bytes()
            for folder in (tmp_path / "whole", killed)
        )
        assert hashlib.sha256(whole).digest() == hashlib.sha256(again).digest(), mode


def test_its_options_are_swept_like_others(package: Path, tmp_path: Path) -> None:
    one = job(tmp_path, rounds=1, clients={"partition": "iid", "count": 2})
    data = one.data.model_copy(update={"validation_share": 0.25})
    place = tmp_path / "job.toml"
    place.write_text(to_toml(one.model_copy(update={"data": data})), encoding="utf-8")
    with plugins.beside(package, "own_mode"):
        words = ["--set", "sign.step=0.5,2.0", "--modes", "sign", "--out", tmp_path / "swept"]
        triskel("sweep", place, *words)
    record = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    assert [one["set"] for one in record["settings"]] == [{"sign.step": 0.5}, {"sign.step": 2.0}]
    assert record["winners"]["sign"]["setting"] in {one["name"] for one in record["settings"]}
    page = (tmp_path / "swept" / "report.html").read_text()
    assert "#CC79A7" in page


# --- with the package gone --------------------------------------------------------------------


def test_the_page_has_its_words_and_is_the_same_without_its_package(
    finished: Path, tmp_path: Path
) -> None:
    run_ = shutil.copytree(finished, tmp_path / "run")
    with_ = (run_ / "report.html").read_bytes()
    page = with_.decode()
    for words in (
        "signs of the adapter&#x27;s change travel",
        "for each trained number, whether it grew",
        "how far each number moved",
        "Signs of a change still say on which texts it was made",
        "--tone:#CC79A7",
        '"triangle-up"',
    ):
        assert words in page, words
    assert "sign" not in MODES.names()
    (run_ / "report.html").unlink()
    triskel("report", run_)
    assert (run_ / "report.html").read_bytes() == with_


def test_its_adapter_is_exported_and_evaluated_without_its_package(
    finished: Path, tmp_path: Path
) -> None:
    assert "sign" not in MODES.names()
    triskel("export", finished, tmp_path / "out", "--mode", "sign")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "By exchange of signs (mode `sign` of the package own-mode). 3 clients" in card
    assert "the signs of the adapter's change left them" in card
    shown = triskel("evaluate", finished, "--mode", "sign").stdout
    final = json.loads((finished / "result.json").read_text())["modes"]["sign"]["final"]
    assert f"{final['everybody']['accuracy']:.3f}" in shown
    assert f"{final['everybody']['loss']:.3f}" in shown


def test_a_job_of_a_mode_that_is_not_here_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('mode = "sign"\n')
    got = RUNNER.invoke(cli.app, ["run", str(tmp_path / "job.toml")])
    assert got.exit_code == 2
    assert "mode must be one of params, logits, split, got 'sign'" in got.stderr
    (tmp_path / "job.toml").write_text("[sign]\nstep = 1.0\n")
    got = RUNNER.invoke(cli.app, ["run", str(tmp_path / "job.toml")])
    assert got.exit_code == 2
    assert "a mode of another package must be installed" in got.stderr


# --- found, and kept apart --------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_a_job_of_others_is_the_same_with_it_installed() -> None:
    assert "sign" in MODES.names()
    assert "sign" not in dump(Job())
    assert list(dump(parse('mode = "sign"')))[9:14] == [
        "params", "logits", "split", "sign", "evaluate",
    ]  # fmt: skip
    told = parse("[sign]\nstep = 0.5")
    assert dump(told)["sign"] == {"step": 0.5}


@pytest.mark.usefixtures("installed")
def test_its_options_are_typed_and_the_nearest_key_is_named() -> None:
    for text, said in (
        ("[sign]\nstop = 1", "unknown key 'sign.stop'; did you mean 'step'?"),
        ("[sign]\nstep = -1", "sign.step: input should be greater than 0, got -1"),
        ("[sing]\nstep = 1", "unknown key 'sing'; did you mean 'sign'?"),
    ):
        with pytest.raises(JobError) as error:
            parse(text)
        assert str(error.value).removeprefix("job: ") == said


def test_nothing_of_it_is_imported_before_it_is_named(package: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom triskel.config.read import parse\n"
        "from triskel.core.registry import MODES\n"
        "assert 'sign' in MODES.names()\nMODES.origin('sign')\nparse('mode = \"split\"')\n"
        "assert 'own_mode' not in sys.modules\n"
        "parse('mode = \"sign\"')\nassert 'own_mode' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [str(plugins.COMMAND.with_name("python")), "-c", code]
    got = subprocess.run(
        command, env=plugins.paths(package), capture_output=True, text=True, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert got.returncode == 0, got.stderr


def test_a_broken_package_stops_only_who_names_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(package, tmp_path / "broken")
    (broken / "own_mode" / "__init__.py").write_text("import no_such_module\n")
    with plugins.beside(broken, "own_mode"):
        assert parse('mode = "params"').mode == "params"
        with pytest.raises(PluginError, match=r"mode 'sign' of package own-mode cannot be loaded"):
            parse('mode = "sign"')
        shown = triskel("plugins").stdout
    assert "cannot be used" in shown
    monkeypatch.undo()


def test_two_packages_with_one_name_are_refused_and_a_built_in_name_stays_ours(
    package: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(package, tmp_path / "other")
    info = next(other.glob("*.dist-info"))
    (info / "entry_points.txt").write_text("[triskel.modes]\nsign = x:SPEC\nparams = x:SPEC\n")
    text = (info / "METADATA").read_text().replace("own-mode", "squatter")
    (info / "METADATA").write_text(text)
    info.rename(info.with_name("squatter-1.0.dist-info"))
    with plugins.beside(package, "own_mode"), plugins.beside(other, "own_mode"):
        with pytest.raises(PluginError, match=r"several packages \(own-mode, squatter\)"):
            parse('mode = "sign"')
        assert MODES.spec("params").algorithm == "triskel.modes.params.mode:Params"
        assert MODES.origin("params") is None


def test_a_mode_cannot_be_called_like_a_key_of_a_job_or_policy_or_like_a_baseline(
    package: Path, tmp_path: Path
) -> None:
    taken = {*Job.model_fields, *Override.model_fields, *Policy.model_fields, *BASELINES}
    other = shutil.copytree(package, tmp_path / "other")
    lines = "".join(f"{name} = own_mode:SPEC\n" for name in sorted(taken))
    points = next(other.glob("*.dist-info")) / "entry_points.txt"
    points.write_text(f"[triskel.modes]\n{lines}")
    with plugins.beside(other, "own_mode"):
        for name in taken:
            with pytest.raises(PluginError, match=f"may be called '{name}'"):
                MODES.spec(name)
            with pytest.raises(PluginError, match=f"may be called '{name}'"):
                MODES.origin(name)
        assert "own_mode" not in sys.modules


def test_an_algorithm_outside_the_module_that_a_policy_pins_is_refused(
    package: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(package, tmp_path / "other")
    value = other / "own_mode" / "__init__.py"
    text = value.read_text()
    assert '"own_mode.mode:Sign"' in text
    value.write_text(text.replace('"own_mode.mode:Sign"', '"elsewhere.mode:Sign"'))
    with (
        plugins.beside(other, "own_mode"),
        pytest.raises(PluginError, match=r"elsewhere.mode:Sign is outside module 'own_mode'"),
    ):
        MODES.spec("sign")


@pytest.mark.usefixtures("installed")
def test_whose_code_it_is_is_listed(package: Path) -> None:
    origin = MODES.origin("sign")
    assert origin is not None
    assert (origin.package, origin.version) == ("own-mode", "1.0")
    sha256 = hashlib.sha256()
    for name in ("__init__.py", "mode.py"):
        sha256.update(f"{name}\n".encode() + (package / "own_mode" / name).read_bytes())
    assert origin.sha256 == sha256.hexdigest()
    assert "own-mode 1.0" in triskel("plugins").stdout
