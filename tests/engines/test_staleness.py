"""A late update counts as the open round's model and a share of what the client changed."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triskel.engines.staleness import restated
from triskel.errors import MessageError
from triskel.types import Message, Section

SHAPES = {"a": (2, 3), "b": (4,)}


def tensors(seed: int) -> dict[str, Tensor]:
    draws = np.random.default_rng(seed)
    return {n: torch.tensor(draws.normal(size=s), dtype=torch.float32) for n, s in SHAPES.items()}


def message(kind: str, held: Mapping[str, Tensor], round_: int, scale: float = 2.0) -> Message:
    pairs = Section(kind="dense", tensors={"a": held["a"]}, facts={"scale": scale})
    head = Section(kind="dense", tensors={"b": held["b"]})
    facts = {"round": round_, **({"examples": 7} if kind == "update" else {})}
    return Message(kind=kind, sections={"adapter": pairs, "head": head}, facts=facts)  # type: ignore[arg-type]


@given(late=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_late_update_is_the_formula(late: int, seed: int) -> None:
    sent, trained, now = (tensors(3 * seed + i) for i in range(3))
    found = restated(
        message("update", trained, 4),
        message("task", sent, 4),
        message("task", now, 4 + late),
        late,
    )
    assert found.facts == {"round": 4 + late, "examples": 7}
    for section, name in (("adapter", "a"), ("head", "b")):
        x, old, new = (t[name].numpy().astype(np.float64) for t in (trained, sent, now))
        wanted = (new + (x - old) * (1.0 + late) ** -0.5).astype(np.float32)
        got = found.sections[section].tensors[name]
        assert got.dtype == torch.float32
        np.testing.assert_array_max_ulp(got.numpy(), wanted, 1)
    assert found.sections["adapter"].facts == {"scale": 2.0}


def test_a_client_that_changed_nothing_counts_as_the_open_rounds_model() -> None:
    sent, now = tensors(0), tensors(1)
    found = restated(
        message("update", sent, 1), message("task", sent, 1), message("task", now, 3), 2
    )
    assert torch.equal(found.sections["adapter"].tensors["a"], now["a"])


def test_a_fresh_update_is_taken_as_it_is() -> None:
    update, task = message("update", tensors(0), 2), message("task", tensors(1), 2)
    assert restated(update, task, task, 0) is update


@pytest.mark.parametrize("late", [0, 2])
def test_an_update_of_another_task_is_refused_by_its_round(late: int) -> None:
    sent, now = message("task", tensors(1), 3), message("task", tensors(2), 3 + late)
    for round_ in (2, 3 + late + (not late)):
        with pytest.raises(MessageError, match=f"round {round_}, and round 3 is open"):
            restated(message("update", tensors(0), round_), sent, now, late)


def test_late_tensors_of_other_names_shapes_or_scales_are_refused_before_they_are_added() -> None:
    sent, now, good = (message(k, tensors(i), r) for i, (k, r) in enumerate(
        [("task", 1), ("task", 2), ("update", 1)]
    ))  # fmt: skip
    tall = {**tensors(5), "b": torch.zeros(4, 4)}  # of a shape that could be broadcast
    more = {**good.sections, "more": good.sections["head"]}
    less = {"head": good.sections["head"]}
    for wrong in (
        message("update", tall, 1),
        message("update", tensors(5), 1, scale=1.0),
        message("task", tensors(5), 1),
        *(Message(kind="update", sections=s, facts=good.facts) for s in (more, less)),
    ):
        with pytest.raises(MessageError):
            restated(wrong, sent, now, 1)
