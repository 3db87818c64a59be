"""The local loop: AdamW over one party's tensors, batch after batch.

Adam is the fused kernel of torch (Loshchilov and Hutter 2019, arXiv:1711.05101); its moments start
at zero in every round, as a client that may sit rounds out keeps none.
"""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from triskel.config.sections import Train
from triskel.errors import TrainingError
from triskel.model.shared import SharedModel
from triskel.model.side_factors import side_rank
from triskel.numerics.objective import Loss, label_loss
from triskel.numerics.rng import derive
from triskel.training.joining import worth_joining
from triskel.types import Batch, Local, Tensors, Work

BETAS = (0.9, 0.999)
EPSILON = 1e-8
IN_FLIGHT = 16
"""Clients that train side by side where nobody asks; fewer run in one pass when the model says."""


@dataclass(frozen=True)
class StepId:
    """Which step of a run this is, for streams of randomness and for error messages."""

    client: str
    round: int
    phase: str = "train"

    def path(self, step: int) -> tuple[str | int, ...]:
        """Return the name of this step's random stream."""
        return ("round", self.round, self.phase, self.client, step)


@dataclass(frozen=True)
class Moments:
    """Adam's state, as values: what a server keeps between steps and rounds.

    Attributes:
        mean: Running mean of gradients.
        square: Running mean of squared gradients.
        steps: Steps each tensor has taken.
    """

    mean: Tensors = field(default_factory=dict[str, Tensor])
    square: Tensors = field(default_factory=dict[str, Tensor])
    steps: Mapping[str, int] = field(default_factory=dict[str, int])


def optimiser(parameters: Mapping[str, nn.Parameter], train: Train, lr: float) -> torch.optim.AdamW:
    """Return AdamW over these tensors, at zero moments."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=lr,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=train.weight_decay,
        fused=True,
    )


def adamw_step(
    tensors: Tensors, gradients: Tensors, moments: Moments, train: Train, lr: float
) -> tuple[dict[str, Tensor], Moments]:
    """Return tensors and moments after one AdamW step; the inputs stay as they were.

    The same kernel as `optimiser`, state in and state out.

    Raises:
        TrainingError: A gradient is not laid out row by row.
    """
    names = list(gradients)
    new = {n: _own(tensors[n].detach()) for n in names}
    mean = {n: _own(_or_zero(moments.mean, n, new[n])) for n in names}
    square = {n: _own(_or_zero(moments.square, n, new[n])) for n in names}
    row_by_row(gradients)
    steps = {n: moments.steps.get(n, 0) for n in names}
    counts = [torch.tensor(float(steps[n]), device=new[n].device) for n in names]
    adamw(
        list(new.values()),
        [gradients[n].detach() for n in names],
        list(mean.values()),
        list(square.values()),
        [],
        counts,
        fused=True,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=lr,
        weight_decay=train.weight_decay,
        eps=EPSILON,
        maximize=False,
    )
    after = Moments(
        mean={**moments.mean, **mean},
        square={**moments.square, **square},
        steps={**moments.steps, **{n: count + 1 for n, count in steps.items()}},
    )
    return {**tensors, **new}, after


def learning_rate(train: Train, round_: int, rounds: int) -> float:
    """Return the learning rate of a round; it changes between rounds only.

    `linear` falls from lr to lr/rounds, `cosine` follows half a cosine to near zero.
    """
    done = (round_ - 1) / rounds
    if train.schedule == "linear":
        return train.lr * (1 - done)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * done))
    return train.lr


def finite(loss: Tensor, where: StepId, step: int) -> float:
    """Return the loss as a number.

    Raises:
        TrainingError: It is NaN or infinite; names client, round and step.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"loss became {value} at client {where.client!r}, round {where.round}, "
            f"{where.phase} step {step}; lower train.lr, set train.max_grad_norm = 1, "
            "or look for broken rows in that client's data"
        )
    return value


@dataclass(frozen=True)
class LossTerm:
    """A part of a step's loss.

    Attributes:
        batch: What the model runs on.
        loss: A function of its logits.
        weight: What the loss is multiplied by before terms are added.
    """

    batch: Batch
    loss: Loss = label_loss
    weight: float = 1.0


