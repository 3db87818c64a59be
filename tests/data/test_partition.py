"""Who holds which rows: each partition against its formula, and laws that hold for all."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskel.config import read as jobs
from triskel.config.job import Job
from triskel.config.sections import Partition
from triskel.data.holdout import apportion, hold_out, public_from
from triskel.data.partition import LENGTH_BINS, client_names, dirichlet, partition, slugs
from triskel.data.rows import Rows
from triskel.errors import DataError

DEALT: tuple[Partition, ...] = ("iid", "dirichlet", "quantity", "shards", "length")


def job(kind: str, *, seed: int = 0, **clients: float) -> Job:
    options = "\n".join(f"{key} = {value}" for key, value in clients.items())
    return jobs.parse(
        f'seed = {seed}\n[data]\nsource = "csv"\ntrain = "x"\ntext = "t"\nlabel = "l"\n'
        f'[clients]\npartition = "{kind}"\n{options}\n' + ('by = "b"' if kind == "natural" else "")
    )


def rows(n: int, labels: int = 4) -> Rows:
    return Rows(
        text=tuple("x" * (1 + i * 7919 % 97) for i in range(n)),
        label=tuple("abcdefghij"[i % labels] for i in range(n)),
    )


@given(
    kind=st.sampled_from(DEALT),
    n=st.integers(0, 120),
    m=st.integers(0, 60),
    count=st.integers(1, 15),
    alpha=st.sampled_from([1e-4, 0.05, 0.5, 100.0]),
    seed=st.integers(0, 3),
)
def test_every_row_has_exactly_one_client(
    kind: Partition, n: int, m: int, count: int, alpha: float, seed: int
) -> None:
    train, test = rows(n), rows(m)
    if not n and kind in {"dirichlet", "shards", "length"}:
        return
    ours = job(kind, count=count, alpha=alpha, seed=seed)
    shares = partition(ours, train, test)
    assert list(shares) == client_names(count)
    assert sorted(i for s in shares.values() for i in s.train) == list(range(n))
    assert sorted(i for s in shares.values() for i in s.test) == list(range(m))
    assert all(list(s.train) == sorted(s.train) for s in shares.values())
    assert sum(not s.train for s in shares.values()) == max(0, count - n)
    assert partition(ours, train, test) == shares


@pytest.mark.parametrize("kind", DEALT)
def test_another_seed_deals_otherwise(kind: Partition) -> None:
    dealt = [partition(job(kind, seed=seed), rows(200), rows(50)) for seed in (0, 1)]
    assert dealt[0] != dealt[1]


def test_iid_sizes_differ_by_at_most_one() -> None:
    shares = partition(job("iid", count=7), rows(100), rows(30))
    assert {len(s.train) for s in shares.values()} == {14, 15}
    assert {len(s.test) for s in shares.values()} <= {4, 5}


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_a_client_s_test_share_follows_its_training_share(kind: Partition) -> None:
    train = rows(8000)
    shares = partition(job(kind, count=5, alpha=0.3), train, train)
    for share in shares.values():
        mine, theirs = (Counter(train.label[i] for i in part) for part in (share.train, share.test))
        for label in "abcd":
            assert abs(mine[label] - theirs[label]) <= 2, "the same p, up to rounding and mending"


def test_a_small_alpha_gives_each_label_to_few_and_a_large_one_to_all() -> None:
    train = rows(4000, labels=10)

    def owners(alpha: float) -> float:
        shares = partition(job("dirichlet", count=10, alpha=alpha), train, Rows())
        held = [Counter(train.label[i] for i in s.train) for s in shares.values()]
        return sum(h[label] > 20 for h in held for label in "abcdefghij") / 10

    assert owners(0.05) < 3
    assert owners(100.0) == 10


def test_dirichlet_has_the_mean_and_variance_of_dirichlet() -> None:
    for alpha in (0.1, 1.0, 10.0):
        draws = [dirichlet(alpha, 4, 0, "draw", i) for i in range(2000)]
        first = [p[0] for p in draws]
        mean = sum(first) / len(first)
        variance = sum((p - mean) ** 2 for p in first) / len(first)
        assert all(abs(sum(p) - 1) < 1e-9 for p in draws)
        assert mean == pytest.approx(0.25, abs=0.03)
        assert variance == pytest.approx(0.25 * 0.75 / (4 * alpha + 1), rel=0.12)


def test_a_tiny_alpha_gives_one_client_everything() -> None:
    assert max(dirichlet(1e-9, 5, 0, "x")) == 1.0


def test_quantity_skews_sizes_alike_in_train_and_test() -> None:
    shares = partition(job("quantity", count=5, alpha=0.5), rows(1000), rows(500))
    sizes = [len(s.train) for s in shares.values()]
    assert max(sizes) > 2 * min(sizes)
    assert all(abs(len(s.train) - 2 * len(s.test)) <= 2 for s in shares.values())


def test_shards_bound_the_labels_a_client_sees() -> None:
    train = rows(1000, labels=10)
    shares = partition(job("shards", count=10, shards=2), train, Rows())
    for share in shares.values():
        assert len(share.train) == 100
        assert len({train.label[i] for i in share.train}) <= 4


def test_length_separates_long_from_short() -> None:
    train = rows(5000)
    mean = [
        sum(len(train.text[i]) for i in s.train) / len(s.train)
        for s in partition(job("length", count=5, alpha=0.1), train, Rows()).values()
    ]
    even = [
        sum(len(train.text[i]) for i in s.train) / len(s.train)
        for s in partition(job("length", count=5, alpha=1000.0), train, Rows()).values()
    ]
    assert max(mean) - min(mean) > 20
    assert max(even) - min(even) < 5


def test_texts_of_one_length_share_a_bin() -> None:
    train = Rows(text=("same",) * 50, label=("a",) * 50)
    shares = partition(job("length", count=3, alpha=1e-6), train, Rows())
    assert max(len(s.train) for s in shares.values()) == 48, "one bin, one owner, two mended"
    assert LENGTH_BINS == 10


def test_labels_are_needed_where_they_are_dealt_by() -> None:
    for kind in ("dirichlet", "shards"):
        with pytest.raises(DataError, match=f'partition "{kind}" needs labels'):
            partition(job(kind), Rows(text=("a",)), Rows())


def test_a_test_label_that_no_training_row_has_is_dealt_all_the_same() -> None:
    test = Rows(text=("x",) * 8, label=("new",) * 8)
    shares = partition(job("shards", count=4), rows(40), test)
    assert [len(s.test) for s in shares.values()] == [2, 2, 2, 2]


# --- natural ----------------------------------------------------------------------------------


def test_natural_clients_are_the_values_of_a_column() -> None:
    train = Rows(text=("a", "b", "c"), group=("Ward 2", "Ward 1", "Ward 2"))
    test = Rows(text=("d", "e"), group=("Ward 3", "Ward 2"))
    shares = partition(job("natural"), train, test)
    assert {name: (s.train, s.test) for name, s in shares.items()} == {
        "Ward-1": ((1,), ()),
        "Ward-2": ((0, 2), (1,)),
        "Ward-3": ((), (0,)),
    }


def test_a_test_set_of_nobody_is_dealt_evenly() -> None:
    train = Rows(text=("a", "b"), group=("x", "y"))
    shares = partition(job("natural"), train, Rows(text=tuple("abcdef")))
    assert [len(s.test) for s in shares.values()] == [3, 3]
    assert sorted(i for s in shares.values() for i in s.test) == list(range(6))


def test_natural_needs_a_column() -> None:
    with pytest.raises(DataError, match=r"name it as clients\.by"):
        partition(job("natural"), Rows(text=("a",)), Rows())


def test_names_sort_as_their_numbers() -> None:
    for count in (1, 9, 99, 100, 1234):
        names = client_names(count)
        assert names == sorted(names)
        assert len(set(names)) == count
    assert client_names(100)[0] == "client-001"


@given(st.lists(st.text(max_size=80), max_size=12))
def test_slugs_are_safe_and_distinct_whatever_the_values(values: list[str]) -> None:
    found = slugs(values)
    assert set(found) == set(values)
    assert len({slug.casefold() for slug in found.values()}) == len(found)
    for slug in found.values():
        assert slug.isascii()
        assert slug[0].isalnum()
        assert all(c.isalnum() or c in "._-" for c in slug)
        assert len(slug) <= 80
    assert slugs(reversed(values)) == found


def test_slugs_that_collide_are_told_apart() -> None:
    found = slugs(["a b", "a/b", "A-b", "日本", "other"])
    assert found["other"] == "other"
    assert found["日本"].startswith("client-")
    assert len(set(found.values())) == 5
    assert slugs(["x" * 80]) == {"x" * 80: "x" * 64}
    assert slugs(["../../etc/passwd"]) == {"../../etc/passwd": "etc-passwd"}


# --- Set aside before dealing -----------------------------------------------------------------


@given(
    caps=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    weights=st.lists(st.floats(0, 10), min_size=8, max_size=8),
    share=st.floats(0, 1),
)
def test_whole_numbers_add_up_within_their_caps(
    caps: list[int], weights: list[float], share: float
) -> None:
    total = int(share * sum(caps))
    counts = apportion(total, weights[: len(caps)], caps)
    assert sum(counts) == total
    assert all(0 <= n <= cap for n, cap in zip(counts, caps, strict=True))


def test_more_than_the_caps_is_refused() -> None:
    with pytest.raises(ValueError, match="room for 3, got 2"):
        apportion(3, [1.0, 1.0], [1, 1])


@given(n=st.integers(2, 200), share=st.floats(0.05, 0.95), labels=st.integers(1, 5))
def test_a_test_share_is_as_large_as_asked_and_keeps_label_shares(
    n: int, share: float, labels: int
) -> None:
    table = rows(n, labels)
    if n <= labels:
        return
    train, test = hold_out(table, share=share, seed=0)
    assert len(train) + len(test) == n
    assert len(test) == min(max(round(share * n), 1), n - labels)
    for label in set(table.label):
        assert label in train.label
        assert abs(test.label.count(label) - len(test) * table.label.count(label) / n) <= 1 + labels


def test_a_silo_s_test_rows_do_not_depend_on_other_silos() -> None:
    first = Rows(text=tuple(map(str, range(40))), label=("a", "b") * 20, group=("x",) * 40)
    more = Rows(
        text=(*first.text, "n1", "n2", "n3"),
        label=(*first.label, "a", "a", "b"),
        group=(*first.group, "y", "y", "y"),
    )
    alone = hold_out(first, share=0.2, seed=3)[1]
    beside = hold_out(more, share=0.2, seed=3)[1]
    assert alone.text == tuple(
        t for t, g in zip(beside.text, beside.group, strict=True) if g == "x"
    )


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 rows are too few .* name a test file as data.test"):
        hold_out(Rows(text=("a", "b"), label=("x", "y")), share=0.2, seed=0)


def test_a_public_set_takes_evenly_from_all_silos() -> None:
    groups = ("a",) * 100 + ("b",) * 10 + ("c",) * 50
    table = Rows(text=tuple(map(str, range(160))), group=groups)
    train, public = public_from(table, count=60, seed=0, keep=0)
    assert Counter(public.group) == {"a": 26, "b": 9, "c": 25} or Counter(public.group) == {
        "a": 25,
        "b": 9,
        "c": 26,
    }
    assert sorted((*train.text, *public.text)) == sorted(table.text)
    assert set(train.group) == {"a", "b", "c"}


def test_a_public_set_that_leaves_too_little_is_refused() -> None:
    table = Rows(text=("a",) * 10)
    assert len(public_from(table, count=6, seed=0, keep=4)[0]) == 4
    with pytest.raises(DataError, match=r"asks for 7 texts and 10 training rows can spare 6"):
        public_from(table, count=7, seed=0, keep=4)
    with pytest.raises(DataError, match="can spare 0"):
        public_from(table, count=1, seed=0, keep=40)


def test_labels_play_no_part_in_the_public_set() -> None:
    table = rows(50)
    other = Rows(text=table.text, label=tuple(reversed(table.label)))
    first, second = (public_from(t, count=9, seed=1, keep=0)[1].text for t in (table, other))
    assert first == second


def test_streams_of_different_names_are_not_the_same_draw() -> None:
    draws = [dirichlet(0.5, 6, 0, "partition", "dirichlet", label) for label in "abc"]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
