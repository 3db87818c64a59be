"""Averaged predictions, against formulas written over the whole vocabulary."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triskel.errors import MessageError
from triskel.modes.logits.combine import combine, entropy
from triskel.modes.logits.knowledge import Knowledge, dense, outcomes, stack, top

WAYS = ["logits", "probabilities", "confidence", "entropy"]
TEMPERATURES = [1.0, 2.0, 0.7]


def logits(seed: int, rows: int = 4, classes: int = 6) -> Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def softmax(values: Tensor, temperature: float) -> Tensor:
    powers = (values.double() / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def uncertainty(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0 * p).sum(-1)


def averaged(p: list[Tensor], way: str) -> Tensor:
    """The teacher's distribution, from the formulas in the header of the module."""
    if way == "probabilities":
        return sum(p[1:], p[0]) / len(p)
    if way == "logits":
        product = torch.stack([x.clamp(min=1e-300).log() for x in p]).mean(0).exp()
        return product / product.sum(-1, keepdim=True)
    trust = [1 - uncertainty(x) / math.log(x.shape[-1]) + 1e-6 for x in p]
    if way == "entropy":
        trust = [(-uncertainty(x)).exp() for x in p]
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
@pytest.mark.parametrize("way", WAYS)
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
@pytest.mark.parametrize("way", WAYS)
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


def test_entropy_is_none_for_a_sure_prediction_and_log_of_all_for_a_uniform_one() -> None:
    found = entropy(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]))
    assert found.tolist() == pytest.approx([0, math.log(4)], abs=1e-6)
    named = entropy(torch.tensor([[0.25]]), torch.tensor([0.75]), 3)
    assert named.tolist() == pytest.approx([math.log(4)], abs=1e-6)


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


def test_predictions_without_the_mass_of_the_others_are_refused() -> None:
    with pytest.raises(MessageError, match="without the mass of the others"):
        combine([replace(top(logits(0), 3, 1.0), tail=None)], "logits", 1.0)


# --- parties that speak of some positions, and name different numbers of tokens ----------------

CLASSES = 9


def ragged(seed: int) -> list[tuple[Knowledge, list[int]]]:
    """Four parties: what each says, and of which of six positions."""
    found: list[tuple[Knowledge, list[int]]] = []
    for i, (k, at) in enumerate(
        [(1, [0, 1, 2, 4]), (3, [1, 2]), (CLASSES, [0, 2, 5]), (5, [0, 1, 2, 4, 5])]
    ):
        z = logits(10 * seed + i, len(at), CLASSES)
        known = dense(z) if k == CLASSES else top(z, k, 2.0)
        loss = torch.rand(len(at), generator=torch.Generator().manual_seed(seed + i))
        found.append((replace(known, at=torch.tensor(at), loss=loss), at))
    return found


def whole(known: Knowledge, row: int) -> Tensor:
    if known.ids is None:
        return softmax(known.values, 2.0)[row]
    return spread(known, 2.0)[row]


def by_hand(said: list[tuple[Tensor, float]], rule: str) -> Tensor:
    """The average of what those who speak say of one position."""
    p, losses = [x for x, _ in said], [loss for _, loss in said]
    if rule not in {"loss", "lowest_loss"}:
        return averaged([x[None] for x in p], rule)[0]
    weights = [math.exp(-loss) for loss in losses]
    if rule == "lowest_loss":
        weights = [float(loss == min(losses)) for loss in losses]
    parts = [w * x for w, x in zip(weights, p, strict=True)]
    return sum(parts[1:], parts[0]) / sum(weights)


@pytest.mark.parametrize("minimum", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", [*WAYS, "loss", "lowest_loss"])
@pytest.mark.parametrize("seed", [1, 2])
def test_who_speaks_of_a_position_counts_there_and_who_does_not_pulls_nobody(
    rule: str, minimum: int, seed: int
) -> None:
    parties = ragged(seed)
    found = combine([known for known, _ in parties], rule, 2.0, minimum)
    rows = [[(k, at.index(s)) for k, at in parties if s in at] for s in range(6)]
    wanted = [s for s in range(6) if len(rows[s]) >= max(minimum, 1)]
    assert found.at.tolist() == wanted, "position 3 is nobody's"
    back = torch.zeros(len(wanted), CLASSES, dtype=torch.float64)
    back.scatter_(1, found.ids, (found.values.double() / 2).exp())
    for row, s in enumerate(wanted):
        mean = by_hand([(whole(k, r), float(k.loss[r])) for k, r in rows[s]], rule)
        torch.testing.assert_close(back[row], mean, rtol=1e-5, atol=1e-7)
        assert sorted(found.ids[row].tolist()) == list(range(CLASSES))
    assert float((found.tail / 2).exp().max()) < 1e-6


@pytest.mark.parametrize("rule", WAYS)
def test_tokens_that_nobody_named_fill_an_answer_with_what_is_theirs(rule: str) -> None:
    """The party that names four is silent on the second position, where one token is named."""
    one = replace(top(logits(1, 2, CLASSES), 1, 2.0), at=torch.tensor([0, 1]))
    four = replace(top(logits(2, 1, CLASSES), 4, 2.0), at=torch.tensor([0]))
    found = combine([four, one], rule, 2.0)
    assert found.values.shape == (2, 4)
    wanted = spread(one, 2.0)[1]
    p = (found.values[1].double() / 2).exp()
    torch.testing.assert_close(p, wanted[found.ids[1]], rtol=1e-5, atol=1e-7)
    assert len(set(found.ids[1].tolist())) == 4
    tail = (found.tail[1].double() / 2).exp()
    torch.testing.assert_close(tail, 1 - p.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [*WAYS, "loss", "lowest_loss"])
@pytest.mark.parametrize("k", [2, CLASSES])
def test_how_records_are_cut_does_not_matter(rule: str, k: int) -> None:
    """Pieces of positions, averaged piece by piece, are the average of all."""
    parties = [top(logits(s, 6, CLASSES), k, 2.0) for s in range(3)]
    parties = [replace(p, loss=torch.arange(6.0) % (i + 2)) for i, p in enumerate(parties)]
    whole_ = combine(parties, rule, 2.0)
    cuts = [torch.arange(2), torch.arange(2, 3), torch.arange(3, 6)]
    parts = [combine([p.rows(cut) for p in parties], rule, 2.0) for cut in cuts]
    back = stack(parts)
    assert torch.equal(back.ids, whole_.ids)
    torch.testing.assert_close(back.values, whole_.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back.tail, whole_.tail, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", WAYS)
def test_a_row_of_more_than_one_counts_for_one(rule: str) -> None:
    """Who sends twenty times its masses is who sends them."""
    known = top(logits(3, 4, CLASSES), 3, 2.0)
    louder = 2.0 * math.log(20)
    loud = replace(known, values=known.values + louder, tail=known.tail + louder)
    other = top(logits(4, 4, CLASSES), 3, 2.0)
    wanted, found = combine([known, other], rule, 2.0), combine([loud, other], rule, 2.0)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.tail, wanted.tail, rtol=1e-5, atol=1e-5)


def test_equal_losses_share_and_a_missing_one_is_refused() -> None:
    parties = [replace(dense(logits(s)), loss=torch.zeros(4)) for s in range(3)]
    both, by = combine(parties, "lowest_loss", 2.0), combine(parties, "probabilities", 2.0)
    torch.testing.assert_close(both.values, by.values)
    with pytest.raises(MessageError, match="without the loss that 'loss' weighs them by"):
        combine([parties[0], replace(parties[1], loss=None)], "loss", 2.0)
