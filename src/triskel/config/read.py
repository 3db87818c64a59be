"""Jobs read from TOML and written as TOML: overrides, paths, and what is wrong in one sentence.

`load` reads a job file, applies `section.key=value` overrides and returns a frozen `Job`. For a key
that there is not, the error names the nearest that there is.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tomli_w
from pydantic import BaseModel, ValidationError

from triskel.config.job import ALONE, ALSO, Job
from triskel.config.names import IMPORTS, client_section, mode_section
from triskel.config.sections import FILES, Clients, Override
from triskel.core.faults import Fault
from triskel.core.registry import MODES
from triskel.core.untrusted import TOML_MOST, text_of, toml_of
from triskel.errors import JobError, PluginError

MOVABLE = ("train", "test", "public")
"""Keys of `data` that say where files lie."""
_TRIED = re.compile(r"tuple\[|function-|constrained-")
"""How pydantic calls one of several types of a value."""
LONGEST_SHOWN = 80
"""Characters of a value that an error repeats."""

DEMO = """
rounds = 3
[adapter]
blocks = "top:4"
[clients]
examples = 70
test_examples = 70
[train]
epochs = 2
lr = 4e-3
[logits]
public = 35
"""
"""What runs without a job file: the built-in texts, few enough for ten minutes on two cores.

Where a processor is too slow for it, `demo` makes it smaller.
"""


def load(
    path: Path | None, overrides: Sequence[str] = (), *, imports: Collection[str] | None = None
) -> Job:
    """Read a job file; without one, the demonstration.

    Args:
        path: A TOML file; relative paths inside it are relative to its folder.
        overrides: `section.key=value` pairs, applied in order; values are TOML or bare words.
        imports: As of `parse`.

    Raises:
        JobError: The file is missing, is not TOML, or does not describe a job that can run.
    """
    if path is None:
        return parse(DEMO, overrides=overrides, where="the demonstration")
    text = _text(path)
    base = path.resolve().parent
    return parse(text, overrides=overrides, where=str(path), base=base, imports=imports)


def _text(path: Path) -> str:
    try:
        return text_of(path.resolve(), most=TOML_MOST)  # a link to a job file is as good
    except FileNotFoundError:
        raise JobError(f"job file {path} does not exist; `triskel init` writes one") from None
    except UnicodeDecodeError as error:
        raise JobError(
            f"job file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8, which "
            "PowerShell's `>` does not"
        ) from error
    except (OSError, ValueError) as error:
        raise JobError(f"job file {path} cannot be read: {error}") from error


def parse(
    text: str,
    *,
    overrides: Sequence[str] = (),
    where: str = "job",
    base: Path | None = None,
    imports: Collection[str] | None = None,
) -> Job:
    """Read a job from TOML text.

    Args:
        text: The job.
        overrides: `section.key=value` pairs, applied in order.
        where: What errors call it.
        base: The folder that relative paths are relative to; None leaves them.
        imports: What of other packages may be imported, each as `Registry.key` calls it; what a
            job says of others is kept as it is, which is enough where these are not played. None:
            whatever is named.

    Raises:
        JobError: The text is not TOML, or does not describe a job that can run.
        PluginError: A mode is of a package that is not here, or is broken.
    """
    raw = _table(text, overrides, where)
    try:
        job = Job.model_validate(raw, context={IMPORTS: imports})
    except ValidationError as error:
        _, first = next(_sentences(error))
        raise JobError(f"{where}: {first}") from error
    return job if base is None else _rooted(job, base)


def faults_of(path: Path | None, overrides: Sequence[str] = ()) -> tuple[Job | None, list[Fault]]:
    """Return everything that is wrong with a job file, and the job without that.

    Args:
        path: As of `load`.
        overrides: As of `load`.

    Returns:
        The job, in which what is wrong has its default; None where that makes no job either.
    """
    faults: dict[Fault, None] = {}
    try:
        if path is None:
            job = _mended(_table(DEMO, overrides, "the demonstration"), faults)
            return job, list(faults)
        job = _mended(_table(_text(path), overrides, str(path)), faults)
        if job is not None:
            job = _rooted(job, path.resolve().parent)
    except (JobError, PluginError) as error:
        return None, [*faults, Fault("", str(error))]
    return job, list(faults)


def _table(text: str, overrides: Sequence[str], where: str) -> dict[str, Any]:
    """Return a job's TOML as a table, settings applied.

    Raises:
        JobError: It is not TOML, or a setting is none.
    """
    try:
        raw = toml_of(text)
    except ValueError as error:
        raise JobError(f"{where} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(raw, override)
    return raw


def _mended(raw: dict[str, Any], faults: dict[Fault, None]) -> Job | None:
    """Return a job without what is wrong with it, of which a fault each is noted."""
    job: Job | None = None
    while job is None:
        try:
            job = Job.model_validate(raw, context={IMPORTS: None, ALONE: True})
        except ValidationError as error:
            faults |= dict.fromkeys(Fault(key, text) for key, text in _sentences(error))
            places = {_place(one["loc"]) for one in error.errors()}
            dropped = [_dropped(raw, place) for place in places]
            if not any(dropped):
                return None
    try:
        Job.model_validate(raw, context={IMPORTS: None})
    except ValidationError as error:  # keys that contradict each other
        faults |= dict.fromkeys(Fault(key, text) for key, text in _sentences(error))
    return job


def _place(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return where a key stands; pydantic adds which of several types it tried."""
    return tuple(part for part in loc if part != "str" and not _TRIED.match(str(part)))


