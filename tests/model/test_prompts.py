"""Prompt tuning and P-tuning: PEFT's own model on the same weights computes the same."""

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
from triskel.errors import JobError, LimitError, ModelError
from triskel.model.flops import Piece, count
from triskel.model.generate import Sampling, Writer
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.modes.params.mode import Params
from triskel.modes.split.cut import cut_of, rows_section
from triskel.modes.split.messages import moderate
from triskel.modes.split.spec import SplitOptions
from triskel.training.evaluate import BATCH_TOKENS, evaluate
from triskel.training.joining import worth_joining
from triskel.training.loop import StepId
from triskel.training.worker import WHOLE
from triskel.types import Examples, Message, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
TOKENS = 3
OURS = "virtual_tokens."


def made(kind: str, family: str, task: str, tokens: int = TOKENS, **model: object) -> SharedModel:
    """Return a body whose texts begin with virtual tokens."""
    job = tiny.job("params", task, adapter={"kind": kind, "tokens": tokens})
    return tiny.body(family, job, **model)


def by_peft(
    body: SharedModel, family: str, task: str, tensors: Tensors, **model: object
) -> tuple[Any, Any]:
    """Return PEFT's model of the same weights with these tensors, and those of it that train."""
    width = body.blocks.words.embedding_dim
    kind: Any = peft.PromptTuningConfig
    options: dict[str, Any] = {}
    if body.adapter.kind == "ptuning":
        kind, options = peft.PromptEncoderConfig, {"encoder_hidden_size": width}
    config = kind(
        num_virtual_tokens=body.adapter.tokens, token_dim=width, num_layers=tiny.LAYERS,
        num_attention_heads=2, task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS", **options,
    )  # fmt: skip
    net: Any = peft.get_peft_model(tiny.model(family, task, **model), config)
    net.prompt_encoder.to(body.dtype)
    named = {f"{OURS}{n}": p for n, p in net.prompt_encoder["default"].named_parameters()}
    for name in body.layout.head:
        top, _, rest = name.partition(".")
        head = getattr(net.base_model, top).modules_to_save["default"]
        named[name] = head.get_parameter(rest)
    assert named.keys() == tensors.keys()
    for name, parameter in named.items():
        parameter.data = tensors[name].to(body.dtype).clone()
    return net.eval(), named


def logits_of(net: Any, batch: Any, task: str, tokens: int = TOKENS) -> torch.Tensor:  # noqa: ANN401 - PEFT's
    """Return what PEFT's model makes of a batch; virtual tokens are for it to put there."""
    given = tiny.called_with(batch, int(net.config.pad_token_id or 0))
    out = net(**{name: t[:, tokens:] for name, t in given.items()}).logits
    return out if task == "classify" else out[batch.rows, batch.columns]


@pytest.mark.parametrize(
    ("family", "task", "kind", "attention"),
    [
        *((family, task, "prompt", "eager") for family, task in tiny.TASKS),
        *((f, t, "ptuning", "eager") for f, t in tiny.JOINED),
        ("opt", "classify", "ptuning", "eager"),
        ("llama", "causal", "ptuning", "sdpa"),
    ],
)
def test_pefts_own_model_computes_the_same(
    family: str, task: str, kind: str, attention: str
) -> None:
    """Also where embeddings are narrower than the model.

    One by one where transformers cannot do several: it takes padding of embeddings for a class's
    token, and in float64 a window that holds nothing but padding is no number.
    """
    wide: dict[str, Any] = {"dtype": torch.float64, "attention": attention}
    body = made(kind, family, task, **wide)
    tensors = tiny.random_like(body.initial, 3)
    net, _ = by_peft(body, family, task, tensors, **wide)
    texts, pool, parameters = tiny.examples(5, task), body.blocks.pool, body.parameters(tensors)
    apart = (task == "classify" and pool == "last") or family in tiny.SLIDING
    for rows in [[row] for row in range(5)] if apart else [range(5)]:
        batch = batch_of(texts, rows, pool=pool, ahead=TOKENS)
        ours = body.logits(parameters, batch)
        assert torch.allclose(ours, logits_of(net, batch, task), rtol=0, atol=1e-12)
    whole = body.logits(parameters, batch_of(texts, range(5), pool=pool, ahead=TOKENS))
    assert torch.allclose(whole[-len(ours) :], ours, rtol=0, atol=1e-5)
    others = {n: -t if n.startswith(OURS) else t for n, t in tensors.items()}
    assert not torch.allclose(ours, body.logits(body.parameters(others), batch), atol=1e-3)


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [("bert", "classify", "prompt"), ("gpt2", "causal", "ptuning"), ("llama", "causal", "prompt")],
)
def test_one_client_is_plain_training_of_pefts_own_model(family: str, task: str, kind: str) -> None:
    body = made(kind, family, task, dtype=torch.float64)
    net, trained = by_peft(body, family, task, body.initial, dtype=torch.float64)
    job = tiny.job("params", task, adapter={"kind": kind, "tokens": TOKENS})
    ann = tiny.worker("ann", job, body, tiny.examples(8, task))
    adam = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0)
    for batch in ann.batches(StepId("ann", 1), 1):
        adam.zero_grad()
        out = logits_of(net, batch, task)
        torch.nn.functional.cross_entropy(out, batch.targets, ignore_index=-1).backward()
        adam.step()
    mode = Params(
        initial=body.initial, layout=body.layout, aggregate=Mean(),
        optimizer=Momentum(lr=1.0, momentum=0.0),
    )  # fmt: skip
    state, _ = tiny.play(mode, job, [ann])
    for name, parameter in trained.items():
        assert torch.allclose(state.adapter[name], parameter.detach(), atol=1e-5), name
        assert not torch.allclose(state.adapter[name], body.initial[name], atol=1e-3), name


