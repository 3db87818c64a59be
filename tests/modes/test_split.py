"""Split learning is the joined model, cut: same loss, same gradients, same steps, at any cut."""

import math
import runpy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.config.sections import Train
from triskel.errors import JobError, MessageError, TrainingError
from triskel.modes.split import mode as split
from triskel.modes.split import server as trunk
from triskel.modes.split.mode import Split, SplitState
from triskel.training import trainer
from triskel.training.conversation import alone
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import Batch, ClientState, Examples, Message
from triskel.wire import pack
from triskel.wire.ledger import Ledger

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
L = tiny.LAYERS
ALL_CUTS = [(a, b) for a in range(L) for b in range(a + 1, L + 1)]
PREFIX = {"llama": "model.layers.", "gpt2": "transformer.h.", "bert": "bert.encoder.layer."}
Slopes = dict[str, Tensor]


# --- the joint computation, written without the code under test -------------------------------


def block_of(name: str) -> int | None:
    """The block of a tensor; None for the head's."""
    for prefix in PREFIX.values():
        if name.startswith(prefix):
            return int(name.removeprefix(prefix).split(".")[0])
    return None


def held(name: str, cut: tuple[int, int], *, shared: bool) -> bool:
    """Whether the client trains this tensor."""
    block = block_of(name)
    if block is None:
        return not shared
    return block < cut[0] or (not shared and block >= cut[1])


@dataclass
class Traced:
    """What every step of a run looked like.

    Attributes:
        server: Gradients of the trunk, step by step.
        clients: Gradients of each client's own tensors, step by step.
        losses: Loss of each client, step by step.
    """

    server: list[Slopes] = field(default_factory=list)
    clients: dict[str, list[Slopes]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)


