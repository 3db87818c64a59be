"""`triskel check` says all that is wrong at once, and a run refuses the same before torch loads."""

# ruff: noqa: ANN401 - JSON

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import Job
from triskel.config.read import parse
from triskel.data.check import odd
from triskel.data.rows import Rows
from triskel.engines.local import LocalEngine
from triskel.errors import DataError
from triskel.experiment.check import checked, early
from triskel.experiment.compare import Request, run

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
RUNNER = CliRunner()


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, a table, and a job file that is right."""
    monkeypatch.chdir(tmp_path)
    small.save_model(tmp_path / "model")
    small.save_rows(tmp_path / "rows.csv", 60)
    lines = [
        "[model]", 'path = "model"', "[data]", 'source = "csv"', 'train = "rows.csv"',
        'text = "text"', 'label = "label"', "[train]", "batch = 4", "[logits]", "public = 6",
    ]  # fmt: skip
    (tmp_path / "job.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def said(*words: str) -> tuple[int, list[str]]:
    got = RUNNER.invoke(cli.app, ["check", *words])
    assert not got.stderr
    return got.exit_code, got.stdout.splitlines()


# --- names ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("room")
def test_a_job_that_can_run_is_said_to() -> None:
    for words in (["job.toml"], []):
        code, lines = said(*words)
        assert code == 0
        assert lines[-1].startswith("nothing keeps this job from running")
        assert all(line.startswith("odd ") for line in lines[:-1])


def test_code_that_a_model_brings_is_said_and_never_run(room: Path) -> None:
    """A type that transformers knows is loaded as that."""
    (room / "model" / "mine.py").write_text("raise SystemExit('it was run')\n")
    config(room, auto_map={"AutoModel": "mine.Model"})
    (found,) = (one for one in checked(Path("job.toml")) if one.key == "model.path")
    assert not found.refuses
    assert "brings code of its own (mine.Model), which is never run" in found.text


def test_links_of_a_cache_are_followed_to_a_models_files(room: Path) -> None:
    (room / "snapshot").mkdir()
    for place in (room / "model").iterdir():
        (room / "snapshot" / place.name).symlink_to(place)
    set_(room, 'path = "model"', 'path = "snapshot"')
    assert not [one for one in checked(Path("job.toml")) if one.refuses]


@pytest.mark.usefixtures("room")
def test_everything_that_is_wrong_is_said_at_once_and_written_down() -> None:
    """Keys that there are not, values that cannot be, contradictions, columns and the model."""
    wrong = ["train.lrr=3", "train.lr=-1", "data.text=txt", "model.path=mdl", "clients.by=branch",
             "clients.partition=shards", "data.label=", "xyzzy=1", "wire.up=int3"]  # fmt: skip
    words = [word for setting in wrong for word in ("--set", setting)]
    code, lines = said("job.toml", "--json", "found.json", *words)
    assert code == 2
    for part in (
        "unknown key 'train.lrr'; did you mean 'lr'?",
        "train.lr: input should be greater than 0, got -1",
        "unknown key 'xyzzy'",
        "wire.up must be one of raw, fp32, bf16, fp16, int8, int4, topk, sign, got 'int3'",
        "data.text and data.label must name columns for a classify task",
        'clients.partition "shards" needs data.label to name a column',
        "has no column 'txt'; did you mean 'text'?",
        "has no column 'branch'",
        "model 'mdl' is neither a folder here nor an asset",
    ):
        assert [line for line in lines if part in line], part
    assert lines[-1] == f"{len(lines) - 1} of {len(lines) - 1} keep this job from running"
    told = json.loads(Path("found.json").read_text())
    assert told["job"] == "job.toml"
    assert len(told["faults"]) == len(lines) - 1
    assert all(set(one) == {"key", "text", "refuses"} and one["refuses"] for one in told["faults"])


NAMES: Mapping[str, tuple[Callable[[Path], object], str, str]] = {
    "a file that is not there": (lambda r: (r / "rows.csv").rename(r / "row.csv"), "data.train",
        "does not exist; did you mean 'row.csv'?"),
    "a column that is not there": (lambda r: edit(r, "label", "labels"), "data.train",
        "has no column 'label'; did you mean 'labels'? (columns: text, labels, answer)"),
    "a file of another kind": (lambda r: set_(r, 'train = "rows.csv"', 'train = "x.parquet"'),
        "data.train", "does not exist"),
    "a parquet file that is none": (lambda r: [(r / "rows.csv").rename(r / "rows.parquet"),
        set_(r, "rows.csv", "rows.parquet"), set_(r, '"csv"', '"parquet"')], "data.train",
        "is not Parquet"),
    "a key that nobody reads": (lambda r: set_(r, 'text = "text"', 'text = "text"\nprompt = "p"'),
        "data", "data.prompt is given and is not read for a classify task"),
    "no model's folder": (lambda r: (r / "model" / "config.json").unlink(), "model.path",
        "has no config.json, so it is no model's folder"),
    "a damaged configuration": (lambda r: (r / "model" / "config.json").write_text("{"),
        "model.path", "config.json cannot be read"),
    "no type": (lambda r: config(r, model_type=None), "model.path", "names no model_type"),
    "an adapter in its folder": (lambda r: (r / "model" / "adapter_config.json").write_text("{}"),
        "model.path", "also holds an adapter"),
    "no tokenizer": (lambda r: [p.unlink() for p in (r / "model").glob("*token*")], "model.path",
        "has no tokenizer"),
    "old weights": (lambda r: (r / "model" / "model.safetensors").rename(
        r / "model" / "pytorch_model.bin"), "model.path", "a format that can run code when it is"),
    "no weights": (lambda r: (r / "model" / "model.safetensors").unlink(), "model.path",
        "has no weights (*.safetensors)"),
    "weights for another program": (lambda r: (r / "model" / WHOLE).rename(
        r / "model" / "m.Q4.gguf"), "model.path", "gguf_file='m.Q4.gguf'), then save_pretrained"),
    "a part that is missing": (lambda r: parts(r, "a.safetensors", "b.safetensors"), "model.path",
        "lacks b.safetensors, of the 2 files that model.safetensors.index.json names"),
    "parts and no list of them": (lambda r: (r / "model" / WHOLE).rename(
        r / "model" / "a.safetensors"), "model.path", "has a.safetensors and neither model.safe"),
    "a list that is damaged": (lambda r: [parts(r, "a.safetensors"),
        (r / "model" / INDEX).write_text("[]")], "model.path", "index.json cannot be read: "),
    "a file that was cut off": (lambda r: cut(r / "model" / WHOLE, -1), "model.path",
        "bytes of "),
    "a part that was cut off": (lambda r: [parts(r, "a.safetensors"),
        cut(r / "model" / "a.safetensors", 100)], "model.path",
        "a.safetensors is no file of tensors, or was cut off: it has 100 bytes"),
    "an empty file": (lambda r: cut(r / "model" / WHOLE, 0), "model.path", "it has 0 bytes"),
    "a page that was fetched instead": (lambda r: (r / "model" / WHOLE).write_text("<html>" * 99),
        "model.path", "is no file of tensors"),
    "a quantised base": (lambda r: config(r, quantization_config={"quant_method": "awq"}),
        "model.path", "is quantised (awq), and adapters are trained on plain weights"),
    "a base quantised in a way that is not named": (
        lambda r: config(r, quantization_config={"load_in_4bit": True}), "model.path",
        "is quantised (quantization_config in its config.json)"),
    "a padding token that is none": (lambda r: config(r, pad_token_id=46), "model.path",
        "has pad_token_id = 46 and vocab_size = 46: there is no such token"),
    "an architecture that there is not": (lambda r: config(r, model_type="albert"), "model.path",
        "model type 'albert' is not supported (its blocks are one block"),
    "an architecture nearly right": (lambda r: config(r, model_type="lama"), "model.path",
        "is not supported; the nearest is 'llama'; these are: llama, "),
    "an architecture of its own code": (lambda r: config(r, model_type="mine", auto_map={
        "AutoConfig": "mine.Config"}), "model.path", "its own code (mine.Config) is never run"),
    "places told by alibi": (lambda r: config(r, model_type="falcon", alibi=True), "model.path",
        "is a falcon that tells places by alibi"),
    "an empty folder": (lambda r: [p.unlink() for p in (r / "model").iterdir()], "model.path",
        "has no config.json"),
    "a configuration that is no table": (lambda r: (r / "model" / "config.json").write_text("[]"),
        "model.path", "config.json cannot be read"),
    "a folder below home that is not there": (
        lambda r: set_(r, 'path = "model"', 'path = "~/no such model"'), "model.path",
        "model folder ~/no such model does not exist"),
    "a folder that is not there": (lambda r: set_(r, 'path = "model"', 'path = "./modell"'),
        "model.path", "does not exist; did you mean 'model'?"),
    "a file for a model": (lambda r: set_(r, 'path = "model"', 'path = "rows.csv"'),
        "model.path", "is a file; name the folder of a model"),
}  # fmt: skip


WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def parts(room: Path, *names: str) -> None:
    """Have the weights in the first of several parts."""
    (room / "model" / WHOLE).rename(room / "model" / names[0])
    told = {"weight_map": {f"t{place}": name for place, name in enumerate(names)}}
    (room / "model" / INDEX).write_text(json.dumps(told))


def cut(place: Path, size: int) -> None:
    """Keep so many bytes of a file; below 0, all but so many."""
    place.write_bytes(place.read_bytes()[:size])


def edit(room: Path, old: str, new: str, name: str = "rows.csv") -> None:
    text = (room / name).read_text(encoding="utf-8")
    assert old in text
    (room / name).write_text(text.replace(old, new, 1), encoding="utf-8")


def set_(room: Path, old: str, new: str) -> None:
    edit(room, old, new, "job.toml")


def config(room: Path, **more: Any) -> None:
    place = room / "model" / "config.json"
    told = {**json.loads(place.read_text()), **more}
    place.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


@pytest.mark.parametrize("what", NAMES)
def test_what_is_not_there_is_said_by_check_and_by_run(what: str, room: Path) -> None:
    change, key, why = NAMES[what]
    change(room)
    faults = checked(Path("job.toml"))
    assert [one for one in faults if one.key == key and why in one.text and one.refuses], faults
    got = RUNNER.invoke(cli.app, ["run", "job.toml", "--out", "out"])
    assert got.exit_code == 2
    assert got.stderr.startswith("error: ")
    assert why in got.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("settings", [["model.path=mdl"], ["data.text=x"], ["data.train=x.csv"]])
def test_nothing_slow_is_loaded_before_it_is_said(settings: list[str], room: Path) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    script = (
        "import sys; from triskel.cli import app\n"
        f"try: app(['run', 'job.toml', *{words!r}])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=room
    )
    assert done.stdout.strip() == "2 []"


def test_data_of_a_federation_are_at_its_sites() -> None:
    job = parse(
        '[data]\nsource = "clients"\ntrain = "tickets"\ntext = "t"\nlabel = "l"\n'
        'classes = ["a", "b"]\n[model]\npath = "nowhere"'
    )
    assert early(job) == []


# --- rows -------------------------------------------------------------------------------------


def job_of(**sections: Any) -> Job:
    data = {"source": "csv", "train": "x.csv", "text": "text", "label": "label"}
    return Job.model_validate(
        {"data": {**data, **sections.pop("data", {})}, "train": {"batch": 4}, **sections}
    )


def rows(labels: str, texts: str = "") -> Rows:
    given = tuple(labels.split("|"))
    return Rows(text=tuple(texts.split("|")) if texts else tuple(map(str, range(len(given)))),
                label=given)  # fmt: skip


PLENTY = "|".join(["a"] * 6 + ["b"] * 6)
NONE = Rows()
ODD: Mapping[str, tuple[Rows, Rows, Rows, str, bool]] = {
    "case": (rows(f"{PLENTY}|A"), NONE, NONE,
        "differ in case, blanks or Unicode form only, and are learnt apart: 'A' (1 rows) and 'a'",
        False),
    "blanks": (rows(f"{PLENTY}|b "), NONE, NONE, "'b' (6 rows) and 'b ' (1 rows)", False),
    "Unicode form": (rows(f"{PLENTY}|é|e\u0301"), NONE, NONE, "learnt apart: 'e\u0301'", False),
    "wide letters": (rows(f"{PLENTY}|\uff41"), NONE, NONE, "learnt apart", False),
    "a missing value": (rows(f"{PLENTY}|N/A"), NONE, NONE,
        "the label 'N/A' (1 rows) looks like a missing value", False),
    "null": (rows(f"{PLENTY}|null"), NONE, NONE, "looks like a missing value", False),
    "few": (rows(f"{PLENTY}|c|c|d"), NONE, NONE,
        "2 classes have fewer than 5 training rows: c, d", False),
    "one class": (rows("a|a|a"), NONE, NONE, "all 3 training rows have the one label 'a'", True),
    "a measure": (rows("1|2|3.5|4|5|6"), NONE, NONE,
        "the label column holds 6 different numbers in 6 rows", True),
    "one text": (rows("a|b|a", "x|x|x"), NONE, NONE,
        "all 3 training rows have the same text, 'x'", True),
    "test in training": (rows(PLENTY), rows("a|b|a", "0|5|z"), NONE,
        "2 of 3 test texts (67 %) occur in training as well", False),
    "public in training": (rows(PLENTY), NONE, Rows(text=("1",)),
        "1 of 1 public texts (100 %) occur in training as well", False),
    "a large public set": (rows(PLENTY), NONE, Rows(text=tuple("abcdefgh")),
        "the public set has 8 texts and 20 rows are there to train on", False),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_about_rows_is_said(what: str) -> None:
    train, test, public, why, refuses = ODD[what]
    found = list(odd(job_of(), train, test, public, {}))
    assert [one for one in found if why in one.text and one.refuses is refuses], found


def test_what_is_not_odd_is_not_said() -> None:
    labels = "|".join(["1"] * 6 + ["2"] * 6 + ["none of these"] * 5)
    public = Rows(text=("p", "q"))
    assert not list(odd(job_of(), rows(labels), rows("1|2", "x|y"), public, {"a": 4, "b": 0}))
    causal = Rows(prompt=("a", "b"), response=("c", "c"))
    assert len(list(odd(job_of(data={"task": "causal"}), causal, NONE, NONE, {}))) == 1


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (["data.source=cvs"], ["data.source"]),
        (["data.sorce=csv", "data.train=", "data.source=opinions"], ["data.sorce"]),
        (["data.source=cvs", "data.label="], ["data.source"]),
        (["data.source=cvs", "data.task=causal", "train.max_tokens=9"], ["data.source"]),
        (["data.source=cvs", "model.path=./mdl"], ["data.source", "model.path"]),
        (["data.task=clasify"], ["data.task"]),
        (["data.task=casual", "data.text=", "data.prompt=text"], ["data.task"]),
        (["data.text=true"], ["data.text", "data.text"]),
        (["data.label=[]"], ["data.label"]),
        (["data.train=3"], ["data.train"]),
        (["model.path=3"], ["model.path"]),
        (["model.dtype=float8"], ["model.dtype"]),
        (["mode=parms"], ["mode"]),
        (["data.label=", "data.text=", "data.txt=text"], ["data.txt"]),
        (["train.max_tokens=-1", "data.task=causal", "data.label="], ["train.max_tokens"]),
        (["adapter.kind=lroa", "adapter.dropout=0.5"], ["adapter.kind"]),
        (["clients.partition=natural", "clients.by=true"], ["clients.by"]),
    ],
)
@pytest.mark.usefixtures("room")
def test_a_key_that_is_wrong_itself_brings_no_other_faults(
    settings: list[str], keys: list[str]
) -> None:
    assert [one.key for one in checked(Path("job.toml"), settings) if one.refuses] == keys


def test_keys_that_are_right_and_contradict_each_other_are_still_said(room: Path) -> None:
    set_(room, 'label = "label"\n', "")
    found = checked(Path("job.toml"), ["adapter.kind=lroa"])
    assert [one.key for one in found if one.refuses] == ["adapter.kind", ""]


def test_a_causal_job_that_says_no_length_is_refused(room: Path) -> None:
    set_(room, 'text = "text"', 'task = "causal"\ntext = "text"')
    set_(room, 'label = "label"\n', "")
    assert [one.key for one in checked(Path("job.toml")) if one.refuses] == ["train.max_tokens"]


@pytest.mark.parametrize("name", ["my model", "mdl/", "a//b"])
def test_what_cannot_be_a_models_name_is_one_sentence(name: str, room: Path) -> None:
    set_(room, 'path = "model"', f'path = "{name}"')
    got = RUNNER.invoke(cli.app, ["run", "job.toml"])
    assert got.exit_code == 2
    assert got.stderr.startswith("error: model ")
    assert got.stderr.count("\n") == 1


def test_what_a_folder_holds_beside_clients_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name, text in (("ann.csv", "t,l\na,x\n"), ("._ann.csv", "?"), ("ann.test.csv", "q\n1\n")):
        (tmp_path / "train" / name).write_text(text)
    (tmp_path / "test.csv").write_text("t,l\na,x\n")
    job = Job.model_validate({
        "data": {
            "source": "clients", "train": str(tmp_path / "train"), "text": "t", "label": "l",
            "classes": ["x", "y"], "test": str(tmp_path / "test.csv"),
        }
    })  # fmt: skip
    assert [one for one in early(job) if one.key != "model.path"] == []


def test_clients_below_a_batch_are_named() -> None:
    found = list(odd(job_of(), rows(PLENTY), NONE, NONE, {"a": 3, "b": 9, "c": 1}))
    assert [one.text for one in found] == ["2 clients have fewer rows than a batch of 4: a, c"]


def test_one_label_of_several_that_are_given_is_only_odd() -> None:
    (found,) = odd(job_of(data={"classes": ["a", "b"]}), rows("|".join("aaaaa")), NONE, NONE, {})
    assert not found.refuses


def test_a_run_says_what_is_odd_and_refuses_what_teaches_nothing(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model")
    place = small.save_rows(tmp_path / "rows.csv", 60)
    text = place.read_text(encoding="utf-8")
    place.write_text(text.replace(",bad,", ",Good,", 3), encoding="utf-8")
    one, told = small.job(model, place), list[Any]()
    run(
        one, Request(modes=("params",), baselines=()), tmp_path / "a", LocalEngine(one), told.append
    )
    warned = [event["text"] for event in told if event["event"] == "warning"]
    assert any("labels differ in case" in line for line in warned)
    head, *lines = text.splitlines()
    same = [head, *(f"w1,{line.split(',')[1]},x" for line in lines)]
    place.write_text("\n".join(same) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="have the same text, 'w1'"):
        run(one, Request(), tmp_path / "b", LocalEngine(one), small.watch)
    assert not (tmp_path / "b" / "stages").exists()
