"""A conversation with a model that a run trained.

Where the run laid its texts out as a chat, each line is answered behind what was said before, until
that is longer than the model: then the oldest turns are forgotten. Any other layout knows one
prompt and one answer, so there each line stands alone.
"""

from dataclasses import dataclass, field

from triskel.data.batches import Turn
from triskel.errors import JobError
from triskel.experiment.predict import Prediction, Predictor, Told

CHAT = "chat"
"""The layout that has several turns, as `TaskSpec.layout` names it."""


@dataclass
class Chat:
    """A conversation.

    Attributes:
        predictor: Whose model writes.
        turns: What was said before and is not forgotten.
        lines: How many lines were answered.
    """

    predictor: Predictor
    turns: list[Turn] = field(default_factory=list[Turn])
    lines: int = 0

    def __post_init__(self) -> None:
        """Refuse a model that writes nothing.

        Raises:
            JobError: It tells classes, or so much is to be written that nothing could be read.
        """
        model = self.predictor.model
        if not model.writes:
            raise JobError(
                f"{model.run} tells classes and writes no text; `triskel predict {model.run} -` "
                "tells the class of each line"
            )
        self.predictor.beyond(())

    @property
    def remembers(self) -> bool:
        """Whether a line is answered behind what was said before."""
        model = self.predictor.model
        return model.task.layout(model.job.data) == CHAT

    def answer(self, line: str, told: Told | None = None) -> tuple[Prediction, int]:
        """Return the answer to a line, and how many of the oldest turns were forgotten for it.

        What is interrupted was not said.

        Args:
            line: What is asked.
            told: Told of the answer piece by piece.

        Raises:
            JobError: A line is not all that a prompt needs, or nothing can be read before so many
                new tokens.
            DataError: The line has no token.
        """
        predictor = self.predictor
        rows = predictor.read(predictor.named([line]), "the chat")
        before = list(self.turns)
        found = predictor.prompts(rows, before)
        while before and predictor.beyond(found.ids[0]):
            del before[0]
            found = predictor.prompts(rows, before)
        if not found.ids[0]:
            raise JobError("the line has no token that the model could go on from; write another")
        (made,) = predictor.write(found, [0], told, numbers=[self.lines])
        gone = len(self.turns) - len(before)
        self.lines += 1
        if self.remembers:
            self.turns = [*before, (line, made.answer or "")]
        return made, gone

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = []
