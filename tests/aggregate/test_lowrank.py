"""Every aggregate of low-rank factors, against whole matrices in NumPy.

Scales are not 1, numbers of examples differ, and ranks do where they may. Everything is float64, so
what is left is rounding: 1e-12 of a matrix's norm.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from triskel.aggregate.build import aggregate_of
from triskel.core.choice import Choice
from triskel.errors import RoundError
from triskel.model.side_factors import stacked
from triskel.types import ClientUpdate, Section

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
co = SimpleNamespace(**runpy.run_path(str(HELPERS / "cohorts.py")))

RANK, SCALE, STEMS = co.RANK, co.SCALE, tuple(co.SHAPES)
BEFORE = co.sections(99)
WITH_SIDE = {**BEFORE, "side": co.side(50)}
SIZES = (3.0, 1.0, 7.0, 2.0)
NAMES = ("ann", "bob", "cat", "dan")
EQUAL = [co.update(n, i, w) for i, (n, w) in enumerate(zip(NAMES, SIZES, strict=True))]
MIXED = [
    co.update(n, i, w, rank=rank, scale=10 / rank)
    for i, (n, w, rank) in enumerate(zip(NAMES, SIZES, (1, 4, 2, 3), strict=True))
]
COHORTS = {"equal ranks": EQUAL, "mixed ranks": MIXED}
EXACT = {"error": 0.0}


def value(name: str, sent: Any, before: Any = BEFORE, **options: Any) -> Any:
    chosen = Choice.model_validate({"name": name, **options})
    return co.folded(aggregate_of(chosen), sent, before)


def mean(sent: Any, stem: str, before: Any = BEFORE) -> Any:
    """The mean of what clients' models add to a module, side factors included."""
    parts = [co.stands_for(one, before, stem) for one in sent]
    found = co.mean(parts, [one.weight for one in sent])
    if "side" in before:
        found = found + co.product(before["side"], stem, "side")
    return found


def best(matrix: Any, rank: int) -> Any:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def cut(sent: Any, stem: str, shares: Any = None) -> Any:
    """The mean of products of what clients were sent and trained."""
    weights = [one.weight for one in sent] if shares is None else shares
    return co.mean([co.product(one.sections["adapter"], stem) for one in sent], weights)


def head(found: Any) -> Any:
    return found["head"].tensors["score.weight"].numpy()


