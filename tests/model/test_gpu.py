"""What a GPU computes is what the CPU computes. Needs one, and says so where there is none."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from triskel.data.batches import batch_of
from triskel.experiment.rounds import play
from triskel.experiment.stages import stage_of
from triskel.experiment.tokens import Share
from triskel.model.hidden_cache import HiddenCache
from triskel.model.shared import Choice, SharedModel
from triskel.plan.memory import free_memory
from triskel.training.autotune import choose
from triskel.training.loop import label_loss
from triskel.types import Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def on(
    device: str, path: str, *, flash: int = 1, adapter: dict[str, str | float] | None = None
) -> SharedModel:
    body = tiny.body("llama", tiny.job(adapter=adapter or {}))
    body.blocks.model.to(device)
    body.use(Choice(path="fast" if path == "fast" else "reference", flash=flash, join=10_000))
    return body


@pytest.mark.parametrize("flash", [1, 10_000])
@pytest.mark.parametrize("path", ["reference", "fast"])
def test_losses_and_gradients_are_those_of_the_cpu(path: str, flash: int) -> None:
    batch = batch_of(tiny.examples(6), range(6))
    found: list[Tensors] = []
    for device, way in (("cpu", "reference"), ("cuda", path)):
        body = on(device, way, flash=flash)
        leaves = body.parameters(tiny.random_like(body.initial, 1))
        loss = label_loss(body.logits(leaves, batch), batch)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        found.append({n: s.cpu() for n, s in zip(leaves, slopes, strict=True)})
    for name, wanted in found[0].items():
        gap = float((found[1][name] - wanted).norm() / wanted.norm())
        assert gap < 1e-3, (name, gap)


def test_library_blocks_computed_twice_draw_the_same_dropout() -> None:
    batch = batch_of(tiny.examples(6), range(6))
    found: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        body = on("cuda", "reference", adapter={"dropout": 0.5})
        body.use(Choice(recompute=recompute))
        leaves = body.parameters(tiny.random_like(body.initial, 1))
        body.dropout(3)
        loss = label_loss(body.logits(leaves, batch), batch)
        body.dropout(None)
        found.append(list(torch.autograd.grad(loss, list(leaves.values()))))
    for once, twice in zip(*found, strict=True):
        assert torch.allclose(once, twice, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_every_mode_plays_on_a_gpu(mode: str, path: str, tmp_path: Path) -> None:
    job = tiny.job(mode, rounds=2, adapter={"blocks": "2-3"}, split={"cut": (3, 4)})
    ends: list[Tensors] = []
    for device in ("cpu", "cuda"):
        body = on(device, path, adapter={"blocks": "2-3"})
        body.prefix = HiddenCache()
        shares = {
            name: Share(train=tiny.examples(6, seed=s), test=tiny.examples(3, seed=s + 9))
            for s, name in enumerate(("ann", "bob"))
        }
        stage = stage_of(mode, tiny.resources(job, body, shares, tiny.examples(4)), tiny.ignore)
        engine = tiny.LocalEngine(job)
        state = play(stage, engine, folder=tmp_path / device, watch=tiny.ignore).state
        served = stage.mode.server_model(state)
        assert served is not None
        ends.append(served)
    for name, wanted in ends[0].items():
        assert float((ends[1][name].cpu() - wanted).norm() / wanted.norm()) < 1e-2, name


def test_a_choice_is_measured_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triskel.training.autotune.WORTH_TIMING", 0)
    body = on("cuda", "reference")
    choice = choose(body, "auto", cache=tmp_path, say=lambda _: None)
    assert choice.path in {"fast", "reference"}
    assert 0 < free_memory(body.device) < 1e13
