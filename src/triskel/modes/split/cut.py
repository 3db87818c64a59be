"""Where a model is divided between client and server, and what crosses there.

Rows of hidden states travel without padding, text after text; lengths are a fact. Which tokens are
scored is a fact too, as runs. With `labels = "private"` no fact and no tensor says what a label is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triskel.errors import JobError, MessageError
from triskel.model.flops import Piece
from triskel.model.shared import Parameters, SharedModel
from triskel.model.side_factors import with_side
from triskel.modes.split.spec import SplitOptions, default_cut
from triskel.numerics.tensors import indices, padded, ragged, select
from triskel.types import Batch, ClientId, Message, MessageKind, Section, Tensors
from triskel.wire import expect
from triskel.wire.adapters import integers


@dataclass(frozen=True)
class Cut:
    """Where one client's model is divided.

    Attributes:
        low: a, first block of the trunk.
        high: b, one past the last block of the trunk; L where labels are shared.
        shared: Whether the server has the labels and the head.
        pooled: The client has only norm and head of a classifier, so one row per text crosses.
        below: Something in [0, a) trains, so a gradient comes down to the client.
        inside: Something in [0, b) trains, so a gradient goes up from the head's cut.
        mine: Names of the tensors the client trains.
        theirs: Names of the tensors the server trains.
    """

    low: int
    high: int
    shared: bool
    pooled: bool
    below: bool
    inside: bool
    mine: tuple[str, ...]
    theirs: tuple[str, ...]

    @property
    def server_piece(self) -> Piece:
        """What the server runs for one joined batch, for its meter."""
        if self.shared:
            return Piece("top", low=self.low, slope=self.below)
        return Piece("trunk", low=self.low, high=self.high, slope=self.below)

    def pieces(self, blocks: int) -> tuple[Piece, ...]:
        """Return what the client runs for one batch, for its meter."""
        bottom = Piece("bottom", high=self.low)
        if self.shared:
            return (bottom,)
        rows = self.pooled and self.high == blocks
        return bottom, Piece("top", low=self.high, rows=rows, slope=self.inside)

    def held(self, tensors: Tensors, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the named tensors, with the side factors beside them."""
        return select(tensors, with_side(names, tensors))

    def logits(self, parameters: Parameters, u: Tensor, batch: Batch, body: SharedModel) -> Tensor:
        """Return the client's logits from what the trunk sent down."""
        if self.pooled:
            return body.head(parameters, u)
        return body.top(parameters, u, batch, self.high)


def cut_of(options: SplitOptions, body: SharedModel) -> Cut:
    """Return where a client's model is divided, of its options.

    Raises:
        JobError: The cut leaves the server no block, or is beyond the model.
    """
    count, layout = body.blocks.count, body.layout
    shared = options.labels == "shared"
    low, high = options.cut or default_cut(count)
    high = count if shared else high
    if not 0 <= low < high <= count:
        raise JobError(
            f"split.cut must be [a, b] with 0 <= a < b <= {count} for this model, "
            f"got [{low}, {high}]"
        )
    if body.blocks.ahead and not low:
        raise JobError(
            f"split.cut is [0, {high}], and virtual tokens of {body.adapter.kind} are trained by "
            "whoever has the first block: the client needs it, so the cut must begin at 1 or later"
        )
    bottom, trunk = layout.within(0, low), layout.within(low, high)
    top = layout.within(high, count, head=True)
    return Cut(
        low=low,
        high=high,
        shared=shared,
        pooled=not shared and high == count and bool(body.classes),
        below=bool(bottom),
        inside=bool(bottom or trunk),
        mine=tuple(bottom) if shared else (*bottom, *top),
        theirs=(*trunk, *top) if shared else tuple(trunk),
    )


def rows_section(values: Float[Tensor, "rows width"], lengths: Sequence[int]) -> Section:
    """Return hidden states or their gradients as a section: rows, and how many each text has."""
    return Section(
        kind="activations",
        tensors={"values": values.detach().cpu().contiguous()},
        facts={"lengths": list(lengths)},
    )


