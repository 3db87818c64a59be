"""Averaged predictions, against formulas written over the whole vocabulary."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triskel.errors import MessageError
from triskel.modes.logits.knowledge import (
    Knowledge,
    combine,
    confidence,
    dense,
    outcomes,
    stack,
    top,
)

WAYS = ["logits", "probabilities", "confidence"]
TEMPERATURES = [1.0, 2.0, 0.7]


def logits(seed: int, rows: int = 4, classes: int = 6) -> Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def softmax(values: Tensor, temperature: float) -> Tensor:
    powers = (values.double() / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def entropy(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0 * p).sum(-1)


def averaged(p: list[Tensor], way: str) -> Tensor:
    """The teacher's distribution, from the formulas in the header of the module."""
    if way == "probabilities":
        return sum(p[1:], p[0]) / len(p)
    if way == "logits":
        product = torch.stack([x.clamp(min=1e-300).log() for x in p]).mean(0).exp()
        return product / product.sum(-1, keepdim=True)
    trust = [1 - entropy(x) / math.log(x.shape[-1]) + 1e-6 for x in p]
    total = sum(trust[1:], trust[0])
    return sum(c[:, None] * x for c, x in zip(trust, p, strict=True)) / total[:, None]


def spread(known: Knowledge, temperature: float) -> Tensor:
    """A party's distribution over all tokens: what it did not name shares its tail evenly."""
    rows, k = known.values.shape
    rest = (known.tail.double() / temperature).exp() / max(known.vocabulary - k, 1)
    whole = rest[:, None].expand(rows, known.vocabulary).clone()
    for row in range(rows):
        for token, value in zip(known.ids[row].tolist(), known.values[row].tolist(), strict=True):
            whole[row, token] = math.exp(value / temperature)
    return whole


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("way", WAYS)
def test_dense_predictions_are_averaged_by_the_formula(way: str, temperature: float) -> None:
    parties = [logits(seed) for seed in range(3)]
    found = combine([dense(z) for z in parties], way, temperature)
    wanted = averaged([softmax(z, temperature) for z in parties], way)
    assert found.ids is None
    assert found.tail is None
    torch.testing.assert_close(softmax(found.values, temperature), wanted, rtol=1e-5, atol=1e-6)


def test_logits_are_averaged_as_they_are() -> None:
    found = combine([dense(logits(0)), dense(logits(1))], "logits", 3.0)
    torch.testing.assert_close(found.values, (logits(0) + logits(1)) / 2)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    "way",
    [
        "logits",
        "probabilities",
        "confidence",
    ],
)  # fmt: skip
def test_sparse_predictions_are_averaged_as_if_spread_over_the_vocabulary(
    way: str, k: int, temperature: float
) -> None:
    parties = [top(logits(seed, classes=11), k, temperature) for seed in range(3)]
    found = combine(parties, way, temperature)
    wanted = averaged([spread(p, temperature) for p in parties], way)
    largest = wanted.topk(k, dim=-1)
    values = (found.values.double() / temperature).exp()
    torch.testing.assert_close(values, largest.values, rtol=1e-5, atol=1e-6)
    # Which tokens: by their probability, as equal ones may come in either order.
    torch.testing.assert_close(wanted.gather(1, found.ids), largest.values, rtol=1e-5, atol=1e-6)
    tail = (found.tail.double() / temperature).exp()
    torch.testing.assert_close(tail, 1 - largest.values.sum(-1), rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == k for row in found.ids.tolist())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "way",
    [
        "logits",
        "probabilities",
        "confidence",
    ],
)  # fmt: skip
def test_the_largest_v_of_v_are_all_predictions(way: str, temperature: float) -> None:
    parties = [logits(seed) for seed in range(3)]
    whole = combine([dense(z) for z in parties], way, temperature)
    found = combine([top(z, 6, temperature) for z in parties], way, temperature)
    back = torch.zeros(4, 6, dtype=torch.float64).scatter(
        1, found.ids, (found.values.double() / temperature).exp()
    )
    torch.testing.assert_close(back, softmax(whole.values, temperature), rtol=1e-5, atol=1e-6)
    assert float((found.tail / temperature).exp().max()) < 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparse", [False, True])
def test_one_party_is_its_own_teacher(way: str, sparse: bool) -> None:  # noqa: FBT001 - two cases
    known = top(logits(0), 3, 2.0) if sparse else dense(logits(0))
    found = combine([known], way, 2.0)
    p, own = ((k.values.double() / 2).exp() for k in (found, known))
    if sparse:
        assert torch.equal(found.ids, known.ids)
        torch.testing.assert_close(found.tail, known.tail, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(p, own, rtol=1e-5, atol=1e-7)
    else:
        torch.testing.assert_close(
            softmax(found.values, 2.0), softmax(known.values, 2.0), rtol=1e-5, atol=1e-7
        )


@given(order=st.permutations(range(3)), way=st.sampled_from(WAYS), sparse=st.booleans())
def test_the_order_of_parties_does_not_matter(order: list[int], way: str, sparse: bool) -> None:  # noqa: FBT001 - two cases
    parties = [top(logits(s), 2, 2.0) if sparse else dense(logits(s)) for s in range(3)]
    straight, other = (combine(p, way, 2.0) for p in (parties, [parties[i] for i in order]))
    torch.testing.assert_close(straight.values, other.values, rtol=1e-5, atol=1e-5)
    if sparse:
        assert torch.equal(straight.ids, other.ids)


def test_a_sure_party_outweighs_an_unsure_one_by_confidence_only() -> None:
    sure, unsure = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.1, 0.0]])
    by = {w: softmax(combine([dense(sure), dense(unsure)], w, 1.0).values, 1.0)[0, 0] for w in WAYS}
    assert float(by["confidence"]) > 0.99
    assert 0.6 < float(by["probabilities"]) < 0.7


