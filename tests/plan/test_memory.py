"""What training keeps in memory at once is known before it begins, and so is what is free."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.config.job import Job, ModeName
from triskel.experiment import stage_memory
from triskel.experiment.resources import prepare
from triskel.experiment.tokens import Share
from triskel.model.compute_choice import PathName
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.plan import memory as room
from triskel.plan.memory import free_memory, kept
from triskel.training.mode_setting import mode_of

here = Path(__file__)
tiny = SimpleNamespace(**runpy.run_path(str(here.parents[1] / "helpers" / "tiny.py")))
small = SimpleNamespace(**runpy.run_path(str(here.parents[1] / "helpers" / "small.py")))
TEXTS, TOKENS, CLIENTS = 4, 24, 6


class Live:
    """Bytes that autograd keeps at once, storages of the base model left out."""

    def __init__(self, body: SharedModel) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in body.blocks.model.parameters()}
        self.uses: dict[int, int] = {}
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(self, tensor.detach())  # attached, an output would keep its own graph

    def change(self, storage: torch.UntypedStorage, by: int) -> None:
        place = storage.data_ptr()
        before = self.uses.get(place, 0)
        self.uses[place] = before + by
        if place not in self.own and 0 in {before, before + by}:
            self.now += by * storage.nbytes()
            self.most = max(self.most, self.now)


class Held:
    """A tensor that autograd keeps."""

    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        live.change(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.live.change(self.tensor.untyped_storage(), -1)


def most_kept(job: Job, body: SharedModel) -> int:
    """Play a round of the job's mode and return the most bytes that were kept at once."""
    shares = {
        f"client-{i}": Share(
            train=tiny.examples(TEXTS, seed=i, short=TOKENS, long=TOKENS),
            test=tiny.examples(1, seed=i),
        )
        for i in range(CLIENTS)
    }
    public = tiny.examples(TEXTS, seed=99, short=TOKENS, long=TOKENS)
    resources = tiny.resources(job, body, shares, public)
    mode = mode_of(resources.setting(job.mode, tiny.ignore))
    live = Live(body)
    with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda held: held.tensor):
        tiny.play(mode, job, [resources.worker(c, tiny.ignore) for c in resources.clients])
    assert not live.now
    return live.most


@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("params", {}),
        ("logits", {}),
        ("logits", {"logits": {"mix": 1.0}}),
        ("split", {}),
        ("split", {"split": {"wave": 2, "cut": (1, 3)}}),
        ("split", {"split": {"labels": "shared", "cut": (2, 4)}}),
        ("split", {"adapter": {"blocks": "2-3"}}),
        ("params", {"adapter": {"kind": "prompt", "tokens": 8}}),
        ("split", {"adapter": {"kind": "ptuning", "tokens": 8}, "split": {"cut": (1, 3)}}),
    ],
)
def test_what_is_kept_at_once_is_known_before(
    mode: ModeName, options: dict[str, Any], path: PathName, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny.job(mode, **options, train={"batch": TEXTS, "max_tokens": TOKENS, "epochs": 1})
    body = tiny.body("llama", job)
    most = TEXTS * (TOKENS + body.blocks.ahead)
    monkeypatch.setattr(room, "MOST", most)  # one client's batch is all that is joined
    monkeypatch.setattr("triskel.training.joining.MOST", most)
    monkeypatch.setattr("triskel.modes.split.server.MOST", most)
    body.use(Choice(path=path, join=512))
    found = kept(body, Costs(body), job, [mode], CLIENTS)
    real = most_kept(job, body)
    assert 0.95 * real < found < 1.1 * real, found / real


def test_a_wave_that_does_not_fit_computes_its_activations_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for any one step of the three, but not for a wave of all twelve clients."""
    model = small.save_model(tmp_path / "model", num_hidden_layers=15)
    rows = small.save_rows(tmp_path / "rows.csv", 80)
    said: list[str] = []

    def made(mode: ModeName, wave: int = 0) -> Job:
        job = small.job(model, rows, mode=mode, clients={"count": 12}, split={"wave": wave})
        way = job.model.model_copy(update={"compute": "reference"})
        return job.model_copy(update={"model": way})

    def recomputes(mode: ModeName, wave: int = 0) -> bool:
        job = made(mode, wave)
        modes = () if mode == "params" else ("params", job.mode)
        resources = prepare(job, lambda event: said.append(str(event["text"])), modes=modes)
        return resources.body().choice.recompute

    resources = prepare(made("params"), small.watch)
    step = kept(
        resources.body(), resources.models.costs(resources.body()), resources.job, ["params"], 12
    )
    monkeypatch.setattr(stage_memory, "free_memory", lambda _: 3 * step)
    assert not recomputes("params")
    assert not recomputes("split", wave=1)
    assert not said
    assert recomputes("split")
    assert not any("memory may run out" in text for text in said)
    monkeypatch.setattr(stage_memory, "free_memory", lambda _: 1000.0)
    assert recomputes("split")
    assert any("set split.wave" in text for text in said)


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group(folder: Path, names: tuple[str, str, str], most: str, used: int, idle: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 9\n{names[2]} {idle}\nlast 1\n")


@pytest.mark.parametrize(
    ("own", "groups", "wanted"),
    [
        ("0::/\n", {}, 4096_000),
        ("0::/a/b\n", {"": (V2, "max", 1, 0), "a/b": (V2, "5000", 4500, 100)}, 600),
        ("0::/a/b\n", {"a": (V2, "900", 700, 0), "a/b": (V2, "5000", 700, 0)}, 200),
        ("0::/a\n", {"a": (V2, "900", 950, 0)}, 0),
        ("0::/a\n", {"a": (V2, "max", 9, 0)}, 4096_000),
        ("3:cpu:/\n2:x,memory:/c\n0::/\n", {"memory/c": (V1, "800", 300, 50)}, 550),
        ("2:memory:/gone\n", {"memory": (V1, "800", 300, 0)}, 500),
        ("2:memory:/\n", {"memory": (V1, "9223372036854771712", 300, 0)}, 4096_000),
    ],
)
def test_free_memory_is_what_the_machine_and_every_group_leave(
    own: str,
    groups: dict[str, tuple[tuple[str, str, str], str, int, int]],
    wanted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, facts in groups.items():
        group(tmp_path / "groups" / name, *facts)
    (tmp_path / "own").write_text(own)
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(room, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(room, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    assert free_memory(torch.device("cpu")) == wanted
    monkeypatch.setattr(room, "OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "none")
    assert free_memory(torch.device("cpu")) == math.inf


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert free_memory(torch.device("cuda")) == 140


def test_free_memory_here_is_a_number_of_bytes() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 1e15
