"""Scores, against counting by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triskel.numerics.metrics import Score, empty, merge, score

ROWS = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=12
)  # target, guess


def logits(rows: list[tuple[int, int]]) -> torch.Tensor:
    source = torch.Generator().manual_seed(len(rows))
    noise = torch.rand(len(rows), 3, generator=source)
    return noise + 2 * torch.nn.functional.one_hot(torch.tensor([g for _, g in rows]), 3)


def scored(rows: list[tuple[int, int]], classes: int = 3) -> Score:
    return score(logits(rows), torch.tensor([t for t, _ in rows]), classes)


@given(rows=ROWS)
def test_a_score_is_what_counting_says(rows: list[tuple[int, int]]) -> None:
    found = scored(rows)
    known = [(t, g, z) for (t, g), z in zip(rows, logits(rows).tolist(), strict=True) if t >= 0]
    assert found.count == len(known)
    assert found.correct == sum(t == g for t, g, _ in known)
    for t in range(3):
        for g in range(3):
            assert int(found.confusion[t, g]) == sum((a, b) == (t, g) for a, b, _ in known)
    nats = sum(math.log(sum(math.exp(x) for x in z)) - z[t] for t, _, z in known)
    assert found.loss_sum == pytest.approx(nats, rel=1e-5, abs=1e-6)
    if not known:
        assert (found.accuracy, found.loss, found.perplexity, found.macro_f1) == (None,) * 4
        return
    assert found.accuracy == pytest.approx(found.correct / len(known))
    assert found.loss == pytest.approx(nats / len(known), rel=1e-5, abs=1e-6)


@given(rows=ROWS)
def test_macro_f1_is_the_mean_over_classes_that_occur_or_are_predicted(
    rows: list[tuple[int, int]],
) -> None:
    known = [(t, g) for t, g in rows if t >= 0]
    each = []
    for c in range(3):
        tp = sum((t, g) == (c, c) for t, g in known)
        fp = sum(t != c == g for t, g in known)
        fn = sum(t == c != g for t, g in known)
        if tp + fp + fn:
            each.append(2 * tp / (2 * tp + fp + fn))
    if each:
        assert scored(rows).macro_f1 == pytest.approx(sum(each) / len(each))
    else:
        assert scored(rows).macro_f1 is None


@given(left=ROWS, right=ROWS, classes=st.sampled_from([0, 3]))
def test_merging_is_scoring_together(
    left: list[tuple[int, int]], right: list[tuple[int, int]], classes: int
) -> None:
    both = merge(scored(left, classes), scored(right, classes))
    other = merge(scored(right, classes), scored(left, classes))
    assert (both.correct, both.count) == (other.correct, other.count)
    assert both.count == sum(t >= 0 for t, _ in left + right)
    assert both.correct == sum(t == g for t, g in left + right)
    parts = scored(left, classes).loss_sum + scored(right, classes).loss_sum
    assert both.loss_sum == pytest.approx(parts)
    assert (both.confusion is None) == (classes == 0)
    if both.confusion is not None:
        assert int(both.confusion.sum()) == both.count
        assert torch.equal(merge(empty(3), both).confusion, both.confusion)


def test_a_causal_score_has_perplexity_and_no_table() -> None:
    found = scored([(0, 0), (1, 0)], classes=0)
    assert found.confusion is None
    assert found.macro_f1 is None
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert set(found.row()) == {"accuracy", "token_accuracy", "perplexity", "loss", "n"}
    assert found.row()["token_accuracy"] == found.accuracy == 0.5
    assert set(scored([(0, 0)]).row()) == {"accuracy", "macro_f1", "loss", "n"}
    assert found.row()["n"] == 2


def test_perplexity_is_exponentiated_once_and_never_overflows() -> None:
    def of(loss: float) -> float:
        return Score(confusion=None, loss_sum=2 * loss, correct=0, count=2).perplexity

    assert of(math.log(7.0)) == pytest.approx(7.0)
    assert of(699.0) < math.inf
    assert of(1e4) == of(1e9) < math.inf


def test_nothing_scores_nothing() -> None:
    for classes in (0, 3):
        found = empty(classes)
        assert (found.accuracy, found.loss, found.perplexity, found.macro_f1) == (None,) * 4
        assert {k: v for k, v in found.row().items() if v is not None} == {"n": 0}
    assert scored([(-1, 0), (-1, 2)]).count == 0


def test_low_precision_logits_are_scored_in_float32() -> None:
    wide = logits([(0, 0), (1, 2)])
    found = score(wide.bfloat16(), torch.tensor([0, 1]), 3)
    wanted = score(wide.bfloat16().float(), torch.tensor([0, 1]), 3)
    assert found.loss_sum == wanted.loss_sum