def test_confidence_is_one_for_a_sure_prediction_and_near_zero_for_a_uniform_one() -> None:
    found = confidence(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]))
    assert found.tolist() == pytest.approx([1 + 1e-6, 1e-6], abs=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_largest_predictions_keep_their_probability_and_the_mass_of_the_rest(
    temperature: float,
) -> None:
    z = logits(3)
    known, p = top(z, 2, temperature), softmax(z, temperature)
    largest = p.topk(2, dim=-1)
    assert torch.equal(known.ids, largest.indices)
    assert known.vocabulary == 6
    torch.testing.assert_close((known.values / temperature).exp().double(), largest.values)
    rest = (known.tail / temperature).exp().double()
    torch.testing.assert_close(rest, 1 - largest.values.sum(-1), rtol=1e-5, atol=1e-7)


def sure(gap: float, seed: int = 0) -> Tensor:
    """Logits of which the first three of 11 stand out by a gap."""
    return logits(seed, classes=11) + torch.tensor([gap] * 3 + [0.0] * 8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("gap", [12.0, 20.0, 28.0, 60.0])
def test_a_sure_party_keeps_the_mass_of_the_rest(gap: float, temperature: float) -> None:
    known = top(sure(gap), 3, temperature)
    z = sure(gap).double() / temperature
    mass = z[:, 3:].exp().sum(-1) / z.exp().sum(-1)
    assert {tuple(sorted(row)) for row in known.ids.tolist()} == {(0, 1, 2)}
    found = (known.tail.double() / temperature).exp()
    torch.testing.assert_close(found, mass, rtol=3e-5, atol=0.0)


@pytest.mark.parametrize("way", WAYS)
def test_the_average_of_sure_parties_keeps_the_mass_of_the_rest(way: str) -> None:
    parties = [top(sure(28.0, seed), 3, 1.0) for seed in range(3)]
    found = combine(parties, way, 1.0).tail.double().exp()
    wanted = averaged([spread(party, 1.0) for party in parties], way)[:, 3:].sum(-1)
    assert float(wanted.max()) < 1e-9
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0.0)
    alone = combine(parties[:1], way, 1.0).tail
    torch.testing.assert_close(alone, parties[0].tail, rtol=1e-6, atol=1e-5)


def test_where_every_token_is_named_a_trace_is_left() -> None:
    z = torch.tensor([[0.5, 1.5], [3.0, -2.0]])
    found = outcomes(z, torch.tensor([[1, 0], [0, 1]]))
    p = softmax(z, 1.0)
    torch.testing.assert_close(found[:, :2].exp().double(), torch.stack([p[0].flip(0), p[1]]))
    torch.testing.assert_close(found[:, 2].exp(), torch.tensor([1e-30, 1e-30]), rtol=1e-4, atol=0)


def test_rows_and_stacks_undo_each_other() -> None:
    for known in (dense(logits(0)), top(logits(0), 2, 2.0)):
        parts = [known.rows(torch.tensor([2, 0])), known.rows(torch.tensor([1, 3]))]
        back = stack(parts).rows(torch.tensor([1, 2, 0, 3]))
        assert torch.equal(back.values, known.values)
        assert back.vocabulary == known.vocabulary
        if known.ids is not None:
            assert torch.equal(back.ids, known.ids)
            assert torch.equal(back.tail, known.tail)
        mask = torch.tensor([True, False, False, True])
        assert torch.equal(known.rows(mask).values, known.values[[0, 3]])


def test_parties_who_speak_of_something_else_are_refused() -> None:
    with pytest.raises(MessageError, match="nothing to average"):
        combine([], "logits", 1.0)
    with pytest.raises(MessageError, match="do not match"):
        combine([dense(logits(0)), dense(logits(0, classes=5))], "logits", 1.0)
    with pytest.raises(MessageError, match="do not match"):
        combine([dense(logits(0)), dense(logits(0, rows=3))], "logits", 1.0)
    other = top(logits(0, classes=9), 2, 1.0)
    with pytest.raises(MessageError, match=r"over 6 classes do not match .* over 9"):
        combine([other, top(logits(0), 2, 1.0)], "logits", 1.0)


def test_all_predictions_and_the_largest_only_are_not_averaged() -> None:
    known = top(logits(0), 6, 1.0)
    with pytest.raises(MessageError, match="all predictions and another the largest only"):
        combine([known, dense(logits(0))], "logits", 1.0)
    with pytest.raises(MessageError, match="without the mass of the others"):
        combine([replace(known, tail=None)], "logits", 1.0)