class Trainer:
    """One party's tensors while they are trained: leaves, clipping and AdamW.

    On the fast path all tensors and all gradients lie in one piece of memory each, so that a step
    of AdamW is one call.

    Attributes:
        body: The model they belong to.
        parameters: The leaves, by name.
        model: What the model runs: the leaves, and side factors where there are some, which do not
            train.
    """

    def __init__(self, body: SharedModel, tensors: Tensors, train: Train, lr: float) -> None:
        """Copy the tensors; moments start at zero.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        self.body = body
        self.model = body.parameters(tensors)
        self.parameters = {n: p for n, p in self.model.items() if p.requires_grad}
        self._train = train
        self._slopes: Tensor | None = None
        whole: Mapping[str, nn.Parameter] = self.parameters
        if body.choice.path == "fast" and self.parameters:
            whole = {"": self._flatten()}
        self._adam = optimiser(whole, train, lr) if whole else None

    def step(self) -> None:
        """Take a step along the gradients, and forget them."""
        if self._adam is None:
            return
        clip(self.parameters, self._train)
        row_by_row({n: p.grad for n, p in self.parameters.items() if p.grad is not None})
        self._adam.step()
        self.forget()

    @cached_property
    def rank(self) -> int:
        """That of the factors that are installed: those that train, and side factors."""
        return self.body.adapter.rank + side_rank(self.model)

    @property
    def sound(self) -> bool:
        """Whether all gradients are finite; on the fast path only."""
        return self._slopes is None or bool(self._slopes.sum().isfinite())

    def forget(self) -> None:
        """Set the gradients back."""
        if self._slopes is not None:
            self._slopes.zero_()
        elif self._adam is not None:
            self._adam.zero_grad(set_to_none=True)

    def _flatten(self) -> nn.Parameter:
        """Make the leaves, and their gradients, views of one tensor each; return it."""
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        self._slopes = torch.zeros_like(flat)
        start = 0
        for leaf in self.parameters.values():
            end = start + leaf.numel()
            leaf.data = flat[start:end].view(leaf.shape)
            leaf.grad = self._slopes[start:end].view(leaf.shape)
            start = end
        whole = nn.Parameter(flat)
        whole.grad = self._slopes
        return whole


@dataclass(eq=False)
class TrainStep:
    """One AdamW step of one party, alone or in one pass with other parties'; is a `types.Work`.

    Attributes:
        trainer: What trains.
        terms: The loss.
        where: Names client and round in errors.
        step: Which step of its phase it is.
        seed: Of the adapter's dropout.
        value: The loss in nats, once it ran.
    """

    trainer: Trainer
    terms: Sequence[LossTerm]
    where: StepId
    step: int
    seed: int
    value: float = math.nan

    @property
    def kind(self) -> Hashable:
        """Parties with the same model, of one rank and with as many terms go together."""
        trainer = self.trainer
        return (id(trainer.body), trainer.rank, len(self.terms)) if trainer.body.joins else None

    @property
    def size(self) -> int:
        """Padded tokens of all terms."""
        return sum(term.batch.ids.numel() for term in self.terms)

    def beside(self, others: Sequence[Work]) -> bool:
        """Return whether one pass with these is cheaper: all small, and little padding between."""
        all_ = [work for work in (self, *others) if isinstance(work, TrainStep)]
        shapes = [
            [work.terms[place].batch.ids.shape for work in all_] for place in range(len(self.terms))
        ]
        return worth_joining(self.trainer.body, self.trainer.rank, shapes)

    def run(self, others: Sequence[Work] = ()) -> None:
        """Run the model forward and back, and take the step of every party.

        Raises:
            TrainingError: A loss is not finite; no party took its step.
        """
        together = [self, *(work for work in others if isinstance(work, TrainStep))]
        self.trainer.body.dropout(self.seed)  # who has dropout runs alone
        total = self._forward(together)
        if len(together) > 1 and not all(bool(loss.isfinite()) for loss in total):
            total = [loss for work in together for loss in self._forward([work])]  # whose is it?
        for work, loss in zip(together, total, strict=True):
            work.value = finite(loss, work.where, work.step)
        torch.autograd.backward(total)
        if len(together) > 1 and not all(work.trainer.sound for work in together):
            for work in together:  # an infinite gradient of one is NaN in all: take each alone
                work.trainer.forget()
                work.run()
            return
        for work in together:
            work.trainer.step()

    def _forward(self, together: Sequence["TrainStep"]) -> list[Tensor]:
        """Return everybody's loss."""
        total: list[Tensor] = []
        for place in range(len(self.terms)):
            terms = [work.terms[place] for work in together]
            losses = self._losses(together, terms)
            parts = [
                loss if term.weight == 1 else term.weight * loss
                for term, loss in zip(terms, losses, strict=True)
            ]
            total = [x + y for x, y in zip(total, parts, strict=True)] if place else parts
        return total

    def _losses(
        self, together: Sequence["TrainStep"], terms: Sequence[LossTerm]
    ) -> Sequence[Tensor]:
        body = self.trainer.body
        parties = [work.trainer.model for work in together]
        batches = [term.batch for term in terms]
        if all(term.loss is label_loss for term in terms):
            found = body.label_losses(parties, batches)
            if found is not None:
                return found
        logits = body.together(parties, batches)
        return [term.loss(z, term.batch) for term, z in zip(terms, logits, strict=True)]