# --- exact sums --------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [BEFORE, WITH_SIDE], ids=["first", "later"])
@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_exact_sums_are_the_mean_of_products(name: str, cohort: str, before: Any) -> None:
    sent = COHORTS[cohort]
    found = value(name, sent, before, **EXACT)
    for stem in STEMS:
        assert co.apart(co.whole(found, stem), mean(sent, stem, before)) < 1e-12
    wanted = co.mean([head(one.sections) for one in sent], SIZES)
    np.testing.assert_allclose(head(found), wanted, rtol=1e-14)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_a_module_of_either_kind_computes_with_the_mean_of_products(name: str, kind: str) -> None:
    """PEFT's own layer, its weight [out, in] or [in, out], is given factors and side factors."""
    out, into = co.SHAPES["q"]
    layer: Any = torch.nn.Linear(into, out) if kind == "linear" else Conv1D(out, into)
    model: Any = torch.nn.ModuleDict({"q": layer}).double()
    found = value(name, MIXED, **EXACT)
    tensors = {n: t for s in found.values() for n, t in s.tensors.items() if n.startswith("q.")}
    whole = stacked(tensors, [n for n in tensors if n.endswith(".weight")])
    rank = len(whole["q.lora_A.weight"])
    config = peft.LoraConfig(
        r=rank, lora_alpha=SCALE * rank, target_modules=["q"], fan_in_fan_out=kind == "conv1d"
    )
    x = torch.randn(2, into, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    plain = layer(x).detach().numpy()
    adapted: Any = peft.get_peft_model(model, config).base_model.model["q"]
    adapted.lora_A["default"].weight.data = whole["q.lora_A.weight"]
    adapted.lora_B["default"].weight.data = whole["q.lora_B.weight"]
    wanted = plain + x.numpy() @ mean(MIXED, "q").T
    assert co.apart(adapted(x).detach().numpy(), wanted) < 1e-12


def test_fedex_keeps_the_means_as_factors_and_at_most_k_minus_1_times_r_beside_them() -> None:
    for count in (1, 2):
        found = value("fedex", EQUAL[:count], **EXACT)
        plain = value("mean", EQUAL[:count])
        for n, t in plain["adapter"].tensors.items():
            torch.testing.assert_close(found["adapter"].tensors[n], t, rtol=1e-14, atol=1e-14)
        sides = found["side"].tensors if "side" in found else {}
        ranks = {len(t) for n, t in sides.items() if "lora_A" in n}
        assert ranks == ({(count - 1) * RANK} if count > 1 else set())
        assert all(found[s].facts == {"scale": SCALE} for s in found if s != "head")


def test_flora_begins_again_with_the_a_that_was_sent() -> None:
    found = value("flora", EQUAL)["adapter"].tensors
    for stem in STEMS:
        assert not found[f"{stem}.lora_B.weight"].any()
        sent = BEFORE["adapter"].tensors[f"{stem}.lora_A.weight"]
        assert torch.equal(found[f"{stem}.lora_A.weight"], sent)


@pytest.mark.parametrize("error", [1e-6, 0.1])
@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_ten_rounds_with_recompression_stay_within_the_stated_error(
    name: str, error: float
) -> None:
    """Each round may lose `error` of the product, and no more than that adds up."""
    state: Any = BEFORE
    exact = {stem: np.zeros(co.SHAPES[stem]) for stem in STEMS}  # what is beside the factors
    may = dict.fromkeys(STEMS, 0.0)
    full, ranks = min(co.SHAPES["q"]), []
    for round_ in range(10):
        sent = [
            co.update(n, 10 * round_ + i, w)
            for i, (n, w) in enumerate(zip("abc", SIZES[:3], strict=True))
        ]
        state = value(name, sent, state, error=error)
        for stem in STEMS:
            exact[stem] = exact[stem] + cut(sent, stem)
            may[stem] += error * np.linalg.norm(exact[stem])
            lost = np.linalg.norm(co.whole(state, stem) - exact[stem])
            assert lost <= may[stem] * (1 + 1e-9)
            exact[stem] = exact[stem] - co.product(state["adapter"], stem)
        ranks.append(len(state["side"].tensors["q.lora_A.side"]))
    assert max(ranks) <= full
    if error > 0.01:
        assert min(ranks) < full, "something was left out"


# --- best factors ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [BEFORE, WITH_SIDE], ids=["first", "later"])
@pytest.mark.parametrize("cohort", COHORTS)
def test_flexlora_is_the_best_approximation_of_the_mean_of_products(
    cohort: str, before: Any
) -> None:
    sent = COHORTS[cohort]
    found = value("flexlora", sent, before)
    for stem in STEMS:
        wanted = best(cut(sent, stem), RANK)
        assert co.apart(co.product(found["adapter"], stem), wanted) < 1e-11
        down = found["adapter"].tensors[f"{stem}.lora_A.weight"].numpy()
        np.testing.assert_allclose(down @ down.T, np.eye(RANK), atol=1e-12)
    assert ("side" in found) == ("side" in before)
    if "side" in before:
        for n, t in before["side"].tensors.items():
            assert torch.equal(found["side"].tensors[n], t)
            assert found["side"].tensors[n].data_ptr() != t.data_ptr()


def test_flexlora_at_full_rank_is_the_mean_of_products() -> None:
    full = {"q": (7, 4), "k": (4, 9)}
    before = co.sections(99, shapes=full)
    sent = [
        co.update(n, i, w, shapes=full) for i, (n, w) in enumerate(zip(NAMES, SIZES, strict=True))
    ]
    found = value("flexlora", sent, before)
    for stem in STEMS:
        assert co.apart(co.product(found["adapter"], stem), cut(sent, stem)) < 1e-12


def test_components_of_rafloras_products_count_by_who_has_them() -> None:
    found = value("raflora", MIXED)
    for stem in STEMS:
        total = 0
        for i in range(RANK):
            having = [
                u for u in MIXED if len(u.sections["adapter"].tensors[f"{stem}.lora_A.weight"]) > i
            ]
            parts = [co.product(u.sections["adapter"], stem, rows=slice(i, i + 1)) for u in having]
            total = total + co.mean(parts, [u.weight for u in having])
        assert co.apart(co.product(found["adapter"], stem), best(total, RANK)) < 1e-11


def test_raflora_with_equal_ranks_is_flexlora() -> None:
    one, other = value("raflora", EQUAL), value("flexlora", EQUAL)
    for n, t in one["adapter"].tensors.items():
        assert float((t - other["adapter"].tensors[n]).abs().max()) < 1e-13


def test_high_ranks_fade_by_flexloras_weights_and_not_by_rafloras() -> None:
    """Everybody sends back what it was sent: raFLoRA makes the same of it, FlexLoRA less."""
    low = (RANK, 1, 1, 1)
    start = value("flexlora", EQUAL)

    def again(name: str) -> Any:
        sent = []
        for one, rank in zip(EQUAL, low, strict=True):
            some = {
                n: (t[:rank] if "lora_A" in n else t[:, :rank])
                for n, t in start["adapter"].tensors.items()
            }
            sections = {**start, "adapter": co.adapter(some)}
            sent.append(ClientUpdate(client=one.client, sections=sections, weight=one.weight))
        return value(name, sent, start)

    for stem in STEMS:
        whole = co.product(start["adapter"], stem)
        assert co.apart(co.product(again("raflora")["adapter"], stem), whole) < 1e-12
        first = best(whole, 1)
        wanted = first + 3 / 13 * (whole - first)
        assert co.apart(co.product(again("flexlora")["adapter"], stem), wanted) < 1e-12


@pytest.mark.parametrize("energy", [0.4, 0.7, 0.9, 1.0])
def test_florist_keeps_as_few_components_as_hold_the_energy(energy: float) -> None:
    found = value("florist", MIXED, energy=energy)
    for stem in STEMS:
        matrix = cut(MIXED, stem)
        s = np.linalg.svd(matrix)[1]
        counts = [k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= energy * (s**2).sum()]
        kept = min([*counts, RANK])
        assert co.apart(co.product(found["adapter"], stem), best(matrix, kept)) < 1e-11
        pair = found["adapter"].tensors
        assert not pair[f"{stem}.lora_B.weight"][:, kept:].any()
        rows = pair[f"{stem}.lora_A.weight"]
        assert float(torch.linalg.vector_norm(rows, dim=1).min()) > 0.9, "they train again"


@pytest.mark.parametrize("name", ["flexlora", "raflora", "florist"])
def test_components_that_nobody_sent_keep_a_row_to_train_on(name: str) -> None:
    found = value(name, [co.update("ann", 1, rank=2)])["adapter"].tensors
    for stem in STEMS:
        sent = BEFORE["adapter"].tensors[f"{stem}.lora_A.weight"]
        assert torch.equal(found[f"{stem}.lora_A.weight"][2:], sent[2:])
        assert not found[f"{stem}.lora_B.weight"][:, 2:].any()


# --- sums of factors ---------------------------------------------------------------------------


def padded(one: Any, name: str, otherwise: Any = None) -> Any:
    """A client's factor at the server's rank and scale; what it lacks is zero, or the server's."""
    pair, up = one.sections["adapter"], "lora_B" in name
    found = pair.tensors[name].numpy() * (pair.facts["scale"] / SCALE if up else 1)
    rest = RANK - (found.shape[1] if up else len(found))
    wide = ((0, 0), (0, rest)) if up else ((0, rest), (0, 0))
    filled = np.pad(found, wide)
    if otherwise is not None and rest:
        where = (slice(None), slice(-rest, None)) if up else slice(-rest, None)
        filled[where] = otherwise.numpy()[where]
    return filled


@pytest.mark.parametrize("before", [BEFORE, WITH_SIDE], ids=["first", "later"])
@pytest.mark.parametrize("cohort", COHORTS)
def test_the_mean_counts_what_was_not_sent_with_the_servers_copy(cohort: str, before: Any) -> None:
    sent = COHORTS[cohort]
    found = value("mean", sent, before)
    for n, t in before["adapter"].tensors.items():
        wanted = co.mean([padded(one, n, t) for one in sent], SIZES)
        np.testing.assert_allclose(found["adapter"].tensors[n].numpy(), wanted, rtol=1e-13)
    assert {n: s.facts for n, s in found.items()} == {n: s.facts for n, s in before.items()}


def test_hetlora_pads_with_zeros_and_weighs_by_norms() -> None:
    found = value("hetlora", MIXED)
    norms = [
        np.sqrt(sum(np.linalg.norm(co.product(u.sections["adapter"], stem)) ** 2 for stem in STEMS))
        for u in MIXED
    ]
    for n in BEFORE["adapter"].tensors:
        wanted = co.mean([padded(one, n) for one in MIXED], norms)
        np.testing.assert_allclose(found["adapter"].tensors[n].numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(head(found), co.mean([head(u.sections) for u in MIXED], SIZES))


def test_hetlora_leaves_no_component_dead_and_needs_no_product() -> None:
    zero = {n: (0 * t if "lora_B" in n else t) for n, t in co.factors(3, 2).items()}
    sections = {**co.sections(3), "adapter": co.adapter(zero)}
    sent = [ClientUpdate(client=c, sections=sections, weight=2.0) for c in "ab"]
    found = value("hetlora", sent)["adapter"].tensors
    for stem in STEMS:
        sent_down = BEFORE["adapter"].tensors[f"{stem}.lora_A.weight"]
        assert torch.equal(found[f"{stem}.lora_A.weight"][2:], sent_down[2:])
        assert torch.equal(found[f"{stem}.lora_A.weight"][:2], zero[f"{stem}.lora_A.weight"])
        assert not found[f"{stem}.lora_B.weight"].any()


@pytest.mark.parametrize("ridge", [1e-9, 0.01, 100.0])
@pytest.mark.parametrize("cohort", COHORTS)
def test_lora_fair_solves_for_the_change_of_b(cohort: str, ridge: float) -> None:
    """Least squares on the stacked system [A^T; root(ridge) I] ΔB^T = [rest; 0]."""
    sent = COHORTS[cohort]
    found, plain = value("lora_fair", sent, ridge=ridge), value("mean", sent)
    for stem in STEMS:
        down = plain["adapter"].tensors[f"{stem}.lora_A.weight"].numpy()
        up = plain["adapter"].tensors[f"{stem}.lora_B.weight"].numpy()
        rest = (mean(sent, stem) / SCALE - up @ down).T
        system = np.vstack([down.T, np.sqrt(ridge) * np.eye(RANK)])
        aim = np.vstack([rest, np.zeros((RANK, rest.shape[1]))])
        change = np.linalg.lstsq(system, aim, rcond=None)[0].T
        kept = found["adapter"].tensors[f"{stem}.lora_A.weight"].numpy()
        np.testing.assert_allclose(kept, down, rtol=1e-13)
        new = found["adapter"].tensors[f"{stem}.lora_B.weight"].numpy()
        np.testing.assert_allclose(new, up + change, rtol=1e-6, atol=1e-9)


def ffa(client: str, seed: int, weight: float, rank: int = RANK) -> ClientUpdate:
    """A client that trained B of what it was sent."""
    own = co.update(client, seed, weight, rank=rank).sections
    sent = BEFORE["adapter"].tensors
    pair = {n: (sent[n][:rank] if "lora_A" in n else t) for n, t in own["adapter"].tensors.items()}
    sections = {**own, "adapter": co.adapter(pair)}
    return ClientUpdate(client=client, sections=sections, weight=weight)


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 4, 2)])
def test_fedsvd_is_the_mean_of_products_with_orthonormal_rows(ranks: Any) -> None:
    sent = [ffa(c, i, SIZES[i], r) for i, (c, r) in enumerate(zip("abc", ranks, strict=True))]
    found = value("fedsvd", sent)
    for stem in STEMS:
        assert co.apart(co.product(found["adapter"], stem), mean(sent, stem)) < 1e-12
        down = found["adapter"].tensors[f"{stem}.lora_A.weight"].numpy()
        np.testing.assert_allclose(down @ down.T, np.eye(RANK), atol=1e-12)


