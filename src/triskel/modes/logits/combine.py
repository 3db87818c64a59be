"""What several parties predict on the same positions, made one prediction.

On a position, parties i that speak of it, distributions pᵢ over all V outcomes, weights wᵢ:

    arithmetic   p̄ = Σ wᵢ pᵢ / Σ wᵢ
    geometric    p̄ ∝ exp(Σ wᵢ log pᵢ / Σ wᵢ)

| rule | mean | wᵢ |
|---|---|---|
| probabilities | arithmetic | 1 |
| logits | geometric | 1; of raw logits it is their mean |
| confidence | arithmetic | 1 - H(pᵢ)/log V + 1e-6, H the entropy |
| entropy | arithmetic | exp(-H(pᵢ)): one over how many outcomes it wavers between |
| loss | arithmetic | exp(-ℓᵢ), ℓᵢ its loss on the position's text |
| lowest_loss | arithmetic | 1 where ℓᵢ is the lowest, else 0 (DualMinCE, arXiv:2406.02224) |

A job chooses one of the first four: messages carry no losses, and who speaks does of all.

A party that names k tokens spreads its left-over mass evenly over the V - k that it did not name;
nobody's silence counts as zero (after arXiv:2509.01750, whose exact rule we did not read: this one
is ours). Parties may name different numbers of tokens, and speak of different positions. The answer
names as many as the party that names most, with a tail.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triskel.errors import MessageError
from triskel.modes.logits.knowledge import TINY, Knowledge, dense, outcomes
from triskel.modes.logits.spec import BY_LOSS, Rule


def combine(
    parties: Sequence[Knowledge], rule: Rule, temperature: float, minimum: int = 1
) -> Knowledge:
    """Return the average of what the parties know.

    Args:
        parties: What each says; positions are theirs, or all in order.
        rule: How they are averaged.
        temperature: Of the parties' values, and of the answer's.
        minimum: Positions of which fewer parties speak are left out.

    Raises:
        MessageError: Nobody knows anything, the parties speak of different vocabularies or numbers
            of positions, or the rule needs losses that somebody did not send.
    """
    if not parties:
        raise MessageError("no client sent predictions, so there is nothing to average")
    first = parties[0]
    for other in parties:
        if other.vocabulary != first.vocabulary or (
            other.at is None and first.at is None and len(other.values) != len(first.values)
        ):
            raise MessageError(
                f"predictions of shape {tuple(other.values.shape)} over {other.vocabulary} "
                f"classes do not match {tuple(first.values.shape)} over {first.vocabulary}"
            )
    at, rows = _positions(parties)
    spoke = torch.stack([row >= 0 for row in rows])
    kept = spoke.sum(0) >= minimum
    at, spoke = at[kept], spoke[:, kept]
    # A row that somebody has stands for one that it lacks, and weighs nothing.
    some = [p.rows(r[kept].clamp(min=0)) for p, r in zip(parties, rows, strict=True)]
    if all(p.ids is None for p in some):
        found = _combine_dense(some, rule, temperature, spoke)
    else:
        found = _combine_top(some, rule, temperature, spoke)
    whole = all(p.at is None for p in parties) and bool(kept.all())
    return found if whole else replace(found, at=at)


def _positions(parties: Sequence[Knowledge]) -> tuple[Tensor, list[Tensor]]:
    """Return all positions that somebody speaks of, and each party's row of each, -1 for none."""
    ats = [torch.arange(len(p.values)) if p.at is None else p.at for p in parties]
    every = torch.cat(ats).unique()
    rows = list[Tensor]()
    for at in ats:
        row = torch.full((len(every),), -1)
        row[torch.searchsorted(every, at)] = torch.arange(len(at))
        rows.append(row)
    return every, rows


def _weights(
    parties: Sequence[Knowledge],
    rule: Rule,
    spoke: Bool[Tensor, "parties positions"],
    entropies: Callable[[], Sequence[Tensor]],
) -> Float[Tensor, "parties positions"]:
    """Return what each party counts for on each position; who is silent, for nothing.

    Args:
        parties: What each says.
        rule: Says by what they count.
        spoke: Who speaks of what.
        entropies: Of their predictions, in nats.
    """
    if rule in BY_LOSS:
        losses = [p.loss for p in parties if p.loss is not None]
        if len(losses) < len(parties):
            raise MessageError(f"predictions came without the loss that {rule!r} weighs them by")
        loss = torch.stack(losses).double().masked_fill(~spoke, math.inf)
        lowest = loss.min(0).values
        return (lowest - loss).exp() if rule == "loss" else (loss == lowest).double()
    if rule == "entropy":
        return (-torch.stack(list(entropies()))).exp() * spoke
    if rule == "confidence":
        most = math.log(max(parties[0].vocabulary, 2))
        return ((1 - torch.stack(list(entropies())) / most).clamp(min=0) + 1e-6) * spoke
    return spoke.double()


