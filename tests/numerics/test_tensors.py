"""Arithmetic on named tensors, and rows without padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triskel.numerics.tensors import (
    blend,
    clone,
    indices,
    numbers,
    padded,
    present,
    ragged,
    runs,
    select,
)

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def test_a_clone_shares_no_memory_and_no_graph() -> None:
    original = {"a": torch.ones(2, requires_grad=True)}
    copy = clone(original)
    copy["a"][0] = 5.0
    assert original["a"].tolist() == [1.0, 1.0]
    assert not copy["a"].requires_grad


@given(share=st.floats(0, 2))
def test_a_blend_is_between(share: float) -> None:
    old, new = {"a": torch.tensor([1.0, -3.0])}, {"a": torch.tensor([2.0, 5.0])}
    found = blend(old, new, share)["a"]
    assert found.tolist() == pytest.approx([1 + share, -3 + 8 * share], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_blend_of_one_or_nothing_is_exact(dtype: torch.dtype) -> None:
    old, new = ({"a": torch.randn(50).to(dtype)} for _ in range(2))
    assert torch.equal(blend(old, new, 1.0)["a"], new["a"])
    assert torch.equal(blend(old, new, 0.0)["a"], old["a"])
    assert blend(old, new, 0.5)["a"].dtype == dtype


def test_numbers_are_counted_and_names_are_chosen_in_order() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(0)}
    assert numbers(tensors) == 7
    assert list(select(tensors, ["c", "a"])) == ["c", "a"]
    with pytest.raises(KeyError):
        select(tensors, ["d"])


@given(lengths=LENGTHS, width=st.integers(1, 3))
def test_rows_without_padding_can_be_padded_again(lengths: list[int], width: int) -> None:
    longest = max(lengths)
    whole = torch.arange(1.0, 1 + len(lengths) * longest * width).view(-1, longest, width)
    rows = ragged(whole, lengths)
    assert rows.tolist() == [whole[i, j].tolist() for i, n in enumerate(lengths) for j in range(n)]
    back = padded(rows, lengths)
    for i, n in enumerate(lengths):
        assert torch.equal(back[i, :n], whole[i, :n])
        assert not back[i, n:].any()


@given(lengths=LENGTHS, extra=st.integers(0, 3))
def test_padding_beyond_the_longest_text_is_dropped(lengths: list[int], extra: int) -> None:
    whole = torch.ones(len(lengths), max(lengths) + extra, 2)
    assert ragged(whole, lengths).shape == (sum(lengths), 2)
    assert present(lengths, max(lengths) + extra).sum(1).tolist() == lengths


@given(mask=st.lists(st.booleans(), max_size=12))
def test_runs_name_exactly_what_is_true(mask: list[bool]) -> None:
    found = runs(torch.tensor(mask, dtype=torch.bool))
    inside = [i for a, b in zip(found[::2], found[1::2], strict=True) for i in range(a, b)]
    assert inside == [i for i, yes in enumerate(mask) if yes]
    assert found == sorted(set(found)), "runs that touch are one run"


def test_lengths_are_plain_integers() -> None:
    assert indices(torch.tensor([3, 1])) == [3, 1]
    assert all(type(n) is int for n in indices(torch.tensor([3, 1])))
