"""Kits: the folders that FLARE makes, one for each party, and what they say of themselves.

`FOLDER/kits/<name>/` holds `startup` (certificate, key, where the server is), `local` (what this
party allows) and `triskel` (what runs there leave). A kit travels to its party's host and works
there by itself, so every command takes a federation's folder or one kit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from triskel.core.untrusted import json_in
from triskel.errors import JobError

Kind = Literal["server", "site", "admin"]
SETTINGS: dict[Kind, str] = {
    "server": "fed_server.json",
    "site": "fed_client.json",
    "admin": "fed_admin.json",
}
"""The file in `startup` that tells what a kit is."""


@dataclass(frozen=True)
class Kit:
    """One party's folder.

    Attributes:
        name: What the federation calls the party.
        kind: Which part it plays.
        path: The folder, absolute.
        host: Where the server is, as this kit knows it.
        port: The server's one port.
    """

    name: str
    kind: Kind
    path: Path
    host: str
    port: int

    @property
    def local(self) -> Path:
        """What this party allows."""
        return self.path / "local"

    @property
    def own(self) -> Path:
        """What Triskel keeps here: the audit log, checkpoints, the list of submitted jobs."""
        return self.path / "triskel"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        JobError: The file is not there, or holds something else.
    """
    try:
        found = json_in(path)
    except (OSError, ValueError) as error:
        raise JobError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise JobError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return cast("dict[str, Any]", found)


def kit_at(path: Path) -> Kit | None:
    """Return the kit in a folder, None where there is none."""
    path = path.resolve()
    for kind, name in SETTINGS.items():
        if (path / "startup" / name).is_file():
            return _described(path, kind, read_json(path / "startup" / name))
    return None


def _described(path: Path, kind: Kind, said: dict[str, Any]) -> Kit:
    try:
        if kind == "admin":
            admin = said["admin"]
            return Kit(admin["username"], kind, path, admin["host"], int(admin["port"]))
        host, _, port = str(said["servers"][0]["service"]["target"]).rpartition(":")
        name = said["client"]["fqsn"] if kind == "site" else "server"
        return Kit(name, kind, path, host, int(port))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise JobError(f"{path / 'startup' / SETTINGS[kind]} is not as FLARE writes it") from error


def kits_in(folder: Path) -> tuple[Kit, ...]:
    """Return the kits of a federation's folder, or the one kit that the folder is; server first.

    Raises:
        JobError: There are none.
    """
    kits = kits_here(folder)
    if not kits:
        raise JobError(
            f"{folder} holds no kit of a federation; `triskel federation new {folder}` makes them"
        )
    return kits


def kits_here(folder: Path) -> tuple[Kit, ...]:
    """Return what `kits_in` does, and nothing where all kits have left for their parties."""
    alone = kit_at(folder)
    if alone is not None:
        return (alone,)
    inside = folder / "kits"
    paths = sorted(inside.iterdir()) if inside.is_dir() else []
    kits = [kit for path in paths if path.is_dir() and (kit := kit_at(path)) is not None]
    order = list(SETTINGS)
    return tuple(sorted(kits, key=lambda kit: (order.index(kit.kind), kit.name)))


def nodes_in(folder: Path, names: Sequence[str] = ()) -> tuple[Kit, ...]:
    """Return the server and sites in a folder, or those named.

    Raises:
        JobError: A name is not there, or the folder holds no node.
    """
    nodes = {kit.name: kit for kit in kits_in(folder) if kit.kind != "admin"}
    unknown = [name for name in names if name not in nodes]
    if unknown or not nodes:
        there = ", ".join(nodes) or "none"
        what = f"no node {', '.join(unknown)}" if unknown else "no server or site"
        raise JobError(f"{folder} holds {what}; nodes there: {there}")
    return tuple(kit for name, kit in nodes.items() if not names or name in names)


def admin_in(folder: Path, name: str | None = None) -> Kit:
    """Return the kit of whoever submits jobs.

    Raises:
        JobError: There is none, or none of that name, or several and no name.
    """
    admins = [kit for kit in kits_in(folder) if kit.kind == "admin"]
    found = [kit for kit in admins if name in {None, kit.name}]
    if len(found) == 1:
        return found[0]
    if not admins:
        raise JobError(
            f"{folder} holds no kit of an administrator; give the folder of the federation or of "
            "the administrator's kit"
        )
    raise JobError(f"--as must name one of {', '.join(kit.name for kit in admins)}, got {name}")
