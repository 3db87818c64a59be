"""The server's half of split learning: the blocks between the cuts, run for many clients at once.

Batches of clients with the same cut and similar lengths are joined; every client gets its own rows
back. A graph keeps the trunk's tensors as they were when it was built, and a step makes new ones,
so a step never disturbs a graph that still waits for its gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triskel.errors import MessageError, TrainingError
from triskel.model.shared import Parameters, SharedModel
from triskel.modes.split.cut import Cut, labelled, lengths_in, packed, shares, unpacked
from triskel.modes.split.spec import SMALL, TIGHT
from triskel.numerics.metrics import Score, score
from triskel.training.joining import MOST
from triskel.training.loop import StepId, finite
from triskel.types import Batch, ClientId, Message, Section, Tensors
from triskel.wire import expect, is_finite
from triskel.wire.adapters import number


@dataclass(frozen=True)
class Graph:
    """A joined batch whose outputs still wait for their gradients.

    Attributes:
        cut: Where its clients' models are divided.
        leaves: The trunk's tensors as autograd knows them, and side factors beside them.
        h: What came up: a leaf.
        u: What went down.
        lengths: Real tokens of each text.
        rows: Rows that belong to each client.
    """

    cut: Cut
    leaves: Parameters
    h: Float[Tensor, "batch tokens width"]
    u: Float[Tensor, "..."]
    lengths: Sequence[int]
    rows: Mapping[ClientId, slice]

    def texts(self, client: ClientId) -> Sequence[int]:
        """Return the lengths of one client's texts."""
        return self.lengths[self.rows[client]]


@dataclass(frozen=True)
class Slopes:
    """What a backward pass leaves: the trunk's gradient, and a section for each client.

    Attributes:
        trunk: Gradient of the wave's loss by name.
        down: ∂ℓᵢ/∂h of each client that wants it.
    """

    trunk: Tensors
    down: Mapping[ClientId, Section]


def group(asks: Mapping[ClientId, Message], cuts: Mapping[ClientId, Cut]) -> list[list[ClientId]]:
    """Return who is run in one batch: same cut, little padding between them, at most `MOST`."""
    lengths = {client: lengths_in(ask) for client, ask in asks.items()}
    kinds: dict[tuple[int, int], list[ClientId]] = {}
    for client in sorted(asks, key=lambda c: (max(lengths[c]), c)):
        kinds.setdefault((cuts[client].low, cuts[client].high), []).append(client)
    groups: list[list[ClientId]] = []
    for clients in kinds.values():
        texts, alone = 0, 0
        for client in clients:
            count, longest = len(lengths[client]), max(lengths[client])
            joint = (texts + count) * longest
            tight = joint <= TIGHT * (alone + count * longest)
            if texts and joint <= MOST and (joint <= SMALL or tight):
                groups[-1].append(client)
            else:
                groups.append([client])
                texts, alone = 0, 0
            texts, alone = texts + count, alone + count * longest
    return [sorted(clients) for clients in groups]


def forward(
    body: SharedModel, tensors: Tensors, asks: Mapping[ClientId, Message], cut: Cut, *, learn: bool
) -> Graph:
    """Run blocks [a, b) on the joined batch of these clients."""
    h, lengths, rows = joined(body, asks, cut)
    h.requires_grad_(learn and cut.below)
    leaves = body.parameters(cut.held(tensors, cut.theirs))
    sizes = torch.tensor(lengths)
    with torch.set_grad_enabled(learn and cut.inside):
        u = body.middle(leaves, h, sizes, low=cut.low, high=cut.high)
        if cut.pooled:
            u = u[torch.arange(len(lengths)), body.pooled_column(sizes)]
    return Graph(cut=cut, leaves=leaves, h=h, u=u, lengths=lengths, rows=rows)


