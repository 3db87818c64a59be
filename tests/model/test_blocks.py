"""The map of parts runs every supported model as transformers itself runs it."""

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from triskel.data.batches import batch_of
from triskel.errors import ModelError
from triskel.model.blocks import Blocks
from triskel.model.families import family_of
from triskel.model.shared import Choice, SharedModel
from triskel.training.loop import label_loss
from triskel.types import Batch, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
STEPS = tiny.LAYERS * 3  # of float32 in float64 runs: norms, softmax
BOUND = {torch.float32: 1e-5, torch.float64: STEPS * torch.finfo(torch.float32).eps}
CUTS = [(0, 0), (0, 1), (0, 4), (1, 3), (2, 2), (3, 4), (4, 4)]


def made(family: str, task: str, **options: object) -> tuple[SharedModel, Batch]:
    """A body and a batch of ragged texts, one of a single token and some beyond the window."""
    body = tiny.body(family, tiny.job(task=task), **options)
    texts = tiny.examples(5, task, short=1 if task == "classify" else 2, long=11)
    return body, batch_of(texts, range(5), pool=body.blocks.pool)


def own(family: str, head: Tensors, batch: Batch, task: str, **options: object) -> torch.Tensor:
    """What transformers returns at the scored positions."""
    model = tiny.model(family, task, **options)
    missing, unexpected = model.load_state_dict(head, strict=False)
    assert not unexpected
    assert len(missing) + len(head) == len(model.state_dict())
    inputs = tiny.called_with(batch, int(model.config.pad_token_id or 0))
    with torch.no_grad():
        if family in tiny.SLIDING and options["dtype"] == torch.float64:
            # A padded row outside its window is NaN in transformers itself: its eager softmax is
            # float32, where the least float64 is minus infinity. So text by text, unpadded.
            alone = [
                {k: v[i : i + 1, :n] for k, v in inputs.items()}
                for i, n in enumerate(batch.lengths)
            ]
            found = [model(**one).logits[0] for one in alone]
            if task == "classify":
                return torch.stack(found)
            return torch.stack(
                [found[r][c] for r, c in zip(batch.rows, batch.columns, strict=True)]
            )
        out = model(**inputs).logits
    return out if task == "classify" else out[batch.rows, batch.columns]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("family", "task", "attention"), tiny.KERNELS)
def test_logits_are_those_of_the_model_itself(
    family: str, task: str, attention: str, dtype: torch.dtype
) -> None:
    options = {"attention": attention, "dtype": dtype}
    body, batch = made(family, task, **options)
    head = tiny.random_like({n: body.initial[n].to(dtype) for n in body.layout.head}, 3)
    with torch.no_grad():
        found = body.logits(body.parameters({**body.initial, **head}), batch)
    wanted = own(family, head, batch, task, **options)
    assert found.dtype == dtype
    assert float(wanted.abs().max()) > 0.1, "the comparison would be of zeros"
    torch.testing.assert_close(found, wanted, rtol=BOUND[dtype], atol=BOUND[dtype])
    if dtype == torch.float64:
        with tiny.Wide(), torch.no_grad():
            found = body.logits(body.parameters({**body.initial, **head}), batch)
            wanted = own(family, head, batch, task, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f, t, a in tiny.KERNELS if f in tiny.SLIDING and t == "causal"],
)
def test_a_window_shorter_than_the_text_changes_what_is_predicted(
    family: str, attention: str
) -> None:
    body, batch = made(family, "causal", attention=attention)
    wide, _ = made(family, "causal", attention=attention, sliding_window=60)
    assert int(batch.lengths.max()) > tiny.WINDOW + 2
    with torch.no_grad():
        narrow = body.logits(body.parameters(body.initial), batch)
        whole = wide.logits(wide.parameters(wide.initial), batch)
    near = batch.columns < tiny.WINDOW
    torch.testing.assert_close(narrow[near], whole[near], rtol=1e-5, atol=1e-5)
    far = narrow[~near] - whole[~near]
    assert bool((far.abs().amax(-1) > 1e-4).all()), "a token beyond the window was still seen"


