"""Bytes on the wire, held against sums written out by hand from shapes, token counts and the job.

Every text is one token a word, so a token count here is a word count. The forms are those of
docs/design.md, section 4.
"""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from triskel.config.sections import Adapter
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources
from triskel.model.adapters import insert
from triskel.model.blocks import Blocks
from triskel.model.meter import Meter
from triskel.model.slots import Layout
from triskel.modes.logits.knowledge import dense, top
from triskel.modes.logits.messages import knowledge_message
from triskel.modes.logits.spec import LogitsOptions
from triskel.training.mode_setting import mode_of
from triskel.types import Message, Section
from triskel.wire import pack, payload_bytes
from triskel.wire.adapters import adapter_sections
from triskel.wire.ledger import Ledger, totals

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
LAYERS, CLASSES, CAP = 3, 3, 12


class Room:
    """A folder with one model, and loads on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.width = SMALL.WIDTH
        self.model = SMALL.save_model(folder / "model")
        self.rows = SMALL.save_rows(folder / "rows.csv", 60)

    def resources(self, **sections: Any) -> LocalResources:
        return SMALL.resources(SMALL.job(self.model, self.rows, **sections))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("ledger"))


@pytest.fixture(autouse=True)
def _no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute is not at stake here, and counting it takes most of the time."""
    monkeypatch.setattr(Meter, "ran", lambda *_, **__: None)


def play(resources: LocalResources, mode: str, rounds: int = 1) -> list[dict[str, Any]]:
    """Return the rows of the ledger, round by round."""
    return SMALL.play(resources, mode, rounds)


# --- counted by hand --------------------------------------------------------------------------


def words(resources: LocalResources, client: str) -> list[tuple[int, int]]:
    """Return tokens and scored positions of each training text of a client."""
    rows = resources.federation.clients[client].train
    if resources.job.data.task == "classify":
        return [(min(len(t.split()), CAP), 1) for t in rows.text]
    return [counted(p, r) for p, r in zip(rows.prompt, rows.response, strict=True)]


def counted(prompt: str, response: str) -> tuple[int, int]:
    """Return tokens and scored tokens of `prompt response </s>`, cut to the limit."""
    before = len(prompt.split())
    tokens = min(before + len(response.split()) + 1, CAP)
    return tokens, tokens - before


