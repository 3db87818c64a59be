"""The job file: what it says is what runs, and what cannot run is refused in one sentence."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from triskel.config.job import MODE_NAMES, Job, unsupported
from triskel.config.read import DEMO, dump, load, parse, to_toml
from triskel.config.sections import ANY_DEPTH, blocks_of
from triskel.core.registry import MODES
from triskel.errors import JobError
from triskel.modes.split.spec import default_cut

CSV = """
[data]
source = "csv"
train = "rows.csv"
text = "text"
label = "label"
"""


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        parse(text, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- refusals ---------------------------------------------------------------------------------

REFUSALS = {
    "rounds = ": "job is not valid TOML: Invalid value (at end of document)",
    "rounds = 0": "job: rounds: input should be greater than or equal to 1, got 0",
    "rounds = 1.5": "job: rounds: input should be a valid integer, got a number with a fractional "
    "part, got 1.5",
    'rounds = "two"': "job: rounds: input should be a valid integer, unable to parse string as an "
    "integer, got 'two'",
    "seed = -1": "job: seed: input should be greater than or equal to 0, got -1",
    'mode = "parms"': "job: mode must be one of params, logits, split, got 'parms'",
    "ronds = 3": "job: unknown key 'ronds'; did you mean 'rounds'?",
    "xyzzy = 3": "job: unknown key 'xyzzy'; known here: adapter, clients, data, evaluate, "
    "federation, logits, mode, model, name, params, rounds, seed, split, train, wire",
    "[train]\nlearning = 1": "job: unknown key 'train.learning'; known here: batch, epochs, "
    "keep, lr, max_grad_norm, max_tokens, optimizer, overlong, schedule, weight_decay",
    "[train]\nepoch = 1": "job: unknown key 'train.epoch'; did you mean 'epochs'?",
    "[clients.each.ann]\nrnk = 3": "job: unknown key 'clients.each.ann.rnk'; did you mean 'rank'?",
    "[train]\nlr = 0": "job: train.lr: input should be greater than 0, got 0",
    "[train]\nlr = inf": "job: train.lr: input should be a finite number, got inf",
    "[train]\nlr = nan": "job: train.lr: input should be a finite number, got nan",
    "[train]\nbatch = 0": "job: train.batch: input should be greater than or equal to 1, got 0",
    '[train]\nschedule = "warm"': "job: train.schedule: input should be 'constant', 'linear' or "
    "'cosine', got 'warm'",
    "[train]\nmax_grad_norm = -1": "job: train.max_grad_norm: input should be greater than or "
    "equal to 0, got -1",
    "[adapter]\nrank = 0": "job: adapter.rank: input should be greater than or equal to 1, got 0",
    "[adapter]\ndropout = 1.0": "job: adapter.dropout: input should be less than 1, got 1.0",
    "[adapter]\nalpha = 0": "job: adapter.alpha: input should be greater than 0, got 0",
    '[adapter]\nblocks = "last"': 'job: adapter.blocks must be "all", "top:N" or "FIRST-LAST", '
    "got 'last'",
    '[adapter]\nkind = "adalora"': "job: adapter.kind: input should be 'lora', 'dora', 'rslora', "
    "'ia3', 'loha', 'lokr', 'vera', 'bitfit', 'full', 'prefix', 'prompt' or 'ptuning', got "
    "'adalora'",
    "[clients]\ncohort = 0": "job: clients.cohort: input should be greater than 0, got 0",
    "[clients]\ncohort = 1.01": "job: clients.cohort: input should be less than or equal to 1, "
    "got 1.01",
    "[clients]\ncount = 0": "job: clients.count: input should be greater than or equal to 1, got 0",
    "[params]\nserver_momentum = 1": "job: params.server_momentum: input should be less than 1, "
    "got 1",
    "[logits]\nmix = 1.5": "job: logits.mix: input should be less than or equal to 1, got 1.5",
    "[logits]\ntemperature = 0": "job: logits.temperature: input should be greater than 0, got 0",
    "[split]\ncut = [3, 3]": "job: split.cut must leave the server at least one block, got [3, 3]; "
    "the first number must be smaller than the second",
    "[clients.each.ann]\ncut = [5, 2]": "job: clients.each.ann.cut must leave the server at least "
    "one block, got [5, 2]; the first number must be smaller than the second",
    "[split]\ncut = [-1, 3]": "job: split.cut.0: input should be greater than or equal to 0, "
    "got -1",
    "[wire]\nmax_mb = 0": "job: wire.max_mb: input should be greater than 0, got 0",
    '[wire]\nup = "zip"': "job: wire.up must be one of raw, fp32, bf16, fp16, int8, int4, topk, "
    "sign, got 'zip'",
    "[wire]\nup = 3": 'job: wire.up must be a name, or a table with one: {name = "..."}, got 3',
    '[wire.up]\nhead = "zip"': "job: wire.up (head) must be one of raw, fp32, bf16, fp16, int8, "
    "int4, topk, sign, got 'zip'",
    "[wire.up]\nhead = 3": 'job: wire.up (head) must be a name, or a table with one: {name = "..."}'
    ", got 3",
    '[wire.up]\nheads = "bf16"': "job: wire.up.heads is the codec of a section that no message "
    "has; there are adapter, head, side, knowledge, gradient, activations, labels, and other for "
    "every other one",
    '[wire]\nup = {name = "topk", share = 0.5}': "job: wire.up.share: Input should be less than or "
    "equal to 0.25, got 0.5",
    '[wire]\nup = {name = "topk", k = 5}': "job: wire.up.k is no option of topk, which has change, "
    "feedback, share",
    '[wire]\nup = {name = "fp32", change = true}': "job: wire.up.change is no option of fp32, "
    "which has nothing",
    '[wire]\nup = {name = "sign", change = false}': "job: wire.up.change: must be true: what this "
    "codec leaves out, only a change can spare, got False",
    '[wire]\ndown = {name = "int4", change = true, feedback = false}': "job: wire.down.feedback "
    "must be true: what a change lost on its way down is part of the next one, as that is taken "
    "against what clients hold",
    '[data]\nsource = "hub"\ntext = "a"\nlabel = "b"': "job: data.hub must name a dataset such as "
    '"org/name" when data.source is "hub"',
    '[data]\nsource = "csv"\ntext = "a"\nlabel = "b"': "job: data.train must name a file or folder "
    'when data.source is "csv"',
    '[data]\nsource = "clients"\ntext = "a"\nlabel = "b"': "job: data.train must name a file or "
    'folder when data.source is "clients"',
    '[data]\nsource = "csv"\ntrain = "x.csv"\ntext = "a"': "job: data.text and data.label must "
    "name columns for a classify task",
    '[data]\nsource = "csv"\ntrain = "x.csv"\nlabel = "a"': "job: data.text and data.label must "
    "name columns for a classify task",
    '[data]\ntask = "causal"': 'job: data.source "opinions" is a classify task; give your own data '
    "for causal",
    '[data]\ntask = "causal"\nsource = "csv"\ntrain = "x.csv"\nprompt = "q"': "job: data.prompt "
    "and data.response go together; give both, or data.text alone",
    '[data]\ntask = "causal"\nsource = "csv"\ntrain = "x.csv"': "job: data.prompt and "
    "data.response, or data.text, must name columns for causal",
    '[data]\ntask = "causal"\nsource = "csv"\ntrain = "x.csv"\ntext = "t"\n[clients]\n'
    'partition = "shards"': 'job: clients.partition "shards" needs data.label to name a column',
    CSV + '[clients]\npartition = "natural"': "job: clients.by must name a column when "
    'clients.partition is "natural"',
    "[data]\ntest_share = 1": "job: data.test_share: input should be less than 1, got 1",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_what_cannot_run_is_refused_with_place_value_and_expectation(text: str) -> None:
    assert refusal(text) == REFUSALS[text]


def test_the_first_number_of_a_cut_may_be_the_larger_where_only_it_counts() -> None:
    """With shared labels the server has everything from it on."""
    job = parse('[split]\ncut = [3, 3]\nlabels = "shared"')
    assert job.split.cut == (3, 3)


def test_every_section_is_frozen_and_closed_to_unknown_keys() -> None:
    job = Job()
    parts = [job, *(v for v in dict(job).values() if isinstance(v, BaseModel))]
    assert len(parts) == 12
    for part in parts:
        name = next(iter(type(part).model_fields))
        with pytest.raises(ValidationError):
            setattr(part, name, getattr(part, name))
        with pytest.raises(ValidationError):
            type(part).model_validate({"no_such_key": 1})


# --- what modes can carry ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("", "params", None),
        (
            '[clients.each.ann]\nmodel = "gpt2"',
            "params",
            "clients use different models (gpt2), and params needs one model",
        ),
        (
            '[clients.each.ann]\nmodel = "gpt2"\n[clients.each.bob]\nmodel = "bert"',
            "split",
            "clients use different models (bert, gpt2), and split needs one model",
        ),
        ('[clients.each.ann]\nmodel = "gpt2"', "logits", None),
        ('[clients.each.ann]\nmodel = "smollm2-135m"', "params", None),
        ("[clients.each.ann]\nrank = 4", "params", None),
        (
            "[clients.each.ann]\nrank = 9",
            "params",
            (
                "a client has rank 9, and in params clients run the server's model, "
                "whose adapter.rank is 8; --set adapter.rank=9"
            ),
        ),
        (
            '[params]\ntrains = "ffa"\n[clients.each.ann]\nrank = 4',
            "params",
            "clients use different ranks ([4]), and params needs factors of one rank here",
        ),
        (
            "[clients.each.ann]\nrank = 4",
            "split",
            "clients use different ranks ([4]), and split needs factors of one rank here",
        ),
        ("[clients.each.ann]\nrank = 4", "logits", None),
        ("[clients.each.ann]\nrank = 8", "params", None),
        ("[clients.each.ann]\ncut = [2, 9]", "split", None),
    ],
)
def test_a_mode_says_what_it_cannot_carry(text: str, mode: Any, reason: str | None) -> None:
    assert unsupported(parse(text), mode) == reason


def test_every_mode_says_what_it_needs_and_can_carry() -> None:
    assert tuple(spec.name for spec in MODES.built_in()) == MODE_NAMES
    assert MODES.spec("logits").traits.needs_public_data
    for spec in MODES.built_in():
        told = dataclasses.asdict(spec.traits)
        assert (
            set(told.pop("changes")) <= spec.disclosure(spec.options(), "classes").sections.keys()
        )
        assert all(isinstance(v, bool) for v in told.values())


# --- blocks and cuts --------------------------------------------------------------------------


@given(st.integers(1, 200))
def test_the_default_cut_leaves_the_server_a_block(blocks: int) -> None:
    low, high = default_cut(blocks)
    assert 0 <= low < high <= blocks
    if blocks >= 3:
        assert low >= 1, "a client keeps more than the embeddings"
        assert high < blocks, "and more than the head"


def test_the_default_cut_of_known_depths() -> None:
    assert {n: default_cut(n) for n in (1, 2, 3, 6, 12, 24, 30, 32)} == {
        1: (0, 1), 2: (0, 2), 3: (1, 2), 6: (1, 5), 12: (2, 11), 24: (3, 22), 30: (4, 28),
        32: (4, 30),
    }  # fmt: skip


@given(st.integers(1, 60), st.data())
def test_blocks_are_named_from_the_top_or_by_range(blocks: int, data: st.DataObject) -> None:
    assert blocks_of("all", blocks) == range(blocks)
    top = data.draw(st.integers(1, blocks))
    assert blocks_of(f"top:{top}", blocks) == range(blocks - top, blocks)
    first = data.draw(st.integers(0, blocks - 1))
    last = data.draw(st.integers(first, blocks - 1))
    assert blocks_of(f"{first}-{last}", blocks) == range(first, last + 1)


@pytest.mark.parametrize(
    "text",
    ["", "top", "top:", "top:0", "top:7", "top:-1", "3", "0-6", "4-2", "-2", "2-", "a-b", "all ",
     "0-1-2", "1.0-2", "top:1.5"],
)  # fmt: skip
def test_blocks_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as caught:
        blocks_of(text, 6)
    assert str(caught.value) == (f'must be "all", "top:N" or "FIRST-LAST" within 0-5, got {text!r}')


def test_blocks_of_an_unknown_model_are_checked_for_their_form_only() -> None:
    assert blocks_of("0-40", ANY_DEPTH) == range(41)
    with pytest.raises(ValueError, match=r'^must be "all", "top:N" or "FIRST-LAST", got \'x\'$'):
        blocks_of("x", ANY_DEPTH)


# --- reading and writing ----------------------------------------------------------------------

FULL = """
name = "wards"
mode = "split"
seed = 3
rounds = 7
[adapter]
targets = ["q_proj", "o_proj"]
blocks = "top:4"
[data]
source = "csv"
train = "rows.csv"
text = "words"
label = "class"
classes = [1, 2, 3]
[clients]
partition = "natural"
by = "ward"
[clients.each.ann]
rank = 4
cut = [2, 9]
[clients.each."a b"]
model = "other"
[split]
cut = [1, 5]
[wire]
up = "int8"
"""


@pytest.mark.parametrize("text", ["", DEMO, FULL, CSV])
def test_a_job_written_is_read_back_equal(text: str) -> None:
    job = parse(text)
    assert parse(to_toml(job)) == job
    assert Job.model_validate(dump(job)) == job
    assert tomllib.loads(to_toml(job)) == dump(job)


simple = {
    "seed": st.integers(0, 2**62),
    "rounds": st.integers(1, 99),
    "name": st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=9),
    "train": st.fixed_dictionaries(
        {"lr": st.floats(1e-300, 1e300), "schedule": st.sampled_from(["constant", "cosine"])}
    ),
    "clients": st.fixed_dictionaries({"cohort": st.floats(0.001, 1.0)}),
    "split": st.fixed_dictionaries(
        {"cut": st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(10, 20)))}
    ),
}


@given(st.fixed_dictionaries({}, optional=simple))
def test_any_job_survives_toml(raw: dict[str, Any]) -> None:
    job = Job.model_validate(raw)
    assert parse(to_toml(job)) == job


def test_class_names_may_be_numbers_in_the_file() -> None:
    assert parse(FULL).data.classes == ("1", "2", "3")


def test_overrides_come_last_and_in_order() -> None:
    job = parse(
        "rounds = 2\n[train]\nlr = 1e-3",
        overrides=[
            "rounds=5",
            "train.lr = 3e-4",
            "train.lr=4e-4",
            "wire.up=int4",
            'adapter.targets=["q_proj"]',
            "split.cut=[1, 4]",
            "clients.each.ann.rank=2",
            "logits.student=false",
            "name=a b",
            'model.path="1e5"',
        ],
    )
    assert (job.rounds, job.train.lr, job.wire.up) == (5, 4e-4, "int4")
    assert (job.adapter.targets, job.split.cut) == (("q_proj",), (1, 4))
    assert (job.client("ann").rank, job.client("bob").rank) == (2, None)
    assert (job.logits.student, job.name, job.model.path) == (False, "a b", "1e5")


@pytest.mark.parametrize("override", ["rounds", "=3", "train.=3", ".lr=3", "", "a..b=1"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert refusal("", override) == f"a setting is section.key=value, got {override!r}"


def test_an_override_below_a_value_is_refused() -> None:
    assert refusal("rounds = 2", "rounds.more=1") == (
        "setting 'rounds.more=1': 'rounds' is a value, not a section"
    )


def test_an_override_of_an_unknown_key_says_what_was_meant() -> None:
    assert refusal("", "train.ephocs=1") == (
        "job: unknown key 'train.ephocs'; did you mean 'epochs'?"
    )


def test_a_job_file_is_found_read_and_named_in_its_refusals(tmp_path: Path) -> None:
    place = tmp_path / "job.toml"
    place.write_text("rounds = 4", encoding="utf-8")
    assert load(place).rounds == 4
    assert load(place, ["rounds=6"]).rounds == 6
    place.write_text("rounds = 0", encoding="utf-8")
    with pytest.raises(JobError, match=rf"^{place}: rounds: "):
        load(place)
    missing = tmp_path / "none.toml"
    with pytest.raises(JobError) as caught:
        load(missing)
    assert str(caught.value) == f"job file {missing} does not exist; `triskel init` writes one"
    with pytest.raises(JobError, match=rf"^job file {tmp_path} cannot be read: "):
        load(tmp_path)
    place.write_bytes(b"name = '\xff'")
    with pytest.raises(JobError, match=rf"^job file {place} is not UTF-8 text \(byte 8\)"):
        load(place)


def test_without_a_file_there_is_the_demonstration() -> None:
    assert load(None) == parse(DEMO)
    assert load(None, ["rounds=9"]).rounds == 9


def test_paths_are_relative_to_the_file_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "job.toml").write_text(
        '[model]\npath = "models/tiny"\n[data]\nsource = "csv"\ntrain = "d/rows.csv"\n'
        f'test = "{tmp_path}/abs.csv"\ntext = "t"\nlabel = "l"\n'
        '[clients.each.ann]\nmodel = "models/tiny"\n[clients.each.bob]\nmodel = "org/model"',
        encoding="utf-8",
    )
    job = load(tmp_path / "job.toml")
    root = tmp_path.resolve()
    (tmp_path / "start.toml").write_text('[adapter]\nstart = "runs/one"', encoding="utf-8")
    assert load(tmp_path / "start.toml").adapter.start == str(root / "runs" / "one")
    assert job.adapter.start == ""
    assert job.model.path == str(root / "models" / "tiny")
    assert job.data.train == str(root / "d" / "rows.csv"), "though it is not there yet"
    assert job.data.test == f"{tmp_path}/abs.csv"
    assert job.data.public == ""
    assert job.client("ann").model == str(root / "models" / "tiny")
    assert job.client("bob").model == "org/model", "a hub id stays one"
    assert load(tmp_path / "job.toml", [f"model.path={root}"]).model.path == str(root)


def test_names_on_the_hub_are_never_paths(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "job.toml").write_text(
        '[data]\nsource = "hub"\nhub = "org"\ntrain = "org"\ntext = "t"\nlabel = "l"',
        encoding="utf-8",
    )
    job = load(tmp_path / "job.toml")
    assert (job.data.hub, job.data.train) == ("org", "org")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "natural"),
        (CSV, "iid"),
        (CSV.replace('"csv"', '"clients"'), "natural"),
        ('[clients]\npartition = "dirichlet"', "dirichlet"),
    ],
)
def test_silos_are_natural_where_the_source_has_them(text: str, expected: str) -> None:
    assert parse(text).partition == expected
