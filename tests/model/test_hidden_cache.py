"""Hidden states below the first trained block: kept, they change costs and nothing else."""

import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triskel.config.job import Job
from triskel.data.batches import batch_of
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import HERE, Request, run
from triskel.experiment.resources import LocalResources, prepare
from triskel.experiment.rounds import play
from triskel.experiment.stages import stage_of
from triskel.experiment.tokens import Share
from triskel.model.flops import Piece
from triskel.model.hidden_cache import HiddenCache
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.training.evaluate import BATCH_TOKENS, evaluate
from triskel.types import Event, Tensors, Watch

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
TOP = {"blocks": "2-3"}


def kept_and_not(path: str = "reference", **sections: Any) -> tuple[SharedModel, SharedModel]:  # noqa: ANN401 - of the job
    """Return the same body twice, one that keeps hidden states and one that does not."""
    job = tiny.job(adapter=TOP, **sections)
    found: list[SharedModel] = []
    for prefix in (HiddenCache(), None):
        body = tiny.body("llama", job)
        body.use(Choice(path="fast" if path == "fast" else "reference", join=512))
        body.prefix = prefix
        found.append(body)
    return found[0], found[1]


@pytest.mark.parametrize("path", ["reference", "fast"])
def test_what_is_kept_is_what_would_be_computed_again(path: str) -> None:
    body, plain = kept_and_not(path)
    texts = tiny.examples(6, long=8)
    tensors = tiny.random_like(body.initial, 1)
    for rows in ([0, 1, 2, 3], [5, 4], [3, 5], [0, 4, 2]):
        batch = batch_of(texts, rows)
        with torch.no_grad():
            found = body.logits(body.parameters(tensors), batch)
            wanted = plain.logits(plain.parameters(tensors), batch)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_every_text_runs_once_through_the_blocks_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triskel.model.hidden_cache.TOKENS", 20)  # several batches
    body, _ = kept_and_not()
    ran: list[int] = []
    first = body.blocks.list[0]
    first.register_forward_hook(lambda _, args, __: ran.append(args[0].shape[0]))
    texts, leaves = tiny.examples(6), body.parameters(body.initial)
    for rows in ([0, 1, 2], [3, 4, 5], [2, 5], [0, 3]):
        body.logits(leaves, batch_of(texts, rows))
        assert sum(ran) == 6, "all texts of a party, at the first use of one"
    assert len(ran) > 1
    body.logits(leaves, batch_of(tiny.examples(6), [0]))
    assert sum(ran) == 12, "equal texts of somebody else are somebody else's"


@pytest.mark.parametrize("path", ["reference", "fast"])
def test_what_is_kept_does_not_tell_who_asked_first(path: str) -> None:
    body, plain = kept_and_not(path)
    texts = tiny.examples(9, long=30)
    by_length = sorted(range(9), key=lambda i: (len(texts.ids[i]), i))
    wanted = plain.bottom({}, batch_of(texts, by_length), 2)
    for first in ([4], [0, 1, 2], [8, 3]):
        body.prefix = HiddenCache()
        body.bottom({}, batch_of(texts, first), 2)
        for row, index in enumerate(by_length):
            found = body.bottom({}, batch_of(texts, [index]), 2)[0]
            assert torch.equal(found, wanted[row, : len(found)])


def test_bodies_that_share_a_place_have_their_own() -> None:
    job, shared = tiny.job(adapter=TOP), HiddenCache()
    texts = tiny.examples(4, short=5, long=5)  # what pads a text is nobody's
    for seed in (0, 1):
        body, plain = (tiny.body("llama", job, seed=seed) for _ in range(2))
        body.prefix = shared
        batch = batch_of(texts, range(4))
        found, wanted = (one.bottom({}, batch, 2) for one in (body, plain))
        torch.testing.assert_close(found, wanted)


def test_evaluation_has_the_same_bits_with_and_without() -> None:
    body, plain = kept_and_not()
    texts = tiny.examples(400, long=12)
    assert sum(len(ids) for ids in texts.ids) > BATCH_TOKENS
    tensors = tiny.random_like(body.initial, 1)
    body.bottom({}, batch_of(texts, [7, 3]), 2)
    found, wanted = (evaluate(one, tensors, texts) for one in (body, plain))
    assert (found.loss_sum, found.correct) == (wanted.loss_sum, wanted.correct)


def test_nothing_is_kept_where_the_first_block_trains() -> None:
    job = tiny.job()
    body = tiny.body("llama", job)
    body.prefix = HiddenCache()
    body.logits(body.parameters(body.initial), batch_of(tiny.examples(3), range(3)))
    assert body.prefix.size == 0
    assert body.frozen == 0


