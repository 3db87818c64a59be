"""What the middle is: an aggregate of another package, found by its entry point."""

from triskel.core.aggregate_spec import AggregateSpec

SPEC = AggregateSpec(
    name="middle",
    gloss="the middle of each number",
    algorithm="own_aggregate.middle:Middle",
    keeps_updates=True,
)
