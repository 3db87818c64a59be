"""Kits whose keys were never anywhere but at their party: requests, signatures, kits.

lead: `found` makes the certificate authority, the server's kit and the administrator's.
site: `ask` makes a key and a request; the request travels, the key stays.
lead: `approve` signs it.
site: `join` checks the authority's fingerprint, told over another channel, and makes the kit there.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from triskel.errors import FederationError, JobError
from triskel.federation.authority import VALID_DAYS, admit, key_of, note, succeed
from triskel.federation.kits import Kit, kit_at
from triskel.federation.provision import (
    ADMIN,
    HOST,
    NAME,
    Plan,
    check,
    empty,
    flare,
    org_of,
    placed,
)
from triskel.federation.startup import swap
from triskel.owned import private
from triskel.untrusted import json_in, json_of, members, printable, table_of

if TYPE_CHECKING:
    from cryptography import x509

REQUEST_MOST = 1 << 20
"""Bytes of a request, inflated."""


@dataclass(frozen=True)
class Signed:
    """What the lead gives back.

    Attributes:
        name: Whom the request names.
        path: The signed file, which goes back to the site.
        fingerprint: The authority's SHA-256, which goes to the site over another channel.
    """

    name: str
    path: Path
    fingerprint: str


def found(folder: Path, plan: Plan) -> tuple[tuple[Kit, ...], str]:
    """Make the authority and the lead's own kits; return those and the authority's fingerprint.

    Raises:
        JobError: The folder is in use.
        FederationError: FLARE refused.
    """
    empty(folder)
    authority = folder / "ca"
    private(authority)
    profile = {
        "name": plan.name,
        "scheme": plan.scheme,
        "connection_security": "mtls",
        "server": {"host": plan.server, "fed_learn_port": plan.port, "admin_port": plan.port},
    }
    file = authority / "profile.yml"
    file.write_text(json.dumps(profile, indent=2), encoding="utf-8")  # JSON is YAML
    flare("cert", "init", "--profile", file, "-o", authority)
    made: list[Kit] = []
    print_ = ""
    for party in (server_party(plan.server, plan.port), admin_party(plan.admin)):
        signed = sign(folder, ask_as(folder, plan.name, party), ours=True)
        print_ = signed.fingerprint
        made.append(join(folder, signed.path, print_))
    return tuple(made), print_


def server_party(host: str, port: int) -> dict[str, Any]:
    """Return what FLARE asks of a server."""
    server = {"name": host, "type": "server", "org": "lead", "fed_learn_port": port}
    return server | {"admin_port": port, "default_host": host, "host_names": [host]}


def admin_party(name: str) -> dict[str, Any]:
    """Return what FLARE asks of an administrator."""
    return {"name": name, "type": "admin", "org": org_of(name), "role": "lead"}


def ask(folder: Path, name: str, federation: str) -> Path:
    """Make a key that stays here, and a request for its certificate; return the request.

    Args:
        folder: Where the site keeps its part of the federation.
        name: A site's name, or an administrator's in the form of a mail address.
        federation: The federation's name.

    Raises:
        JobError: A name has the wrong form, or the request was made before.
        FederationError: FLARE refused.
    """
    check("--federation", federation, NAME, "letters, digits and -")
    if "@" in name:
        check("the administrator", name, ADMIN, "a name such as anna@lab.example")
        party = admin_party(name)
    else:
        check("--site", name, NAME, "letters, digits and -")
        party = {"name": name, "type": "client", "org": org_of(name)}
    return ask_as(folder, federation, party)


def ask_as(folder: Path, federation: str, party: Mapping[str, Any]) -> Path:
    """Make a key that stays here, and a request of a party as FLARE describes it.

    Raises:
        JobError: The request was made before.
        FederationError: FLARE refused.
    """
    name = str(party["name"])
    place = folder / "requests" / name
    if (place / f"{name}.request.zip").exists():
        raise JobError(
            f"{place} holds a request already; send it, or remove the folder, key included"
        )
    private(folder / "requests")
    with TemporaryDirectory(dir=folder) as work:
        file = Path(work) / "participant.yml"
        file.write_text(json.dumps({"name": federation, "participants": [party]}), encoding="utf-8")
        flare("cert", "request", "-p", file, "--out", place)
    return place / f"{name}.request.zip"


def approve(folder: Path, asked: Path, *, renew: bool = False) -> Signed:
    """Sign a request with the federation's authority.

    Args:
        folder: The federation's folder.
        asked: The request.
        renew: Whether the party has a certificate, which this one is to follow.

    Raises:
        JobError: The folder holds no authority, the file is no request of a site or an
            administrator, or its name or key is not one to sign for.
        FederationError: FLARE refused.
    """
    kind = request_of(asked).get("kind")
    if kind not in {"site", "user"}:
        raise JobError(f"{asked} asks to be a {kind}; only sites and administrators are admitted")
    return sign(folder, asked, renew=renew)


def sign(folder: Path, asked: Path, *, renew: bool = False, ours: bool = False) -> Signed:
    """Sign a request, also of the lead's own parties (`ours`); see `approve`.

    The book names a certificate before its file is where it can be sent.
    """
    authority = folder / "ca"
    if not (authority / "rootCA.key").is_file():
        raise JobError(
            f"{authority} holds no authority; `triskel federation new {folder} --distributed` "
            "makes one"
        )
    name = str(request_of(asked)["name"])
    key = _key_in(asked, name)
    if renew:
        succeed(authority, name, key)
    elif not ours:
        admit(authority, name, [_server_of(authority)], key)
    target = asked.parent / f"{name}.signed.zip"
    if target.exists():
        raise JobError(f"{target} exists; send it, or remove it to sign again")
    with TemporaryDirectory(dir=authority) as work:
        signed = Path(work) / target.name
        said = flare(
            *("cert", "approve", asked, "-c", authority),
            *("--profile", authority / "profile.yml", "--out", signed),
            *("--valid-days", str(VALID_DAYS)),
        )
        note(authority, name, signed_in(signed))
        shutil.move(signed, target)
    print_ = str(said.get("rootca_fingerprint_sha256") or said.get("root_ca_fingerprint") or "")
    return Signed(name, target, print_ or fingerprint(authority / "rootCA.pem"))


def request_of(file: Path) -> Mapping[str, Any]:
    """Return what a request says of whoever makes it: name, organisation, kind.

    Raises:
        JobError: The file is no request, or holds a key.
    """
    try:
        files = members(file, most=REQUEST_MOST)
        said = table_of(json_of(files["request.json"].decode("utf-8")))
    except (OSError, KeyError, ValueError) as error:
        raise JobError(
            f"{file} is no request; `triskel federation request` makes one ({error})"
        ) from error
    if any(name.endswith((".key", ".pem")) for name in files):
        raise JobError(f"{file} holds a key; a request must not, so make a new one")
    name = said.get("name")
    words = [said.get(key, "") for key in ("name", "kind", "org")]
    if not all(isinstance(word, str) and printable(word) for word in words):
        raise JobError(f"{file} is no request: it names whom it is from in a way nobody can read")
    if not isinstance(name, str) or not (
        NAME.fullmatch(name) or ADMIN.fullmatch(name) or HOST.fullmatch(name)
    ):
        raise JobError(f"{file} is no request: {name!r} is no name of a site or an administrator")
    return said


def _server_of(authority: Path) -> str:
    """Return the name that the server's certificate has."""
    try:
        return str(table_of(json_in(authority / "profile.yml"))["server"]["host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{authority / 'profile.yml'} does not name the server: {error}") from error


def _key_in(asked: Path, name: str) -> str:
    """Return the SHA-256 of the key that a request asks for."""
    from cryptography import x509

    try:
        data = members(asked, most=REQUEST_MOST)[f"{name}.csr"]
        return key_of(x509.load_pem_x509_csr(data).public_key())
    except (OSError, KeyError, ValueError) as error:
        raise JobError(f"{asked} is no request: it holds no key to sign ({error})") from error


def signed_in(signed: Path) -> "x509.Certificate":
    """Return the certificate that was signed."""
    from cryptography import x509

    try:
        found = [d for n, d in members(signed, most=REQUEST_MOST).items() if n.endswith(".crt")]
        return x509.load_pem_x509_certificates(found[0])[0]
    except (OSError, ValueError, IndexError) as error:
        raise FederationError(f"{signed} holds no certificate: {error}") from error


def fingerprint(certificate: Path) -> str:
    """Return the SHA-256 of a certificate, as FLARE writes it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return f"SHA256:{found.fingerprint(hashes.SHA256()).hex(':').upper()}"


def join(folder: Path, signed: Path, expected: str, *, renew: bool = False) -> Kit:
    """Make the kit of a party from its key here and what the lead signed.

    Args:
        folder: Where the request was made.
        signed: What the lead sent.
        expected: The authority's fingerprint.
        renew: Whether the kit is there, and gets a new certificate and key.

    Raises:
        JobError: There is no key for it here, or a kit already, or none that is renewed.
        FederationError: The fingerprint is another one, or FLARE refused.
    """
    name = signed.name.removesuffix(".signed.zip")
    asked = folder / "requests" / name
    if not asked.is_dir():
        raise JobError(f"{asked} holds no key for {signed}; join where the request was made")
    kits = folder / "kits"
    private(kits)
    with TemporaryDirectory(dir=folder) as name_:
        work = Path(name_)
        words = ("--request-dir", asked, "--fingerprint", expected)
        flare("package", signed, "-w", work, *words)
        made = [path.parent for path in work.glob("*/prod_*/*/startup")]
        if len(made) != 1:
            raise FederationError(f"`nvflare package` made {len(made)} kits of {signed}, not one")
        place = "server" if (made[0] / "startup" / "fed_server.json").is_file() else made[0].name
        there = kit_at(kits / place)
        if renew and there is None:
            raise JobError(f"{kits / place} is no kit; leave out --renew to make one")
        if not renew and (kits / place).exists():
            raise JobError(
                f"{kits / place} exists; remove it to join anew, or give it the new certificate "
                "only with --renew"
            )
        kit = placed(made[0], kits / place) if there is None else swap(there, made[0])
    shutil.rmtree(asked)  # the kit holds the key now
    return kit
