"""What the median is: an aggregate of another package, found by its entry point."""

from triskel.core.aggregate_spec import AggregateSpec

SPEC = AggregateSpec(
    name="median",
    gloss="the middle of each number",
    algorithm="own_aggregate.median:Median",
    keeps_updates=True,
)
