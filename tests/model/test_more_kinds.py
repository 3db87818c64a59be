"""VeRA, BitFit and full fine-tuning: what trains is what plain PEFT or torch would train."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError

from triskel.aggregate.mean import Mean
from triskel.aggregate.server_optimizer import Momentum
from triskel.errors import ModelError
from triskel.model.adapters import projections
from triskel.model.flops import Piece, count
from triskel.model.shared import SharedModel
from triskel.modes.params.mode import Params
from triskel.training.loop import StepId
from triskel.training.worker import WHOLE
from triskel.types import Batch

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
CASES = [("vera", "llama"), ("vera", "gpt2"), ("full", "llama"), ("full", "gpt2"),
         ("bitfit", "gpt2"), ("bitfit", "bert")]  # fmt: skip


def made(kind: str, family: str, task: str = "classify", **adapter: object) -> tuple[Any, Any]:
    """Return a job and a body of it."""
    job = tiny.job("params", task, adapter={"kind": kind, **adapter}, train={"epochs": 2})
    targets = tiny.TARGETS[family] if kind == "vera" else job.adapter.targets
    body = SharedModel(
        tiny.model(family, task),
        tiny.tokenizer([f"w{i}" for i in range(3, tiny.VOCABULARY)]),
        head=tiny.ENDS[task],
        classes=0 if task == "causal" else tiny.CLASSES,
        adapter=job.adapter.model_copy(update={"targets": tuple(targets)}),
        seed=job.seed,
    )
    return job, body


def plain(kind: str, family: str, task: str, body: SharedModel) -> dict[str, torch.nn.Parameter]:
    """Return a stock model's tensors that train, by our names, at the same start."""
    net: Any = tiny.model(family, task)
    net.requires_grad_(False)  # noqa: FBT003 - torch's signature
    inside = f"{body.blocks.family.blocks}."
    if kind == "vera":
        key = peft_seed(body)
        options = peft.VeraConfig(
            r=body.adapter.rank, target_modules=list(tiny.TARGETS[family]),
            projection_prng_key=key, fan_in_fan_out=family == "gpt2",
        )  # fmt: skip
        net = peft.get_peft_model(net, options).base_model.model
    named = dict(net.named_parameters())
    if kind == "vera":
        chosen = {n.replace(".default", ""): p for n, p in named.items() if "vera_lambda" in n}
    else:
        chosen = {
            n: p for n, p in named.items()
            if n.startswith(inside) and (kind == "full" or n.endswith(".bias"))
        }  # fmt: skip
    if task == "classify":
        head = tuple(f"{name}." for name in body.blocks.head_names)
        chosen |= {n: p for n, p in named.items() if n.startswith(head)}
    assert chosen.keys() == body.initial.keys()
    for name, parameter in chosen.items():
        parameter.data = body.initial[name].clone()
        parameter.requires_grad_(True)  # noqa: FBT003 - torch's signature
    chosen[""] = net
    return chosen


def picked_loss(net: Any, task: str, batch: Batch) -> torch.Tensor:  # noqa: ANN401 - a model
    """Return the mean cross-entropy, the head seeing scored positions only.

    Some gradients are zero, such as that of the bias of keys: Adam makes steps of what rounding
    leaves of them, so sums are taken in one order.
    """
    given = tiny.called_with(batch, int(net.config.pad_token_id or 0))
    if net.config.model_type == "bert":
        return torch.nn.functional.cross_entropy(net(**given).logits, batch.targets)
    h = getattr(net, net.base_model_prefix)(**given).last_hidden_state[batch.rows, batch.columns]
    logits = net.get_submodule("lm_head" if task == "causal" else "score")(h)
    total = torch.nn.functional.cross_entropy(
        logits, batch.targets, ignore_index=-1, reduction="sum"
    )
    return total / int((batch.targets >= 0).sum())


