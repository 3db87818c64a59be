"""Prefix tuning: PEFT's own model on the same weights computes the same, family by family."""

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
from triskel.data.batches import batch_of
from triskel.errors import ModelError
from triskel.model.blocks import PREFIX
from triskel.model.flops import Piece, count
from triskel.model.generate import Sampling, Writer
from triskel.model.prefixes import PREFIXED, joined
from triskel.model.shared import Choice, SharedModel
from triskel.modes.params.mode import Params
from triskel.training.loop import StepId
from triskel.training.worker import WHOLE
from triskel.types import Examples

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
PLAIN = {"qwen2": {"use_sliding_window": False}, "qwen3": {"use_sliding_window": False},
         "phi3": {"sliding_window": None}}  # fmt: skip
TOKENS = 3


def made(family: str, task: str, attention: str = "eager", **more: object) -> tuple[Any, Any]:
    """Return a body with a prefix, and PEFT's model of the same weights with the same prefix."""
    options = {"attention": attention, **PLAIN.get(family, {}), **more}
    job = tiny.job("params", task, adapter={"kind": "prefix", "tokens": TOKENS})
    body = tiny.body(family, job, **options)
    net = peft.get_peft_model(
        tiny.model(family, task, **options),
        peft.PrefixTuningConfig(
            num_virtual_tokens=TOKENS,
            task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS",
        ),
    )
    return body, net.eval()


def put(net: Any, body: SharedModel, tensors: Any) -> Any:  # noqa: ANN401 - PEFT's
    """Give PEFT's model these tensors, and return those that train."""
    whole = net.prompt_encoder["default"].embedding.weight
    whole.data = joined(body.blocks, tensors)["prompt_embeddings"].clone()
    found = {"prompt_embeddings": whole}
    for name in body.layout.head:
        module, _, part = name.rpartition(".")
        found[name] = net.base_model.get_submodule(module).modules_to_save["default"]
        found[name] = found[name].get_parameter(part)
        found[name].data = tensors[name].clone()
    return found


def logits_of(net: Any, batch: Any, task: str) -> torch.Tensor:  # noqa: ANN401 - PEFT's
    out = net(**tiny.called_with(batch, int(net.config.pad_token_id or 0))).logits
    return out if task == "classify" else out[batch.rows, batch.columns]


def batches_of(body: SharedModel, task: str, epochs: int = 1) -> list[Any]:
    job = tiny.job("params", task)
    ann = tiny.worker("ann", job, body, tiny.examples(8, task))
    return list(ann.batches(StepId("ann", 1), epochs))


@pytest.mark.parametrize(
    ("family", "task", "attention"),
    [
        *((family, task, "eager") for family in PREFIXED for task in ("classify", "causal")),
        ("llama", "causal", "sdpa"),
    ],
)
def test_pefts_own_model_computes_the_same(family: str, task: str, attention: str) -> None:
    body, net = made(family, task, attention)
    tensors = tiny.random_like(body.initial, 3)
    put(net, body, tensors)
    for batch in batches_of(body, task):
        ours = body.logits(body.parameters(tensors), batch)
        theirs = logits_of(net, batch, task)
        assert torch.allclose(ours, theirs, atol=1e-5), float((ours - theirs).abs().max())
    plain = {n: torch.zeros_like(t) if PREFIX in n else t for n, t in tensors.items()}
    assert not torch.allclose(ours, body.logits(body.parameters(plain), batch), atol=1e-3)


@pytest.mark.parametrize(("family", "task"), [("llama", "classify"), ("gpt2", "causal")])
def test_one_client_is_plain_training_of_pefts_own_model(family: str, task: str) -> None:
    body, net = made(family, task)
    trained = put(net, body, body.initial)
    job = tiny.job("params", task, adapter={"kind": "prefix", "tokens": TOKENS})
    ann = tiny.worker("ann", job, body, tiny.examples(8, task))
    adam = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0, fused=True)
    for batch in ann.batches(StepId("ann", 1), 1):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(
            logits_of(net, batch, task), batch.targets, ignore_index=-1
        ).backward()
        adam.step()
    mode = Params(
        initial=body.initial, layout=body.layout, aggregate=Mean(),
        optimizer=Momentum(lr=1.0, momentum=0.0),
    )  # fmt: skip
    state, _ = tiny.play(mode, job, [ann])
    found = joined(body.blocks, state.adapter)
    for name, parameter in trained.items():
        assert torch.allclose(found[name], parameter.detach(), atol=1e-5), name
    assert not torch.equal(
        found["prompt_embeddings"], joined(body.blocks, body.initial)["prompt_embeddings"]
    )


