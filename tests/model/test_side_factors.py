"""Frozen factors beside those that train: as if the base had them, in every way a model runs."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.config.sections import Train
from triskel.data.batches import batch_of
from triskel.errors import ModelError
from triskel.model.adapters import scale_of
from triskel.model.compute_choice import PathName
from triskel.model.flops import Piece
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.model.side_factors import blank, misfit, parted, side_name, side_rank
from triskel.training.loop import LossTerm, StepId, TrainStep, label_loss
from triskel.training.trainer import Trainer
from triskel.types import Batch, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
FAR = 10**9
WIDE = torch.float64
LOW = ("lora", "rslora")
RANKS = (3, 1, 5, 2)


def beside(body: SharedModel, seed: int) -> dict[str, Tensor]:
    """Random side factors, of another rank from module to module; the last module has none."""
    downs = [name for name in body.initial if ".lora_A." in name]
    found: dict[str, Tensor] = {}
    for place, down in enumerate(downs[:-1]):
        up, rank = down.replace("lora_A", "lora_B"), RANKS[place % len(RANKS)]
        into, out = body.initial[down], body.initial[up]
        found[side_name(down)] = into.new_zeros(rank, into.shape[1])
        found[side_name(up)] = out.new_zeros(len(out), rank)
    return dict(tiny.random_like(found, seed))


def folded(plain: Any, side: Tensors, scale: float) -> Any:  # noqa: ANN401 - tiny.Plain
    """Add s B' A' to the weights of the plain model's base."""
    for name, down in side.items():
        if not name.endswith(".lora_A.side"):
            continue
        stem = name.removesuffix(".lora_A.side")
        layer = plain.base.get_submodule(stem).base_layer
        change = scale * side[f"{stem}.lora_B.side"] @ down
        across = type(layer).__name__ == "Conv1D"
        layer.weight.data += change.t() if across else change
    return plain


def pair(
    family: str, task: str, kind: str = "lora", dtype: torch.dtype = WIDE
) -> tuple[SharedModel, Any, dict[str, Tensor], Batch]:
    """A body, the plain model with side factors in its base, tensors of the body, and a batch."""
    job = tiny.job(task=task, adapter={"kind": kind})
    options: dict[str, Any] = {"dtype": dtype, **({"wide": True} if family == "llama" else {})}
    body = tiny.body(family, job, **options)
    trained, side = tiny.random_like(body.initial, 1), beside(body, 2)
    alike = job.model_copy(  # rslora is lora with another alpha
        update={"adapter": job.adapter.model_copy(update={"alpha": scale_of(job.adapter) * 2})}
    )
    plain = folded(tiny.Plain(family, alike, **options), side, scale_of(job.adapter)).load(trained)
    batch = batch_of(tiny.examples(5, task, long=11), range(5), pool=body.blocks.pool)
    return body, plain, {**trained, **side}, batch


