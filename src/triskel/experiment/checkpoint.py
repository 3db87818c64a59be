"""States on disk: written whole or not at all, read with suspicion, never pickled.

A checkpoint is one safetensors file: tensors by `part/group/name`, those of sections by
`part/group/section/name`, and in its metadata the facts as JSON with a SHA-256 over all of it. It
is written beside its place, flushed, and renamed, so a kill at any moment leaves the last whole
one. The last two rounds are kept. What clients keep is not in it: it names the file of
`client_store` that counts for each of them.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triskel.core.crash import during
from triskel.core.files import drop, flush
from triskel.core.untrusted import json_of, safetensors_at
from triskel.errors import CheckpointError
from triskel.types import ClientId, Section

KEPT = 2
FORMAT = 3
SECTIONS = "#sections"
"""After the name of a field that holds sections: a fact with the kind and the facts of each."""
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filed:
    """Which file holds what a client keeps.

    Attributes:
        round: The round that left it.
        sha256: Of the whole file.
    """

    round: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        closed: Rounds that are closed.
        state: The server's state, as `freeze` made it.
        clients: Which file holds what each client keeps; those that keep nothing are left out.
        rows: What the closed rounds cost and reached, as JSON values.
    """

    closed: int
    state: "Frozen"
    clients: Mapping[ClientId, Filed]
    rows: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A state as named tensors and JSON facts."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def freeze(state: object, prefix: str = "") -> Frozen:
    """Return a frozen dataclass as tensors and facts; fields marked `open` are left out."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for field in fields(cast("Any", state)):
        value, name = getattr(state, field.name), f"{prefix}{field.name}"
        if field.metadata.get("open"):
            continue
        if is_dataclass(value):
            inner = freeze(value, f"{name}.")
            tensors |= inner.tensors
            facts |= inner.facts
        elif _holds(value, Tensor):
            group = cast("Mapping[str, Tensor]", value)
            tensors |= {f"{name}/{key}": t for key, t in group.items()}
        elif _holds(value, Section):
            parts = cast("Mapping[str, Section]", value)
            facts[f"{name}{SECTIONS}"] = [[key, _told(one)] for key, one in parts.items()]
            for key, one in parts.items():
                tensors |= {f"{name}/{key}/{n}": t for n, t in one.tensors.items()}
        else:
            facts[name] = value
    return Frozen(tensors=tensors, facts=facts)


def thaw(like: S, frozen: Frozen, prefix: str = "") -> S:
    """Return the state that `freeze` was given; `like` is any state of the same kind.

    Raises:
        CheckpointError: The facts do not belong to such a state.
    """
    found: dict[str, Any] = {}
    for field in fields(cast("Any", like)):
        name = f"{prefix}{field.name}"
        if field.metadata.get("open"):
            continue
        value = getattr(like, field.name)
        if is_dataclass(value):
            found[field.name] = thaw(value, frozen, f"{name}.")
            continue
        group = _under(frozen.tensors, f"{name}/")
        if (told := frozen.facts.get(f"{name}{SECTIONS}")) is not None:
            found[field.name] = {key: _section(one, group, key) for key, one in told}
        elif group:
            found[field.name] = group
        elif name in frozen.facts:
            found[field.name] = frozen.facts[name]
        else:
            raise CheckpointError(f"checkpoint lacks {name!r}; it belongs to another version")
    return replace(cast("Any", like), **found)


def _holds(value: object, kind: type) -> bool:
    """Return whether a value is a mapping to things of a kind."""
    found = cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else ()
    return any(isinstance(one, kind) for one in found)


def _told(section: Section) -> dict[str, Any]:
    facts = [[name, fact] for name, fact in section.facts.items()]  # JSON may sort names
    return {"kind": section.kind, "codec": list(section.codec), "facts": facts}


def _section(told: Any, group: Mapping[str, Tensor], key: str) -> Section:  # noqa: ANN401 - JSON
    """Return a section that `freeze` took apart.

    Raises:
        CheckpointError: What the checkpoint says of it is no section.
    """
    try:
        return Section(
            kind=told["kind"],
            codec=tuple(told["codec"]),
            facts=dict(told["facts"]),
            tensors=_under(group, f"{key}/"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint has no section {key!r}: {error}") from error


@during("while writing a checkpoint")
def write(folder: Path, saved: Saved) -> Path:
    """Write a checkpoint, then drop all but the last two.

    Raises:
        CheckpointError: The disk is full or not writable; the last checkpoint stays.
    """
    tensors = {f"server/{name}": t for name, t in saved.state.tensors.items()}
    facts = {
        "closed": saved.closed,
        "state": dict(saved.state.facts),
        "clients": {c: [filed.round, filed.sha256] for c, filed in saved.clients.items()},
        "rows": saved.rows,
        "order": list(tensors),  # safetensors sorts names; a resumed run must not
    }
    text = json.dumps(facts, sort_keys=True)
    owned = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    owned = owned or {"empty": torch.zeros(0)}
    metadata = {"format": str(FORMAT), "facts": text, "sha256": _digest(owned, text)}
    place = folder / f"round-{saved.closed:06d}.safetensors"
    part = place.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(owned, part, metadata=metadata)
        flush(part)
        part.replace(place)
        flush(folder)
    except (OSError, SafetensorError) as error:
        drop(part)
        raise CheckpointError(
            f"checkpoint {place} cannot be written: {error}; free some space and resume the run"
        ) from error
    for old in _all(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return place


def _sound(_saved: Saved) -> None:
    """Find nothing wrong."""


def read(folder: Path, check: Callable[[Saved], None] = _sound) -> Saved | None:
    """Return the last checkpoint of a folder, or None where there is none.

    A damaged last one is passed over for the one before it.

    Args:
        folder: Where the checkpoints are.
        check: Raises a `CheckpointError` where something that a checkpoint names is damaged.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    damage: CheckpointError | None = None
    for place in reversed(_all(folder)):
        try:
            saved = _read(place)
            check(saved)
        except CheckpointError as error:
            damage = damage or error
        else:
            return saved
    if damage is not None:
        raise damage
    return None


def named(folder: Path) -> list[Mapping[ClientId, Filed]]:
    """Return the files that each checkpoint on disk names; one that cannot be read names none."""
    found: list[Mapping[ClientId, Filed]] = []
    for place in _all(folder):
        with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
            with safe_open(safetensors_at(place), framework="pt") as file:
                facts = json_of(cast("dict[str, str]", file.metadata())["facts"])
            found.append(_filed(facts))
    return found


def _read(place: Path) -> Saved:
    try:
        with safe_open(safetensors_at(place), framework="pt") as file:
            metadata = cast("dict[str, str]", file.metadata() or {})
            tensors = {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata["format"] != str(FORMAT):
            raise CheckpointError(
                f"checkpoint {place} has format {metadata['format']}, this version reads {FORMAT}"
            )
        text = metadata["facts"]
        if metadata["sha256"] != _digest(tensors, text):
            raise CheckpointError(f"checkpoint {place} is damaged: its SHA-256 does not match")
        facts = json_of(text)
        tensors = {name: tensors[name] for name in facts["order"]}
        return Saved(
            closed=facts["closed"],
            state=Frozen(tensors=_under(tensors, "server/"), facts=facts["state"]),
            clients=_filed(facts),
            rows=facts["rows"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {place} is damaged: {error}") from error


def _filed(facts: Mapping[str, Any]) -> dict[ClientId, Filed]:
    return {c: Filed(round=r, sha256=sha) for c, (r, sha) in facts["clients"].items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"round-\d{6}\.safetensors", p.name))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
