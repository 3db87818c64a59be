"""The codecs of a job in words, as a result holds them."""

from collections.abc import Mapping
from typing import cast

from triskel.report.result import Json, inner

PLAIN = "fp32"


def codecs(job: Json) -> str:
    """Return how floats travelled, in both directions.

    >>> codecs({"wire": {"up": {"name": "topk", "share": 0.02}, "down": "bf16"}})
    'up topk (share 0.02), down bf16'
    >>> codecs({"wire": {"up": {"adapter": "sign", "other": "fp32"}}})
    'up adapter: sign, other: fp32; down fp32'
    """
    wire = inner(job, "wire")
    up, down = (_words(wire.get(way, PLAIN)) for way in ("up", "down"))
    return f"up {up}{'; ' if ': ' in up else ', '}down {down}"


def _words(told: object) -> str:
    if not isinstance(told, Mapping):
        return str(told)
    table = cast("Json", told)
    if "name" not in table:
        return ", ".join(f"{section}: {_words(one)}" for section, one in table.items())
    more = [f"{key} {_value(value)}" for key, value in table.items() if key != "name"]
    return f"{table['name']} ({', '.join(more)})" if more else str(table["name"])


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
