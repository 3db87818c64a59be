"""What clients of `params` minimise, where the minimum is known: against NumPy, on quadratics.

Client i holds nᵢ texts and f_i(x) = ½ (x - aᵢ)ᵀ Hᵢ (x - aᵢ), in float64; the minimum of
Σ nᵢ fᵢ is where Σ nᵢ Hᵢ (x - aᵢ) = 0. Local training is some steps of plain gradient descent.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from triskel.aggregate.mean import Mean
from triskel.aggregate.server_optimizer import optimizer_of
from triskel.config.sections import Train
from triskel.core.choice import Choice, options_of
from triskel.model.meter import Meter
from triskel.model.reparametrisation import PLAIN, Form
from triskel.model.shared import Choice as Computes
from triskel.model.shared import SharedModel
from triskel.model.slots import Layout
from triskel.modes.params.local import OWN, rule_of
from triskel.modes.params.mode import Params, ParamsState
from triskel.modes.params.sharing import Sharing
from triskel.modes.params.spec import LOCAL, ParamsOptions
from triskel.numerics.objective import Objective
from triskel.training import conversation
from triskel.training.loop import LossTerm, StepId
from triskel.training.optimizer import Moments
from triskel.training.trainer import Correct, Trainer
from triskel.training.worker import Worker
from triskel.types import Batch, ClientState, Examples, Local, Tensors

SIZE, RATE, STEPS = 3, 0.2, 5
LAYOUT = Layout(head=("x",), block={}, scale=1.0)
WEIGHTS = {"ann": 3, "bob": 5, "cyd": 2}
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Valley:
    """One client's function."""

    h: Array
    a: Array

    def slope(self, x: Array) -> Array:
        return self.h @ (x - self.a)


def valleys() -> dict[str, Valley]:
    source = np.random.default_rng(0)
    found = {}
    for client in WEIGHTS:
        m = source.normal(size=(SIZE, SIZE))
        found[client] = Valley(m @ m.T / SIZE + np.eye(SIZE), source.normal(size=SIZE) * 3)
    return found


VALLEYS = valleys()
TOTAL = sum(WEIGHTS.values())
SUM_H = sum(n * VALLEYS[c].h for c, n in WEIGHTS.items())
LOWEST = np.linalg.solve(SUM_H, sum(n * VALLEYS[c].h @ VALLEYS[c].a for c, n in WEIGHTS.items()))


class Body(SharedModel):
    """A model of one tensor, which is what it says."""

    def __init__(self) -> None:
        self.choice, self.layout = Computes(), LAYOUT
        self.initial = self.fresh = {"x": torch.zeros(SIZE, dtype=torch.float64)}

    def parameters(self, tensors: Tensors, form: Form = PLAIN) -> dict[str, nn.Parameter]:
        assert form.trains is None
        return {n: nn.Parameter(t.detach().clone()) for n, t in tensors.items()}


class Hand(Worker):
    """A client's worker, whose batches are all its texts."""

    def trainer(
        self,
        tensors: Tensors,
        where: StepId,
        *,
        form: Form = PLAIN,
        moments: Moments | None = None,
        correct: Correct | None = None,
    ) -> Trainer:
        del where
        return Trainer(
            self.body, tensors, Train(optimizer="sgd"), RATE,
            form=form, moments=moments, correct=correct,
        )  # fmt: skip

    def train_on(
        self, trainer: Trainer | Tensors, where: StepId
    ) -> Generator[Local, Any, tuple[Trainer, float]]:
        assert isinstance(trainer, Trainer)
        loss = yield from self.fit(trainer, [()] * STEPS, where)
        return trainer, loss

    def batches(self, where: StepId, epochs: int) -> Iterator[Batch]:
        del where
        nothing = torch.zeros(0, dtype=torch.int64)
        one = Batch(
            ids=nothing[:, None], lengths=nothing, rows=nothing, columns=nothing, targets=nothing
        )
        return iter([one] * epochs)

    def fit(
        self, trainer: Trainer, work: Iterable[Sequence[LossTerm]], where: StepId
    ) -> Generator[Local, Any, float]:
        del where
        mine, value = VALLEYS[self.client], 0.0
        for _ in work:
            x = trainer.parameters["x"]
            off = x - torch.from_numpy(mine.a)
            loss = 0.5 * off @ torch.from_numpy(mine.h) @ off
            loss.backward()
            trainer.step()
            value = float(loss.detach())
        yield from ()
        return value


def hand(client: str) -> Hand:
    texts = Examples(ids=[torch.ones(1, dtype=torch.int64)] * WEIGHTS[client], labels=())
    body: Any = Body()
    body.objective = Objective()
    return Hand(
        client=client, training=Train(epochs=STEPS), rounds=1, seed=0, body=body, train=texts,
        test=texts, public=texts, meter=Meter(body, {}), watch=lambda _: None,
    )  # fmt: skip


