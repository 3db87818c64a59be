"""A saved adapter is a PEFT folder: transformers and PEFT alone compute from it what we compute."""

import json
import re
import runpy
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from triskel.config.sections import AHEAD, VIRTUAL, Adapter, Model
from triskel.data.batches import batch_of
from triskel.errors import CheckpointError, ModelError
from triskel.export import manifest, model_card
from triskel.export.adapters import read_adapter, save_adapter
from triskel.model import peft_folder, peft_options
from triskel.model.load import load, quiet
from triskel.model.shared import SharedModel
from triskel.model.side_factors import blank, parted
from triskel.types import Examples, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))

CLASSES = ("bad", 'so "so"', "good")
LAST = tiny.LAYERS - 1
WORDS = [f"w{i}" for i in range(30)]
DECODERS = ("llama", "gpt2")
FAMILIES = (*DECODERS, "bert", "roberta")
KINDS = ("lora", "dora", "rslora", "ia3", "loha", "lokr", "vera", "full")
TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
}
CASES = [
    (family, task, kind)
    for family in FAMILIES
    for task in ("classify", "causal")
    for kind in (*KINDS, "bitfit", *VIRTUAL)
    if not (kind == "prefix" and family not in DECODERS)
    if not (kind == "bitfit" and family == "llama")  # it has no bias
    if not (task == "causal" and family in {"bert", "roberta"})  # encoders do not continue texts
    if not (family == "gpt2" and kind in {"loha", "lokr"})  # PEFT has none for its layers
]


def base(folder: Path, family: str, task: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model and tokenizer; a fresh head comes from the adapter."""
    if not folder.exists():
        with quiet():
            tiny.model(family, task, dtype=dtype).save_pretrained(folder)
            tokenizer = tiny.tokenizer(WORDS)
            if family == "roberta":  # its padding is 1, and positions are counted by it
                known = {
                    "<unk>": 0,
                    "<pad>": 1,
                    "<end>": 2,
                    **{w: i for i, w in enumerate(WORDS, 3)},
                }
                inner = tokenizer.backend_tokenizer
                inner.model = tokenizers.models.WordLevel(known, unk_token="<unk>")  # noqa: S106 - a token of text
                tokenizer = transformers.PreTrainedTokenizerFast(
                    tokenizer_object=inner, **tokenizer.special_tokens_map
                )
            tokenizer.save_pretrained(folder)
    return folder


def body_of(
    folder: Path,
    task: str = "classify",
    dtype: str = "float32",
    attention: str = "eager",
    **adapter: object,
) -> SharedModel:
    options = {"path": str(folder), "dtype": dtype, "device": "cpu", "attention": attention}
    return load(
        str(folder),
        Model.model_validate(options),
        Adapter.model_validate({"rank": 4, "alpha": 6.0, **adapter}),
        head=tiny.ENDS[task],
        classes=len(CLASSES) if task == "classify" else 0,
        seed=3,
    )


def names_of(task: str) -> tuple[str, ...]:
    return CLASSES if task == "classify" else ()


def by_peft(folder: Path, task: str, *, adapter: bool = True) -> Any:  # noqa: ANN401 - a model
    """Load as any user of PEFT would, from nothing but the folder."""
    kind: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if task == "classify":
        kind = transformers.AutoModelForSequenceClassification
        options["num_labels"] = len(CLASSES)
    named = str(folder)
    if adapter:
        named = peft.PeftConfig.from_pretrained(named).base_model_name_or_path
    with quiet():
        model = kind.from_pretrained(named, **options)
    return (peft.PeftModel.from_pretrained(model, str(folder)) if adapter else model).eval()


def both(
    body: SharedModel,
    tensors: Tensors,
    model: Any,  # noqa: ANN401 - of transformers or PEFT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of ragged texts: ours, and transformers' own."""
    texts = tiny.examples(5, "classify" if body.classes else "causal", long=11)
    ahead, pool, pad = body.blocks.ahead, body.blocks.pool, int(model.config.pad_token_id or 0)
    batch = batch_of(texts, range(5), pool=pool, ahead=ahead)
    each = [[row] for row in range(5)] if ahead and body.classes and pool == "last" else [range(5)]
    found: list[torch.Tensor] = []
    with torch.no_grad():
        ours = body.logits(body.parameters(tensors), batch)
        for rows in each:  # of padded embeddings transformers takes padding for the last token
            some = batch_of(texts, rows, pool=pool, ahead=ahead)
            given = tiny.called_with(some, pad)
            theirs = model(**{name: t[:, ahead:] for name, t in given.items()}).logits
            found.append(theirs if body.classes else theirs[some.rows, some.columns])
    return ours.float(), torch.cat(found).float()


@pytest.mark.parametrize("blocks", ["all", "top:1"])
@pytest.mark.parametrize(("family", "task", "kind"), CASES)
def test_peft_computes_from_the_folder_what_we_compute(
    family: str, task: str, kind: str, blocks: str, tmp_path: Path
) -> None:
    targets = () if kind in {"ia3", *VIRTUAL} else TARGETS[family]
    folder = base(tmp_path / "base", family, task)
    blocks = "all" if kind in VIRTUAL else blocks  # it is in none, or every one
    body = body_of(folder, task, kind=kind, blocks=blocks, targets=targets)
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, names_of(task))
    ours, theirs = both(body, tensors, by_peft(tmp_path / "a", task))
    assert float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(ours.abs().max()))
    assert tiny.equal(read_adapter(tmp_path / "a", body), tensors)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize(("family", "task"), [("llama", "classify"), ("gpt2", "causal")])