def factors(rank: int, width: int, blocks: int = 1) -> int:
    """Return bytes of LoRA on q (d to d) and v (d to one key head of d/2)."""
    return 4 * blocks * (rank * (width + width) + rank * (width + width // 2))


def head(width: int) -> int:
    return 4 * CLASSES * width


def totals_of(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["up"]["payload_bytes"], row["down"]["payload_bytes"]


# --- params -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_params_exchanges_factors_and_head_up_and_down(task: str, rank: int, room: Room) -> None:
    resources = room.resources(task=task, adapter={"rank": rank})
    size = factors(rank, room.width, LAYERS) + (head(room.width) if task == "classify" else 0)
    for rows in play(resources, "params", rounds=2):
        assert {c: totals_of(row) for c, row in rows.items()} == dict.fromkeys(
            resources.clients, (size, size)
        )
        for row in rows.values():
            assert row["up"]["messages"] == row["down"]["messages"] == 1


@pytest.mark.parametrize(("blocks", "count"), [("top:2", 2), ("0-0", 1)])
def test_params_exchanges_only_the_blocks_that_train(blocks: str, count: int, room: Room) -> None:
    resources = room.resources(adapter={"blocks": blocks})
    size = factors(2, room.width, count) + head(room.width)
    (rows,) = play(resources, "params")
    assert {totals_of(row) for row in rows.values()} == {(size, size)}


def test_lora_on_the_attention_of_gpt2_small_has_36864_numbers_a_rank() -> None:
    """One block of GPT-2 small: the other eleven are the same."""
    config = transformers.GPT2Config(vocab_size=8, n_positions=8, n_layer=1)
    blocks = Blocks(transformers.GPT2LMHeadModel(config), "vocabulary")
    slots = insert(blocks, Adapter(rank=8), seed=0)
    tensors = {n: getattr(owner, attribute) for n, (owner, attribute) in slots.items()}
    sections = adapter_sections(tensors, Layout(head=(), block={}, scale=2.0))
    assert 12 * sum(payload_bytes(s) for s in sections.values()) == 1_179_648
    assert 12 * sum(t.numel() for t in tensors.values()) == 36_864 * 8


# --- logits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [1, 6, 9])
def test_logits_exchanges_a_number_for_each_public_text_and_class(public: int, room: Room) -> None:
    (rows,) = play(room.resources(logits={"public": public}), "logits")
    size = public * CLASSES * 4
    for row in rows.values():
        assert totals_of(row) == (size, size)
        assert (row["up"]["messages"], row["down"]["messages"]) == (2, 2)


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_logits_of_a_language_model_are_k_numbers_and_ids_a_token_and_a_tail(
    k: int, room: Room
) -> None:
    resources = room.resources(task="causal", logits={"top_k": k})
    public = resources.federation.public
    scored = sum(counted(p, r)[1] for p, r in zip(public.prompt, public.response, strict=True))
    assert len(public) == 6
    kept = min(k, 46)  # the whole vocabulary at most
    size = scored * kept * (4 + 1) + scored * 4
    (rows,) = play(resources, "logits")
    assert {totals_of(row) for row in rows.values()} == {(size, size)}


@pytest.mark.parametrize(("words", "each"), [(65_536, 2), (65_537, 4)])
def test_ids_of_a_large_vocabulary_travel_in_four_bytes(
    tmp_path: Path, words: int, each: int
) -> None:
    """It is the tokenizer's that counts; the head is padded beyond it."""
    model = SMALL.save_model(tmp_path / "model", vocab_size=65_600, hidden_size=4)
    file = model / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    known = told["model"]["vocab"]
    known |= {f"x{i}": i for i in range(len(known), words)}
    file.write_text(json.dumps(told), encoding="utf-8")
    job = SMALL.job(
        model,
        SMALL.save_rows(tmp_path / "rows.csv", 20),
        task="causal",
        logits={"top_k": 3, "public": 3},
        clients={"count": 1},
    )
    resources = SMALL.resources(job)
    public = resources.federation.public
    scored = sum(counted(p, r)[1] for p, r in zip(public.prompt, public.response, strict=True))
    (rows,) = play(resources, "logits")
    size = scored * 3 * (4 + each) + scored * 4
    assert {totals_of(row) for row in rows.values()} == {(size, size)}


@pytest.mark.parametrize("values", ["floats", "bytes"])
@pytest.mark.parametrize(("vocabulary", "each"), [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_an_id_takes_as_few_bytes_as_the_vocabulary_allows(
    vocabulary: int, each: int, values: str
) -> None:
    known = top(torch.randn(5, vocabulary), 4, 1.0)
    options = LogitsOptions(values=values)
    section = knowledge_message(known, "ask", 1, options).sections["knowledge"]
    size = 5 * 4 * (4 + each) + 5 * 4 if values == "floats" else 5 * 4 * (1 + each) + 5 * 2
    assert payload_bytes(section) == size
    assert int(section.tensors["ids"].long().max()) < vocabulary


# --- split ------------------------------------------------------------------------------------


def split_form(
    resources: LocalResources, client: str, width: int, *, shape: str, mine: int
) -> tuple[int, int]:
    """Return bytes up and down of one round.

    Args:
        resources: The job.
        client: Whose.
        width: d.
        shape: What crosses, in letters: `h` hidden states up, `u` the trunk's output down, `U`
            one row of it a text, `g`/`G` its gradient up, `d` the gradient of h down, `l` labels.
        mine: Bytes of the client's own adapter and head.
    """
    counts = words(resources, client)
    epochs = resources.job.train.epochs
    tokens, texts = sum(t for t, _ in counts), len(counts)
    scored = sum(s for _, s in counts)
    up = {"h": 4 * tokens * width, "g": 4 * tokens * width, "G": 4 * texts * width}
    up["l"] = 4 * scored
    down = {"u": 4 * tokens * width, "U": 4 * texts * width, "d": 4 * tokens * width}
    return (
        mine + epochs * sum(up.get(letter, 0) for letter in shape),
        mine + epochs * sum(down.get(letter, 0) for letter in shape),
    )


CUTS: dict[str, tuple[dict[str, Any], str, tuple[int, bool]]] = {
    # options; what crosses; blocks with factors at the client, and whether the head is there
    "the U-shape": ({"split": {"cut": (1, 2)}}, "hugd", (2, True)),
    "a cut elsewhere": (
        {"split": {"cut": (2, 3)}, "adapter": {"blocks": "all"}},
        "hUGd",
        (2, True),
    ),
    "a pooled head": ({"split": {"cut": (1, 3)}}, "hUGd", (1, True)),
    "embeddings only": ({"split": {"cut": (0, 2)}}, "hug", (1, True)),
    "nothing trains below": (
        {"split": {"cut": (1, 2)}, "adapter": {"blocks": "top:2"}},
        "hug",
        (1, True),
    ),
    "nothing trains inside": (
        {"split": {"cut": (1, 2)}, "adapter": {"blocks": "top:1"}},
        "hu",
        (1, True),
    ),
    "shared labels": ({"split": {"cut": (1, 2), "labels": "shared"}}, "hld", (1, False)),
    "shared labels, nothing below": (
        {"split": {"cut": (1, 3), "labels": "shared"}, "adapter": {"blocks": "1-2"}},
        "hl",
        (0, False),
    ),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_split_exchanges_what_crosses_the_cut_and_the_clients_tensors(
    name: str, task: str, room: Room
) -> None:
    options, shape, (blocks, with_head) = CUTS[name]
    resources = room.resources(task=task, **options)
    if task == "causal":
        shape = shape.replace("U", "u").replace("G", "g")
    mine = factors(2, room.width, blocks)
    mine += head(room.width) if with_head and task == "classify" else 0
    (rows,) = play(resources, "split")
    assert sorted(rows) == resources.clients
    for client, row in rows.items():
        expected = split_form(resources, client, room.width, shape=shape, mine=mine)
        assert totals_of(row) == expected, client


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_bytes_of_split_grow_with_epochs_and_rounds_and_not_with_waves(
    task: str, room: Room
) -> None:
    mine = factors(2, room.width, 2) + (head(room.width) if task == "classify" else 0)
    few = {"partition": "iid", "count": 3, "examples": 5}
    for wave in (0, 1, 2):
        split = {"cut": (1, 2), "wave": wave}
        resources = room.resources(task=task, train={"epochs": 2}, split=split, clients=few)
        for rows in play(resources, "split", rounds=2):
            for client, row in rows.items():
                expected = split_form(resources, client, room.width, shape="hugd", mine=mine)
                assert totals_of(row) == expected, (client, wave)


def test_bytes_of_split_do_not_depend_on_the_cut(room: Room) -> None:
    """But for the client's own tensors, as long as something trains on both sides."""
    found = []
    for cut, blocks in (((1, 2), 2), ((2, 3), 2), ((1, 3), 1)):
        resources = room.resources(task="causal", split={"cut": cut})
        (rows,) = play(resources, "split")
        mine = factors(2, room.width, blocks)
        found.append({c: [n - mine for n in totals_of(row)] for c, row in rows.items()})
    assert found[0] == found[1] == found[2]


def test_sections_add_up_to_the_payload(room: Room) -> None:
    for mode in ("params", "logits", "split"):
        (rows,) = play(room.resources(), mode)
        for row in rows.values():
            for way in ("up", "down"):
                parts = [s["payload_bytes"] for s in row[way]["sections"].values()]
                assert sum(parts) == row[way]["payload_bytes"]
    assert set(row["up"]["sections"]) == {"activations", "adapter", "gradient", "head"}


# --- message bytes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A model and texts whose messages pass 100 kB."""
    it = Room.__new__(Room)
    it.folder = tmp_path_factory.mktemp("wide")
    it.width = 128
    it.model = SMALL.save_model(it.folder / "model", hidden_size=it.width)
    it.rows = SMALL.save_rows(it.folder / "rows.csv", 60, longest=60)
    return it


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("mode", ["params", "split"])
def test_messages_above_100_kb_are_within_one_percent_of_their_payload(
    mode: str, task: str, wide: Room
) -> None:
    resources = wide.resources(
        task=task,
        adapter={"rank": 64},
        train={"batch": 16, "max_tokens": 60},
        clients={"count": 2},
    )
    sizes: list[tuple[int, int]] = []

    class Books(Ledger):
        def sent(self, client: str, direction: Any, message: Message, message_bytes: int) -> None:
            payload = sum(payload_bytes(s) for s in message.sections.values())
            sizes.append((payload, message_bytes))
            super().sent(client, direction, message, message_bytes)

    it = mode_of(resources.setting(mode, SMALL.watch))
    LocalEngine(resources.job).round(
        it,
        it.start(),
        resources.active(),
        worker=lambda c: resources.worker(c, SMALL.watch),
        client_states={},
        keep=lambda client, state: None,  # noqa: ARG005 - nothing is kept
        ledger=Books(),
        watch=SMALL.watch,
    )
    large = [(payload, size) for payload, size in sizes if payload > 100_000]
    assert len(large) >= 4
    for payload, size in large:
        assert payload < size < 1.01 * payload


@pytest.mark.parametrize("known", [dense(torch.randn(9000, 3)), top(torch.randn(400, 99), 50, 1.0)])
def test_predictions_above_100_kb_are_within_one_percent_of_their_payload(known: Any) -> None:
    message = knowledge_message(known, "ask", 1, LogitsOptions())
    payload = payload_bytes(message.sections["knowledge"])
    assert payload > 100_000
    assert payload < len(pack(message)) < 1.01 * payload


# --- the books themselves ---------------------------------------------------------------------


def message(kind: Any, numbers: int, name: str = "s") -> Message:
    section = Section(kind="dense", tensors={"w": torch.zeros(numbers)})
    return Message(kind=kind, sections={name: section})


def test_evaluation_is_not_in_the_totals() -> None:
    ledger = Ledger()
    ledger.sent("ann", "up", message("evaluate", 50), 333)
    assert totals([{"clients": ledger.rows(), "seconds": 1.0}])["up"] == {
        "payload_bytes": 0, "message_bytes": 0, "messages": 0,
    }  # fmt: skip
    ledger.sent("ann", "up", message("update", 50), 333)
    ledger.sent("ann", "down", message("evaluate", 50), 333)
    assert ledger.rows()["ann"]["up"]["message_bytes"] == 333
    assert ledger.rows()["ann"]["down"]["messages"] == 0


def test_what_tests_a_model_is_booked_apart_whatever_its_kind() -> None:
    def scored() -> Ledger:
        ledger = Ledger()
        ledger.scored("down", message("task", 50), 300)
        ledger.scored("down", message("task", 50), 300)
        ledger.sent("ann", "up", message("evaluate", 9), 80)
        return ledger

    ledger = scored()
    apart = {
        "up": {"payload_bytes": 36, "message_bytes": 80, "messages": 1},
        "down": {"payload_bytes": 400, "message_bytes": 600, "messages": 2},
    }
    assert ledger.scoring == apart
    assert ledger.rows() == {}, "who only tests did not take part in the round"
    ledger.sent("ann", "down", message("task", 2), 20)
    ledger.sent("ann", "up", message("update", 3), 30)
    assert ledger.scoring == apart
    assert [ledger.rows()["ann"][way]["message_bytes"] for way in ("up", "down")] == [30, 20]
    rounds = [
        {"clients": ledger.rows(), "seconds": 1.0, "scoring": apart},
        {"clients": {}, "seconds": 1.0},
        {"clients": {}, "seconds": 1.0, "scoring": scored().scoring},
    ]
    found = totals(rounds)
    assert found["scoring"] == {
        "up": {"payload_bytes": 72, "message_bytes": 160, "messages": 2},
        "down": {"payload_bytes": 800, "message_bytes": 1200, "messages": 4},
    }
    assert found["up"] == {"payload_bytes": 12, "message_bytes": 30, "messages": 1}
    assert "scoring" not in totals(rounds[1:2])
    assert Ledger().scoring is None


def test_half_precision_counts_four_bytes_a_number_as_payload() -> None:
    ledger = Ledger()
    half = Section(kind="dense", tensors={"w": torch.zeros(10, dtype=torch.bfloat16)})
    ledger.sent("ann", "up", Message(kind="update", sections={"s": half}), 99)
    assert ledger.rows()["ann"]["up"]["payload_bytes"] == 40


def test_totals_are_sums_and_memory_is_the_largest() -> None:
    rounds = []
    for round_ in (1, 2):
        ledger = Ledger()
        for client, numbers in (("ann", 3), ("bob", 5)):
            ledger.sent(client, "up", message("update", numbers * round_), 100 * round_)
            ledger.sent(client, "down", message("task", 1), 7)
            ledger.computed(client, flops=numbers, peak_bytes=10 * numbers * round_, seconds=0.5)
            ledger.computed(client, flops=1, peak_bytes=1, seconds=0.25)
        rounds.append({"clients": ledger.rows(), "server": {"flops": 11}, "seconds": 1.5})
    assert rounds[0]["clients"]["ann"]["compute_s"] == 0.75
    assert rounds[0]["clients"]["bob"]["peak_client_bytes"] == 50
    assert totals(rounds) == {
        "up": {"payload_bytes": 4 * (8 + 16), "message_bytes": 600, "messages": 4},
        "down": {"payload_bytes": 16, "message_bytes": 28, "messages": 4},
        "client_flops": 2 * (3 + 5 + 2),
        "server_flops": 2 * 11,
        "peak_client_bytes": 100,
        "seconds": 3.0,
    }


def test_no_rounds_cost_nothing() -> None:
    found = totals([])
    assert (found["client_flops"], found["peak_client_bytes"], found["seconds"]) == (0, 0, 0)


def test_the_job_of_these_tests_deals_out_every_row_once(room: Room) -> None:
    """Otherwise sums over clients would prove little."""
    resources = room.resources()
    held = [t for h in resources.federation.clients.values() for t in (*h.train.text, *h.test.text)]
    assert len(held) + resources.job.logits.public == 60
