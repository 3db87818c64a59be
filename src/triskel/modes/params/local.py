"""How a client trains in a round: from what it was sent to what it sends and keeps.

θ is what came, θᵢ what is sent back, vᵢ a model of the client's own that stays with it, g the
gradient of a batch before Adam's moments, c and cᵢ control variates, Δ the last round's mean step:

    plain      θᵢ ← θ, then steps along g                      McMahan et al. 2017, 1602.05629
    fedprox    θᵢ ← θ, then along g + μ (θᵢ - θ)               Li et al. 2020, 1812.06127
    scaffold   θᵢ ← θ, then along g - cᵢ + c;                  Karimireddy et al. 2020, 1910.06378
               cᵢ ← mean of g over the round's steps
    fedadamw   θᵢ ← θ, then as AdamW with v̄, and along Δ;     Liu et al. 2025, 2510.27486
               v̄ goes on from everybody's
    mr_mtl     θᵢ = vᵢ, then along g + λ (θᵢ - θ)              Liu et al. 2022, 2206.07902
    ditto      as plain; and vᵢ along g + λ (vᵢ - θ)           Li et al. 2021, 2012.04221
    pfedme     θᵢ ← θ; per batch vᵢ ← θᵢ, K steps along        T. Dinh et al. 2020, 2006.08848
               g + λ (vᵢ - θᵢ), then θᵢ ← θᵢ - η λ (θᵢ - vᵢ)
    finetune   as plain; in the last rounds vᵢ ← θ along g, and nothing is sent

In `scaffold` the mean raw gradient is what option II of the paper amounts to under SGD, and is
defined under Adam too; the correction comes before Adam's moments (FAdamGC, 2502.02727).
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from triskel.model.reparametrisation import Form
from triskel.modes.params.control import CONTROL, SQUARES, Told
from triskel.modes.params.spec import Aligned, FineTune, PFedMe, Proximal
from triskel.training.loop import LossTerm, StepId
from triskel.training.optimizer import BETAS, Moments
from triskel.training.trainer import Trainer
from triskel.training.worker import Worker
from triskel.types import Fact, Facts, Local, Tensors

OWN = "own"
"""vᵢ, and whatever is frozen beside it."""
MEAN, SQUARE = "mean", "square"
"""Adam's moments."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a client has when its round begins.

    Attributes:
        tensors: θ as it trains, and what is frozen beside it.
        form: Which of them train, and what the model takes of them.
        kept: What the client kept of its last round.
        steps: How many steps its kept moments are of.
        told: What else came: c, or Δ and v̄.
        left: Rounds after this one.
    """

    tensors: Tensors
    form: Form
    kept: Mapping[str, Tensors]
    steps: int = 0
    told: Told = field(default_factory=Told)
    left: int = 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a client has when its round is over.

    Attributes:
        tensors: θᵢ, and what was frozen beside it; empty where nothing is sent.
        loss: The mean over steps.
        steps: How many.
        kept: What the client keeps.
        beside: What is sent beside θᵢ, by section.
        facts: And said.
        moments: Adam's.
    """

    tensors: Tensors
    loss: float
    steps: int
    kept: Mapping[str, Tensors] = field(default_factory=dict[str, Tensors])
    beside: Mapping[str, Tensors] = field(default_factory=dict[str, Tensors])
    facts: Facts = field(default_factory=dict[str, Fact])
    moments: Moments = field(default_factory=Moments)


Training = Generator[Local, Any, Trained]
Rule = Callable[[Begun, Worker, StepId], Training]


def plain(begun: Begun, worker: Worker, where: StepId) -> Training:
    """Train θᵢ from θ."""
    trainer, loss = yield from _run(begun, begun.tensors, worker, where)
    return _trained(trainer, loss)


@dataclass(frozen=True)
class FedProx:
    """θᵢ is drawn to θ.

    Attributes:
        mu: μ.
    """

    mu: float

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """Train θᵢ from θ, along g + μ (θᵢ - θ)."""
        towards = _drawn(begun.tensors, self.mu)
        trainer, loss = yield from _run(begun, begun.tensors, worker, where, towards)
        return _trained(trainer, loss)


