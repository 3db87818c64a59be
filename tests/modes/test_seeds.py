"""Scalars along seeds: clients run forward only, and whoever adds the scalars up has the model."""

# ruff: noqa: ANN401 - modes and states of either kind

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.codec import decode, encode
from triskel.core.mode_spec import Sizes
from triskel.core.registry import CODECS
from triskel.errors import RoundError
from triskel.experiment import checkpoint
from triskel.model.flops import Piece
from triskel.model.meter import Costs
from triskel.model.shared import Choice
from triskel.modes.params.fedkseed import probabilities
from triskel.modes.params.mode import Params
from triskel.modes.params.spec import SPEC
from triskel.numerics.normals import UNIT, normals
from triskel.numerics.replay import TICK, Replay, flattened, ticks
from triskel.numerics.rng import derive, stream
from triskel.training import conversation
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.training.zeroth_order import Walk, WalkStep
from triskel.types import Batch, ClientState, Message
from triskel.wire import pack, payload_bytes, unpack
from triskel.wire.ledger import Ledger

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
KSEED = {"name": "fedkseed", "seeds": 8, "steps": 5, "lr": 0.01, "epsilon": 1e-3}
MEZO = {"name": "fedmezo", "steps": 5, "lr": 0.01, "epsilon": 1e-3}
BOTH = pytest.mark.parametrize("exchange", [KSEED, {**KSEED, "probabilities": True}, MEZO],
                               ids=["fedkseed", "pro", "fedmezo"])  # fmt: skip


def built(
    exchange: Mapping[str, Any], family: str = "llama", task: str = "classify", **sections: Any
) -> tuple[Any, list[Any]]:
    """A mode and two clients with unequal numbers of texts."""
    job = tiny.job("params", task, params={"exchange": exchange}, **sections)
    body = tiny.body(family, job)
    ann = tiny.worker("ann", job, body, tiny.examples(8, task), test=tiny.examples(4, task, seed=7))
    bob = tiny.worker("bob", job, body, tiny.examples(5, task, seed=9))
    return Params.build(tiny.setting("params", ann)), [ann, bob]


def said(mode: Any, state: Any, worker: Worker) -> Message:
    """What a client answers to the task of this state."""
    talk = mode.work(mode.task(state, worker.client), worker, ClientState())
    return conversation.alone(talk)[0]


def taken(update: Message) -> tuple[list[int], torch.Tensor]:
    """Seeds and ticks of an update."""
    tensors = update.sections["steps"].tensors
    return tensors["seeds"].tolist(), ticks(tensors["scalars"])


class Plainly:
    """MeZO on the plain model: tensors end to end, moved by whole numbers along normals."""

    def __init__(self, family: str, worker: Any) -> None:
        self.plain, self.start = tiny.Plain(family, worker.job), worker.body.initial
        self.names, self.options = sorted(self.start), worker.job.params.exchange
        self.flat = torch.cat([self.start[n].flatten() for n in self.names])
        self.sums = torch.zeros(len(self.flat), dtype=torch.float64)

    def tensors(self, seed: int = 0, sign: int = 0) -> dict[str, torch.Tensor]:
        """w, or w moved along a seed."""
        w = (self.flat.double() - self.sums * (self.options.lr * 2.0**-30)).float()
        if sign:
            along = normals(seed, 0, len(w)) * (sign * self.options.epsilon * 2.0**-14)
            w = (w.double() + along).float()
        parts = w.split([self.start[n].numel() for n in self.names])
        named = dict(zip(self.names, parts, strict=True))
        return {n: named[n].view(self.start[n].shape) for n in self.start}

    def loss(self, batch: Batch, seed: int, sign: int) -> float:
        with torch.no_grad():
            return float(self.plain.load(self.tensors(seed, sign)).picked_loss(batch))

    def train(self, batches: Sequence[Batch], seeds: Sequence[int]) -> list[int]:
        """Take a step a batch; return the ticks of each."""
        found = []
        for batch, seed in zip(batches, seeds, strict=True):
            up, down = (self.loss(batch, seed, sign) for sign in (1, -1))
            found.append(round((up - down) / (2 * self.options.epsilon) * 65536))
            self.sums += found[-1] * normals(seed, 0, len(self.sums))
        return found


def batches(worker: Any, round_: int = 1) -> list[Batch]:
    """The batches of a round: passes over the texts, cut after the last step."""
    steps, where = worker.job.params.exchange.steps, StepId(worker.client, round_)
    return list(worker.batches(where, steps))[:steps]