class Joint:
    """All parties in one loop: θᵢ of each client, one φ, plain AdamW from torch."""

    def __init__(self, plain: Any, start: Mapping[str, Tensor], train: Train) -> None:  # noqa: ANN401 - a Plain
        self.plain, self.train, self.rate, self.trace = plain, train, train.lr, Traced()
        self.phi = {n: t.clone().requires_grad_() for n, t in start.items()}
        self.adam = {n: self._adam([t]) for n, t in self.phi.items()}

    def _adam(self, tensors: Iterable[Tensor]) -> torch.optim.AdamW:
        return torch.optim.AdamW(tensors, lr=self.rate, weight_decay=self.train.weight_decay)

    def round(
        self,
        batches: Mapping[str, Sequence[Batch]],
        cuts: Mapping[str, tuple[int, int]],
        examples: Mapping[str, int],
        *,
        shared: bool = False,
        crews: Sequence[Sequence[str]] = (),
    ) -> dict[str, Tensor]:
        """Train every crew in turn, then average what clients hold."""
        ends: dict[str, dict[str, Tensor]] = {}
        for crew in crews or [sorted(batches)]:
            theta = {
                c: {
                    n: t.detach().clone().requires_grad_()
                    for n, t in self.phi.items()
                    if held(n, cuts[c], shared=shared)
                }
                for c in crew
            }
            self._train({c: batches[c] for c in crew}, theta)
            ends |= theta
        total = sum(examples.values())
        for name, value in self.phi.items():
            parts = [examples[c] * ends[c].get(name, value).detach().double() for c in batches]
            value.data = (sum(parts[1:], parts[0]) / total).to(value.dtype)
        return {n: t.detach().clone() for n, t in self.phi.items()}

    def _train(
        self, batches: Mapping[str, Sequence[Batch]], theta: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        own = {c: self._adam(mine.values()) for c, mine in theta.items() if mine}
        for step in range(max(map(len, batches.values()))):
            here = {c: b[step] for c, b in batches.items() if step < len(b)}
            known = {c: int((b.targets >= 0).sum()) for c, b in here.items()}
            slopes: Slopes = {}
            for client, batch in here.items():
                mine = theta[client]
                given = {n: mine.get(n, t) for n, t in self.phi.items()}
                loss = (
                    self.plain.loss(batch, given)
                    if known[client]
                    else 0 * sum(t.sum() for t in given.values())
                )
                found = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
                every = {
                    n: torch.zeros_like(given[n]) if g is None else g
                    for n, g in zip(given, found, strict=True)
                }
                for name in mine:
                    mine[name].grad = every[name]
                share = known[client] / max(sum(known.values()), 1)
                for name in self.phi.keys() - mine.keys():
                    slopes[name] = slopes.get(name, 0) + share * every[name]
                self.trace.clients.setdefault(client, []).append(self._clipped(mine))
                self.trace.losses.setdefault(client, []).append(loss.item())
            for name, slope in slopes.items():
                self.phi[name].grad = slope
            self.trace.server.append(self._clipped({n: self.phi[n] for n in slopes}))
            for name in slopes:
                self.adam[name].param_groups[0]["lr"] = self.rate
                self.adam[name].step()
            for client in here:
                if theta[client]:
                    own[client].step()

    def _clipped(self, tensors: Mapping[str, Tensor]) -> Slopes:
        """Gradients of one party, clipped together where the job says so."""
        if self.train.max_grad_norm:
            norm = torch.nn.utils.clip_grad_norm_(tensors.values(), self.train.max_grad_norm)
            assert float(norm) > self.train.max_grad_norm
        return {n: t.grad.clone() for n, t in tensors.items() if t.grad is not None}


# --- the federation, observed -----------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Every gradient that an optimiser of split learning is given, in the order of its steps."""
    trace, real_step, real_optimiser = Traced(), split.optimizer_step, trainer.optimiser

    def step(tensors: Any, slopes: Any, *rest: Any) -> Any:  # noqa: ANN401 - as optimizer_step
        trace.server.append({n: t.clone() for n, t in slopes.items()})
        return real_step(tensors, slopes, *rest)

    def optimiser(parameters: Any, *rest: Any) -> Any:  # noqa: ANN401 - as optimiser
        adam, steps = real_optimiser(parameters, *rest), []
        trace.clients[str(len(trace.clients))] = steps
        adam.register_step_pre_hook(
            lambda *_: steps.append({n: p.grad.clone() for n, p in parameters.items()})
        )
        return adam

    monkeypatch.setattr(split, "optimizer_step", step)
    monkeypatch.setattr(trainer, "optimiser", optimiser)
    return trace


@dataclass(frozen=True)
class Case:
    """A job, its clients, and the same thing plain."""

    workers: list[Worker]
    plain: Any
    cuts: dict[str, tuple[int, int]]
    shared: bool = False
    kind: type[Split] = Split

    @property
    def mode(self) -> Split:
        return self.kind(setting=tiny.setting("split", self.workers[0]), aggregate=Mean())

    def start(self) -> dict[str, Tensor]:
        """Tensors of which no factor is zero."""
        return tiny.random_like(self.workers[0].body.initial, 4)

    def play(self, **options: Any) -> SplitState:  # noqa: ANN401 - of `tiny.play`
        state = SplitState(tensors=self.start())
        return tiny.play(self.mode, self.workers[0].job, self.workers, state=state, **options)[0]

    def joint(self, *, crews: Sequence[Sequence[str]] = ()) -> tuple[dict[str, Tensor], Traced]:
        train = self.workers[0].job.train
        joint = Joint(self.plain, self.start(), train)
        batches = {
            w.client: list(w.batches(StepId(w.client, 1), train.epochs)) for w in self.workers
        }
        examples = {w.client: len(w.train) for w in self.workers}
        found = joint.round(batches, self.cuts, examples, shared=self.shared, crews=crews)
        return found, joint.trace


def case(  # noqa: PLR0913 - what a case is made of
    family: str = "llama",
    task: str = "classify",
    *,
    cuts: Sequence[tuple[int, int]] = ((1, 3),),
    counts: Sequence[int] = (13,),
    labels: str = "private",
    dtype: torch.dtype = torch.float64,
    blocks: str = "all",
    options: Mapping[str, Any] | None = None,
    **sections: Any,  # noqa: ANN401 - of the job
) -> Case:
    """One client for each cut, named c0, c1, ...; 13 texts in batches of 3 are five steps."""
    names = [f"c{i}" for i in range(len(cuts))]
    given = {
        "split": {"labels": labels, "cut": (0, L), **(options or {})},
        "clients": {"each": {n: {"cut": c} for n, c in zip(names, cuts, strict=True)}},
        **sections,
    }
    given["adapter"] = {"blocks": blocks, **given.get("adapter", {})}
    job = tiny.job("split", task, **given)
    model = {"dtype": dtype, "wide": dtype == torch.float64}
    body = tiny.body(family, job, **model)
    chosen = sorted(set(body.layout.block.values()))
    plain = tiny.Plain(family, job, blocks=chosen, **model)
    workers = [
        tiny.worker(n, job, body, tiny.examples(count, task, seed=i, long=6 + 3 * i))
        for i, (n, count) in enumerate(zip(names, counts, strict=True))
    ]
    every = {n: (c[0], L) if labels == "shared" else c for n, c in zip(names, cuts, strict=True)}
    return Case(workers, plain, every, labels == "shared")


def agree(found: Sequence[Slopes], wanted: Sequence[Slopes], bound: float) -> None:
    """Hold gradients of all steps against each other: element-wise in float64, else by norm."""
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.keys() == want.keys()
        for name in want:
            close(got[name], want[name], bound)


def close(got: Tensor, want: Tensor, bound: float) -> None:
    assert got.dtype == want.dtype
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, want, rtol=0, atol=bound)
    else:
        # Sums of numbers near 1 are rounded at 1e-7, however small the sum.
        assert float((got - want).norm()) <= bound * float(want.norm()) + 1e-7


