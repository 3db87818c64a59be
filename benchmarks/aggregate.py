"""How much faster are sums of products in small matrices than in the whole one, at what memory?

`dD_kK_rR`: the best rank-R factors of the mean of K clients' products of a D x D module, by the
aggregate `flexlora` and by summing whole matrices and taking their singular values, both in
float64: seconds of the second over seconds of the first. `*_apart` is by how much both results
differ, of the mean's norm, and `*_missed` by how much ours is farther from the mean than theirs.
`stream_states` is what the process grew by while `mean` folded many clients, less 5 MB, in clients'
states.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from triskel.aggregate.build import aggregate_of
from triskel.aggregate.mean import Mean
from triskel.types import ClientUpdate, Section, Tensors

SHAPES = {
    "d576_k100_r16": (576, 100, 16, 25),
    "d576_k10_r8": (576, 10, 8, 25),
    "d2048_k10_r8": (2048, 10, 8, 3),
    "d4096_k10_r16": (4096, 10, 16, 2),
}
"""Width, clients, rank, and how often both are timed."""

SCALE, SPARE = 2.0, 5e6
STREAM = (130, 576, 8)
"""Modules, width and rank of a client's state that is folded."""


def drawn(seed: int, modules: int, width: int, rank: int) -> dict[str, Tensor]:
    """Return factors of square modules."""
    source = torch.Generator().manual_seed(seed)
    found = dict[str, Tensor]()
    for i in range(modules):
        found[f"{i}.lora_A.weight"] = torch.randn(rank, width, generator=source)
        found[f"{i}.lora_B.weight"] = torch.randn(width, rank, generator=source)
    return found


def sections(tensors: Tensors) -> dict[str, Section]:
    """Return the section of an adapter."""
    return {"adapter": Section(kind="lowrank", tensors=tensors, facts={"scale": SCALE})}


def wide(seed: int, width: int, rank: int) -> dict[str, Section]:
    """Return the factors of one module, in float64, so that rounding is all that may differ."""
    return sections({n: t.double() for n, t in drawn(seed, 1, width, rank).items()})


def ours(sent: list[ClientUpdate], before: dict[str, Section]) -> tuple[Tensor, Tensor]:
    """Return B and A of the aggregate."""
    aggregate = aggregate_of("flexlora")
    total = aggregate.zero()
    for one in sent:
        total = aggregate.add(total, one, before)
    found = aggregate.value(total, before)["adapter"].tensors
    return found["0.lora_B.weight"], found["0.lora_A.weight"]


def mean_product(sent: list[ClientUpdate]) -> Tensor:
    """Return the mean of products, as a whole matrix."""
    pairs = [one.sections["adapter"].tensors for one in sent]
    whole = sum(one.weight for one in sent)
    width = len(pairs[0]["0.lora_B.weight"])
    found = torch.zeros(width, width, dtype=torch.float64)
    for one, pair in zip(sent, pairs, strict=True):
        found.addmm_(one.weight / whole * pair["0.lora_B.weight"], pair["0.lora_A.weight"])
    return found


def dense(sent: list[ClientUpdate], rank: int) -> tuple[Tensor, Tensor]:
    """Return B and A of the whole matrix's singular values."""
    u, s, vt = torch.linalg.svd(mean_product(sent), full_matrices=False)
    return (u[:, :rank] * s[:rank]), vt[:rank]


def faster(figure: str, seed: int, times: int) -> dict[str, list[float]]:
    """Return the ratio of times, and how far both results are apart."""
    width, clients, rank, _ = SHAPES[figure]
    sent = [
        ClientUpdate(client=f"{i:03}", sections=wide(seed + i, width, rank), weight=i + 1)
        for i in range(clients)
    ]
    before = wide(seed + clients, width, rank)
    kept = dict[str, tuple[Tensor, Tensor]]()
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: kept.update(ours=ours(sent, before)),
        "dense": lambda: kept.update(dense=dense(sent, rank)),
    }
    works["ours"]()
    seconds = measure.in_turn(works, times=times, warm=0)
    mean = mean_product(sent)
    products = {name: b @ a for name, (b, a) in kept.items()}
    size, gap = mean.norm(), products["ours"] - products["dense"]
    missed = {name: (product - mean).norm() for name, product in products.items()}
    return {
        figure: measure.ratios(seconds["dense"], seconds["ours"]),
        f"{figure}_seconds": seconds["ours"],
        f"{figure}_dense_seconds": seconds["dense"],
        f"{figure}_apart": [float(gap.norm() / size)],
        f"{figure}_missed": [float((missed["ours"] - missed["dense"]) / size)],
    }


def resident(name: str) -> float:
    """Return a figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return 1024 * float(line.split()[1])
    raise ValueError(f"the system does not tell {name}")


def streamed(clients: int, seed: int) -> dict[str, list[float]]:
    """Return what folding clients takes beside one client's update."""
    modules, width, rank = STREAM
    state: Any = sections(drawn(seed, modules, width, rank))
    size = sum(t.numel() * t.element_size() for t in state["adapter"].tensors.values())
    mean, before = Mean(), state
    small = sections(drawn(seed, 1, 8, 1))
    mean.add(mean.zero(), ClientUpdate(client="warm", sections=small, weight=1), small)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    start, total = resident("VmRSS"), mean.zero()
    for i in range(clients):
        one = ClientUpdate(client=f"{i}", sections=state, weight=1.0 + i % 7)
        total = mean.add(total, one, before)
    mean.value(total, before)
    grown = resident("VmHWM") - start
    return {
        "stream_states": [max(grown - SPARE, 0) / size],
        "stream_grown_mb": [grown / 1e6],
        "stream_state_mb": [size / 1e6],
    }


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--only", default="", help="figures that begin so")
    chosen = options.parse_args()
    figures = dict[str, list[float]]()
    clients = 300 if chosen.quick else 10_000
    if "stream".startswith(chosen.only):
        figures |= streamed(clients, chosen.seed)
    for figure, (width, *_, times) in SHAPES.items():
        if figure.startswith(chosen.only) and not (chosen.quick and width > 576):
            figures |= faster(figure, chosen.seed, 2 if chosen.quick else times)
    measure.report("aggregate", figures, seed=chosen.seed, out=chosen.out, clients=clients)


if __name__ == "__main__":
    main()
