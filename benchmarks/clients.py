"""What do many clients with small batches gain from one forward pass with per-client adapters?

`tokens32`, `tokens128` and `tokens512` are the time of a training step of every client one by one
over the time the engine takes with its own grouping (which may decide to run them one by one), for
8 clients of 1 x 32 tokens, 8 of 4 x 32 and 4 of 16 x 32. `gradient_gap` is the largest norm-wise
difference of a tensor's gradient between the two ways, in float32, over clients and tensors, for
batches of one shape; `gradient_gap_ragged` for clients whose batches differ in rows and length.
`gradient_error` is the same for one pass against float64, `gradient_error_apart` for one by one.
`swap_share` is what it takes to go from one client to the next, over a step of 16 x 32 tokens:
pointing every slot of the library's blocks at the next client's tensors. (Fused blocks are handed
the tensors of the client that runs, and only the head's slots are pointed.)
"""

from collections.abc import Sequence

import measure
import torch
from overhead import quiet

from triskel.config.read import load
from triskel.config.sections import Train
from triskel.engines.local import joined
from triskel.experiment.resources import prepare
from triskel.model.shared import SharedModel
from triskel.training.loop import LossTerm, StepId, TrainStep
from triskel.training.trainer import Trainer
from triskel.types import Batch

WHOLE = ["adapter.blocks=all", "model.compute=fast"]
SHAPES = {"tokens32": (8, 1, 32), "tokens128": (8, 4, 32), "tokens512": (4, 16, 32)}


def steps(body: SharedModel, clients: int, rows: int, tokens: int, seed: int) -> list[TrainStep]:
    """Return a training step of every client, each with its own tensors and texts."""
    source = torch.Generator().manual_seed(seed)
    vocabulary = int(body.blocks.config.vocab_size)
    made: list[TrainStep] = []
    for client in range(clients):
        own = {
            n: t + 0.02 * torch.randn(t.shape, generator=source) for n, t in body.initial.items()
        }
        batch = Batch(
            ids=torch.randint(0, vocabulary, (rows, tokens), generator=source),
            lengths=torch.full((rows,), tokens),
            rows=torch.arange(rows),
            columns=torch.full((rows,), tokens - 1),
            targets=torch.randint(0, max(body.classes, 1), (rows,), generator=source),
        )
        trainer = Trainer(body, own, Train(), 1e-3)
        made.append(TrainStep(trainer, [LossTerm(batch)], StepId(f"c{client:02d}", 1), 0, 0))
    return made


def grouped(works: Sequence[TrainStep]) -> None:
    """Run steps as the engine does."""
    named = {work.where.client: work for work in works}
    for clients in joined(named):
        first, *others = [named[c] for c in clients]
        first.run(others)


def one_by_one(works: Sequence[TrainStep]) -> None:
    """Run steps apart."""
    for work in works:
        work.run()


def gradients(
    body: SharedModel, works: Sequence[TrainStep], *, together: bool
) -> list[torch.Tensor]:
    """Return the gradient of every tensor of every client."""
    parties = [work.trainer.parameters for work in works]
    batches = [work.terms[0].batch for work in works]
    if together:
        logits = body.together(parties, batches)
    else:
        logits = [body.logits(p, b) for p, b in zip(parties, batches, strict=True)]
    losses = [w.terms[0].loss(z, b) for w, z, b in zip(works, logits, batches, strict=True)]
    leaves = [leaf for party in parties for leaf in party.values()]
    return list(torch.autograd.grad(losses, leaves))


def works_of(
    body: SharedModel, shapes: Sequence[tuple[int, int, int]], seed: int
) -> list[TrainStep]:
    """Return steps of clients, rows and tokens of each shape."""
    return [one for i, shape in enumerate(shapes) for one in steps(body, *shape, seed + i)]


def gaps(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> list[float]:
    """Return the norm of each tensor's difference over its own."""
    pairs = zip(found, wanted, strict=True)
    return [float((a.double() - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs]


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    chosen = options.parse_args()
    body = prepare(load(None, WHOLE), quiet).body()
    figures: dict[str, list[float]] = {}
    for name, shape in SHAPES.items():
        works = steps(body, *shape, chosen.seed)
        calls = {
            "joined": lambda works=works: grouped(works),
            "apart": lambda works=works: one_by_one(works),
        }
        times = measure.in_turn(calls, times=3 if chosen.quick else 11)
        figures[name] = measure.ratios(times["apart"], times["joined"])
        if name == "tokens512":
            one = [t / shape[0] for t in times["apart"]]
            parties = [work.trainer.parameters for work in works]
            swaps: list[float] = []
            for turn in range(len(one)):
                party = parties[turn % len(parties)]
                swaps.append(measure.seconds(lambda p=party: body.install(p, p)))
            figures["swap_share"] = measure.ratios(swaps, one)
    bodies = {
        dtype: prepare(load(None, [*WHOLE, f"model.dtype={dtype}"]), quiet).body()
        for dtype in ("float32", "float64")
    }
    for name, shapes in (("", ((4, 3, 19),)), ("_ragged", ((2, 3, 19), (2, 5, 13)))):
        joint, apart, true = (
            gradients(bodies[dtype], works_of(bodies[dtype], shapes, chosen.seed), together=joins)
            for dtype, joins in (("float32", True), ("float32", False), ("float64", False))
        )
        figures[f"gradient_gap{name}"] = gaps(joint, apart)
        figures[f"gradient_error{name}"] = gaps(joint, true)
        figures[f"gradient_error_apart{name}"] = gaps(apart, true)
    measure.report("clients", figures, seed=chosen.seed, out=chosen.out, rank=body.adapter.rank)


if __name__ == "__main__":
    main()