def test_peft_computes_the_side_factors_too(
    family: str, task: str, kind: str, tmp_path: Path
) -> None:
    """The folder is an adapter of their common rank, of the scale that the job's has."""
    folder = base(tmp_path / "base", family, task)
    body = body_of(folder, task, kind=kind, targets=TARGETS[family])
    side = tiny.random_like(dict(list(blank(body.initial, 5).items())[:-2]), 2)
    tensors = tiny.random_like(body.initial, 1) | side
    save_adapter(tmp_path / "a", body, tensors, names_of(task))
    ours, theirs = both(body, tensors, by_peft(tmp_path / "a", task))
    assert float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(ours.abs().max()))
    plain, _ = both(body, parted(tensors)[0], by_peft(tmp_path / "a", task))
    assert float((ours - plain).abs().max()) > 1e-3, "they do something"
    again = read_adapter(tmp_path / "a", body)
    assert tiny.equal({n: again[n] for n in tensors}, tensors)
    assert not any(bool(again[n].any()) for n in again.keys() - tensors.keys()), "filled up"
    with pytest.raises(ModelError, match="it belongs to another job"):
        peft_folder.read(tmp_path / "a", body)


@pytest.mark.parametrize("side", [0, 3, 50, -1, "2", None])
def test_side_factors_that_a_manifest_lies_about_are_refused(side: object, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    body = body_of(folder, "classify", targets=TARGETS["llama"])
    beside = tiny.random_like(blank(body.initial, 2), 2)
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1) | beside, CLASSES)
    place = tmp_path / "a" / manifest.MANIFEST
    told = json.loads(place.read_text())
    place.write_text(json.dumps({**told, "side": side}))
    with pytest.raises((ModelError, CheckpointError)):
        read_adapter(tmp_path / "a", body)


def test_factors_that_peft_would_not_apply_are_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    body = body_of(folder, "classify", targets=TARGETS["llama"])
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    weights = tmp_path / "a" / peft_folder.WEIGHTS
    more = {peft_options.to_peft(n): t for n, t in blank(body.initial, 2).items()}
    save_file({**load_file(weights), **more}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="which PEFT would not apply"):
        read_adapter(tmp_path / "a", body)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal"), ("gpt2", "causal")])
