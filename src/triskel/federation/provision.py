"""Kits made centrally: one place makes all certificates and keys, then each kit goes to its party.

FLARE's `nvflare provision` does the work; what it needs stays in `FOLDER/ca`, which holds the key
that everybody trusts. Where a key must never have been anywhere but at its site, see `distributed`.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from triskel.core.files import private
from triskel.errors import FederationError, JobError
from triskel.federation.authority import RESERVED, admit, note_kits
from triskel.federation.harden import harden
from triskel.federation.kits import Kit, kit_at, read_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
ADMIN = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
LIGHTER = "nvflare.lighter.impl"
ROOT_DAYS = 3650
"""How long the authority's own certificate is valid; FLARE's value is 360, for it and all others.
Those of parties keep FLARE's, and are renewed."""
Put = Callable[[Path, Path], Kit]
"""Brings what FLARE made in a folder to its place."""


@dataclass(frozen=True)
class Plan:
    """What a federation is made of.

    Attributes:
        name: The federation's name, the same in all kits.
        sites: The organisations that hold data.
        server: A host name or address that every site reaches the server by.
        port: The server's one port.
        admin: Who submits jobs, in the form of a mail address.
        scheme: How messages travel: `tcp` is faster, `http` passes proxies. Both are encrypted.
    """

    sites: tuple[str, ...]
    name: str = "triskel"
    server: str = "localhost"
    port: int = 8002
    admin: str = "lead@federation.local"
    scheme: Literal["http", "tcp"] = "tcp"

    def __post_init__(self) -> None:
        """Refuse what FLARE would refuse later, or would take and trip over."""
        check("name", self.name, NAME, "letters, digits and -")
        check("--server", self.server, HOST, "a host name or an address")
        check("--admin", self.admin, ADMIN, "a name such as anna@lab.example")
        for site in self.sites:
            check("--site", site, NAME, "letters, digits and -")
        twice = sorted({site for site in self.sites if self.sites.count(site) > 1})
        if twice:
            raise JobError(f"--site names {', '.join(twice)} twice; each site needs its own name")
        lower = [site.lower() for site in self.sites]
        taken = [site for site in self.sites if site.lower() in {*RESERVED, self.server.lower()}]
        if taken:
            whose = (
                "the server's name" if taken[0] in {"server", self.server} else "no name for one"
            )
            raise JobError(f"--site {taken[0]} is {whose}; choose another one")
        if len(set(lower)) < len(lower):
            raise JobError("--site names sites that differ in case only; choose other names")


def check(what: str, value: str, form: re.Pattern[str], must: str) -> None:
    """Refuse a name of the wrong form.

    Raises:
        JobError: The value does not have the form.
    """
    if not form.fullmatch(value):
        raise JobError(f"{what} must be {must}, got {value!r}")


def org_of(name: str) -> str:
    """Return the organisation that FLARE wants for a party.

    >>> org_of("hospital-a"), org_of("anna@lab.example")
    ('hospital_a', 'lab')
    """
    return re.sub(r"\W", "_", name.rpartition("@")[2].partition(".")[0])


