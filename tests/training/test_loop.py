"""The local loop, against torch's own optimisers and formulas by hand."""

import math
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.adamw import adamw

from triskel.config.sections import Train
from triskel.errors import TrainingError
from triskel.model.shared import Choice, SharedModel
from triskel.numerics.rng import derive
from triskel.training.conversation import alone
from triskel.training.loop import (
    LossTerm,
    StepId,
    finite,
    fit,
    label_loss,
)
from triskel.training.optimizer import (
    Moments,
    clip,
    clipped,
    learning_rate,
    optimiser,
    optimizer_step,
)
from triskel.training.trainer import Trainer
from triskel.types import Batch

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))


def tensors(seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=source), "b": torch.randn(4, generator=source)}


def batch(targets: list[int]) -> Batch:
    size = len(targets)
    return Batch(
        ids=torch.zeros(size, 1, dtype=torch.int64),
        lengths=torch.ones(size, dtype=torch.int64),
        rows=torch.arange(size),
        columns=torch.zeros(size, dtype=torch.int64),
        targets=torch.tensor(targets),
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_by_value_are_those_of_torch(decay: float) -> None:
    train = Train(weight_decay=decay)
    now, moments = tensors(0), Moments()
    leaves = {n: nn.Parameter(t.clone()) for n, t in now.items()}
    adam = torch.optim.AdamW(leaves.values(), lr=0.01, weight_decay=decay, fused=True)
    for step in range(6):
        slopes = tensors(10 + step)
        for name, leaf in leaves.items():
            leaf.grad = slopes[name].clone()
        adam.step()
        now, moments = optimizer_step(now, slopes, moments, train, 0.01)
        assert all(torch.equal(now[n], leaves[n]) for n in leaves)
    assert moments.steps == {"a": 6, "b": 6}
    assert torch.equal(moments.mean["a"], adam.state[leaves["a"]]["exp_avg"])
    assert torch.equal(moments.square["a"], adam.state[leaves["a"]]["exp_avg_sq"])


def columns() -> dict[str, Tensor]:
    """Gradients as a fused layer returns them: columns of one matrix, of strides (2, 1)."""
    return dict(zip("ab", torch.arange(8.0).view(4, 2).split(1, dim=1), strict=True))


def test_the_fused_kernel_of_torch_ignores_strides() -> None:
    wide = torch.arange(8.0).view(4, 2).t()  # strides (1, 2)
    leaves = [nn.Parameter(torch.zeros(2, 4)) for _ in range(2)]
    for leaf, slope in zip(leaves, (wide, wide.contiguous()), strict=True):
        adamw(
            [leaf.data], [slope], [torch.zeros(2, 4)], [torch.zeros(2, 4)], [], [torch.zeros(())],
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=1.0, weight_decay=0.0,
            eps=10.0, maximize=False,
        )  # fmt: skip
    assert not torch.allclose(*leaves)  # why every optimiser refuses; should it fail, torch learnt


def test_an_optimiser_refuses_gradients_that_are_columns_of_a_wider_matrix() -> None:
    start = {n: torch.zeros_like(s) for n, s in columns().items()}
    with pytest.raises(TrainingError, match=r"gradient of a has strides \(2, 1\) for shape"):
        optimizer_step(start, columns(), Moments(), Train(), 0.01)
    body = tiny.body("llama", tiny.job())
    trainer = Trainer(body, body.initial, Train(), 0.01)
    for leaf in trainer.parameters.values():
        leaf.grad = torch.ones(leaf.shape[::-1]).t()
    with pytest.raises(TrainingError, match="which the fused optimiser would read in a wrong"):
        trainer.step()


def test_a_step_of_tensors_that_lie_transposed_is_that_of_tensors_that_do_not() -> None:
    start, slopes = {"a": torch.randn(3, 4)}, {"a": torch.randn(3, 4)}
    turned = {"a": start["a"].t().contiguous().t()}
    assert not turned["a"].is_contiguous()
    plain, moments = optimizer_step(start, slopes, Moments(), Train(), 0.01)
    other, _ = optimizer_step(turned, slopes, Moments(), Train(), 0.01)
    assert torch.equal(plain["a"], other["a"])
    late = replace(moments, mean={"a": moments.mean["a"].t().contiguous().t()})
    wanted, _ = optimizer_step(plain, slopes, moments, Train(), 0.01)
    assert torch.equal(wanted["a"], optimizer_step(plain, slopes, late, Train(), 0.01)[0]["a"])


def test_the_first_step_is_the_formula() -> None:
    train = Train(weight_decay=0.1)
    now, _ = optimizer_step(tensors(0), tensors(1), Moments(), train, 0.01)
    for name, w in tensors(0).items():
        g = tensors(1)[name]
        wanted = w * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(now[name], wanted, rtol=1e-5, atol=1e-7)


def test_a_step_leaves_its_inputs_and_what_has_no_gradient_alone() -> None:
    start, slopes = tensors(0), {"a": tensors(1)["a"]}
    now, moments = optimizer_step(start, slopes, Moments(), Train(), 0.01)
    kept = {n: t.clone() for n, t in {**moments.mean, **now}.items()}
    later, after = optimizer_step(now, tensors(2), moments, Train(), 0.01)
    assert torch.equal(start["a"], tensors(0)["a"])
    assert torch.equal(slopes["a"], tensors(1)["a"])
    assert torch.equal(now["b"], start["b"])
    assert torch.equal(now["b"], kept["b"])
    assert not torch.equal(later["b"], now["b"])
    assert dict(moments.steps) == {"a": 1}
    assert dict(after.steps) == {"a": 2, "b": 1}
    _, held = optimizer_step(later, {"b": tensors(3)["b"]}, after, Train(), 0.01)
    assert torch.equal(held.mean["a"], after.mean["a"])
    assert dict(held.steps) == {"a": 2, "b": 2}


def test_the_optimiser_is_fused_adamw_with_the_jobs_options() -> None:
    leaves = {n: nn.Parameter(t) for n, t in tensors(0).items()}
    (group,) = optimiser(leaves, Train(weight_decay=0.3), 0.02).param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.02, 0.3, True)
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_schedules_by_hand() -> None:
    def rates(kind: str) -> list[float]:
        return [learning_rate(Train(lr=0.4, schedule=kind), r, 4) for r in (1, 2, 3, 4)]

    assert rates("constant") == [0.4] * 4
    assert rates("linear") == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert rates("cosine") == pytest.approx(
        [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))]
    )


