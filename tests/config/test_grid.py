"""Settings to try: lists of values, their product, and names that are folders."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskel.config.grid import LONGEST, settings_of, values_of
from triskel.config.read import load
from triskel.errors import JobError

VALUES = st.one_of(
    st.integers(-9, 9).map(str),
    st.floats(1e-9, 1e9).map(repr),
    st.lists(st.integers(0, 40), min_size=1, max_size=3).map(json.dumps),
    st.sampled_from(
        ['"a,b"', "'c,[d'", "bare", "top:15", '["x,y", "z]"]', "{a = [1, 2]}", '"\\",q"']
    ),
)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_list_of_values_comes_apart_where_it_was_joined(values: list[str]) -> None:
    assert values_of(",".join(values)) == values
    assert values_of(" , ".join(values)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[4,28],[10,25]", ["[4,28]", "[10,25]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'it,is',o'clock,x", ["'it,is'", "o'clock", "x"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        (r'"a\\",b', [r'"a\\"', "b"]),
        ("1e-3", ["1e-3"]),
        ("a,,b", ["a", "", "b"]),
        ("", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_do_not_part(text: str, values: list[str]) -> None:
    assert values_of(text) == values


def test_settings_are_the_product_in_order_and_each_is_the_job_that_set_makes() -> None:
    base, found = settings_of(None, ["train.lr=1e-3,2e-3", "rounds=4", "adapter.rank=2,8,32"])
    assert base == load(None, ["rounds=4"])
    pairs = list(itertools.product((1e-3, 2e-3), (2, 8, 32)))
    assert [one.set for one in found] == [
        {"train.lr": lr, "adapter.rank": rank} for lr, rank in pairs
    ]
    for one, (lr, rank) in zip(found, pairs, strict=True):
        assert one.job == load(None, ["rounds=4", f"train.lr={lr}", f"adapter.rank={rank}"])
        assert one.name == f"train.lr={lr},adapter.rank={rank}"


def test_a_sweep_of_one_setting_is_named_by_all_that_it_sets() -> None:
    base, (one,) = settings_of(None, ["train.lr=1e-3", "rounds=4"])
    assert one.job == base
    assert one.name == "train.lr=0.001,rounds=4"


def test_the_seed_may_be_swept_over() -> None:
    _, found = settings_of(None, ["seed=0,1,2"])
    assert [one.job.seed for one in found] == [0, 1, 2]


def test_names_are_folders_of_their_own_whatever_the_values() -> None:
    given = [
        'name="a/b","a\\\\b","A b","a b","..","é"',
        "adapter.blocks=top:15,0-3",
        "split.cut=[4, 28],[10, 25]",
        f'data.template="{"{prompt} {response}" * 20}","{"{prompt} {response}" * 20}."',
    ]
    _, found = settings_of(None, given)
    names = [one.name for one in found]
    assert len({name.casefold() for name in names}) == len(names) == 48
    for name in names:
        assert len(name) <= LONGEST
        assert Path(name).name == name
        assert not set(name) & set('/\\:*?"<>| \n')


def test_a_name_tells_large_from_small() -> None:
    _, found = settings_of(None, ["train.lr=1e30,1e-30"])
    assert [one.name for one in found] == ["train.lr=1e+30", "train.lr=1e-30"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], r"nothing to sweep over; give --set SECTION\.KEY=VALUE,VALUE"),
        (["train.lr=1e-3,"], r"'train\.lr=1e-3,' has an empty value; give train\.lr=VALUE,VALUE"),
        (["train.lr="], r"has an empty value"),
        (["train.lr"], r"a setting is section\.key=value"),
        (["=1,2"], r"a setting is section\.key=value"),
        (["train.lr=1e-3,0.001"], r"has 0\.001 twice"),
        (["train.lr=1,2", "train.lr=3"], r"names train\.lr twice; give all its values in one"),
        (["train.lrr=1e-3,2e-3"], r"unknown key 'train\.lrr'; did you mean 'lr'"),
        (["train.lr=fast,slow"], r"train\.lr: input should be a valid number"),
        (["split.cut=[4,28"], r"split\.cut"),
    ],
)
def test_what_is_no_list_of_settings_is_refused_in_one_sentence(given: list[str], why: str) -> None:
    with pytest.raises(JobError, match=why) as refused:
        settings_of(None, given)
    assert "\n" not in str(refused.value)