def test_in_bfloat16_a_causal_model_is_the_same_to_the_bit(
    family: str, task: str, tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", family, task, torch.bfloat16)
    body = body_of(folder, task, "bfloat16", targets=TARGETS[family])
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, ())
    ours, theirs = both(body, tensors, by_peft(tmp_path / "a", task))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_only_the_head_is_rounded(family: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", family, "classify", torch.bfloat16)
    body = body_of(folder, "classify", "bfloat16", targets=TARGETS[family])
    rounded = {
        n: t.bfloat16().float() if n in body.layout.head else t
        for n, t in tiny.random_like(body.initial, 1).items()
    }
    save_adapter(tmp_path / "a", body, rounded, CLASSES)
    ours, theirs = both(body, rounded, by_peft(tmp_path / "a", "classify"))
    assert float((ours - theirs).abs().max()) <= 2**-6 * max(1.0, float(ours.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_options_are_those_peft_writes_itself(kind: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    body = body_of(folder, kind=kind, targets=() if kind == "ia3" else TARGETS["llama"])
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, CLASSES)
    by_peft(tmp_path / "a", "classify").save_pretrained(tmp_path / "b")
    mine, theirs = (load_file(tmp_path / x / peft_folder.WEIGHTS) for x in "ab")
    assert tiny.equal(mine, theirs)
    one, two = (json.loads((tmp_path / x / "adapter_config.json").read_text()) for x in "ab")
    assert one["task_type"] == two["task_type"] == "SEQ_CLS"
    assert one["base_model_name_or_path"] == str(folder)
    assert one["inference_mode"] is True
    assert one["modules_to_save"] == ["score"]
    assert one.keys() == two.keys()


@pytest.mark.parametrize(
    ("family", "adapter", "wanted", "layers"),
    [
        ("llama", {}, ["q_proj", "v_proj"], None),
        ("llama", {"blocks": "0-1"}, ["q_proj", "v_proj"], [0, 1]),
        ("gpt2", {"targets": ("attn.c_proj",)}, ["attn.c_proj"], None),  # c_proj is in mlp too
        ("bert", {"targets": ("intermediate.dense",)}, ["intermediate.dense"], None),
        ("roberta", {"targets": ("dense",), "blocks": "top:1"}, ["dense"], [LAST]),
        ("llama", {"kind": "ia3"}, ["down_proj", "k_proj", "v_proj"], None),
        (
            "llama",
            {"kind": "ia3", "blocks": "top:1"},
            [f"model.layers.{LAST}.{n}_proj" for n in ("mlp.down", "self_attn.k", "self_attn.v")],
            None,
        ),
    ],
)  # fmt: skip
def test_targets_are_named_as_shortly_as_they_mean_the_same(
    family: str,
    adapter: dict[str, Any],
    wanted: list[str],
    layers: list[int] | None,
    tmp_path: Path,
) -> None:
    folder = base(tmp_path / "base", family, "classify")
    given = {"targets": () if "kind" in adapter else TARGETS[family], **adapter}
    body = body_of(folder, **given)
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    options = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert options["target_modules"] == wanted
    assert options.get("layers_to_transform") == layers


def test_an_adapter_in_every_dense_layer_of_an_encoder_leaves_its_head_alone(
    tmp_path: Path,
) -> None:
    folder = base(tmp_path / "base", "roberta", "classify")
    body = body_of(folder, targets=("dense",))
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, CLASSES)
    ours, theirs = both(body, tensors, by_peft(tmp_path / "a", "classify"))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


# --- the card ---------------------------------------------------------------------------------


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {}
    with quiet():
        exec(compile(code_of(folder), "card", "exec"), space)  # noqa: S102 - what a reader would run
    return space


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_on_a_classifiers_card_runs_and_agrees(
    family: str,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = base(tmp_path / "base", family, "classify", getattr(torch, dtype))
    body = body_of(folder, dtype=dtype, targets=TARGETS[family])
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, CLASSES)
    space = run_card(tmp_path / "a", monkeypatch)
    assert space["model"].config.id2label == dict(enumerate(CLASSES))
    assert capsys.readouterr().out.count(" -> ") == 2
    ids = [torch.tensor(space["tokenizer"](text)["input_ids"]) for text in space["texts"]]
    texts = Examples(ids=ids, labels=(0, 0))
    with torch.no_grad():
        batch = batch_of(texts, [0, 1], pool=body.blocks.pool)
        ours = body.logits(body.parameters(tensors), batch)
    assert space["logits"].dtype == torch.float32, "a rounded score makes ties"
    assert torch.allclose(space["logits"], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", AHEAD)
def test_the_code_on_a_card_asks_one_by_one_behind_virtual_tokens(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = body_of(base(tmp_path / "base", "gpt2", "classify"), kind=kind, tokens=4)
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, CLASSES)
    space = run_card(tmp_path / "a", monkeypatch)
    shown = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    ids = [torch.tensor(space["tokenizer"](text)["input_ids"]) for text in space["texts"]]
    batch = batch_of(Examples(ids=ids, labels=(0, 0)), [0, 1], ahead=4)
    shares = body.logits(body.parameters(tensors), batch).softmax(-1)
    assert shown == pytest.approx(shares.amax(-1).tolist(), abs=1e-5)


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_code_on_a_card_names_attention_and_type_of_the_run(
    attention: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path / "base", "llama", task)
    body = body_of(folder, task, "bfloat16", attention)
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), names_of(task))
    inner = run_card(tmp_path / "a", monkeypatch)["model"].get_base_model()
    assert inner.config._attn_implementation == attention
    assert inner.dtype == torch.bfloat16


def test_a_base_with_a_head_for_other_classes_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet():
        tiny.model("llama", num_labels=7).save_pretrained(tmp_path / "base")
        tiny.tokenizer(WORDS).save_pretrained(tmp_path / "base")
    body = body_of(tmp_path / "base")
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    assert run_card(tmp_path / "a", monkeypatch)["logits"].shape == (2, len(CLASSES))


def test_a_card_says_the_name_of_a_folder_and_not_where_it_lies(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    text = (tmp_path / "a" / "README.md").read_text()
    before, _, after = text.partition("```python\n")
    assert "adapter and head for `base`" in before
    assert str(tmp_path) not in before + after.partition("```")[2]


def test_a_sheet_from_before_attention_was_written_down_reads_as_the_default(
    tmp_path: Path,
) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    place = tmp_path / "a" / "triskel.json"
    raw = json.loads(place.read_text())
    assert raw.pop("attention") == "eager"
    raw["training"] = {**asdict(training()), "shared_labels": True}  # of that version too
    place.write_text(json.dumps(raw))
    read = manifest.read_manifest(tmp_path / "a")
    assert (read.attention, read.training) == ("eager", training())


@pytest.mark.parametrize("layout", ["", "Q: {prompt}\nA: {response}.", "chat"])
def test_the_code_on_a_generators_card_runs(
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = base(tmp_path / "base", "llama", "causal")
    if layout == "chat":
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} w1 ")
    body = body_of(folder, "causal")
    told = training(mode="split", prompt=layout)
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), (), told)
    space = run_card(tmp_path / "a", monkeypatch)
    assert capsys.readouterr().out
    wanted = {"": "Federated learning is", "chat": "What is federated learning? w1 "}
    assert space["text"] == wanted.get(layout, "Q: What is federated learning?\nA: ")