def scaffold(begun: Begun, worker: Worker, where: StepId) -> Training:
    """Train θᵢ from θ, along g - cᵢ + c; return what cᵢ changed by."""
    mine, steps = begun.kept.get(CONTROL, {}), 0
    sums = dict[str, Tensor]()

    def correct(leaves: Mapping[str, nn.Parameter]) -> None:
        nonlocal steps
        steps += 1
        for name, leaf in leaves.items():
            raw = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            sums[name] = sums.get(name, 0) + raw.double()
            shift = _at(begun.told.control, name, leaf) - _at(mine, name, leaf)
            leaf.grad = raw.add_(shift)

    trainer, loss = yield from _run(begun, begun.tensors, worker, where, correct)
    now = {n: (total / steps).to(trainer.parameters[n].dtype).cpu() for n, total in sums.items()}
    change = {n: c - mine[n] if n in mine else c for n, c in now.items()}
    found = _trained(trainer, loss)
    return replace(found, kept={CONTROL: now}, beside={CONTROL: change}, facts={"new": not mine})


@dataclass(frozen=True)
class AlignedAdamW:
    """AdamW whose second moment is everybody's, and whose steps go also along the last round's.

    With k steps taken here and t by everybody before, η the rate and λ the decay of weights:

        m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²
        θᵢ ← (1 - η λ) θᵢ - η m / (1 - β₁ᵏ) / (√(v / (1 - β₂ᵗ⁺ᵏ)) + ε) - α Δ

    Attributes:
        alignment: α.
    """

    alignment: float

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """Train θᵢ from θ; return the mean of v over each tensor."""
        told, form = begun.told, begun.form
        names = [n for n in begun.tensors if form.trains is None or n in form.trains]
        squares = {
            n: torch.full_like(begun.tensors[n], float(told.squares[n]))
            for n in names
            if n in told.squares
        }
        moments = Moments(square=squares, steps=dict.fromkeys(squares, told.steps))
        rate, last = (worker.rate(max(r, 1)) for r in (where.round, where.round - 1))
        shift = self.alignment * rate / last / (1 - rate * worker.training.weight_decay)

        def correct(leaves: Mapping[str, nn.Parameter]) -> None:
            taken = trainer.steps
            ratio = (1 - BETAS[0] ** (told.steps + taken)) / (1 - BETAS[0] ** taken)
            trainer.pace(ratio)  # m starts at zero, and v does not
            for name, leaf in leaves.items():
                if name in told.control:  # before the decay of this step, which is divided out
                    leaf.data.sub_(told.control[name].to(leaf), alpha=shift)

        trainer = worker.trainer(begun.tensors, where, form=form, moments=moments, correct=correct)
        trainer, loss = yield from worker.train_on(trainer, where)
        found = _trained(trainer, loss)
        means = {n: v.double().mean().to(v.dtype).view(1) for n, v in found.moments.square.items()}
        return replace(found, beside={SQUARES: means}, facts={"steps": trainer.steps})


@dataclass(frozen=True)
class MeanRegularised:
    """Every client has a model of its own, drawn to everybody's mean.

    Attributes:
        strength: λ.
    """

    strength: float

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """Train vᵢ from where it was, along g + λ (vᵢ - θ), and send it."""
        towards = _drawn(begun.tensors, self.strength)
        trainer, loss = yield from _run(begun, _own(begun), worker, where, towards)
        return replace(_trained(trainer, loss), kept={OWN: _now(trainer)})


@dataclass(frozen=True)
class Ditto:
    """Beside the common model every client has one of its own, drawn to the common one.

    Attributes:
        strength: λ.
    """

    strength: float

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """Train θᵢ from θ; then vᵢ from where it was, along g + λ (vᵢ - θ)."""
        common, loss = yield from _run(begun, begun.tensors, worker, where)
        towards = _drawn(begun.tensors, self.strength)
        phase = StepId(where.client, where.round, "own")
        own, _ = yield from _run(begun, _own(begun), worker, phase, towards)
        return replace(_trained(common, loss), kept={OWN: _now(own)})