def same_run(one: Case, traced: Traced, bound: float) -> None:
    """The losses, every gradient of every step, and the tensors at the end."""
    seen: dict[str, list[float]] = {}
    told = [
        replace(w, watch=lambda e: seen.setdefault(e["client"], []).append(e["loss"]))
        for w in one.workers
    ]
    state = replace(one, workers=told).play()
    wanted, trace = one.joint()
    assert seen.keys() == trace.losses.keys()
    for client, losses in trace.losses.items():
        assert seen[client] == pytest.approx(losses, rel=bound, abs=bound)
    agree([s for s in traced.server if s], [s for s in trace.server if s], bound)
    clients = [steps for steps in trace.clients.values() if steps[0]]
    for steps, own in zip(traced.clients.values(), clients, strict=True):
        agree(steps, own, bound)
    start = one.start()
    moved = {n: state.tensors[n] - start[n] for n in start}
    for name, change in moved.items():
        assert float(change.abs().max()) > 1e-3, name
        close(change, wanted[name] - start[name], bound)


# --- one client is the joined model -----------------------------------------------------------


@pytest.mark.parametrize("cut", ALL_CUTS, ids=str)
@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_private_labels_at_any_cut_are_the_joined_model(
    family: str, task: str, cut: tuple[int, int], traced: Traced
) -> None:
    same_run(case(family, task, cuts=[cut]), traced, 1e-9)


@pytest.mark.parametrize("low", range(L))
@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_shared_labels_at_any_cut_are_the_joined_model(
    family: str, task: str, low: int, traced: Traced
) -> None:
    same_run(case(family, task, cuts=[(low, L)], labels="shared"), traced, 1e-9)


@pytest.mark.parametrize("codec", ["raw", "fp32"])
@pytest.mark.parametrize("labels", ["private", "shared"])
@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_in_float32_it_is_the_joined_model_up_to_rounding(
    family: str, task: str, labels: str, codec: str, traced: Traced
) -> None:
    one = case(family, task, labels=labels, dtype=torch.float32, wire={"up": codec, "down": codec})
    same_run(one, traced, 1e-5)


def test_one_client_ends_where_a_plain_loop_over_the_joined_model_ends() -> None:
    one = case(cuts=[(1, 3)])
    plain = one.plain.load(one.start())
    wanted = plain.train(one.workers[0].batches(StepId("c0", 1), 1), 0.01).now()
    found = one.play().tensors
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)


# --- several clients in a wave ----------------------------------------------------------------


@pytest.mark.parametrize("labels", ["private", "shared"])
@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_a_wave_steps_the_trunk_by_the_mean_and_each_client_by_its_own_gradient(
    family: str, task: str, labels: str, traced: Traced
) -> None:
    two = case(family, task, cuts=[(1, 3)] * 2, counts=(8, 4), labels=labels)
    lengths = [[len(b.ids) for b in w.batches(StepId(w.client, 1), 1)] for w in two.workers]
    assert sorted(lengths[0]) == [2, 3, 3]
    assert sorted(lengths[1]) == [1, 3]
    same_run(two, traced, 1e-9)


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_clients_may_cut_in_different_places(labels: str, traced: Traced) -> None:
    cuts = [(0, 4), (1, 3), (2, 3), (1, 3)]
    same_run(case(cuts=cuts, counts=(7, 5, 4, 9), labels=labels), traced, 1e-9)


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_the_share_of_a_client_counts_known_labels_only(labels: str, traced: Traced) -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(6, 6), labels=labels)
    first = tiny.relabelled(two.workers[0].train, [0, -1, -1, 1, -1, -1])
    nobody = tiny.relabelled(two.workers[1].train, [-1, -1, 1, 2, 0, -1])
    workers = [replace(two.workers[0], train=first), replace(two.workers[1], train=nobody)]
    same_run(replace(two, workers=workers), traced, 1e-9)