def slopes(body: SharedModel, tensors: Tensors, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = body.parameters(tensors)
    assert {n for n, p in leaves.items() if p.requires_grad} == parted(tensors)[0].keys()
    logits = body.logits(leaves, batch)
    train = {n: p for n, p in leaves.items() if p.requires_grad}
    found = torch.autograd.grad(label_loss(logits, batch), list(train.values()))
    return logits.detach(), dict(zip(train, found, strict=True))


@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_a_model_computes_and_learns_as_if_its_base_had_them(
    family: str, task: str, kind: str
) -> None:
    body, plain, tensors, batch = pair(family, task, kind)
    wanted = plain.logits(batch).detach()
    grads = torch.autograd.grad(plain.loss(batch), list(plain.parameters().values()))
    found, mine = slopes(body, tensors, batch)
    close = 1e-9 if family == "llama" else 1e-4  # others take steps in float32
    assert float((found - wanted).abs().max()) < close * float(wanted.abs().max())
    assert tiny.apart(mine, dict(zip(plain.parameters(), grads, strict=True))) < close
    without = body.logits(body.parameters(parted(tensors)[0]), batch).detach()
    assert float((without - wanted).abs().max()) > 1e-3, "they do something"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_every_way_to_run_it_is_the_same(task: str, path: PathName, recompute: Any) -> None:  # noqa: ANN401
    body, plain, tensors, batch = pair("llama", task)
    logits, wanted = plain.logits(batch).detach(), slopes(body, tensors, batch)[1]
    body.use(Choice(path=path, flash=FAR, recompute=recompute))
    found, mine = slopes(body, tensors, batch)
    assert float((found - logits).abs().max()) < 1e-9 * float(logits.abs().max())
    assert tiny.apart(mine, wanted) < 1e-9


def test_parties_with_the_same_side_factors_run_in_one_pass_as_alone() -> None:
    body, _, tensors, _ = pair("llama", "classify")
    body.use(Choice(path="fast", flash=FAR, join=FAR))
    texts = [tiny.examples(n, seed=n) for n in (2, 4, 3)]
    batches = [batch_of(some, range(len(some)), pool=body.blocks.pool) for some in texts]
    side = parted(tensors)[1]
    parties = [{**tiny.random_like(body.initial, 10 + n), **side} for n in range(3)]
    alone = [step(body, party, batch) for party, batch in zip(parties, batches, strict=True)]
    for one in alone:
        one.run()
    steps = [step(body, party, batch) for party, batch in zip(parties, batches, strict=True)]
    assert len({one.kind for one in steps}) == 1
    steps[0].run(steps[1:])
    for one, wanted in zip(steps, alone, strict=True):
        found, alone_ = (
            {n: p.detach() for n, p in each.trainer.parameters.items()} for each in (one, wanted)
        )
        assert tiny.apart(found, alone_) < 1e-9
        assert tiny.equal(parted(one.trainer.model)[1], side), "they are frozen"
    plain = step(body, parted(parties[0])[0], batches[0])
    assert plain.kind != steps[0].kind, "a pass has one rank"


def step(body: SharedModel, tensors: Tensors, batch: Batch) -> TrainStep:
    trainer = Trainer(body, tensors, Train(), 0.01)
    return TrainStep(trainer, [LossTerm(batch)], StepId("ann", 1), 0, 0)


def test_who_has_too_great_a_rank_runs_alone() -> None:
    body, _, tensors, batch = pair("llama", "classify")
    body.use(Choice(path="fast", flash=FAR, join=FAR))
    one, two = step(body, tensors, batch), step(body, tensors, batch)
    assert one.trainer.rank == 2 + 5
    assert one.beside([two])
    one.trainer.rank = 65
    assert not one.beside([two])


def test_a_body_is_left_as_it_was() -> None:
    body, _, tensors, batch = pair("llama", "classify")
    trained = parted(tensors)[0]
    before = slopes(body, trained, batch)
    slopes(body, tensors, batch)
    after = slopes(body, trained, batch)
    assert torch.equal(before[0], after[0])
    assert tiny.equal(before[1], after[1])


# --- what they cost ---------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
@pytest.mark.parametrize(
    "piece",
    [Piece("train"), Piece("forward"), Piece("bottom", high=2), Piece("trunk", low=1, high=3)],
)
def test_flops_are_those_of_an_adapter_of_as_much_rank(
    family: str, task: str, piece: Piece
) -> None:
    """Frozen factors are multiplied with the others, gradients of their numbers included."""
    narrow, wide = (
        tiny.body(family, tiny.job(task=task, adapter={"rank": rank, "alpha": 3.0 * rank}))
        for rank in (2, 7)
    )
    found, wanted = Costs(narrow)[replace(piece, side=5)], Costs(wide)[piece]
    assert found.flops == wanted.flops
    assert found.flops != Costs(narrow)[piece].flops


def test_a_batch_costs_its_side_factors_too() -> None:
    body = tiny.body("llama", tiny.job())
    batch = batch_of(tiny.examples(4), range(4), pool=body.blocks.pool)
    side = {n: t for n, t in blank(body.initial, 5).items() if ".layers.3." not in n}
    costs, trainer = Costs(body), Trainer(body, {**body.initial, **side}, Train(), 0.0)
    meter, plain = costs.meter(), costs.meter()
    plain.ran(batch, Piece("train"), training=trainer.parameters)
    first = costs.resident((Piece("train"),))
    body.logits(trainer.model, batch)  # installed, as when a step is taken
    meter.ran(batch, Piece("train"), training=trainer.model)
    shape = (*batch.ids.shape, len(batch.rows))
    assert meter.flops == costs[Piece("train", side=5)].of(*shape) > plain.flops
    grown = [costs.bytes_of(Piece("train", side=n), *shape) for n in (0, 5)]
    stored = sum(t.nbytes for t in side.values())
    assert meter.peak_bytes - plain.peak_bytes == stored + grown[1] - grown[0]
    assert costs.resident((Piece("train", side=5),)) == first, "whatever is installed"


def test_what_is_counted_in_mid_round_is_counted_without_dropout() -> None:
    """A mask that dropout keeps for its backward pass is of the step, not of the piece."""
    body = tiny.body("llama", tiny.job(adapter={"dropout": 0.5}))
    calm, shaken = Costs(body), Costs(body)
    body.dropout(None)
    wanted = calm[Piece("train", side=3)]
    body.dropout(7)
    assert shaken[Piece("train", side=3)] == wanted


# --- bad input --------------------------------------------------------------------------------

A, B = "m.lora_A.weight", "m.lora_B.weight"
SIDE_A, SIDE_B = "m.lora_A.side", "m.lora_B.side"
LIKE = {A: torch.zeros(2, 6), B: torch.zeros(4, 2), "head": torch.zeros(3)}
DOWN, UP = torch.zeros(3, 6), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("side", "why"),
    [
        ({SIDE_A: DOWN}, "'m.lora_A.side' lacks its other half"),
        ({SIDE_B: UP}, "'m.lora_B.side' lacks its other half"),
        ({"n.lora_A.side": DOWN, "n.lora_B.side": UP}, "'n.lora_A.side' is beside no low-rank"),
        ({"head.side": DOWN}, "'head.side' is beside no low-rank factor of this model"),
        ({SIDE_A: DOWN.int(), SIDE_B: UP}, "'m.lora_A.side' must be a matrix of floats"),
        ({SIDE_A: DOWN, SIDE_B: UP[0]}, "'m.lora_B.side' must be a matrix of floats"),
        ({SIDE_A: DOWN[:, :5], SIDE_B: UP}, r"shapes \[3, 5\] and \[4, 3\], .* 6 numbers to 4"),
        ({SIDE_A: DOWN, SIDE_B: UP[:3]}, r"shapes \[3, 6\] and \[3, 3\], .* 6 numbers to 4"),
        ({SIDE_A: DOWN[:2], SIDE_B: UP}, r"shapes \[2, 6\] and \[4, 3\], .* 6 numbers to 4"),
        (
            {SIDE_A: DOWN.double(), SIDE_B: UP},
            "side' holds torch.float64, expected torch.float32",
        ),
        ({f"{SIDE_B}.lora_A.side": DOWN, SIDE_A: DOWN, SIDE_B: UP}, "is beside no low-rank factor"),
        ({SIDE_A: DOWN[:0], SIDE_B: UP[:, :0]}, "'m.lora_A.side' has rank 0, expected 1 to 4"),
        (
            {SIDE_A: torch.zeros(5, 6), SIDE_B: torch.zeros(4, 5)},
            "'m.lora_A.side' has rank 5, expected 1 to 4",
        ),
    ],
)
def test_what_does_not_fit_is_named(side: Tensors, why: str) -> None:
    found = misfit(side, LIKE)
    assert found is not None
    assert re.search(why, found), found


def test_dora_has_no_side_factors() -> None:
    dora = {**LIKE, "m.lora_magnitude_vector.weight": torch.zeros(4)}
    assert "beside no low-rank factor" in str(misfit({SIDE_A: DOWN, SIDE_B: UP}, dora))


def test_what_fits_is_nothing() -> None:
    assert misfit({SIDE_A: DOWN, SIDE_B: UP}, LIKE) is None
    assert misfit({}, LIKE) is None
    assert side_rank({SIDE_A: DOWN, SIDE_B: UP}) == 3
    assert side_rank(LIKE) == 0


def test_a_body_refuses_what_does_not_fit() -> None:
    body, _, tensors, _ = pair("llama", "classify")
    name = next(n for n in tensors if n.endswith("lora_A.side"))
    with pytest.raises(ModelError, match="lacks its other half"):
        body.parameters({n: t for n, t in tensors.items() if n != name})
