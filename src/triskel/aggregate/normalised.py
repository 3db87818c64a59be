"""Updates counted by the step: clients that take more local steps do not count for more.

    dᵢ = (θᵢ - θ) / τᵢ;    θ + (Σ pᵢ τᵢ) Σ pᵢ dᵢ,    pᵢ = nᵢ / Σ nⱼ,  τᵢ steps of client i

FedNova, Wang et al. 2020, arXiv:2007.07481, section 4, for local solvers without momentum, where
the normaliser is the number of steps; under Adam it is the same by definition. With equal τᵢ it is
the weighted mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from triskel.aggregate.pairs import checked, completed
from triskel.errors import RoundError
from triskel.types import ClientUpdate, Section, Tensors


@dataclass(frozen=True)
class StepTotal:
    """Running sums.

    Attributes:
        slopes: Σ nᵢ dᵢ by name, float64.
        steps: Σ nᵢ τᵢ.
        weight: Σ nᵢ.
    """

    slopes: Tensors = field(default_factory=dict[str, Tensor])
    steps: float = 0.0
    weight: float = 0.0


class FedNova:
    """A mean of changes by the step; satisfies `types.Aggregate`."""

    def zero(self) -> StepTotal:
        """Return the total of no updates."""
        return StepTotal()

    def add(
        self, total: StepTotal, update: ClientUpdate, before: Mapping[str, Section]
    ) -> StepTotal:
        """Return the total with one client's change by the step folded in.

        Raises:
            RoundError: The weight or the steps are not positive.
        """
        checked(update, before, "rest")
        weight, steps = update.weight, update.steps
        if steps < 1:
            raise RoundError(f"an update must be of a positive number of steps, got {steps}")
        slopes = dict(total.slopes)
        for section, sent in update.sections.items():
            start = before[section]
            for name, tensor in completed(sent, start).items():
                part = (tensor.double() - start.tensors[name].double()) * (weight / steps)
                slopes[name] = slopes[name] + part if name in slopes else part
        return StepTotal(slopes, total.steps + weight * steps, total.weight + weight)

    def merge(self, left: StepTotal, right: StepTotal) -> StepTotal:
        """Return the total of both totals."""
        slopes = dict(left.slopes)
        for name, part in right.slopes.items():
            slopes[name] = slopes[name] + part if name in slopes else part
        return StepTotal(slopes, left.steps + right.steps, left.weight + right.weight)

    def value(self, total: StepTotal, before: Mapping[str, Section]) -> dict[str, Section]:
        """Return what was sent, and the mean change by the step times the mean of steps.

        Raises:
            RoundError: Nobody sent anything.
        """
        if not total.weight:
            raise RoundError("no client returned an update; every client of the cohort failed")
        far = total.steps / total.weight**2
        return {
            name: replace(
                section,
                tensors={
                    n: (t.double() + far * total.slopes[n]).to(t.dtype)
                    if n in total.slopes
                    else t.clone()
                    for n, t in section.tensors.items()
                },
            )
            for name, section in before.items()
        }
