"""Updates of low-rank factors and what they stand for, multiplied out in NumPy."""

# ruff: noqa: ANN401 - helpers are loaded by path

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from triskel.types import ClientUpdate, Section

SHAPES = {"q": (7, 5), "k": (6, 9)}
"""Numbers out and in of each module."""

RANK, SCALE = 4, 2.5


def factors(seed: int, rank: int = RANK, shapes: Any = None, dtype: Any = torch.float64) -> Any:
    source = torch.Generator().manual_seed(seed)
    found = {}
    for stem, (out, into) in (shapes or SHAPES).items():
        down = torch.randn(rank, into, generator=source, dtype=torch.float64)
        up = torch.randn(out, rank, generator=source, dtype=torch.float64)
        found |= {f"{stem}.lora_A.weight": down.to(dtype), f"{stem}.lora_B.weight": up.to(dtype)}
    return found


def adapter(tensors: Any, scale: float = SCALE) -> Section:
    return Section(kind="lowrank", tensors=tensors, facts={"scale": scale})


def sections(seed: int, rank: int = RANK, scale: float = SCALE, **more: Any) -> dict[str, Section]:
    dtype = more.get("dtype", torch.float64)
    source = torch.Generator().manual_seed(seed + 1000)
    head = torch.randn(3, generator=source, dtype=torch.float64).to(dtype)
    return {
        "adapter": adapter(factors(seed, rank, **more), scale),
        "head": Section(kind="dense", tensors={"score.weight": head}),
    }


def update(client: str, seed: int, weight: float = 1.0, **more: Any) -> ClientUpdate:
    steps = int(more.pop("steps", 3))
    return ClientUpdate(client=client, sections=sections(seed, **more), weight=weight, steps=steps)


def side(seed: int, rank: int = 2, scale: float = SCALE) -> Section:
    named = {n.replace(".weight", ".side"): t for n, t in factors(seed, rank).items()}
    return adapter(named, scale)


def folded(aggregate: Any, sent: Sequence[ClientUpdate], before: Mapping[str, Section]) -> Any:
    total = aggregate.zero()
    for one in sent:
        total = aggregate.add(total, one, before)
    return aggregate.value(total, before)


def product(section: Section, stem: str, ending: str = "weight", rows: Any = slice(None)) -> Any:
    """s B A of some components, in float64."""
    down = section.tensors[f"{stem}.lora_A.{ending}"].double().numpy()[rows]
    up = section.tensors[f"{stem}.lora_B.{ending}"].double().numpy()[:, rows]
    return float(section.facts["scale"]) * up @ down  # type: ignore[arg-type]


def whole(found: Mapping[str, Section], stem: str) -> Any:
    """What a module's adapter and side factors add to its weight."""
    total = product(found["adapter"], stem)
    if "side" in found and f"{stem}.lora_A.side" in found["side"].tensors:
        total = total + product(found["side"], stem, "side")
    return total


def stands_for(one: ClientUpdate, before: Mapping[str, Section], stem: str) -> Any:
    """A client's product with the components that it had and did not train."""
    held = len(one.sections["adapter"].tensors[f"{stem}.lora_A.weight"])
    rest = product(before["adapter"], stem, rows=slice(held, None))
    return product(one.sections["adapter"], stem) + rest


def mean(parts: Sequence[Any], weights: Sequence[float]) -> Any:
    return sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)


def apart(found: Any, wanted: Any) -> float:
    """Frobenius distance, of what was wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