@pytest.mark.parametrize(("family", "task", "attention"), tiny.KERNELS)
def test_any_cut_gives_the_joined_model_bit_for_bit(family: str, task: str, attention: str) -> None:
    body, batch = made(family, task, attention=attention)
    tensors = body.parameters(tiny.random_like(body.initial, 1))
    with torch.no_grad():
        joined = body.logits(tensors, batch)
        for low, high in CUTS:
            h = body.bottom(tensors, batch, low)
            u = body.middle(tensors, h, batch.lengths, low=low, high=high)
            assert torch.equal(body.top(tensors, u, batch, high), joined), (low, high)


@pytest.mark.parametrize(("family", "task"), tiny.TASKS)
def test_the_head_alone_finishes_chosen_rows(family: str, task: str) -> None:
    body, batch = made(family, task)
    tensors = body.parameters(tiny.random_like(body.initial, 1))
    with torch.no_grad():
        h = body.bottom(tensors, batch, body.blocks.count)
        found = body.head(tensors, h[batch.rows, batch.columns])
        torch.testing.assert_close(found, body.logits(tensors, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "task", "attention"), tiny.KERNELS)
def test_a_text_predicts_the_same_alone_as_beside_longer_ones(
    family: str, task: str, attention: str
) -> None:
    texts = tiny.examples(5, task, long=11)
    bounds = {torch.float64: 1e-10, torch.float32: 1e-4}  # 4 blocks make 1e-7 1e-5
    for dtype, bound in bounds.items():
        body = tiny.body(family, tiny.job(task=task), attention=attention, dtype=dtype)
        tensors = body.parameters(tiny.random_like(body.initial, 1))
        with tiny.Wide(), torch.no_grad():
            together = batch_of(texts, range(5), pool=body.blocks.pool)
            all_five = body.logits(tensors, together)
            for row in range(5):
                alone = body.logits(tensors, batch_of(texts, [row], pool=body.blocks.pool))
                beside = all_five[together.rows == row]
                torch.testing.assert_close(alone, beside, rtol=bound, atol=bound)


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_adapted_logits_and_gradients_are_those_of_peft(family: str, task: str) -> None:
    job = tiny.job(task=task)
    body, plain = (
        tiny.body(family, job, dtype=torch.float64),
        tiny.Plain(family, job, dtype=torch.float64),
    )
    tensors = tiny.random_like(body.initial, 2)
    batch = batch_of(tiny.examples(4, task), range(4), pool=body.blocks.pool)
    leaves = body.parameters(tensors)
    found, wanted = body.logits(leaves, batch), plain.load(tensors).logits(batch)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    slopes = torch.autograd.grad(found.square().sum(), list(leaves.values()))
    own_slopes = torch.autograd.grad(wanted.square().sum(), [plain.parameters()[n] for n in leaves])
    for name, slope, other in zip(leaves, slopes, own_slopes, strict=True):
        assert float(other.norm()) > 0, name
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-10)


def test_the_order_and_place_of_parts_are_found_by_name() -> None:
    for family, prefix in (
        ("llama", "model.layers."),
        ("gpt2", "transformer.h."),
        ("bert", "bert.encoder.layer."),
    ):
        body = tiny.body(family, tiny.job())
        assert (body.blocks.count, body.blocks.width) == (tiny.LAYERS, 16)
        for name, block in body.layout.block.items():
            assert name.startswith(f"{prefix}{block}.")
        each = [set(body.layout.within(i, i + 1)) for i in range(tiny.LAYERS)]
        assert all(not left & right for left, right in pairwise(each))
        assert set.union(*each) == set(body.layout.block)
        assert set(body.layout.within(1, 3, head=True)) == each[1] | each[2] | set(body.layout.head)