def fit(
    trainer: Trainer,
    work: Iterable[Sequence[LossTerm]],
    *,
    seed: int,
    where: StepId,
    after: Callable[[Sequence[LossTerm], float], None] | None = None,
) -> Generator[Local, Any, float]:
    """Take one AdamW step per item of `work`; whoever drives the generator runs the steps.

    Args:
        trainer: What trains, in place.
        work: The terms of each step's loss, in order.
        seed: The job's seed, for the adapter's dropout.
        where: Names client and round in errors.
        after: Called with each step's terms and loss once the step is taken.

    Returns:
        The mean loss over steps; 0 without any.

    Raises:
        TrainingError: A loss is not finite.
    """
    steps, total = 0, 0.0
    for step, terms in enumerate(work):
        one = TrainStep(trainer, terms, where, step, derive(seed, *where.path(step)))
        yield Local(one)
        steps, total = steps + 1, total + one.value
        if after is not None:
            after(terms, one.value)
    return total / max(steps, 1)


def clip(parameters: Mapping[str, nn.Parameter], train: Train) -> None:
    """Scale gradients down to `train.max_grad_norm` together; 0 leaves them alone."""
    if train.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), train.max_grad_norm)


def clipped(slopes: Tensors, train: Train) -> Tensors:
    """Return gradients scaled down to `train.max_grad_norm` together; 0 leaves them alone."""
    if not train.max_grad_norm or not slopes:
        return slopes
    norm = torch.stack([s.double().square().sum() for s in slopes.values()]).sum().sqrt()
    factor = float((train.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
    return {name: slope * factor for name, slope in slopes.items()}


def row_by_row(gradients: Tensors) -> None:
    """Refuse what torch's fused kernels would read in another order than it is meant.

    On a CPU they walk through memory and ignore strides: a gradient that is columns of a wider
    matrix gives wrong numbers and no error.

    Raises:
        TrainingError: A gradient is not laid out row by row.
    """
    for name, gradient in gradients.items():
        if not gradient.is_contiguous():
            raise TrainingError(
                f"the gradient of {name} has strides {gradient.stride()} for shape "
                f"{tuple(gradient.shape)}, which the fused optimiser would read in a wrong order; "
                "this is a defect of triskel, please report it with the job"
            )


def _own(tensor: Tensor) -> Tensor:
    """Return a copy laid out row by row."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _or_zero(tensors: Tensors, name: str, like: Tensor) -> Tensor:
    found = tensors.get(name)
    return torch.zeros_like(like) if found is None else found.to(like)
