"""Derived randomness: a stream depends on its name and on nothing else."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triskel.numerics.rng import derive, seed_draws, stream

part = st.one_of(st.integers(0, 99), st.text("abc-", min_size=1, max_size=4))
paths = st.lists(part, min_size=0, max_size=4)


def test_a_seed_is_the_first_63_bits_of_a_hash_of_its_name() -> None:
    digest = hashlib.sha256(b"7/round/3/ann").digest()
    assert derive(7, "round", 3, "ann") == int.from_bytes(digest[:8], "little") // 2


def test_seeds_of_today_are_seeds_of_tomorrow() -> None:
    assert (derive(0), derive(0, "adapter"), derive(1, "cohort", 2)) == (
        2033344993903900207,
        5908834664442219184,
        3210970989092857838,
    )


@given(st.integers(0, 2**40), paths)
def test_a_seed_fits_the_generator(seed: int, path: list[str | int]) -> None:
    assert 0 <= derive(seed, *path) < 2**63
    stream(seed, *path)


@given(paths, paths)
def test_other_names_give_other_seeds(left: list[str | int], right: list[str | int]) -> None:
    same = [str(p) for p in left] == [str(p) for p in right]
    assert (derive(5, *left) == derive(5, *right)) == same


@pytest.mark.parametrize("name", ["ann", "bob", "a/b"])
def test_a_stream_repeats_whatever_was_drawn_elsewhere(name: str) -> None:
    before = torch.rand(5, generator=stream(3, "round", 1, name))
    torch.manual_seed(99)
    torch.rand(7)
    stream(3, "round", 1, "carol").manual_seed(4)
    assert torch.equal(before, torch.rand(5, generator=stream(3, "round", 1, name)))


def test_a_stream_leaves_the_global_one_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    torch.rand(4, generator=stream(1, "x"))
    assert torch.equal(torch.rand(3), wanted)


def test_neighbouring_streams_have_nothing_in_common() -> None:
    draws = torch.stack([torch.randn(2000, generator=stream(0, "client", i)) for i in range(12)])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.1


def test_layers_draw_from_what_is_seeded_for_their_device() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        wanted = torch.nn.functional.dropout(torch.ones(50), 0.5)
        seed_draws(torch.device("cpu"), 7)
        assert torch.equal(torch.nn.functional.dropout(torch.ones(50), 0.5), wanted)