def mode_of(  # a key that begins with `with_` is one of how clients train
    local: str = "plain",
    rounds: int = 0,
    **options: Any,  # noqa: ANN401 - of the mode
) -> Params[Any]:
    """The mode, whose clients train so."""
    set_ = {k.removeprefix("with_"): v for k, v in options.items() if k.startswith("with_")}
    rest = {k: v for k, v in options.items() if not k.startswith("with_")}
    chosen = Choice(name=local, **set_)
    params = ParamsOptions(local=chosen, **rest)
    return Params(
        initial=Body().initial,
        layout=LAYOUT,
        aggregate=Mean(),
        optimizer=optimizer_of(params),
        sharing=Sharing(options=params, layout=LAYOUT),
        rule=rule_of(local, options_of(chosen, LOCAL[local])),
        rounds=rounds,
    )


def play(
    mode: Params[Any],
    rounds: int,
    *,
    gone: Callable[[int], Collection[str]] = lambda _: (),
    uncounted: Callable[[int], Collection[str]] = lambda _: (),
    state: ParamsState | None = None,
    kept: dict[str, ClientState] | None = None,
) -> tuple[ParamsState, dict[str, ClientState]]:
    """Rounds; who is gone is not asked, who is uncounted trains and is not heard."""
    state, kept = state or mode.start(), dict(kept or {})
    for round_ in range(state.closed + 1, state.closed + rounds + 1):
        total = mode.zero(state)
        for client in sorted(set(WEIGHTS) - set(gone(round_))):
            talk = mode.work(
                mode.task(state, client), hand(client), kept.get(client, ClientState())
            )
            update, mine = conversation.alone(talk, client)
            if client not in uncounted(round_):
                total, kept[client] = mode.add(state, total, client, update), mine
        state = mode.close(state, total)
    return state, kept


def at(state: ParamsState) -> Array:
    return state.adapter["x"].numpy()


def descend(valley: Valley, x: Array, more: Callable[[Array], Array] = np.zeros_like) -> Array:
    """Local training, restated."""
    for _ in range(STEPS):
        x = x - RATE * (valley.slope(x) + more(x))
    return x


def mean(each: Mapping[str, Array]) -> Array:
    return sum(WEIGHTS[c] * x for c, x in each.items()) / sum(WEIGHTS[c] for c in each)


def apart(x: Array, y: Array) -> float:
    return float(np.abs(x - y).max())


def test_fedavg_with_local_steps_ends_beside_the_minimum_and_scaffold_in_it() -> None:
    plain, _ = play(mode_of(), 120)
    assert apart(at(plain), LOWEST) > 0.01
    corrected, _ = play(mode_of("scaffold"), 120)
    assert apart(at(corrected), LOWEST) < 1e-12


@pytest.mark.parametrize("uncounted", [False, True])
def test_scaffold_finds_the_minimum_with_clients_away_and_rounds_not_counted(
    uncounted: bool,  # noqa: FBT001 - a case
) -> None:
    def gone(round_: int) -> set[str]:
        return {"bob"} if round_ in {2, 3, 7} else {"ann"} if round_ == 5 else set()

    def lost(round_: int) -> set[str]:
        return {"cyd"} if uncounted and round_ in {1, 4, 9} else set()

    ended, _ = play(mode_of("scaffold"), 150, gone=gone, uncounted=lost)
    assert apart(at(ended), LOWEST) < 1e-12


def test_a_client_state_of_a_round_that_was_not_counted_would_hold_scaffold_off_for_ever() -> None:
    """What the counted round is for: kept wrongly, the control variates never sum to zero again."""
    mode = mode_of("scaffold")
    state, kept = play(mode, 3)
    talk = mode.work(mode.task(state, "cyd"), hand("cyd"), kept["cyd"])
    _, wrong = conversation.alone(talk, "cyd")  # the server never heard of it
    moved, right = play(mode, 150, state=state, kept=kept)
    spoilt, _ = play(mode, 150, state=state, kept={**kept, "cyd": wrong})
    assert apart(at(moved), LOWEST) < 1e-12
    assert right
    assert apart(at(spoilt), LOWEST) > 1e-4


def test_scaffold_is_the_papers_restated() -> None:
    x, c = np.zeros(SIZE), {client: np.zeros(SIZE) for client in WEIGHTS}
    for _ in range(4):
        central = mean(c)
        after = {}
        for client, valley in VALLEYS.items():
            shift = central - c[client]
            after[client] = descend(valley, x, lambda _, shift=shift: shift)
        # option II: c_i - c + (x - y_i) / (K eta), with everybody's weights
        c = {
            client: c[client] - central + (x - after[client]) / (STEPS * RATE) for client in WEIGHTS
        }
        x = mean(after)
    state, _ = play(mode_of("scaffold"), 4)
    assert apart(at(state), x) < 1e-13


def test_a_resumed_run_is_the_same() -> None:
    mode = mode_of("scaffold")
    whole, _ = play(mode, 6)
    half, kept = play(mode, 3)
    again, _ = play(mode, 3, state=half, kept=kept)
    assert torch.equal(whole.adapter["x"], again.adapter["x"])


