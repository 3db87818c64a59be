"""A base in 4 bit: what is computed, what trains, what is counted, and what is refused."""

import importlib.util
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from triskel.config.sections import Adapter, Model
from triskel.errors import ModelError
from triskel.export.adapters import read_adapter, save_adapter
from triskel.model import quantised
from triskel.model.fast import why_not
from triskel.model.flops import Piece, count
from triskel.model.load import load
from triskel.model.peft_folder import fingerprint
from triskel.model.shared import SharedModel
from triskel.training.loop import StepId
from triskel.training.worker import WHOLE

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
here = importlib.util.find_spec("bitsandbytes") is not None
needed = pytest.mark.skipif(not here, reason="needs bitsandbytes: `make quantised` has it")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = small.save_model(tmp_path_factory.mktemp("quantised") / "model", **WIDE)
    return made


def body_of(folder: Path, how: str = "nf4", kind: str = "lora", head: str = "classes") -> Any:  # noqa: ANN401 - a body
    model = Model.model_validate({
        "path": str(folder), "dtype": "float32", "device": "cpu", "quantise": how,
    })  # fmt: skip
    adapter = Adapter.model_validate({"kind": kind, "rank": 2, "targets": ("q_proj", "down_proj")})
    return load(
        str(folder), model, adapter, head=head, classes=3 if head == "classes" else 0, seed=5
    )


def batch_of(body: SharedModel, task: str = "classify") -> Any:  # noqa: ANN401 - a batch
    ann = tiny.worker("ann", tiny.job(), body, tiny.examples(4, task))
    return next(iter(ann.batches(StepId("ann", 1), 1)))


def dequantised(body: SharedModel, folder: Path) -> SharedModel:
    """Return a plain body whose linear maps are what few bits left of them."""
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - may be missing

    plain = body_of(folder, "none", body.adapter.kind)
    modules = dict(plain.blocks.model.named_modules())
    for name, module in body.blocks.model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            modules[name].weight.data = dequantize_4bit(weight.data, weight.quant_state)
        elif getattr(weight, "dtype", None) == torch.int8:
            modules[name].weight.data = weight.data * (weight.SCB[:, None] / 127)
    return plain


@needed
@pytest.mark.parametrize(
    ("how", "apart", "kind"),
    [
        *(("nf4", 1e-4, kind) for kind in ("lora", "dora", "ia3", "vera", "ptuning")),
        *(("int8", 0.05, kind) for kind in ("lora", "ia3", "loha", "lokr", "vera", "prompt")),
    ],
)
def test_it_computes_and_trains_on_what_few_bits_left_of_the_weights(
    how: str, apart: float, kind: str, folder: Path
) -> None:
    """In 8 bit what is multiplied is rounded as well."""
    body = body_of(folder, how, kind)
    plain = dequantised(body, folder)
    batch, tensors = batch_of(body), tiny.random_like(body.initial, 3, std=0.1)
    slopes: list[dict[str, torch.Tensor]] = []
    logits: list[torch.Tensor] = []
    for one in (body, plain):
        with torch.no_grad():
            one.logits(one.parameters(tensors), batch)  # as a test between two rounds does
        parameters = one.parameters(tensors)
        out = one.logits(parameters, batch)
        one.objective.loss(out, batch).backward()
        logits.append(out.detach())
        slopes.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
    assert float((logits[0] - logits[1]).norm() / logits[1].norm()) < apart
    assert slopes[0].keys() == set(tensors)
    assert tiny.apart(*slopes) < 4 * apart


@needed
@pytest.mark.parametrize(("how", "times"), [("nf4", 5), ("int8", 3)])
def test_flops_are_those_of_the_plain_model_and_memory_is_less(
    how: str, times: int, folder: Path
) -> None:
    body, plain = body_of(folder, how), body_of(folder, "none")
    for piece in (WHOLE, Piece("forward")):
        assert count(body, piece).flops == count(plain, piece).flops
    weights = [
        sum(quantised.size(p) for p in one.blocks.list.parameters() if not p.requires_grad)
        for one in (body, plain)
    ]
    assert weights[0] < weights[1] / times
    numbers = [
        sum(quantised.numbers(p) for p in one.blocks.model.parameters()) for one in (body, plain)
    ]
    assert numbers[0] == numbers[1]
    assert why_not(body.blocks, body.adapter) == "its base is held in fewer bits (model.quantise)"


@needed
def test_another_seed_starts_where_a_model_that_is_loaded_with_it_starts(folder: Path) -> None:
    body, fresh = body_of(folder), body_of(folder)
    body.reseed(9)
    assert not tiny.equal(body.initial, fresh.initial)
    body.reseed(5)
    assert tiny.equal(body.initial, fresh.initial)


@needed
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_an_adapter_of_it_is_saved_and_is_of_another_base(
    how: str, folder: Path, tmp_path: Path
) -> None:
    body = body_of(folder, how)
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, ("a", "b", "c"))
    body.logits(body.parameters(tensors), batch_of(body))
    assert tiny.equal(read_adapter(tmp_path / "a", body), tensors)
    assert fingerprint(body_of(folder, how)) == fingerprint(body)
    with pytest.raises(ModelError, match="was trained on another base model"):
        read_adapter(tmp_path / "a", body_of(folder, "none"))
    assert f"held in fewer bits ({how})" in (tmp_path / "a" / "README.md").read_text()


@needed
def test_the_head_of_a_classifier_and_of_a_writer_stay_as_they_are(folder: Path) -> None:
    for head in ("classes", "vocabulary"):
        body = body_of(folder, head=head)
        assert all(p.dtype == torch.float32 for p in body.blocks.head.parameters())


def test_what_a_base_in_few_bits_cannot_do_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(model: dict[str, object], **adapter: object) -> None:
        tiny.job(model={"quantise": "nf4", **model}, adapter=adapter)

    with pytest.raises(ValidationError, match="not with full, which needs the weights themselves"):
        job({}, kind="full")
    with pytest.raises(ValidationError, match="not in float64"):
        job({"dtype": "float64"})
    with pytest.raises(ValidationError, match=r"has no fused blocks: model\.compute must be"):
        job({"compute": "fast"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes: pip install \"triskel\[quantised\]"):
        body_of(folder)