def packed(values: Float[Tensor, "..."], lengths: Sequence[int], *, pooled: bool) -> Section:
    """Return a padded batch, or one row per text, as a section without padding."""
    if pooled:
        return rows_section(values, [1] * len(lengths))
    return rows_section(ragged(values, lengths), lengths)


def unpacked(  # noqa: PLR0913 - what is expected, part by part
    message: Message,
    section: str,
    *,
    kind: MessageKind,
    topic: str,
    lengths: Sequence[int],
    body: SharedModel,
    pooled: bool = False,
) -> Float[Tensor, "..."]:
    """Return what a section holds, padded again, on the body's device and in its dtype.

    Raises:
        MessageError: The message or the section is not what was asked for.
    """
    texts = [1] * len(lengths) if pooled else list(lengths)
    shape = (sum(texts), body.blocks.width)
    expect(message, kind=kind, topic=topic, sections={section: {"values": shape}})
    found = message.sections[section]
    if integers(found.facts, "lengths") != texts:
        raise MessageError(f"section {section!r} has other text lengths than were asked about")
    values = found.tensors["values"].to(device=body.device, dtype=body.dtype)
    return values if pooled else padded(values, texts)


def lengths_in(message: Message) -> list[int]:
    """Return the lengths of the texts whose hidden states a client sent.

    Raises:
        MessageError: There are none, or one is not positive.
    """
    section = message.sections.get("activations")
    if section is None:
        raise MessageError("an ask for a forward pass must have a section 'activations'")
    lengths = integers(section.facts, "lengths")
    if not lengths or min(lengths) < 1:
        raise MessageError(f"lengths must be positive and at least one, got {lengths[:8]}")
    return lengths


def labels_section(batch: Batch, body: SharedModel) -> Section:
    """Return a batch's labels in 4 bytes each; for `causal` with the runs of scored tokens."""
    facts: dict[str, Sequence[int]] = {}
    if not body.classes:
        facts = {"runs": _runs_of(batch)}
    tensors = {"labels": batch.targets.to(torch.int32)}
    return Section(kind="labels", tensors=tensors, facts=facts)


def labelled(
    message: Message, lengths: Int[Tensor, " batch"], body: SharedModel
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and targets of the positions a client shares labels of.

    Raises:
        MessageError: A position is beyond its text, or a label beyond classes or vocabulary.
    """
    section = message.sections["labels"]
    targets = section.tensors["labels"].to(torch.int64)
    if body.classes:
        rows = torch.arange(len(lengths))
        columns = body.pooled_column(lengths)
    else:
        rows, columns = _positions(integers(section.facts, "runs"), indices(lengths))
    outcomes = body.classes or int(body.blocks.config.vocab_size)
    if len(rows) != len(targets) or (
        len(targets) and not -1 <= int(targets.min()) <= int(targets.max()) < outcomes
    ):
        raise MessageError(
            f"{len(targets)} labels do not fit {len(rows)} scored positions and {outcomes} classes"
        )
    return rows, columns, targets


def _runs_of(batch: Batch) -> list[int]:
    """Return runs of scored positions: row, first column, one past the last, and so on."""
    found: list[int] = []
    for row, column in zip(batch.rows.tolist(), batch.columns.tolist(), strict=True):
        if found and found[-3] == row and found[-1] == column:
            found[-1] = column + 1
        else:
            found += [row, column, column + 1]
    return found


def _positions(runs: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    if len(runs) % 3:
        raise MessageError(f"runs of scored tokens come in threes, got {len(runs)} numbers")
    rows: list[int] = []
    columns: list[int] = []
    for row, first, last in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        if not (0 <= row < len(lengths) and 0 <= first < last <= lengths[row]):
            raise MessageError(f"run [{first}, {last}) of text {row} is beyond what was sent")
        rows += [row] * (last - first)
        columns += range(first, last)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)


def shares(examples: Mapping[ClientId, float]) -> dict[ClientId, float]:
    """Return each client's share in a wave's loss, nᵢ / Σ n.

    >>> shares({"a": 3, "b": 1})
    {'a': 0.75, 'b': 0.25}
    """
    total = sum(examples.values())
    return {client: n / total if total else 0.0 for client, n in examples.items()}
