"""What prediction exchange is: options, payload, and what leaves a client."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from triskel.core.mode_spec import Disclosure, Memory, ModeSpec, Payload, Sizes, Traits
from triskel.core.options import Count, Options, Positive, Proportion, Rate

TOKENS = 8
"""Of a token's predictions so many travel, where nothing is said."""
Rule = Literal["probabilities", "logits", "confidence", "entropy", "loss", "lowest_loss"]
"""How predictions of several are averaged."""
BY_LOSS = ("loss", "lowest_loss")
"""Rules that weigh a party by its loss on each text."""


class LogitsOptions(Options):
    """What clients predict on, and how they learn from each other's predictions."""

    public: Annotated[
        Count,
        Field(
            description="public texts, held out of every client's rows in all modes; "
            "0: none, and no logits"
        ),
    ] = 200
    temperature: Annotated[
        Rate, Field(description="softens predictions before they are compared")
    ] = 2.0
    mix: Annotated[
        Proportion,
        Field(description="weight of the others' predictions against a client's own labels"),
    ] = 0.5
    top_k: Annotated[
        Positive | None,
        Field(description="predictions a text or token; left out, 8 tokens, and all classes"),
    ] = None
    values: Annotated[
        Literal["floats", "bytes"],
        Field(description="floats travel as wire has them; bytes are shares of the largest"),
    ] = "floats"
    aggregate: Annotated[
        Literal["probabilities", "logits", "confidence", "entropy"],
        Field(description="mean of probabilities, of logits, or weighted by how sure each is"),
    ] = "probabilities"
    student: Annotated[
        bool, Field(description="the server trains a model of its own on the public texts")
    ] = True
    epochs: Annotated[Positive, Field(description="passes over the public texts")] = 1


def named(options: LogitsOptions, classes: int, vocabulary: int) -> int | None:
    """Return how many predictions a position has that are named; None: all of them."""
    whole = classes or vocabulary
    if options.top_k is None:
        return None if classes else min(TOKENS, whole)
    return None if classes and options.top_k >= classes else min(options.top_k, whole)


def bytes_of_id(vocabulary: int) -> int:
    """Return what an id takes."""
    return next(size for size, most in ((1, 256), (2, 65_536), (4, 1 << 32)) if vocabulary <= most)


def disclosure(_options: LogitsOptions, _task: str) -> Disclosure:
    """Return what leaves a client: predictions on public texts."""
    how = (
        "By exchange of predictions (Triskel's mode `logits`): clients trained on their own texts "
        "and sent predictions on public, unlabelled ones."
    )
    return Disclosure(
        sections={
            "knowledge": (
                "the client's predictions on the public texts",
                "the aggregated predictions on the public texts (the teacher)",
            )
        },
        stays="the texts, their labels, the client's adapter and head",
        risk=(
            "Predictions on public texts say little about one text, but they show which labels a "
            "client holds and allow tests of membership (Shokri et al. 2017). The server chooses "
            "the public texts, so a hostile one can ask pointed questions."
        ),
        trained=f"{how} This is the server's student.",
        trained_own=f"{how} This is one client's own model.",
        privacy="Texts stayed with their clients; predictions on public texts left them.",
    )


def payload(options: LogitsOptions, _epochs: int, sizes: Sizes) -> Payload:
    """Return what a client sends in a round: predictions on the public set, once."""
    whole = sizes.classes or sizes.vocabulary
    k = named(options, sizes.classes, sizes.vocabulary)
    ids = 0 if k is None else k * bytes_of_id(whole)
    if options.values == "bytes":
        return Payload(fixed_bytes=sizes.public * ((whole if k is None else k) + 2 + ids))
    floats = whole if k is None else k + 1
    return Payload(floats=sizes.public * floats, fixed_bytes=sizes.public * ids)


def bytes_kept(options: Sequence[LogitsOptions], memory: Memory) -> float:
    """Return what a client keeps: with rehearsal a public batch, and one of its own."""
    return max(memory.step, memory.bytes_of(2 * memory.batch)) if options[0].mix < 1 else 0.0


def public_passes(options: LogitsOptions) -> float:
    """Return passes over the public texts in a round; each rehearses as many private ones."""
    return options.epochs * (2 if options.mix < 1 else 1)


def common(options: LogitsOptions) -> bool:
    """Return whether the server has a student."""
    return options.student


SPEC = ModeSpec(
    name="logits",
    gloss="predictions on public texts travel",
    colour="#E69F00",
    marker="diamond",
    options=LogitsOptions,
    algorithm="triskel.modes.logits.mode:Logits",
    traits=Traits(
        needs_public_data=True,
        mixed_ranks=True,
        mixed_models=True,
        personal_models=True,
        client_state=True,
    ),
    public_key="public",
    disclosure=disclosure,
    payload=payload,
    common=common,
    bytes_kept=bytes_kept,
    public_passes=public_passes,
)