def test_a_batch_without_labels_moves_nobody_else(traced: Traced) -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(3, 3))
    silent = tiny.relabelled(two.workers[1].train, [-1, -1, -1])
    two.workers[1] = replace(two.workers[1], train=silent)
    two.play()
    alone = case(cuts=[(1, 3)], counts=(3,))
    (wanted,) = alone.joint()[1].server
    agree(traced.server, [wanted], 1e-9)
    assert all(not g.any() for g in traced.clients["1"][0].values())


@pytest.mark.parametrize(("tight", "small"), [(0.0, 0), (1e9, 10**9), (1.1, 30)])
@pytest.mark.parametrize("labels", ["private", "shared"])
def test_joining_batches_changes_nothing(
    labels: str, tight: float, small: int, monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    monkeypatch.setattr(trunk, "TIGHT", tight)
    monkeypatch.setattr(trunk, "SMALL", small)
    same_run(case(cuts=[(1, 3)] * 3, counts=(6, 7, 3), labels=labels), traced, 1e-9)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_joining_batches_changes_nothing_with_a_pooled_head(
    family: str, monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    monkeypatch.setattr(trunk, "SMALL", 10**9)
    same_run(case(family, cuts=[(1, 4)] * 2, counts=(6, 5)), traced, 1e-9)


def ask_of(lengths: Sequence[int]) -> Message:
    from triskel.modes.split.cut import rows_section  # noqa: PLC0415 - only here

    section = rows_section(torch.zeros(sum(lengths), 16), lengths)
    return Message(kind="ask", topic="forward", sections={"activations": section})


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ({"a": [9, 9], "b": [1]}, [["a", "b"]]),  # 27 tokens: small, though a third is padding
        ({"a": [400, 400], "b": [390]}, [["a", "b"]]),  # 1,200 tokens for 1,190: tight
        ({"a": [400, 400], "b": [200]}, [["a"], ["b"]]),  # 1,200 tokens for 1,000: neither
        ({"a": [300], "b": [310], "c": [900]}, [["a", "b"], ["c"]]),
        ({"b": [5], "a": [9], "c": [7]}, [["a", "b", "c"]]),
        ({"a": [512] * 2, "b": [512] * 2, "c": [512]}, [["a", "b"], ["c"]]),  # never above 2,048
    ],
)
def test_clients_are_joined_while_padding_is_cheap(
    lengths: dict[str, list[int]], groups: list[list[str]]
) -> None:
    one = case()
    cut = one.mode.cut("c0")
    asks = {c: ask_of(n) for c, n in lengths.items()}
    assert sorted(trunk.group(asks, dict.fromkeys(asks, cut))) == groups


def test_only_clients_of_one_cut_are_joined() -> None:
    one = case(cuts=[(1, 3), (0, 3), (1, 4)], counts=(1,) * 3)
    cuts = {c: one.mode.cut(c) for c in ("c0", "c1", "c2")}
    cuts["c3"] = cuts["c0"]
    groups = trunk.group({c: ask_of([5]) for c in cuts}, cuts)
    assert sorted(groups) == [["c0", "c3"], ["c1"], ["c2"]]


def test_clients_of_one_joined_batch_may_come_back_one_by_one(traced: Traced) -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(3, 3))
    mode, state = two.mode, SplitState(tensors=two.start())
    talks = {
        w.client: tiny.opened(mode.work(mode.task(state, w.client), w, ClientState()))
        for w in two.workers
    }
    state, answers = mode.answer(state, {c: tiny.until_ask(talk) for c, talk in talks.items()})
    assert len(set(map(id, state.graphs.values()))) == 1
    back = {c: tiny.until_ask(talk, answers[c]) for c, talk in talks.items()}
    for client, ask in back.items():
        state, _ = mode.answer(state, {client: ask})
    for steps, worker in zip(traced.server, two.workers, strict=True):
        (batch,) = worker.batches(StepId(worker.client, 1), 1)
        leaves = {n: t.requires_grad_() for n, t in two.start().items()}
        loss = two.plain.loss(batch, leaves)
        names = list(steps)
        wanted = torch.autograd.grad(loss, [leaves[n] for n in names])
        agree([steps], [dict(zip(names, wanted, strict=True))], 1e-9)