def training(**facts: object) -> manifest.Training:
    given: dict[str, Any] = {
        "job": "clinics",
        "mode": "params",
        "rounds": 2,
        "clients": 4,
        "seed": 7,
        "max_tokens": 24,
        "scores": {"accuracy": 0.8125, "macro_f1": 0.75},
        **facts,
    }
    return manifest.Training(**given)


def test_a_card_tells_how_it_was_trained_and_what_is_unknown(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    told = training(up_bytes=2_000_000, down_bytes=1_500_000)
    save_adapter(tmp_path / "a", body, body.initial, CLASSES, told)
    text = (tmp_path / "a" / "README.md").read_text()
    for words in (
        "| | everybody's test texts | own test texts |",
        "| accuracy | 0.8125 | – |",
        "4 clients, 2 rounds, seed 7",
        "sent 2 MB and received 1.5 MB",
        "max_length=24",
        "licence of the base model is not known",
        "no formal privacy guarantee",
        "2501.04436",
    ):
        assert words in text
    assert "license:" not in text
    assert manifest.read_manifest(tmp_path / "a").training == told


@pytest.mark.parametrize("mode", ["params", "logits", "split", "central", "local"])
@pytest.mark.parametrize("own", [False, True])
def test_every_stage_has_a_card(mode: str, own: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(
        tmp_path / "a",
        body,
        body.initial,
        CLASSES,
        training(mode=mode, own=own, clients=1, rounds=1),
    )
    text = (tmp_path / "a" / "README.md").read_text()
    assert "1 client, 1 round," in text
    assert ("this client's own test texts" in text) == own


def test_a_card_has_both_columns_and_says_whose_model_each_is_of(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    columns = {"everybody": {"accuracy": 0.8125}, "own_texts": {"accuracy": 0.9375}}
    said = {
        "params": "Both columns are of this model",
        "logits": "not this model but the clients' own",
    }
    for mode, words in said.items():
        place = tmp_path / mode
        told = training(mode=mode, personal=mode == "logits", **columns)
        save_adapter(place, body, body.initial, CLASSES, told)
        text = (place / "README.md").read_text()
        assert "| accuracy | 0.8125 | 0.9375 |" in text
        assert words in text
        assert manifest.read_manifest(place).training == told
    own = training(mode="logits", own=True)
    save_adapter(tmp_path / "own", body, body.initial, CLASSES, own)
    text = (tmp_path / "own" / "README.md").read_text()
    assert "| accuracy | – | 0.8125 |" in text
    assert "of this one client's model" in text


def test_a_sheet_written_before_there_were_columns_is_read(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES, training())
    place = tmp_path / "a" / manifest.MANIFEST
    raw = json.loads(place.read_text())
    del raw["training"]["everybody"], raw["training"]["own_texts"]
    place.write_text(json.dumps(raw))
    assert manifest.read_manifest(tmp_path / "a").training == training()


def test_an_assets_card_names_the_asset_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRISKEL_CACHE", str(tmp_path))
    body = body_of(base(tmp_path / "smollm2-135m", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    text = (tmp_path / "a" / "README.md").read_text()
    assert "asset `smollm2-135m`" in text
    assert "license: apache-2.0" in text
    assert "arXiv:2502.02737" in text


def test_a_padding_token_is_never_what_closes_a_text(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer(WORDS)
    assert peft_folder.padding_token(tokenizer) == "<pad>"
    tokenizer.pad_token = None
    assert peft_folder.padding_token(tokenizer) == "<end>"
    closing = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=WORDS[3],
        unk_token=None,
    )
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - used once

    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A w3", special_tokens=[("w3", 6)]
    )
    assert closing("w1")["input_ids"][-1] == 6
    assert peft_folder.padding_token(closing) == "<pad>"  # token 0: none is special
    assert tmp_path.exists()


# --- what is refused, and what a crash leaves ---------------------------------------------------


def test_saving_replaces_a_folder_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    (tmp_path / ".a.making-1").mkdir()  # of a run that was killed
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    (tmp_path / "a" / "stray").write_text("x")
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, CLASSES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "base"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "triskel.json",
    ]  # fmt: skip
    assert tiny.equal(read_adapter(tmp_path / "a", body), tensors)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"), targets=("up_proj", "q_proj"))
    for name in "ab":
        save_adapter(tmp_path / name, body, body.initial, CLASSES, training())
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_full_disk_keeps_the_folder_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_folder, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    assert tiny.equal(read_adapter(tmp_path / "a", body), body.initial)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "base"]


def test_a_failed_rename_keeps_the_folder_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to.name == "a" and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError):
        save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    monkeypatch.undo()
    assert tiny.equal(read_adapter(tmp_path / "a", body), body.initial)


def test_tensors_of_another_model_are_refused_when_written(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    name = next(iter(body.initial))
    for wrong, words in (
        ({n: t for n, t in body.initial.items() if n != name}, "lacks 1 tensors"),
        ({**body.initial, "stray": torch.zeros(1)}, "'stray', which this model does not train"),
        ({**body.initial, name: torch.zeros(1)}, r"of shape \(1,\)"),
        ({**body.initial, name: body.initial[name].int()}, "needs floats"),
    ):
        with pytest.raises(ModelError, match=words):
            save_adapter(tmp_path / "a", body, wrong, CLASSES)
        assert not (tmp_path / "a").exists()


def test_reading_refuses_what_does_not_fit(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    body = body_of(folder)
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    for other, words in (
        ({"rank": 2}, "r = 4 and the job's adapter has 2"),
        ({"alpha": 7.0}, "lora_alpha = 6"),
        ({"kind": "rslora"}, "use_rslora = False"),
        ({"kind": "loha"}, "peft_type = 'LORA'"),
        ({"blocks": "top:1"}, "does not train"),
    ):
        with pytest.raises(ModelError, match=words):
            read_adapter(tmp_path / "a", body_of(folder, **other))
    with quiet():
        tiny.model("llama", seed=9).save_pretrained(tmp_path / "other")
        tiny.tokenizer(WORDS).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="trained on another base model"):
        read_adapter(tmp_path / "a", body_of(tmp_path / "other"))


def test_reading_refuses_a_damaged_folder(tmp_path: Path) -> None:
    body = body_of(base(tmp_path / "base", "llama", "classify"))
    save_adapter(tmp_path / "a", body, body.initial, CLASSES)
    weights, facts = tmp_path / "a" / peft_folder.WEIGHTS, tmp_path / "a" / manifest.MANIFEST
    whole, known = weights.read_bytes(), facts.read_text()
    weights.write_bytes(whole[:-9])
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path / "a", body)
    weights.write_bytes(whole)
    for text in ("{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "training": {}}'):
        facts.write_text(text)
        with pytest.raises(CheckpointError, match=r"triskel\.json is missing or damaged"):
            read_adapter(tmp_path / "a", body)
    facts.write_text(known.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(CheckpointError, match="has schema 2; this version reads 1"):
        read_adapter(tmp_path / "a", body)
    with pytest.raises(CheckpointError):
        read_adapter(tmp_path / "none", body)


def test_a_base_has_one_fingerprint_in_float32_and_bfloat16(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    bodies = [body_of(folder, dtype=d) for d in ("float32", "bfloat16", "float64")]
    bodies.append(body_of(folder, kind="ia3", blocks="top:1"))
    assert len({peft_folder.fingerprint(body) for body in bodies}) == 1


# --- merged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "kind"), [case for case in CASES if case[2] not in VIRTUAL]
)
def test_a_merged_model_computes_what_we_compute_and_needs_no_peft(
    family: str, task: str, kind: str, tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", family, task)
    body = body_of(folder, task, kind=kind, targets=() if kind == "ia3" else TARGETS[family])
    tensors = tiny.random_like(body.initial, 1)
    save_adapter(tmp_path / "a", body, tensors, names_of(task))
    (tmp_path / "m").mkdir()
    peft_folder.merge(
        tmp_path / "a",
        str(folder),
        tmp_path / "m",
        classes=names_of(task),
        pad="<pad>" if family in DECODERS else "",
    )
    model = by_peft(tmp_path / "m", task, adapter=False)
    ours, theirs = both(body, tensors, model)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(ours.abs().max())))
    assert model.dtype == torch.float32
    if task == "classify":
        assert model.config.id2label == dict(enumerate(CLASSES))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m")("w1")["input_ids"] == [4]


@pytest.mark.parametrize(
    ("kind", "method", "place"),
    [("prefix", "PREFIX_TUNING", ", in blocks `all`"), ("prompt", "PROMPT_TUNING", " before a"),
     ("ptuning", "P_TUNING", " before a")],
)  # fmt: skip
def test_virtual_tokens_are_not_merged(kind: str, method: str, place: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama", "causal")
    body = body_of(folder, "causal", kind=kind)
    save_adapter(tmp_path / "a", body, body.initial, ())
    told = model_card.card(manifest.read_manifest(tmp_path / "a"))
    assert f"The adapter is {kind} of 20 virtual tokens{place}" in told.replace("\n", " ")
    with pytest.raises(ModelError, match=f"{method} cannot be merged into this model: virtual"):
        peft_folder.merge(tmp_path / "a", str(folder), tmp_path, classes=(), pad="")


def test_a_merged_model_keeps_its_bases_type_and_its_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base(tmp_path / "base", "llama", "classify", torch.bfloat16)
    body = body_of(folder)
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    (tmp_path / "m").mkdir()
    peft_folder.merge(tmp_path / "a", str(folder), tmp_path / "m", classes=CLASSES, pad="<pad>")
    (tmp_path / "m" / "README.md").write_text(
        model_card.card(manifest.read_manifest(tmp_path / "a"), merged=True)
    )
    space = run_card(tmp_path / "m", monkeypatch)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert space["model"].dtype == torch.float32, "as the run computed"
    assert capsys.readouterr().out.count(" -> ") == 2


def test_an_adapter_that_cannot_be_merged_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path / "base", "llama", "classify")
    body = body_of(folder)
    save_adapter(tmp_path / "a", body, tiny.random_like(body.initial, 1), CLASSES)
    model = peft.tuners.lora.LoraModel

    def merge() -> None:
        peft_folder.merge(tmp_path / "a", str(folder), tmp_path, classes=CLASSES, pad="<pad>")

    def forgets(*_: object, **__: object) -> None:
        """Merge nothing."""

    def refuses(*_: object, **__: object) -> None:
        raise NotImplementedError

    with monkeypatch.context() as patch:
        patch.setattr(model, "merge_adapter", refuses)
        with pytest.raises(ModelError, match="LORA cannot be merged into this model: NotImpl"):
            merge()
    with monkeypatch.context() as patch:
        patch.setattr(model, "merge_adapter", forgets)
        with pytest.raises(ModelError, match="merging changes its logits by"):
            merge()
    save_file({}, tmp_path / "a" / peft_folder.WEIGHTS)
    with pytest.raises(ModelError, match="cannot be loaded"):
        peft_folder.merge(tmp_path / "a", "no/where", tmp_path, classes=CLASSES, pad="<pad>")
