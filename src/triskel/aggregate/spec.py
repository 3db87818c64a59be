"""The aggregates that come with Triskel, as values, and what they may be set to."""

from typing import Annotated

from pydantic import Field

from triskel.core.aggregate_spec import AggregateSpec
from triskel.core.options import Count, Options, Rate


class ErrorOptions(Options):
    """How exact side factors are."""

    error: Annotated[
        float,
        Field(ge=0, lt=1, description="of a module's product, so much may be lost in a round"),
    ] = 1e-6


class EnergyOptions(Options):
    """How many components are kept."""

    energy: Annotated[
        float, Field(gt=0, le=1, description="share of the squared singular values that is kept")
    ] = 0.95


class RidgeOptions(Options):
    """How far B may move."""

    ridge: Annotated[Rate, Field(description="weight of the squared change of B")] = 0.01


class AttackerOptions(Options):
    """How many clients may send anything."""

    attackers: Annotated[
        Count, Field(description="clients of a round that may send anything at all")
    ] = 1


class ClipOptions(Options):
    """How long a client's change may be."""

    multiple: Annotated[
        Rate, Field(description="a change may be so many times as long as the median one")
    ] = 1.0
    norm: Annotated[
        Rate | None, Field(description="a change may be so long, whatever the others are")
    ] = None


MEAN = AggregateSpec(
    name="mean",
    gloss="mean of the updates, weighted by examples",
    algorithm="triskel.aggregate.mean:Mean",
    linear=True,
    ranks="rest",
)
FEDEX = AggregateSpec(
    name="fedex",
    gloss="mean of factors, the rest of the mean of products beside it",
    algorithm="triskel.aggregate.side:fedex",
    keeps_updates=True,
    side_factors=True,
    lowrank=True,
    ranks="rest",
    options=ErrorOptions,
)
FLORA = AggregateSpec(
    name="flora",
    gloss="mean of products beside factors that begin again",
    algorithm="triskel.aggregate.side:flora",
    keeps_updates=True,
    side_factors=True,
    lowrank=True,
    ranks="rest",
    options=ErrorOptions,
)
FLEXLORA = AggregateSpec(
    name="flexlora",
    gloss="best factors of the mean of products",
    algorithm="triskel.aggregate.redistribute:flexlora",
    keeps_updates=True,
    lowrank=True,
    ranks="cut",
)
RAFLORA = AggregateSpec(
    name="raflora",
    gloss="best factors of products whose components count by who has them",
    algorithm="triskel.aggregate.redistribute:raflora",
    keeps_updates=True,
    lowrank=True,
    ranks="cut",
)
FLORIST = AggregateSpec(
    name="florist",
    gloss="best factors of the mean of products, as few as hold a share of its energy",
    algorithm="triskel.aggregate.redistribute:florist",
    keeps_updates=True,
    lowrank=True,
    ranks="cut",
    options=EnergyOptions,
)
HETLORA = AggregateSpec(
    name="hetlora",
    gloss="factors padded with zeros, weighted by the norms of products",
    algorithm="triskel.aggregate.hetlora:hetlora",
    keeps_updates=True,
    lowrank=True,
    ranks="cut",
)
LORA_FAIR = AggregateSpec(
    name="lora_fair",
    gloss="mean of factors, B moved towards the mean of products",
    algorithm="triskel.aggregate.lora_fair:lora_fair",
    keeps_updates=True,
    lowrank=True,
    ranks="rest",
    options=RidgeOptions,
)
FEDSVD = AggregateSpec(
    name="fedsvd",
    gloss="mean of B, new factors of its product with A",
    algorithm="triskel.aggregate.fedsvd:FedSvd",
    linear=True,
    lowrank=True,
    ranks="rest",
    trains="ffa",
)
MEDIAN = AggregateSpec(
    name="median",
    gloss="median of each number of the products",
    algorithm="triskel.aggregate.coordinates:median",
    keeps_updates=True,
    ranks="rest",
)
TRIMMED_MEAN = AggregateSpec(
    name="trimmed_mean",
    gloss="mean of each number of the products without the least and the largest",
    algorithm="triskel.aggregate.coordinates:trimmed_mean",
    keeps_updates=True,
    ranks="rest",
    options=AttackerOptions,
)
KRUM = AggregateSpec(
    name="krum",
    gloss="the update that is nearest to its neighbours",
    algorithm="triskel.aggregate.robust:krum",
    keeps_updates=True,
    ranks="rest",
    options=AttackerOptions,
)
MULTI_KRUM = AggregateSpec(
    name="multi_krum",
    gloss="mean of the updates that are nearest to their neighbours",
    algorithm="triskel.aggregate.robust:multi_krum",
    keeps_updates=True,
    ranks="rest",
    options=AttackerOptions,
)
GEOMETRIC_MEDIAN = AggregateSpec(
    name="geometric_median",
    gloss="the point with the least sum of distances to the updates",
    algorithm="triskel.aggregate.robust:geometric_median",
    keeps_updates=True,
    ranks="rest",
)
NORM_CLIP = AggregateSpec(
    name="norm_clip",
    gloss="mean of changes, none longer than a bound",
    algorithm="triskel.aggregate.robust:norm_clip",
    keeps_updates=True,
    ranks="rest",
    options=ClipOptions,
)
FEDNOVA = AggregateSpec(
    name="fednova",
    gloss="mean of changes by the local step",
    algorithm="triskel.aggregate.normalised:FedNova",
    ranks="rest",
    steps=True,
)