def test_a_prompt_starts_as_tokens_of_the_vocabulary() -> None:
    body = made("prompt", "llama", "causal")
    (start,) = body.initial.values()
    words = body.blocks.words.weight
    assert all((row == words).all(1).any() for row in start)
    assert len({tuple(row.tolist()) for row in start}) == TOKENS


@pytest.mark.parametrize("kind", ["prompt", "ptuning"])
def test_virtual_tokens_are_trained_by_whoever_has_the_first_block(kind: str) -> None:
    """As `split` runs them; also with activations computed twice."""
    body = made(kind, "gpt2", "causal")
    parameters = body.parameters(tiny.random_like(body.initial, 3))
    batch = batch_of(tiny.examples(4, "causal"), range(4), ahead=TOKENS)
    whole = body.logits(parameters, batch)
    h = body.bottom(parameters, batch, 1)
    assert h.requires_grad
    assert h.shape[:2] == batch.ids.shape
    assert torch.equal(body.top({}, h, batch, 1), whole)
    body.use(Choice(recompute=True))
    again = body.logits(parameters, batch)
    slopes = [torch.autograd.grad(out.sum(), list(parameters.values())) for out in (whole, again)]
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
    assert body.frozen == 0, "nothing can be kept of what trains"
    cut = cut_of(SplitOptions(cut=(1, 3)), body)
    assert (set(cut.mine), cut.theirs, cut.below) == (set(body.initial), (), True)
    with pytest.raises(JobError, match=rf"split\.cut is \[0, 2\], and virtual tokens of {kind}"):
        cut_of(SplitOptions(cut=(0, 2)), body)


@pytest.mark.parametrize("kind", ["prompt", "ptuning"])
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_parties_in_one_pass_compute_what_they_compute_alone(kind: str, task: str) -> None:
    body = made(kind, "llama", task, dtype=torch.float64, wide=True)
    parties = [body.parameters(tiny.random_like(body.initial, seed)) for seed in (1, 2, 3)]
    batches = [
        batch_of(tiny.examples(rows, task, seed=rows), range(rows), ahead=TOKENS)
        for rows in (2, 4, 3)
    ]
    alone = [body.logits(one, batch) for one, batch in zip(parties, batches, strict=True)]
    wanted = [
        torch.autograd.grad(out.square().sum(), list(one.values()))
        for one, out in zip(parties, alone, strict=True)
    ]
    body.use(Choice(path="fast", join=1 << 20))
    together = body.together(parties, batches)
    found = torch.autograd.grad(
        torch.stack([out.square().sum() for out in together]).sum(),
        [tensor for one in parties for tensor in one.values()],
    )
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(found, [t for some in wanted for t in some], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert worth_joining(body, body.adapter.rank, [[(1, 4)] * 40]), "no factors stand side by side"


def test_a_server_takes_texts_with_their_virtual_tokens_and_no_longer_ones() -> None:
    training = tiny.job("split", train={"batch": 2, "max_tokens": 4}).train

    def ask(*lengths: int) -> Message:
        values = torch.zeros(sum(lengths), 16)
        return Message(
            kind="ask", topic="forward", sections={"activations": rows_section(values, lengths)},
            facts={},
        )  # fmt: skip

    moderate(ask(7, 5), training, TOKENS)
    with pytest.raises(LimitError, match="2 texts of up to 8 tokens, the job's has at most 2 of u"):
        moderate(ask(8, 5), training, TOKENS)


def test_texts_are_tested_in_batches_that_count_virtual_tokens() -> None:
    """Else one of many short texts would be several times as large as any other."""
    body = made("prompt", "gpt2", "classify", tokens=48)
    seen: list[int] = []
    embed = body.blocks.embed

    def watched(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids.numel())
        return embed(ids)

    body.blocks.embed = watched  # type: ignore[method-assign]
    evaluate(body, body.initial, tiny.examples(90, short=2, long=2))
    assert sum(seen) == 90 * 50
    assert max(seen) <= BATCH_TOKENS


def test_a_batch_has_places_for_virtual_tokens_and_what_is_scored_stands_behind() -> None:
    texts = Examples(
        ids=[torch.tensor([5, 6, 7]), torch.tensor([8, 9])], labels=(),
        scored=[torch.tensor([False, True, True]), torch.tensor([False, True])],
    )  # fmt: skip
    batch = batch_of(texts, [0, 1], ahead=2)
    assert batch.ids.tolist() == [[0, 0, 5, 6, 7], [0, 0, 8, 9, 0]]
    assert batch.lengths.tolist() == [5, 4]
    assert batch.columns.tolist() == [2, 3, 2]
    assert batch.targets.tolist() == [6, 7, 9]
    told = Examples(ids=texts.ids, labels=(1, 0))
    assert batch_of(told, [0, 1], ahead=2).columns.tolist() == [4, 3]
    assert batch_of(told, [0, 1], ahead=2, pool="first").columns.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["prompt", "ptuning"])
