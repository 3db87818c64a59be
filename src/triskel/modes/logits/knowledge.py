"""Knowledge: what many models predict on the same positions, made one prediction.

A party's knowledge on S positions is dense (values [S, C]) or the k largest of V with ids and the
log of the mass left over (values, ids [S, k], tail [S]). Values are τ·log p, where p is the softmax
at temperature τ, so that softmax(values/τ) gives p back; raw logits are such values up to a
constant per row. Three ways to average, over parties i and per position:

    logits           z̄ = mean zᵢ                       teacher ∝ exp(z̄/τ)
    probabilities    p̄ = mean pᵢ
    confidence       p̄ = Σ cᵢ pᵢ / Σ cᵢ,   cᵢ = 1 - H(pᵢ)/log C + 1e-6   (H: entropy)

Where a party's top k lacks a token, its left-over mass is spread evenly over all V - k tokens it
did not name; nobody's silence counts as zero (after arXiv:2509.01750, whose exact rule we did not
read: this one is ours). The answer is again top k with a tail.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from triskel.errors import MessageError
from triskel.numerics.tensors import wide

Way = Literal["logits", "probabilities", "confidence"]
TINY = 1e-30


@dataclass(frozen=True)
class Knowledge:
    """Predictions on S positions, in the order the task gave.

    Attributes:
        values: τ·log p per class, or of the k largest.
        ids: For top k: which tokens these are; None when dense.
        tail: For top k: τ·log of the mass of all other tokens; None when dense.
        vocabulary: Number of classes or tokens.
    """

    values: Float[Tensor, "positions k"]
    ids: Int[Tensor, "positions k"] | None
    tail: Float[Tensor, " positions"] | None
    vocabulary: int

    def rows(self, which: Tensor) -> "Knowledge":
        """Return the predictions on some positions, by index or mask."""
        return Knowledge(
            values=self.values[which],
            ids=None if self.ids is None else self.ids[which],
            tail=None if self.tail is None else self.tail[which],
            vocabulary=self.vocabulary,
        )


def stack(parts: Sequence[Knowledge]) -> Knowledge:
    """Return predictions on the positions of all parts, one after the other."""
    ids = [p.ids for p in parts if p.ids is not None]
    tails = [p.tail for p in parts if p.tail is not None]
    return Knowledge(
        values=torch.cat([p.values for p in parts]),
        ids=torch.cat(ids) if ids else None,
        tail=torch.cat(tails) if tails else None,
        vocabulary=parts[0].vocabulary,
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


def combine(parties: Sequence[Knowledge], way: Way, temperature: float) -> Knowledge:
    """Return the average of what the parties know.

    Raises:
        MessageError: Nobody knows anything, or the parties speak of different positions.
    """
    if not parties:
        raise MessageError("no client sent predictions, so there is nothing to average")
    first = parties[0]
    for other in parties:
        if (other.values.shape, other.vocabulary) != (first.values.shape, first.vocabulary):
            raise MessageError(
                f"predictions of shape {tuple(other.values.shape)} over {other.vocabulary} "
                f"classes do not match {tuple(first.values.shape)} over {first.vocabulary}"
            )
    if first.ids is None:
        logp = [torch.log_softmax(p.values.double() / temperature, -1) for p in parties]
        mean = _average([p.values.double() for p in parties], logp, way, temperature)
        return dense((temperature * mean).to(first.values.dtype))
    return _combine_top(parties, way, temperature)


def _average(
    raw: Sequence[Tensor],
    logp: Sequence[Tensor],
    way: Way,
    temperature: float,
    sure: Sequence[Tensor] = (),
) -> Tensor:
    """Return log of the averaged distribution; rows need not be normalised for `logits`."""
    if way == "logits":
        return torch.stack(list(raw)).mean(0) / temperature
    p = torch.stack([x.exp() for x in logp])
    if way == "probabilities":
        return p.mean(0).clamp(min=TINY).log()
    share = torch.stack(list(sure) or [confidence(x) for x in p])
    return ((share[..., None] * p).sum(0) / share.sum(0)[..., None]).clamp(min=TINY).log()


def confidence(
    p: Float[Tensor, "positions outcomes"],
    spread: Float[Tensor, " positions"] | None = None,
    others: int = 0,
) -> Float[Tensor, " positions"]:
    """Return 1 - H(p)/log C + 1e-6: 1 for a sure prediction, near 0 for a uniform one.

    Args:
        p: Probabilities of the named outcomes.
        spread: Mass shared evenly by `others` outcomes that are not named.
        others: How many these are; C counts them.
    """
    entropy = -(p * p.clamp(min=TINY).log()).sum(-1)
    if spread is not None and others:
        entropy = entropy - spread * (spread.clamp(min=TINY).log() - math.log(others))
    outcomes = p.shape[-1] + others
    return (1 - entropy / math.log(max(outcomes, 2))).clamp(min=0) + 1e-6


def _combine_top(parties: Sequence[Knowledge], way: Way, temperature: float) -> Knowledge:
    """Average sparse rows on the union of their ids, and keep the k largest."""
    vocabulary = parties[0].vocabulary
    k = parties[0].values.shape[1]
    union, member = _union([_ids(p) for p in parties])
    width = union.shape[1]
    columns: list[Tensor] = []
    sure: list[Tensor] = []
    for party in parties:
        sent = torch.cat([party.values, _tail(party)[:, None]], dim=1).double()
        sent = torch.log_softmax(sent / temperature, dim=-1)  # nobody counts for more than one
        logp, rest = sent[:, :-1], sent[:, -1]
        spread = rest - math.log(max(vocabulary - k, 1))
        sure.append(confidence(logp.exp(), rest.exp(), vocabulary - k))
        row = spread[:, None].expand(-1, width).clone()
        at = torch.searchsorted(union, _ids(party).contiguous())
        row.scatter_(1, at, logp)
        row = row.masked_fill(~member, -math.inf)
        left = spread + (vocabulary - member.sum(1)).double().clamp(min=TINY).log()
        columns.append(torch.cat([row, left[:, None]], dim=1))
    raw = [c * temperature for c in columns]
    mean = _average(raw, columns, way, temperature, sure)
    at = mean[:, :width].topk(k, dim=-1).indices
    logp = temperature * outcomes(mean, at)
    return Knowledge(
        values=logp[:, :-1].to(parties[0].values.dtype),
        ids=union.gather(1, at),
        tail=logp[:, -1].to(parties[0].values.dtype),
        vocabulary=vocabulary,
    )


def _union(ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return each row's sorted distinct ids, filled up at the end, and which are real."""
    merged, _ = torch.cat(list(ids), dim=1).sort(dim=1)
    fresh = torch.ones_like(merged, dtype=torch.bool)
    fresh[:, 1:] = merged[:, 1:] != merged[:, :-1]
    filler = int(merged.max()) + 1 if merged.numel() else 0
    union, _ = merged.masked_fill(~fresh, filler).sort(dim=1)
    return union, union < filler


def _ids(party: Knowledge) -> Tensor:
    if party.ids is None:
        raise MessageError("one client sent all predictions and another the largest only")
    return party.ids.long()


def _tail(party: Knowledge) -> Tensor:
    if party.tail is None:
        raise MessageError("largest predictions came without the mass of the others")
    return party.tail