def backward(
    body: SharedModel,
    graph: Graph,
    asks: Mapping[ClientId, Message],
    share: Mapping[ClientId, float],
) -> Slopes:
    """Carry the clients' ∂ℓᵢ/∂u through the trunk; the graph can be used again.

    Args:
        body: The server's model.
        graph: What these clients' asks for a forward pass left.
        asks: Their gradients.
        share: Each client's share in the wave's loss.
    """
    upstream = torch.zeros_like(graph.u)
    for client, ask in asks.items():
        place, texts = graph.rows[client], graph.texts(client)
        sent = unpacked(
            ask, "gradient", kind="ask", topic="backward", lengths=texts, body=body,
            pooled=graph.cut.pooled,
        )  # fmt: skip
        width = max(texts)
        if graph.cut.pooled:
            upstream[place] = share[client] * sent
        else:
            upstream[place, :width] = share[client] * sent
    return _slopes(graph, [graph.u], [upstream], share, list(asks), keep=True)


def learn(
    body: SharedModel, tensors: Tensors, asks: Mapping[ClientId, Message], cut: Cut, *,
    share: Mapping[ClientId, float], where: Callable[[ClientId], StepId],
) -> tuple[Slopes, dict[ClientId, float]]:  # fmt: skip
    """With shared labels: run [a, L) and the head, and carry the losses back.

    Returns:
        The gradients, and each client's own mean loss.
    """
    h, lengths, rows = joined(body, asks, cut)
    h.requires_grad_(cut.below)
    leaves = body.parameters(cut.held(tensors, cut.theirs))
    batches = {c: _labelled(body, asks[c], lengths[rows[c]]) for c in asks}
    joint = _merged([batches[c] for c in asks], [rows[c].start for c in asks], lengths)
    logits = body.top(leaves, h, joint, cut.low)
    losses: list[Tensor] = []
    start = 0
    for client, batch in batches.items():
        mine = logits[start : start + len(batch.rows)]
        start += len(batch.rows)
        loss = body.objective.loss(mine, batch)
        finite(loss, where(client), int(number(asks[client].facts, "step")))
        losses.append(loss)
    graph = Graph(cut=cut, leaves=leaves, h=h, u=h, lengths=lengths, rows=rows)
    weights = [torch.full_like(x, share[c]) for c, x in zip(asks, losses, strict=True)]
    slopes = _slopes(graph, losses, weights, share, list(asks), keep=False)
    return slopes, {c: x.item() for c, x in zip(asks, losses, strict=True)}


def scored(
    body: SharedModel, tensors: Tensors, asks: Mapping[ClientId, Message], cut: Cut
) -> dict[ClientId, Score]:
    """With shared labels: run [a, L) and the head forward, and count what each client's reaches."""
    h, lengths, rows = joined(body, asks, cut)
    leaves = body.parameters(cut.held(tensors, cut.theirs))
    batches = {c: _labelled(body, asks[c], lengths[rows[c]]) for c in asks}
    joint = _merged([batches[c] for c in asks], [rows[c].start for c in asks], lengths)
    with torch.no_grad():
        parts = body.top(leaves, h, joint, cut.low).split([len(b.rows) for b in batches.values()])
    return {
        client: score(logits, batch.targets.to(logits.device), body.classes)
        for (client, batch), logits in zip(batches.items(), parts, strict=True)
    }


def joined(
    body: SharedModel, asks: Mapping[ClientId, Message], cut: Cut
) -> tuple[Tensor, list[int], dict[ClientId, slice]]:
    """Return these clients' hidden states in one padded batch, its lengths, and whose rows.

    Raises:
        MessageError: A message does not hold what its facts say.
    """
    lengths = [n for ask in asks.values() for n in lengths_in(ask)]
    rows: dict[ClientId, slice] = {}
    h = torch.zeros(len(lengths), max(lengths), body.blocks.width, dtype=body.dtype)
    h = h.to(body.device)
    start = 0
    for client, ask in asks.items():
        texts = lengths_in(ask)
        shape: dict[str, Mapping[str, tuple[int, ...]]]
        shape = {"activations": {"values": (sum(texts), body.blocks.width)}}
        if cut.shared:
            shape["labels"] = {"labels": (-1,)}
        expect(ask, kind=ask.kind, topic="forward", sections=shape)
        only = Message(
            kind=ask.kind, topic="forward", sections={"activations": ask.sections["activations"]}
        )
        values = unpacked(
            only, "activations", kind=ask.kind, topic="forward", lengths=texts, body=body
        )
        rows[client] = slice(start, start + len(texts))
        h[rows[client], : max(texts)] = values
        start += len(texts)
    return h, lengths, rows


