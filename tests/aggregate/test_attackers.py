"""One client of ten that sends what it likes: robust rules end as without it, the mean does not.

Ten clients train low-rank factors of a linear classifier, by gradients written out here; which
class a point is of is decided by a matrix that differs from the frozen base by one of low rank.
"""

# ruff: noqa: ANN401 - updates

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.aggregate.build import aggregate_of
from triskel.types import ClientUpdate, Section

CLIENTS, ROUNDS, STEPS, RATE = 10, 10, 10, 0.15
INTO, CLASSES, RANK, SCALE = 12, 6, 3, 2.0
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")
DOWN, UP = "fc.lora_A.weight", "fc.lora_B.weight"
NEAR = 0.03


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = drawn(1, CLASSES, INTO)
TRUTH = BASE + 3 * drawn(2, CLASSES, RANK) @ drawn(3, RANK, INTO)
TEST = drawn(4, 2000, INTO)


TEXTS = drawn(100, CLIENTS, 400, INTO)
LABELS = torch.nn.functional.one_hot((TEXTS @ TRUTH.T).argmax(2), CLASSES)


def trained(pair: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each client's pair after some steps down the gradient of the cross-entropy."""
    down, up = pair[DOWN].expand(CLIENTS, -1, -1), pair[UP].expand(CLIENTS, -1, -1)
    for _ in range(STEPS):
        scores = TEXTS @ (BASE + SCALE * up @ down).mT
        error = scores.softmax(2) - LABELS
        slope = SCALE * error.mT @ TEXTS / TEXTS.shape[1]
        up, down = up - RATE * slope @ down.mT, down - RATE * up.mT @ slope
    return [{DOWN: down[i], UP: up[i]} for i in range(CLIENTS)]


def flipped(pair: dict[str, Tensor], _: Any) -> dict[str, Tensor]:
    """The other way, ten times as far."""
    return {DOWN: pair[DOWN], UP: -10 * pair[UP]}


def times_100(pair: dict[str, Tensor], _: Any) -> dict[str, Tensor]:
    return {DOWN: pair[DOWN], UP: 100 * pair[UP]}


def noise(pair: dict[str, Tensor], _: Any) -> dict[str, Tensor]:
    return {n: 5 * drawn(7, *t.shape) for n, t in pair.items()}


def crafted(pair: dict[str, Tensor], honest: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """No factor is longer than twice the longest of an honest client, and all of it in one row."""
    u, _, vt = torch.linalg.svd(TRUTH - BASE)
    found = {n: torch.zeros_like(t) for n, t in pair.items()}
    length = {n: max(float(one[n].norm()) for one in honest) for n in pair}
    for i in range(RANK):
        found[DOWN][i], found[UP][:, i] = 2 * length[DOWN] * vt[i], -2 * length[UP] * u[:, i]
    return found


ATTACKS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "sign flip": flipped,
    "times 100": times_100,
    "noise": noise,
    "crafted pair": crafted,
}


def sections(pair: dict[str, Tensor]) -> dict[str, Section]:
    return {"adapter": Section(kind="lowrank", tensors=pair, facts={"scale": SCALE})}


@cache
def accuracy(name: str, attack: str | None) -> float:
    """Of the model that the server ends with; the last client attacks."""
    aggregate = aggregate_of(name)
    pair = {DOWN: drawn(5, RANK, INTO) / INTO**0.5, UP: torch.zeros(CLASSES, RANK)}
    for _ in range(ROUNDS):
        sent = trained(pair)
        if attack is not None:
            sent[-1] = ATTACKS[attack](sent[-1], sent[:-1])
        total, before = aggregate.zero(), sections(pair)
        for i, one in enumerate(sent):
            update = ClientUpdate(client=f"{i}", sections=sections(one), weight=400.0)
            total = aggregate.add(total, update, before)
        pair = dict(aggregate.value(total, before)["adapter"].tensors)
    scores = TEST @ (BASE + SCALE * pair[UP] @ pair[DOWN]).T
    return float((scores.argmax(1) == (TEST @ TRUTH.T).argmax(1)).float().mean())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_rule_ends_as_without_the_attacker(name: str, attack: str) -> None:
    assert accuracy("mean", None) > 0.8, "the clean run has learnt"
    assert abs(accuracy(name, attack) - accuracy(name, None)) < NEAR


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_mean_does_not(attack: str) -> None:
    assert accuracy("mean", attack) < accuracy("mean", None) - NEAR