def test_what_memory_does_not_hold_lies_in_a_file() -> None:
    body, _ = kept_and_not()
    texts = tiny.examples(4)
    found: list[Tensor] = []
    for memory, files in ((10**6, 0), (100, 1)):
        before = mapped()
        body.prefix = HiddenCache(memory=memory)
        found.append(body.bottom({}, batch_of(texts, range(4)), 2))
        assert body.prefix.size == sum(len(ids) for ids in texts.ids) * 16 * 4
        assert mapped() - before == files
        body.prefix.forget()
        assert body.prefix.size == 0
        assert mapped() == before
    assert torch.equal(*found)


def mapped() -> int:
    """Return how many files of hidden states this process has in its address space."""
    return sum("triskel-" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("why", ["No space left on device", "cache_mb allows 0 MB"])
def test_without_room_texts_run_in_their_own_batch(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    body, plain = kept_and_not()
    told: list[str] = []
    texts, more = tiny.examples(6), tiny.examples(5, seed=1)
    body.prefix = HiddenCache(limit=10**9 if "space" in why else 100, memory=0, say=told.append)
    for rows in ([0, 1, 2], [3, 4], [1, 4]):
        for one in (texts, more):
            batch = batch_of(one, rows)
            assert torch.equal(body.bottom({}, batch, 2), plain.bottom({}, batch, 2))
    assert body.prefix.size == 0
    (said,) = told
    for part in (why, "rounds otherwise", "TMPDIR", "cache_mb = 0"):
        assert part in said


def test_no_more_is_kept_than_the_limit() -> None:
    body, _ = kept_and_not()
    sets = [tiny.examples(4, seed=seed, short=5, long=5) for seed in range(3)]
    size, told = 4 * 5 * 16 * 4, list[str]()
    body.prefix = HiddenCache(limit=2 * size, say=told.append)
    for texts in sets:
        body.bottom({}, batch_of(texts, [0]), 2)
    assert body.prefix.size == 2 * size
    assert len(told) == 1


def played(job: Any, *, keep: bool, folder: Path, path: str) -> tuple[Tensors, list[Any]]:  # noqa: ANN401 - a job
    """Play a mode on two clients; return what it ends with and its rows."""
    body = tiny.body("llama", job)
    body.use(Choice(path="fast" if path == "fast" else "reference", join=10_000))
    body.prefix = HiddenCache() if keep else None
    shares = {
        "ann": Share(train=tiny.examples(17), test=tiny.examples(3, seed=3)),
        "bob": Share(train=tiny.examples(15, seed=1), test=tiny.examples(3, seed=4)),
    }
    resources = tiny.resources(job, body, shares, tiny.examples(4, seed=2))
    resources.models.loaded.costs[id(body)] = Costs(body)
    stage = stage_of(job.mode, resources, tiny.ignore)
    outcome = play(stage, tiny.LocalEngine(job), folder=folder, watch=tiny.ignore)
    served = stage.mode.server_model(outcome.state)
    assert served is not None
    return served, outcome.rows


@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_every_mode_ends_with_the_same_model(mode: str, path: str, tmp_path: Path) -> None:
    job = tiny.job(mode, rounds=2, adapter=TOP, logits={"public": 4}, split={"cut": (3, 4)})
    found, rows = played(job, keep=True, folder=tmp_path / "kept", path=path)
    wanted, plain = played(job, keep=False, folder=tmp_path / "plain", path=path)
    for name, tensor in wanted.items():
        gap = float((found[name] - tensor).norm() / tensor.norm().clamp(min=1e-9))
        assert gap < 1e-3, (name, gap)  # AdamW takes steps of one size: rounding can turn one
    for client in ("ann", "bob"):
        now, before = (r[1]["clients"][client] for r in (rows, plain))
        assert now["flops"] < before["flops"], "the second round runs upper blocks only"
        assert now["up"]["payload_bytes"] == before["up"]["payload_bytes"]


def test_flops_are_those_of_the_blocks_that_ran() -> None:
    body, _ = kept_and_not()
    costs = Costs(body)
    whole, below = costs[Piece("train")], costs[Piece("bottom", high=2)]
    texts = tiny.examples(5, short=4, long=4)
    batch = batch_of(texts, range(5))
    meter = costs.meter()
    meter.ran(batch, Piece("train"))
    first = meter.flops
    assert first == whole.of(5, 4, 5)
    meter.ran(batch, Piece("train"))
    assert meter.flops - first == whole.of(5, 4, 5) - below.of(5, 4, 5)
    back = costs.meter()
    back.returning = True
    back.ran(batch, Piece("train"))
    assert back.flops == whole.of(5, 4, 5) - below.of(5, 4, 5)


@pytest.mark.parametrize(
    ("piece", "left"),
    [
        (Piece("bottom", high=4), Piece("bottom", low=2, high=4)),
        (Piece("bottom", high=2), None),
        (Piece("bottom", high=1), None),
        (Piece("top", low=3), Piece("top", low=3)),
        (Piece("forward"), Piece("forward", low=2)),
    ],
)
def test_what_is_left_of_a_piece(piece: Piece, left: Piece | None) -> None:
    assert piece.beyond(2) == left


@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_a_resumed_run_ends_with_the_bits_and_flops_of_the_uninterrupted_one(
    mode: str, path: str, tmp_path: Path
) -> None:
    job = tiny.job(mode, rounds=3, adapter=TOP, logits={"public": 4}, split={"cut": (3, 4)})
    wanted, whole = played(job, keep=True, folder=tmp_path / "whole", path=path)
    part = job.model_copy(update={"rounds": 1})
    played(part, keep=True, folder=tmp_path / "part", path=path)
    found, resumed = played(job, keep=True, folder=tmp_path / "part", path=path)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for one, two in zip(whole, resumed, strict=True):
        assert one["loss"] == two["loss"]
        for client in ("ann", "bob"):
            assert one["clients"][client]["flops"] == two["clients"][client]["flops"]


def small_job(
    folder: Path,
    model: Mapping[str, Any],
    longest: int = 9,
    **sections: Any,  # noqa: ANN401 - of the job
) -> Job:
    """Return a job on forty texts, with blocks below the adapter."""
    if not folder.exists():
        small.save_model(folder / "model")
        small.save_rows(folder / "rows.csv", 40, longest=longest)
    here = {"adapter": {"blocks": "top:1"}, "split": {"cut": (1, 2)}, **sections}
    job = small.job(folder / "model", folder / "rows.csv", **here)
    return job.model_copy(update={"model": job.model.model_copy(update=model)})


@pytest.mark.parametrize("path", ["reference", "fast"])
def test_a_mode_ends_alike_by_itself_and_after_baselines(path: str, tmp_path: Path) -> None:
    job = small_job(
        tmp_path / "in",
        {"compute": path},
        30,
        rounds=4,
        seed=1,
        train={"max_tokens": 30},
        clients={"count": 2, "cohort": 0.5},
    )
    for name, baselines in (("run", ()), ("compare", ("local", "central"))):
        asked = Request(modes=("params",), baselines=baselines)
        run(job, asked, tmp_path / name, LocalEngine(job), tiny.ignore)
    found, wanted = (
        load_file(tmp_path / name / "adapters" / "params" / "adapter_model.safetensors")
        for name in ("run", "compare")
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("models", [1, 2])
def test_what_all_stages_keep_is_within_the_limit(
    models: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triskel.experiment.stage_memory.MB", 1)
    short: dict[str, Any] = {"longest": 2, "train": {"max_tokens": 2}}  # no text could be longer
    if models > 1:
        short["clients"] = {"each": {"client-02": {"rank": 3}}}
    held = prepare(small_job(tmp_path / "in", {}, **short), tiny.ignore).federation
    train, test = (
        sum(len(getattr(one, part)) for one in held.clients.values()) for part in ("train", "test")
    )
    # a test text is kept as its owner's and by each model that is scored on all of them
    texts = train + (1 + models) * test + models * len(held.public)
    limit = texts * 2 * 16 * 4  # 2 tokens of 16 float32
    loads, sizes = list[LocalResources](), list[int]()

    def prepared(job: Job, watch: Watch, choices: Path, **named: Any) -> LocalResources:  # noqa: ANN401
        loads.append(prepare(job, watch, choices, **named))
        return loads[-1]

    def watched(event: Event) -> None:
        assert "cannot be kept" not in event.get("text", "")
        if event["event"] == "evaluate" and (prefix := loads[-1].body().prefix) is not None:
            sizes.append(prefix.size)

    for cache in (limit, limit - 1):
        job = small_job(tmp_path / "in", {"cache_mb": cache}, **short)
        here = tmp_path / f"out-{cache}"
        run(job, Request(), here, LocalEngine(job), watched, replace(HERE, prepare=prepared))
        assert (loads[-1].body().prefix is not None) is (cache == limit)
    assert 0 < max(sizes) <= limit
    assert loads[0].memory.hidden.size == 0, "a stage lets go of what it kept"