def peft_seed(body: SharedModel) -> int:
    """Return the seed that PEFT's own VeRA draws the same two matrices from."""
    from triskel.core.seeds import derive  # noqa: PLC0415 - the formula of the docs

    return derive(body.seed, "projection")


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_one_client_is_plain_training_of_the_same_tensors(
    kind: str, family: str, task: str
) -> None:
    if family == "bert" and task == "causal":
        pytest.skip("an encoder writes nothing")
    job, body = made(kind, family, task)
    ann = tiny.worker("ann", job, body, tiny.examples(8, task))
    trained = plain(kind, family, task, body)
    net = trained.pop("")
    batches = list(ann.batches(StepId("ann", 1), 2))
    adam = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0, fused=True)
    for batch in batches:
        adam.zero_grad()
        picked_loss(net, task, batch).backward()
        adam.step()
    start = {name: tensor.clone() for name, tensor in body.initial.items()}
    mode = Params(
        initial=body.initial, layout=body.layout, aggregate=Mean(),
        optimizer=Momentum(lr=1.0, momentum=0.0),
    )  # fmt: skip
    state, _ = tiny.play(mode, job, [ann])
    wanted = {name: parameter.detach() for name, parameter in trained.items()}
    assert all(not torch.equal(state.adapter[n], start[n]) for n in wanted)
    for name, tensor in wanted.items():
        assert torch.allclose(state.adapter[name], tensor, atol=1e-5), name
    assert tiny.equal(body.initial, start), "the start is as it was"


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_another_seed_starts_where_a_model_that_is_loaded_with_it_starts(
    kind: str, family: str
) -> None:
    """Also once others' tensors lie in the slots, some of which are the base's own."""
    _, body = made(kind, family)
    batch = tiny.worker("ann", tiny.job(), body, tiny.examples(4)).batches(StepId("a", 1), 1)
    batch = next(iter(batch))
    first = body.logits(body.parameters(body.initial), batch)
    body.logits(body.parameters(tiny.random_like(body.initial, 3)), batch)
    matrices = {name: tensor.clone() for name, tensor in projections(body.blocks.model).items()}
    body.reseed(11)
    fresh = SharedModel(
        tiny.model(family), None, head="classes", classes=tiny.CLASSES,
        adapter=body.adapter, seed=11,
    )  # fmt: skip
    assert tiny.equal(body.initial, fresh.initial)
    ours, wanted = projections(body.blocks.model), projections(fresh.blocks.model)
    assert tiny.equal(ours, wanted) if wanted else not ours
    assert all(not torch.equal(ours[name], matrices[name]) for name in ours)
    some = tiny.random_like(body.initial, 4)
    assert torch.equal(
        body.logits(body.parameters(some), batch), fresh.logits(fresh.parameters(some), batch)
    )
    body.reseed(5)
    assert torch.equal(body.logits(body.parameters(body.initial), batch), first)


@pytest.mark.parametrize("recompute", [False, True])
def test_masters_of_a_model_in_bfloat16_are_float32_and_get_their_gradient(
    recompute: bool,  # noqa: FBT001 - a case
) -> None:
    job = tiny.job("params", adapter={"kind": "full", "blocks": "top:2"})
    body = SharedModel(
        tiny.model("llama", dtype=torch.bfloat16), None, head="classes", classes=tiny.CLASSES,
        adapter=job.adapter, seed=5,
    )  # fmt: skip
    ann = tiny.worker("ann", job, body, tiny.examples(4))
    batch = next(iter(ann.batches(StepId("ann", 1), 1)))
    body.choice = type(body.choice)(recompute=recompute)
    parameters = body.parameters(body.initial)
    loss = body.objective.loss(body.logits(parameters, batch), batch)
    loss.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in parameters.values())
    net = tiny.model("llama", dtype=torch.bfloat16)
    net.score = torch.nn.Linear(16, tiny.CLASSES, bias=False)
    net.score.weight.data = body.initial["score.weight"].clone()
    net.score.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    wanted = torch.nn.functional.cross_entropy(
        net(**tiny.called_with(batch, 0)).logits, batch.targets
    )
    assert torch.allclose(loss, wanted, atol=1e-5)
    wanted.backward()
    for name, parameter in parameters.items():
        slope = net.get_parameter(name).grad.float()
        assert torch.allclose(parameter.grad, slope, atol=1e-2 * float(slope.abs().max())), name


def test_targets_and_blocks_say_which_tensors_train() -> None:
    _, body = made("full", "gpt2", blocks="top:1", targets=("attn", "ln_1"))
    block = f"transformer.h.{tiny.LAYERS - 1}"
    own = {n for n in body.initial if n != "score.weight"}
    assert own == {
        f"{block}.{module}.{part}"
        for module in ("attn.c_attn", "attn.c_proj", "ln_1")
        for part in ("weight", "bias")
    }
    assert body.frozen == tiny.LAYERS - 1
    _, body = made("bitfit", "gpt2", targets=("mlp.c_fc",))
    assert set(body.layout.block) == {
        f"transformer.h.{i}.mlp.c_fc.bias" for i in range(tiny.LAYERS)
    }


def test_a_model_without_biases_is_refused_for_bitfit() -> None:
    with pytest.raises(ModelError, match="trains biases, and its blocks have none in this llama"):
        made("bitfit", "llama")
    with pytest.raises(ModelError, match=r"the modules of adapter\.targets have none"):
        made("bitfit", "llama", targets=("q_proj",))


def test_the_matrices_of_vera_are_a_function_of_the_seed_or_of_what_the_job_names() -> None:
    bodies = [made("vera", "llama", projection=p)[1] for p in (None, 4, 4)]
    mine, named, again = (projections(body.blocks.model) for body in bodies)
    assert tiny.equal(named, again)
    assert not torch.equal(mine["vera_A"], named["vera_A"])
    with pytest.raises(ValidationError, match=r"adapter\.projection is read by vera only"):
        tiny.job(adapter={"projection": 3})


def test_flops_of_training_all_weights_are_thrice_those_of_reading() -> None:
    """Forward, gradient of the input, gradient of the weight: one product each.

    Products of two activations, in attention, have two gradients as well.
    """
    _, body = made("full", "llama")
    forward, train = count(body, Piece("forward")), count(body, WHOLE)
    rows, tokens = 4, 7
    assert train.of(rows, tokens, rows) == 3 * forward.of(rows, tokens, rows)