def _dropped(raw: dict[str, Any], place: Sequence[str | int]) -> bool:
    """Take a key out of a table; return whether it was there."""
    for depth in range(len(place), 0, -1):
        table: Any = raw
        for key in place[: depth - 1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and place[depth - 1] in table:
            del table[place[depth - 1]]
            return True
    return False


def moved(job: Job, overrides: Sequence[str]) -> Job:
    """Return a job whose data lie elsewhere than when it was read.

    Args:
        job: The job of a run.
        overrides: `section.key=value` pairs; paths are relative to the current folder.

    Raises:
        JobError: A pair says anything else.
    """
    if not (files := places_in(overrides)):
        return job
    here = {key: str(Path(place).expanduser().resolve()) for key, place in files.items()}
    return job.model_copy(update={"data": job.data.model_copy(update=here)})


def rounds_in(overrides: Sequence[str]) -> tuple[int | None, list[str]]:
    """Return how many rounds pairs give a run that goes on, and the other pairs.

    >>> rounds_in(["rounds=6", "data.train=a.csv"])
    (6, ['data.train=a.csv'])

    Raises:
        JobError: It is no number of rounds.
    """
    rounds: int | None = None
    others: list[str] = []
    for override in overrides:
        parts, value = setting_of(override)
        if parts != ("rounds",):
            others.append(override)
        elif type(value) is int and value > 0:
            rounds = value
        else:
            raise JobError(f"rounds must be a whole number above 0, got {override!r}")
    return rounds, others


def places_in(overrides: Sequence[str]) -> dict[str, str]:
    """Return where pairs say that data lie, by keys of `data`.

    Raises:
        JobError: A pair says anything else.
    """
    files: dict[str, str] = {}
    for override in overrides:
        parts, value = setting_of(override)
        if parts[:-1] != ("data",) or parts[-1] not in MOVABLE or not isinstance(value, str):
            raise JobError(
                "a run that goes on, or is evaluated, may only be told where its data lie: "
                f"{', '.join(f'data.{key}' for key in MOVABLE)} (one that goes on also how many "
                f"rounds it shall have: rounds); got {override!r}"
            )
        files[parts[-1]] = value
    return files


def dump(job: Job) -> dict[str, Any]:
    """Return the job as JSON values, defaults included."""
    return cast("dict[str, Any]", json.loads(job.model_dump_json(exclude_none=True)))


def to_toml(job: Job) -> str:
    """Return the job as TOML, defaults included; `parse` reads it back to an equal job."""
    return tomli_w.dumps(dump(job))


def setting_of(override: str) -> tuple[tuple[str, ...], object]:
    """Return the key that a `section.key=value` pair names, in parts, and its value.

    >>> setting_of("split.cut=[4, 28]"), setting_of("adapter.blocks=top:2")
    ((('split', 'cut'), [4, 28]), (('adapter', 'blocks'), 'top:2'))

    Raises:
        JobError: It is no such pair.
    """
    key, equals, value = override.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise JobError(f"a setting is section.key=value, got {override!r}")
    try:
        found = toml_of(f"value = {value}")
    except tomllib.TOMLDecodeError:
        found = {"value": value.strip()}
    if set(found) != {"value"}:
        raise JobError(f"a setting is one section.key=value at a time, got {override!r}")
    return parts, found["value"]


def _apply(raw: dict[str, Any], override: str) -> None:
    parts, parsed = setting_of(override)
    place = raw
    for part in parts[:-1]:
        below = place.setdefault(part, {})
        if not isinstance(below, dict):
            raise JobError(f"setting {override!r}: {part!r} is a value, not a section")
        place = cast("dict[str, Any]", below)
    place[parts[-1]] = parsed


def _rooted(job: Job, base: Path) -> Job:
    """Return the job with paths that exist relative to `base` made absolute."""

    def find(value: str, *, always: bool) -> str:
        there = base / value
        try:
            if not value or Path(value).is_absolute() or not (always or there.exists()):
                return value
            return str(there.resolve())
        except (OSError, ValueError) as error:  # too long, or with a zero byte
            raise JobError(f"{value[:LONGEST_SHOWN]!r} is no path: {error}") from error

    local = job.data.source in {*FILES, "clients"}
    files = {key: find(cast("str", getattr(job.data, key)), always=local) for key in MOVABLE}
    each = {
        name: e if e.model is None else e.model_copy(update={"model": find(e.model, always=False)})
        for name, e in job.clients.each.items()
    }
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=files) if local else job.data,
            "model": job.model.model_copy(update={"path": find(job.model.path, always=False)}),
            "adapter": job.adapter.model_copy(
                update={"start": find(job.adapter.start, always=True)}
            ),
            "clients": job.clients.model_copy(update={"each": each}),
        }
    )