def test_unknown_labels_are_neither_counted_nor_learnt_from() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = label_loss(logits, batch([1, -1, 2, -1]))
    known = cross_entropy(logits[[0, 2]], torch.tensor([1, 2]))
    torch.testing.assert_close(loss, known)
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope[[1, 3]].any()
    assert label_loss(logits, batch([-1] * 4)).item() == 0


def test_the_loss_is_computed_in_float32_at_least() -> None:
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    assert label_loss(logits, batch([0, 1, 2, 0])).dtype == torch.float32
    assert label_loss(logits.double(), batch([0, 1, 2, 0])).dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_names_client_round_and_step(value: float) -> None:
    where = StepId("ann", 3, "distil")
    with pytest.raises(TrainingError, match=r"client 'ann', round 3, distil step 7; lower"):
        finite(torch.tensor(value), where, 7)
    assert finite(torch.tensor(2.5), where, 7) == 2.5


def test_a_step_has_a_name_of_its_own() -> None:
    names = {
        StepId(c, r, p).path(s)
        for c in ("ann", "bob")
        for r in (1, 2)
        for p in ("train", "distil")
        for s in (0, 1)
    }
    assert len(names) == 16


def test_both_ways_of_clipping_are_torchs() -> None:
    for bound in (0.5, 1e6):
        train = Train(max_grad_norm=bound)
        leaves = {n: nn.Parameter(t) for n, t in tensors(0).items()}
        for name, leaf in leaves.items():
            leaf.grad = tensors(1)[name]
        clip(leaves, train)
        twin = {n: nn.Parameter(t) for n, t in tensors(0).items()}
        for name, leaf in twin.items():
            leaf.grad = tensors(1)[name]
        torch.nn.utils.clip_grad_norm_(twin.values(), bound)
        by_value = clipped(tensors(1), train)
        for name, leaf in leaves.items():
            assert torch.equal(leaf.grad, twin[name].grad)
            torch.testing.assert_close(by_value[name], twin[name].grad)


