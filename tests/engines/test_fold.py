"""No client has a larger share in what a round ends with than the job lets it have."""

# ruff: noqa: ANN401 - a mode's state is its own

import math
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triskel.aggregate.mean import Mean
from triskel.config.read import parse
from triskel.engines.fold import Fold, capped
from triskel.errors import MessageError
from triskel.types import ClientUpdate, Message, Mode, Section

SIZES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.integers(1, 2**62), min_size=1
)


@given(SIZES, st.floats(0.01, 1.0))
def test_no_share_is_above_the_most_and_nobody_gains_weight(
    sizes: dict[str, int], most: float
) -> None:
    weights = capped(dict(sizes), most)
    total = math.fsum(weights.values())
    assert all(0 < weights[c] <= sizes[c] for c in sizes)
    if most * len(sizes) >= 1:
        assert max(weights.values()) <= most * total * (1 + 1e-9)
    else:
        assert max(weights.values()) == min(weights.values())
    order = sorted(sizes, key=lambda c: sizes[c])
    assert all(weights[a] <= weights[b] for a, b in pairwise(order))


@given(SIZES, st.floats(0.05, 1.0))
def test_the_weights_are_the_largest_that_may_be(sizes: dict[str, int], most: float) -> None:
    """Whoever is capped is at the most: a search for the level finds none above."""
    weights = capped(dict(sizes), most)
    if most * len(sizes) <= 1 or max(sizes.values()) <= most * sum(sizes.values()):
        return
    level = max(weights.values()) * 1.001
    higher = {c: min(float(n), level) for c, n in sizes.items()}
    assert max(higher.values()) > most * math.fsum(higher.values())


class Averaging(Mode[Any, Any, Any]):
    """A mode with one number to average."""

    asks = MappingProxyType({})

    def add(self, state: Any, total: Any, client: str, update: Message) -> Any:
        del state, client
        if "value" not in update.facts:
            raise MessageError("no value")
        tensors = {"x": torch.tensor([float(update.facts["value"])])}
        sections = {"s": Section(kind="dense", tensors=tensors)}
        weight = float(update.facts["examples"])
        theirs = ClientUpdate(client="c", sections=sections, weight=weight)
        return Mean().add(total, theirs, {})


def folded(most: float, updates: dict[str, tuple[float, int]]) -> tuple[float, dict[str, float]]:
    job = parse(f"clients.max_share = {most}")
    fold: Fold[Any, Any] = Fold(job, Averaging(), None, Mean().zero())
    for client, (value, examples) in updates.items():
        fold.add(client, Message(kind="update", facts={"value": value, "examples": examples}))
    total, share = fold.close()
    before = {"s": Section(kind="dense", tensors={"x": torch.zeros(1)})}
    return float(Mean().value(total, before)["s"].tensors["x"]), share


def test_a_client_of_2_to_the_60_examples_does_not_own_the_mean() -> None:
    updates = {"a": (0.0, 30), "b": (0.0, 50), "liar": (1.0, 2**60)}
    mean, share = folded(1.0, updates)
    assert mean == pytest.approx(1.0)
    assert share["liar"] == pytest.approx(1.0)
    mean, share = folded(0.5, updates)
    assert mean == pytest.approx(0.5)
    assert share == pytest.approx({"a": 30 / 160, "b": 50 / 160, "liar": 0.5})


def test_where_nobody_is_above_the_most_nothing_changes() -> None:
    updates = {"a": (1.0, 30), "b": (2.0, 50), "c": (4.0, 40)}
    plain, shares = folded(1.0, updates)
    assert folded(0.45, updates) == (plain, shares)
    assert shares == pytest.approx({"a": 0.25, "b": 50 / 120, "c": 40 / 120})


def test_an_update_that_does_not_fit_is_refused_as_it_comes() -> None:
    for most in (1.0, 0.5):
        job = parse(f"clients.max_share = {most}")
        fold: Fold[Any, Any] = Fold(job, Averaging(), None, Mean().zero())
        with pytest.raises(MessageError, match="no value"):
            fold.add("a", Message(kind="update", facts={"examples": 3}))
