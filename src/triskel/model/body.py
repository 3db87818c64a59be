"""One frozen base model in memory, and any number of parties' tensors run through it.

A body has slots for the tensors that train. Every call installs the tensors it is given, by
pointer, and runs a range of blocks: no adapter is ever copied into the model or left behind in it.
A graph built for one client therefore keeps that client's tensors while another client runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triskel.errors import ModelError
from triskel.job import Adapter
from triskel.model.adapters import insert, scale_of
from triskel.model.blocks import Blocks, Task
from triskel.types import Batch, Tensors

Parameters = Mapping[str, nn.Parameter]
"""One party's trainable tensors, as leaves autograd can differentiate by."""


@dataclass(frozen=True)
class Layout:
    """Which trainable tensor belongs where.

    Attributes:
        head: Names of the task head's tensors.
        block: Block of every adapter tensor.
        scale: What a product of low-rank factors is multiplied by.
    """

    head: tuple[str, ...]
    block: Mapping[str, int]
    scale: float

    def within(self, low: int, high: int, *, head: bool = False) -> list[str]:
        """Return names of tensors in blocks [low, high), and of the head where asked."""
        inside = [name for name, block in self.block.items() if low <= block < high]
        return inside + (list(self.head) if head else [])


class Body:
    """A base model with slots.

    Attributes:
        blocks: The parts of the model.
        tokenizer: Its tokenizer.
        task: `classify` or `causal`.
        classes: Number of classes; 0 for `causal`.
        layout: Which trainable tensor belongs where.
        initial: The trainable tensors before any training; a function of the seed.
        path: Where the base model came from.
        adapter: The adapter's options.
    """

    def __init__(  # noqa: PLR0913 - what `load` found, handed over once
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        task: Task,
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
        self.blocks = Blocks(model, task)
        self.tokenizer = tokenizer
        self.task: Task = task
        self.classes = classes
        self.adapter = adapter
        self.path = str(path)
        self._slots = insert(self.blocks, adapter, seed=seed)
        model.eval()  # PEFT's own layers start in training mode
        self._dropouts = [
            m for n, m in model.named_modules() if "lora_dropout" in n and isinstance(m, nn.Dropout)
        ]
        self.initial: Tensors = {
            name: cast("Tensor", getattr(owner, attribute)).detach().clone().cpu()
            for name, (owner, attribute) in self._slots.items()
        }
        self.layout = self._layout()

    def _layout(self) -> Layout:
        head = tuple(n for n in self._slots if n.startswith(f"{self.blocks.head_name}."))
        prefix = f"{self.blocks.family.blocks}."
        return Layout(
            head=head,
            block={
                n: int(n.removeprefix(prefix).split(".")[0]) for n in self._slots if n not in head
            },
            scale=scale_of(self.adapter),
        )

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return next(self.blocks.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What hidden states are computed in."""
        return self.blocks.dtype

    def parameters(self, tensors: Tensors) -> dict[str, nn.Parameter]:
        """Return copies of the tensors that autograd can differentiate by.

        In a float64 body they are float64, elsewhere float32.

        Raises:
            ModelError: A name or shape is not this body's.
        """
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        leaves: dict[str, nn.Parameter] = {}
        for name, tensor in tensors.items():
            expected = self.initial.get(name)
            if expected is None or expected.shape != tensor.shape:
                shape = None if expected is None else tuple(expected.shape)
                raise ModelError(
                    f"tensor {name!r} of shape {tuple(tensor.shape)} does not fit this model, "
                    f"which has {shape}"
                )
            copy = tensor.detach().to(device=self.device, dtype=dtype, copy=True)
            leaves[name] = nn.Parameter(copy)
        return leaves

    def pooled_column(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return which token of each text stands for all of it."""
        return lengths - 1 if self.blocks.pool == "last" else torch.zeros_like(lengths)

    def install(self, parameters: Parameters, names: Iterable[str]) -> None:
        """Point the named slots at these tensors."""
        for name in names:
            try:
                tensor = parameters[name]
            except KeyError:
                raise ModelError(f"tensor {name!r} is needed here and was not given") from None
            owner, attribute = self._slots[name]
            setattr(owner, attribute, tensor)  # by pointer

    def dropout(self, seed: int | None) -> None:
        """Switch the adapter's dropout on with this seed, or off with None."""
        if not self.adapter.dropout:
            return
        for module in self._dropouts:
            module.train(seed is not None)
        if seed is not None:
            torch.manual_seed(seed)

    # --- running a range of blocks ------------------------------------------------------------

    def bottom(
        self, parameters: Parameters, batch: Batch, high: int
    ) -> Float[Tensor, "batch tokens width"]:
        """Return hidden states after the embeddings and blocks [0, high)."""
        names = self.layout.within(0, high)
        self.install(parameters, names)
        with torch.set_grad_enabled(bool(names) and torch.is_grad_enabled()):
            h = self.blocks.embed(batch.ids.to(self.device))
            return self.blocks.run(h, batch.lengths.to(self.device), 0, high)

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
        self.install(parameters, self.layout.within(low, high))
        return self.blocks.run(h, lengths.to(self.device), low, high)

    def top(
        self,
        parameters: Parameters,
        h: Float[Tensor, "batch tokens width"],
        batch: Batch,
        low: int,
    ) -> Float[Tensor, "scored classes"]:
        """Return logits at the scored positions after blocks [low, L), norm and head."""
        count = self.blocks.count
        self.install(parameters, self.layout.within(low, count, head=True))
        h = self.blocks.run(h, batch.lengths.to(self.device), low, count)
        return self.blocks.finish(h[batch.rows.to(self.device), batch.columns.to(self.device)])

    def head(
        self, parameters: Parameters, rows: Float[Tensor, "scored width"]
    ) -> Float[Tensor, "scored classes"]:
        """Return logits of hidden states that already left the last block."""
        self.install(parameters, self.layout.head)
        return self.blocks.finish(rows)

    def logits(self, parameters: Parameters, batch: Batch) -> Float[Tensor, "scored classes"]:
        """Return logits at the scored positions: the joined model."""
        high = self.blocks.count
        names = self.layout.within(0, high, head=True)
        self.install(parameters, names)
        h = self.blocks.embed(batch.ids.to(self.device))
        h = self.blocks.run(h, batch.lengths.to(self.device), 0, high)
        return self.blocks.finish(h[batch.rows.to(self.device), batch.columns.to(self.device)])
