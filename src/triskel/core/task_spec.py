"""What a task is to everybody but who lays out its texts: a value, which imports no torch.

A task says which columns its rows have, how they become tokens and targets, what is made small, and
by which figure rows are ranked. A task of another package is one more value.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triskel.core.mode_spec import NAME

_WORD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Filled:
    """A text with columns in it, row by row.

    Attributes:
        parts: What stands before a column, and the column's name, one after the other.
        tail: What stands after the last.
    """

    parts: tuple[tuple[str, str], ...]
    tail: str = ""


Column = str | Sequence[str] | Filled
"""Where the text of a role is: in a column, in several one below the other, or within a text."""


def joined(columns: str | Sequence[str]) -> str | Filled:
    """Return one column as it is, and several as a text with each on a line of its own.

    >>> names_of(joined(["title", "body"])), joined("text")
    (('title', 'body'), 'text')
    """
    if isinstance(columns, str):
        return columns
    return Filled(tuple(("\n" if place else "", name) for place, name in enumerate(columns)))


def names_of(column: Column) -> tuple[str, ...]:
    """Return the columns that the text of a role is made of.

    >>> names_of("text"), names_of(["title", "body"])
    (('text',), ('title', 'body'))
    """
    if isinstance(column, Filled):
        return tuple(name for _, name in column.parts)
    return (column,) if isinstance(column, str) else tuple(column)


def words_in(template: str) -> list[str]:
    """Return the words that a template has in braces; one in two pairs of braces is a text.

    >>> words_in("{prompt} ({input}), not {{this}}")
    ['prompt', 'input']
    """
    return [found[2] for found in _WORD.finditer(template) if found[2]]


def around(template: str, word: str) -> tuple[str, str]:
    """Return what stands before and after a word in braces; all and nothing where it is not there.

    >>> around("{{x}} is {x}.", "x")
    ('{{x}} is ', '.')
    """
    for found in _WORD.finditer(template):
        if found[2] == word:
            return template[: found.start()], template[found.end() :]
    return template, ""


def filled(template: str, columns: Mapping[str, str | Sequence[str]]) -> Filled:
    """Return a template with a column, or several, in the place of each word in braces.

    Args:
        template: A text.
        columns: By word; any other word is the name of a column itself.
    """
    parts: list[tuple[str, str]] = []
    before, end = "", 0
    for found in _WORD.finditer(template):
        before += template[end : found.start()]
        end = found.end()
        if found[1]:
            before += f"{{{found[1]}}}"
            continue
        for place, name in enumerate(names_of(columns.get(found[2], found[2]))):
            parts.append(("\n" if place else before, name))
        before = ""
    return Filled(tuple(parts), before + template[end:])


Head = Literal["classes", "vocabulary"]
"""What a model ends with: a fresh head over the job's classes, one prediction a text; or its own
head over the vocabulary, frozen, a prediction at every scored token."""
Figure = Literal["accuracy", "perplexity"]
"""What rows are ranked by: the share that is right, or the exponential of the mean loss."""


def _nothing(_data: Any) -> Iterator[Any]:  # noqa: ANN401 - the section `data`
    yield from ()


def _plain(_data: Any) -> str:  # noqa: ANN401 - the section `data`
    return ""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One thing to learn from texts.

    Attributes:
        name: Lower-case letters, digits and `_`: a value of `data.task`, the name of the entry
            point where it is of another package.
        gloss: In a few words, what is learnt.
        head: What the model must end with.
        figure: What rows are ranked by; perplexity is for tasks over the vocabulary.
        algorithm: `package.module:Class`, imported when texts are read. The class is a
            `data.text.Task`, made without arguments.
        columns: Of the section `data`: which column plays which role in a row, label and owner left
            out. Roles are `text`, `prompt` and `response`; several columns may play one.
        labelled: Whether rows must have a label.
        problems: What is missing in the section `data`, as sentences.
        unread: Keys of the section `data` that would not be read, each with the reason.
        layout: How prompt and response are laid out, for whoever prompts the trained model: a text
            with `{prompt}` and `{response}`, `chat`, or empty where there are none.
        max_tokens: How long texts are where a job does not say (`train.max_tokens`); 0 where it
            must, as texts that are cut would teach another thing.
    """

    name: str
    gloss: str
    head: Head
    figure: Figure
    algorithm: str
    columns: Callable[[Any], Mapping[str, Column]]
    labelled: bool = False
    problems: Callable[[Any], Iterator[str]] = _nothing
    unread: Callable[[Any], Iterator[tuple[str, str]]] = _nothing
    layout: Callable[[Any], str] = _plain
    max_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse what nobody could name or rank.

        Raises:
            ValueError: A name or a figure is not what it must be.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a task must match {NAME.pattern}, got {self.name!r}")
        if self.figure == "perplexity" and self.head == "classes":
            raise ValueError(f"task {self.name}: classes are ranked by accuracy, not by perplexity")