def test_flops_are_those_of_longer_texts_and_of_the_network(kind: str) -> None:
    job = tiny.job("params", "causal")
    plain = SharedModel(
        tiny.model("llama", "causal"), tiny.tokenizer(["w3"]), head="vocabulary", classes=0,
        adapter=job.adapter.model_copy(update={"targets": ("q_proj",)}), seed=5,
    )  # fmt: skip
    body = made(kind, "llama", "causal")
    rows, tokens = 3, 7
    found, wanted = count(body, Piece("forward")), count(plain, Piece("forward"))
    factors = sum(t.numel() for t in plain.initial.values())
    network = 3 * 2 * TOKENS * 16 * 16 if kind == "ptuning" else 0
    assert found.of(rows, tokens, rows) == (
        wanted.of(rows, tokens, rows) - 2 * rows * tokens * factors + network
    )
    saved = count(body, WHOLE)
    assert saved.bytes_of(4, 6, 4) > saved.bytes_of(2, 6, 4) > 0
    weights = {p.data_ptr(): p.nbytes for p in body.blocks.model.parameters()}
    assert Costs(body).resident((WHOLE,)) == sum(weights.values())


def test_what_virtual_tokens_do_not_have_is_refused_and_positions_are_fewer() -> None:
    for kind in ("prefix", "prompt", "ptuning"):
        for key, value in (("rank", 4), ("alpha", 3.0), ("targets", ("q",)), ("blocks", "top:1")):
            with pytest.raises(ValidationError, match=rf"adapter\.{key} is not read by {kind}, wh"):
                tiny.job(adapter={"kind": kind, key: value})
        with pytest.raises(ValidationError, match=r"clients\.each\.ann\.rank is not read by"):
            tiny.job(adapter={"kind": kind}, clients={"each": {"ann": {"rank": 4}}})
    with pytest.raises(ValidationError, match=r"tokens is read by prefix, prompt, ptuning only"):
        tiny.job(adapter={"kind": "lora", "tokens": 4})
    most = tiny.SIZES["max_position_embeddings"]
    for kind in ("prompt", "ptuning"):
        body = made(kind, "gpt2", "classify")
        assert body.blocks.positions == most - TOKENS
        body.reseed(9)
        assert body.blocks.positions == most - TOKENS
    for kind in ("prefix", "prompt"):
        with pytest.raises(ModelError, match=r"adapter\.tokens is 64, .* no position left"):
            made(kind, "gpt2", "classify", tokens=most)


@pytest.mark.parametrize(("kind", "family"), [("prompt", "llama"), ("ptuning", "gpt2")])
def test_what_is_written_is_what_stepwise_reading_finds_most_likely(kind: str, family: str) -> None:
    """Of prompts of two lengths side by side, which PEFT's own model does not read alike."""
    body = made(kind, family, "causal")
    tensors = tiny.random_like(body.initial, 4, std=1.0)
    wanted, prompts = list[list[int]](), [[3, 4, 5, 9], [6, 7]]
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(3):
            marks = torch.tensor([False] * len(ids) + [True])
            examples = Examples(ids=[torch.tensor([*ids, 0])], labels=(), scored=[marks])
            batch = batch_of(examples, [0], ahead=TOKENS)
            ids.append(int(body.logits(body.parameters(tensors), batch)[0].argmax()))
        wanted.append(ids[len(prompt) :])
    assert not any(2 in row for row in wanted), "it would end there"
    writer = Writer(body, tensors, Sampling(max_new_tokens=3))
    assert writer.write(prompts, [0, 1]) == wanted
    told: list[list[int]] = []
    assert writer.write(prompts[1:], [1], lambda tokens: told.append(list(tokens))) == wanted[1:]
    assert told[-1] == wanted[1]
    assert writer.context == tiny.SIZES["max_position_embeddings"] - TOKENS
