"""Figures in the docs are those of `benchmarks/results`."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = sorted(path.stem for path in (RESULTS / "params").glob("*.json"))
SUMS = ("d4096_k10_r16", "d2048_k10_r8", "d576_k10_r8", "d576_k100_r16")


def figures(name: str) -> Mapping[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def told(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def spread(figure: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{figure[k]:.{digits}f}" for k in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def of_sums() -> Iterator[str]:
    found = figures("aggregate")
    for name, digits in zip(SUMS, (0, 0, 1, 2), strict=True):
        took, apart = found[f"{name}_seconds"]["median"], found[f"{name}_apart"]["median"]
        yield f" | {spread(found[name], digits)} | {1e3 * took:.1f} | {apart:.0e} |"
    state, grown = (found[f"stream_{k}_mb"]["median"] for k in ("state", "grown"))
    yield f"updates of {state:.1f} MB into a mean took {grown:.1f} MB"


def of_codecs() -> Iterator[str]:
    for row in figures("codecs").values():
        rest = [f"{row[k]:.3f}" if k in row else "–" for k in ("lost", "owed")]
        yield f" | {row['of_fp32']:.4f} | {row['error']:.3f} | {' | '.join(rest)} |"


def of_seeds() -> Iterator[str]:
    found = figures("seeds")
    yield f"{found['numbers']['median']:,.0f} trained numbers"
    yield f"take {spread(found['forward_over_inference'], 3)} times the memory"
    yield f"same adapter {spread(found['backward_over_inference'], 3)}"
    yield f"{spread(found['pass_ms'], 2)} ms of one thread"
    yield f"{spread(found['rebuild_s'], 1)} s."


@pytest.mark.parametrize("rows", [of_sums, of_codecs, of_seeds], ids=lambda f: f.__name__)
def test_performance_tells_what_was_measured(rows: Callable[[], Iterator[str]]) -> None:
    page = told("performance.md")
    assert [row for row in rows() if row not in page] == []


def test_sums_of_products_are_as_fast_as_they_must_be() -> None:
    found = figures("aggregate")
    least = dict(zip(SUMS, (300, 100, 15, 1 / 1.1), strict=True))
    assert {n: found[n]["median"] for n in SUMS if found[n]["median"] < least[n]} == {}
    assert found["stream_states"]["median"] <= 4


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_tells_what_was_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "runs"), *sys.path])
    script = "params_attack" if name == "attack" else "params"
    lines = runpy.run_path(str(ROOT / "runs" / f"{script}.py"))["lines"]
    found = json.loads((RESULTS / "params" / f"{name}.json").read_text(encoding="utf-8"))
    assert "\n".join(lines(found)) in told("params-study.md")