def entropy(
    p: Float[Tensor, "positions outcomes"],
    spread: Float[Tensor, " positions"] | None = None,
    others: int = 0,
) -> Float[Tensor, " positions"]:
    """Return H(p) in nats.

    Args:
        p: Probabilities of the named outcomes.
        spread: Mass shared evenly by others that are not named.
        others: How many these are.
    """
    found = -(p * p.clamp(min=TINY).log()).sum(-1)
    if spread is not None and others:
        found = found - spread * (spread.clamp(min=TINY).log() - math.log(others))
    return found


def _average(
    logp: Sequence[Tensor], weight: Float[Tensor, "parties positions"], rule: Rule
) -> Tensor:
    """Return log of the averaged distribution; rows need not be normalised for `logits`."""
    share = (weight / weight.sum(0))[..., None]
    if rule == "logits":
        return (share * torch.stack(list(logp))).sum(0)
    return (share * torch.stack(list(logp)).exp()).sum(0).clamp(min=TINY).log()


def _combine_dense(
    parties: Sequence[Knowledge],
    rule: Rule,
    temperature: float,
    spoke: Bool[Tensor, "parties positions"],
) -> Knowledge:
    """Average rows of all outcomes."""
    scaled = [p.values.double() / temperature for p in parties]
    logp = [torch.log_softmax(x, -1) for x in scaled]
    weight = _weights(parties, rule, spoke, lambda: [entropy(x.exp()) for x in logp])
    mean = _average(scaled if rule == "logits" else logp, weight, rule)
    return dense((temperature * mean).to(parties[0].values.dtype))


def _combine_top(
    parties: Sequence[Knowledge],
    rule: Rule,
    temperature: float,
    spoke: Bool[Tensor, "parties positions"],
) -> Knowledge:
    """Average rows of named tokens on the union of their ids, and keep the largest."""
    vocabulary = parties[0].vocabulary
    named = [_named(p, temperature) for p in parties]
    k = max(ids.shape[1] for ids, _ in named)
    said = [i.masked_fill(~s[:, None], vocabulary) for (i, _), s in zip(named, spoke, strict=True)]
    union, member = _union(said, vocabulary)
    if bool((member.sum(1) < k).any()):
        union, member = _union([*said, _others(union, k, vocabulary)], vocabulary)
    columns = list[Tensor]()
    for ids, (_, logp) in zip(said, named, strict=True):
        spread = logp[:, -1] - math.log(max(vocabulary - ids.shape[1], 1))
        row = spread[:, None].expand(-1, union.shape[1] + 1).clone()
        row.scatter_(1, torch.searchsorted(union, ids), logp[:, :-1])  # what was not said goes last
        row = row[:, :-1]
        left = spread + (vocabulary - member.sum(1)).double().clamp(min=TINY).log()
        columns.append(torch.cat([row, left[:, None]], dim=1))

    def entropies() -> list[Tensor]:
        return [
            entropy(logp[:, :-1].exp(), logp[:, -1].exp(), vocabulary - ids.shape[1])
            for ids, logp in named
        ]

    mean = _average(columns, _weights(parties, rule, spoke, entropies), rule)
    mean[:, :-1].masked_fill_(~member, -math.inf)
    at = mean[:, :-1].topk(k, dim=-1).indices
    found, like = temperature * outcomes(mean, at), parties[0].values.dtype
    return Knowledge(
        values=found[:, :-1].to(like),
        ids=union.gather(1, at),
        tail=found[:, -1].to(like),
        vocabulary=vocabulary,
    )


def _named(party: Knowledge, temperature: float) -> tuple[Tensor, Tensor]:
    """Return which tokens are named, and log p of each and of all others last.

    Masses of a row add up to one: nobody counts for more, whatever it sent.
    """
    if party.ids is None:
        ids = torch.arange(party.vocabulary).expand(len(party.values), -1)
        return ids, outcomes(party.values.double() / temperature, ids)
    if party.tail is None:
        raise MessageError("largest predictions came without the mass of the others")
    sent = torch.cat([party.values, party.tail[:, None]], dim=1).double()
    return party.ids.long(), torch.log_softmax(sent / temperature, dim=-1)


def _others(union: Int[Tensor, "positions width"], k: int, vocabulary: int) -> Tensor:
    """Return k tokens of each row that nobody named, where there are so many; they share alike."""
    count = min(union.shape[1] + k, vocabulary)
    every = torch.arange(count).expand(len(union), -1)
    at = torch.searchsorted(union, every.contiguous()).clamp(max=union.shape[1] - 1)
    free = every.masked_fill(union.gather(1, at) == every, vocabulary)
    return free.sort(dim=1).values[:, :k]


def _union(ids: Sequence[Int[Tensor, "positions k"]], none: int) -> tuple[Tensor, Tensor]:
    """Return each row's sorted distinct ids, `none` at the end, and which are real."""
    merged, _ = torch.cat(list(ids), dim=1).sort(dim=1)
    fresh = torch.ones_like(merged, dtype=torch.bool)
    fresh[:, 1:] = merged[:, 1:] != merged[:, :-1]
    union, _ = merged.masked_fill(~fresh, none).sort(dim=1)
    return union, union < none