def test_waves_of_one_client_train_the_trunk_in_turn() -> None:
    two = case(cuts=[(1, 3), (2, 4)], counts=(7, 5), options={"wave": 1})
    wanted, _ = two.joint(crews=[["c0"], ["c1"]])
    found = two.play().tensors
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)
    other, _ = two.joint()
    assert tiny.apart(found, other) > 1e-4


def test_the_trunk_keeps_its_moments_and_clients_do_not() -> None:
    one = case(counts=(6,), rounds=2, train={"schedule": "linear", "weight_decay": 0.1})
    joint = Joint(one.plain, one.start(), one.workers[0].job.train)
    for round_, rate in ((1, 0.01), (2, 0.005)):
        joint.rate = rate
        batches = {"c0": list(one.workers[0].batches(StepId("c0", round_), 1))}
        wanted = joint.round(batches, one.cuts, {"c0": 6})
    state = one.play()
    assert set(state.moments.steps.values()) == {4}
    for name, tensor in wanted.items():
        torch.testing.assert_close(state.tensors[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_each_party_clips_its_own_gradient(labels: str, traced: Traced) -> None:
    train = {"max_grad_norm": 0.001, "weight_decay": 0.1, "epochs": 2}
    same_run(case(cuts=[(1, 3)] * 2, counts=(4, 3), labels=labels, train=train), traced, 1e-9)


def test_blocks_that_only_some_hold_count_the_server_for_the_others() -> None:
    two = case(cuts=[(0, 4), (2, 4)], counts=(4, 12))
    mode = two.mode
    state = SplitState(tensors=two.start())
    total = mode.zero(state)
    sent = {}
    for i, worker in enumerate(two.workers):
        names = mode.cut(worker.client).mine
        sent[i] = tiny.random_like({n: state.tensors[n] for n in names}, 20 + i)
        message = Message(
            kind="update",
            sections=split.adapter_sections(sent[i], worker.body.layout),
            facts={"round": 1, "examples": len(worker.train), "loss": 0.0},
        )
        total = mode.add(state, total, worker.client, message)
    closed = mode.close(state, total).tensors
    (head,) = two.workers[0].body.layout.head
    torch.testing.assert_close(closed[head], (4 * sent[0][head] + 12 * sent[1][head]) / 16)
    for name, value in state.tensors.items():
        if name in sent[1] and name != head:
            torch.testing.assert_close(closed[name], (4 * value + 12 * sent[1][name]) / 16)
        elif name != head:
            assert torch.equal(closed[name], value)


# --- what crosses -----------------------------------------------------------------------------


def sections(one: Case) -> tuple[set[str], set[str], list[str]]:
    """Sections that went up and down, and the topics of asks."""
    ledger, topics = Ledger(), list[str]()
    one.play(
        ledger=ledger,
        watch=lambda e: topics.append(e["topic"]) if e.get("kind") == "ask" else None,
    )
    account = ledger.accounts["c0"]
    return set(account.up.sections), set(account.down.sections), topics


@pytest.mark.parametrize(
    ("blocks", "cut", "up", "down"),
    [
        ("all", (1, 3), {"activations", "gradient"}, {"activations", "gradient"}),
        ("all", (0, 3), {"activations", "gradient"}, {"activations"}),
        ("1-2", (1, 3), {"activations", "gradient"}, {"activations"}),
        ("top:1", (1, 3), {"activations"}, {"activations"}),
        ("top:1", (1, 4), {"activations", "gradient"}, {"activations"}),
        ("0-0", (1, 3), {"activations", "gradient"}, {"activations", "gradient"}),
    ],
)
def test_gradients_cross_only_where_something_below_trains(
    blocks: str, cut: tuple[int, int], up: set[str], down: set[str], traced: Traced
) -> None:
    one = case(cuts=[cut], blocks=blocks)
    went_up, came_down, topics = sections(one)
    rounds_end = {"adapter", "head"}
    assert went_up - rounds_end == up
    assert came_down - rounds_end == down
    assert topics.count("backward") == (5 if "gradient" in up else 0)
    assert topics.count("forward") == 5
    traced.server.clear()
    traced.clients.clear()
    same_run(one, traced, 1e-9)


@pytest.mark.parametrize(("blocks", "low", "down"), [("1-3", 1, set()), ("all", 1, {"gradient"})])
def test_with_shared_labels_a_gradient_comes_down_only_where_something_trains(
    blocks: str, low: int, down: set[str], traced: Traced
) -> None:
    one = case(cuts=[(low, L)], blocks=blocks, labels="shared")
    went_up, came_down, topics = sections(one)
    assert went_up - {"adapter"} == {"activations", "labels"}
    assert came_down - {"adapter"} == down
    assert topics == ["forward"] * 5
    traced.server.clear()
    traced.clients.clear()
    same_run(one, traced, 1e-9)


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_a_client_with_nothing_to_train_still_serves_the_trunk(labels: str, traced: Traced) -> None:
    one = case("llama", "causal", cuts=[(0, L)], labels=labels)
    same_run(one, traced, 1e-9)
    assert not traced.clients
    ledger = Ledger()
    one.play(ledger=ledger)
    assert "adapter" not in ledger.accounts["c0"].up.sections


@pytest.mark.parametrize(("family", "cut", "rows"), [("llama", (1, 4), 13), ("bert", (1, 4), 13)])
def test_the_payload_is_unpadded_rows_and_one_row_a_text_for_a_bare_head(
    family: str, cut: tuple[int, int], rows: int
) -> None:
    one, ledger = case(family, cuts=[cut]), Ledger()
    one.play(ledger=ledger)
    tokens, account = sum(len(ids) for ids in one.workers[0].train.ids), ledger.accounts["c0"]
    assert account.up.sections["activations"] == tokens * 16 * 4
    assert account.down.sections["gradient"] == tokens * 16 * 4
    assert account.down.sections["activations"] == rows * 16 * 4
    assert account.up.sections["gradient"] == rows * 16 * 4
    whole, ledger = case(family, cuts=[(1, 3)]), Ledger()
    whole.play(ledger=ledger)
    account = ledger.accounts["c0"]
    assert account.down.sections["activations"] == tokens * 16 * 4
    assert account.up.sections["gradient"] == tokens * 16 * 4


def first_ask(one: Case, train: Examples) -> bytes:
    worker = replace(one.workers[0], train=train)
    mode = one.mode
    state = SplitState(tensors=one.start())
    return pack(
        tiny.until_ask(tiny.opened(mode.work(mode.task(state, "c0"), worker, ClientState())))
    )


def test_private_labels_leave_no_trace_in_what_goes_up_first() -> None:
    one = case(cuts=[(1, 3)], counts=(5,))
    texts = one.workers[0].train
    found = {first_ask(one, tiny.relabelled(texts, labels)) for labels in ([0] * 5, [2] * 5)}
    assert len(found) == 1
    one = case(cuts=[(1, 3)], counts=(5,), labels="shared")
    found = {first_ask(one, tiny.relabelled(texts, labels)) for labels in ([0] * 5, [2] * 5)}
    assert len(found) == 2


# --- dropout, refusals ------------------------------------------------------------------------


def test_dropout_of_clients_is_deterministic() -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(5, 4), adapter={"dropout": 0.5})
    torch.manual_seed(1)
    first = two.play().tensors
    torch.manual_seed(2)
    assert tiny.equal(two.play().tensors, first)
    steady = case(cuts=[(1, 3)] * 2, counts=(5, 4))
    assert tiny.apart(steady.play().tensors, first) > 1e-4


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_dropout_of_the_trunk_is_a_function_of_names_alone(labels: str) -> None:
    ends: list[Mapping[str, Tensor]] = []
    for elsewhere in (1, 2):

        class Far(Split):
            def answer(self, state: SplitState, asks: Mapping[str, Message]) -> Any:  # noqa: ANN401 - as Split
                torch.manual_seed(elsewhere)  # noqa: B023 - used at once
                return super().answer(state, asks)

        one = case(cuts=[(0, 4)], counts=(5,), labels=labels, adapter={"dropout": 0.5})
        ends.append(replace(one, kind=Far).play().tensors)
    assert tiny.equal(*ends)


def test_a_server_that_never_trained_evaluates_without_dropout() -> None:
    one = case(cuts=[(1, 3)], adapter={"dropout": 0.5})
    assert not any(m.training for m in one.workers[0].body.blocks.model.modules())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("labels", ["private", "shared"])
def test_it_does_not_matter_whether_parties_share_one_model_in_memory(
    labels: str, dropout: float
) -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(4, 7), labels=labels, adapter={"dropout": dropout})
    together = two.play().tensors
    wide = {"dtype": torch.float64, "wide": True}
    apart = [replace(w, body=tiny.body("llama", w.job, **wide)) for w in two.workers]
    job = two.workers[0].job
    own = replace(two.mode.setting, body=tiny.body("llama", job, **wide))
    server = replace(two.mode, setting=own)
    state = SplitState(tensors=two.start())
    found, _ = tiny.play(server, job, apart, state=state)
    assert tiny.equal(found.tensors, together)


