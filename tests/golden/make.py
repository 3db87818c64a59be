"""Write the golden messages beside this file: `python tests/golden/make.py`.

A file is written once for each wire version and stays readable from then on;
`tests/wire/test_golden.py` reads each by hand and through `unpack`. Writing again is for a new
version, which has new names.
"""

from pathlib import Path

import torch

from triskel.codec import encode
from triskel.codec.change import change, difference
from triskel.core.choice import Choice
from triskel.core.registry import CODECS
from triskel.types import Message, Section
from triskel.wire import VERSION, pack

HERE = Path(__file__).resolve().parent
GRID = torch.tensor([[0.5, -127.0, 3.0], [0.0, 0.0, 0.0], [1e-3, -2e-3, 7e-3]])


def messages() -> dict[str, Message]:
    """Return the messages by the name of their file, every kind of message and section once."""
    dense = {
        "w": torch.tensor([[1.5, -2.0], [0.25, 3.0]]),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "half": torch.tensor([65504.0, -0.5], dtype=torch.float16),
        "brain": torch.tensor([1.0, -3.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }
    lowrank = {
        "q.lora_A.weight": torch.tensor([[1.0, 2.0, 3.0]]),
        "q.lora_B.weight": torch.tensor([[-1.0], [4.0]]),
    }
    sparse = {"values": torch.tensor([2.0, -8.0]), "indices": torch.tensor([1, 4])}
    masked = {
        "values": torch.tensor([9.0, 5.0]),
        "mask": torch.tensor([True, *[False] * 8, True]),
    }
    mask = {"kept": torch.tensor([[True, False, True], [True, True, False]])}
    seeds = {"seeds": torch.tensor([7, -(2**63)]), "scalars": torch.tensor([0.5, -0.25])}
    top = {
        "values": torch.tensor([[0.75, 0.125], [0.5, 0.25]]),
        "ids": torch.tensor([[65535, 0], [3, 49151]], dtype=torch.int32).to(torch.uint16),
        "tail": torch.tensor([0.125, 0.25]),
    }
    wide = {"values": torch.tensor([[0.5]]), "ids": torch.tensor([[65536]], dtype=torch.int32)}
    hidden = {"values": torch.arange(6, dtype=torch.float32).reshape(3, 2)}
    labels = {
        "long": torch.tensor([2, -1]),
        "int": torch.tensor([5], dtype=torch.int32),
        "short": torch.tensor([-300], dtype=torch.int16),
        "char": torch.tensor([-128], dtype=torch.int8),
        "byte": torch.tensor([255], dtype=torch.uint8),
    }
    counts = {"table": torch.tensor([[3, 0], [1, 2]]), "none": torch.zeros(0, dtype=torch.int64)}
    facts = {"round": 3, "loss": 0.5, "who": "Zoë", "last": True, "none": None, "n": [1, 2]}
    found = {
        "task-dense": Message(
            kind="task", facts=facts, sections={"head": Section(kind="dense", tensors=dense)}
        ),
        "update-lowrank": Message(
            kind="update",
            sections={"adapter": Section(kind="lowrank", tensors=lowrank, facts={"scale": 2.0})},
        ),
        "state-sparse": Message(
            kind="state",
            sections={
                "listed": Section(kind="sparse", tensors=sparse, facts={"size": 5}),
                "masked": Section(kind="sparse", tensors=masked),
            },
        ),
        "answer-mask": Message(kind="answer", sections={"m": Section(kind="mask", tensors=mask)}),
        "evaluate-seeds": Message(
            kind="evaluate", sections={"s": Section(kind="seeds", tensors=seeds)}
        ),
        "evaluate-counts": Message(
            kind="evaluate", sections={"c": Section(kind="counts", tensors=counts)}
        ),
        "ask-knowledge": Message(
            kind="ask",
            topic="knowledge",
            sections={
                "top": Section(kind="knowledge", tensors=top),
                "wide": Section(kind="knowledge", tensors=wide),
            },
        ),
        "ask-activations": Message(
            kind="ask",
            topic="forward",
            sections={
                "hidden": Section(kind="activations", tensors=hidden, facts={"lengths": [2, 1]}),
                "labels": Section(kind="labels", tensors=labels),
            },
        ),
    }
    grid = Message(
        kind="update",
        sections={"grid": Section(kind="dense", tensors={"x": GRID, "one": torch.tensor(-6.0)})},
    )
    found |= {f"codec-{codec}": encode(grid, codec) for codec in CODECS.ours}
    now, before = moved()
    part = Section(kind="dense", tensors=now)
    told = change(part, before, difference(now, before))
    message = Message(kind="update", sections={"s": told})
    tenth = Choice.model_validate({"name": "topk", "share": 0.1})
    return found | {"update-change": encode(message, tenth)}


def moved() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return tensors of 301 numbers, and what the message `update-change` is the change of."""
    before = {"a": torch.arange(100, dtype=torch.float32).reshape(20, 5), "b": torch.ones(201)}
    steps = torch.tensor([(i % 7 - 3) * i / 64 for i in range(301)])
    return {"a": before["a"] + steps[:100].reshape(20, 5), "b": before["b"] + steps[100:]}, before


def main() -> None:
    """Write every file that is not there yet."""
    for name, message in messages().items():
        path = HERE / f"v{VERSION}-{name}.tsk"
        if not path.exists():
            path.write_bytes(pack(message))


if __name__ == "__main__":
    main()
