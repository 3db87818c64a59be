"""The work itself, the same lines for every peer: a model, one client's epoch, the mean.

Nothing here knows Triskel or a federation framework. `dump.py` wrote what is read here: token ids,
their order in every round, and the adapter that all peers start from.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

ADAPTER = "adapter_model.safetensors"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """What is to be done, and on what.

    Attributes:
        facts: Model folder, classes, padding token, rounds, batch size, learning rate, dtype.
        train: Token ids and labels of each client.
        order: For each round and client, the examples in the order they are trained on.
        test: Token ids and labels of all clients' test texts.
        start: The adapter and head before round 1.
    """

    facts: dict[str, Any]
    train: dict[str, dict[str, list[Any]]]
    order: list[dict[str, list[int]]]
    test: dict[str, list[Any]]
    start: Path

    def clients(self) -> list[str]:
        """Return the clients by name."""
        return sorted(self.train)

    def ordered(self, client: str, round_: int) -> dict[str, list[Any]]:
        """Return a client's examples in the order of one round, counted from 1."""
        rows, order = self.train[client], self.order[round_ - 1][client]
        return {key: [rows[key][i] for i in order] for key in ("ids", "labels")}

    def batches(self, client: str, round_: int) -> Iterator[dict[str, Tensor]]:
        """Return what a client trains on in one round."""
        rows, size = self.ordered(client, round_), self.facts["batch"]
        for low in range(0, len(rows["ids"]), size):
            yield self.batch(rows["ids"][low : low + size], rows["labels"][low : low + size])

    def batch(self, ids: Sequence[list[int]], labels: Sequence[int]) -> dict[str, Tensor]:
        """Return texts side by side, padded to the longest."""
        width = max(len(row) for row in ids)
        padded = [row + [self.facts["pad"]] * (width - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }


def read(folder: Path) -> Work:
    """Read what `dump.py` wrote."""
    return Work(**json.loads((folder / "work.json").read_text()), start=folder / ADAPTER)


def model_of(work: Work) -> Any:
    """Load the model, put LoRA on it, and set both to the common start."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        work.facts["model"],
        num_labels=work.facts["classes"],
        dtype=getattr(torch, work.facts["dtype"]),
        attn_implementation="eager",  # faster than sdpa on processors, for texts this short
    )
    base.config.pad_token_id = work.facts["pad"]
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=peft.TaskType.SEQ_CLS
    )
    model = peft.get_peft_model(base, config)  # keeps the factors of a narrower model in float32
    model.base_model.model.score.float()
    model.base_model.model.score.register_forward_pre_hook(lambda _, x: (x[0].float(),))
    install(model, load_file(work.start))
    return model


def install(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put an adapter and head into a model."""
    peft.set_peft_model_state_dict(model, tensors)


def taken(model: Any) -> Tensors:
    """Return copies of a model's adapter and head."""
    return {n: t.detach().clone() for n, t in peft.get_peft_model_state_dict(model).items()}


def train(model: Any, work: Work, client: str, round_: int) -> dict[str, float]:
    """Train one client for one epoch; return its mean loss, examples and seconds."""
    start, losses = time.perf_counter(), list[float]()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=work.facts["lr"], weight_decay=0.0, fused=True)
    for batch in work.batches(client, round_):
        loss = model(**batch).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    return {
        "loss": sum(losses) / len(losses),
        "num-examples": len(work.train[client]["ids"]),
        "steps": len(losses),
        "seconds": time.perf_counter() - start,
    }


def mean(updates: Sequence[tuple[Tensors, float]]) -> Tensors:
    """Return the mean of tensors by name, weighted."""
    total = sum(weight for _, weight in updates)
    return {n: sum(w / total * one[n] for one, w in updates) for n in updates[0][0]}


def accuracy(model: Any, work: Work) -> float:
    """Return the share of test texts whose class a model finds."""
    ids, labels, hits = work.test["ids"], work.test["labels"], 0
    model.eval()
    with torch.no_grad():
        for low in range(0, len(ids), 32):
            batch = work.batch(ids[low : low + 32], labels[low : low + 32])
            hits += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return hits / len(labels)


def progress(folder: Path) -> None:
    """Say that a round has ended."""
    (folder / "progress").touch()


def finish(folder: Path, rounds: list[dict[str, Any]], adapter: Mapping[str, Tensor]) -> None:
    """Write a run's figures and the adapter it ended with."""
    save_file(dict(adapter), folder / ADAPTER)
    (folder / "rounds.json").write_text(json.dumps(rounds, indent=1))
