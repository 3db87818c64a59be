"""The resources: one model in memory for everybody, texts tokenised once, and who holds what."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.data.tokens import concatenated
from triskel.errors import JobError
from triskel.experiment import tokens as tokens_module
from triskel.experiment.resources import LocalResources
from triskel.experiment.stages import alone, central
from triskel.model.flops import Piece
from triskel.modes.logits.mode import Logits
from triskel.training.mode_setting import unfit

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    SMALL.save_model(folder / "llama")
    SMALL.save_model(folder / "gpt2", "gpt2")
    SMALL.save_rows(folder / "rows.csv", 40)
    return folder


def bench_of(room: Path, **sections: Any) -> LocalResources:
    return SMALL.resources(SMALL.job(room / "llama", room / "rows.csv", **sections))


EACH: Mapping[str, Any] = {
    "client-02": {"rank": 3},
    "client-03": {"rank": 2},
}


def test_one_base_is_loaded_for_each_model_and_rank(room: Path) -> None:
    each = {**EACH, "client-01": {"model": str(room / "gpt2")}}
    it = bench_of(room, clients={"each": each})
    server, ann, bob, carol = it.body(), *(it.body(c) for c in it.clients)
    assert carol is server, "the same model and rank as the server's"
    assert len({id(b) for b in (server, ann, bob)}) == 3
    assert ann.blocks.config.model_type == "gpt2"
    shapes = {n: t.shape for n, t in bob.initial.items() if "lora_A" in n}
    assert {s[0] for s in shapes.values()} == {3}
    assert it.body("client-02") is bob


def test_a_hundred_clients_share_one_base(room: Path) -> None:
    it = bench_of(room, clients={"count": 20}, logits={"public": 2})
    assert len({id(it.body(c)) for c in it.clients}) == 1
    assert len({id(it.worker(c, SMALL.watch).body) for c in it.clients}) == 1


def test_texts_are_tokenised_once(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = tokens_module.tokenise

    def counting(rows: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(rows))
        return real(rows, *rest, **more)

    monkeypatch.setattr(tokens_module, "tokenise", counting)
    it = bench_of(room)
    for _ in range(2):
        for client in it.clients:
            it.worker(client, SMALL.watch)
        it.tokens.pooled()
        it.tokens.public(it.body())
    assert sum(calls) == 40, "training, test and public rows, each once"


def test_workers_hold_their_own_examples_and_a_fresh_meter(room: Path) -> None:
    it = bench_of(room)
    one, two = it.worker("client-01", SMALL.watch), it.worker("client-01", SMALL.watch)
    assert one.train is two.train is it.tokens.share("client-01").train
    one.meter.flops = 7
    assert two.meter.flops == 0
    assert one.client == "client-01"
    assert one.public is it.tokens.public(it.body())


def test_meters_share_what_pieces_cost(room: Path) -> None:
    it = bench_of(room)
    body = it.body()
    assert it.models.costs(body) is it.models.costs(body)
    cost = it.models.costs(body)[Piece("forward")]
    assert it.worker("client-01", SMALL.watch).meter._costs[Piece("forward")] is cost


def test_the_pool_is_everybodys_examples_in_the_order_of_names(room: Path) -> None:
    it = bench_of(room)
    pool = it.tokens.pooled()
    wanted = [ids for c in it.clients for ids in it.tokens.share(c).train.ids]
    assert len(pool.train) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(pool.train.ids, wanted, strict=True))
    assert list(pool.train.labels) == [
        x for c in it.clients for x in it.tokens.share(c).train.labels
    ]
    assert len(pool.test) == sum(len(it.tokens.share(c).test) for c in it.clients)


def test_a_causal_pool_keeps_its_targets(room: Path) -> None:
    it = bench_of(room, task="causal")
    pool = it.tokens.pooled().train
    assert len(pool.scored) == len(pool.ids)
    again = concatenated([pool, pool])
    assert len(again) == len(again.scored) == 2 * len(pool)


def untaught(resources: LocalResources) -> str | None:
    return unfit(resources.setting("logits", SMALL.watch))


def test_the_server_has_nothing_private(room: Path) -> None:
    it = bench_of(room)
    server = Logits.build(it.setting("logits", SMALL.watch)).server
    assert len(server.train) == len(server.test) == 0
    assert len(server.public) == 6
    assert set(server.public.labels) == {-1}, "labels of public texts are unknown"


def test_public_rows_are_in_nobodys_share(room: Path) -> None:
    it = bench_of(room)
    held = {t for h in it.federation.clients.values() for t in (*h.train.text, *h.test.text)}
    assert len(held) == 34
    assert not held & set(it.federation.public.text)


def test_tokens_of_unlike_vocabularies_cannot_be_compared(room: Path, tmp_path: Path) -> None:
    other = SMALL.save_model(tmp_path / "other", vocab_size=50)
    tokens = SMALL.tokenizer()
    tokens.add_tokens(["extra"])
    tokens.save_pretrained(other)
    each = {"client-02": {"model": str(other)}}
    assert untaught(bench_of(room, clients={"each": each})) is None, "classes can be"
    assert untaught(bench_of(room, task="causal")) is None
    reason = untaught(bench_of(room, task="causal", clients={"each": each}))
    assert reason == (
        "client client-02 uses a tokenizer unlike the server's, and predictions on tokens cannot "
        "be averaged across tokenizers; give all clients models of one tokenizer, or use a "
        "classify task"
    )


def test_models_of_one_tokenizer_with_padded_heads_can_be_compared(
    room: Path, tmp_path: Path
) -> None:
    SMALL.save_model(tmp_path / "longer", vocab_size=64)
    each = {"client-02": {"model": str(tmp_path / "longer")}}
    it = bench_of(room, task="causal", clients={"each": each})
    assert it.body().vocabulary == it.body("client-02").vocabulary == 46, "small.py's word list"
    assert untaught(it) is None


def test_without_a_public_token_there_is_nothing_to_predict_on(room: Path) -> None:
    it = bench_of(room, task="causal", train={"max_tokens": 2}, logits={"public": 3})
    assert len(it.federation.public) == 3
    assert untaught(it) == (
        "no public text is left to predict on: within train.max_tokens = 2 none has a token of "
        "its response; raise it, or give shorter public texts"
    )
    assert untaught(bench_of(room, task="causal", logits={"public": 3})) is None


@pytest.mark.parametrize(("kind", "most"), [("gpt2", 128), ("llama", None)])
def test_texts_beyond_the_positions_of_a_model_are_refused_as_it_is_loaded(
    room: Path, kind: str, most: int | None
) -> None:
    job = SMALL.job(room / kind, room / "rows.csv", train={"max_tokens": 129})
    it = SMALL.resources(job)
    if most is None:
        assert it.body().blocks.positions is None
        return
    with pytest.raises(JobError) as refused:
        it.body()
    assert str(refused.value) == (
        f"train.max_tokens is 129, and a {kind} model of this job knows {most} positions; "
        f"--set train.max_tokens={most}"
    )
    fits = SMALL.job(room / kind, room / "rows.csv", train={"max_tokens": most})
    assert SMALL.resources(fits).body().blocks.positions == most


def test_work_is_tokens_of_one_epoch(room: Path) -> None:
    it = bench_of(room)
    held = it.federation.clients
    assert it.epoch_tokens() == {
        c: sum(min(len(t.split()), 12) for t in held[c].train.text) for c in it.clients
    }


def test_clients_without_training_examples_are_not_active(room: Path, tmp_path: Path) -> None:
    place = tmp_path / "train.csv"
    lines = [f"w{i} w3,{'good' if i % 2 else 'bad'},north" for i in range(9)]
    place.write_text("\n".join(["text,label,place", *lines]), encoding="utf-8")
    test = tmp_path / "test.csv"
    test.write_text("text,label,place\nw1,good,south\n", encoding="utf-8")
    it = bench_of(
        room,
        data={"train": str(place), "test": str(test)},
        clients={"partition": "natural", "by": "place"},
        logits={"public": 2},
    )
    assert (it.clients, it.active()) == (["north", "south"], ["north"])


@pytest.mark.parametrize("rounds", [None, 3])
def test_texts_of_whoever_trains_alone_are_told_apart_by_the_servers_tokens(
    room: Path, rounds: int | None
) -> None:
    """Records of clients with models of their own are compared text by text with all others."""
    it = bench_of(room, clients={"each": {"client-01": {"model": str(room / "gpt2")}}})
    ours = it.tokens.tests(it.body())
    for stage in (alone(it, "client-01", rounds=rounds), central(it)):
        assert stage.tests() is ours
    assert alone(it, "client-01").body is not it.body()


def test_no_server_is_loaded_for_a_client_with_its_own_model(room: Path) -> None:
    """Only what is used is loaded."""
    it = bench_of(room, clients={"each": {"client-01": {"model": str(room / "gpt2")}}})
    it.body("client-01")
    assert [Path(path).name for path, _ in it.models._bodies] == ["gpt2"]


def test_what_may_be_kept_counts_public_texts_for_every_model_and_tests_for_each_that_reads_them(
    room: Path,
) -> None:
    """Two models: training texts once, public ones twice, tests their owner's and of both."""
    one = bench_of(room, logits={"public": 6})
    two = bench_of(room, logits={"public": 6}, clients={"each": {"client-02": {"rank": 3}}})
    for it, models in ((one, 1), (two, 2)):
        held = it.federation.clients.values()
        train, tests = (sum(len(getattr(h, what)) for h in held) for what in ("train", "test"))
        assert it.memory.texts == train + models * 6 + (1 + models) * tests
