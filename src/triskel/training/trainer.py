"""One party's tensors while they are trained: leaves, their gradients, and an optimiser."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from triskel.config.sections import Train
from triskel.model.reparametrisation import PLAIN, Form
from triskel.model.shared import SharedModel
from triskel.model.side_factors import side_rank
from triskel.training.optimizer import Moments, clip, optimiser, row_by_row
from triskel.types import Tensors

Correct = Callable[[Mapping[str, nn.Parameter]], None]
"""Changes the gradients of leaves in place, before they are clipped and a step is taken."""


class Trainer:
    """One party's tensors while they are trained: leaves, clipping and an optimiser.

    On the fast path all tensors and all gradients lie in one piece of memory each, so that a step
    of AdamW is one call.

    Attributes:
        body: The model they belong to.
        form: What the model's slots take of the leaves.
        leaves: All tensors, by name: those that train, and those that are frozen beside them.
        parameters: Those that train.
        correct: Changes their gradients before every step.
        steps: Steps that were taken.
    """

    def __init__(  # noqa: PLR0913 - what training is made of
        self,
        body: SharedModel,
        tensors: Tensors,
        train: Train,
        lr: float,
        *,
        form: Form = PLAIN,
        moments: Moments | None = None,
        correct: Correct | None = None,
    ) -> None:
        """Copy the tensors.

        Args:
            body: The model.
            tensors: Where training starts.
            train: How it trains.
            lr: The learning rate.
            form: Which of the tensors train, and what slots take of them.
            moments: The optimiser's, of an earlier round; None is zero.
            correct: Changes gradients before every step.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        self.body, self.form, self.correct, self.steps = body, form, correct, 0
        self.leaves = body.parameters(tensors, form)
        self.parameters = {n: p for n, p in self.leaves.items() if p.requires_grad}
        self._train, self._lr = train, lr
        self._slopes: Tensor | None = None
        self._whole: Mapping[str, nn.Parameter] = self.parameters
        if body.choice.path == "fast" and self.parameters:
            self._whole = {"": self._flatten()}
        self._optimiser = optimiser(self._whole, train, lr) if self.parameters else None
        if self._optimiser is not None and moments is not None and moments.steps:
            self._resume(self._optimiser, moments)

    @property
    def model(self) -> Mapping[str, Tensor]:
        """What the model runs: a function of the leaves, of which the slots take gradients back."""
        return self.form.factors(self.leaves)

    def step(self) -> None:
        """Take a step along the gradients, and forget them."""
        self.steps += 1
        if self._optimiser is None:
            return
        if self.correct is not None:
            self.correct(self.parameters)
        clip(self.parameters, self._train)
        row_by_row({n: p.grad for n, p in self.parameters.items() if p.grad is not None})
        self._optimiser.step()
        self.forget()

    def pace(self, ratio: float) -> None:
        """Let steps be so many times as long as the learning rate has it; weights decay as ever."""
        for group in self._optimiser.param_groups if self._optimiser is not None else ():
            group["lr"] = self._lr * ratio
            group["weight_decay"] = self._train.weight_decay / ratio

    @cached_property
    def rank(self) -> int:
        """That of the factors that are installed: those that train, and side factors."""
        return self.body.adapter.rank + side_rank(self.leaves)

    @property
    def sound(self) -> bool:
        """Whether all gradients are finite; on the fast path only."""
        return self._slopes is None or bool(self._slopes.sum().isfinite())

    @property
    def moments(self) -> Moments:
        """Adam's moments as they are now, by name; none of a tensor that took no step."""
        mean, square, steps = dict[str, Tensor](), dict[str, Tensor](), dict[str, int]()
        for name, state, part in self._states():
            if "exp_avg" in state:
                like = self.parameters[name]
                mean[name] = state["exp_avg"].view(-1)[part].view(like.shape).detach().clone()
                square[name] = state["exp_avg_sq"].view(-1)[part].view(like.shape).detach().clone()
                steps[name] = int(state["step"])
        return Moments(mean=mean, square=square, steps=steps)

    def forget(self) -> None:
        """Set the gradients back."""
        if self._slopes is not None:
            self._slopes.zero_()
        elif self._optimiser is not None:
            self._optimiser.zero_grad(set_to_none=True)

    def _states(self) -> list[tuple[str, Mapping[str, Tensor], slice]]:
        """Return where the optimiser keeps what belongs to each tensor that trains."""
        if self._optimiser is None:
            return []
        states, flat, start = self._optimiser.state, self._whole.get(""), 0
        found: list[tuple[str, Mapping[str, Tensor], slice]] = []
        for name, leaf in self.parameters.items():
            end = start + leaf.numel()
            if flat is None:
                found.append((name, states[leaf], slice(None)))
            else:
                found.append((name, states[flat], slice(start, end)))
            start = end
        return found

    def _resume(self, optimiser_: torch.optim.Optimizer, moments: Moments) -> None:
        """Begin with these moments; a tensor of which there are none begins at zero."""
        steps = max(moments.steps.values())
        for name, owner in self._whole.items():
            names = [name] if name else list(self.parameters)
            optimiser_.state[owner] = {
                "step": torch.tensor(float(moments.steps.get(name, steps)), device=owner.device),
                "exp_avg": self._gathered(moments.mean, names).view(owner.shape),
                "exp_avg_sq": self._gathered(moments.square, names).view(owner.shape),
            }

    def _gathered(self, tensors: Tensors, names: list[str]) -> Tensor:
        """Return copies of these one after the other, zeros where there is none."""
        leaves = [(n, self.parameters[n]) for n in names]
        return torch.cat([
            (tensors[n].to(p) if n in tensors else torch.zeros_like(p)).detach().reshape(-1)
            for n, p in leaves
        ])  # fmt: skip

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
