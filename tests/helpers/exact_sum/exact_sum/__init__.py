"""An aggregate of tests that makes side factors: the mean of products, to the last digit."""

from triskel.core.aggregate_spec import AggregateSpec

SPEC = AggregateSpec(
    name="exact_sum",
    gloss="means of factors, and the rest of the mean of products beside them",
    algorithm="exact_sum.sums:ExactSum",
    side_factors=True,
)
