"""Settings to try: the product of the values that each key is given, as jobs with names.

    --set train.lr=1e-3,2e-3 --set adapter.rank=2,8        four settings, the last key fastest

Values are TOML, or words without quotes, and stand between commas. A comma inside brackets, braces
or quotes belongs to a value: `split.cut=[4,28],[10,25]` are two.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from triskel.config.job import Job
from triskel.config.ranges import range_of
from triskel.config.read import load, setting_of
from triskel.errors import JobError

LONGEST = 100
"""Characters of a name; a longer one is cut and told apart by a hash."""
OPENING, CLOSING = "[{", "]}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the settings.

    Attributes:
        name: What it sets, safe as the name of a folder.
        set: Value by key.
        job: The job with these values.
    """

    name: str
    set: Mapping[str, object]
    job: Job


def values_of(text: str) -> list[str]:
    """Return the values in a list, split at commas outside brackets, braces and quotes.

    >>> values_of('[4,28],[10,25]'), values_of('"a,b",c'), values_of("1e-3")
    (['[4,28]', '[10,25]'], ['"a,b"', 'c'], ['1e-3'])
    """
    found, depth, quote = [""], 0, ""
    for place, sign in enumerate(text):
        if quote:
            escaped = quote == '"' and _backslashes(text[:place]) % 2
            quote = "" if sign == quote and not escaped else quote
        elif sign in "\"'" and (depth or not found[-1].strip()):
            quote = sign
        elif sign == "," and not depth:
            found.append("")
            continue
        else:
            depth += (sign in OPENING) - (sign in CLOSING)
        found[-1] += sign
    return [value.strip() for value in found]


def _backslashes(text: str) -> int:
    return len(text) - len(text.rstrip("\\"))


def settings_of(path: Path | None, given: Sequence[str]) -> tuple[Job, tuple[Setting, ...]]:
    """Return a job, and its settings: the product of the values given for each key.

    Keys with one value are part of the job, and of no name, unless there are no others.

    Args:
        path: A job file; the demonstration if left out.
        given: `section.key=value,value` texts, one a key.

    Raises:
        JobError: A text is no such list, a key or a value stands twice, or a job cannot run.
    """
    lists = lists_of(given)
    if not lists:
        raise JobError("there is nothing to sweep over; give --set SECTION.KEY=VALUE,VALUE")
    fixed = [pairs[0] for pairs in lists.values() if len(pairs) == 1]
    for name, pairs in lists.items():
        if any(range_of(pair.partition("=")[2]) for pair in pairs):
            raise JobError(
                f"--set {name} gives a range; say how many settings to draw from it: --samples 16"
            )
    varied = [pairs for pairs in lists.values() if len(pairs) > 1] or [[pair] for pair in fixed]
    job = load(path, fixed)
    chosen = list(itertools.product(*varied))
    sets = [{".".join(key): value for key, value in map(setting_of, pairs)} for pairs in chosen]
    named = zip(names_of(sets), sets, chosen, strict=True)
    return job, tuple(
        Setting(name=name, set=values, job=load(path, [*fixed, *pairs]))
        for name, values, pairs in named
    )


def lists_of(given: Sequence[str]) -> dict[str, list[str]]:
    """Return `key=value` pairs by key."""
    found: dict[str, list[str]] = {}
    for text in given:
        key, _, listed = text.partition("=")
        pairs = [f"{key}={value}" for value in values_of(listed)] if "=" in text else [text]
        parts = [setting_of(pair) for pair in pairs]
        name = ".".join(parts[0][0])
        if any(not pair.partition("=")[2] for pair in pairs):
            raise JobError(f"--set {text!r} has an empty value; give {name}=VALUE,VALUE")
        if name in found:
            raise JobError(f"--set names {name} twice; give all its values in one: {name}=A,B")
        told = Counter(_canonical(value) for _, value in parts)
        if twice := [value for value, count in told.items() if count > 1]:
            raise JobError(f"--set {text!r} has {twice[0]} twice; give each value once")
        found[name] = pairs
    return found


def names_of(sets: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Return names that differ, upper and lower case alike."""
    plain = [",".join(f"{key}={_told(value)}" for key, value in one.items()) for one in sets]
    safe = [re.sub(r"[^\w.=,+-]+", "-", name) for name in plain]
    taken = Counter(name.casefold() for name in safe)
    for name, one in zip(safe, sets, strict=True):
        if taken[name.casefold()] == 1 and len(name) <= LONGEST:
            yield name
        else:
            digest = hashlib.sha256(_canonical(one).encode()).hexdigest()[:8]
            yield f"{name[: LONGEST - 9]}-{digest}"


def _told(value: object) -> str:
    if isinstance(value, list):
        return "-".join(map(str, cast("list[object]", value)))
    return value if isinstance(value, str) else _canonical(value)


def _canonical(value: object) -> str:
    return json.dumps(value, default=str)
