"""A run knows its data: what is changed before it goes on or is evaluated is noticed."""

# ruff: noqa: ANN401 - results are JSON

import csv
import json
import os
import runpy
import shutil
import time
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.job import Job
from triskel.config.read import to_toml
from triskel.data.digest import digest_of, together
from triskel.data.rows import Rows
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, DataError, JobError
from triskel.experiment import data_record
from triskel.experiment.compare import Request, resume, run
from triskel.experiment.reevaluate import assess

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
Table = list[dict[str, str]]
Change = Callable[[Path], object]
ROWS = 36


# --- a run of each kind of source -------------------------------------------------------------


def table(place: Path) -> Table:
    with place.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def put(place: Path, rows: Table) -> None:
    with place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def files(folder: Path) -> Job:
    """A train, a test and a public file, whose rows belong to whom a column says."""
    model = small.save_model(folder / "model")
    for name, count, start in (("train", ROWS, 0), ("test", 12, 50), ("public", 9, 90)):
        rows = table(small.save_rows(folder / f"{name}.csv", count, start=start))
        for number, row in enumerate(rows):
            row["branch"] = "north" if number % 3 else "south"
        put(folder / f"{name}.csv", rows)
    data = {
        "test": str(folder / "test.csv"),
        "public": str(folder / "public.csv"),
        "validation_share": 0.2,
    }
    clients = {"partition": "natural", "by": "branch"}
    return small.job(model, folder / "train.csv", data=data, clients=clients)


def folder_of_clients(folder: Path) -> Job:
    """A file a client, and a test file beside each."""
    model = small.save_model(folder / "model")
    for number, name in enumerate(("bank", "clinic", "shop")):
        small.save_rows(folder / "train" / f"{name}.csv", 12, start=13 * number)
        small.save_rows(folder / "train" / f"{name}.test.csv", 6, start=13 * number + 50)
    data = {"source": "clients", "train": str(folder / "train")}
    data |= {"classes": ["bad", "fair", "good"], "public": str(folder / "public.csv")}
    small.save_rows(folder / "public.csv", 9, start=90)
    job: Job = small.job(model, folder / "train", data=data, clients={"partition": None})
    return job


def prompts(folder: Path) -> Job:
    """One file of prompts and responses, from which test and public rows are held out."""
    model = small.save_model(folder / "model")
    job: Job = small.job(model, small.save_rows(folder / "train.csv", ROWS), task="causal")
    return job


SOURCES: Mapping[str, Callable[[Path], Job]] = {
    "files": files, "clients": folder_of_clients, "prompts": prompts
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with a finished run and its data, each made once."""
    room, known = tmp_path_factory.mktemp("known"), dict[str, Path]()

    def of(source: str) -> Path:
        if source not in known:
            folder = room / source
            folder.mkdir()
            job = SOURCES[source](folder)
            request = Request(modes=("params",), baselines=())
            run(job, request, folder / "run", LocalEngine(job), small.watch)
            known[source] = folder
        return known[source]

    return of


@pytest.fixture
def again(begun: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same in the same place; what a test does to it is undone."""
    kept: list[tuple[Path, Path]] = []

    def of(source: str) -> Path:
        folder = begun(source)
        copy = tmp_path / "before"
        shutil.copytree(folder, copy)
        kept.append((folder, copy))
        return folder

    yield of  # type: ignore[misc]
    for folder, copy in kept:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)


def go_on(folder: Path, *settings: str) -> None:
    resume(folder / "run", LocalEngine, small.watch, settings=settings)


def evaluate(folder: Path, *settings: str) -> None:
    assess(folder / "run", settings=settings, watch=small.watch)


# --- changed ----------------------------------------------------------------------------------


def edited(name: str, change: Callable[[Table], object]) -> Change:
    """Change the rows of a table; what is returned takes their place."""

    def do(folder: Path) -> None:
        rows = table(folder / name)
        found = change(rows)
        put(folder / name, found if isinstance(found, list) else rows)

    return do


def cell(number: int, **values: Any) -> Callable[[Table], None]:
    def do(rows: Table) -> None:
        for name, value in values.items():
            old = rows[number][name]
            rows[number][name] = value(old) if callable(value) else value

    return do


