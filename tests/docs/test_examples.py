"""Every example runs on a tiny random model, and what the pages say about the code stays true."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from triskel.config.job import Job
from triskel.config.sections import Clients, Override
from triskel.core.registry import MODES
from triskel.modes.params.exchange import Exchange

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"w{i}" for i in range(30)]
LABELS = ("bad", "fair", "good")
ROW = re.compile(r"^\| `([\w.<>-]+)` \| (.+?) \|", re.MULTILINE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job's settings: a random model of four blocks and 72 labelled texts of three clients."""
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a token of text
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",  # noqa: S106 - a token of text
        eos_token="</s>",  # noqa: S106 - a token of text
    ).save_pretrained(folder)
    lines = [f"{WORDS[i % 30]} {WORDS[7 * i % 30]} w{i % 3},{LABELS[i % 3]}" for i in range(200)]
    rows = folder / "rows.csv"
    rows.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return [
        f"model.path={folder}", "model.dtype=float32", "model.device=cpu", "rounds=1",
        'data.source="csv"', f"data.train={rows}", "data.text=text", "data.label=label",
        "clients.count=3", "clients.examples=24", "logits.public=20", "train.batch=8",
        "train.max_tokens=8",
    ]  # fmt: skip


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(text: str) -> list[dict[str, str]]:
    """The lines under the first one that has as many words, by the words of that line."""
    heads, *lines = (line.split() for line in text.replace("peak MB", "peak_MB").splitlines())
    return [dict(zip(heads, line, strict=True)) for line in lines]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_the_example_of_params_shows_bytes_that_grow_with_the_rank(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    example("params").main(settings)
    rows = table(capsys.readouterr().out)
    assert [row["rank"] for row in rows] == ["1", "4", "16"]
    assert all(row["formula"] == row["payload"] for row in rows)
    head = 4 * 16 * 3
    assert (number(rows[2]["payload"]) - head) == 16 * (number(rows[0]["payload"]) - head)


def test_the_example_of_logits_shows_bytes_that_grow_with_the_public_set(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    example("logits").main(settings)
    rows = table(capsys.readouterr().out)
    assert [row["payload"] for row in rows] == ["240", "960"]
    assert all(row["formula"] == row["payload"] for row in rows)
    assert number(rows[1]["MFLOPs"]) > number(rows[0]["MFLOPs"])


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_the_example_of_split_shows_work_that_moves_with_the_cut(
    settings: list[str], capsys: pytest.CaptureFixture[str], labels: str
) -> None:
    example("split").main([*settings, f"split.labels={labels}"])
    rows = table(capsys.readouterr().out)
    assert [row["cut"] for row in rows] == ["1-3", "2-3"]
    assert number(rows[1]["MFLOPs"]) > number(rows[0]["MFLOPs"])
    assert number(rows[1]["peak_MB"]) >= number(rows[0]["peak_MB"])


# --- the pages --------------------------------------------------------------------------------


def keys_of(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a job with its default."""
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_of(inner, f"{prefix}{name}.")
        elif part is Clients and name == "each":
            assert Override in get_args(field.annotation)
            yield from keys_of(Override, f"{prefix}each.<name>.")
        else:
            yield f"{prefix}{name}", None if field.is_required() else field.default


def test_the_page_of_the_job_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "job.md").read_text(encoding="utf-8")
    rows = ROW.findall(page)  # those of other tables are no keys
    written = {key: shown for key, shown in rows if "." in key or key in Job.model_fields}
    known = dict(keys_of(Job)) | dict(keys_of(Exchange, "params.exchange."))
    for spec in MODES.built_in():
        known |= keys_of(spec.options, f"{spec.name}.")
        short = {key: spec.options.model_fields[key] for key in spec.short_client_keys}
        known |= {f"clients.each.<name>.{key}": field.default for key, field in short.items()}
    assert sorted(written) == sorted(known)
    for key, default in known.items():
        plain = list(default) if isinstance(default, tuple) else default
        shown = "none" if plain is None else f"`{json.dumps(plain)}`"
        assert written[key] == shown, f"docs/job.md says {key} = {written[key]}, it is {shown}"


def test_the_page_of_the_design_lists_the_floors_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["name"]: one for one in settings["tool"]["importlinter"]["contracts"]}
    floors = [
        [name.strip() for name in floor.split("|") if "(" not in name]
        for floor in contracts["floors"]["layers"]
    ]
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Floors")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    assert [re.findall(r"\w+", row) for row in rows] == floors


def excerpts() -> Mapping[str, str]:
    pages = ("README.md", "docs/tutorial.md")
    found: dict[str, str] = {}
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        pattern = r"^```py of=(\S+)\n(.*?)^```"
        for i, (name, block) in enumerate(re.findall(pattern, text, re.MULTILINE | re.DOTALL)):
            found[f"{page}:{i}:{name}"] = block
    return found


@pytest.mark.parametrize("where", excerpts())
def test_an_excerpt_stands_in_its_example_word_for_word(where: str) -> None:
    example_, block = where.rpartition(":")[2], excerpts()[where]
    code = (ROOT / example_).read_text(encoding="utf-8")
    for piece in block.strip("\n").split("\n...\n"):
        assert piece in code, f"{example_} has no longer:\n{piece}"