def test_fedsvd_is_not_for_clients_that_train_a() -> None:
    with pytest.raises(RoundError, match=r'client \'ann\' sent another q\.lora_A.*trains = "ffa"'):
        value("fedsvd", EQUAL)


# --- a module that only some have, as in `split` ------------------------------------------------


LOWRANK = ("mean", "fedex", "flora", "flexlora", "raflora", "florist", "hetlora", "lora_fair")
ROBUST = ("median", "trimmed_mean", "geometric_median", "norm_clip")


def without(one: ClientUpdate, stem: str) -> ClientUpdate:
    pair = {n: t for n, t in one.sections["adapter"].tensors.items() if not n.startswith(stem)}
    sections = {**one.sections, "adapter": co.adapter(pair)}
    return ClientUpdate(client=one.client, sections=sections, weight=one.weight)


@pytest.mark.parametrize("name", LOWRANK + ROBUST)
def test_who_did_not_send_a_module_counts_with_the_servers(name: str) -> None:
    sent = [without(EQUAL[0], "q"), *EQUAL[1:]]
    as_if = {**EQUAL[0].sections["adapter"].tensors}
    as_if |= {n: t for n, t in BEFORE["adapter"].tensors.items() if n.startswith("q")}
    sections = {**EQUAL[0].sections, "adapter": co.adapter(as_if)}
    same = [ClientUpdate(client="ann", sections=sections, weight=3.0), *EQUAL[1:]]
    one, other = value(name, sent), value(name, same)
    for stem in STEMS:
        assert co.apart(co.whole(one, stem), co.whole(other, stem)) < 1e-12


@pytest.mark.parametrize("name", LOWRANK + ROBUST)
def test_what_nobody_sent_is_as_it_was(name: str) -> None:
    found = value(name, [without(one, "q") for one in EQUAL], WITH_SIDE)
    for section in ("adapter", "side"):
        for n, t in WITH_SIDE[section].tensors.items():
            if n.startswith("q"):
                assert torch.equal(found[section].tensors[n], t), n


def test_float32_factors_are_exact_to_the_error_that_is_stated() -> None:
    """The means are rounded, and the rest is taken from what they are rounded to."""
    before = co.sections(99, dtype=torch.float32)
    sent = [
        co.update(n, i, w, dtype=torch.float32)
        for i, (n, w) in enumerate(zip(NAMES, SIZES, strict=True))
    ]
    found = value("fedex", sent, before)
    for stem in STEMS:
        assert co.apart(co.whole(found, stem), mean(sent, stem)) < 1.1e-6
    assert {t.dtype for s in found.values() for t in s.tensors.values()} == {torch.float32}


def test_a_section_is_what_the_protocol_says() -> None:
    found: dict[str, Section] = value("fedex", EQUAL, WITH_SIDE)
    assert list(found) == ["adapter", "head", "side"]
    assert found["side"].kind == "lowrank"