def test_parts_of_the_blocks_need_their_own_prefixes_and_make_the_whole() -> None:
    """As `split` runs them; also with activations computed twice."""
    body, _ = made("gpt2", "causal")
    tensors = tiny.random_like(body.initial, 3)
    (batch, *_) = batches_of(body, "causal")
    parameters = body.parameters(tensors)
    whole = body.logits(parameters, batch)
    layout, depth = body.layout, body.blocks.count
    low = {n: parameters[n] for n in layout.within(0, 2)}
    high = {n: parameters[n] for n in layout.within(2, depth, head=True)}
    h = body.bottom(low, batch, 2)
    assert torch.equal(body.top(high, h, batch, 2), whole)
    body.use(Choice(recompute=True))
    again = body.logits(parameters, batch)
    assert torch.equal(again, whole)
    slopes = [torch.autograd.grad(out.sum(), list(parameters.values())) for out in (whole, again)]
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_flops_are_those_of_attention_to_more_tokens() -> None:
    """Scores and mixes are products with P more keys for each token, and their gradients."""
    job = tiny.job("params", "causal")
    plain = SharedModel(
        tiny.model("llama", "causal"), tiny.tokenizer(["w3"]), head="vocabulary", classes=0,
        adapter=job.adapter.model_copy(update={"targets": ("q_proj",)}), seed=5,
    )  # fmt: skip
    body, _ = made("llama", "causal")
    forward = Piece("forward")
    rows, tokens = 3, 7
    factors = sum(t.numel() for t in plain.initial.values())
    more = 2 * 2 * rows * tokens * TOKENS * 16 * tiny.LAYERS  # two products, 16 wide
    found, wanted = count(body, forward), count(plain, forward)
    assert found.of(rows, tokens, rows) == (
        wanted.of(rows, tokens, rows) - 2 * rows * tokens * factors + more
    )
    saved = count(body, WHOLE)
    assert saved.bytes_of(4, 6, 4) > saved.bytes_of(2, 6, 4) > 0


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [("bert", {}, "this is a bert model; lora can"),
     ("bloom", {}, "this is a bloom model"),
     ("mistral", {}, "this is a mistral model whose blocks see a window of tokens")],
)  # fmt: skip
def test_models_that_take_no_prefix_are_refused(family: str, more: Any, why: str) -> None:  # noqa: ANN401 - options
    adapter = tiny.job(adapter={"kind": "prefix"}).adapter
    with pytest.raises(ModelError, match=why):
        SharedModel(
            tiny.model(family, **more), None, head="classes", classes=3, adapter=adapter, seed=1
        )


def test_what_a_prefix_does_not_read_is_refused_and_positions_are_fewer() -> None:
    with pytest.raises(ValidationError, match=r"adapter\.blocks is not read by prefix"):
        tiny.job(adapter={"kind": "prefix", "blocks": "top:1"})
    with pytest.raises(ValidationError, match=r"adapter\.targets is not read by prefix"):
        tiny.job(adapter={"kind": "prefix", "targets": ("q_proj",)})
    body, _ = made("gpt2", "classify")
    assert body.blocks.positions == tiny.SIZES["max_position_embeddings"] - TOKENS
    body.reseed(9)
    assert body.blocks.positions == tiny.SIZES["max_position_embeddings"] - TOKENS


def test_what_is_written_is_what_stepwise_reading_finds_most_likely() -> None:
    """Of prompts of two lengths side by side, by PEFT's model of base and prefix."""
    body, _ = made("llama", "causal")
    tensors = tiny.random_like(body.initial, 3, std=1.0)
    wanted, prompts = list[list[int]](), [[3, 4, 5, 9], [6, 7]]
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(3):
            examples = Examples(ids=[torch.tensor([*ids, 0])], labels=(), scored=[last(len(ids))])
            logits = body.logits(body.parameters(tensors), batch_of(examples, [0]))
            ids.append(int(logits[0].argmax()))
        wanted.append(ids[len(prompt) :])
    assert not any(2 in row for row in wanted), "it would end there"
    writer = Writer(body, tensors, Sampling(max_new_tokens=3))
    assert writer.write(prompts, [0, 1]) == wanted


def last(depth: int) -> torch.Tensor:
    """Return marks of which the last is set, behind so many that are not."""
    return torch.tensor([False] * depth + [True])