def shares_in(
    asks: Mapping[ClientId, Message], texts: Mapping[ClientId, Sequence[int]], *, classes: int
) -> dict[ClientId, float]:
    """Return each client's share in the wave's loss, by its labelled examples or tokens.

    Args:
        asks: What the clients say of their batches.
        texts: The lengths of the texts in each batch.
        classes: Classes of a `classify` task, or 0 for `causal`.

    Raises:
        MessageError: A client says that it has more labels than its batch has places for.
    """
    found: dict[ClientId, float] = {}
    for client, ask in asks.items():
        most = len(texts[client]) if classes else sum(texts[client])
        found[client] = number(ask.facts, "labelled")
        if found[client] > most:
            raise MessageError(
                f"client {client!r} speaks of {found[client]:g} labels in a batch that has room "
                f"for {most}"
            )
    return shares(found)


def summed(parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return gradients added up by name."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, slope in part.items():
            total[name] = total[name] + slope if name in total else slope
    return total


def _slopes(
    graph: Graph, outputs: Sequence[Tensor], upstream: Sequence[Tensor],
    share: Mapping[ClientId, float], clients: Sequence[ClientId], *, keep: bool,
) -> Slopes:  # fmt: skip
    cut = graph.cut
    wanted = [graph.h] * cut.below + [graph.leaves[name] for name in cut.theirs]
    if not wanted:
        return Slopes(trunk={}, down={})
    found = torch.autograd.grad(outputs, wanted, upstream, retain_graph=keep)
    down: dict[ClientId, Section] = {}
    for client in clients if cut.below else ():
        texts, place = graph.texts(client), graph.rows[client]
        mine = found[0][place, : max(texts)]
        mine = mine / share[client] if share[client] else mine
        down[client] = packed(mine, texts, pooled=False)
    # a fused layer returns columns of one matrix, and the optimiser's kernel ignores strides
    trunk = {n: s.contiguous() for n, s in zip(cut.theirs, found[cut.below :], strict=True)}
    return Slopes(trunk=trunk, down=down)


def _labelled(body: SharedModel, ask: Message, lengths: Sequence[int]) -> Batch:
    sizes = torch.tensor(list(lengths))
    rows, columns, targets = labelled(ask, sizes, body)
    if int((targets >= 0).sum()) != int(number(ask.facts, "labelled")):
        raise MessageError("fact 'labelled' is not the number of known labels that were sent")
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    return Batch(ids=ids, lengths=sizes, rows=rows, columns=columns, targets=targets)


def _merged(batches: Sequence[Batch], starts: Sequence[int], lengths: Sequence[int]) -> Batch:
    return Batch(
        ids=torch.zeros(len(lengths), max(lengths), dtype=torch.int64),
        lengths=torch.tensor(list(lengths)),
        rows=torch.cat([b.rows + start for b, start in zip(batches, starts, strict=True)]),
        columns=torch.cat([b.columns for b in batches]),
        targets=torch.cat([b.targets for b in batches]),
    )


def bounded(slopes: Tensors, round_: int) -> dict[str, Tensor]:
    """Return gradients on the CPU, once each can be squared, as Adam will.

    Raises:
        TrainingError: A client's numbers are too large.
    """
    found = {name: slope.cpu() for name, slope in slopes.items()}
    for name, slope in found.items():
        if not is_finite(slope.square().sum()):
            raise TrainingError(
                f"the gradient of {name} is beyond what can be squared in round {round_}; a "
                "client's numbers are too large"
            )
    return found
