"""The fused blocks against the library's, and many parties in one pass against one by one."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.config.sections import Train
from triskel.data.batches import batch_of
from triskel.errors import ModelError, TrainingError
from triskel.model.fast import MAX_SIDE_BY_SIDE
from triskel.model.shared import Choice, SharedModel
from triskel.model.vocab_loss import ROWS, vocabulary_losses
from triskel.training.loop import LossTerm, StepId, TrainStep, label_loss
from triskel.training.trainer import Trainer
from triskel.types import Batch, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("llama", "mistral", "qwen2")
FAR = 10**9


def pair(
    family: str,
    task: str = "classify",
    **sections: Any,  # noqa: ANN401 - of the job
) -> tuple[SharedModel, SharedModel]:
    """Return the same model twice, on the reference path and on the fast one.

    Where all of it can be, in float64: random weights are large, and make float32 coarse.
    """
    job = tiny.job(task=task, **sections)
    wide = {"dtype": torch.float64, "wide": True} if family == "llama" else {}
    slow, quick = tiny.body(family, job, **wide), tiny.body(family, job, **wide)
    quick.use(Choice(path="fast", flash=FAR, join=FAR))
    return slow, quick


def slopes(body: SharedModel, tensors: Tensors, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = body.parameters(tensors)
    logits = body.logits(leaves, batch)
    loss = label_loss(logits, batch)
    found = torch.autograd.grad(loss, list(leaves.values()))
    return logits.detach(), dict(zip(leaves, found, strict=True))


def close(found: Tensors, wanted: Tensors) -> None:
    """Assert that tensors are norm-wise equal."""
    assert set(found) == set(wanted)
    least = 1e-6 * float(torch.stack([t.norm() for t in wanted.values()]).norm())
    for name, tensor in wanted.items():
        within = 1e-9 if tensor.dtype == torch.float64 else 1e-4
        gap = float((found[name] - tensor).norm() / tensor.norm().clamp(min=least))
        assert gap < within, (name, gap)


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize(
    "adapter",
    [
        {"targets": ("q_proj", "v_proj")},
        {"targets": EVERY},
        {"targets": ("k_proj", "up_proj"), "blocks": "1-2"},
        {"targets": ("o_proj", "down_proj"), "kind": "rslora"},
    ],
    ids=["usual", "every", "some", "rslora"],
)
@pytest.mark.parametrize("flash", [FAR, 1])
def test_fused_blocks_are_the_librarys(
    family: str, task: str, adapter: dict[str, Any], flash: int
) -> None:
    slow, quick = pair(family, task, adapter=adapter)
    quick.use(Choice(path="fast", flash=flash))
    tensors = tiny.random_like(slow.initial, 3)
    batch = batch_of(tiny.examples(5, task, seed=2), range(5))
    wanted, found = slopes(slow, tensors, batch), slopes(quick, tensors, batch)
    close({"logits": found[0]}, {"logits": wanted[0]})
    close(found[1], wanted[1])


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_any_range_of_fused_blocks_is_the_joined_model(task: str) -> None:
    _, quick = pair("llama", task)
    leaves = quick.parameters(tiny.random_like(quick.initial, 3))
    batch = batch_of(tiny.examples(4, task), range(4))
    with torch.no_grad():
        wanted = quick.logits(leaves, batch)
        for low in range(tiny.LAYERS + 1):
            for high in range(low, tiny.LAYERS + 1):
                h = quick.bottom(leaves, batch, low)
                u = quick.middle(leaves, h, batch.lengths, low=low, high=high)
                assert torch.equal(quick.top(leaves, u, batch, high), wanted), (low, high)


def test_activations_computed_twice_give_the_same_gradients() -> None:
    _, quick = pair("llama")
    tensors = tiny.random_like(quick.initial, 3)
    batch = batch_of(tiny.examples(4), range(4))
    kept: list[int] = []

    def measured(*, recompute: bool) -> dict[str, Tensor]:
        quick.use(Choice(path="fast", flash=FAR, recompute=recompute))
        size = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        leaves = quick.parameters(tensors)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss = label_loss(quick.logits(leaves, batch), batch)
        kept.append(size)
        found = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    plain, twice = measured(recompute=False), measured(recompute=True)
    assert all(torch.equal(plain[n], twice[n]) for n in plain)
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize(
    ("family", "adapter", "why"),
    [
        ("gpt2", {}, "gpt2 has no fused blocks"),
        ("llama", {"kind": "dora"}, "not plain LoRA"),
        ("llama", {"dropout": 0.1}, "not plain LoRA"),
    ],
)
def test_what_has_no_fused_blocks_is_refused(
    family: str, adapter: dict[str, Any], why: str
) -> None:
    body = tiny.body(family, tiny.job(adapter=adapter))
    with pytest.raises(ModelError, match=why):
        body.use(Choice(path="fast"))
    assert body.choice.path == "reference"


def test_fusing_weights_copies_none_and_changes_none() -> None:
    slow, quick = pair("llama")
    plain = dict(slow.blocks.model.named_parameters())
    fused = dict(quick.blocks.model.named_parameters())
    assert plain.keys() == fused.keys()
    assert all(torch.equal(plain[n], fused[n]) for n in plain)
    layer = quick.blocks.list[0].self_attn
    assert (
        layer.q_proj.base_layer.weight.untyped_storage().data_ptr()
        == layer.k_proj.weight.untyped_storage().data_ptr()
    )


# --- many parties in one pass -----------------------------------------------------------------


def crew(body: SharedModel, sizes: Sequence[int], task: str) -> list[TrainStep]:
    """Return the first step of parties that have all drawn other tensors and other texts."""
    made: list[TrainStep] = []
    for party, size in enumerate(sizes):
        trainer = Trainer(
            body, tiny.random_like(body.initial, 10 + party), Train(max_grad_norm=0.5), 0.01
        )
        texts = tiny.examples(size, task, seed=20 + party, long=5 + party)
        terms = [LossTerm(batch_of(texts, range(size)))]
        made.append(TrainStep(trainer, terms, StepId(f"c{party}", 1), 0, 0))
    return made


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), EVERY], ids=["usual", "every"])
@pytest.mark.parametrize("sizes", [(3, 3), (1, 4, 2)])
def test_one_pass_is_one_by_one(task: str, targets: Sequence[str], sizes: Sequence[int]) -> None:
    slow, quick = pair("llama", task, adapter={"targets": targets})
    together, apart = crew(quick, sizes, task), crew(slow, sizes, task)
    for one in apart:
        one.run()
    first, *others = together
    first.run(others)
    for joined, alone in zip(together, apart, strict=True):
        assert joined.value == pytest.approx(alone.value, rel=1e-5)
        # AdamW's first step is lr times the sign of a gradient: compare what it took in
        for name, leaf in joined.trainer.parameters.items():
            start = tiny.random_like(quick.initial, 10 + int(joined.where.client[1:]))[name]
            wanted = alone.trainer.parameters[name].detach() - start
            assert float((leaf.detach() - start - wanted).norm() / wanted.norm()) < 1e-2, name


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_gradients_of_one_pass_are_those_of_each_party_alone(task: str) -> None:
    slow, quick = pair("llama", task, adapter={"targets": EVERY})
    tensors = [tiny.random_like(quick.initial, s) for s in (1, 2, 3)]
    batches = [batch_of(tiny.examples(n, task, seed=n), range(n)) for n in (2, 5, 1)]
    leaves = [quick.parameters(one) for one in tensors]
    losses = [
        label_loss(z, b) for z, b in zip(quick.together(leaves, batches), batches, strict=True)
    ]
    torch.autograd.backward(losses)
    for one, mine, batch in zip(tensors, leaves, batches, strict=True):
        close({n: p.grad for n, p in mine.items() if p.grad is not None},
              slopes(slow, one, batch)[1])  # fmt: skip


def test_a_partys_loss_that_is_none_is_named_and_nobody_steps() -> None:
    _, quick = pair("llama")
    made = crew(quick, (2, 2, 2), "classify")
    before = [p.detach().clone() for p in made[0].trainer.parameters.values()]
    for leaf in made[1].trainer.parameters.values():
        leaf.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="client 'c1', round 1"):
        made[0].run(made[1:])
    after = list(made[0].trainer.parameters.values())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_an_infinite_gradient_of_one_party_spoils_nobody_else() -> None:
    _, quick = pair("llama")
    together, apart = crew(quick, (2, 2, 2), "classify"), crew(quick, (2, 2, 2), "classify")

    def steep(logits: Tensor, _: Batch) -> Tensor:
        return (logits - logits.detach()).sum().sqrt()  # 0, with an infinite slope

    for made in (together, apart):
        made[1].terms = [LossTerm(made[1].terms[0].batch, steep)]
    together[0].run(together[1:])
    for one in apart:
        one.run()
    for place in (0, 2):
        for name, leaf in together[place].trainer.parameters.items():
            assert leaf.isfinite().all(), name
            assert torch.equal(leaf, apart[place].trainer.parameters[name]), name


def test_who_runs_beside_whom() -> None:
    _, quick = pair("llama", adapter={"rank": MAX_SIDE_BY_SIDE // 2})
    one, two, three = crew(quick, (2, 2, 2), "classify")
    assert one.beside([two])
    assert not one.beside([two, three]), "factors side by side would be too wide"
    quick.use(Choice(path="fast", join=one.size))
    assert not one.beside([two]), "as large as this, a batch gains nothing"
    quick.use(Choice(path="fast", join=0))
    assert one.kind is None
    slow, _ = pair("llama")
    assert crew(slow, (2,), "classify")[0].kind is None


def test_steps_on_one_piece_of_memory_are_torchs() -> None:
    slow, quick = pair("llama")
    tensors = tiny.random_like(slow.initial, 1)
    train = Train(weight_decay=0.1, max_grad_norm=0.5)
    flat, loose = Trainer(quick, tensors, train, 0.01), Trainer(slow, tensors, train, 0.01)
    for step in range(4):
        given = tiny.random_like(slow.initial, 30 + step)
        for name, leaf in loose.parameters.items():
            leaf.grad = given[name].clone()
        for name, leaf in flat.parameters.items():
            assert leaf.grad is not None
            assert not leaf.grad.any(), "gradients are forgotten after a step"
            leaf.grad += given[name]
        flat.step()
        loose.step()
    for name, leaf in loose.parameters.items():
        torch.testing.assert_close(flat.parameters[name], leaf, rtol=1e-6, atol=1e-7)


# --- the loss over a vocabulary ---------------------------------------------------------------


def test_losses_over_a_vocabulary_are_cross_entropies() -> None:
    source = torch.Generator().manual_seed(0)
    count = ROWS * 2 + 5
    rows = torch.randn(count, 8, generator=source, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(31, 8, generator=source)
    targets = torch.randint(-1, 31, (count,), generator=source)
    weights = torch.rand(count, generator=source)
    wanted = cross_entropy(rows @ weight.t(), targets, ignore_index=-1, reduction="none")
    found = vocabulary_losses(rows, weight, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad((found * weights).sum(), rows)
    (theirs,) = torch.autograd.grad((wanted * weights).sum(), rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_fast_path_never_makes_all_logits_of_a_vocabulary() -> None:
    slow, quick = pair("llama", "causal")
    tensors = tiny.random_like(slow.initial, 3)
    batch = batch_of(tiny.examples(5, "causal"), range(5))
    wanted = slopes(slow, tensors, batch)
    leaves = quick.parameters(tensors)
    found = quick.label_losses([leaves], [batch])
    assert found is not None
    torch.testing.assert_close(found[0], label_loss(wanted[0], batch), rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(found[0], list(leaves.values()))
    close(dict(zip(leaves, grads, strict=True)), wanted[1])
    assert slow.label_losses([slow.parameters(tensors)], [batch]) is None
    assert pair("llama")[1].label_losses([], []) is None, "a class head is small"
