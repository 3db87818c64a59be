"""The local loop: AdamW over one party's tensors, batch after batch.

Adam is the fused kernel of torch (Loshchilov and Hutter 2019, arXiv:1711.05101); its moments start
at zero in every round, as a client that may sit rounds out keeps none.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.adamw import adamw

from triskel.errors import TrainingError
from triskel.job import Train
from triskel.types import Batch, Tensors

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class Where:
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
    """
    names = list(gradients)
    new = {n: tensors[n].detach().clone() for n in names}
    mean = {n: _or_zero(moments.mean, n, new[n]).clone() for n in names}
    square = {n: _or_zero(moments.square, n, new[n]).clone() for n in names}
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


def label_loss(logits: Float[Tensor, "scored classes"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats over positions whose target is known."""
    targets = batch.targets.to(logits.device)
    known = int((batch.targets >= 0).sum())
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = cross_entropy(wide, targets, ignore_index=-1, reduction="sum")
    return total / max(known, 1)


def finite(loss: Tensor, where: Where, step: int) -> float:
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


def fit(  # noqa: PLR0913 - a loop and what it reports to
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    loss_of: Callable[[Batch, int], Float[Tensor, ""]],
    *,
    train: Train,
    lr: float,
    where: Where,
    after: Callable[[Batch, float], None] | None = None,
) -> float:
    """Take one AdamW step per batch, in place on `parameters`.

    Args:
        parameters: What trains.
        batches: What to train on, in order.
        loss_of: Loss of a batch at a step, in nats.
        train: Optimiser options.
        lr: The learning rate of this round.
        where: Names client and round in errors.
        after: Called with each batch and its loss once the step is taken.

    Returns:
        The mean loss over batches; 0 without any.

    Raises:
        TrainingError: A loss is not finite.
    """
    steps, total = 0, 0.0
    adam = optimiser(parameters, train, lr)
    for step, batch in enumerate(batches):
        loss = loss_of(batch, step)
        value = finite(loss, where, step)
        loss.backward()  # type: ignore[no-untyped-call]
        clip(parameters, train)
        adam.step()
        adam.zero_grad(set_to_none=True)
        steps, total = steps + 1, total + value
        if after is not None:
            after(batch, value)
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


def _or_zero(tensors: Tensors, name: str, like: Tensor) -> Tensor:
    found = tensors.get(name)
    return torch.zeros_like(like) if found is None else found.to(like)
