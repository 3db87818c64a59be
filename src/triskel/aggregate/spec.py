"""The aggregates that come with Triskel, as values."""

from triskel.core.aggregate_spec import AggregateSpec

MEAN = AggregateSpec(
    name="mean",
    gloss="mean of the updates, weighted by examples",
    algorithm="triskel.aggregate.mean:Mean",
    linear=True,
)
