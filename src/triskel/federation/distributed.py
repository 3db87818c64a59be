"""Kits whose keys were never anywhere but at their party: requests, signatures, kits.

lead: `found` makes the certificate authority, the server's kit and the administrator's.
site: `ask` makes a key and a request; the request travels, the key stays.
lead: `approve` signs it.
site: `join` checks the authority's fingerprint, told over another channel, and makes the kit there.
"""

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from triskel.core.files import private
from triskel.core.untrusted import json_in, json_of, members, printable, table_of
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

if TYPE_CHECKING:
    from cryptography import x509

REQUEST_MOST = 1 << 20
"""Bytes of a request, inflated."""


@dataclass(frozen=True)
class Asked:
    """A party's request, read once: what is shown of it is what is signed.

    Attributes:
        path: The file it was read from.
        files: What it holds, by name.
        name: Whom it is from.
        kind: `site`, `user` or `server`.
        org: The organisation.
        key: The SHA-256 of the public key, in hex digits.
    """

    path: Path
    files: Mapping[str, bytes]
    name: str
    kind: str
    org: str
    key: str


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
        signed = sign(folder, request_of(ask_as(folder, plan.name, party)), ours=True)
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


def approve(folder: Path, asked: Asked, *, renew: bool = False) -> Signed:
    """Sign a request with the federation's authority.

    Args:
        folder: The federation's folder.
        asked: The request.
        renew: Whether the party has a certificate, which this one is to follow.

    Raises:
        JobError: The folder holds no authority, the request is not a site's or an administrator's,
            or its name or key is not one to sign for.
        FederationError: FLARE refused.
    """
    if asked.kind not in {"site", "user"}:
        raise JobError(
            f"{asked.path} asks to be a {asked.kind}; only sites and administrators are admitted"
        )
    return sign(folder, asked, renew=renew)


def sign(folder: Path, asked: Asked, *, renew: bool = False, ours: bool = False) -> Signed:
    """Sign a request, also of the lead's own parties (`ours`); see `approve`.

    FLARE is handed an archive packed anew of what was read and shown. The book names a certificate
    before its file is where it can be sent.
    """
    authority = folder / "ca"
    if not (authority / "rootCA.key").is_file():
        raise JobError(
            f"{authority} holds no authority; `triskel federation new {folder} --distributed` "
            "makes one"
        )
    if renew:
        succeed(authority, asked.name, asked.key)
    elif not ours:
        admit(authority, asked.name, [_server_of(authority)], asked.key)
    target = asked.path.parent / f"{asked.name}.signed.zip"
    if target.exists():
        raise JobError(f"{target} exists; send it, or remove it to sign again")
    with TemporaryDirectory(dir=authority) as work:
        read = _packed(asked.files, Path(work) / f"{asked.name}.request.zip")
        signed = Path(work) / target.name
        said = flare(
            *("cert", "approve", read, "-c", authority),
            *("--profile", authority / "profile.yml", "--out", signed),
            *("--valid-days", str(VALID_DAYS)),
        )
        note(authority, asked.name, signed_in(signed))
        shutil.move(signed, target)
    print_ = str(said.get("rootca_fingerprint_sha256") or said.get("root_ca_fingerprint") or "")
    return Signed(asked.name, target, print_ or fingerprint(authority / "rootCA.pem"))


def request_of(file: Path) -> Asked:
    """Return a request, and what it says of whoever makes it.

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
    words = [said.get(key, "") for key in ("name", "kind", "org")]
    if not all(isinstance(word, str) and printable(word) for word in words):
        raise JobError(f"{file} is no request: it names whom it is from in a way nobody can read")
    name, kind, org = map(str, words)
    if not (NAME.fullmatch(name) or ADMIN.fullmatch(name) or HOST.fullmatch(name)):
        raise JobError(f"{file} is no request: {name!r} is no name of a site or an administrator")
    return Asked(file, files, name, kind, org, _key_in(file, files, name))


def _packed(files: Mapping[str, bytes], place: Path) -> Path:
    """Write an archive of exactly these files, for FLARE; return where it is."""
    with zipfile.ZipFile(place, "x", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return place


def _server_of(authority: Path) -> str:
    """Return the name that the server's certificate has."""
    try:
        return str(table_of(json_in(authority / "profile.yml"))["server"]["host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{authority / 'profile.yml'} does not name the server: {error}") from error


def _key_in(file: Path, files: Mapping[str, bytes], name: str) -> str:
    """Return the SHA-256 of the key that a request asks for."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return key_of(x509.load_pem_x509_csr(files[f"{name}.csr"]).public_key())
    except (KeyError, ValueError, UnsupportedAlgorithm) as error:
        raise JobError(f"{file} is no request: it holds no key to sign ({error})") from error


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
        JobError: There is no key for it here, or a kit already, or none that is renewed, or the
            file is no such archive.
        FederationError: The fingerprint is another one, or FLARE refused.
    """
    name = signed.name.removesuffix(".signed.zip")
    asked = folder / "requests" / name
    if not asked.is_dir():
        raise JobError(f"{asked} holds no key for {signed}; join where the request was made")
    try:
        files = members(signed, most=REQUEST_MOST)
    except (OSError, ValueError) as error:
        raise JobError(f"{signed} is not what a lead signs; ask for it again ({error})") from error
    kits = folder / "kits"
    private(kits)
    with TemporaryDirectory(dir=folder) as name_:
        work = Path(name_)
        read = _packed(files, work / f"{name}.signed.zip")
        words = ("--request-dir", asked, "--fingerprint", expected)
        flare("package", read, "-w", work / "made", *words)
        made = [path.parent for path in work.glob("made/*/prod_*/*/startup")]
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
