"""Rows held out of the training rows to choose settings by, and who judges."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from opened import listen

from triskel.config import read as jobs
from triskel.config.job import Job
from triskel.config.sections import Data
from triskel.data import reading, sources
from triskel.data.federate import Federation, describe, federate, federate_own
from triskel.data.reading import Dataset
from triskel.data.rows import Rows
from triskel.errors import DataError, JobError

KINDS = ["iid", "dirichlet", "quantity", "shards", "length", "natural"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were opened since the test began, or since it cleared the list."""
    found: list[str] = []
    listen(monkeypatch, found.append)
    return found


def table(path: Path, rows: int, *, start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{'word ' * (i % 7)}text {i},{('no', 'yes')[i % 2]},ward {i % 3}"
        for i in range(start, start + rows)
    ]
    path.write_text("\n".join(["t,l,w", *lines, ""]), encoding="utf-8")
    return path


def job(train: Path, share: float, *overrides: str, **data: str) -> Job:
    keys = {"source": "csv", "text": "t", "label": "l", "train": str(train), **data}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    text = "\n".join(["[data]", *lines, f"validation_share = {share}", "[logits]", "public = 6"])
    return jobs.parse(text, overrides=overrides)


def dealt(train: Path, share: float, kind: str, *overrides: str, **data: str) -> Job:
    by = ["clients.by=w"] if kind == "natural" else []
    return job(train, share, f"clients.partition={kind}", *by, *overrides, **data)


def trained(federation: Federation) -> Mapping[str, Rows]:
    return {name: held.train for name, held in federation.clients.items()}


def judged(federation: Federation) -> Mapping[str, Rows]:
    return {name: held.test for name, held in federation.clients.items()}


