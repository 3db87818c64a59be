"""What clients spend on a model: the cost of its pieces, and each client's account of a round.

A piece is counted when it is needed for the first time (`flops`); from then on a batch costs the
evaluation of a polynomial.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from triskel.core.source import code_sha256
from triskel.model.adapters import projections
from triskel.model.flops import Cost, Piece, bytes_of, cost_in, count, saved_in
from triskel.model.machine_cache import place_of, recalled, remember
from triskel.model.quantised import size
from triskel.model.shared import Parameters, SharedModel
from triskel.model.side_factors import side_rank
from triskel.types import Batch

WORTH_KEEPING_S = 0.1
"""A count that took longer than this is remembered."""
ADAM_BYTES = 8
GRADIENT_BYTES = 4


class Meter:
    """One client's account of compute, for one round.

    Where the body keeps hidden states below the first block that trains, a batch costs all of its
    blocks when a text of it runs for the first time at this client, and only those above from then
    on: also where this process kept nothing, as a run that was killed and resumed.

    Attributes:
        flops: FLOPs so far.
        tokens: Padded tokens trained on so far.
        peak_bytes: Largest sum of weights, gradients, optimiser state and saved activations.
        returning: Whether the client took part in an earlier round, so has run all its texts.
    """

    def __init__(self, body: SharedModel, costs: "Costs") -> None:
        """Start at zero."""
        self._body = body
        self._costs = costs
        self.flops = 0
        self.tokens = 0
        self.peak_bytes = 0
        self.returning = False
        self._seen: set[tuple[int, int]] = set()

    def ran(
        self, batch: Batch, *pieces: Piece, training: Parameters | None = None, held: int = 0
    ) -> None:
        """Account for pieces that ran on a batch and were in memory together.

        Args:
            batch: The batch, as padded.
            pieces: What ran.
            training: What a party's model is of: an optimiser holds state for those of its
                tensors that train.
            held: Bytes of whatever else lay in memory.
        """
        rows, tokens = batch.ids.shape
        model = training or {}
        if side := side_rank(model):
            pieces = tuple(replace(piece, side=side) for piece in pieces)
        scored = len(batch.rows)
        saved = 0
        pieces = self._left(batch, pieces)
        for piece in pieces:
            self.computed(piece, rows, tokens, scored)
            saved += self._costs.bytes_of(piece, rows, tokens, scored)
        trained = sum(p.numel() for p in model.values() if p.requires_grad)
        frozen = sum(p.nbytes for p in model.values() if not p.requires_grad)
        self.tokens += rows * tokens if training else 0
        state = trained * (GRADIENT_BYTES + ADAM_BYTES)
        held += self._costs.resident(pieces) + frozen + state + saved
        self.peak_bytes = max(self.peak_bytes, held)

    def computed(self, piece: Piece, rows: int, tokens: int, scored: int) -> None:
        """Account for the FLOPs alone of a piece on a batch of this shape."""
        self.flops += self._costs[piece].of(rows, tokens, scored)

    def _left(self, batch: Batch, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """Return what of these pieces is not at hand from earlier."""
        body = self._body
        if body.prefix is None or not body.frozen or batch.examples is None:
            return pieces
        texts = {(id(batch.examples), index) for index in batch.indices}
        known = self.returning or texts <= self._seen
        self._seen |= texts
        left = [piece.beyond(body.frozen) for piece in pieces] if known else pieces
        return tuple(piece for piece in left if piece is not None)


class Costs(Mapping[Piece, Cost]):
    """The costs of one body's pieces, each counted at first use.

    Args:
        body: Whose pieces.
        cache: The cache folder: a count that took long is there for the next process that runs the
            same model, adapter and code. None remembers nothing.
        say: Told where that cannot be written.
    """

    def __init__(
        self, body: SharedModel, cache: Path | None = None, say: Callable[[str], None] = print
    ) -> None:
        self._body, self._cache, self._say = body, cache, say
        self._known: dict[Piece, Cost] = {}
        self._resident: dict[tuple[Piece, ...], int] = {}
        self._flashed: dict[Piece, tuple[Fraction, ...]] = {}

    def __getitem__(self, piece: Piece) -> Cost:
        """Return the cost of a piece."""
        self.know(piece)
        return self._known[piece]

    def __iter__(self) -> Any:
        """Iterate over the pieces counted so far."""
        return iter(self._known)

    def __len__(self) -> int:
        """Return how many pieces were counted so far."""
        return len(self._known)

    def know(self, piece: Piece) -> None:
        """Count a piece now rather than in the middle of a round."""
        if piece in self._known:
            return
        if self._cache is None:
            self._known[piece] = count(self._body, piece)
            return
        about = (repr(self._body.choice), repr(self._body.layout), repr(piece), code_sha256())
        place = place_of(self._cache / "costs", self._body, *about)
        cost, start = cost_in(recalled(place)), time.perf_counter()
        if cost is None:
            cost = count(self._body, piece)
            if time.perf_counter() - start > WORTH_KEEPING_S:
                remember(place, cost.row, self._say)
        self._known[piece] = cost

    def bytes_of(self, piece: Piece, rows: int, tokens: int, scored: int) -> int:
        """Return bytes kept for the backward pass of a batch, by the attention of its length."""
        if tokens not in self._lengths:
            return self[piece].bytes_of(rows, tokens, scored)
        if piece not in self._flashed:
            flash = replace(self._body.choice, flash=1)
            self._flashed[piece] = saved_in(self._body, piece, flash)
        return bytes_of(self._flashed[piece], rows, tokens, scored)

    @cached_property
    def _lengths(self) -> range:
        """Tokens of the texts whose scores the library's fused kernel never keeps."""
        choice, blocks = self._body.choice, self._body.blocks
        if choice.path == "reference":
            return range(0)
        window = min(blocks.window(index, sys.maxsize - 1) for index in range(blocks.count))
        return range(choice.flash, window + 1)

    def meter(self) -> Meter:
        """Return a client's account, at zero."""
        return Meter(self._body, self)

    def resident(self, pieces: tuple[Piece, ...]) -> int:
        """Return bytes of the weights these pieces need, shared ones counted once."""
        if pieces not in self._resident:
            self._resident[pieces] = self._weigh(pieces)
        return self._resident[pieces]

    def _weigh(self, pieces: tuple[Piece, ...]) -> int:
        self._body.install(self._body.parameters(self._body.initial), self._body.initial)
        modules: list[nn.Module] = []
        blocks = self._body.blocks
        for piece in pieces:
            high = piece.high if piece.kind in {"bottom", "trunk"} else blocks.count
            modules += list(blocks.list[piece.low : high])
            if piece.kind not in {"bottom", "trunk"}:
                modules += [*blocks.before_head, blocks.head, *_after(self._body)]
        parameters: list[Tensor] = [p for module in modules for p in module.parameters()]
        if any(piece.kind not in {"trunk", "top"} and not piece.low for piece in pieces):
            parameters += [*_embeddings(self._body), *blocks.encoder.parameters()]
        parameters += [t for m in modules for t in projections(m).values()]
        return sum({p.data_ptr(): size(p) for p in parameters}.values())


def _after(body: SharedModel) -> list[nn.Module]:
    """Return what of the base stands after its blocks."""
    return [m for m in (body.blocks.norm, body.blocks.between) if m is not None]


def _embeddings(body: SharedModel) -> list[nn.Parameter]:
    """Return what of the base makes hidden states that enter the first block."""
    later = {id(p) for part in (body.blocks.list, *_after(body)) for p in part.parameters()}
    return [p for p in body.blocks.model.base_model.parameters() if id(p) not in later]
