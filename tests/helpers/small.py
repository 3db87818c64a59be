"""Random models of a few thousand parameters, a word tokenizer, and jobs on a few dozen rows."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from triskel.config.job import Job
from triskel.config.sections import VIRTUAL
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources, prepare
from triskel.training.mode_setting import mode_of
from triskel.types import ClientState
from triskel.wire.ledger import Ledger

WORDS = [f"w{i}" for i in range(40)]
LABELS = ("bad", "fair", "good")
SPECIAL = {"unk_token": "<unk>", "eos_token": "</s>"}
DEPTH, WIDTH, HEADS, INNER = 3, 16, 2, 24


def tokenizer(pad: str = "") -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *WORDS, *LABELS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    more = {"pad_token": pad} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL, **more)


def config(kind: str = "llama", **more: Any) -> transformers.PreTrainedConfig:
    vocabulary = more.pop("vocab_size", 3 + len(WORDS) + len(LABELS))
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_inner": INNER}
        sizes |= {"n_positions": 128}
        return transformers.GPT2Config(vocab_size=vocabulary, **(sizes | more))
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": 128,
    }
    if kind == "bert":
        return transformers.BertConfig(vocab_size=vocabulary, **(sizes | more))
    sizes |= {"num_key_value_heads": 1}
    if kind == "mistral":
        return transformers.MistralConfig(vocab_size=vocabulary, **(sizes | more))
    return transformers.LlamaConfig(vocab_size=vocabulary, **(sizes | more))


def save_model(folder: Path, kind: str = "llama", *, pad: str = "", **more: Any) -> Path:
    """Write a random model and its tokenizer as a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "bert":
            model: Any = transformers.BertModel(config(kind, **more))
        else:
            model = transformers.AutoModelForCausalLM.from_config(config(kind, **more))
    model.save_pretrained(folder)
    tokenizer(pad=pad).save_pretrained(folder)
    return folder


def text(words: int, start: int) -> str:
    return " ".join(WORDS[(start + 7 * j + j * j) % len(WORDS)] for j in range(words))


def save_rows(place: Path, rows: int, *, longest: int = 9, start: int = 0) -> Path:
    """Write texts of 2 to `longest` words with a label that follows from the first word."""
    lines = ["text,label,answer"]
    for i in range(start, start + rows):
        words = 2 + (5 * i) % (longest - 1)
        lines.append(f"{text(words, i)},{LABELS[i % 3]},{LABELS[i % 3]} {WORDS[i % 40]}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def job(model: Path, rows: Path, *, task: str = "classify", **sections: Mapping[str, Any]) -> Job:
    """A job of seconds: three clients, one round, batches of four."""
    data: dict[str, Any] = {"source": "csv", "train": str(rows), "task": task}
    data |= (
        {"text": "text", "label": "label"}
        if task == "classify"
        else {"prompt": "text", "response": "answer", "template": "{prompt} {response}"}
    )
    raw: dict[str, Any] = {
        "rounds": 1,
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "adapter": {"rank": 2, "alpha": 4.0},
        "data": data,
        "clients": {"partition": "iid", "count": 3},
        "train": {"batch": 4, "max_tokens": 12},
        "logits": {"public": 6},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, Mapping) else section
    if raw["adapter"].get("kind") in VIRTUAL:  # which have no rank
        raw["adapter"] = dict(sections["adapter"])
    return Job.model_validate(raw)


def resources(job_: Job) -> LocalResources:
    return prepare(job_, watch)


def play(
    resources: LocalResources, mode: str, rounds: int = 1, **spoilt: Callable[[Any], Any]
) -> list[dict[str, Any]]:
    """Play rounds of a mode in one process; return the rows of the ledger, round by round.

    Args:
        resources: The job, loaded.
        mode: Which mode.
        rounds: How many.
        spoilt: Makes another function of a function of the mode.
    """
    it, kept, found = mode_of(resources.setting(mode, watch)), dict[str, ClientState](), []
    for name, function in spoilt.items():
        object.__setattr__(it, name, function(getattr(it, name)))
    state = it.start()
    for _ in range(rounds):
        ledger = Ledger()
        state = LocalEngine(resources.job).round(
            it,
            state,
            resources.active(),
            worker=lambda c: resources.worker(c, watch),
            client_states=kept,
            keep=kept.__setitem__,
            ledger=ledger,
            watch=watch,
        )
        found.append(ledger.rows())
    return found


def watch(event: Mapping[str, Any]) -> None:
    """Take note of nothing."""
    del event
