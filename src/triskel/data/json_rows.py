"""JSON as columns by name: an object a line, an array of objects, or an object that holds one."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from triskel.errors import DataError


class _Twice(dict[str, object]):
    """An object of JSON in which a key stands twice.

    Attributes:
        name: The key.
    """

    name: str


def records_from(
    text: str, wanted: Collection[str] | None, *, where: str
) -> dict[str, Sequence[object]]:
    """Return objects of JSON as columns by name; what one lacks is None.

    Args:
        text: The file's text.
        wanted: Names of the columns that are needed, where they are known; they tell a file of one
            row from an object that holds rows.
        where: Name of the file, for errors.

    Raises:
        DataError: It is not JSON, not made of objects, or a key stands twice in one.
    """
    start = text.lstrip()[:1]
    if start == "[":
        return _columns(_entries(_parsed(text, where), where), where)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if start == "{" and (len(lines) == 1 or not _whole(lines[0][1])):
        found = _held(text, wanted, where)
        if found is not None:
            return _columns(found, where)
    return _columns(
        [(f"line {number}", _parsed(line, f"{where} line {number}")) for number, line in lines],
        where,
    )


def _entries(records: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(records, list):
        raise DataError(f"{where} holds no array of JSON objects")
    return [(f"entry {n}", one) for n, one in enumerate(cast("list[object]", records), 1)]


def _held(text: str, wanted: Collection[str] | None, where: str) -> list[tuple[str, object]] | None:
    """Return the rows that an object holds under a key; None where it is a row, or no object."""
    try:
        parsed = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None  # reading its lines says more
    if not isinstance(parsed, dict):
        return None
    one = cast("dict[str, object]", parsed)
    if isinstance(one, _Twice):
        raise DataError(f"{where} has the key {one.name!r} twice in one object; rename one of them")
    if wanted and set(wanted) <= one.keys():
        return None
    keys = [
        key
        for key, value in one.items()
        if isinstance(value, list)
        and value
        and all(isinstance(entry, dict) for entry in cast("list[object]", value))
    ]
    if len(keys) > 1:
        raise DataError(
            f"{where} is an object with rows under several keys ({', '.join(keys)}); save the one "
            "that is meant as an array"
        )
    if not keys:
        return None
    rows = cast("list[object]", one[keys[0]])
    return [(f"{keys[0]} entry {number}", row) for number, row in enumerate(rows, 1)]


def _columns(records: list[tuple[str, object]], where: str) -> dict[str, Sequence[object]]:
    names: dict[str, None] = {}
    objects: list[Mapping[str, object]] = []
    for place, record in records:
        if isinstance(record, _Twice):
            raise DataError(
                f"{where} {place} has the key {record.name!r} twice; rename or remove one of them"
            )
        if not isinstance(record, dict):
            raise DataError(f"{where} {place} is not a JSON object with columns by name")
        named = cast("dict[str, object]", record)
        names.update(dict.fromkeys(named))
        objects.append(named)
    return {name: [record.get(name) for record in objects] for name in names}


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = _Twice(found)
    twice.name = next(key for key, _ in pairs if key in seen or seen.add(key))
    return twice


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise DataError(f"{where} is not JSON with columns: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None


def _whole(text: str) -> bool:
    """Return whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