@pytest.mark.parametrize("cut", [(0, 5), (4, 5), (3, 7)])
def test_a_cut_beyond_the_model_is_refused(cut: tuple[int, int]) -> None:
    one = case(cuts=[cut])
    with pytest.raises(JobError, match=r"0 <= a < b <= 4 .*got \[\d, \d\]"):
        one.mode.task(one.mode.start(), "c0")


def test_a_server_that_cuts_elsewhere_is_refused() -> None:
    one, other = case(cuts=[(1, 3)]), case(cuts=[(2, 3)])
    task = other.mode.task(other.mode.start(), "c0")
    with pytest.raises(MessageError, match=r"server cuts at .*2, 3.*both need the same job"):
        alone(one.mode.work(task, one.workers[0], ClientState()))


def test_with_shared_labels_only_the_first_number_of_a_cut_counts() -> None:
    found = [case(cuts=[cut], counts=(4,), labels="shared") for cut in ((2, 1), (2, 4), (2, 2))]
    ends = [one.play().tensors for one in found]
    assert tiny.equal(ends[0], ends[1])
    assert tiny.equal(ends[2], ends[1])
    assert found[0].mode.task(found[0].mode.start(), "c0").facts["cut"] == [2, 4]


def changed(ask: Message, section: str, **facts: object) -> Message:
    """The same message with other facts in a section."""
    found = ask.sections[section]
    found = replace(found, facts={**found.facts, **facts})  # type: ignore[arg-type]
    return replace(ask, sections={**ask.sections, section: found})


