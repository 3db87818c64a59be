"""What every aggregate promises, whatever it computes: ours, and the example's.

It has the sections of before, moves nobody's tensors and lends none, does not care who came first
or how totals were merged, and refuses what no sum may hold.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from triskel.aggregate.build import aggregate_of
from triskel.aggregate.pairs import checked
from triskel.core.choice import Choice
from triskel.core.registry import AGGREGATES
from triskel.errors import RoundError
from triskel.numerics.tensors import clone
from triskel.types import Aggregate, ClientUpdate, Section

TESTS = Path(__file__).resolve().parent.parent
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
co = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "cohorts.py")))

FLOAT32 = {"dtype": torch.float32}
BEFORE = co.sections(99, **FLOAT32)
SENT = [co.update(name, seed, seed + 1.0, **FLOAT32) for seed, name in enumerate("abcde")]
OURS = AGGREGATES.ours
SAME_TENSORS = {"mean", "fedex", "hetlora", "lora_fair", "middle"} | {
    *("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")
}
"""Of one client they make that client's tensors, bit for bit; the others its product."""


def b_alone(one: ClientUpdate) -> ClientUpdate:
    """The update as of a client that trains B alone."""
    sent, pair = BEFORE["adapter"].tensors, one.sections["adapter"].tensors
    own = {n: (sent[n][: len(t)] if "lora_A" in n else t) for n, t in pair.items()}
    adapter = replace(one.sections["adapter"], tensors=own)
    return replace(one, sections={**one.sections, "adapter": adapter})


