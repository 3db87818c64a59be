"""What sign exchange is: a mode of another package, which Triskel finds by its entry point."""

from typing import Annotated

from pydantic import Field

from triskel.core.mode_spec import Disclosure, ModeSpec, Payload, Sizes, Traits
from triskel.core.options import Options, Rate


class SignOptions(Options):
    """The section `[sign]` of a job."""

    step: Annotated[Rate, Field(description="the server moves by so much of the mean")] = 1.0


TOLD = Disclosure(  # words of the page and the model card
    sections={
        "adapter": ("nothing", "the adapter"),
        "head": ("nothing", "the task head"),
        "signs": ("for each trained number, whether it grew", "nothing"),
        "scales": ("the mean size of each tensor's change", "nothing"),
    },
    stays="the texts, their labels, every prediction, and how far each number moved",
    risk="Signs of a change still say on which texts it was made, if less than the change.",
    trained="By exchange of signs (mode `sign` of the package own-mode).",
    privacy="Texts stayed with their clients; the signs of the adapter's change left them.",
)


def payload(_options: SignOptions, _epochs: int, sizes: Sizes) -> Payload:
    """Return what a client sends in a round: a bit a number, and a scale a tensor."""
    n = sizes.tensors
    return Payload(floats=n, fixed_bytes=(sizes.adapter + sizes.head) // 8 + n)


SPEC = ModeSpec(
    name="sign",
    gloss="signs of the adapter's change travel",
    colour="#CC79A7",
    marker="triangle-up",
    options=SignOptions,
    algorithm="own_mode.mode:Sign",
    traits=Traits(linear_in_updates=True),
    disclosure=lambda _options, _task: TOLD,
    payload=payload,
)
