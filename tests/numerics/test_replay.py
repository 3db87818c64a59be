"""Sums along seeds are exact: in any order, in any number of threads, wherever they go on from."""

import subprocess
import sys

import pytest
import torch

from triskel.errors import RoundError
from triskel.numerics.normals import normals
from triskel.numerics.replay import (
    EXACT,
    TICK,
    Replay,
    Steps,
    flattened,
    moved,
    parted,
    scalars_of,
    ticks,
)

SIZES = {"b.weight": (7, 11), "a.weight": (40, 500), "c": (3,)}
LR = 3e-4


def start(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=source, dtype=dtype) for n, s in SIZES.items()}


def some(count: int = 50, seeds: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    along = torch.randint(seeds, (count,), generator=source)
    return along, ticks(3 * torch.randn(count, generator=source))


def by_hand(w0: dict[str, torch.Tensor], along: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """w end to end, every sum in Python's integers."""
    flat = torch.cat([w0[n].flatten() for n in sorted(w0)])
    sums = [0] * len(flat)
    for seed, a in zip(along.tolist(), found.tolist(), strict=True):
        for i, z in enumerate(normals(seed, 0, len(flat)).tolist()):
            sums[i] += int(a) * int(z)
    scale = LR * 2.0**-30
    moved_ = [float(w) - scale * float(s) for w, s in zip(flat.double(), sums, strict=True)]
    return torch.tensor(moved_, dtype=torch.float64).to(flat.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_their_start_and_a_sum_of_integers(dtype: torch.dtype) -> None:
    w0, (along, found) = start(dtype), some(12)
    replay = Replay(w0, LR)
    w = replay.tensors(Steps.of(along, found))
    assert list(w) == list(w0), "in the order of the model"
    assert {n: (t.shape, t.dtype) for n, t in w.items()} == {
        n: (t.shape, dtype) for n, t in w0.items()
    }
    assert torch.equal(flattened(w), by_hand(w0, along, found))


def test_order_and_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    w0, (along, found) = start(), some()
    wanted = flattened(Replay(w0, LR).tensors(Steps.of(along, found)))
    back = torch.arange(len(along) - 1, -1, -1)
    assert torch.equal(
        flattened(Replay(w0, LR).tensors(Steps.of(along[back], found[back]))), wanted
    )
    monkeypatch.setattr("triskel.numerics.replay.CPU_PIECE", 4096)
    assert torch.equal(flattened(Replay(w0, LR).tensors(Steps.of(along, found))), wanted)


def test_what_is_known_of_a_sum_is_not_added_again_and_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w0, (along, found) = start(), some(60)
    replay, asked = Replay(w0, LR), list[int]()

    def counted(seed: int, *rest: int) -> torch.Tensor:
        asked.append(seed)
        return normals(seed, *rest)

    monkeypatch.setattr("triskel.numerics.replay.normals", counted)
    first = Steps.of(along, found)
    replay.tensors(first)
    assert sorted(asked) == first.seeds.tolist()
    asked.clear()
    replay.tensors(first)
    assert not asked
    more = Steps.of(torch.cat([along, torch.tensor([3, 99])]), torch.cat([found, found[:2]]))
    went_on = replay.tensors(more)
    assert sorted(asked) == [3, 99]
    late = Replay(w0, LR).tensors(more)
    assert torch.equal(flattened(went_on), flattened(late)), "who comes late has the same"
    asked.clear()
    few = Steps.of(along[:2], found[:2])
    assert torch.equal(flattened(replay.tensors(few)), flattened(Replay(w0, LR).tensors(few))), (
        "and who goes back"
    )
    assert len(asked) == 4, "from the start, as that is shorter"


def test_nobody_who_holds_a_sum_sees_it_change() -> None:
    w0, (along, found) = start(), some()
    replay = Replay(w0, LR)
    held = replay.sums(Steps.of(along, found))
    copy = held.clone()
    replay.sums(Steps.of(along[:40], found[:40]))
    assert torch.equal(held, copy)


PROGRAM = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from triskel.numerics.replay import Replay, Steps, flattened, ticks
w0 = {n: torch.linspace(-1, 1, 600_000).view(600, 1000) for n in ("x", "y")}
steps = Steps.of(torch.arange(12), ticks(torch.linspace(-3, 3, 12)))
w = flattened(Replay(w0, 1e-3).tensors(steps))
print(hashlib.sha256(w.numpy().tobytes()).hexdigest(), torch.get_num_threads())
"""


def test_one_and_two_threads_rebuild_the_same_bits() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(threads)],
            check=True, capture_output=True, text=True,
        ).stdout.split()
        for threads in (1, 2)
    ]  # fmt: skip
    assert [line[1] for line in said] == ["1", "2"]
    assert said[0][0] == said[1][0]


def test_scalars_that_would_no_longer_add_up_exactly_are_refused() -> None:
    replay = Replay(start(), LR)
    half = EXACT // 2
    along = torch.tensor([0, 1, 2])
    replay.sums(Steps.of(along[:2], torch.tensor([half, -half], dtype=torch.float64)))
    beyond = Steps.of(along, torch.tensor([half, -half, 2.0], dtype=torch.float64))
    with pytest.raises(RoundError, match=r"add up to 502152, and beyond 502152 .*exchange\.lr"):
        replay.sums(beyond)


def test_scalars_are_multiples_of_a_tick_and_come_back() -> None:
    x = torch.tensor([0.0, TICK, -TICK / 2, 1.5 * TICK, 255.99999, 4096.0, 300_000.125])
    assert ticks(x).tolist()[:4] == [0.0, 1.0, 0.0, 2.0]
    assert torch.equal(ticks(scalars_of(ticks(x))), ticks(x))
    assert scalars_of(ticks(x)).dtype == torch.float32


def test_steps_along_one_seed_are_one_and_those_that_cancel_are_none() -> None:
    steps = Steps.of(torch.tensor([5, 2, 5, 2]), torch.tensor([1.0, 3.0, 4.0, -3.0]).double())
    assert (steps.seeds.tolist(), steps.ticks.tolist()) == ([5], [5.0])
    assert not len(steps.beyond(steps).seeds)


def test_a_start_is_known_by_names_shapes_and_numbers() -> None:
    known = Replay(start(), LR).sha256
    assert Replay(start(), 2 * LR).sha256 == known
    others = start()
    others["c"] = others["c"] + 1e-6
    renamed = {("d" if n == "c" else n): t for n, t in start().items()}
    turned = {n: t.T.contiguous().view(t.T.shape) if t.dim() > 1 else t for n, t in start().items()}
    for other in (others, renamed, turned, start(torch.float64)):
        assert Replay(other, LR).sha256 != known


def test_moved_rounds_once_for_product_difference_and_dtype() -> None:
    w0 = torch.tensor([0.1, -2.0, 3e-8])
    sums = torch.tensor([1e12, -7.0, 123456789.0], dtype=torch.float64)
    wanted = [float(w) - float(s) * (LR * 2.0**-30) for w, s in zip(w0, sums, strict=True)]
    assert torch.equal(moved(w0, sums, LR), torch.tensor(wanted, dtype=torch.float64).float())


def test_parted_undoes_flattened() -> None:
    w0 = start()
    again = parted(flattened(w0), w0)
    assert all(torch.equal(again[n], w0[n]) for n in w0)
    flat = flattened(w0)
    views = parted(flat, w0, copy=False)
    views["c"].zero_()
    assert not flat[-3:].any()
