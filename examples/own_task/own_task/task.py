"""The last word of a text: every token of it is a target, and no other.

Labels are smoothed (Szegedy et al. 2016, arXiv:1512.00567, section 7), with ε = 0.1 spread over the
vocabulary; models are still scored by plain cross-entropy, so that perplexities can be compared.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from triskel.config.sections import Data
from triskel.data.batches import Task
from triskel.data.rows import Rows
from triskel.data.tokens import Ragged
from triskel.numerics.objective import Objective
from triskel.types import Batch, Examples

SMOOTHING = 0.1


class LastWord(Task):
    """The last word of a text."""

    @property
    def objective(self) -> Objective:
        """Cross-entropy with smoothed labels."""
        return Objective(loss=smoothed)

    def tokens(
        self, rows: Rows, tokenizer: Any, *, data: Data, max_tokens: int, classes: Sequence[str]
    ) -> Examples:
        """Return texts as token ids, and which of them are of the last word."""
        ids, marks = list[list[int]](), list[list[bool]]()
        for text in map(str.strip, rows.text):
            found = tokenizer(text, return_offsets_mapping=True)
            start = text.rfind(" ") + 1
            scored = [end > start for _, end in found["offset_mapping"]][:max_tokens]
            if any(scored[1:]):  # nothing predicts the first token
                ids.append(found["input_ids"][:max_tokens])
                marks.append([False, *scored[1:]])
        return Examples(ids=Ragged.ids(ids), labels=(), scored=Ragged.marks(marks))


def smoothed(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss in nats over the tokens of last words."""
    return cross_entropy(logits.float(), batch.targets.to(logits.device), label_smoothing=SMOOTHING)
