"""Models as people have them: what cannot be loaded is one sentence that says what to do."""

# ruff: noqa: ANN401 - of transformers

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError

from triskel.config.sections import Adapter, Model
from triskel.errors import ModelError
from triskel.model.load import load, tokenizer_in
from triskel.model.shared import SharedModel

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
MODEL = Model(dtype="float32", device="cpu")
ADAPTER = Adapter(rank=2, alpha=4.0)


def loaded(folder: Path, head: Any = "classes") -> SharedModel:
    return load(str(folder), MODEL, ADAPTER, head=head, classes=3, seed=1)


def refusal(folder: Path, head: Any = "classes") -> str:
    with pytest.raises(ModelError) as error:
        loaded(folder, head)
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of a model that is right; its tokenizer has 46 words, and no padding token."""
    (tmp_path / "model").mkdir()
    for place in sound.iterdir():
        (tmp_path / "model" / place.name).write_bytes(place.read_bytes())
    return tmp_path / "model"


def changed(folder: Path, name: str, **keys: Any) -> None:
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**told, **keys}))


def test_a_tokenizer_without_a_padding_token_is_no_obstacle(folder: Path) -> None:
    body = loaded(folder)
    assert body.tokenizer.pad_token is None
    assert body.classes == 3


@pytest.mark.parametrize("head", ["classes", "vocabulary"])
def test_a_tokenizer_larger_than_the_embedding_is_refused_with_the_first_token_beyond(
    head: str, folder: Path
) -> None:
    tokenizer = tokenizer_in(str(folder))
    tokenizer.add_tokens(["new", "newer"])
    tokenizer.save_pretrained(folder)
    assert (
        "knows 48 tokens and the model embeds 46: 'new' (46) is the first without a row; put the "
        "tokenizer that belongs to the model beside it, or give the model more rows"
    ) in refusal(folder, head)


def test_a_padding_token_beyond_the_embedding_is_a_token_like_any_other(folder: Path) -> None:
    tokenizer = tokenizer_in(str(folder))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert "'<pad>' (46) is the first without a row" in refusal(folder)


def test_an_embedding_larger_than_the_tokenizer_is_no_obstacle(tmp_path: Path) -> None:
    assert (
        loaded(small.save_model(tmp_path / "model", vocab_size=64), "vocabulary").vocabulary == 46
    )


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a padding token in the configuration alone": (
        lambda f: changed(f, "config.json", pad_token_id=99), "has pad_token_id = 99"),
    "quantised": (lambda f: changed(f, "config.json", quantization_config={
        "quant_method": "bitsandbytes", "load_in_4bit": True}), "is quantised (bitsandbytes)"),
    "unknown": (lambda f: changed(f, "config.json", model_type="llama9"),
        "model type 'llama9' is not supported; the nearest is 'llama'"),
    "its own code": (lambda f: changed(f, "config.json", model_type="mine", auto_map={
        "AutoModelForCausalLM": "mine.Model"}), "its own code (mine.Model) is never run"),
    "no type": (lambda f: changed(f, "config.json", model_type=""), "names no model_type"),
    "a list for a configuration": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a tokenizer of another version": (lambda f: changed(f, "tokenizer.json", model={"type": "X"}),
        "the tokenizer of "),
    "a tokenizer that is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"),
        "copy tokenizer.json and tokenizer_config.json of the model"),
    "weights cut off": (lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-9]), "cannot be loaded: "),
    "weights of another size": (lambda f: changed(f, "config.json", intermediate_size=32),
        "(16, 24) in its files, and its config.json says (16, 32); take both from one model"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_one_sentence(what: str, folder: Path) -> None:
    change, why = BROKEN[what]
    change(folder)
    assert why in refusal(folder)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("This modeling file requires einops"),
        SafetensorError("Error while deserializing header: incomplete metadata"),
        OSError(28, "No space left on device"),
        KeyError("model.norm.weight"),
    ],
)
def test_what_a_library_says_of_files_is_quoted(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", broken)
    assert f"cannot be loaded: {error}" in refusal(folder)


def test_memory_that_runs_out_is_no_fault_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError) as error:
        loaded(folder)
    assert error.value.__notes__ == [f"while loading model {folder}"]
