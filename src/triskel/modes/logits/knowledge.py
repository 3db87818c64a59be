"""Knowledge: what a model predicts on positions of public texts.

A party's knowledge on S positions is dense (values [S, C]) or the k largest of V with ids and the
log of the mass left over (values, ids [S, k], tail [S]). Values are τ·log p, where p is the softmax
at temperature τ, so that softmax(values/τ) gives p back; raw logits are such values up to a
constant per row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from triskel.numerics.tensors import wide

TINY = 1e-30


@dataclass(frozen=True)
class Knowledge:
    """Predictions on S positions, in the order the task gave.

    Attributes:
        values: τ·log p per class, or of the k largest.
        ids: For top k: which tokens these are; None when dense.
        tail: For top k: τ·log of the mass of all other tokens; None when dense.
        vocabulary: Number of classes or tokens.
        at: Which of the positions that were asked for these are, rising; None: all, in order.
        loss: The party's loss on each position's text, in nats; None where it was not asked for.
    """

    values: Float[Tensor, "positions k"]
    ids: Int[Tensor, "positions k"] | None
    tail: Float[Tensor, " positions"] | None
    vocabulary: int
    at: Int[Tensor, " positions"] | None = None
    loss: Float[Tensor, " positions"] | None = None

    def rows(self, which: Tensor) -> "Knowledge":
        """Return some of the predictions, by index or mask, as if there were no others."""
        return Knowledge(
            values=self.values[which],
            ids=None if self.ids is None else self.ids[which],
            tail=None if self.tail is None else self.tail[which],
            vocabulary=self.vocabulary,
            loss=None if self.loss is None else self.loss[which],
        )


def stack(parts: Sequence[Knowledge]) -> Knowledge:
    """Return predictions on the positions of all parts, one after the other."""
    ids = [p.ids for p in parts if p.ids is not None]
    tails = [p.tail for p in parts if p.tail is not None]
    losses = [p.loss for p in parts if p.loss is not None]
    return Knowledge(
        values=torch.cat([p.values for p in parts]),
        ids=torch.cat(ids) if ids else None,
        tail=torch.cat(tails) if tails else None,
        vocabulary=parts[0].vocabulary,
        loss=torch.cat(losses) if losses else None,
    )


def dense(logits: Float[Tensor, "positions classes"]) -> Knowledge:
    """Return all of a party's logits as knowledge."""
    return Knowledge(
        values=logits.to(wide(logits.dtype)), ids=None, tail=None, vocabulary=logits.shape[1]
    )


def top(logits: Float[Tensor, "positions tokens"], k: int, temperature: float) -> Knowledge:
    """Return the k largest of each row and the log of what is left."""
    scaled = logits.to(wide(logits.dtype)) / temperature
    ids = scaled.topk(min(k, logits.shape[1]), dim=-1).indices
    logp = outcomes(scaled, ids)
    return Knowledge(
        values=temperature * logp[:, :-1],
        ids=ids,
        tail=temperature * logp[:, -1],
        vocabulary=logits.shape[1],
    )


def outcomes(
    scaled: Float[Tensor, "positions tokens"], ids: Int[Tensor, "positions k"]
) -> Float[Tensor, "positions outcomes"]:
    """Return log p of the named tokens and, last, of all others together.

    The others' mass is summed, never 1 less the rest: where a model is sure, that difference is
    rounding. Where all are named, what is left is log of 1e-30.

    Args:
        scaled: Logits over τ, or log-probabilities.
        ids: Which tokens are named, none twice.
    """
    return _Outcomes.apply(scaled, ids)  # type: ignore[no-any-return]


class _Outcomes(Function):
    """What `outcomes` returns; its gradient takes one tensor of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, ids: Tensor) -> Tensor:  # noqa: ANN401 - as torch has it
        """Return the log-probabilities, and keep the logits of what is not named."""
        named, unnamed = scaled.gather(1, ids), scaled.scatter(1, ids, -math.inf)
        if ids.shape[1] == scaled.shape[1]:
            others = named.logsumexp(dim=1) + math.log(TINY)
        else:
            others = unnamed.logsumexp(dim=1)
        logp = torch.log_softmax(torch.cat([named, others[:, None]], dim=1), dim=1)
        ctx.save_for_backward(unnamed, ids, others, logp)
        return logp

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # noqa: ANN401 - as torch has it
        """Return the gradient of the logits; within the others it goes by their shares."""
        unnamed, ids, others, logp = ctx.saved_tensors
        (slope,) = upstream
        slope = slope - logp.exp() * slope.sum(dim=1, keepdim=True)
        shares = (unnamed - others[:, None]).exp_()
        return shares.mul_(slope[:, -1:]).scatter_(1, ids, slope[:, :-1]), None
