"""What split learning is: options, payload, and what leaves a client."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, Strict

from triskel.core.choice import Chosen
from triskel.core.mode_spec import Disclosure, Leaves, Memory, ModeSpec, Payload, Sizes, Traits
from triskel.core.options import BlockRange, Count, Options

LABEL = 4
"""Bytes of a label."""
TIGHT = 1.1
"""Clients are joined in the trunk while padding costs at most this factor, ..."""
SMALL = 512
"""... or while the joined batch has at most this many padded tokens."""
GRADIENT = (
    "gradients at the head's cut, one for every hidden vector that came down",
    "gradients at the first cut, so that the client's blocks can train",
)


class SplitOptions(Options):
    """Where the model is cut, and who sees the labels."""

    cut: Annotated[
        BlockRange | None,
        Field(
            description="first block of the server and first of the client's last ones; left out: "
            "by the model's depth",
            examples=[[4, 28]],
        ),
    ] = None
    labels: Annotated[
        Literal["private", "shared"],
        Field(
            description="private: the clients keep the head; shared: the server sees labels",
        ),
    ] = "private"
    wave: Annotated[
        Count, Field(description="clients in flight at once, which bounds memory; 0: all")
    ] = 0
    aggregate: Annotated[
        Chosen | None,
        Field(
            description="how the clients' parts become one; left out: their mean",
            examples=["mean"],
        ),
    ] = None


class SplitLimits(Options):
    """How many blocks stay at the site in `split`."""

    first: Annotated[Count, Strict()] = 1
    last: Annotated[Count, Strict()] = 0


def default_cut(blocks: int) -> tuple[int, int]:
    """Return the cut of a model with `blocks` blocks when the job names none.

    >>> default_cut(30)
    (4, 28)
    """
    low = max(1, round(2 * blocks / 15))
    high = blocks - max(1, round(blocks / 15))
    return (low, high) if low < high else (0, blocks)


def problems(options: SplitOptions) -> Iterator[str]:
    """Return what contradicts itself."""
    cut = options.cut
    if cut is not None and options.labels == "private" and cut[0] >= cut[1]:
        yield (
            f"cut must leave the server at least one block, got {list(cut)}; "
            "the first number must be smaller than the second"
        )


def disclosure(options: SplitOptions, head: str) -> Disclosure:
    """Return what leaves a client: hidden states of its texts, and labels where shared."""
    shared, causal = options.labels == "shared", head == "vocabulary"
    risk = (
        "Hidden vectors of a known model can be turned back into most of the words (Song and "
        "Raghunathan 2020), the more easily the earlier the cut. Treat split as sparing the "
        "client's machine, not as hiding its texts from the server."
    )
    stays = "the texts as text, their labels, the task head's predictions"
    leaves: dict[Leaves, str] = {
        "activations": "sends hidden states of every training text (mode 'split')"
    }
    privacy = (
        "Texts stayed with their clients; activations and gradients at the cut left them, for "
        "every text, and these can be inverted in part."
    )
    if not shared:
        risk += (
            " Labels stay, but the gradients that go up are shaped by them and can give them away "
            "(Li et al. 2021)."
        )
    else:
        leaves["labels"] = "sends every label (split.labels is 'shared')"
        privacy += " Labels were shared with the server."
        stays = "the texts as text"
        if causal:
            stays = "the prompts as text; the responses leave, as labels"
            risk += (
                " The server sees the responses of the training examples token by token, as the "
                "job asked: they are the labels of a causal task."
            )
        else:
            risk += " The server sees every label of the training texts, as the job asked."
    return Disclosure(
        sections={
            "gradient": GRADIENT,
            "activations": (
                "hidden vectors at the cut, one per token of each training text",
                "the trunk's output, for the head that stays with the client",
            ),
            "labels": ("the labels of the training texts", "labels"),
            "adapter": ("the adapter after local training, or its change", "the averaged adapter"),
            "head": ("the task head after local training", "the averaged task head"),
        },
        stays=stays,
        risk=risk,
        trained=(
            "By split learning (Triskel's mode `split`): clients ran the first and last blocks on "
            "their own texts, the server the blocks between."
        ),
        privacy=privacy,
        leaves=leaves,
    )


def payload(options: SplitOptions, epochs: int, sizes: Sizes) -> Payload:
    """Return what a client sends in a round: rows for every batch, and its part once."""
    shared, count = options.labels == "shared", len(sizes.blocks)
    low, high = options.cut or default_cut(count)
    high = count if shared else high
    states, bottom = sizes.tokens * sizes.width, sum(sizes.blocks[:low])
    if shared:
        return Payload(
            floats=epochs * states + bottom,
            fixed_bytes=epochs * sizes.labels * LABEL,
            tested_floats=sizes.tested * sizes.width,
            tested_bytes=sizes.tested * LABEL,
        )
    pooled, trains = high == count and bool(sizes.classes), sum(sizes.blocks[:high]) > 0
    back = (sizes.texts if pooled else sizes.tokens) * sizes.width if trains else 0
    mine = bottom + sum(sizes.blocks[high:]) + sizes.head
    return Payload(floats=epochs * (states + back) + mine, tested_floats=sizes.tested * sizes.width)


def bytes_kept(options: Sequence[SplitOptions], memory: Memory) -> float:
    """Return what waits for a wave: its batches up to the head's cut, and one batch above.

    With shared labels only what lies below the trunk waits.
    """
    count, shared = memory.blocks, options[0].labels == "shared"
    cuts = [options[0].cut or default_cut(count), *(o.cut for o in options[1:] if o.cut)]
    depth = max(min(low if shared else high, count) for low, high in cuts)
    waits = max(0, depth - memory.frozen) / max(1, count - memory.frozen)
    wave = min(options[0].wave or memory.clients, memory.clients)
    batch = memory.bytes_of(memory.batch)
    above = memory.bytes_of(max(memory.batch, memory.together)) if shared else batch
    return math.ceil(wave * waits * batch + (1 - waits) * above)


def refusals(
    limits: SplitLimits, options: SplitOptions, blocks: int | None
) -> Iterator[tuple[str, str, str]]:
    """Return why a site that keeps blocks refuses a cut."""
    cut = options.cut or (None if blocks is None else default_cut(blocks))
    if limits.first and (cut is None or cut[0] < limits.first):
        asks = "leaves the cut to the model, which is not known here"
        yield (
            "first",
            asks if cut is None else f"leaves the site the first {cut[0]} blocks",
            f"keeps at least the first {limits.first}",
        )
    if not limits.last:
        return
    stay = None
    if options.labels == "shared":
        stay = 0
    elif cut is not None and blocks is not None:
        stay = blocks - cut[1]
    if stay is None or stay < limits.last:
        asks = "leaves the site a number of last blocks that is not known here"
        yield (
            "last",
            asks if stay is None else f"leaves the site the last {stay} blocks",
            f"keeps at least the last {limits.last}",
        )


SPEC = ModeSpec(
    name="split",
    gloss="activations at the cut travel",
    colour="#009E73",
    marker="square",
    options=SplitOptions,
    algorithm="triskel.modes.split.mode:Split",
    traits=Traits(linear_in_updates=True),
    aggregate_key="aggregate",
    client_keys=("cut",),
    short_client_keys=("cut",),
    disclosure=disclosure,
    payload=payload,
    problems=problems,
    bytes_kept=bytes_kept,
    limits=SplitLimits,
    refusals=refusals,
    grouping={"trunk_padding": TIGHT, "trunk_small": SMALL},
)