def test_tensors_of_two_parties_never_mix_in_one_model() -> None:
    body, batch = made("llama", "classify")
    ann = body.parameters(tiny.random_like(body.initial, 1))
    bob = body.parameters(tiny.random_like(body.initial, 2))
    alone = torch.autograd.grad(body.logits(ann, batch).sum(), list(ann.values()))
    first = body.logits(ann, batch)  # this graph is open while the other party runs
    body.logits(bob, batch).sum().backward()
    after = torch.autograd.grad(first.sum(), list(ann.values()))
    assert all(torch.equal(x, y) for x, y in zip(alone, after, strict=True))
    assert all(p.grad is None for p in ann.values())


def test_parameters_are_copies_that_must_fit() -> None:
    body, _ = made("llama", "classify")
    leaves = body.parameters(body.initial)
    name = next(iter(leaves))
    with torch.no_grad():
        leaves[name].add_(1.0)
    assert not torch.equal(body.initial[name], leaves[name])
    with pytest.raises(ModelError, match=r"nobody.*does not fit"):
        body.parameters({"nobody": torch.zeros(2)})
    with pytest.raises(ModelError, match="does not fit"):
        body.parameters({name: torch.zeros(2, 2)})


def test_a_missing_tensor_is_named() -> None:
    body, batch = made("llama", "classify")
    name = body.layout.within(0, 1)[0]
    with pytest.raises(ModelError, match=name):
        body.logits({n: p for n, p in body.parameters(body.initial).items() if n != name}, batch)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_blocks_may_wrap_what_they_return(family: str) -> None:
    """Some versions of transformers return a tuple, of some models."""
    body, batch = made(family, "classify")
    leaves = body.parameters(body.initial)
    with torch.no_grad():
        wanted = body.logits(leaves, batch)
        for block in body.blocks.list:
            block.register_forward_hook(lambda _module, _args, out: (out, "more"))
        assert torch.equal(body.logits(leaves, batch), wanted)


def test_an_unknown_architecture_and_a_task_it_cannot_do_are_refused() -> None:
    unknown = tiny.model("llama")
    unknown.config.model_type = "t5"
    with pytest.raises(
        ModelError,
        match=r"'t5' is not supported \(it has an encoder and a decoder\); these are: llama",
    ):
        family_of("t5", "classes")
    with pytest.raises(
        ModelError, match="'bert' has no head over the vocabulary; these have: llama"
    ):
        family_of("bert", "vocabulary")
    with pytest.raises(ModelError, match="'t5'"):
        Blocks(unknown, "classes")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_text_of_as_many_tokens_as_there_are_positions_runs_and_a_longer_one_does_not(
    family: str,
) -> None:
    body, _ = made(family, "classify")
    most = body.blocks.positions
    learned = dict.fromkeys(("gpt2", "bert", "opt", "distilbert", "electra"), 64)
    learned |= dict.fromkeys(("roberta", "mpnet"), 64 - 2)  # their padding is 1
    assert most == learned.get(family)
    for tokens in (62, 64) if most is None else (most, most + 1):
        batch = batch_of(tiny.examples(1, short=tokens, long=tokens), [0], pool=body.blocks.pool)
        if most is not None and tokens > most:
            with pytest.raises((IndexError, RuntimeError)):
                body.logits(body.parameters(body.initial), batch)
        else:
            assert body.logits(body.parameters(body.initial), batch).isfinite().all()


def test_only_adapter_and_head_train() -> None:
    for family, task in tiny.JOINED:
        body, _ = made(family, task)
        assert not any(
            p.requires_grad
            for n, p in body.blocks.model.named_parameters()
            if "lora" not in n and not n.startswith(body.blocks.head_names)
        )
        assert bool(body.layout.head) == (task == "classify")


