"""What predictions say, and what many say together, restated from docs and the literature.

τ log p travels: of every class, or of the k likeliest tokens and, as one, of all others, whose mass
a receiver spreads evenly over them.
"""

# ruff: noqa: ANN001, ANN201 - plain programs

import math

import torch
from restated import wire


def named(logp, ids):
    """Log-probabilities of the named tokens, and last of all others together; of all without."""
    if ids is None:
        return logp
    others = logp.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([logp.gather(1, ids), others], 1)


def told(z, job, words):
    """What a party says: its logits for every class; of tokens τ log p, and which these are."""
    if not words:
        return z, None
    tau = job["logits"]["temperature"]
    logp = torch.log_softmax(z[:, :words] / tau, 1)
    ids = logp.topk(job["logits"]["top_k"]).indices
    return tau * named(logp, ids), ids


def carried(values, ids, codec):
    """What arrives: the mass of all others is a tensor of its own."""
    if ids is None:
        return wire.travel(values, codec), None
    tail = wire.travel(values[:, -1], codec)
    return torch.cat([wire.travel(values[:, :-1], codec), tail[:, None]], 1), ids


def spread(values, ids, tau, words):
    """The log-probabilities that are meant."""
    logp = torch.log_softmax(values / tau, 1)
    if ids is None:
        return logp
    rest = logp[:, -1:] - math.log(words - ids.shape[1])
    return rest.repeat(1, words).scatter(1, ids, logp[:, :-1])


def agreed(parties, job, words):
    """The mean of logits or of probabilities, or of these weighted by how sure a party is."""
    way, tau = job["logits"]["aggregate"], job["logits"]["temperature"]
    if way == "logits" and not words:
        return torch.stack([values for values, _ in parties]).mean(0), None
    logp = torch.stack([spread(*party, tau, words) for party in parties])
    p, sure = logp.exp(), torch.ones_like(logp[..., :1])
    if way == "confidence":
        sure = 1 + (p * logp).sum(-1, keepdim=True) / math.log(p.shape[-1]) + 1e-6
    mean = ((sure * p).sum(0) / sure.sum(0)).log()
    return told(tau * (logp.mean(0) if way == "logits" else mean), job, words)
