"""`result.json`: what is written is checked and is read back to the byte; what lies is refused."""

import copy
import json
import math
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.grid import settings_of
from triskel.config.read import to_toml
from triskel.core.result_file import (
    checked,
    dump,
    result_in,
    run_in,
    schema_of,
    several_in,
    stage_in,
)
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError
from triskel.experiment import rounds
from triskel.experiment.compare import Request, run
from triskel.experiment.seeds import compare_seeds
from triskel.sweep import Sweep, sweep

HERE = Path(__file__).parents[1]
SMALL = SimpleNamespace(**runpy.run_path(str(HERE / "helpers" / "small.py")))
SAMPLES = SimpleNamespace(**runpy.run_path(str(HERE / "helpers" / "report_samples.py")))
GOLDEN = sorted((HERE / "golden").glob("result-1-*.json"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every kind: one run of each task, with drop-outs, many clients, seeds, a sweep."""
    room = tmp_path_factory.mktemp("results")
    model = SMALL.save_model(room / "model")
    rows = SMALL.save_rows(room / "rows.csv", 30)
    for task in ("classify", "causal"):
        job = SMALL.job(model, rows, task=task, rounds=2, clients={"count": 2})
        run(job, Request(drop_share=0.5), room / task, LocalEngine(job), SMALL.watch)
    few = Request(modes=("params", "logits"), baselines=("base", "local"))
    job = SMALL.job(model, rows, clients={"count": 2})
    compare_seeds(job, few, [4, 0], room / "seeds", LocalEngine, SMALL.watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "EACH", 2)
        job = SMALL.job(model, rows)
        run(job, few, room / "crowd", LocalEngine(job), SMALL.watch)
    job = SMALL.job(model, rows, data={"validation_share": 0.25})
    (room / "job.toml").write_text(to_toml(job), encoding="utf-8")
    base, several = settings_of(room / "job.toml", ["train.lr=0.01,0.05"])
    sweep(Sweep(job=base, settings=several, modes=("params",)), room / "sweep", LocalEngine,
          SMALL.watch)  # fmt: skip
    return room


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("result.json"))


# --- written and read -------------------------------------------------------------------------


def test_every_result_is_read_and_written_again_to_the_byte(played: Path) -> None:
    found = files(played)
    assert len(found) == 2 + 3 + 1 + 2
    for file in found:
        assert dump(result_in(file.parent)) == file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_early_results_are_read_and_written_again_to_the_byte(file: Path, tmp_path: Path) -> None:
    text = json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=1)
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert dump(result_in(tmp_path)) == text


def test_keys_stand_in_the_order_in_which_they_always_stood(played: Path) -> None:
    found = json.loads((played / "classify" / "result.json").read_text(encoding="utf-8"))
    head = ["schema", "triskel", "job", "about", "task", "request", "environment", "data"]
    rows = ["baselines", "skipped", "modes", "robustness", "summary", "readings"]
    assert list(found) == [*head, *rows]
    mode = found["modes"]["params"]
    assert list(mode) == ["rounds", "totals", "final"]
    figures = ["accuracy", "macro_f1", "loss", "n"]
    spent = ["seconds", "server", "clients"]
    assert list(mode["rounds"][0]) == ["round", *figures, "own", "per_client", *spent]
    client = mode["rounds"][0]["clients"]["client-01"]
    assert list(client) == ["up", "down", "flops", "peak_client_bytes", "compute_s", "share"]
    assert list(client["up"]) == ["payload_bytes", "message_bytes", "messages", "sections"]
    assert list(mode["totals"]) == [
        *("up", "down", "client_flops", "server_flops", "peak_client_bytes", "seconds")
    ]
    assert list(mode["totals"]["up"]) == ["payload_bytes", "message_bytes", "messages"]
    assert list(mode["final"]) == [*figures, "own", "everybody"]
    base, local, central = (found["baselines"][name] for name in ("base", "local", "central"))
    assert list(base) == [*figures, "everybody", "own", "what", "per_client"]
    assert list(local) == [
        *("accuracy", "loss", "n", "global_accuracy", "client_flops", "own", "everybody"),
        *("per_client", "seconds"),
    ]
    assert list(central) == [
        *figures, "own", "everybody", "per_client", "rounds", "totals", "final"
    ]  # fmt: skip
    assert list(found["robustness"]["params"]) == ["drop_share", "everybody", "own"]
    gap = found["readings"]["robustness"]["params"]
    ends = ["difference", "low", "high", "p", "beyond"]
    assert list(gap) == ["drop_share", "everybody", "own", *ends]
    pair = ["left", "right", "column", "figure", "primary", *ends]
    assert list(found["summary"]["differences"][0]) == pair
    assert list(found["summary"]["params"]) == ["everybody", "own", "worst", "better_off"]


def test_a_run_writes_no_key_that_the_schema_does_not_name(played: Path) -> None:
    named = schema_of()["$defs"]
    for file in files(played):
        raw = json.loads(file.read_text(encoding="utf-8"))
        whole = named["RunResult" if raw["schema"] == 1 else "SeedsResult"]
        assert list(unnamed(raw, whole, named)) == [], file
        strange = copy.deepcopy(raw) | {"weather": "fair"}
        assert list(unnamed(strange, whole, named)) == ["weather"]


def unnamed(value: Any, shape: Any, named: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the keys that a schema names nowhere."""
    if "anyOf" in shape:
        tables = [one for one in shape["anyOf"] if one.get("type", "object") == "object"]
        shape = tables[0] if isinstance(value, dict) else {}
    shape = named[shape["$ref"].rpartition("/")[2]] if "$ref" in shape else shape
    for one in value if isinstance(value, list) else ():
        yield from unnamed(one, shape.get("items", {}), named)
    for key, one in value.items() if isinstance(value, dict) and shape else ():
        inner = shape.get("properties", {}).get(key, shape["additionalProperties"])
        if inner is True and "properties" in shape:
            yield key
        elif inner is not True:
            yield from unnamed(one, inner, named)


def test_a_result_is_valid_under_the_schema_that_the_command_prints(played: Path) -> None:
    printed = json.loads(CliRunner().invoke(cli.app, ["schema", "result"]).output)
    validator = jsonschema.Draft202012Validator(printed)
    for file in files(played):
        validator.validate(json.loads(file.read_text(encoding="utf-8")))


def test_the_command_prints_schemas_and_loads_no_torch() -> None:
    code = (
        "import json, sys; from typer.testing import CliRunner; from triskel.cli import app\n"
        "for what in ('result', 'events', 'job'):\n"
        "    done = CliRunner().invoke(app, ['schema', what])\n"
        "    assert json.loads(done.output)['$defs'], done.output\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_is_light() -> None:
    """It takes some twice as long as pydantic alone, and torch thirty times."""
    code = (
        "import sys; from time import process_time as now; start = now(); import pydantic\n"
        "there = now(); import triskel.core.result_file\n"
        "print((now() - there) / (there - start)); assert 'torch' not in sys.modules"
    )
    took = [
        float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)
    ]
    assert min(took) < 6


# --- rules of reading -------------------------------------------------------------------------


def test_what_a_later_version_adds_is_passed_over_and_kept_in_its_place(tmp_path: Path) -> None:
    found = SAMPLES.modern()
    row = found["modes"]["params"]["rounds"][0]
    found["modes"]["params"]["rounds"][0] = {"weather": "fair", **row}
    text = json.dumps({"colour": {"a": 1}, **found}, indent=1)
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert dump(result_in(tmp_path)) == text


def test_a_figure_that_diverged_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    found = SAMPLES.result()
    found["modes"]["params"]["final"] |= {"loss": math.nan, "perplexity": math.inf}
    text = json.dumps(found, indent=1)
    assert "NaN" in text
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert dump(result_in(tmp_path)) == text


Change = Callable[[dict[str, Any]], object]
LIES: dict[str, tuple[Change, str]] = {
    "no schema": (lambda r: r.pop("schema"), "has schema null, and this version .* reads 1 and 2"),
    "a later schema": (lambda r: r.update(schema=3), "has schema 3, and this version"),
    "a schema of words": (lambda r: r.update(schema="1"), "has schema '1', and this version"),
    "a true schema": (lambda r: r.update(schema=True), "has schema True, and this version"),
    "no modes": (lambda r: r.pop("modes"), "it lacks modes;"),
    "modes as a list": (lambda r: r.update(modes=[]), "has a list at modes, which should be"),
    "a mode of words": (
        lambda r: r["modes"].update(params="good"),
        "has 'good' at modes.params, which should be a valid dictionary",
    ),
    "rounds as a table": (
        lambda r: r["modes"]["params"].update(rounds={}),
        "has a table at modes.params.rounds, which should be a valid list",
    ),
    "a round without its number": (
        lambda r: r["modes"]["params"]["rounds"][1].pop("round"),
        r"it lacks modes.params.rounds\[1\].round;",
    ),
    "bytes of words": (
        lambda r: r["modes"]["split"]["totals"]["up"].update(message_bytes="many"),
        "has 'many' at modes.split.totals.up.message_bytes, which should be a valid integer",
    ),
    "bytes that are no number": (
        lambda r: r["modes"]["split"]["totals"]["up"].update(message_bytes=math.nan),
        "has nan at modes.split.totals.up.message_bytes, which should be a valid integer",
    ),
    "half a byte": (
        lambda r: r["modes"]["split"]["totals"]["up"].update(message_bytes=0.5),
        "has 0.5 at modes.split.totals.up.message_bytes, which should be a valid integer",
    ),
    "a true accuracy": (
        lambda r: r["modes"]["logits"]["final"].update(accuracy=True),
        "has True at modes.logits.final.accuracy, which should be a valid number",
    ),
    "no accuracy": (
        lambda r: r["modes"]["logits"]["final"].update(accuracy="0.5"),
        "has '0.5' at modes.logits.final.accuracy, which should be a valid number",
    ),
    "a client without a name": (
        lambda r: r["data"].update(clients=[3]),
        "has a list at data.clients, which should be a valid dictionary",
    ),
    "an interval of words": (
        lambda r: r["summary"]["params"]["everybody"].update(low="low"),
        "has 'low' at summary.params.everybody.low, which should be a valid number",
    ),
    "a name that is no line": (
        lambda r: r["modes"].update({"a\nb" + "c" * 500: 3}),
        r"has 3 at modes.a\?bc+\.\.\., which should be a valid dictionary",
    ),
    "several faults": (
        lambda r: (r.pop("modes"), r.pop("data")),
        "it lacks data, and has 1 more fault;",
    ),
}


@pytest.mark.parametrize(("key", "value"), [("p", "0.1"), ("beyond", "yes")])
def test_what_is_claimed_of_a_difference_is_held_to_its_type(
    key: str, value: object, played: Path
) -> None:
    found = json.loads((played / "classify" / "result.json").read_text(encoding="utf-8"))
    found["summary"]["differences"][0][key] = value
    with pytest.raises(CheckpointError, match=rf"at summary\.differences\[0\]\.{key}, which"):
        dump(found)


@pytest.mark.parametrize("lie", LIES)
def test_what_lies_is_refused_in_one_sentence_that_names_the_file(lie: str, tmp_path: Path) -> None:
    change, says = LIES[lie]
    found = copy.deepcopy(SAMPLES.modern())
    change(found)
    (tmp_path / "result.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CheckpointError, match=says) as caught:
        result_in(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'result.json'} ")
    assert "\n" not in said
    with pytest.raises(CheckpointError, match=says):
        dump(found)  # nor is it written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": 1, "modes": {', "cannot be read: "),
        ("", "cannot be read: "),
        ("\x00", "cannot be read: "),
        ("[1]", "must hold a JSON object, got a list"),
        ("NaN", "must hold a JSON object, got nan"),
        ("{}", "has schema null"),
        (json.dumps({"schema": "x" * 10_000}), r"has schema 'x+\.\.\., and"),
    ],
)
def test_a_file_that_is_no_result_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=says) as caught:
        result_in(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'result.json'} ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read: "),
        ("[]", "must hold a JSON object, got a list"),
        ("{}", "is damaged: it lacks rounds, and has 2 more faults; delete it, and a resumed run"),
    ],
)
def test_what_a_stage_left_is_held_to_its_type_too(text: str, says: str, tmp_path: Path) -> None:
    assert stage_in(tmp_path) is None
    (tmp_path / "done.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=says) as caught:
        stage_in(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'done.json'} ")


def test_what_stages_left_is_read(played: Path) -> None:
    whole = result_in(played / "classify")
    for mode in ("params", "logits", "split"):
        assert stage_in(played / "classify" / "stages" / mode) == whole["modes"][mode]


def test_a_seed_that_lies_is_named_by_its_place(tmp_path: Path) -> None:
    found = SAMPLES.seeds(2)
    del found["runs"][1]["modes"]["params"]["totals"]
    (tmp_path / "result.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"it lacks runs\[1\].modes.params.totals;"):
        result_in(tmp_path)


def test_a_file_with_many_faults_is_refused_as_soon_as_one_with_few() -> None:
    """A fault more costs what it is read for: ten times as many, at most four times ten."""
    took: dict[int, float] = {}
    for faults in (5_000, 50_000) * 2:
        found = SAMPLES.result() | {"skipped": dict.fromkeys(map(str, range(faults)), 3)}
        start = time.thread_time()
        with pytest.raises(CheckpointError, match=f"is damaged in {faults:,} places"):
            checked(found)
        spent = time.thread_time() - start
        took[faults] = min(spent, took.get(faults, spent))
    assert took[50_000] < 4 * 10 * took[5_000]


def test_one_run_and_several_seeds_are_not_taken_for_each_other(tmp_path: Path) -> None:
    assert run_in(tmp_path) is several_in(tmp_path) is None
    with pytest.raises(CheckpointError, match="does not exist; give the folder of a run"):
        result_in(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(SAMPLES.seeds(2)), encoding="utf-8")
    assert several_in(tmp_path) is not None
    with pytest.raises(CheckpointError, match="is of several seeds; name the folder of one"):
        run_in(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(SAMPLES.result()), encoding="utf-8")
    assert run_in(tmp_path) is not None
    with pytest.raises(CheckpointError, match="is of one run, and this folder is of several"):
        several_in(tmp_path)