@pytest.mark.parametrize("family", tiny.TARGETS)
@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "ia3", "loha", "lokr"])
def test_every_kind_of_adapter_can_be_cut_and_trains_in_every_block(kind: str, family: str) -> None:
    job = tiny.job(adapter={"kind": kind})
    model = tiny.model(family, dtype=torch.float64)
    targets = () if kind == "ia3" else tiny.TARGETS[family]
    adapter = job.adapter.model_copy(update={"targets": targets})
    options = {"head": "classes", "classes": tiny.CLASSES, "adapter": adapter, "seed": job.seed}
    if (kind, family) in {("loha", "gpt2"), ("lokr", "gpt2")}:
        with pytest.raises(ModelError, match=f"'{kind}' cannot be put into a gpt2 model"):
            SharedModel(model, None, **options)
        return
    body = SharedModel(model, None, **options)
    batch = batch_of(tiny.examples(4), range(4), pool=body.blocks.pool)
    start = {n: t + 0.1 * tiny.random_like({n: t}, 1)[n] for n, t in body.initial.items()}
    tensors = body.parameters(start)
    joined = body.logits(tensors, batch)
    h = body.bottom(tensors, batch, 1)
    u = body.middle(tensors, h, batch.lengths, low=1, high=3)
    assert torch.equal(body.top(tensors, u, batch, 3), joined)
    for name, slope in zip(
        tensors, torch.autograd.grad(joined.sum(), tensors.values()), strict=True
    ):
        assert bool(slope.any()), name
    assert set(body.layout.block.values()) == set(range(tiny.LAYERS))


@pytest.mark.parametrize(("kind", "scale"), [("lora", 6 / 2), ("rslora", 6 / 2**0.5)])
def test_the_scale_on_the_wire_is_what_peft_multiplies_by(kind: str, scale: float) -> None:
    body = tiny.body("llama", tiny.job(adapter={"kind": kind}))
    assert body.layout.scale == pytest.approx(scale)
    used = {
        m.scaling["default"]
        for m in body.blocks.model.modules()
        if hasattr(m, "scaling") and isinstance(m.scaling, dict)
    }
    assert len(used) == 1
    assert used.pop() == pytest.approx(scale)


@pytest.mark.parametrize("kind", ["lora", "rslora", "ia3", "loha"])
def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    for task in ("classify", "causal"):
        job = tiny.job(task=task, adapter={"kind": kind})
        targets = () if kind == "ia3" else tiny.TARGETS["llama"]
        model = tiny.model("llama", task)
        adapter = job.adapter.model_copy(update={"targets": targets})
        body = SharedModel(
            model,
            tiny.tokenizer(),
            head=tiny.ENDS[task],
            classes=0,
            adapter=adapter,
            seed=job.seed,
        )
        texts = tiny.examples(4, task)
        batch = batch_of(texts, range(4))
        with torch.no_grad():
            h = body.bottom(body.parameters(body.initial), batch, tiny.LAYERS)
            plain = tiny.model("llama", task)
            wanted = plain.model(**tiny.called_with(batch, 0)).last_hidden_state
            found = body.blocks.norm(h)[batch.rows, batch.columns]
        torch.testing.assert_close(found, wanted[batch.rows, batch.columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("llama", {"kind": "dora", "dropout": 0.5}),
        ("gpt2", {"dropout": 0.5}),
        ("gemma2", {}),
        ("bert", {"dropout": 0.5}),
        ("roberta", {"kind": "ia3"}),
    ],
)
def test_library_blocks_computed_twice_have_the_same_bits(
    family: str, adapter: dict[str, object]
) -> None:
    """Also when another party's tensors lie in the slots by then, and dropout is off again."""
    body = tiny.body(family, tiny.job(adapter=adapter))
    batch = batch_of(tiny.examples(4), range(4), pool=body.blocks.pool)
    parties = [tiny.random_like(body.initial, seed) for seed in (1, 2)]
    kept: list[int] = []

    def slopes(*, recompute: bool) -> list[torch.Tensor]:
        body.use(Choice(recompute=recompute))
        size = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        open_: list[tuple[torch.Tensor, list[nn.Parameter]]] = []
        for place, party in enumerate(parties):
            leaves = body.parameters(party)
            body.dropout(place)
            with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
                loss = label_loss(body.logits(leaves, batch), batch)
            open_.append((loss, list(leaves.values())))
        body.dropout(None)
        kept.append(size)
        found = [x for loss, own in open_ for x in torch.autograd.grad(loss, own)]
        assert not any(module.training for module in body._dropouts)
        return found

    plain, twice = slopes(recompute=False), slopes(recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, twice, strict=True))
    assert kept[1] < kept[0] / 4
