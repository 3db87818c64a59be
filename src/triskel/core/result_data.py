"""Who holds what, and what of it is not read: the table `data` of `result.json`."""

from typing import NotRequired  # pydantic takes these before Python 3.12

from typing_extensions import TypedDict


class LostTexts(TypedDict):
    """What of texts is not read: texts cut or left out, tokens, texts left out; `of` all tokens."""

    texts: int
    tokens: int
    rows: int
    of: int


class LostByShare(LostTexts):
    """What of a client's texts is not read, all together and share by share."""

    train: NotRequired[LostTexts]
    test: NotRequired[LostTexts]


class Held(TypedDict):
    """How many texts a client holds, once they are tokens; `words` is the mean of a training text.

    `lost` is what of its texts did not fit.
    """

    train: int
    test: int
    labels: NotRequired[dict[str, int]]
    words: NotRequired[float]
    lost: NotRequired[LostByShare]


class Data(TypedDict):
    """Who holds what."""

    classes: list[str]
    public: int
    drawn_by: NotRequired[str]
    validation: NotRequired[int]
    public_lost: NotRequired[LostTexts]
    clients: dict[str, Held]