def texts(parts: Mapping[str, Rows]) -> list[str]:
    return [text for rows in parts.values() for text in rows.text]


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_training_rows_are_the_same_under_both_judges(
    kind: str, *, held_out: bool, tmp_path: Path
) -> None:
    more = {} if held_out else {"test": str(table(tmp_path / "test.csv", 20, start=500))}
    ours = dealt(table(tmp_path / "a.csv", 90), 0.25, kind, "clients.examples=9", **more)
    tested, chosen = federate(ours), federate(ours, "validation")
    assert trained(tested) == trained(chosen)
    assert (tested.public, tested.classes) == (chosen.public, chosen.classes)
    assert describe(tested) | {"clients": 0} == describe(chosen) | {"clients": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_trains_or_validates_or_tests_or_is_public(kind: str, tmp_path: Path) -> None:
    ours = dealt(table(tmp_path / "a.csv", 90), 0.25, kind)
    tested, chosen = federate(ours), federate(ours, "validation")
    parts = [texts(trained(tested)), texts(judged(tested)), texts(judged(chosen))]
    whole = Counter(text for part in [*parts, tested.public.text] for text in part)
    assert sorted(whole.values()) == [1] * 90
    assert describe(chosen)["validation"] == len(parts[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_share_moves_no_test_and_no_public_row(kind: str, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 90)
    plain, with_share = federate(dealt(file, 0, kind)), federate(dealt(file, 0.4, kind))
    assert judged(plain) == judged(with_share)
    assert plain.public == with_share.public
    for name, rows in trained(with_share).items():
        assert set(rows.text) <= set(trained(plain)[name].text)
    assert len(texts(trained(with_share))) < len(texts(trained(plain)))


def test_a_share_is_taken_of_each_client_and_spread_over_its_labels(tmp_path: Path) -> None:
    ours = dealt(table(tmp_path / "a.csv", 240), 0.25, "dirichlet", "clients.count=3")
    before = trained(federate(ours.model_copy(update={"data": _without_share(ours)})))
    found = federate(ours, "validation")
    for name, held in found.clients.items():
        whole = before[name]
        assert len(held.test) == max(1, round(0.25 * len(whole)))
        counts, taken = Counter(whole.label), Counter(held.test.label)
        for label, count in counts.items():
            assert abs(taken[label] - 0.25 * count) <= 1
            assert taken[label] < count


def test_rows_held_out_are_the_first_of_a_stream_named_after_client_and_label(
    tmp_path: Path,
) -> None:
    ours = dealt(table(tmp_path / "a.csv", 240), 0.25, "natural", "seed=7")
    before = trained(federate(ours.model_copy(update={"data": _without_share(ours)})))
    for name, held in judged(federate(ours, "validation")).items():
        whole, expected = before[name], set[str]()
        for label, count in Counter(held.label).items():
            mine = [text for text, own in zip(whole.text, whole.label, strict=True) if own == label]
            path = f"7/validation/{name}/{label}".encode()
            seed = int.from_bytes(hashlib.sha256(path).digest()[:8], "little") >> 1
            order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))
            expected |= {mine[i] for i in order[:count].tolist()}
        assert set(held.text) == expected


def test_test_rows_that_are_held_out_are_dropped_where_they_are_read(tmp_path: Path) -> None:
    ours = job(table(tmp_path / "a.csv", 60), 0.25)
    with_tests, without = sources.read(ours), sources.read(ours, tests=False)
    assert len(with_tests.test) == 12
    assert len(without.test) == 0
    assert without.train == with_tests.train


def _without_share(ours: Job) -> Data:
    return ours.data.model_copy(update={"validation_share": 0.0})


def test_the_cap_of_test_rows_caps_validation_rows(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 240)
    whole = federate(job(file, 0.25), "validation")
    capped = federate(job(file, 0.25, "clients.test_examples=4"), "validation")
    assert trained(whole) == trained(capped)
    assert describe(whole)["validation"] == describe(capped)["validation"] > 16
    for name, rows in judged(capped).items():
        assert len(rows) == 4
        assert set(rows.text) < set(judged(whole)[name].text)


def test_other_seeds_hold_out_other_rows(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 90)
    one, other = (federate(job(file, 0.25, f"seed={s}"), "validation") for s in (0, 1))
    assert set(texts(judged(one))) != set(texts(judged(other)))


def test_a_test_file_is_not_opened_when_validation_rows_judge(
    tmp_path: Path, opened: list[str]
) -> None:
    train, test = table(tmp_path / "a.csv", 60), table(tmp_path / "the-tests.csv", 20, start=500)
    ours = job(train, 0.25, test=str(test))
    opened.clear()
    found = federate(ours, "validation")
    assert str(train) in opened
    assert str(test) not in opened
    assert not set(texts(judged(found))) & {f"text {i}" for i in range(500, 520)}
    federate(ours)
    assert str(test) in opened, "it would have been heard"


@pytest.mark.parametrize("how", ["beside", "folder", "one"])
def test_no_test_file_of_a_client_is_opened_when_validation_rows_judge(
    how: str, tmp_path: Path, opened: list[str]
) -> None:
    named: dict[str, str] = {}
    for number, name in enumerate(("ann", "bob")):
        table(tmp_path / "in" / f"{name}.csv", 30, start=100 * number)
        if how == "beside":
            table(tmp_path / "in" / f"{name}.test.csv", 9, start=500 + 100 * number)
        else:
            table(tmp_path / "tests" / f"{name}.csv", 9, start=500 + 100 * number)
    if how != "beside":
        named = {"test": str(tmp_path / "tests" / ("ann.csv" if how == "one" else ""))}
    ours = job(tmp_path / "in", 0.25, 'data.classes=["no", "yes"]', source="clients", **named)
    opened.clear()
    found = federate(ours, "validation")
    assert [p for p in opened if ".test." in p or "/tests/" in p] == []
    assert trained(found) == trained(federate(ours))


def test_a_split_of_tests_is_not_loaded_when_validation_rows_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []

    def columns(_job: Job, split: str, wanted: object) -> Mapping[str, list[str]]:
        del wanted
        loaded.append(split)
        return {"t": [f"text {i}" for i in range(60)], "l": ["no", "yes"] * 30}

    monkeypatch.setattr(reading, "_hub_columns", columns)
    ours = job(Path("train"), 0.25, source="hub", hub="org/name", test="the-tests")
    federate(ours, "validation")
    assert loaded == ["train"]


def test_a_test_file_that_is_not_there_is_refused_before_anything_is_chosen(
    tmp_path: Path,
) -> None:
    ours = job(table(tmp_path / "a.csv", 60), 0.25, test=str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist; mend data\.test"):
        federate(ours, "validation")


def test_to_judge_on_validation_rows_needs_a_share(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation_share is 0.* --set data\.validation_share="):
        federate(job(table(tmp_path / "a.csv", 60), 0), "validation")


def test_a_share_that_no_client_can_spare_is_refused(tmp_path: Path) -> None:
    ours = job(table(tmp_path / "a.csv", 60), 0.25, "clients.count=42")
    with pytest.raises(DataError, match=r"finds no client that holds two training rows"):
        federate(ours)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_outside_of_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(JobError, match=r"data\.validation_share"):
        jobs.parse(f"[data]\nvalidation_share = {share}")


def test_under_the_same_seed_a_site_holds_out_what_it_would_in_one_process(tmp_path: Path) -> None:
    for number, name in enumerate(("ann", "bob")):
        table(tmp_path / "in" / f"{name}.csv", 40, start=100 * number)
    public = table(tmp_path / "public.csv", 6, start=900)
    classes = 'data.classes=["no", "yes"]'
    ours = job(tmp_path / "in", 0.25, classes, source="clients", public=str(public))
    whole = federate(ours)
    named = job(Path("mine"), 0.25, classes, source="clients", public="everyone")
    for name, held in whole.clients.items():
        columns = {"t": "t", "l": "l"}
        datasets = {
            "mine": Dataset(paths=[tmp_path / "in" / f"{name}.csv"], columns=columns),
            "everyone": Dataset(paths=[public], columns=columns),
        }
        own = federate_own(named, name, datasets, lambda *_question: named.seed)
        assert own.clients[name] == held
        assert describe(own)["validation"] == held.validation == round(0.25 * 32)