def _sentences(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Yield the key of each thing that is wrong, and what it is."""
    for one in error.errors():
        key, text = ".".join(map(str, _place(one["loc"]))), _sentence(one)
        yield from ((key, problem) for problem in text.split(ALSO))


def _sentence(first: Any) -> str:  # noqa: ANN401 - pydantic's
    place = [str(part) for part in _place(first["loc"])]
    key, got = ".".join(place), first.get("input")
    if first["type"] == "extra_forbidden":
        known = _known(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        if len(place) == 1 and isinstance(got, Mapping) and not near:
            hint += (
                "; a mode of another package must be installed beside Triskel (`triskel plugins`)"
            )
        return f"unknown key {key!r}; {hint}"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key} {text}" if key else text
    return f"{key}: {text[0].lower()}{text[1:]}, got {got!r}"


def _known(place: Sequence[str]) -> list[str]:
    """Return the keys that there are at a place of the job."""
    part: type[BaseModel] = Job
    for depth, name in enumerate(place):
        if part is Clients and name == "each":
            within = client_section(place[-1]) if len(place) > depth + 2 else None
            return sorted(
                within.model_fields if within else {*Override.model_fields, *_short_keys()}
            )
        field = part.model_fields.get(name)
        inner = (
            field.annotation if field is not None else mode_section(name) if part is Job else None
        )
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        part = inner
    modes = MODES.names() if part is Job else ()
    return sorted({*part.model_fields, *modes})


def _short_keys() -> set[str]:
    return {key for spec in MODES.built_in() for key in spec.short_client_keys}
