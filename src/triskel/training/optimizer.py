"""A party's optimiser: AdamW or plain SGD over named tensors, clipping, and the learning rate.

Adam is the fused kernel of torch (Loshchilov and Hutter 2019, arXiv:1711.05101); its moments start
at zero in every round, unless whoever trains keeps them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from triskel.config.sections import Train
from triskel.errors import TrainingError
from triskel.types import Tensors

BETAS = (0.9, 0.999)
EPSILON = 1e-8


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


def optimiser(
    parameters: Mapping[str, nn.Parameter], train: Train, lr: float
) -> torch.optim.Optimizer:
    """Return the job's optimiser over these tensors, at zero moments."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(list(parameters.values()), lr=lr, weight_decay=train.weight_decay)
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=lr,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=train.weight_decay,
        fused=True,
    )


def optimizer_step(
    tensors: Tensors, gradients: Tensors, moments: Moments, train: Train, lr: float
) -> tuple[dict[str, Tensor], Moments]:
    """Return tensors and moments after one step; the inputs stay as they were.

    The same kernels as `optimiser`, state in and state out.

    Raises:
        TrainingError: A gradient is not laid out row by row.
    """
    names = list(gradients)
    new = {n: _own(tensors[n].detach()) for n in names}
    if train.optimizer == "sgd":
        leaves = {n: nn.Parameter(t) for n, t in new.items()}
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].detach()
        optimiser(leaves, train, lr).step()
        return {**tensors, **{n: p.detach() for n, p in leaves.items()}}, moments
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