# --- identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_one_client_is_plain_mezo_bit_for_bit_and_the_server_has_its_tensors(
    family: str, task: str
) -> None:
    mode, (ann, _) = built(MEZO, family, task, rounds=2)
    plain, state = Plainly(family, ann), mode.start()
    for round_ in (1, 2):
        seeds = [derive(5, "round", round_, "train", "ann", i, "seed") % 2**31 for i in range(5)]
        wanted = plain.train(batches(ann, round_), seeds)
        update = said(mode, state, ann)
        along, found = taken(update)
        assert (along, found.tolist()) == (seeds, wanted)
        assert any(wanted)
        state = mode.close(state, mode.add(state, mode.zero(state), "ann", update))
        assert tiny.equal(dict(mode.server_model(state)), plain.tensors())
    assert state.log["seeds"].dtype == torch.int32


def test_one_client_of_fedkseed_is_plain_mezo_along_the_seeds_it_drew() -> None:
    mode, (ann, _) = built(KSEED, rounds=2)
    plain, state, total = Plainly("llama", ann), mode.start(), torch.zeros(8, dtype=torch.float64)
    for round_ in (1, 2):
        source = stream(5, "round", round_, "train", "ann", 0, "seeds")
        seeds = torch.randint(8, (5,), generator=source).tolist()
        wanted = plain.train(batches(ann, round_), seeds)
        total.index_add_(0, torch.tensor(seeds), torch.tensor(wanted, dtype=torch.float64))
        state, _ = tiny.play(mode, ann.job, [ann], state=state, rounds=1)
        assert torch.equal(ticks(state.scalars["scalars"]), total)
        assert tiny.equal(dict(mode.server_model(state)), plain.tensors())


@BOTH
def test_the_mean_of_clients_tensors_is_what_scalars_add_up_to(exchange: dict[str, Any]) -> None:
    mode, (ann, bob) = built(exchange)
    state = mode.start()
    ends = []
    for worker in (ann, bob):
        alone = mode.add(state, mode.zero(state), worker.client, said(mode, state, worker))
        ends.append(mode.server_model(mode.close(state, alone)))
    both, _ = tiny.play(mode, ann.job, [ann, bob])
    wanted = {n: (8 * ends[0][n].double() + 5 * ends[1][n].double()) / 13 for n in ends[0]}
    assert tiny.apart(mode.server_model(both), wanted) < 3e-5, "shares are rounded to ticks"
    assert tiny.apart(mode.server_model(both), ann.body.initial) > 1e-5


@BOTH
def test_who_comes_late_rebuilds_what_everybody_has(exchange: dict[str, Any]) -> None:
    mode, (ann, bob) = built(exchange, rounds=3)
    state, _ = tiny.play(mode, ann.job, [ann, bob])
    cold = Params.build(tiny.setting("params", ann))
    assert tiny.equal(dict(cold.server_model(state)), dict(mode.server_model(state)))
    own = tiny.worker("carl", ann.job, tiny.body("llama", ann.job), tiny.examples(6, seed=4))
    assert own.body.initial is not ann.body.initial
    ours = replace(own, body=ann.body)
    assert tiny.equal(
        said(cold, state, own).sections["steps"].tensors,
        said(mode, state, ours).sections["steps"].tensors,
    )


@BOTH
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_clients_in_one_pass_are_those_one_by_one(exchange: dict[str, Any], task: str) -> None:
    def scalars(join: int, wide: torch.dtype = torch.float64) -> list[float]:
        job = tiny.job("params", task, params={"exchange": exchange})
        body = tiny.body("llama", job, dtype=wide, wide=True)
        body.use(Choice(path="fast", join=join))
        workers = [
            tiny.worker(name, job, body, tiny.examples(6, task, seed=seed, short=5, long=6))
            for name, seed in (("ann", 1), ("bob", 2), ("carl", 3))
        ]
        passes.append(0)
        plain = body.together

        def counted(parties: Any, given: Any) -> Any:
            passes[-1] += 1
            return plain(parties, given)

        body.together = counted  # type: ignore[method-assign]
        body.label_losses = lambda *_: None  # type: ignore[method-assign]
        mode = Params.build(tiny.setting("params", workers[0]))
        state, _ = tiny.play(mode, job, workers)
        model = mode.server_model(state)
        return flattened(model).tolist()

    passes: list[int] = []
    one_by_one, joined = scalars(0), scalars(512)
    assert joined == pytest.approx(one_by_one, abs=2e-7), "up to a tick"
    assert passes == [0, 2 * exchange["steps"]]


def test_dropout_is_the_same_on_both_sides_of_a_step() -> None:
    mode, (ann, _) = built(MEZO, adapter={"dropout": 0.5})
    state = mode.start()
    for _ in range(2):  # so that factors B are not zero, and dropout matters
        state = mode.close(state, mode.add(state, mode.zero(state), "ann", said(mode, state, ann)))
    first, again = said(mode, state, ann), said(mode, state, ann)
    assert taken(first)[1].tolist() == taken(again)[1].tolist()
    steady, (calm, _) = built(MEZO)
    other = said(steady, state, calm)
    assert taken(other)[1].tolist() != taken(first)[1].tolist()
    assert float((taken(other)[1] - taken(first)[1]).abs().max()) * TICK < 5, "no two masks"
    assert not any(module.training for module in ann.body._dropouts)


