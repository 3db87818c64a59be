"""How a body computes on this machine: chosen by measuring once, and remembered.

What is chosen changes speed, and results by no more than rounding. A large model is timed for some
seconds the first time it runs on a machine, and the outcome lies in the cache folder. A small model
is not worth timing and takes the defaults.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from triskel.config.sections import Train
from triskel.core.source import code_sha256
from triskel.model.fast import why_not
from triskel.model.machine_cache import place_of, recalled, remember
from triskel.model.shared import Choice, SharedModel
from triskel.training.loop import LossTerm, StepId, TrainStep
from triskel.training.trainer import Trainer
from triskel.types import Batch

Compute = Literal["auto", "fast", "reference"]
WORTH_TIMING = 20_000_000
"""Parameters from which a model is timed."""
FAST = Choice(path="fast", flash=1024, join=512)
"""What is taken without timing; flash on a GPU from the first token."""
LONG = 512
"""Tokens of the text on which the two kinds of attention are timed."""
TURNS = 3
GAIN = 1.02
"""What a choice must gain over the plainer one to be taken."""


def choose(
    body: SharedModel, compute: Compute, *, cache: Path | None, say: Callable[[str], None]
) -> Choice:
    """Return how a body should compute.

    Args:
        body: The model; left on the path it is on.
        compute: `reference` or `fast` is taken at its word; `auto` measures.
        cache: The cache folder, or None to take the defaults.
        say: Told when a measurement begins.

    Raises:
        ModelError: `fast` was asked for and cannot be.
    """
    if compute == "reference":
        return Choice()
    if compute == "auto" and why_not(body.blocks, body.adapter) is not None:
        return Choice()
    default = replace(FAST, flash=1) if body.device.type == "cuda" else FAST
    before = body.choice
    body.use(default)
    body.use(before)
    size = sum(p.numel() for p in body.blocks.model.parameters())
    if compute == "fast" or cache is None or size < WORTH_TIMING:
        return default
    place = place_of(cache / "choices", body, code_sha256())
    known = recalled(place)
    with suppress(TypeError):  # what lies there is no choice
        if known is not None:
            return Choice(**known)
    say("timing how this model trains fastest on this machine; done once")
    found = measured(body, default)
    remember(place, asdict(found), say)
    return found


def measured(body: SharedModel, default: Choice) -> Choice:
    """Return the fastest way, by timing training steps in turn on random tokens."""
    before = body.choice
    try:
        plain, fast = _ratio(body, [Choice(), default], rows=8, tokens=48)
        if plain < fast * GAIN:
            return Choice()
        held, flash = _ratio(
            body,
            [replace(default, flash=LONG + 1), replace(default, flash=1)],
            rows=1,
            tokens=LONG,
        )
        # a win at this length says nothing of shorter texts, and a loss nothing of longer ones
        first = min(default.flash, LONG) if flash * GAIN < held else max(default.flash, LONG + 1)
        chosen = replace(default, flash=first)
        apart, joined = _apart_and_joined(body, chosen)
        return replace(chosen, join=default.join if joined * GAIN < apart else 0)
    finally:
        body.use(before)


def _ratio(body: SharedModel, ways: Sequence[Choice], *, rows: int, tokens: int) -> list[float]:
    """Return the median seconds of a training step each way, timed in turn."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(TURNS + 1):
        for place, way in enumerate(ways):
            body.use(way)
            (one,) = _steps(body, 1, rows, tokens)
            taken = _timed(body.device, one.run)
            if turn:  # the first is to warm up
                seconds[place].append(taken)
    return [statistics.median(each) for each in seconds]


def _apart_and_joined(body: SharedModel, way: Choice) -> tuple[float, float]:
    """Return the median seconds of four clients' small batches one by one, and in one pass."""
    body.use(way)
    apart: list[float] = []
    joined: list[float] = []
    for _ in range(TURNS):
        alone = _steps(body, 4, 4, 32)
        apart.append(sum(_timed(body.device, one.run) for one in alone))
        first, *others = _steps(body, 4, 4, 32)
        joined.append(_timed(body.device, lambda first=first, others=others: first.run(others)))
    return statistics.median(apart), statistics.median(joined)


def _steps(body: SharedModel, parties: int, rows: int, tokens: int) -> list[TrainStep]:
    words = int(body.blocks.config.vocab_size)
    source = torch.Generator().manual_seed(0)
    made: list[TrainStep] = []
    for party in range(parties):
        ids = torch.randint(0, words, (rows, tokens), generator=source)
        batch = Batch(
            ids=ids,
            lengths=torch.full((rows,), tokens),
            rows=torch.arange(rows),
            columns=torch.full((rows,), tokens - 1),
            targets=torch.zeros(rows, dtype=torch.int64),
        )
        trainer = Trainer(body, body.initial, Train(), 0.0)
        made.append(TrainStep(trainer, [LossTerm(batch)], StepId(f"probe-{party}", 1), 0, 0))
    return made


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
