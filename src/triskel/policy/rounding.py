"""What a site says of a model on its texts, no more exactly than its policy has it.

A mean loss or a share that is rounded says less of any one text. A table of classes by predicted
classes counts single texts, so it stays unless the policy lets it leave.
"""

from dataclasses import replace

from triskel.numerics.metrics import Score
from triskel.policy.rules import ScoresOut
from triskel.training.evaluate import score_message, score_of
from triskel.types import Message

LOSS = "loss"


def near(value: float, step: float) -> float:
    """Return the multiple of a step that is next to a value; with a step of 0 the value itself.

    >>> near(1.37, 0.05), near(1.37, 0.0)
    (1.35, 1.37)
    """
    return round(round(value / step) * step, 12) if step else value


def rounded(message: Message, policy: ScoresOut, classes: int) -> Message:
    """Return an update or a score as it may leave.

    Args:
        message: What a part ends with.
        policy: How exactly.
        classes: Classes of a `classify` task, or 0 for `causal`.
    """
    if message.kind == "evaluate" and message.topic == "score":
        return score_message(rounded_score(score_of(message, classes), policy))
    loss = message.facts.get(LOSS)
    if not isinstance(loss, float):
        return message
    return replace(message, facts={**message.facts, LOSS: near(loss, policy.loss_step)})


def rounded_score(score: Score, policy: ScoresOut) -> Score:
    """Return a score as it may leave."""
    kept = replace(score, confusion=score.confusion if policy.table else None)
    if score.accuracy is None or score.loss is None:  # of no text
        return kept
    right = min(round(near(score.accuracy, policy.share_step) * score.count), score.count)
    return replace(
        kept,
        correct=right if not policy.table else score.correct,
        loss_sum=near(score.loss, policy.loss_step) * score.count,
    )
