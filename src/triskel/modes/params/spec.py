"""What parameter exchange is: options, payload, and what leaves a client."""

from typing import Annotated

from pydantic import Field

from triskel.core.choice import Chosen
from triskel.core.mode_spec import Disclosure, ModeSpec, Payload, Sizes, Traits
from triskel.core.options import Options, Rate


class ParamsOptions(Options):
    """The server's step in `params`."""

    server_lr: Annotated[
        Rate, Field(description="the server moves by so much of the clients' mean change")
    ] = 1.0
    server_momentum: Annotated[
        float, Field(ge=0, lt=1, description="and keeps so much of its last move")
    ] = 0.0
    aggregate: Annotated[
        Chosen | None,
        Field(description="how updates become one; left out: their mean", examples=["mean"]),
    ] = None


def disclosure(_options: ParamsOptions, _task: str) -> Disclosure:
    """Return what leaves a client: its trained adapter."""
    return Disclosure(
        sections={
            "adapter": ("the adapter after local training, or its change", "the averaged adapter"),
            "head": ("the task head after local training", "the averaged task head"),
        },
        stays="the texts, their labels, every prediction and every hidden vector",
        risk=(
            "Trained parameters are computed from the texts. Whoever sees one client's update can "
            "test whether a given text took part and can rebuild fragments of small batches (Zhu "
            "et al. 2019; Balunović et al. 2022). The server sees each client's update on its own."
        ),
        trained=(
            "By exchange of parameters (Triskel's mode `params`): clients trained on their own "
            "texts and sent the change of the adapter, which the server averaged."
        ),
        privacy="Texts stayed with their clients; the change of the adapter left them.",
    )


def payload(_options: ParamsOptions, _epochs: int, sizes: Sizes) -> Payload:
    """Return what a client sends in a round: adapter and head, once."""
    return Payload(floats=sizes.adapter + sizes.head)


SPEC = ModeSpec(
    name="params",
    gloss="adapter parameters travel",
    colour="#0072B2",
    marker="circle",
    options=ParamsOptions,
    algorithm="triskel.modes.params.mode:Params",
    traits=Traits(linear_in_updates=True, changes=("adapter", "head")),
    aggregate_key="aggregate",
    disclosure=disclosure,
    payload=payload,
)
