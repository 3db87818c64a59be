"""A whole model with gates where a cut model's messages cross.

By the chain rule that is the same as cutting it; a gate rounds what passes as the wire does, and
behind it another side's dropout goes on.
"""

# ruff: noqa: ANN001, ANN201, ANN202, ANN205, PLR0913, PLR0917 - plain programs

import torch
from restated import common, wire
from torch.nn.functional import cross_entropy, dropout


class Gate(torch.autograd.Function):
    """Hidden states cross by one codec, and their gradients come back by another."""

    @staticmethod
    def forward(ctx, h, there, back):
        ctx.back = back
        return wire.travel(h, there)

    @staticmethod
    def backward(ctx, slope):
        return wire.travel(slope, ctx.back), None, None


class Drop(torch.nn.Module):
    """Dropout as drawn for a joined batch [texts, tokens], of which these texts are some rows."""

    place, p = (0, 0, 0), 0.0

    def forward(self, x):
        if not self.training:
            return x
        texts, tokens, first = Drop.place
        drawn = dropout(torch.ones(texts, tokens, x.shape[-1], dtype=x.dtype), Drop.p)
        return x * drawn[first : first + len(x), : x.shape[1]]


def seed_by_hand(net, job):
    """Put `Drop` where PEFT has dropout."""
    Drop.p = job["adapter"]["dropout"]
    for name in [n for n, _ in net.named_modules() if n.endswith("lora_dropout.default")]:
        net.set_submodule(name, Drop())


def loss_of(net, tensors, job, batch, cut, streams, joint):
    """The loss of a client's batch, through its own blocks, the trunk, and its own again."""
    (texts, rows), up, down = batch, job["wire"]["up"], job["wire"]["down"]
    layers = net.base_model.model.get_submodule(common.BLOCKS[net.config.model_type])
    alone = len(rows), max(len(texts["ids"][i]) for i in rows), 0

    def enter(stream, place):
        common.drop(net, job, "round", *stream)
        Drop.place = place

    def rise(_, args):
        enter(streams[1], joint)
        return (Gate.apply(args[0], up, down), *args[1:])

    def fall(_, __, u):
        enter(streams[2], alone)
        return Gate.apply(u, down, up)

    enter(streams[0], alone)
    hooks = [layers[cut[0]].register_forward_pre_hook(rise)]
    if job["split"]["labels"] == "private":
        hooks.append(layers[cut[1] - 1].register_forward_hook(fall))
    loss = cross_entropy(*common.predict(net, tensors, texts, rows))
    for hook in hooks:
        hook.remove()
    return loss
