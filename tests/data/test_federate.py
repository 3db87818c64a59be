"""From a job's source to what every client holds."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from triskel.config import read as jobs
from triskel.config.job import MODE_NAMES, Job
from triskel.data import assets
from triskel.data.federate import Federation, describe, federate
from triskel.data.sources import read
from triskel.errors import DataError

CLASSES = ("no", "yes")


def csv(path: Path, rows: int, *, labels: tuple[str, ...] = CLASSES, start: int = 0) -> Path:
    lines = [f"text {start + i},{labels[i % len(labels)]},ward {i % 3}" for i in range(rows)]
    path.write_text("\n".join(["t,l,w", *lines, ""]), encoding="utf-8")
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def job(path: Path, *overrides: str, count: int = 6, **data: str) -> Job:
    keys: Mapping[str, str] = {
        "source": "csv",
        "text": "t",
        "label": "l",
        "train": str(path),
        **data,
    }
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value)
    return jobs.parse(f"[data]\n{lines}\n[logits]\npublic = {count}", overrides=overrides)


def texts(federation: Federation) -> list[str]:
    held = federation.clients.values()
    parts = [part.text for h in held for part in (h.train, h.test)]
    return [text for part in (*parts, federation.public.text) for text in part]


# --- The whole way ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards", "length", "natural"])
def test_every_row_is_held_once_by_somebody(tmp_path: Path, kind: str) -> None:
    file = csv(tmp_path / "a.csv", 60)
    ours = job(file, f"clients.partition={kind}", *(["clients.by=w"] if kind == "natural" else []))
    found = federate(ours)
    assert sorted(texts(found)) == sorted(f"text {i}" for i in range(60))
    assert len(found.public) == 6
    assert sum(len(h.test) for h in found.clients.values()) == 12
    assert found.classes == CLASSES
    assert list(found.clients) == sorted(found.clients)
    assert federate(ours) == found
    assert texts(federate(ours.model_copy(update={"seed": 1}))) != texts(found)


def test_all_modes_train_on_the_same_rows(tmp_path: Path) -> None:
    file = csv(tmp_path / "a.csv", 60)
    found = [federate(job(file, f"mode={mode}")) for mode in MODE_NAMES]
    assert found[0] == found[1] == found[2]


def test_the_public_set_has_no_labels(tmp_path: Path) -> None:
    assert federate(job(csv(tmp_path / "a.csv", 60))).public.label == ()
    other = csv(tmp_path / "b.csv", 9, start=100)
    found = federate(job(tmp_path / "a.csv", count=9))
    assert len(found.public) == 9
    named = federate(jobs.parse(_toml(tmp_path / "a.csv", other)))
    assert named.public.label == ()
    assert set(named.public.text) <= {f"text {i}" for i in range(100, 109)}
    assert len(named.public) == 6
    assert sum(len(h.train) + len(h.test) for h in named.clients.values()) == 60


def _toml(train: Path, public: Path) -> str:
    return (
        f'[data]\nsource = "csv"\ntext = "t"\nlabel = "l"\ntrain = "{train}"\n'
        f'public = "{public}"\n[logits]\npublic = 6'
    )


def test_a_public_file_may_have_any_name_and_format(tmp_path: Path) -> None:
    train = csv(tmp_path / "a.csv", 60)
    plain = csv(tmp_path / "public.txt", 6, start=100)
    assert federate(jobs.parse(_toml(train, plain))).public.text[0] == "text 100"
    lines = jsonl(tmp_path / "public.jsonl", [{"t": f"line {i}"} for i in range(6)])
    assert federate(jobs.parse(_toml(train, lines))).public.text[0] == "line 0"


def test_a_public_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    train, public = csv(tmp_path / "a.csv", 60), csv(tmp_path / "b.csv", 5)
    with pytest.raises(
        DataError, match=r"data\.public holds 5 rows and data\.public_count asks for 6"
    ):
        federate(jobs.parse(_toml(train, public)))


def test_a_public_set_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"asks for 200 texts and 48 training rows can spare 44"):
        federate(job(csv(tmp_path / "a.csv", 60), count=200))


def test_caps_keep_a_sample_of_each_client(tmp_path: Path) -> None:
    file = csv(tmp_path / "a.csv", 60)
    whole = federate(job(file))
    capped = federate(job(file, "clients.examples=3", "clients.test_examples=2"))
    assert capped.public == whole.public
    for name, holding in capped.clients.items():
        assert len(holding.train) == 3
        assert len(holding.test) == 2
        assert set(holding.train.text) < set(whole.clients[name].train.text)
        assert set(holding.test.text) <= set(whole.clients[name].test.text)


def test_a_client_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    ours = job(csv(tmp_path / "a.csv", 60), "clients.each.client-1.rank=4")
    with pytest.raises(DataError, match=r"names 'client-1', and there is no such .* client-01, "):
        federate(ours)


def test_more_clients_than_rows_leaves_some_empty_and_says_so(tmp_path: Path) -> None:
    found = federate(job(csv(tmp_path / "a.csv", 20), "clients.count=14", count=2))
    assert sum(len(h.train) for h in found.clients.values()) == 14
    ours = job(csv(tmp_path / "a.csv", 20), "clients.count=15", count=2)
    with pytest.raises(DataError, match="can spare 1"):
        federate(ours)


def test_what_is_held_is_described_as_json(tmp_path: Path) -> None:
    found = describe(federate(job(csv(tmp_path / "a.csv", 60), "clients.by=w")))
    assert json.loads(json.dumps(found)) == found
    assert found["classes"] == ["no", "yes"]
    assert found["public"] == 6
    assert sum(c["train"] for c in found["clients"].values()) == 42
    for client in found["clients"].values():
        assert sum(client["labels"].values()) == client["train"]
        assert list(client["labels"]) == ["no", "yes"]
        assert client["words"] == 2.0


def test_an_empty_holding_is_described(tmp_path: Path) -> None:
    train, test = csv(tmp_path / "a.csv", 60), tmp_path / "b.csv"
    test.write_text("t,l,w\nx,yes,elsewhere\n", encoding="utf-8")
    ours = job(train, "clients.partition=natural", "clients.by=w", test=str(test))
    assert describe(federate(ours))["clients"]["elsewhere"] == {
        "train": 0,
        "test": 1,
        "labels": {"no": 0, "yes": 0},
        "words": 0.0,
    }


# --- Labels and classes -----------------------------------------------------------------------


def test_given_classes_keep_their_order(tmp_path: Path) -> None:
    ours = job(csv(tmp_path / "a.csv", 60), 'data.classes=["yes", "no", "maybe"]')
    assert read(ours).classes == ("yes", "no", "maybe")


def test_a_label_outside_the_classes_is_named(tmp_path: Path) -> None:
    ours = job(csv(tmp_path / "a.csv", 60), 'data.classes=["Yes", "no"]')
    with pytest.raises(
        DataError,
        match=r"training rows hold the label 'yes' \(\d+ rows\), .* did you mean 'Yes'\?",
    ):
        read(ours)


def test_a_test_label_that_no_training_row_has(tmp_path: Path) -> None:
    train = csv(tmp_path / "a.csv", 60)
    test = csv(tmp_path / "b.csv", 4, labels=("yes", "maybe"))
    with pytest.raises(DataError, match=r"'maybe' \(2 rows\), which no training row has; list all"):
        read(job(train, test=str(test)))
    ours = job(train, 'data.classes=["maybe", "no", "yes"]', test=str(test))
    assert read(ours).test.label.count("maybe") == 2
    with pytest.raises(DataError, match=r"'maybe' \(2 rows\), which is not in data.classes"):
        read(job(train, 'data.classes=["no", "yes"]', test=str(test)))


def test_one_class_is_no_choice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs two classes or more"):
        read(job(csv(tmp_path / "a.csv", 60, labels=("yes",))))


def test_a_class_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a label twice"):
        read(job(csv(tmp_path / "a.csv", 9), 'data.classes=["no", "yes", "no"]'))


# --- Keys that would not be read --------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.source=opinions"], "data.train"),
        (["data.hub=a/b"], "data.hub"),
        (["data.config=x"], "data.config"),
        (["data.template=chat"], "data.template"),
        (["data.prompt=t", "data.response=t"], "data.prompt"),
        (["data.task=causal", "data.prompt=t", "data.response=t"], "data.text"),
        (["data.task=causal", "data.template=chat"], "data.template"),
        (["data.task=causal", 'data.classes=["a"]'], "data.classes"),
        (["data.source=clients", "clients.by=w"], "clients.by"),
    ],
)
def test_a_key_that_would_not_be_read_is_refused(
    tmp_path: Path, overrides: list[str], key: str
) -> None:
    with pytest.raises(DataError, match=f"^{key} is given and is not read"):
        read(job(csv(tmp_path / "a.csv", 9), *overrides))


def test_a_file_named_like_another_format_is_refused(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"t": "x", "l": "yes"}])
    with pytest.raises(DataError, match=r'is named like jsonl and data\.source is "csv"'):
        read(job(file))


# --- One file per client ----------------------------------------------------------------------


def clients_job(folder: Path, *overrides: str, **data: str) -> Job:
    keys = ['data.classes=["no", "yes"]', *overrides]
    return job(folder, *keys, count=2, source="clients", **data)


def test_a_folder_of_files_is_a_folder_of_clients(tmp_path: Path) -> None:
    csv(tmp_path / "ann.csv", 10)
    jsonl(tmp_path / "bob.jsonl", [{"t": f"b{i}", "l": "no"} for i in range(8)])
    (tmp_path / "README.txt").write_text("not a client", encoding="utf-8")
    found = federate(clients_job(tmp_path))
    sizes = {name: (len(h.train), len(h.test)) for name, h in found.clients.items()}
    assert sizes == {"ann": (7, 2), "bob": (5, 2)}
    assert all(text.startswith("b") for text in found.clients["bob"].train.text)


def test_clients_may_bring_test_files(tmp_path: Path) -> None:
    for name, count in (("ann", 10), ("bob", 8)):
        csv(tmp_path / f"{name}.csv", count)
        csv(tmp_path / f"{name}.test.csv", 3, start=100)
    found = federate(clients_job(tmp_path))
    assert {n: (len(h.train), len(h.test)) for n, h in found.clients.items()} == {
        "ann": (9, 3),
        "bob": (7, 3),
    }
    (tmp_path / "bob.test.csv").unlink()
    with pytest.raises(DataError, match="client bob has no test file and others have"):
        federate(clients_job(tmp_path))


def test_test_files_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    csv(tmp_path / "train" / "ann.csv", 10)
    csv(tmp_path / "test" / "ann.csv", 4)
    found = federate(clients_job(tmp_path / "train", test=str(tmp_path / "test")))
    assert len(found.clients["ann"].test) == 4
    csv(tmp_path / "test" / "eve.csv", 4)
    with pytest.raises(DataError, match=r"eve\.csv has no training file of the same name"):
        federate(clients_job(tmp_path / "train", test=str(tmp_path / "test")))


def test_one_test_file_for_all_is_dealt_evenly_and_is_no_client(tmp_path: Path) -> None:
    for name in ("ann", "bob", "all"):
        csv(tmp_path / f"{name}.csv", 10)
    found = federate(clients_job(tmp_path, test=str(tmp_path / "all.csv")))
    assert [len(h.test) for h in found.clients.values()] == [5, 5]
    assert list(found.clients) == ["ann", "bob"]


def test_clients_files_may_be_pooled_and_dealt_anew(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        csv(tmp_path / f"{name}.csv", 20)
    found = federate(clients_job(tmp_path, "clients.partition=iid", "clients.count=3"))
    assert list(found.clients) == ["client-01", "client-02", "client-03"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "holds no client files"),
        (["ann.csv", "ann.json"], r"ann\.csv and ann\.json in .* name the same client"),
        (
            ["ann.csv", "zoe.test.csv", "eve.test.csv"],
            r"eve\.test\.csv has no training file of the same name",
        ),
    ],
)
def test_a_folder_that_is_unclear_is_refused(
    tmp_path: Path, files: list[str], sentence: str
) -> None:
    for name in files:
        csv(tmp_path / name, 4)
    with pytest.raises(DataError, match=sentence):
        read(clients_job(tmp_path))


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must be a folder with one file per client, got .*a\.csv$"
    ):
        read(clients_job(csv(tmp_path / "a.csv", 4)))


def test_a_folder_that_is_not_there_may_be_a_name_in_a_federation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got .*tickets; where .*`triskel federation submit`"):
        read(clients_job(tmp_path / "tickets"))


def test_no_party_sees_all_labels_so_they_must_be_given(tmp_path: Path) -> None:
    csv(tmp_path / "ann.csv", 4)
    with pytest.raises(DataError, match="must list the labels"):
        read(job(tmp_path, source="clients"))


# --- Pairs, running text, Parquet, the hub, the opinions --------------------------------------


def test_prompts_and_responses(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"q": f"q{i}", "a": "one two"} for i in range(40)])
    ours = job(file, source="jsonl", task="causal", prompt="q", response="a", text="", label="")
    found = federate(ours)
    assert found.classes == ()
    assert len(found.public.response) == 6
    table = describe(found)["clients"]["client-01"]
    assert table["labels"] == {}
    assert table["words"] == 3.0


def test_a_label_column_deals_prompts_too(tmp_path: Path) -> None:
    rows = [{"q": "q", "a": "a", "kind": "xy"[i % 2]} for i in range(40)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    ours = job(
        file,
        "clients.partition=dirichlet",
        source="jsonl",
        task="causal",
        prompt="q",
        response="a",
        text="",
        label="kind",
    )
    total = Counter[str]()
    for client in describe(federate(ours))["clients"].values():
        total.update(client["labels"])
    assert sum(total.values()) == 26
    assert set(total) == {"x", "y"}


def hub(folder: Path) -> str:
    """Save a dataset with class numbers as load_dataset finds it offline."""
    features = datasets.Features(
        {
            "t": datasets.Value("string"),
            "l": datasets.ClassLabel(names=["yes", "no"]),
            "w": datasets.Value("int64"),
        }
    )
    for split, count in (("train", 40), ("test", 8)):
        rows = {
            "t": [f"{split} {i}" for i in range(count)],
            "l": [i % 2 for i in range(count)],
            "w": [i % 4 for i in range(count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def hub_job(path: str, *overrides: str, **data: str) -> Job:
    keys = {"source": "hub", "hub": path, "train": "", **data}
    return job(Path(), *overrides, count=6, **keys)


def test_a_hub_dataset_has_class_names_for_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = hub(tmp_path / "set")
    table = read(hub_job(path))
    assert table.classes == ("no", "yes")
    assert (len(table.train), len(table.test)) == (32, 8)
    table = read(hub_job(path, "clients.partition=natural", "clients.by=w", test="test"))
    assert (len(table.train), len(table.test)) == (40, 8)
    assert set(table.train.group) == {"0", "1", "2", "3"}
    found = federate(hub_job(path, public="test"))
    assert all(text.startswith("test") for text in found.public.text)


def test_a_hub_dataset_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"dataset no/such, .* could not be loaded") as caught:
        read(hub_job("no/such"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("switched off by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)")
    path = hub(tmp_path / "set")
    with pytest.raises(DataError, match=r"split nope could not be loaded"):
        read(hub_job(path, test="nope"))
    with pytest.raises(DataError, match=r"has no column 'x' \(columns: t, l, w\)"):
        read(hub_job(path, text="x"))


def test_the_opinions_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "opinions"
    folder.mkdir()
    lines = [
        f"{silo},text {i},{('negative', 'neutral', 'positive')[i % 3]},0,{silo}-{i}"
        for silo in ("tweets", "films")
        for i in range(30)
    ]
    (folder / "opinions.csv").write_text(
        "\n".join(["silo,text,label,rating,id", *lines]), encoding="utf-8"
    )
    monkeypatch.setattr(assets, "folder", lambda name: tmp_path / name)
    found = federate(jobs.parse("[logits]\npublic = 6"))
    assert list(found.clients) == ["films", "tweets"]
    assert found.classes == ("negative", "neutral", "positive")
    assert Counter(found.public.group) == {"tweets": 3, "films": 3}
    assert [(len(h.train), len(h.test)) for h in found.clients.values()] == [(21, 6), (21, 6)]
