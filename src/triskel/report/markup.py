"""Text into HTML and into Plotly: whatever comes from data is escaped here and nowhere else."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

UNIT = re.compile(r"(\d) (%|B\b|[kMGT]B\b|s\b|ms\b|min\b|h\b|of \d)")

Figure = Mapping[str, Any]
"""A Plotly figure as plain JSON: `data`, `layout` and our own `height`."""


def text(value: object) -> str:
    """Escape a value for HTML text and attributes.

    >>> text('<b a="1">')
    '&lt;b a=&quot;1&quot;&gt;'
    """
    return escape(str(value), quote=True)


def bound(sentence: str) -> str:
    r"""Escape a sentence, and keep a number and its unit on one line.

    >>> bound("150 MB up, 98 % of it")
    '150\xa0MB up, 98\xa0% of it'
    """
    return UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text(sentence))


def shortened(value: object, limit: int = 40) -> str:
    """Return a name on one line, cut when it is too long to lay out; not escaped yet.

    >>> shortened(" a  b "), shortened("x" * 50, 5), shortened("")
    ('a b', 'xxxx…', '(empty)')
    """
    flat = " ".join(str(value).split()) or "(empty)"
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def label(value: object, limit: int = 28) -> str:
    """Escape a value for Plotly, which reads tags in every text, and shorten it.

    >>> label("<i>shop</i>"), label("x" * 40, 5)
    ('&lt;i&gt;shop&lt;/i&gt;', 'xxxx…')
    """
    return escape(shortened(value, limit), quote=False)


def script_json(value: object) -> str:
    r"""Write JSON that may stand inside a script element: no tag can end it.

    >>> script_json({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cell(value: str, title: str = "", *, tag: str = "td") -> str:
    """Return a table cell of escaped text, its exact value in the title."""
    hint = f' title="{text(title)}"' if title else ""
    return f"<{tag}{hint}>{text(value)}</{tag}>"


def table(caption: str, head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table of escaped text; the first column names the row.

    The caption is for readers who cannot see the place it stands in.
    """
    columns = "".join(f'<th scope="col">{text(shortened(name))}</th>' for name in head)
    lines = "".join(
        f"<tr>{_naming(first)}{''.join(cell(c) for c in rest)}</tr>" for first, *rest in body
    )
    return scrolling(
        caption,
        f'<table><caption class="unseen">{text(caption)}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{lines}</tbody></table>",
    )


def _naming(name: str) -> str:
    short = shortened(name, 60)
    hint = f' title="{text(name)}"' if short != name else ""
    return f'<th scope="row"{hint}>{text(short)}</th>'


def scrolling(caption: str, inside: str) -> str:
    """Let a wide table scroll by itself, reachable from the keyboard."""
    name = text(caption)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{inside}</div>'


def folded(summary: str, inside: str, kind: str = "") -> str:
    """Return a part that opens on demand."""
    return f'<details class="{kind}"><summary>{text(summary)}</summary>{inside}</details>'


def figure(name: str, title: str, alt: str, note: str = "", numbers: str = "") -> str:
    """Return the place of a figure; the script draws it from the JSON of the same name."""
    caption = (
        f"<figcaption><h3>{text(title)}</h3>{f'<p>{text(note)}</p>' if note else ''}</figcaption>"
    )
    plot = f'<div class="plot" id="{name}" role="img" aria-label="{text(alt)}"></div>'
    data = folded("The numbers", numbers, "numbers") if numbers else ""
    return f"<figure>{caption}{plot}{data}</figure>"
