"""Texts as columns of equal length, before they are tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Examples as text; a column that the task does not use is empty.

    Attributes:
        text: What is classified, or running text to be learnt.
        label: Class name of each row.
        prompt: What is asked, for `causal` with a response.
        response: What is to be answered.
        group: Value of the column `clients.by`, or the silo a row came from.
    """

    text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    response: tuple[str, ...] = ()
    group: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns().values() if column}
        if len(lengths) > 1:
            raise ValueError(f"columns must be equally long or empty, got {sorted(lengths)} rows")

    def __len__(self) -> int:
        """Return the number of rows."""
        return max(map(len, self.columns().values()))

    def columns(self) -> dict[str, tuple[str, ...]]:
        """Return every column by name, empty ones included."""
        return {
            "text": self.text,
            "label": self.label,
            "prompt": self.prompt,
            "response": self.response,
            "group": self.group,
        }

    def take(self, indices: Iterable[int]) -> Self:
        """Return the named rows, in the order named.

        >>> Rows(text=("a", "b", "c")).take([2, 0]).text
        ('c', 'a')
        """
        chosen = list(indices)
        return replace(
            self,
            **{
                name: tuple(column[i] for i in chosen) if column else ()
                for name, column in self.columns().items()
            },
        )

    def strata(self, *names: str) -> dict[tuple[str, ...], list[int]]:
        """Return row numbers by their values in the named columns, sorted by value.

        A column that is empty counts as one value, the empty string.

        >>> Rows(text=("a", "b", "c"), label=("x", "y", "x")).strata("label")
        {('x',): [0, 2], ('y',): [1]}
        """
        columns = [self.columns()[name] or ("",) * len(self) for name in names]
        found: dict[tuple[str, ...], list[int]] = {}
        for number, key in enumerate(zip(*columns, strict=True)):
            found.setdefault(key, []).append(number)
        return dict(sorted(found.items()))


def join(parts: Sequence[Rows]) -> Rows:
    """Return all rows of `parts` in order; each part must use the same columns."""
    return Rows(
        **{
            name: tuple(value for part in parts for value in part.columns()[name])
            for name in Rows().columns()
        }
    )


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a source holds, before anyone owns it.

    Attributes:
        train: Rows to learn from; the public set is still among them when `public` is None.
        test: Rows that are only evaluated on.
        public: Unlabelled rows of `data.public`, or None when they are to be held out of `train`.
        classes: Class names in the order of their index; empty for `causal`.
    """

    train: Rows
    test: Rows
    public: Rows | None
    classes: tuple[str, ...]
