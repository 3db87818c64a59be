"""How fast is a `params` round beside the loops people write, and beside the processor's limit?

`against_plain` sets it against the loop as it is usually written: float32 weights, under bfloat16
autocast where `model.dtype = "auto"` is bfloat16 here, `sdpa` attention, random batches padded to
their longest text, AdamW as it comes.
`against_best` sets it against a plain loop with every trick a loop can have: weights in the dtype
that "auto" takes, eager attention, the very batches of ours (alike in length), fused AdamW. Both
are ratios of useful tokens a second, on the same texts. `gemm_share` is the share of the rate of a
bare matrix product in that dtype, measured between the turns, that the FLOPs of our round reach.

`--accuracy` times nothing: it trains the four silos of the demonstration on three seeds, fast and
as the usual loop computes (library blocks, `sdpa`, random batches), and sets the accuracies side
by side.
"""

import argparse
import time
from typing import Any

import measure
import torch
from overhead import adapted, ours, plain, quiet

import triskel.data.batches
from triskel.config.job import Job
from triskel.config.read import DEMO, load, parse
from triskel.config.sections import Model
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import prepare
from triskel.experiment.stages import everywhere
from triskel.model.load import dtype_of
from triskel.numerics.rng import stream
from triskel.training.loop import StepId
from triskel.training.mode_setting import mode_of
from triskel.types import Examples
from triskel.wire.ledger import Ledger

WHOLE = "adapter.blocks=all"
"""A step that trains every block, which the demonstration does not."""
TESTED = 500
"""Test texts of a silo for `--accuracy`: with the demonstration's 100, chance is 0.07 wide."""


def usual(job: Job, examples: Examples, classes: int, seed: int, tokens: int) -> Any:
    """Return as many epochs as the job has, as the loop is usually written, as a call.

    Raises:
        SystemExit: It would not train as many useful tokens as the others.
    """
    model = adapted(job, classes, dtype=torch.float32, attention="sdpa")
    padding, narrow = model.config.pad_token_id, dtype_of(job.model) == torch.bfloat16
    shuffled, count, size = stream(seed, "usual"), len(examples), job.train.batch
    orders = [torch.randperm(count, generator=shuffled).tolist() for _ in range(job.train.epochs)]
    inputs: list[dict[str, torch.Tensor]] = []
    for chosen in (order[at : at + size] for order in orders for at in range(0, count, size)):
        texts = [examples.ids[i].long() for i in chosen]
        pad = torch.nn.utils.rnn.pad_sequence
        inputs.append(
            {
                "input_ids": pad(texts, batch_first=True, padding_value=padding),
                "attention_mask": pad([torch.ones_like(t) for t in texts], batch_first=True),
                "labels": torch.tensor([examples.labels[i] for i in chosen]),
            }
        )
    taught = sum(int(one["attention_mask"].sum()) for one in inputs)
    if taught != tokens:
        raise SystemExit(f"the usual loop trains {taught} tokens, the others {tokens}")

    def work() -> None:
        model.train()
        adam = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=job.train.lr
        )
        for one in inputs:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
                loss = model(**one).loss
            loss.backward()
            adam.step()
            adam.zero_grad()

    return work


def product(tokens: int, width: int, wide: int, dtype: torch.dtype) -> float:
    """Return the FLOPs a second of a product of this shape."""
    x = torch.randn(tokens, width, dtype=dtype)
    w = torch.randn(wide, width, dtype=dtype)
    times = 40
    start = time.perf_counter()
    for _ in range(times):
        torch.nn.functional.linear(x, w)
    return 2.0 * tokens * width * wide * times / (time.perf_counter() - start)