def opened(one: Case) -> tuple[Message, Any]:
    """The first ask of a client, and its talk."""
    task = one.mode.task(one.mode.start(), "c0")
    talk = tiny.opened(one.mode.work(task, one.workers[0], ClientState()))
    return tiny.until_ask(talk), talk


@pytest.mark.parametrize("lengths", [[], [0], [-1, 2], None, "ab", [True], [1.0]])
def test_lengths_that_are_none_are_refused(lengths: object) -> None:
    one = case(counts=(3,))
    ask, _ = opened(one)
    with pytest.raises(MessageError):
        one.mode.answer(one.mode.start(), {"c0": changed(ask, "activations", lengths=lengths)})


def test_other_texts_than_were_asked_about_are_refused() -> None:
    one = case(counts=(3,))
    ask, talk = opened(one)
    state, answers = one.mode.answer(one.mode.start(), {"c0": ask})
    first, *rest = ask.sections["activations"].facts["lengths"]
    other = [first + 1, *rest[:-1], rest[-1] - 1]
    with pytest.raises(MessageError, match="other text lengths"):
        tiny.until_ask(talk, changed(answers["c0"], "activations", lengths=other))
    _, talk = opened(one)
    back = tiny.until_ask(talk, answers["c0"])
    with pytest.raises(MessageError, match="other text lengths"):
        one.mode.answer(state, {"c0": changed(back, "gradient", lengths=other)})


@pytest.mark.parametrize(
    "runs", [[0, 0], [0, 0, 99], [9, 0, 1], [-1, 0, 1], [0, -1, 1], [0, 2, 1], [0, 1, 1], None]
)
def test_scored_positions_beyond_what_was_sent_are_refused(runs: object) -> None:
    one = case("llama", "causal", counts=(3,), labels="shared")
    ask, _ = opened(one)
    with pytest.raises(MessageError):
        one.mode.answer(one.mode.start(), {"c0": changed(ask, "labels", runs=runs)})