def every(name: str, value: Callable[[str], str]) -> Callable[[Table], None]:
    def do(rows: Table) -> None:
        for row in rows:
            row[name] = value(row[name])

    return do


def swapped(rows: Table) -> Table:
    """Exchange two rows of one client and label, so that they are dealt alike."""
    return [rows[3], *rows[1:3], rows[0], *rows[4:]]


def columns_swapped(rows: Table) -> Table:
    return [{**row, "text": row["answer"], "answer": row["text"]} for row in rows]


def renamed(old: str, new: str) -> Change:
    def do(folder: Path) -> None:
        for name in ("train", "test"):
            edited(f"{name}.csv", every("label", lambda x: x.replace(old, new)))(folder)

    return do


def without_shop(folder: Path) -> None:
    for ending in ("", ".test"):
        (folder / "train" / f"shop{ending}.csv").unlink()


def with_farm(folder: Path) -> None:
    for ending in ("", ".test"):
        place = folder / "train" / f"farm{ending}.csv"
        shutil.copy(place.with_name(f"shop{ending}.csv"), place)


def exchanged(folder: Path) -> None:
    """Let the bank have the shop's file, and the shop the bank's."""
    one, two = (folder / "train" / f"{name}.csv" for name in ("bank", "shop"))
    rows = table(one), table(two)
    put(one, rows[1])
    put(two, rows[0])


def words_swapped(tokenizer: Any) -> None:
    words = tokenizer["model"]["vocab"]
    words["w0"], words["w1"] = words["w1"], words["w0"]


def moved_row(folder: Path) -> None:
    """Let the bank have a row of the clinic's."""
    one, two = (table(folder / "train" / f"{name}.csv") for name in ("bank", "clinic"))
    put(folder / "train" / "bank.csv", [*one, two[-1]])
    put(folder / "train" / "clinic.csv", two[:-1])


def boundary(rows: Table) -> None:
    """Let a word of a prompt be the response's."""
    words = rows[0]["text"].split()
    rows[0]["text"], rows[0]["answer"] = " ".join(words[:-1]), f"{words[-1]} {rows[0]['answer']}"


def in_json(name: str, change: Callable[[Any], object]) -> Change:
    def do(folder: Path) -> None:
        place = folder / "model" / name
        value = json.loads(place.read_text(encoding="utf-8"))
        change(value)
        place.write_text(json.dumps(value), encoding="utf-8")

    return do