@dataclass(frozen=True)
class MoreauEnvelope:
    """The common model is one from which every client's own is near.

    Attributes:
        options: λ, K and η.
    """

    options: PFedMe

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """For each batch train vᵢ near θᵢ, then move θᵢ towards it."""
        options = self.options
        trainer = worker.trainer(begun.tensors, where, form=begun.form)
        centre = {n: p.detach().clone() for n, p in trainer.parameters.items()}
        trainer.correct = _drawn(centre, options.strength)
        done = 0

        def moved() -> None:
            for name, leaf in trainer.parameters.items():
                centre[name] -= options.rate * options.strength * (centre[name] - leaf.detach())

        def terms() -> Generator[list[LossTerm], None, None]:
            nonlocal done
            for batch in worker.batches(where, worker.training.epochs):
                if done:
                    moved()
                done += 1
                with torch.no_grad():
                    for name, leaf in trainer.parameters.items():
                        leaf.copy_(centre[name])
                for _ in range(options.inner):
                    yield [LossTerm(batch, worker.body.objective.loss)]

        loss = yield from worker.fit(trainer, terms(), where)
        moved()
        found = _trained(trainer, loss)
        return replace(found, tensors={**found.tensors, **centre}, kept={OWN: _now(trainer)})


@dataclass(frozen=True)
class LastRounds:
    """Every client's own model is the common one, trained on after the last average.

    Attributes:
        rounds: In how many last rounds nothing is sent.
    """

    rounds: int

    def __call__(self, begun: Begun, worker: Worker, where: StepId) -> Training:
        """Train θᵢ from θ; in the last rounds vᵢ, which stays."""
        if begun.left >= self.rounds:
            return (yield from plain(begun, worker, where))
        trainer, loss = yield from _run(begun, _own(begun), worker, where)
        return replace(_trained(trainer, loss), tensors={}, kept={OWN: _now(trainer)})


def rule_of(name: str, options: Any) -> Rule:  # noqa: ANN401 - of `LOCAL`
    """Return how clients train.

    Args:
        name: One of `LOCAL`.
        options: What is set of it.
    """
    match options:
        case PFedMe():
            return MoreauEnvelope(options)
        case FineTune():
            return LastRounds(options.rounds)
        case Aligned():
            return AlignedAdamW(options.alignment)
        case Proximal():
            kinds = {"fedprox": FedProx, "mr_mtl": MeanRegularised, "ditto": Ditto}
            return kinds[name](options.strength)
        case _:
            return {"plain": plain, "scaffold": scaffold}[name]


def _run(
    begun: Begun,
    start: Tensors,
    worker: Worker,
    where: StepId,
    correct: Callable[[Mapping[str, nn.Parameter]], None] | None = None,
) -> Generator[Local, Any, tuple[Trainer, float]]:
    """Train from a start, as the job has it in this round."""
    moments = None
    if begun.steps:
        mean, square = begun.kept.get(MEAN, {}), begun.kept.get(SQUARE, {})
        moments = Moments(mean=mean, square=square, steps=dict.fromkeys(mean, begun.steps))
    trainer = worker.trainer(start, where, form=begun.form, moments=moments, correct=correct)
    return (yield from worker.train_on(trainer, where))


def _trained(trainer: Trainer, loss: float) -> Trained:
    """Return what a trainer leaves."""
    return Trained(tensors=trainer.leaves, loss=loss, steps=trainer.steps, moments=trainer.moments)


def _own(begun: Begun) -> Tensors:
    """Return vᵢ as it was, or θ; what is frozen beside it is what came."""
    own = begun.kept.get(OWN, {})
    trains = begun.form.trains
    return {
        name: own[name] if name in own and (trains is None or name in trains) else tensor
        for name, tensor in begun.tensors.items()
    }


def _now(trainer: Trainer) -> dict[str, Tensor]:
    """Return all leaves of a trainer as they are now."""
    return {n: p.detach().cpu().clone() for n, p in trainer.leaves.items()}


def _drawn(centre: Tensors, strength: float) -> Callable[[Mapping[str, nn.Parameter]], None]:
    """Return what adds λ (x - centre) to gradients."""

    def correct(leaves: Mapping[str, nn.Parameter]) -> None:
        for name, leaf in leaves.items():
            pull = strength * (leaf.detach() - centre[name].to(leaf))
            leaf.grad = pull if leaf.grad is None else leaf.grad.add_(pull)

    return correct


def _at(tensors: Tensors, name: str, like: Tensor) -> Tensor:
    """Return a tensor where `like` is, zeros where there is none."""
    return tensors[name].to(like) if name in tensors else torch.zeros_like(like)
