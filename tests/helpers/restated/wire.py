"""What travels, restated from docs/wire.md and docs/ledger.md: rounding, and payload bytes."""

# ruff: noqa: ANN001, ANN201 - plain programs

import math

import torch
from torch.nn.functional import pad

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def travel(x, codec):
    """A tensor as it arrives; a scale of int8 is a row's, one of int4 that of 32 numbers."""
    if codec not in {"int8", "int4"}:
        return x.to(TYPES.get(codec, x.dtype)).to(x.dtype)
    wide, last, largest = x.detach().float(), x.shape[-1], 127 if codec == "int8" else 7
    if codec == "int4":
        wide = pad(wide, (0, -last % 32)).unflatten(-1, (-1, 32))
    scale = (wide.abs().amax(-1, keepdim=True) / largest).clamp(min=2.0**-126)
    if codec == "int4":  # rounded up to bfloat16
        near = scale.bfloat16()
        above = torch.nextafter(near, torch.full_like(near, math.inf))
        scale = torch.where(near.float() < scale, above, near).float()
    found = (wide / scale).round() * scale
    return (found if codec == "int8" else found.flatten(-2)[..., :last]).to(x.dtype)


def numbers(tensors):
    return sum(t.numel() for t in tensors.values())


def of_params(tensors):
    return 4 * numbers(tensors), 4 * numbers(tensors)


def of_logits(job, public, classes):
    """Values of every class; or of k tokens with ids in 1 byte (of up to 256), and what is left."""
    size = 4 * len(public["ids"]) * classes
    if public["scored"]:
        size = sum(int(s.sum()) for s in public["scored"]) * (job["logits"]["top_k"] * (4 + 1) + 4)
    return size, size


def of_split(job, texts, own, cut, first, config):
    """`own` is what a client trains, and `first` the first block in which anything does."""
    E, d, n = job["train"]["epochs"], config.hidden_size, len(texts["ids"])
    t, part = sum(map(len, texts["ids"])), 4 * numbers(own)
    scored = sum(int(s.sum()) for s in texts["scored"]) if texts["scored"] else n
    h, below = 4 * E * t * d, 4 * E * t * d * (first < cut[0])
    if job["split"]["labels"] == "shared":
        return h + 4 * E * scored + part, below + part
    u = 4 * E * d * (n if cut[1] == config.num_hidden_layers and not texts["scored"] else t)
    return h + u * (first < cut[1]) + part, u + below + part
