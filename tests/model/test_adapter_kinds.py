"""Every kind of adapter that the docs name: whole runs in every mode and task, two families."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from triskel.config.job import MODE_NAMES, Job
from triskel.config.sections import VIRTUAL, AdapterKind
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.model.flops import count
from triskel.training.worker import WHOLE

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
FAMILIES = ("llama", "mistral")
ON = {"vera": ("llama",), "full": ("mistral",), "bitfit": ("gpt2",),
      **dict.fromkeys(VIRTUAL, ("gpt2",))}  # fmt: skip
"""The models of kinds that are tried on one; PEFT's own kinds are alike, and are tried on both."""
TASKS = ("classify", "causal")
CASES = [
    (kind, family, task)
    for n, kind in enumerate(get_args(AdapterKind))
    for m, family in enumerate(ON.get(kind, FAMILIES))
    for t, task in enumerate(TASKS)
    if kind in ON or (n + m + t) % 2 == 0
]
"""Every kind meets both tasks, and both models where it is tried on two."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for family in (*FAMILIES, "gpt2"):
        SMALL.save_model(folder / family, family)
    SMALL.save_rows(folder / "rows.csv", 40)
    return folder


def job(room: Path, family: str, kind: str, task: str) -> Job:
    targets = ("k_proj", "v_proj", "down_proj") if kind == "ia3" else ("q_proj", "v_proj")
    targets = () if kind in {"full", "bitfit", *VIRTUAL} else targets
    return SMALL.job(
        room / family, room / "rows.csv", task=task,
        adapter={"kind": kind, "targets": targets}, train={"lr": 0.01},
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "family", "task"), CASES)
def test_every_kind_runs_in_every_mode(
    kind: str, family: str, task: str, room: Path, tmp_path: Path
) -> None:
    asked = job(room, family, kind, task)
    torch.set_num_threads(1)
    found = run(
        asked, Request(baselines=("base",)), tmp_path / "run", LocalEngine(asked), SMALL.watch
    )
    assert set(found["modes"]) == set(MODE_NAMES)
    assert not found["skipped"]
    for name, mode in found["modes"].items():
        assert mode["totals"]["client_flops"] > 0, name
        assert mode["final"]["loss"] != found["baselines"]["base"]["loss"], name


@pytest.mark.parametrize("kind", ["dora", "loha"])
def test_products_of_factors_are_a_constant_of_each_pass(kind: str, room: Path) -> None:
    *_, constant, _ = count(
        SMALL.resources(job(room, "llama", kind, "classify")).body(), WHOLE
    ).flops
    assert constant > 0
    *_, none, _ = count(SMALL.resources(job(room, "llama", "lora", "classify")).body(), WHOLE).flops
    assert none == 0
