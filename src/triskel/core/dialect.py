"""How a file is written: what divides its cells, its encoding, and whether it has a header.

Each is found by looking where nobody says it.
"""

import codecs
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

TABS = ("\\t", "tab")
"""How else a tab is written, where a shell would eat it."""


def _delimiter(given: str) -> str:
    divide = "\t" if given in TABS else given
    if len(divide) > 1 or divide in {'"', "\n", "\r", "\0"}:
        raise ValueError(
            f'must be the one character between cells, such as ";" or "\\t", got {given!r}'
        )
    return divide


def _encoding(given: str) -> str:
    try:
        if given:
            "".encode(codecs.lookup(given).name)  # what is no encoding of texts refuses
    except (LookupError, ValueError):
        raise ValueError(
            "must be the name of a text encoding, such as utf-8, utf-16, latin-1, cp1252 or "
            f"shift_jis, got {given!r}"
        ) from None
    return given


Delimiter = Annotated[str, AfterValidator(_delimiter)]
"""The character between cells of CSV; empty: found by looking."""
Encoding = Annotated[str, AfterValidator(_encoding)]
"""The name of a text encoding, as Python knows it; empty: found by looking."""


@dataclass(frozen=True)
class Dialect:
    """How files are written, as far as that is said.

    Attributes:
        delimiter: The character between cells of CSV; empty: found by looking.
        encoding: The name of a text encoding; empty: found by looking.
        header: Whether a table begins with the names of its columns; None: it does, unless columns
            are named by number.
    """

    delimiter: str = ""
    encoding: str = ""
    header: bool | None = None
