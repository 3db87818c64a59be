"""What a site tells of its scores, where it has nothing to tell of."""

import pytest

from triskel.numerics.metrics import empty
from triskel.policy.rounding import rounded_score
from triskel.policy.rules import ScoresOut


@pytest.mark.parametrize("classes", [0, 3])
def test_a_score_of_no_text_leaves_as_it_is(classes: int) -> None:
    found = rounded_score(empty(classes), ScoresOut())
    assert (found.count, found.correct, found.loss_sum, found.accuracy) == (0, 0, 0.0, None)
    assert found.confusion is None