def test_no_bound_clips_nothing() -> None:
    slopes = {n: 1e6 * t for n, t in tensors(1).items()}
    assert all(torch.equal(clipped(slopes, Train())[n], t) for n, t in slopes.items())
    leaf = nn.Parameter(torch.zeros(2))
    leaf.grad = torch.full((2,), 1e6)
    clip({"a": leaf}, Train())
    assert leaf.grad.tolist() == [1e6, 1e6]
    assert clipped({}, Train(max_grad_norm=1.0)) == {}


class Line(SharedModel):
    """A body of one number: every example's only logit is the leaf times the batch's size."""

    def __init__(self) -> None:
        self.choice = Choice()
        self.seeds: list[int | None] = []

    def parameters(self, tensors: Mapping[str, Tensor], *_: object) -> dict[str, nn.Parameter]:
        return {n: nn.Parameter(t.clone()) for n, t in tensors.items()}

    def dropout(self, seed: int | None) -> None:
        self.seeds.append(seed)

    def label_losses(self, *_: object) -> None:
        return None

    def together(self, parties: list[Mapping[str, Tensor]], batches: list[Batch]) -> list[Tensor]:
        return [p["a"] * len(b.ids) for p, b in zip(parties, batches, strict=True)]


def trainer(value: float, lr: float = 0.1) -> Trainer:
    return Trainer(Line(), {"a": torch.tensor([value])}, Train(), lr)


def square(logits: Tensor, _: Batch) -> Tensor:
    return logits.square().sum()


def test_fitting_is_one_step_an_item_and_returns_the_mean_loss() -> None:
    it, twin = trainer(3.0), nn.Parameter(torch.tensor([3.0]))
    batches = [batch([0]), batch([0, 0]), batch([0, 0, 0])]
    told: list[float] = []
    mean = alone(
        fit(
            it, ([LossTerm(b, square)] for b in batches), seed=7, where=StepId("ann", 1),
            after=lambda _, value: told.append(value),
        )
    )  # fmt: skip
    adam, losses = torch.optim.AdamW([twin], lr=0.1, weight_decay=0, fused=True), []
    for size in (1, 2, 3):
        adam.zero_grad()
        loss = (twin * size).square().sum()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert torch.equal(it.parameters["a"], twin)
    assert isinstance(it.body, Line)
    assert it.body.seeds == [derive(7, "round", 1, "train", "ann", s) for s in range(3)]
    assert told == losses
    assert mean == pytest.approx(sum(losses) / 3)


def test_terms_are_weighted_and_added() -> None:
    it, twin = trainer(3.0), nn.Parameter(torch.tensor([3.0]))
    one, two = batch([0]), batch([0, 0])
    work = [[LossTerm(one, square, 0.25), LossTerm(two, lambda z, _: z.sum(), weight=0.75)]]
    found = alone(fit(it, work, seed=0, where=StepId("ann", 1)))
    adam = torch.optim.AdamW([twin], lr=0.1, weight_decay=0, fused=True)
    loss = 0.25 * twin.square().sum() + 0.75 * 2 * twin.sum()
    loss.backward()
    adam.step()
    assert found == pytest.approx(0.25 * 9 + 0.75 * 6)
    assert torch.equal(it.parameters["a"], twin)


def test_fitting_nothing_is_no_loss() -> None:
    it = trainer(1.0)
    assert alone(fit(it, [], seed=0, where=StepId("a", 1))) == 0.0
    assert it.parameters["a"].item() == 1.0


def test_fitting_stops_before_a_step_on_a_loss_that_is_no_number() -> None:
    it = trainer(1.0)
    losses = [square, lambda z, _: z.sum() * math.nan, square]
    work = [[LossTerm(batch([0]), loss)] for loss in losses]
    with pytest.raises(TrainingError, match=r"'ann', round 2, train step 1"):
        alone(fit(it, work, seed=0, where=StepId("ann", 2)))
    assert it.parameters["a"].item() == pytest.approx(0.9)
