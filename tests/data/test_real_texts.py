"""Public data as it is: every source, and what tokenising it must leave true."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from triskel.config import read as jobs
from triskel.config.job import Job
from triskel.data import assets as shelf
from triskel.data.batches import batch_of, lengths_of, plan, tokenise
from triskel.data.federate import describe, federate
from triskel.data.rows import Rows
from triskel.numerics.tensors import eval_plan


def parse(data: dict[str, str], *overrides: str) -> Job:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in data.items())
    return jobs.parse(f"[data]\n{lines}", overrides=overrides)


def banking(folder: Path, *overrides: str) -> Job:
    data = {
        "source": "csv",
        "text": "text",
        "label": "category",
        "train": str(folder / "banking77" / "train.csv"),
        "test": str(folder / "banking77" / "test.csv"),
    }
    return parse(data, "clients.count=10", *overrides)


@pytest.mark.data
def test_banking77_dealt_by_intent(shared_data: Path) -> None:
    ours = banking(shared_data, "clients.partition=dirichlet")
    table = describe(federate(ours))
    clients = table["clients"].values()
    assert len(table["classes"]) == 77
    assert sum(c["train"] for c in clients) == 10_003 - 200
    assert sum(c["test"] for c in clients) == 3_080
    assert max(c["train"] for c in clients) > 1.2 * min(c["train"] for c in clients)
    assert all(c["train"] / c["test"] == pytest.approx(9_803 / 3_080, rel=0.25) for c in clients)
    assert describe(federate(ours)) == table


@pytest.mark.data
def test_dolly_s_files_are_its_clients(shared_data: Path) -> None:
    folder = shared_data / "dolly15k-fed10"
    data = {
        "source": "clients",
        "task": "causal",
        "prompt": "instruction",
        "response": "response",
        "label": "category",
        "train": str(folder),
        "test": str(folder / "global_test.json"),
    }
    found = federate(parse(data))
    table = describe(found)["clients"]
    assert list(table) == [f"local_training_{i}" for i in range(10)]
    assert sum(c["train"] for c in table.values()) == 14_931 - 200
    assert {c["test"] for c in table.values()} == {8}
    assert all(sum(c["labels"].values()) == c["train"] for c in table.values())
    assert len(found.public.prompt) == 200


@pytest.mark.data
def test_gsm8k_scores_the_reasoning_only(shared_data: Path, shared_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "stories15M")
    data = {
        "source": "jsonl",
        "task": "causal",
        "prompt": "question",
        "response": "answer",
        "train": str(shared_data / "gsm8k" / "train.jsonl"),
        "test": str(shared_data / "gsm8k" / "test.jsonl"),
    }
    ours = parse(data, "clients.test_examples=50", "train.max_tokens=512")
    holding = federate(ours).clients["client-01"]
    examples = tokenise(holding.test, tokenizer, job=ours, classes=())
    assert len(examples) == 50
    for response, ids, scored in zip(
        holding.test.response, examples.ids, examples.scored, strict=True
    ):
        said = tokenizer.decode(ids[scored], skip_special_tokens=True)
        assert said.strip() == response.strip()
        assert ids[-1] == tokenizer.eos_token_id
        assert scored[-1]


@pytest.mark.data
@pytest.mark.parametrize("name", ["stories260K", "stories15M"])
def test_running_text_is_scored_whole(shared_data: Path, shared_models: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / name)
    lines = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8").split("\n")
    ours = parse(
        {"source": "csv", "task": "causal", "text": "t", "train": "x"}, "train.max_tokens=48"
    )
    rows = Rows(text=tuple(lines[:200]))
    examples = tokenise(rows, tokenizer, job=ours, classes=())
    assert 100 < len(examples) < len(rows), "empty lines have nothing to predict"
    batch = batch_of(examples, range(len(examples)))
    assert len(batch.targets) == sum(lengths_of(examples)) - len(examples)
    assert torch.equal(batch.ids[batch.rows, batch.columns + 1], batch.targets)


@pytest.mark.asset
def test_the_opinions_are_those_that_were_published(assets: Path) -> None:
    table = describe(federate(Job()))
    assert assets
    assert {name: sum(c["labels"].values()) for name, c in table["clients"].items()} == {
        "editorials": 5_190 - 1_038 - 50,
        "films": 10_605 - 2_121 - 50,
        "products": 3_708 - 742 - 50,
        "tweets": 4_200 - 840 - 50,
    }


@pytest.mark.asset
@pytest.mark.parametrize("name", ["opinions", "smollm2-135m"])
def test_an_asset_has_the_bytes_that_figures_were_made_with(assets: Path, name: str) -> None:
    shelf.verify(name)
    for file, expected in shelf.ASSETS[name].sums.items():
        assert shelf.sha256_of(assets / name / file) == expected


@pytest.mark.asset
def test_smollm2_splits_digits_and_tells_chats(assets: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2-135m")
    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]
    ours = parse(
        {"source": "csv", "task": "causal", "prompt": "p", "response": "r", "train": "x"},
        "data.template=chat",
        "train.max_tokens=48",
    )
    rows = Rows(prompt=("What is 2 + 2?",), response=("It is 4.",))
    examples = tokenise(rows, tokenizer, job=ours, classes=())
    assert tokenizer.decode(examples.ids[0][examples.scored[0]]) == "It is 4.<|im_end|>"


@pytest.mark.asset
def test_batches_of_opinions_waste_little(assets: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2-135m")
    ours = parse({}, "clients.examples=400")
    found = federate(ours)
    for holding in found.clients.values():
        examples = tokenise(holding.train, tokenizer, job=ours, classes=found.classes)
        lengths = lengths_of(examples)
        for batches in (
            plan(lengths, batch=16, seed=0, path=("round", 1)),
            eval_plan(lengths, tokens=1024),
        ):
            padded = sum(batch_of(examples, one).ids.numel() for one in batches)
            assert padded < 1.25 * sum(lengths)
