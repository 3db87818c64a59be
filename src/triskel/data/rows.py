"""Texts as columns of equal length, before they are tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
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
        lengths = {len(column) for column in self._columns() if column}
        if len(lengths) > 1:
            raise ValueError(f"columns must be equally long or empty, got {sorted(lengths)} rows")

    def __len__(self) -> int:
        """Return the number of rows."""
        return max(map(len, self._columns()))

    def take(self, indices: Iterable[int]) -> Self:
        """Return the named rows, in the order named.

        >>> Rows(text=("a", "b", "c")).take([2, 0]).text
        ('c', 'a')
        """
        chosen = list(indices)
        text, label, prompt, response, group = (
            tuple(column[i] for i in chosen) if column else () for column in self._columns()
        )
        return type(self)(text=text, label=label, prompt=prompt, response=response, group=group)

    def without(self, *names: str) -> Self:
        """Return the same rows with the named columns emptied."""
        kept = {name: column for name, column in self._named() if name not in names}
        return type(self)(**kept)

    def strata(self, *names: str) -> dict[tuple[str, ...], list[int]]:
        """Return row numbers by their values in the named columns, sorted by value.

        A column that is empty counts as one value, the empty string.

        >>> Rows(text=("a", "b", "c"), label=("x", "y", "x")).strata("label")
        {('x',): [0, 2], ('y',): [1]}
        """
        named = dict(self._named())
        columns = [named[name] or ("",) * len(self) for name in names]
        found: dict[tuple[str, ...], list[int]] = {}
        for number in range(len(self)):
            found.setdefault(tuple(column[number] for column in columns), []).append(number)
        return dict(sorted(found.items()))

    def _columns(self) -> tuple[tuple[str, ...], ...]:
        return (self.text, self.label, self.prompt, self.response, self.group)

    def _named(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from zip(
            ("text", "label", "prompt", "response", "group"), self._columns(), strict=True
        )


def join(parts: Sequence[Rows]) -> Rows:
    """Return all rows of `parts` in order; each part must use the same columns."""
    return Rows(
        text=tuple(value for part in parts for value in part.text),
        label=tuple(value for part in parts for value in part.label),
        prompt=tuple(value for part in parts for value in part.prompt),
        response=tuple(value for part in parts for value in part.response),
        group=tuple(value for part in parts for value in part.group),
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