OTHER, ORDER = "has other texts", "has its rows in another order"
MOVED, LABELS = "has (its rows in another order|other texts)", "has other (labels|texts)"
TOKENS = "the tokenizer of the model makes other tokens"
FLIP = {"bad": "good", "fair": "fair", "good": "bad"}
WORD = str.maketrans("w", "v")
CHANGES: Mapping[str, tuple[str, Change, str]] = {
    "a row less": (
        "files",
        edited("train.csv", lambda r: r[1:]),
        "train.csv gives 35 rows and gave 36",
    ),
    "a row more": ("files", edited("train.csv", lambda r: [*r, r[0]]), "gives 37 rows and gave 36"),
    "sixteen less": ("files", edited("train.csv", lambda r: r[16:]), "gives 20 rows and gave 36"),
    "two swapped": ("files", edited("train.csv", swapped), f"train.csv {ORDER}"),
    "turned round": ("files", edited("train.csv", lambda r: r[::-1]), f"train.csv {MOVED}"),
    "labels flipped": (
        "files",
        edited("train.csv", every("label", FLIP.__getitem__)),
        f"train.csv {LABELS}",
    ),
    "one label": ("files", edited("train.csv", cell(4, label="good")), f"train.csv {LABELS}"),
    "a class renamed": (
        "files",
        renamed("fair", "fine"),
        "the classes are bad, fine, good and were bad, fair, good",
    ),
    "a class renamed out of order": (
        "files",
        renamed("bad", "worse"),
        "the classes are fair, good, worse and were bad, fair, good",
    ),
    "a letter": (
        "files",
        edited("train.csv", cell(2, text=lambda x: f"{x}s")),
        f"train.csv {OTHER}",
    ),
    "a blank": (
        "files",
        edited("train.csv", cell(2, text=lambda x: f"{x} ")),
        f"train.csv {OTHER}",
    ),
    "an accent": ("files", edited("train.csv", cell(2, text="caf\u00e9")), f"train.csv {OTHER}"),
    "capitals": ("files", edited("train.csv", every("text", str.upper)), f"train.csv {OTHER}"),
    "one for another": (
        "files",
        edited("train.csv", lambda r: [*r[:-1], r[0]]),
        f"train.csv {OTHER}",
    ),
    "other columns": ("files", edited("train.csv", columns_swapped), f"train.csv {OTHER}"),
    "whose a row is": ("files", edited("train.csv", cell(4, branch="south")), "train.csv has"),
    "a new branch": (
        "files",
        edited("train.csv", cell(4, branch="east")),
        "train.csv|clients are east, north, south",
    ),
    "a test row less": (
        "files",
        edited("test.csv", lambda r: r[1:]),
        "test.csv gives 11 rows and gave 12",
    ),
    "a test text": ("files", edited("test.csv", cell(2, text="w1")), f"test.csv {OTHER}"),
    "a test label": (
        "files",
        edited("test.csv", cell(2, label="good")),
        "test.csv has other labels",
    ),
    "test rows swapped": ("files", edited("test.csv", swapped), f"test.csv {ORDER}"),
    "a public text": (
        "files",
        edited("public.csv", every("text", lambda x: x.translate(WORD))),
        f"public.csv {OTHER}",
    ),
    "public rows in another order": (
        "files",
        edited("public.csv", lambda r: r[::-1]),
        "public.csv has",
    ),
    "train for test": (
        "files",
        lambda f: shutil.copy(f / "train.csv", f / "test.csv"),
        "test.csv gives 36 rows and gave 12",
    ),
    "a client less": (
        "clients",
        without_shop,
        "the file of shop in .*train gives 0 rows and gave 1[28]",
    ),
    "a client more": ("clients", with_farm, "the file of farm in .*train gives 12 rows and gave 0"),
    "a client renamed": ("clients", lambda f: [with_farm(f), without_shop(f)], "the file of farm"),
    "a row moved": ("clients", moved_row, "the file of bank in .*train gives 13 rows and gave 12"),
    "a client's test text": (
        "clients",
        edited("train/bank.test.csv", cell(1, text="w9")),
        f"file of bank in .*train {OTHER}",
    ),
    "a client's label": (
        "clients",
        edited("train/bank.csv", cell(1, label="bad")),
        "the file of bank in .*train has other labels",
    ),
    "clients' files exchanged": ("clients", exchanged, f"file of bank in .*train {OTHER}"),
    "a prompt": ("prompts", edited("train.csv", cell(3, text="w1 w2 w3")), f"train.csv {OTHER}"),
    "a response": (
        "prompts",
        edited("train.csv", cell(3, answer="w1 w2 w3")),
        f"train.csv {OTHER}",
    ),
    "where a response begins": ("prompts", edited("train.csv", boundary), f"train.csv {OTHER}"),
    "prompts in another order": ("prompts", edited("train.csv", swapped), f"train.csv {MOVED}"),
    "a token": ("files", in_json("tokenizer.json", words_swapped), TOKENS),
    "how a chat is laid out": (
        "files",
        in_json("tokenizer_config.json", lambda v: v.update(chat_template="{{ messages }}")),
        TOKENS,
    ),
    "lower case": (
        "prompts",
        in_json("tokenizer.json", lambda v: v.update(normalizer={"type": "Lowercase"})),
        TOKENS,
    ),
}
assert len(CHANGES) >= 30


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_is_noticed_by_who_goes_on_and_who_evaluates(
    what: str, again: Callable[[str], Path]
) -> None:
    source, change, why = CHANGES[what]
    folder = again(source)
    change(folder)
    for use in (go_on, evaluate):
        with pytest.raises(DataError, match=why) as refused:
            use(folder)
        assert str(folder / "run") in str(refused.value)
        assert "start a new run" in str(refused.value)