def accuracy(seeds: list[int], rounds: int) -> dict[str, list[float]]:
    """Return the accuracy of `params` on the four silos by seed, fast and as usual."""
    found: dict[str, list[float]] = {"fast": [], "usual": []}
    window = triskel.data.batches.WINDOW
    for seed in seeds:
        for name, sets in (
            ("fast", ["model.compute=fast"]),
            ("usual", ["model.compute=reference", "model.attention=sdpa"]),
        ):
            triskel.data.batches.WINDOW = window if name == "fast" else 1
            size = [f"clients.test_examples={TESTED}", f"rounds={rounds}"]
            job = parse(DEMO, overrides=[WHOLE, *sets, *size, f"seed={seed}"])
            resources = prepare(job, quiet)
            mode, engine = mode_of(resources.setting("params", quiet)), LocalEngine(job)
            state = mode.start()
            for _ in range(rounds):
                state = engine.round(
                    mode,
                    state,
                    resources.active(),
                    worker=lambda client, resources=resources: resources.worker(client, quiet),
                    client_states={},
                    keep=lambda *_: None,
                    ledger=Ledger(),
                    watch=quiet,
                )
            served = mode.server_model(state)
            if served is None:
                raise SystemExit("params serves no model")
            found[name].append(everywhere(resources, resources.body(), served).pooled.accuracy)
            print(f"seed {seed}, {name}: accuracy {found[name][-1]:.3f}", flush=True)
    triskel.data.batches.WINDOW = window
    return found


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--client", default="films")
    options.add_argument("--texts", type=int, default=0, help="training texts; 0 for the default")
    options.add_argument("--accuracy", action="store_true", help="three seeds, nothing timed")
    chosen = options.parse_args()
    if chosen.accuracy:
        seeds = [chosen.seed + i for i in range(3)]
        found = accuracy(seeds, 1 if chosen.quick else 3)
        found["gain"] = [a - b for a, b in zip(found["fast"], found["usual"], strict=True)]
        measure.report("accuracy", found, seed=chosen.seed, out=chosen.out, seeds=seeds)
        return
    native = dtype_of(Model()) == torch.bfloat16
    texts = chosen.texts or ((64 if native else 16) if chosen.quick else 192)
    size = [f"clients.examples={texts}", "train.epochs=1"]
    job = load(None, [*size, f"seed={chosen.seed}", WHOLE])
    resources = prepare(job, quiet)
    worker = resources.worker(chosen.client, quiet)
    batches = list(worker.batches(StepId(chosen.client, 1), job.train.epochs))
    tokens = sum(int(b.lengths.sum()) for b in batches)
    classes, body = len(resources.federation.classes), resources.body()
    ledger = Ledger()
    ours(resources, chosen.client, ledger)()
    flops = ledger.rows()[chosen.client]["flops"]
    rates: list[float] = []
    padded = max(b.ids.numel() for b in batches)
    works = {
        "ours": ours(resources, chosen.client),
        "usual": usual(job, worker.train, classes, chosen.seed, tokens),
        "best": plain(job, batches, classes),
        "product": lambda: rates.append(product(padded, body.blocks.width, 1536, body.dtype)),
    }
    times = measure.in_turn(works, times=(3 if native else 2) if chosen.quick else 9)
    rates = rates[1:]  # the first is to warm up
    figures = {
        "against_plain": measure.ratios(times["usual"], times["ours"]),
        "against_best": measure.ratios(times["best"], times["ours"]),
        "gemm_share": [flops / t / rate for t, rate in zip(times["ours"], rates, strict=True)],
        "ours_tokens_per_s": [tokens / t for t in times["ours"]],
        "usual_tokens_per_s": [tokens / t for t in times["usual"]],
        "best_tokens_per_s": [tokens / t for t in times["best"]],
        "product_gflops": [rate / 1e9 for rate in rates],
    }
    more: dict[str, Any] = {"tokens": tokens, "texts": texts, "choice": vars(body.choice)}
    more["dtype"] = str(body.dtype).removeprefix("torch.")
    measure.report("training", figures, seed=chosen.seed, out=chosen.out, **more)


if __name__ == "__main__":
    main()