def flare(*words: str | Path, cwd: Path | None = None) -> dict[str, Any]:
    """Run a command of FLARE and return what it answers.

    Raises:
        FederationError: FLARE is not installed, or the command failed.
    """
    need_flare()
    command = [sys.executable, "-P", "-m", "nvflare.cli", *map(str, words), "--format", "json"]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    answer = next((x for x in done.stdout.splitlines() if x.startswith("{")), "{}")
    said = cast("dict[str, Any]", json.loads(answer))
    if done.returncode or said.get("status") != "ok":
        why = said.get("message") or (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise FederationError(f"`nvflare {words[0]}` failed: {why}")
    return cast("dict[str, Any]", said.get("data", {}))


def need_flare() -> None:
    """Refuse to go on without FLARE.

    Raises:
        FederationError: It is not installed.
    """
    if find_spec("nvflare") is None:
        raise FederationError("NVIDIA FLARE is not installed; `pip install 'triskel[flare]'`")


def new(folder: Path, plan: Plan) -> tuple[Kit, ...]:
    """Make the kits of a federation and harden them.

    Raises:
        JobError: The folder is in use, or there is no site.
        FederationError: FLARE refused.
    """
    if not plan.sites:
        raise JobError("--site must name the sites, such as --site bank --site hospital")
    empty(folder)
    return _provision(folder, project(plan), ["server", *plan.sites, plan.admin])


def add(folder: Path, sites: Sequence[str]) -> tuple[Kit, ...]:
    """Make kits for more sites of a federation; the others' certificates stay as they are.

    Raises:
        JobError: The folder was not made by `new`, or a site is there.
        FederationError: FLARE refused.
    """
    file = folder / "ca" / "project.json"
    if not file.is_file():
        raise JobError(
            f"{file} is missing; sites are added where `triskel federation new` made the others, "
            "or with `triskel federation request` where keys stay at the sites"
        )
    before = read_json(file)
    party = cast("list[dict[str, Any]]", before["participants"])
    there = {str(each["name"]) for each in party}
    for site in sites:
        check("--site", site, NAME, "letters, digits and -")
        if site.lower() in {name.lower() for name in there}:
            raise JobError(f"--site {site} is there already; choose another name")
        admit(file.parent, site)
    fresh = list(dict.fromkeys(sites))
    before["participants"] = party + [_site(site) for site in fresh]
    return _provision(folder, before, fresh)


def remake(folder: Path, name: str, put: Put) -> tuple[Kit, ...]:
    """Make one party's kit once more, with a new key; the others' stay as they are.

    Raises:
        FederationError: FLARE refused.
    """
    return _provision(folder, read_json(folder / "ca" / "project.json"), [name], put)


def empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        JobError: It is a file, or holds files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} is not empty; name a new folder for the federation")


def project(plan: Plan) -> dict[str, Any]:
    """Return FLARE's project file."""
    server = {
        "name": "server",
        "type": "server",
        "org": "lead",
        "fed_learn_port": plan.port,
        "admin_port": plan.port,
        "default_host": plan.server,
        "host_names": sorted({plan.server, *(["127.0.0.1"] if plan.server == "localhost" else [])}),
    }
    admin = {"name": plan.admin, "type": "admin", "org": org_of(plan.admin)}
    return {
        "api_version": 3,
        "name": plan.name,
        "description": "federated fine-tuning",
        "participants": [
            server,
            *(_site(site) for site in plan.sites),
            admin | {"role": "project_admin"},
        ],
        "builders": [
            {"path": f"{LIGHTER}.workspace.WorkspaceBuilder"},
            {
                "path": f"{LIGHTER}.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": plan.scheme},
            },
            {"path": f"{LIGHTER}.cert.CertBuilder", "args": {"root_valid_days": ROOT_DAYS}},
            {"path": f"{LIGHTER}.signature.SignatureBuilder"},
        ],
    }


def _site(name: str) -> dict[str, Any]:
    return {"name": name, "type": "client", "org": org_of(name)}


def _provision(
    folder: Path, asked: dict[str, Any], names: Sequence[str], put: Put | None = None
) -> tuple[Kit, ...]:
    """Have FLARE make the kits of parties, whose keys are new; nobody else's kit is touched."""
    authority, kits = folder / "ca", folder / "kits"
    private(authority)
    private(kits)
    with TemporaryDirectory(dir=authority) as name:
        work = Path(name)
        whole = work / str(asked["name"])
        if (authority / "state").is_dir():
            shutil.copytree(authority / "state", whole / "state")
            _forget(whole / "state" / "cert.json", names)
        (work / "project.yml").write_text(json.dumps(asked), encoding="utf-8")  # JSON is YAML
        flare("provision", "-p", work / "project.yml", "-w", work, "--force")
        there = whole / "prod_00"
        note_kits(authority, [kit for name in names if (kit := kit_at(there / name)) is not None])
        shutil.copytree(whole / "state", authority / "state", dirs_exist_ok=True)
        made = tuple((put or placed)(there / name, kits / name) for name in names)
    (authority / "project.json").write_text(json.dumps(asked, indent=2), encoding="utf-8")
    return made


def _forget(state: Path, names: Sequence[str]) -> None:
    """Take the keys of parties out of what FLARE keeps, so that it makes new ones."""
    kept = read_json(state)
    state.write_text(json.dumps({n: v for n, v in kept.items() if n not in names}), "utf-8")


def placed(path: Path, target: Path) -> Kit:
    """Move what FLARE made to its place, harden it and return it.

    Raises:
        FederationError: FLARE made something else.
    """
    shutil.move(path, target)
    target.chmod(0o700)
    kit = kit_at(target)
    if kit is None:
        raise FederationError(f"{target} is no kit; nvflare 2.9 makes them, is it that version?")
    harden(kit)
    return kit