def cohort(name: str, sent: Any = SENT) -> list[ClientUpdate]:
    return [b_alone(one) for one in sent] if name == "fedsvd" else list(sent)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    found: Path = plugins.install("own_aggregate", tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture(params=[*OURS, "middle"])
def name(request: pytest.FixtureRequest, package: Path) -> Iterator[str]:
    """Each aggregate: ours, and the example's."""
    with plugins.beside(package, "own_aggregate"):
        yield request.param


def made(name: str) -> Aggregate[Any]:
    """The aggregate, with no attackers and with all of the energy where it has such options."""
    options = AGGREGATES.spec(name).options.model_fields
    given = {key: value for key, value in {"attackers": 0, "energy": 1.0}.items() if key in options}
    return aggregate_of(Choice.model_validate({"name": name, **given}))


def total(aggregate: Any, some: Any, before: Any = BEFORE) -> Any:
    found = aggregate.zero()
    for one in some:
        found = aggregate.add(found, one, before)
    return found


def tensors(found: Any) -> dict[str, torch.Tensor]:
    return {n: t for section in found.values() for n, t in section.tensors.items()}


def copied(sections: Any) -> dict[str, Section]:
    return {n: replace(section, tensors=clone(section.tensors)) for n, section in sections.items()}


def places(*several: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for found in several for t in tensors(found).values()}


def same(found: Any, wanted: Any) -> None:
    """Equal products of every module, and equal tensors that are no factors."""
    for stem in co.SHAPES:
        one, other = co.whole(found, stem), co.whole(wanted, stem)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for n, t in wanted["head"].tensors.items():
        torch.testing.assert_close(found["head"].tensors[n], t, rtol=1e-6, atol=1e-7)


def test_it_has_the_sections_of_before(name: str) -> None:
    aggregate = made(name)
    found = aggregate.value(total(aggregate, cohort(name)), BEFORE)
    side = name in OURS and AGGREGATES.spec(name).side_factors
    assert found.keys() - {"side"} == BEFORE.keys()
    assert ("side" in found) == side
    for part, section in found.items():
        like = BEFORE["adapter" if part == "side" else part]
        assert (section.kind, dict(section.facts)) == (like.kind, dict(like.facts))
        for n, t in section.tensors.items():
            assert t.dtype == torch.float32
            assert t.is_contiguous()
            assert part == "side" or t.shape == like.tensors[n].shape


def test_it_moves_nobodys_tensors_and_lends_none(name: str) -> None:
    """Whoever writes into an update after it was added, or into what was held, changes nothing."""
    aggregate, sent = made(name), cohort(name)
    before = copied(BEFORE)
    copies = [replace(one, sections=copied(one.sections)) for one in sent]
    found = aggregate.value(total(aggregate, copies, before), before)
    for one, copy in zip(sent, copies, strict=True):
        assert all(
            torch.equal(t, tensors(copy.sections)[n]) for n, t in tensors(one.sections).items()
        )
    assert not places(before, *(one.sections for one in copies)) & places(found)
    if name == "middle":
        return  # an example: it keeps what it is given
    waiting = total(aggregate, copies, before)
    for one in copies:
        for t in tensors(one.sections).values():
            t.fill_(7.0)
    again = aggregate.value(waiting, before)
    assert all(torch.equal(t, tensors(again)[n]) for n, t in tensors(found).items())


def test_merged_totals_are_the_total_of_both_whatever_the_order(name: str) -> None:
    aggregate, sent = made(name), cohort(name)
    whole = aggregate.value(total(aggregate, sent), BEFORE)
    halves = aggregate.merge(total(aggregate, sent[3:][::-1]), total(aggregate, sent[:3]))
    found = aggregate.value(halves, BEFORE)
    same(found, whole)
    if name in OURS and AGGREGATES.spec(name).keeps_updates:  # it takes them in one order
        assert all(torch.equal(t, tensors(whole)[n]) for n, t in tensors(found).items())


def test_one_client_gets_back_what_it_sent(name: str) -> None:
    aggregate, sent = made(name), cohort(name)[:1]
    found = aggregate.value(total(aggregate, sent), BEFORE)
    same(found, sent[0].sections)
    if name in SAME_TENSORS:
        for n, t in tensors(sent[0].sections).items():
            assert torch.equal(tensors(found)[n], t), n


def test_side_factors_that_were_there_stay_in_the_sum(name: str) -> None:
    if name == "middle":
        pytest.skip("an example, which knows of no side factors")
    side = co.side(50)
    named = {n: t.float() for n, t in side.tensors.items()}
    before = {**BEFORE, "side": replace(side, tensors=named)}
    aggregate, sent = made(name), cohort(name)
    plain = aggregate.value(total(aggregate, sent), BEFORE)
    found = aggregate.value(total(aggregate, sent, before), before)
    for stem in co.SHAPES:
        wanted = co.whole(plain, stem) + co.product(before["side"], stem, "side")
        np.testing.assert_allclose(co.whole(found, stem), wanted, rtol=1e-5, atol=1e-4)


def test_nobody_amounts_to_nothing(name: str) -> None:
    aggregate = made(name)
    with pytest.raises(RoundError, match="no client returned an update"):
        aggregate.value(aggregate.zero(), BEFORE)


SPOILT = {
    "a NaN": ("adapter", "q.lora_A.weight", float("nan"), "q.lora_A.weight that are not finite"),
    "infinity": ("adapter", "k.lora_B.weight", float("inf"), "k.lora_B.weight that are not finite"),
    "a head of NaN": ("head", "score.weight", float("nan"), "score.weight that are not finite"),
}


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("ours", OURS)
def test_an_update_with_what_is_no_number_is_refused(ours: str, what: str) -> None:
    part, where, number, why = SPOILT[what]
    (one,) = cohort(ours, SENT[:1])
    held = one.sections[part]
    spoilt = held.tensors[where].clone()
    spoilt.view(-1)[1] = number
    section = replace(held, tensors={**held.tensors, where: spoilt})
    lying = replace(one, sections={**one.sections, part: section})
    aggregate = made(ours)
    with pytest.raises(RoundError, match=f"client 'a' has numbers in {why}"):
        aggregate.add(aggregate.zero(), lying, BEFORE)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("ours", OURS)
def test_an_update_that_counts_for_nothing_is_refused(ours: str, weight: float) -> None:
    (one,) = cohort(ours, SENT[:1])
    aggregate = made(ours)
    with pytest.raises(RoundError, match="client 'a' must rest on a positive number of examples"):
        aggregate.add(aggregate.zero(), replace(one, weight=weight), BEFORE)


@pytest.mark.parametrize("ours", OURS)
def test_factors_that_do_not_fit_are_refused(ours: str) -> None:
    aggregate = made(ours)
    (one,) = cohort(ours, SENT[:1])
    pair = one.sections["adapter"]
    high = co.factors(1, co.RANK + 1, **FLOAT32)
    wide = {**pair.tensors, "q.lora_A.weight": torch.zeros(co.RANK, 6)}
    half = {n: t for n, t in pair.tensors.items() if n != "q.lora_B.weight"}
    none = {
        **pair.tensors,
        "q.lora_A.weight": torch.zeros(0, 5),
        "q.lora_B.weight": torch.zeros(7, 0),
    }
    alone = "one factor of q without the other"
    if ours in {"mean", "fedsvd"}:  # each tensor has its mean: one factor may travel alone
        half["q.lora_A.weight"] = torch.zeros(2, 5)
        alone = r"shapes \[2, 5\] and \[7, 4\], expected \[r, 5\]"
    for section, why in (
        (replace(pair, tensors=high), "q of rank 5, expected a rank from 1 to 4"),
        (replace(pair, tensors=none), "q of rank 0, expected a rank from 1 to 4"),
        (replace(pair, tensors=wide), r"shapes \[4, 6\] and \[7, 4\], expected \[r, 5\]"),
        (replace(pair, tensors=half), alone),
        (replace(pair, facts={"scale": 0.0}), "factors of scale 0.0"),
        (replace(pair, facts={"scale": "two"}), "factors of scale two"),
        (replace(pair, facts={"scale": float("nan")}), "factors of scale nan"),
    ):
        lying = replace(one, sections={**one.sections, "adapter": section})
        with pytest.raises(RoundError, match=f"the update of client 'a' has .*{why}"):
            aggregate.add(aggregate.zero(), lying, BEFORE)


def test_where_ranks_must_be_one_a_lower_one_is_refused() -> None:
    low = co.update("a", 1, rank=2, **FLOAT32)
    checked(low, BEFORE, "cut")
    with pytest.raises(RoundError, match="q of rank 2, expected rank 4"):
        checked(low, BEFORE, "one")


@pytest.mark.parametrize("ours", OURS)
def test_ranks_may_differ_and_the_value_has_the_servers(ours: str) -> None:
    sent = [
        co.update(c, i, 1.0 + i, rank=r, scale=10 / r, **FLOAT32)
        for i, (c, r) in enumerate(zip("abcde", (1, 2, 4, 3, 1), strict=True))
    ]
    aggregate = made(ours)
    found = aggregate.value(total(aggregate, cohort(ours, sent)), BEFORE)
    for n, t in BEFORE["adapter"].tensors.items():
        assert found["adapter"].tensors[n].shape == t.shape
        assert bool(found["adapter"].tensors[n].isfinite().all())


@pytest.mark.parametrize("ours", OURS)
def test_a_row_of_the_next_a_is_never_zero_with_its_column_of_b(ours: str) -> None:
    """Else that component would have no gradient for ever; here all ranks are lower, and B is 0."""
    zero = co.sections(3, rank=2, **FLOAT32)
    pair = {n: (0 * t if "lora_B" in n else t) for n, t in zero["adapter"].tensors.items()}
    empty = {n: (0 * t if "lora_B" in n else t) for n, t in BEFORE["adapter"].tensors.items()}
    before = {**BEFORE, "adapter": co.adapter(empty)}
    sections = {**zero, "adapter": co.adapter(pair)}
    sent = [ClientUpdate(client=c, sections=sections, weight=1.0, steps=1) for c in "abc"]
    aggregate = made(ours)
    found: dict[str, Section] = dict(
        aggregate.value(total(aggregate, cohort(ours, sent), before), before)
    )
    for stem in co.SHAPES:
        rows = found["adapter"].tensors[f"{stem}.lora_A.weight"]
        assert float(torch.linalg.vector_norm(rows, dim=1).min()) > 0.1
