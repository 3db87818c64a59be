"""Changes are counted by the step, whoever took more of them."""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from triskel.aggregate.mean import Mean
from triskel.aggregate.normalised import FedNova
from triskel.errors import RoundError

co = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "cohorts.py")))
BEFORE = co.sections(9)
NAME = "q.lora_B.weight"


def at(found: Any, name: str = NAME) -> Any:
    return found["adapter"].tensors[name].numpy()


def test_it_is_the_papers_formula() -> None:
    sent = [co.update(c, i, w, steps=t) for i, (c, w, t) in enumerate([("a", 3.0, 2), ("b", 1, 7)])]
    found = co.folded(FedNova(), sent, BEFORE)
    x, p, tau = at(BEFORE), np.array([0.75, 0.25]), np.array([2, 7])
    slopes = [(at(one.sections) - x) / t for one, t in zip(sent, tau, strict=True)]
    wanted = x + (p @ tau) * sum(w * d for w, d in zip(p, slopes, strict=True))
    np.testing.assert_allclose(at(found), wanted, rtol=0, atol=1e-12)


def test_with_equal_steps_it_is_the_mean() -> None:
    sent = [co.update(c, i, i + 1.0, steps=4) for i, c in enumerate("abc")]
    one, other = (co.folded(rule, sent, BEFORE) for rule in (FedNova(), Mean()))
    for name in one["adapter"].tensors:
        np.testing.assert_allclose(at(one, name), at(other, name), rtol=0, atol=1e-12)


def test_clients_of_lower_rank_move_what_they_have() -> None:
    sent = [co.update("a", 1, steps=2, rank=2), co.update("b", 2, steps=2)]
    found = co.folded(FedNova(), sent, BEFORE)
    rest = (at(sent[1].sections)[:, 2:] + at(BEFORE)[:, 2:]) / 2
    np.testing.assert_allclose(at(found)[:, 2:], rest, rtol=0, atol=1e-12)


def test_an_update_of_no_steps_is_refused() -> None:
    with pytest.raises(RoundError, match="a positive number of steps, got 0"):
        FedNova().add(FedNova().zero(), co.update("a", 1, steps=0), BEFORE)
    with pytest.raises(RoundError, match="no client returned an update"):
        FedNova().value(FedNova().zero(), BEFORE)
