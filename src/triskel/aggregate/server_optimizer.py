"""The server's step from what it sent, w, to what the clients' updates amount to, w̄; Δ = w̄ - w.

    sgd        v ← β v + Δ;                         w ← w + λ v
    nesterov   v ← β v + Δ;                         w ← w + λ (Δ + β v)
    adagrad    m ← Δ;                u ← u + Δ²;    w ← w + λ m / (√u + τ)
    adam       m ← β m + (1 - β) Δ;  u ← β₂ u + (1 - β₂) Δ²;                    as adagrad
    yogi       m as adam;            u ← u - (1 - β₂) Δ² sign(u - Δ²);          as adagrad

`sgd` with λ = 1 and β = 0 is exactly w̄: FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm
1); with β > 0 it is FedAvgM (Hsu et al. 2019, arXiv:1909.06335). `nesterov` is the outer step of
DiLoCo (Douillard et al. 2023, arXiv:2311.08105). The others are FedOpt (Reddi et al. 2021,
arXiv:2003.00295, Algorithm 2), whose u begins at τ².
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triskel.numerics.tensors import blend
from triskel.types import ServerOptimizer, Tensors

MEAN, SQUARE = "mean/", "square/"
"""Before the names of tensors in what is remembered: m and u."""


@dataclass(frozen=True)
class Momentum:
    """Server momentum; satisfies `types.ServerOptimizer`.

    Attributes:
        lr: λ.
        momentum: β; with 0 nothing is remembered.
        nesterov: Whether the step looks ahead.
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def takes_over(self) -> bool:
        """Whether the step ends with what the updates amount to, whatever was before."""
        return self.lr == 1 and not self.momentum

    def start(self) -> Tensors:
        """Return v before the first step: nothing."""
        return {}

    def step(self, before: Tensors, mean: Tensors, moments: Tensors) -> tuple[Tensors, Tensors]:
        """Return the next w, and v.

        Args:
            before: w.
            mean: w̄, by the same names.
            moments: v as it was.
        """
        velocity: Tensors = {}
        if self.momentum:
            change = {n: mean[n] - w for n, w in before.items()}
            velocity = {
                n: self.momentum * moments.get(n, 0 * w) + change[n] for n, w in before.items()
            }
            ahead = velocity
            if self.nesterov:
                ahead = {n: change[n] + self.momentum * v for n, v in velocity.items()}
            mean = {n: w + ahead[n] for n, w in before.items()}
        return blend(before, mean, self.lr), velocity


@dataclass(frozen=True)
class Adaptive:
    """A step in units of the root of squared changes; satisfies `types.ServerOptimizer`.

    Attributes:
        square: Returns u of what it was, of Δ² and of β₂.
        lr: λ.
        momentum: β.
        beta2: β₂.
        epsilon: τ.
    """

    square: Callable[[Tensor, Tensor, float], Tensor]
    lr: float
    momentum: float
    beta2: float
    epsilon: float

    @property
    def takes_over(self) -> bool:
        """Never: the step depends on what was before."""
        return False

    def start(self) -> Tensors:
        """Return m and u before the first step: nothing stands for 0 and τ²."""
        return {}

    def step(self, before: Tensors, mean: Tensors, moments: Tensors) -> tuple[Tensors, Tensors]:
        """Return the next w; and m and u, in float64.

        Args:
            before: w.
            mean: w̄, by the same names.
            moments: m and u as they were.
        """
        after, kept = dict[str, Tensor](), dict[str, Tensor]()
        for name, w in before.items():
            change = mean[name].double() - w.double()
            m = moments.get(MEAN + name, torch.zeros_like(change))
            u = moments.get(SQUARE + name, torch.full_like(change, self.epsilon**2))
            m = self.momentum * m + (1 - self.momentum) * change
            u = self.square(u, change.square(), self.beta2)
            kept |= {MEAN + name: m, SQUARE + name: u}
            after[name] = (w.double() + self.lr * m / (u.sqrt() + self.epsilon)).to(w.dtype)
        return after, kept


def _summed(u: Tensor, square: Tensor, beta2: float) -> Tensor:
    del beta2
    return u + square


def _averaged(u: Tensor, square: Tensor, beta2: float) -> Tensor:
    return beta2 * u + (1 - beta2) * square


def _signed(u: Tensor, square: Tensor, beta2: float) -> Tensor:
    return u - (1 - beta2) * square * torch.sign(u - square)


ADAPTIVE: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "adagrad": _summed,
    "adam": _averaged,
    "yogi": _signed,
}


def optimizer_of(options: Any) -> ServerOptimizer:  # noqa: ANN401 - of any mode that has these keys
    """Return the server's optimiser.

    Args:
        options: Of a mode: `server_optimizer`, `server_lr`, `server_momentum`, `server_beta2` and
            `server_epsilon`.
    """
    name, lr, momentum = options.server_optimizer, options.server_lr, options.server_momentum
    if name in ADAPTIVE:
        return Adaptive(ADAPTIVE[name], lr, momentum, options.server_beta2, options.server_epsilon)
    return Momentum(lr, momentum, nesterov=name == "nesterov")
