"""One frozen base model in memory, and any number of parties' tensors run through it.

A body has slots for the tensors that train. Every call installs the tensors it is given, by
pointer, and runs a range of blocks: no adapter is ever copied into the model or left behind in it.
Side factors among them are installed stacked with the factors (`model.side_factors`).
A graph built for one client therefore keeps that client's tensors while another client runs.

Blocks run on one of two paths. `reference` is the library's own code, block by block. `fast` is
`model.fast`, the same function up to rounding, which can also run several parties' batches in one
pass (`together`). A new body is on the reference path; `use` switches.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from triskel.config.sections import OWN, Adapter
from triskel.core.task_spec import Head
from triskel.errors import ModelError
from triskel.model.adapters import insert, take_projections, without_adapter
from triskel.model.blocks import Blocks
from triskel.model.compute_choice import Choice
from triskel.model.fast import FastBlocks, Installed, Parameters, PartyBatch, why_not
from triskel.model.hidden_cache import HiddenCache
from triskel.model.prefixes import by_peft
from triskel.model.reparametrisation import PLAIN, Form
from triskel.model.side_factors import is_side, side_name, stacked
from triskel.model.slots import layout_of, leaves_of, values_in
from triskel.model.vocab_loss import vocabulary_losses
from triskel.numerics.objective import Objective
from triskel.numerics.rng import seed_draws
from triskel.numerics.tensors import wide
from triskel.types import Batch, Tensors

AT_ONCE = 1 << 24
"""Logits that are made at once where only scores or the largest are wanted."""


class SharedModel:
    """A base model with slots.

    Attributes:
        blocks: The parts of the model.
        tokenizer: Its tokenizer.
        ends: What the model ends with: `classes` or `vocabulary`.
        objective: What is made small, and how predictions are counted.
        classes: Number of classes; 0 for `causal`.
        vocabulary: Tokens that can be predicted, up to the tokenizer's last: heads of models of one
            tokenizer are padded to various lengths beyond it. 0 for `classify`.
        layout: Which trainable tensor belongs where.
        seed: What the trainable tensors start from.
        initial: The trainable tensors before any training; a function of the seed, or what
            `start_from` was given.
        fresh: The trainable tensors as the seed makes them.
        path: Where the base model came from.
        adapter: The adapter's options.
        choice: How it computes.
        frozen: How many of the first blocks hold nothing that trains.
        prefix: Where hidden states below those are kept, other bodies' too; None for nowhere.
    """

    def __init__(  # noqa: PLR0913 - what `load` found, handed over once
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        head: Head,
        classes: int,
        adapter: Adapter,
        seed: int,
        path: str | Path = "",
    ) -> None:
        """Freeze the base and make the slots.

        Raises:
            ModelError: The model, its blocks or the adapter do not fit each other.
        """
        model.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        self.blocks = Blocks(model, head)
        self.tokenizer = tokenizer
        self.ends: Head = head
        self.objective = Objective()
        self.classes = classes
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1 if head == "vocabulary" else 0
        self.adapter, self.path = adapter, str(path)
        self._slots = insert(self.blocks, adapter, seed=seed)
        self._first = next(model.eval().parameters())  # PEFT's own layers start in training mode
        self._dropouts = [
            m
            for n, m in model.named_modules()
            if "_dropout.default" in n and isinstance(m, nn.Dropout)
        ]
        self.seed = seed
        self.initial: Tensors = values_in(self._slots)
        self.fresh = self.initial
        self.layout = layout_of(self._slots, self.blocks, adapter)
        self._sides = tuple(side for n in self._slots if is_side(side := side_name(n)))
        self.frozen = min(self.layout.block.values(), default=self.blocks.count)
        self.choice = Choice()
        self.prefix: HiddenCache | None = None
        self._fast: FastBlocks | None = None

    def reseed(self, seed: int) -> None:
        """Start from what a body that is loaded with this seed starts from; the base stays."""
        if seed != self.seed:
            self.install(self.parameters(self.fresh), self.fresh)  # the base's own among them
            bare = Blocks(without_adapter(self.blocks.model), self.ends)
            self.seed, self.fresh = seed, values_in(insert(bare, self.adapter, seed=seed))
            take_projections(self.blocks.model, bare.model)
        self.initial = self.fresh

    def start_from(self, tensors: Tensors) -> None:
        """Start from these tensors from here on, in place of what the seed makes.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        leaves_of(tensors, like=self.fresh, dtype=wide(self.dtype), device=self.device)
        self.initial = {name: tensors[name] for name in self.fresh}

    def use(self, choice: Choice) -> None:
        """Compute this way from here on.

        Raises:
            ModelError: The model or its adapter has no fused blocks; says why.
        """
        if choice.path == "fast" and self._fast is None:
            if (reason := why_not(self.blocks, self.adapter)) is not None:
                raise ModelError(f'model.compute = "fast" cannot be used: {reason}')
            self._fast = FastBlocks(self.blocks, self.adapter)
        self.choice = choice

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """What hidden states are computed in."""
        return self.blocks.dtype

    def parameters(self, tensors: Tensors, form: Form = PLAIN) -> dict[str, nn.Parameter]:
        """Return copies of the tensors that autograd can differentiate by.

        In a float64 body they are float64, elsewhere float32. What is frozen needs no gradient.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        return leaves_of(
            tensors, like=self.initial, dtype=wide(self.dtype), device=self.device, form=form
        )

    def pooled_column(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return which token of each text stands for all of it."""
        return lengths - 1 if self.blocks.pool == "last" else torch.zeros_like(lengths)

    def install(self, parameters: Installed, names: Iterable[str]) -> None:
        """Point the named slots at these tensors."""
        for name in names:
            try:
                tensor = parameters[name]
            except KeyError:
                raise ModelError(f"tensor {name!r} is needed here and was not given") from None
            owner, attribute = self._slots[name]
            if isinstance(tensor, nn.Parameter):
                setattr(owner, attribute, tensor)  # by pointer
            else:  # made of parameters: torch takes it for one only where it keeps them
                vars(owner)["_parameters"][attribute] = tensor

    def whole(self, tensors: Tensors) -> Any:
        """Return the model as transformers has it, with these tensors in all slots; no dropout.

        Virtual tokens that a text begins with are for the caller to put there.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        self.dropout(None)
        parameters, count = self.parameters(tensors), self.blocks.count
        self.install(parameters, self.layout.head)
        self.install(self._installed(parameters, 0, count), self.layout.within(0, count))
        if self.blocks.virtual:
            return by_peft(self.blocks, self.adapter, parameters)
        return self.blocks.model

    def dropout(self, seed: int | None) -> None:
        """Switch the adapter's dropout on with this seed, or off with None."""
        if self.adapter.dropout:
            for module in self._dropouts:
                module.train(seed is not None)
            if seed is not None:
                seed_draws(self.device, seed)

    # --- running a range of blocks ------------------------------------------------------------

    def bottom(
        self, parameters: Parameters, batch: Batch, high: int
    ) -> Float[Tensor, "batch tokens width"]:
        """Return hidden states after the embeddings and blocks [0, high)."""
        trains = any(block < high for block in self.layout.block.values())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            h, low = self._enter(parameters, batch, high)
            return self._run(PartyBatch([parameters], [len(h)]), h, batch.lengths, low, high)

    def middle(
        self,
        parameters: Parameters,
        h: Float[Tensor, "batch tokens width"],
        lengths: Int[Tensor, " batch"],
        *,
        low: int,
        high: int,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return hidden states after blocks [low, high)."""
        return self._run(PartyBatch([parameters], [len(h)]), h, lengths, low, high)

    def top(
        self,
        parameters: Parameters,
        h: Float[Tensor, "batch tokens width"],
        batch: Batch,
        low: int,
    ) -> Float[Tensor, "scored classes"]:
        """Return logits at the scored positions after blocks [low, L), norm and head."""
        count = self.blocks.count
        h = self._run(PartyBatch([parameters], [len(h)]), h, batch.lengths, low, count)
        rows = h[batch.rows.to(self.device), batch.columns.to(self.device)]
        return self.head(parameters, rows)

    def head(
        self, parameters: Parameters, rows: Float[Tensor, "scored width"]
    ) -> Float[Tensor, "scored classes"]:
        """Return logits of hidden states that already left the last block."""
        self.install(parameters, self.layout.head)
        return self.blocks.finish(rows)

    def logits(self, parameters: Parameters, batch: Batch) -> Float[Tensor, "scored classes"]:
        """Return logits at the scored positions: the joined model."""
        return self.together([parameters], [batch])[0]

    def below(
        self, ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"], depth: int
    ) -> Float[Tensor, "batch tokens width"]:
        """Return hidden states after the embeddings and blocks [0, depth), where nothing trains."""
        with torch.no_grad():
            h = self.blocks.embed(ids.to(self.device))
            return self._run(PartyBatch([{}], [len(h)]), h, lengths, 0, depth)

    def logits_by_part(
        self, parameters: Parameters, batch: Batch
    ) -> Iterator[tuple[slice, Float[Tensor, "_part classes"]]]:
        """Return logits as `logits` does, but some scored positions at a time; without gradients.

        All of them over a large vocabulary would take gigabytes.
        """
        with torch.no_grad():
            (rows,) = self._scored([parameters], [batch])
        tokens = len(next(self.blocks.head.parameters())) if self.ends == "vocabulary" else 1
        each = max(1, AT_ONCE // tokens)
        for start in range(0, max(1, len(rows)), each):
            part = slice(start, start + each)
            with torch.no_grad():
                logits = self.head(parameters, rows[part])
            yield part, logits

    # --- several parties in one pass ----------------------------------------------------------

    @property
    def joins(self) -> bool:
        """Whether batches of several parties can run in one pass."""
        return self.choice.path == "fast" and self.choice.join > 0

    def together(
        self, parties: Sequence[Parameters], batches: Sequence[Batch]
    ) -> list[Float[Tensor, "_scored classes"]]:
        """Return each party's logits on its own batch; several parties need the fast path.

        Every party's gradients are what they are when it runs alone, up to rounding.
        """
        rows = self._scored(parties, batches)
        return [self.head(one, some) for one, some in zip(parties, rows, strict=True)]

    def label_losses(
        self, parties: Sequence[Parameters], batches: Sequence[Batch]
    ) -> list[Float[Tensor, ""]] | None:
        """Return each party's mean cross-entropy, without ever making all logits.

        None where that is not to be had: on the reference path, and without a frozen linear head.
        """
        head = self.blocks.head
        plain = self.ends == "vocabulary" and "bias" not in dict(head.named_parameters())
        capped = getattr(self.blocks.config, "final_logit_softcapping", None)
        if self.choice.path != "fast" or not plain or capped:
            return None
        rows = self._scored(parties, batches)
        targets = torch.cat([b.targets for b in batches]).to(self.device)
        losses = vocabulary_losses(self.blocks.normed(torch.cat(rows)), head.weight, targets)
        parts = losses.split([len(b.targets) for b in batches])
        known = [max(int((b.targets >= 0).sum()), 1) for b in batches]
        return [part.sum() / count for part, count in zip(parts, known, strict=True)]

    def _scored(
        self, parties: Sequence[Parameters], batches: Sequence[Batch]
    ) -> list[Float[Tensor, "_scored width"]]:
        """Return each party's hidden states at its scored positions, out of the last block."""
        both = zip(parties, batches, strict=True)
        entered = [self._enter(one, batch, self.blocks.count) for one, batch in both]
        h, low = entered[0]
        if len(batches) > 1:
            width = max(part.shape[1] for part, _ in entered)
            h = torch.cat([pad(part, (0, 0, 0, width - part.shape[1])) for part, _ in entered])
        party_batch = PartyBatch(parties, [len(b.lengths) for b in batches])
        lengths = torch.cat([b.lengths for b in batches])
        h = self._run(party_batch, h, lengths, low, self.blocks.count)
        parts = h.split(list(party_batch.rows))
        return [
            part[b.rows.to(self.device), b.columns.to(self.device)]
            for part, b in zip(parts, batches, strict=True)
        ]

    def _enter(
        self, parameters: Parameters, batch: Batch, high: int
    ) -> tuple[Float[Tensor, "batch tokens width"], int]:
        """Return what enters a block, and which: the first that trains where that is kept."""
        if self.blocks.ahead:
            self.install(parameters, self.layout.within(0, 1))
        depth = min(self.frozen, high)
        if self.prefix is None or batch.examples is None or not depth:
            return self.blocks.embed(batch.ids.to(self.device)), 0
        kept = self.prefix.get(self, batch.examples, batch.indices, depth)
        if kept is None:
            kept = self.below(batch.ids, batch.lengths, depth)
        return kept.to(self.device), depth

    def _run(
        self,
        party_batch: PartyBatch,
        h: Tensor,
        lengths: Int[Tensor, " batch"],
        low: int,
        high: int,
    ) -> Tensor:
        """Return hidden states after blocks [low, high), on the path that was chosen."""
        parties = [self._installed(one, low, high) for one in party_batch.parties]
        party_batch = PartyBatch(parties, party_batch.rows)
        if self._fast is not None and self.choice.path == "fast":
            choice = self.choice
            return self._fast.run(
                h, party_batch, low, high, flash=choice.flash, recompute=choice.recompute
            )
        (parameters,) = party_batch.parties
        lengths = lengths.to(self.device)
        if not (self.choice.recompute and torch.is_grad_enabled()):
            self.install(parameters, self.layout.within(low, high))
            return self.blocks.run(h, lengths, low, high)
        drops = self._drops
        for index in range(low, high):
            again = partial(self._block, parameters, lengths, index, drops=drops)
            h = checkpoint(again, h, use_reentrant=False, preserve_rng_state=drops)
        return h

    def _installed(self, parameters: Installed, low: int, high: int) -> Installed:
        """Return what slots of blocks [low, high) take: tensors as they are, stacked or cast."""
        if any(side in parameters for side in self._sides):
            return stacked(parameters, self.layout.within(low, high))
        if self.adapter.kind in OWN:  # they take the place of tensors of the base's type
            inside = [name for name in self.layout.within(low, high) if name in parameters]
            return {name: parameters[name].to(self.dtype) for name in inside}
        return parameters

    @property
    def _drops(self) -> bool:
        """Whether the adapter's dropout is on."""
        return any(module.training for module in self._dropouts)

    def _block(
        self, parameters: Installed, lengths: Tensor, index: int, h: Tensor, *, drops: bool
    ) -> Tensor:
        """Run one block of the library's code: forward, and again when its backward pass comes.

        Somebody else's tensors may lie in its slots by then, and dropout may be off.
        """
        before = self._drops
        self.install(parameters, self.layout.within(index, index + 1))
        try:
            for module in self._dropouts:
                module.train(drops)
            return self.blocks.run(h, lengths, index, index + 1)
        finally:
            for module in self._dropouts:
                module.train(before)
