"""The server's step from what it sent to what the clients' updates amount to.

    v ← β v + (w̄ - w);    w ← w + λ v

With λ = 1 and β = 0 it is exactly w̄: FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).
With β > 0 it is FedAvgM (Hsu et al. 2019, arXiv:1909.06335).
"""

from dataclasses import dataclass

from triskel.numerics.tensors import blend
from triskel.types import Tensors


@dataclass(frozen=True)
class Momentum:
    """Server momentum; satisfies `types.ServerOptimizer`.

    Attributes:
        lr: λ.
        momentum: β; with 0 nothing is remembered.
    """

    lr: float = 1.0
    momentum: float = 0.0

    @property
    def takes_over(self) -> bool:
        """Whether the step ends with what the updates amount to, whatever was before."""
        return self.lr == 1 and not self.momentum

    def start(self) -> Tensors:
        """Return v before the first step: nothing."""
        return {}

    def step(self, before: Tensors, mean: Tensors, moments: Tensors) -> tuple[Tensors, Tensors]:
        """Return w + λ v, and v.

        Args:
            before: w.
            mean: w̄, by the same names.
            moments: v as it was.
        """
        velocity: Tensors = {}
        if self.momentum:
            velocity = {
                n: self.momentum * moments.get(n, 0 * w) + (mean[n] - w) for n, w in before.items()
            }
            mean = {n: w + velocity[n] for n, w in before.items()}
        return blend(before, mean, self.lr), velocity