# --- unchanged --------------------------------------------------------------------------------


def rewritten(place: Path, **style: Any) -> None:
    rows = table(place)
    with place.open("w", encoding=style.pop("encoding", "utf-8"), newline="") as file:
        writer = csv.DictWriter(file, list(rows[0])[::-1], **style)
        writer.writeheader()
        writer.writerows(rows)


SAME: Mapping[str, tuple[str, Change]] = {
    "nothing": ("files", bool),
    "the time of files": ("files", lambda f: [os.utime(p, (1, 1)) for p in f.glob("*.csv")]),
    "how cells are quoted, and columns ordered": (
        "files",
        lambda f: rewritten(f / "train.csv", quoting=csv.QUOTE_ALL),
    ),
    "ends of lines": ("files", lambda f: rewritten(f / "train.csv", lineterminator="\r\n")),
    "a byte-order mark": ("files", lambda f: rewritten(f / "train.csv", encoding="utf-8-sig")),
    "a column that is not read": ("files", edited("train.csv", every("answer", str.upper))),
    "labels of public texts": ("files", edited("public.csv", every("label", str.upper))),
    "a file that is not read": ("clients", lambda f: (f / "train" / "notes.txt").write_text("x")),
}


@pytest.mark.parametrize("what", SAME)
def test_what_is_the_same_goes_on(what: str, again: Callable[[str], Path]) -> None:
    source, change = SAME[what]
    folder = again(source)
    change(folder)
    before = (folder / "run" / data_record.NAME).read_bytes()
    for use in (go_on, evaluate):
        use(folder)
    assert (folder / "run" / data_record.NAME).read_bytes() == before


def test_data_may_lie_elsewhere(again: Callable[[str], Path], tmp_path: Path) -> None:
    folder = again("files")
    for name in ("train", "test", "public"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        shutil.move(folder / f"{name}.csv", tmp_path / "elsewhere" / f"{name}-2.csv")
    where = [f"data.{n}={tmp_path / 'elsewhere'}/{n}-2.csv" for n in ("train", "test", "public")]
    for use in (go_on, evaluate):
        with pytest.raises(DataError, match=r"train\.csv does not exist"):
            use(folder)
        use(folder, *where)
    job = (folder / "run" / "job.toml").read_text(encoding="utf-8")
    assert str(folder / "train.csv") in job, "the run's job stays what it was"
    edited("elsewhere/train-2.csv", cell(0, text="w1"))(tmp_path)
    with pytest.raises(DataError, match=r"train-2\.csv has other texts"):
        go_on(folder, *where)


@pytest.mark.parametrize("setting", ["train.lr=1", "data.text=answer", "data.train=3", "data=1"])
def test_nothing_else_may_be_set(setting: str, begun: Callable[[str], Path]) -> None:
    for use in (go_on, evaluate):
        with pytest.raises(JobError, match=r"only be told where its data lie: data\.train"):
            use(begun("files"), setting)


# --- the record -------------------------------------------------------------------------------


def test_no_text_stands_in_it(begun: Callable[[str], Path]) -> None:
    folder = begun("prompts")
    record = (folder / "run" / data_record.NAME).read_text(encoding="utf-8")
    assert not [
        w for row in table(folder / "train.csv") for w in row["text"].split() if w in record
    ]


def test_a_damaged_record_is_one_sentence(again: Callable[[str], Path]) -> None:
    folder = again("files")
    place = folder / "run" / data_record.NAME
    whole = json.loads(place.read_text())
    for broken, why in (
        ("{", "is damaged"),
        ("[]", "is damaged: it must hold an object"),
        (json.dumps({**whole, "format": 7}), "has format 7, this version reads 1"),
        (json.dumps({**whole, "clients": {"north": {"train": {}}}}), "is damaged: 'rows'"),
        (json.dumps({**whole, "public": None}), "is damaged"),
    ):
        place.write_text(broken)
        for use in (go_on, evaluate):
            with pytest.raises(CheckpointError, match=why):
                use(folder)


def test_a_run_that_does_not_say_it_is_taken_with_a_warning(again: Callable[[str], Path]) -> None:
    folder = again("files")
    (folder / "run" / data_record.NAME).unlink()
    told: list[Any] = []
    assess(folder / "run", watch=told.append)
    resume(folder / "run", LocalEngine, told.append)
    warned = [one["text"] for one in told if one["event"] == "warning"]
    assert sum("does not say what data it began with" in text for text in warned) == 2
    assert (folder / "run" / data_record.NAME).exists()


def test_validation_rows_and_then_test_rows_are_known(tmp_path: Path) -> None:
    """As when settings are chosen: test rows are read for the winner only."""
    job = files(tmp_path)
    request = Request(modes=("params",), baselines=(), judge="validation")
    run(job, request, tmp_path / "run", LocalEngine(job), small.watch)
    shares = {"train", "validation"}
    assert set(known(tmp_path)["north"]) == shares
    assess(tmp_path / "run", judge="test", watch=small.watch)
    assert set(known(tmp_path)["north"]) == shares, "who evaluates writes nothing"
    edited("test.csv", cell(0, text="w1"))(tmp_path)
    assess(tmp_path / "run", judge="test", watch=small.watch)  # nobody had read them
    edited("train.csv", cell(0, text="w1"))(tmp_path)
    with pytest.raises(DataError, match=r"train\.csv has other texts"):
        assess(tmp_path / "run", judge="test", watch=small.watch)


def known(folder: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / data_record.NAME).read_text())["clients"]
    return found


