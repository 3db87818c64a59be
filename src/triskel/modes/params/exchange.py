"""Seeds instead of tensors: options, payload, and what leaves a client."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from triskel.core.mode_spec import Disclosure, Payload
from triskel.core.options import Options, Positive, Rate

PAIR = 8
"""Bytes of a seed and its scalar."""
TENSORS = "tensors"
"""What is exchanged where nothing else is said."""
MOST_SEEDS = 1 << 20
OF_FEDKSEED = ("seeds", "probabilities")


class Exchange(Options):
    """Clients take steps along seeds, and send how far: `fedkseed` or `fedmezo`."""

    name: Literal["fedkseed", "fedmezo"]
    steps: Annotated[
        Positive, Field(description="local steps a round, two forward passes each")
    ] = 200
    lr: Annotated[Rate, Field(description="of a step along a seed")] = 1e-4
    epsilon: Annotated[Rate, Field(description="how far along a seed the loss is looked at")] = 5e-4
    seeds: Annotated[
        int, Field(ge=1, le=MOST_SEEDS, description="of fedkseed: how many seeds there are")
    ] = 4096
    probabilities: Annotated[
        bool, Field(description="of fedkseed: seeds with larger scalars are drawn more often")
    ] = False

    @model_validator(mode="after")
    def _of_its_name(self) -> Self:
        fields = type(self).model_fields
        other = [k for k in OF_FEDKSEED if getattr(self, k) != fields[k].get_default()]
        if self.name == "fedmezo" and other:
            raise ValueError(
                f'{other[0]} is an option of "fedkseed"; "fedmezo" takes a fresh seed every step'
            )
        return self


def _named(given: object) -> object:
    """Return a table for a name alone, and nothing for tensors."""
    if given == TENSORS:
        return None
    return {"name": given} if isinstance(given, str) else given


Exchanged = Annotated[Exchange | None, BeforeValidator(_named)]
"""How a job says what travels; None where tensors do."""


def problems(exchange: Exchange, options: Options) -> Iterator[str]:
    """Return what of the mode's other options is of no use where seeds travel."""
    for key, field in type(options).model_fields.items():
        if key != "exchange" and getattr(options, key) != field.get_default():
            yield (
                f'{key} works on tensors, and params.exchange is "{exchange.name}", which sends '
                "scalars; leave one of them out"
            )


def unsuited(exchange: Exchange, job: Any) -> str | None:  # noqa: ANN401 - a job, known above
    """Return why tensors could not be rebuilt from scalars under other sections of a job."""
    train = job.train
    said = {
        "train.schedule": (train.schedule, "constant"),
        "train.weight_decay": (train.weight_decay, 0.0),
        "train.max_grad_norm": (train.max_grad_norm, 0.0),
    }
    for key, (value, plain) in said.items():
        if value != plain:
            return (
                f'with params.exchange "{exchange.name}" tensors are rebuilt from their start and '
                f"a sum of scalars along seeds, which takes one learning rate and plain steps; set "
                f"{key} to {plain!r}, not {value!r}"
            )
    other = sorted(name for name, own in job.clients.each.items() if own.rank or own.model)
    if other:
        return (
            f'with params.exchange "{exchange.name}" all clients move the same tensors; take rank '
            f"and model out of clients.each.{other[0]}"
        )
    return None


def payload(exchange: Exchange) -> Payload:
    """Return what a client sends in a round: a seed and a scalar for each step."""
    return Payload(fixed_bytes=exchange.steps * PAIR)


def disclosure(exchange: Exchange) -> Disclosure:
    """Return what leaves a client: slopes of its loss along public directions."""
    down: Mapping[str, str] = {
        "fedkseed": "the sum of everybody's scalars along each seed",
        "fedmezo": "everybody's pairs since the first round",
    }
    sections = {
        "steps": (
            "for each step, a seed and the slope of the loss on one batch along it",
            down[exchange.name],
        )
    }
    if exchange.probabilities:
        sections["probabilities"] = ("nothing", "how often each seed is drawn")
    return Disclosure(
        sections=sections,
        stays="the texts, their labels, every gradient, prediction and hidden vector",
        risk=(
            "A scalar is one number computed from one batch: the slope of its loss along a "
            "direction that everybody knows. With enough of them around one point a gradient can "
            "be solved for, so membership can be tested as with gradients (Zhu et al. 2019), only "
            "with more noise. The sum of a client's steps is also the change of its adapter, which "
            "anybody can rebuild. The server sees each client's scalars on their own."
        ),
        trained=(
            "By exchange of scalars along seeds (Triskel's mode `params` with the exchange "
            f"`{exchange.name}`): clients ran the model forward only, on their own texts, and sent "
            "how the loss changed along random directions, which the server added up."
        ),
        privacy="Texts stayed with their clients; slopes of their losses left them.",
    )