def test_fedprox_is_its_formula_and_keeps_clients_nearer() -> None:
    x = np.zeros(SIZE)
    for _ in range(3):
        x = mean({c: descend(v, x, lambda y, x=x: 2.0 * (y - x)) for c, v in VALLEYS.items()})
    state, _ = play(mode_of("fedprox", with_strength=2.0), 3)
    assert apart(at(state), x) < 1e-13
    strong, _ = play(mode_of("fedprox", with_strength=6.0), 120)
    plain, _ = play(mode_of(), 120)
    assert apart(at(strong), LOWEST) < apart(at(plain), LOWEST)


def test_mr_mtl_is_its_formula_between_alone_and_together() -> None:
    x, own = np.zeros(SIZE), {c: np.zeros(SIZE) for c in WEIGHTS}
    for _ in range(4):
        own = {c: descend(v, own[c], lambda y, x=x: 0.5 * (y - x)) for c, v in VALLEYS.items()}
        x = mean(own)
    mode = mode_of("mr_mtl", with_strength=0.5)
    state, kept = play(mode, 4)
    assert apart(at(state), x) < 1e-13
    for client in WEIGHTS:
        assert apart(mode.client_model(kept[client])["x"].numpy(), own[client]) < 1e-13
    weak, alone = play(mode_of("mr_mtl", with_strength=1e-9), 80)[1], VALLEYS["ann"].a
    assert apart(weak["ann"].groups[OWN]["x"].numpy(), alone) < 1e-6


def test_ditto_leaves_the_common_model_alone_and_its_own_is_its_formula() -> None:
    plain, _ = play(mode_of(), 3)
    mode = mode_of("ditto", with_strength=0.5)
    state, kept = play(mode, 3)
    assert torch.equal(state.adapter["x"], plain.adapter["x"])
    x, own = np.zeros(SIZE), np.zeros(SIZE)
    for _ in range(3):
        own = descend(VALLEYS["bob"], own, lambda y, x=x: 0.5 * (y - x))
        x = mean({c: descend(v, x) for c, v in VALLEYS.items()})
    assert apart(mode.client_model(kept["bob"])["x"].numpy(), own) < 1e-13


def test_pfedme_is_its_formula() -> None:
    lam, eta, inner = 2.0, 0.3, 4
    mode = mode_of("pfedme", with_strength=lam, with_rate=eta, with_inner=inner)
    state, kept = play(mode, 2)
    x, own = np.zeros(SIZE), {}
    for _ in range(2):
        after = {}
        for client, valley in VALLEYS.items():
            w = x
            for _ in range(STEPS):
                v = w
                for _ in range(inner):
                    v = v - RATE * (valley.slope(v) + lam * (v - w))
                w = w - eta * lam * (w - v)
            after[client], own[client] = w, v
        x = mean(after)
    assert apart(at(state), x) < 1e-13
    assert apart(mode.client_model(kept["cyd"])["x"].numpy(), own["cyd"]) < 1e-13


def test_fine_tuning_is_fedavg_and_then_everybody_alone() -> None:
    before, _ = play(mode_of(), 3)
    mode = mode_of("finetune", rounds=5, with_rounds=2)
    state, kept = play(mode, 5)
    assert torch.equal(state.adapter["x"], before.adapter["x"])
    own = descend(VALLEYS["ann"], descend(VALLEYS["ann"], at(before)))
    assert apart(mode.client_model(kept["ann"])["x"].numpy(), own) < 1e-13


def step_by_hand(name: str, rounds: int, lr: float, b1: float, b2: float, tau: float) -> Array:
    """The server's optimisers, in NumPy."""
    x, m, u = np.zeros(SIZE), np.zeros(SIZE), np.full(SIZE, tau**2)
    for _ in range(rounds):
        change = mean({c: descend(v, x) for c, v in VALLEYS.items()}) - x
        if name == "nesterov":
            m = b1 * m + change
            x = x + lr * (change + b1 * m)
            continue
        m = b1 * m + (1 - b1) * change
        u = {
            "adagrad": u + change**2,
            "adam": b2 * u + (1 - b2) * change**2,
            "yogi": u - (1 - b2) * change**2 * np.sign(u - change**2),
        }[name]
        x = x + lr * m / (np.sqrt(u) + tau)
    return x


@pytest.mark.parametrize("name", ["nesterov", "adagrad", "adam", "yogi"])
def test_the_servers_steps_are_their_formulas(name: str) -> None:
    lr, b1 = 0.3, 0.0 if name == "adagrad" else 0.9
    mode = mode_of(server_optimizer=name, server_lr=lr, server_momentum=b1, server_beta2=0.95)
    state, _ = play(mode, 6)
    assert apart(at(state), step_by_hand(name, 6, lr, b1, 0.95, 1e-3)) < 1e-12
    again, _ = play(mode, 3, state=play(mode, 3)[0])
    assert torch.equal(again.adapter["x"], state.adapter["x"])