def test_as_many_positions_in_the_wrong_place_are_refused() -> None:
    one = case("llama", "causal", counts=(3,), labels="shared")
    ask, _ = opened(one)
    runs = list(ask.sections["labels"].facts["runs"])
    for change in ((0, 9, 9), (0, -50, -50), (9, 0, 0), (-9, 0, 0)):
        wrong = [x + y for x, y in zip(runs[:3], change, strict=True)] + runs[3:]
        with pytest.raises(MessageError, match="beyond what was sent"):
            one.mode.answer(one.mode.start(), {"c0": changed(ask, "labels", runs=wrong)})


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("label", [-2, "classes"])
def test_labels_that_do_not_exist_are_refused(task: str, label: object) -> None:
    one = case("llama", task, counts=(3,), labels="shared")
    ask, _ = opened(one)
    section = ask.sections["labels"]
    labels = section.tensors["labels"].clone()
    most = tiny.CLASSES if task == "classify" else tiny.VOCABULARY
    labels[0] = most if label == "classes" else label
    bad = replace(section, tensors={"labels": labels})
    lying = replace(ask, sections={**ask.sections, "labels": bad})
    with pytest.raises(MessageError, match="labels do not fit"):
        one.mode.answer(one.mode.start(), {"c0": lying})
    fewer = replace(section, tensors={"labels": section.tensors["labels"][:-1]})
    with pytest.raises(MessageError, match="labels do not fit"):
        one.mode.answer(
            one.mode.start(), {"c0": replace(ask, sections={**ask.sections, "labels": fewer})}
        )


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), ()], ids=str)
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    one = case(counts=(3,), labels="shared")
    ask, _ = opened(one)
    section = ask.sections["labels"]
    labels = section.tensors["labels"].flatten()[: math.prod(shape)].reshape(shape)
    bad = replace(section, tensors={"labels": labels})
    lying = replace(ask, sections={**ask.sections, "labels": bad})
    with pytest.raises(MessageError, match="section 'labels', tensor 'labels': shape"):
        one.mode.answer(one.mode.start(), {"c0": lying})


def test_a_number_of_labels_that_is_not_what_was_sent_is_refused() -> None:
    one = case(counts=(3,), labels="shared")
    ask, _ = opened(one)
    with pytest.raises(MessageError, match="speaks of 1000 labels in a batch that has room for 3"):
        one.mode.answer(
            one.mode.start(), {"c0": replace(ask, facts={**ask.facts, "labelled": 1000})}
        )
    lying = replace(ask, facts={**ask.facts, "labelled": 2})
    with pytest.raises(MessageError, match="'labelled' is not the number"):
        one.mode.answer(one.mode.start(), {"c0": lying})


def test_scored_tokens_of_neighbouring_texts_are_never_one_run() -> None:
    one = case("llama", "causal", counts=(3,), labels="shared")
    ask, _ = opened(one)
    (batch,) = one.workers[0].batches(StepId("c0", 1), 1)
    runs = ask.sections["labels"].facts["runs"]
    places = [
        (row, column)
        for row, low, high in zip(runs[::3], runs[1::3], runs[2::3], strict=True)
        for column in range(low, high)
    ]
    assert places == list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))


def test_a_gradient_for_no_open_batch_is_refused() -> None:
    one = case(cuts=[(1, 3)])
    ask = Message(kind="ask", topic="backward", facts={"round": 1, "labelled": 1})
    with pytest.raises(MessageError, match="'c0' sent a gradient for no open batch"):
        one.mode.answer(one.mode.start(), {"c0": ask})


@pytest.mark.parametrize("labels", ["private", "shared"])
def test_a_loss_that_is_no_number_names_client_round_and_step(labels: str) -> None:
    one = case(cuts=[(1, 3)], labels=labels)
    body = one.workers[0].body
    with torch.no_grad():
        body.blocks.norm.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"client 'c0', round 1, train step 0"):
        one.play()


def test_graphs_do_not_outlive_their_wave() -> None:
    two = case(cuts=[(1, 3)] * 2, counts=(5, 4))
    kept: list[int] = []

    class Watched(Split):
        def answer(self, state: SplitState, asks: Mapping[str, Message]) -> Any:  # noqa: ANN401 - as Split
            state, answers = super().answer(state, asks)
            kept.append(len(state.graphs))
            return state, answers

    state = replace(two, kind=Watched).play()
    assert kept == [2, 0, 2, 0]
    assert not state.graphs
