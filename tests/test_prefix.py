"""Hidden states below the first trained block: kept, they change costs and nothing else."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.bench import Share
from triskel.data.text import batch_of
from triskel.errors import ModelError
from triskel.model.body import Body, Choice
from triskel.model.cost import Costs, Piece
from triskel.model.prefix import Prefix
from triskel.round import play
from triskel.stages import stage_of
from triskel.types import Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))
TOP = {"blocks": "2-3"}


def kept_and_not(path: str = "reference", **sections: Any) -> tuple[Body, Body]:  # noqa: ANN401 - of the job
    """Return the same body twice, one that keeps hidden states and one that does not."""
    job = tiny.job(adapter=TOP, **sections)
    found: list[Body] = []
    for prefix in (Prefix(), None):
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


def test_blocks_below_run_once_for_every_text() -> None:
    body, _ = kept_and_not()
    ran: list[int] = []
    first = body.blocks.list[0]
    first.register_forward_hook(lambda *_: ran.append(1))
    texts, leaves = tiny.examples(6), body.parameters(body.initial)
    for rows in ([0, 1, 2], [3, 4, 5], [2, 5], [0, 3]):
        body.logits(leaves, batch_of(texts, rows))
    assert len(ran) == 2
    body.logits(leaves, batch_of(tiny.examples(6), [0]))
    assert len(ran) == 3, "equal texts of somebody else are somebody else's"


def test_nothing_is_kept_where_the_first_block_trains() -> None:
    job = tiny.job()
    body = tiny.body("llama", job)
    body.prefix = Prefix()
    body.logits(body.parameters(body.initial), batch_of(tiny.examples(3), range(3)))
    assert body.prefix.size == 0
    assert body.frozen == 0


def test_what_memory_does_not_hold_lies_in_a_file() -> None:
    batch = batch_of(tiny.examples(4), range(4))
    h = torch.randn(*batch.ids.shape, 16)
    roomy, narrow = Prefix(), Prefix(memory=100)
    for each in (roomy, narrow):
        assert each.get(batch, 2) is None
        each.put(batch, 2, h)
        assert each.get(batch, 1) is None
    here, there = roomy.get(batch, 2), narrow.get(batch, 2)
    assert here is not None
    assert there is not None
    assert torch.equal(here, there)
    for row, length in enumerate(batch.lengths):
        assert torch.equal(there[row, :length], h[row, :length])
    assert narrow.size == int(batch.lengths.sum()) * 16 * 4


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    batch = batch_of(tiny.examples(4), range(4))
    with pytest.raises(ModelError, match=r"No space left .*; set TMPDIR .*cache_mb = 0"):
        Prefix(memory=0).put(batch, 2, torch.zeros(*batch.ids.shape, 16))


def played(job: Any, *, keep: bool, folder: Path, path: str) -> tuple[Tensors, list[Any]]:  # noqa: ANN401 - a job
    """Play a mode on two clients; return what it ends with and its rows."""
    body = tiny.body("llama", job)
    body.use(Choice(path="fast" if path == "fast" else "reference", join=10_000))
    body.prefix = Prefix() if keep else None
    shares = {
        "ann": Share(train=tiny.examples(7), test=tiny.examples(3, seed=3)),
        "bob": Share(train=tiny.examples(5, seed=1), test=tiny.examples(3, seed=4)),
    }
    bench = tiny.bench(job, body, shares, tiny.examples(4, seed=2))
    bench._costs[id(body)] = Costs(body)
    stage = stage_of(job.mode, bench, tiny.ignore)
    outcome = play(stage, tiny.LocalEngine(job), job, folder=folder, watch=tiny.ignore)
    served = stage.mode.served(outcome.state)
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


def test_a_resumed_run_counts_as_the_uninterrupted_one(tmp_path: Path) -> None:
    job = tiny.job(rounds=3, adapter=TOP)
    _, whole = played(job, keep=True, folder=tmp_path / "whole", path="reference")
    part = job.model_copy(update={"rounds": 1})
    played(part, keep=True, folder=tmp_path / "part", path="reference")
    _, resumed = played(job, keep=True, folder=tmp_path / "part", path="reference")
    for one, two in zip(whole, resumed, strict=True):
        for client in ("ann", "bob"):
            assert one["clients"][client]["flops"] == two["clients"][client]["flops"]
