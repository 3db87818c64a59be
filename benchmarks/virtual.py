"""What do thousands of virtual clients in one process cost beside their own work?

Federations of 100, 1,000 and 10,000 clients, each with a few texts of its own and a random model of
260,000 parameters, are played in processes of their own, in turn. `keep-b` (the mode of
`keep_b.py`) leaves a state with every client and scores personalised models;
`params` leaves none. A client's work is what the ledger says, `compute_s`. Memory is the process's
peak.
"""

import argparse
import json
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from triskel.cli.quick_import import loading

with loading():  # as the command line does
    import measure
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from triskel.config.job import Job
    from triskel.engines.local import LocalEngine
    from triskel.experiment.compare import Request, run
    from triskel.experiment.rounds import Stage, play
    from triskel.experiment.stages import stage_of
    from triskel.wire.ledger import Ledger

ROOT = Path(__file__).parent.parent
FEW, MANY = 100, 10_000
WORDS = [f"w{i}" for i in range(200)]
LABELS = ("bad", "fair", "good")
TEXTS, TESTS, LONG = 8, 2, 24
"""Training texts and test texts of a client, and words of a text."""


def model(folder: Path) -> Path:
    """Write a random model and a tokenizer of whole words."""
    known = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106 - a token of text
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",  # noqa: S106 - a token of text
        eos_token="</s>",  # noqa: S106 - a token of text
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def texts(place: Path, rows: int) -> Path:
    """Write texts whose label follows from their words."""
    source = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(WORDS), (rows, LONG), generator=source)
    with place.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in drawn.tolist():
            file.write(f"{' '.join(WORDS[i] for i in row)},{LABELS[row[0] % len(LABELS)]}\n")
    return place


def job_of(room: Path, clients: int, rounds: int, seed: int) -> Job:
    """Return a federation of this many clients."""
    rows = clients * (TEXTS + TESTS)
    return Job.model_validate(
        {
            "rounds": rounds,
            "seed": seed,
            "model": {"path": str(model(room / "model")), "dtype": "float32", "device": "cpu"},
            "adapter": {"rank": 2},
            "data": {
                "source": "csv",
                "train": str(texts(room / "train.csv", rows)),
                "text": "text",
                "label": "label",
                "test_share": TESTS / (TEXTS + TESTS),
            },
            "clients": {"partition": "iid", "count": clients},
            "train": {"batch": 4, "epochs": 2, "max_tokens": 32},
            "logits": {"public": 0},
        }
    )


class Clock:
    """Notes when rounds begin, evaluate and end, and what clients' work came to."""

    def __init__(self) -> None:
        self.work, self.spans, self.last = 0.0, dict[str, float](), 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Note an event."""
        now, name = time.perf_counter(), event["event"]
        before = {"evaluate": "round", "round_end": "after", "round_start": "between"}.get(name)
        if before is not None:
            if self.last:
                self.spans[before] = self.spans.get(before, 0.0) + now - self.last
            self.last = now


def child(mode: str, clients: int, rounds: int, seed: int) -> dict[str, float]:
    """Play one federation in this process."""
    torch.set_num_threads(1)
    booked: list[float] = []
    computed = Ledger.computed

    def booking(self: Ledger, client: str, **more: Any) -> None:
        booked.append(more["seconds"])
        computed(self, client, **more)

    Ledger.computed = booking  # type: ignore[method-assign]
    clock = Clock()
    with TemporaryDirectory() as name:
        room = Path(name)
        job = job_of(room, clients, rounds, seed)
        begun = time.perf_counter()
        if mode == "run":  # the whole of a run: data, rounds, export, result, report
            request = Request(modes=("params",), baselines=())
            run(job, request, room / "run", LocalEngine(job), clock)
        else:
            stage = staged(mode, job)
            begun = time.perf_counter()
            play(stage, LocalEngine(job), folder=room / "stage", watch=clock)
        whole = time.perf_counter() - begun
    work = sum(booked)
    each = 1000 / (clients * rounds)
    return {
        "whole_s": whole,
        "work_s": work,
        "work_ms": work * each,
        "round_overhead_ms": (clock.spans["round"] - work) * each,
        "after_ms": clock.spans["after"] * each,
        "overhead_ms": (whole - work) * each,
        "total_over_work": whole / work,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def staged(mode: str, job: Job) -> Stage[Any, Any]:
    """Return the mode on all clients."""
    from triskel.experiment.resources import prepare  # noqa: PLC0415 - in the child only

    resources = prepare(job, lambda _: None)
    if mode == "keep-b":
        example = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("keep_b.py"))))
        return example.keep_b_stage(resources, example.Mean())
    return stage_of("params", resources, lambda _: None)


def played(mode: str, clients: int, chosen: argparse.Namespace) -> dict[str, float]:
    """Play one federation in a fresh process."""
    call = [sys.executable, __file__, "--child", mode, "--clients", str(clients)]
    call += ["--rounds", str(chosen.rounds), "--seed", str(chosen.seed)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--child", help=argparse.SUPPRESS)
    options.add_argument("--clients", type=int, nargs="*", default=[])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--modes", nargs="*", default=["params", "keep-b", "run"])
    options.add_argument("--times", type=int, default=0)
    chosen = options.parse_args()
    if chosen.child:
        print(json.dumps(child(chosen.child, chosen.clients[0], chosen.rounds, chosen.seed)))
        return
    sizes = chosen.clients or ([FEW, 1000] if chosen.quick else [FEW, 1000, MANY])
    figures: dict[str, list[float]] = {}
    for _ in range(chosen.times or (1 if chosen.quick else 3)):
        for mode in chosen.modes:
            found = {size: played(mode, size, chosen) for size in sizes}
            for size, one in found.items():
                for name, value in one.items():
                    figures.setdefault(f"{mode} {size} {name}", []).append(value)
            ratio = found[sizes[-1]]["peak_mb"] / found[sizes[0]]["peak_mb"]
            figures.setdefault(f"{mode} peak {sizes[-1]} / {sizes[0]}", []).append(ratio)
    measure.report("virtual", figures, seed=chosen.seed, out=chosen.out, rounds=chosen.rounds)


if __name__ == "__main__":
    main()
