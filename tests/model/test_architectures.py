"""Every architecture of the table runs in every mode, is counted, and leaves what others load."""

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from triskel.aggregate.mean import Mean
from triskel.data.batches import batch_of
from triskel.errors import ModelError
from triskel.export.adapters import save_adapter
from triskel.model import peft_folder
from triskel.model.architectures import DECODERS, ENCODERS, HEADS, misfit
from triskel.model.families import FAMILIES
from triskel.model.flops import Piece, count
from triskel.model.load import quiet
from triskel.model.meter import Costs
from triskel.model.shared import SharedModel
from triskel.modes.logits.mode import Logits
from triskel.modes.params.mode import Params
from triskel.modes.split.mode import Split

HERE = Path(__file__).parents[1]
tiny = SimpleNamespace(**runpy.run_path(str(HERE / "helpers" / "tiny.py")))
LATER = ["phi3", "gpt_neox", "opt", "falcon", "bloom", "distilbert", "electra", "mpnet"]
"""Those that no other test of a mode or of an export plays."""
PLAYED = [(f, t) for f, t in tiny.TASKS if f in LATER]


def test_every_architecture_has_a_place_in_one_family() -> None:
    named = [name for family in FAMILIES for name in family.types]
    assert sorted(named) == sorted(HEADS)
    for family in FAMILIES:
        for name in family.types:
            assert set(family.heads) == set(HEADS[name]), name
            assert family.causal == (name in DECODERS)
    assert set(tiny.FAMILIES) | {"xlm-roberta", "camembert"} == set(HEADS)


def test_the_page_of_a_job_has_a_row_for_every_architecture() -> None:
    page = (HERE.parent / "docs" / "job.md").read_text(encoding="utf-8")
    table = page.partition("| task | architecture |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:] for line in table.splitlines()[2:]]
    told = {
        name: cells[0].strip() for cells in rows for name in re.findall(r"`([\w-]+)`", cells[1])
    }
    assert told == dict.fromkeys(DECODERS, "both") | dict.fromkeys(ENCODERS, "classify")


@pytest.mark.parametrize(
    ("name", "head", "why"),
    [
        ("albert", "classes", "(its blocks are one block run again and again"),
        ("bert", "vocabulary", "has no head over the vocabulary; these have: llama, "),
        ("distillbert", "classes", "is not supported; the nearest is 'distilbert'; these are: "),
        ("t5", "vocabulary", "(it has an encoder and a decoder); these are: llama, "),
    ],
)
def test_what_is_not_supported_is_one_sentence_that_names_what_is(
    name: str, head: str, why: str
) -> None:
    said = misfit(name, head)
    assert said is not None
    assert why in said
    assert ("bert, " in said) == (head == "classes")


@pytest.mark.parametrize(("family", "task"), PLAYED)
def test_every_mode_plays_a_round_on_it(family: str, task: str) -> None:
    """Two clients; what trains has moved, and what a step costs is counted."""
    job = tiny.job("split", task, split={"cut": (1, 3)}, logits={"top_k": 4})
    body = tiny.body(family, job)
    public = tiny.examples(4, task, seed=50)
    ann, bob = (
        tiny.worker(name, job, body, tiny.examples(4, task, seed=seed), public=public)
        for name, seed in (("ann", 1), ("bob", 2))
    )
    server = tiny.worker("server", job, body, tiny.examples(0), public=public)
    modes = (
        Params(body.initial, body.layout, aggregate=Mean()),
        Logits(server=server, options=job.logits),
        Split(setting=tiny.setting("split", ann), aggregate=Mean()),
    )
    for mode in modes:
        state, _ = tiny.play(mode, job, [ann, bob])
        trained = mode.server_model(state)
        assert trained is not None
        moved = [n for n, t in trained.items() if not torch.equal(t, body.initial[n])]
        assert len(moved) > len(trained) / 3, (mode, moved)
        assert all(t.isfinite().all() for t in trained.values())
        assert not body.layout.head or moved[-1] in body.layout.head
    for piece in (Piece("train"), Piece("bottom", high=2), Piece("top", low=2)):
        assert count(body, piece).of(2, 5, 2) > 0
    whole = Costs(body, None, tiny.ignore).resident((Piece("train"),))
    assert whole == sum({p.data_ptr(): p.nbytes for p in body.blocks.model.parameters()}.values())


@pytest.mark.parametrize("family", LATER)
def test_a_merged_classifier_is_the_same_model_for_transformers(
    family: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    with quiet():
        tiny.model(family).save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
    body = tiny.body(family, tiny.job())
    body.path, body.tokenizer = str(base), tiny.tokenizer()
    tensors = tiny.random_like(body.initial, 3)
    save_adapter(tmp_path / "adapter", body, tensors, ("a", "b", "c"))
    (tmp_path / "merged").mkdir()
    peft_folder.merge(
        tmp_path / "adapter", str(base), tmp_path / "merged", classes=("a", "b", "c"), pad=""
    )
    with quiet():
        merged: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "merged"
        )
    texts = tiny.examples(1, short=7, long=7)
    batch = batch_of(texts, [0], pool=body.blocks.pool)
    with torch.no_grad():
        ours = body.logits(body.parameters(tensors), batch)
        theirs = merged.eval()(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids))
    torch.testing.assert_close(theirs.logits, ours, rtol=1e-4, atol=1e-5)
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["modules_to_save"] == list(body.blocks.head_names)


def test_a_head_of_two_modules_trains_and_starts_from_the_seed_whole() -> None:
    body = tiny.body("distilbert", tiny.job())
    assert body.layout.head == (
        "pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias",
    )  # fmt: skip
    weight = body.initial["pre_classifier.weight"]
    assert 0.01 < float(weight.std()) < 0.03
    assert not body.initial["pre_classifier.bias"].any()


def test_an_opt_that_normalises_after_its_blocks_has_no_final_norm() -> None:
    body = tiny.body("opt", tiny.job(), do_layer_norm_before=False)
    model = tiny.model("opt", do_layer_norm_before=False)
    model.load_state_dict({"score.weight": body.initial["score.weight"]}, strict=False)
    batch = batch_of(tiny.examples(1, short=6, long=6), [0], pool="last")
    with torch.no_grad():
        found = body.logits(body.parameters(body.initial), batch)
        wanted = model(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids)).logits
    assert body.blocks.norm is None
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_body_of_another_architecture_is_refused() -> None:
    model = tiny.model("bert")
    model.config.model_type = "albert"
    with pytest.raises(ModelError, match="'albert' is not supported"):
        SharedModel(model, None, head="classes", classes=3, adapter=tiny.job().adapter, seed=1)