# --- laws -------------------------------------------------------------------------------------


def test_a_scalar_is_the_slope_along_its_seed() -> None:
    """And nothing is kept for a backward pass that never comes."""
    _, (ann, _) = built(MEZO)
    body = tiny.body("llama", ann.job, dtype=torch.float64, wide=True)
    start = {n: t.double() for n, t in tiny.random_like(body.initial, 1).items()}
    replay = Replay(start, 0.01)
    zero = torch.zeros(len(replay.flat), dtype=torch.float64)
    one = Walk(body, replay, zero, lr=0.01, epsilon=1e-5)
    batch = ann.batch(ann.train, [0, 1, 2])
    leaves = body.parameters(start)
    body.objective.loss(body.logits(leaves, batch), batch).backward()
    slopes = flattened({n: p.grad for n, p in leaves.items() if p.grad is not None})
    kept: list[torch.Tensor] = []
    for seed in range(6):
        along = WalkStep(one, batch, StepId("ann", 1), seed, seed, 0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            along.run()
        z = normals(seed, 0, len(slopes)) * UNIT
        assert along.ticks * TICK == pytest.approx(float(slopes @ z), abs=2e-5)
        one.take(seed, -along.ticks)  # back, which is exact
    assert not kept
    one.move(0, 0)
    assert tiny.equal({n: p.detach() for n, p in one.model.items()}, start)


def test_slopes_times_normals_are_the_gradient_of_a_quadratic_on_average() -> None:
    """Power: an estimate that is 10 % too long or short is found; 4,000 seeds, 30 numbers."""
    source = torch.Generator().manual_seed(1)
    root = torch.randn(30, 30, generator=source, dtype=torch.float64)
    hessian, w = root @ root.T / 30, torch.randn(30, generator=source, dtype=torch.float64)
    slope, epsilon, count = hessian @ w, 1e-3, 4000

    def loss(at: torch.Tensor) -> torch.Tensor:
        return at @ hessian @ at / 2

    found = torch.zeros(30, dtype=torch.float64)
    for seed in range(count):
        z = normals(seed, 0, 30) * UNIT
        g = (loss(w + epsilon * z) - loss(w - epsilon * z)) / (2 * epsilon)
        found += g * z / count
    length = float(found @ slope / (slope @ slope))
    assert length == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    bound = 5 * float(slope.norm()) * (2 / count) ** 0.5
    assert float((found - slope).abs().max()) < bound


@BOTH
def test_a_total_is_the_same_in_any_order_and_in_parts(exchange: dict[str, Any]) -> None:
    mode, (ann, bob) = built(exchange)
    state = mode.start()
    updates = {w.client: said(mode, state, w) for w in (ann, bob)}

    def of(*clients: str) -> Any:
        total = mode.zero(state)
        for client in clients:
            total = mode.add(state, total, client, updates[client])
        return total

    wanted = mode.close(state, of("ann", "bob"))
    for total in (of("bob", "ann"), mode.merge(state, of("bob"), of("ann"))):
        found = checkpoint.freeze(mode.close(state, total))
        assert tiny.equal(found.tensors, checkpoint.freeze(wanted).tensors)
    with pytest.raises(RoundError, match="no client returned an update"):
        mode.close(state, mode.zero(state))


@BOTH
def test_a_run_that_goes_on_from_a_checkpoint_ends_where_it_would_have(
    exchange: dict[str, Any], tmp_path: Path
) -> None:
    mode, workers = built(exchange, rounds=4)
    whole, _ = tiny.play(mode, workers[0].job, workers)
    half, _ = tiny.play(mode, workers[0].job, workers, rounds=2)
    frozen = checkpoint.freeze(half)
    checkpoint.write(tmp_path, checkpoint.Saved(closed=2, state=frozen, clients={}, rows=[]))
    saved = checkpoint.read(tmp_path)
    assert saved is not None
    anew, others = built(exchange, rounds=4)
    state = checkpoint.thaw(anew.start(), saved.state)
    ended, _ = tiny.play(anew, others[0].job, others, state=state, rounds=2)
    assert ended.closed == whole.closed == 4
    assert tiny.equal(checkpoint.freeze(ended).tensors, checkpoint.freeze(whole).tensors)
    assert tiny.equal(dict(anew.server_model(ended)), dict(mode.server_model(whole)))


def test_a_fresh_run_goes_on_from_a_checkpoint_before_round_1() -> None:
    for exchange in (KSEED, MEZO):
        mode, _ = built(exchange)
        state = mode.start()
        again = checkpoint.thaw(mode.start(), checkpoint.freeze(state))
        assert tiny.equal(checkpoint.freeze(again).tensors, checkpoint.freeze(state).tensors)
        assert tiny.equal(dict(mode.server_model(state)), dict(mode.replay.start))


def test_seeds_that_say_more_are_drawn_more_often() -> None:
    size, often = torch.tensor([6.0, 1.0, 0.0, 2.0]).double(), torch.tensor([2, 1, 0, 1])
    means = [3.0, 1.0, 2.0, 2.0]  # the third as the others on average
    weights = torch.tensor([(m - 1) / 2 for m in means]).exp()
    assert torch.allclose(probabilities(size, often), weights / weights.sum())
    none = torch.zeros(4, dtype=torch.int64)
    assert probabilities(size * 0, none).tolist() == [0.25] * 4
    assert probabilities(torch.ones(4).double(), none + 1).tolist() == [0.25] * 4
    mode, _ = built({**KSEED, "seeds": 4, "steps": 4000, "probabilities": True})
    p = torch.tensor([0.5, 0.0, 0.125, 0.375])
    drawn = torch.tensor(mode._drawn(p, 1, StepId("ann", 1))).bincount(minlength=4) / 4000
    assert float((drawn - p).abs().max()) < 5 * (0.25 / 4000) ** 0.5
    assert drawn[1] == 0


def test_the_history_of_seeds_counts_every_pair() -> None:
    mode, (ann, bob) = built({**KSEED, "probabilities": True})
    state = mode.start()
    size, often = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    for worker in (ann, bob):
        along, found = taken(said(mode, state, worker))
        size.index_add_(0, torch.tensor(along), found.abs())
        often += torch.tensor(along).bincount(minlength=8)
    state, _ = tiny.play(mode, ann.job, [ann, bob])
    assert torch.equal(state.history["size"], size)
    assert torch.equal(state.history["drawn"], often)
    sent = mode.task(state, "ann").sections["probabilities"].tensors["probabilities"]
    assert torch.equal(sent, probabilities(size, often))
    plain, _ = built(KSEED)
    assert not plain.start().history


# --- what it costs ----------------------------------------------------------------------------


def test_a_client_and_round_of_fedkseed_takes_17_984_bytes() -> None:
    mode, (ann, _) = built({"name": "fedkseed"})
    ledger = Ledger()
    tiny.play(mode, ann.job, [ann], ledger=ledger)
    spent = ledger.rows()["ann"]
    up, down = (spent[way]["payload_bytes"] for way in ("up", "down"))
    assert (up, down, up + down) == (1_600, 16_384, 17_984)


@BOTH
def test_the_closed_form_is_what_is_sent(exchange: dict[str, Any]) -> None:
    mode, (ann, _) = built(exchange)
    update = said(mode, mode.start(), ann)
    sent = sum(payload_bytes(s) for s in update.sections.values())
    form = SPEC.payload(SPEC.of(ann.job), 1, Sizes(blocks=[100], head=5))
    assert (form.floats, form.fixed_bytes) == (0, sent) == (0, 8 * 5)
    told = SPEC.disclosure(SPEC.of(ann.job), "classes").sections
    assert told.keys() == mode.task(mode.start(), "ann").sections.keys()
    assert update.sections.keys() <= told.keys()


@pytest.mark.parametrize("codec", CODECS.ours)
@BOTH
def test_no_codec_changes_a_scalar(exchange: dict[str, Any], codec: str) -> None:
    mode, (ann, _) = built(exchange)
    update = said(mode, mode.start(), ann)
    crossed = decode(unpack(pack(encode(update, codec))))
    assert tiny.equal(crossed.sections["steps"].tensors, update.sections["steps"].tensors)
    coded = encode(update, codec).sections["steps"]
    assert sum(t.nbytes for t in coded.tensors.values()) == 8 * 5


def test_the_meter_counts_two_forward_passes_a_step_and_no_optimiser() -> None:
    job = tiny.job("params", params={"exchange": MEZO})
    body = tiny.body("llama", job)
    costs = Costs(body)
    costs.know(Piece("forward"))
    ann = tiny.worker("ann", job, body, tiny.examples(8), costs=costs)
    mode = Params.build(tiny.setting("params", ann))
    tiny.play(mode, job, [ann])
    cost = costs[Piece("forward")]
    wanted = sum(2 * cost.of(*b.ids.shape, len(b.rows)) for b in batches(ann))
    assert ann.meter.flops == wanted > 0
    numbers = sum(t.numel() for t in body.initial.values())
    assert ann.meter.peak_bytes == costs.resident((Piece("forward"),)) + 12 * numbers
    assert ann.meter.tokens == sum(b.ids.numel() for b in batches(ann))