def test_a_refused_job_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(to_toml(files(tmp_path)), encoding="utf-8")
    words = ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(cli.app, [*words, "--set", 'adapter.targets=["no_proj"]'])
    assert said.exit_code == 2
    assert not (tmp_path / "out").exists()


# --- digests ----------------------------------------------------------------------------------


def test_sums_add_up_over_shares_and_know_no_order() -> None:
    rows = Rows(text=("a", "b", "c", "a"), label=("x", "y", "x", "x"))
    whole, other = digest_of(rows), digest_of(rows.take([2, 0, 3, 1]))
    assert (whole.texts, whole.labelled, whole.rows) == (other.texts, other.labelled, 4)
    assert whole.whole != other.whole
    parts = [digest_of(rows.take(some)) for some in ([3, 1], [0], [], [2])]
    assert together(parts) == (4, whole.texts, whole.labelled)
    relabelled = digest_of(Rows(text=rows.text, label=("y", "x", "x", "x")))
    assert relabelled.texts == whole.texts
    assert relabelled.labelled != whole.labelled


@pytest.mark.parametrize(
    "pair",
    [
        (Rows(prompt=("ab",), response=("c",)), Rows(prompt=("a",), response=("bc",))),
        (Rows(prompt=("1:a",), response=("",)), Rows(prompt=("1",), response=(":a",))),
        (Rows(text=("a", "a")), Rows(text=("a",))),
        (Rows(text=("a",), label=("x",)), Rows(text=("a",))),
        (Rows(text=("\ud800",)), Rows(text=("\ud801",))),
        (
            Rows(text=(unicodedata.normalize("NFC", "é"),)),
            Rows(text=(unicodedata.normalize("NFD", "é"),)),
        ),
    ],
)
def test_what_is_not_the_same_has_another_digest(pair: tuple[Rows, Rows]) -> None:
    one, two = map(digest_of, pair)
    assert one.whole != two.whole


def test_ten_times_the_rows_take_ten_times_as_long_to_digest() -> None:
    """How long that is, benchmarks/digest.py says; here it may be four times as much a row."""
    few, many = (
        Rows(text=tuple(f"some words of a text {i}" for i in range(count)), label=("x",) * count)
        for count in (5_000, 50_000)
    )
    took: dict[int, float] = {}
    for rows in (few, many) * 3:
        start = time.thread_time()
        digest_of(rows)
        spent = time.thread_time() - start
        took[len(rows)] = min(spent, took.get(len(rows), spent))
    assert took[len(many)] < 4 * 10 * took[len(few)]
