"""The weighted mean, against its formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triskel.aggregate.mean import Mean, MeanTotal
from triskel.errors import RoundError
from triskel.types import ClientUpdate, Section

MEAN = Mean()


def party(seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=source), "b": torch.randn(5, generator=source)}


def sections(tensors: dict[str, Tensor]) -> dict[str, Section]:
    return {"x": Section(kind="dense", tensors=tensors)}


def add(total: MeanTotal, tensors: dict[str, Tensor], weight: float) -> MeanTotal:
    theirs = ClientUpdate(client="c", sections=sections(tensors), weight=weight)
    return MEAN.add(total, theirs, {})


def value(total: MeanTotal, before: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(MEAN.value(total, sections(before))["x"].tensors)


def fold(parties: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    total = MEAN.zero()
    for tensors, weight in parties:
        total = add(total, tensors, weight)
    return value(total, {n: 0 * t for one, _ in parties for n, t in one.items()})


@given(weights=st.lists(st.integers(1, 10_000), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_it_is_the_sum_of_weighted_tensors_over_the_sum_of_weights(
    weights: list[int], seed: int
) -> None:
    parties = [(party(seed + i), float(w)) for i, w in enumerate(weights)]
    found = fold(parties)
    for name in ("a", "b"):
        stacked = torch.stack([p[name].double() for p, _ in parties])
        share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        wanted = torch.einsum("i,i...->...", share, stacked)
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-7)
        assert found[name].dtype == torch.float32


@given(weight=st.integers(1, 2**28), seed=st.integers(0, 99))
def test_one_party_comes_back_bit_for_bit(weight: int, seed: int) -> None:
    found = fold([(party(seed), weight)])
    assert all(torch.equal(found[n], t) for n, t in party(seed).items())


@given(order=st.permutations(range(4)))
def test_order_does_not_matter(order: list[int]) -> None:
    parties = [(party(i), float(1 + 7 * i)) for i in range(4)]
    straight, other = fold(parties), fold([parties[i] for i in order])
    for name, tensor in straight.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-7)


def test_merged_totals_are_the_total_of_both() -> None:
    left = add(MEAN.zero(), party(0), 3)
    right = add(add(MEAN.zero(), party(1), 1), party(2), 2)
    found = value(MEAN.merge(left, right), party(9))
    wanted = fold([(party(0), 3), (party(1), 1), (party(2), 2)])
    assert all(torch.equal(found[n], t) for n, t in wanted.items())
    assert MEAN.merge(left, right).weight == 6


def test_who_did_not_send_a_tensor_counts_with_the_servers_copy() -> None:
    total = add(MEAN.zero(), {"a": torch.ones(2), "b": torch.ones(1)}, 3)
    total = add(total, {"a": torch.zeros(2)}, 5)
    before = {"a": torch.full((2,), 9.0), "b": torch.full((1,), 5.0), "c": torch.full((1,), 7.0)}
    found = value(total, before)
    assert found["a"].tolist() == [0.375, 0.375]
    assert found["b"].tolist() == [3.5], "three of ones, five of five"
    assert found["c"].tolist() == [7.0], "which nobody holds"


def test_the_inputs_stay_as_they_were_and_a_value_may_be_taken_twice() -> None:
    parties = [party(0), party(1)]
    before = [{n: t.clone() for n, t in one.items()} for one in parties]
    total = add(add(MEAN.zero(), parties[0], 2), parties[1], 5)
    missing = {**party(9), "unsent": torch.ones(2)}
    kept = value(total, missing)
    for one, was in zip(parties, before, strict=True):
        assert all(torch.equal(one[n], t) for n, t in was.items())
    assert all(torch.equal(value(total, missing)[n], t) for n, t in kept.items())


def test_an_update_that_is_refused_in_its_second_part_leaves_the_total_as_it_was() -> None:
    total = add(MEAN.zero(), {"a": torch.ones(2), "b": torch.ones(2)}, 2)
    good = Section(kind="dense", tensors={"a": torch.full((2,), 5.0)})
    bad = Section(kind="dense", tensors={"b": torch.tensor([1.0, math.nan])})
    update = ClientUpdate(client="eve", sections={"one": good, "two": bad}, weight=3)
    with pytest.raises(RoundError, match="not finite"):
        MEAN.add(total, update, {})
    assert value(total, {"a": torch.zeros(2), "b": torch.zeros(2)})["a"].tolist() == [1.0, 1.0]


def test_types_of_tensors_come_back() -> None:
    found = fold([({"x": torch.ones(2, dtype=t)}, 1) for t in (torch.float64,)])
    assert found["x"].dtype == torch.float64


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_of_examples_is_refused(weight: float) -> None:
    with pytest.raises(RoundError, match="positive number of examples"):
        add(MEAN.zero(), party(0), weight)


def test_nobody_has_no_mean() -> None:
    with pytest.raises(RoundError, match="no client returned an update"):
        value(MEAN.zero(), party(0))
