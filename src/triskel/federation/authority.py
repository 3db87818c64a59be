"""The authority's books: whom it signed for, and for which certificates it stands no more.

`ca/issued.json` names every certificate; a name is signed for once, whatever its case, and the
names of the server and of the authority for nobody else. `ca/revoked.pem` is the list that nodes
hold; it has a number that only grows, so that none takes an older list for a newer one.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from triskel.core.files import write_bytes, write_text
from triskel.core.untrusted import data_of, json_in
from triskel.errors import JobError, TriskelError
from triskel.federation.kits import Kit, kits_here, read_json
from triskel.policy.revoked import LIST, list_in, read

if TYPE_CHECKING:
    from cryptography import x509

ISSUED = "issued.json"
RESERVED = frozenset({"server", "localhost", "admin", "ca", "rootca", "authority", "triskel"})
VALID_DAYS = 365
"""How long a certificate of a party is valid; FLARE's own value is three years."""
LIST_DAYS = 3650
WARN_DAYS = 30
"""Days before its end from which on a certificate is spoken of."""
CERTIFICATES = ("client.crt", "server.crt")


@dataclass(frozen=True)
class Issued:
    """A certificate that was signed.

    Attributes:
        name: Whose it is.
        serial: Its number, in hex digits.
        until: When it ends, in ISO form.
        revoked: Whether it is on the list.
        key: The SHA-256 of its public key, in hex digits.
    """

    name: str
    serial: str
    until: str
    revoked: bool = False
    key: str = ""


def issued(authority: Path) -> list[Issued]:
    """Return every certificate that was signed, the last one last.

    Where there is no book yet, the certificates that FLARE keeps beside the authority's key count.

    Raises:
        JobError: The book is damaged.
    """
    book = authority / ISSUED
    if not book.exists():
        return _kept(authority / "state" / "cert.json")
    try:
        return [Issued(**one) for one in json_in(book)]
    except (OSError, ValueError, TypeError) as error:
        raise JobError(f"{book} does not say whom was signed for: {error}") from error


def _kept(state: Path) -> list[Issued]:
    """Return the certificates that FLARE keeps of a federation made centrally."""
    from cryptography import x509

    if not state.is_file():
        return []
    found: list[Issued] = []
    for name, kept in read_json(state).items():
        if isinstance(kept, dict):
            pem = str(cast("dict[str, Any]", kept).get("cert"))
            try:
                found.append(_entry(name, x509.load_pem_x509_certificate(pem.encode())))
            except ValueError as error:
                raise JobError(f"{state} holds no certificate of {name!r}: {error}") from error
    return found


def admit(authority: Path, name: str, also: Sequence[str] = (), key: str = "") -> None:
    """Refuse a name that somebody has, or that is nobody's to have.

    Args:
        authority: The authority's folder.
        name: Who asks.
        also: More names that are taken: the server's, the federation's.
        key: The SHA-256 of the public key that is to be signed, where there is one already.

    Raises:
        JobError: It is taken or reserved, or the key was signed before.
    """
    low = name.lower()
    if low in RESERVED | {one.lower() for one in also}:
        raise JobError(f"{name!r} is not a name for a site or an administrator; choose another one")
    for one in issued(authority):
        if one.name.lower() == low and not one.revoked:
            raise JobError(
                f"{one.name!r} has a certificate, number {one.serial}; a name is signed for once: "
                f"`triskel federation revoke {authority.parent} {one.name}` first, if it is lost, "
                "or --renew, if it goes on"
            )
    _fresh(authority, key)


def succeed(authority: Path, name: str, key: str = "") -> Issued:
    """Return the certificate that a new one is to follow, where a party may have a new one.

    Raises:
        JobError: The party has none, or has been renewed before and the older one is not revoked
            yet, or the key was signed before.
    """
    valid = [one for one in issued(authority) if one.name == name and not one.revoked]
    if not valid:
        raise JobError(
            f"{_unknown(authority, name)}; only who has a certificate is renewed, others are "
            "admitted as at first"
        )
    if len(valid) > 1:
        raise JobError(
            f"{name!r} has {len(valid)} certificates already; "
            f"`triskel federation revoke {authority.parent} {valid[0].serial}` the older one first"
        )
    _fresh(authority, key)
    return valid[0]


def _fresh(authority: Path, key: str) -> None:
    """Refuse a key that was signed before, by whatever name and also if it was revoked."""
    for one in issued(authority):
        if key and one.key == key:
            raise JobError(
                f"the key of this request was signed before, for {one.name!r}, number {one.serial};"
                " a party asks with a new key: `triskel federation request` makes one"
            )


def key_of(public: Any) -> str:  # noqa: ANN401 - any kind of key
    """Return the SHA-256 of a public key, in hex digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    data = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def note(authority: Path, name: str, certificate: "x509.Certificate") -> None:
    """Write down a certificate that was signed."""
    _write(authority, [*issued(authority), _entry(name, certificate)])


def _entry(name: str, certificate: "x509.Certificate") -> Issued:
    until, key = certificate.not_valid_after_utc.isoformat(), key_of(certificate.public_key())
    return Issued(name, f"{certificate.serial_number:x}", until, key=key)


def note_kits(authority: Path, kits: Sequence[Kit]) -> None:
    """Write down the certificates of kits that were made here."""
    for kit in kits:
        note(authority, kit.name, certificate_of(kit))


def _write(authority: Path, entries: Sequence[Issued]) -> None:
    text = json.dumps([asdict(one) for one in entries], indent=1)
    write_text(authority / ISSUED, text + "\n")


def certificate_of(kit: Kit) -> "x509.Certificate":
    """Return a kit's own certificate.

    Raises:
        JobError: It has none that can be read.
    """
    from cryptography import x509

    for name in CERTIFICATES:
        file = kit.path / "startup" / name
        if file.is_file():
            try:
                return x509.load_pem_x509_certificates(data_of(file))[0]
            except (OSError, ValueError) as error:
                raise JobError(f"{file} is no certificate: {error}") from error
    raise JobError(f"{kit.path / 'startup'} holds no certificate")


def ending(kit: Kit, now: datetime | None = None) -> str:
    """Return a line where a kit's certificate has ended or ends soon, or nothing."""
    left = certificate_of(kit).not_valid_after_utc - (now or datetime.now(UTC))
    if left > timedelta(days=WARN_DAYS):
        return ""
    when = f"ends in {left.days} days" if left > timedelta(0) else "has ended"
    return f"the certificate of {kit.name} {when}; `triskel federation renew` makes a new one"


def left_over(folder: Path) -> list[str]:
    """Return a line for each party that was renewed and whose older certificate still counts."""
    valid = [one for one in issued(folder / "ca") if not one.revoked]
    times = Counter(one.name for one in valid)
    first = {one.name: one for one in reversed(valid)}
    return [
        f"{name} has {times[name]} certificates; once its new kit is in use: "
        f"`triskel federation revoke {folder} {first[name].serial}`"
        for name in sorted(times)
        if times[name] > 1
    ]


def revoke(folder: Path, whom: str) -> list[Issued]:
    """Put the certificates of a party on the list, and the list into every kit of the folder.

    Args:
        folder: The federation's folder, which holds the authority.
        whom: A name, or the number of one certificate.

    Returns:
        The certificates that were revoked.

    Raises:
        JobError: There is no authority here, or no such certificate that is not revoked yet; or the
            list did not reach a node, which is named.
    """
    authority, entries = folder / "ca", issued(folder / "ca")
    found = [
        one
        for one in entries
        if not one.revoked and (one.name.lower() == whom.lower() or one.serial == whom.lower())
    ]
    if not found:
        raise JobError(_unknown(authority, whom))
    numbers = {one.serial for one in found}
    after = [replace(one, revoked=one.revoked or one.serial in numbers) for one in entries]
    _sign(authority, [int(one.serial, 16) for one in after if one.revoked])
    _write(authority, after)  # after the list, so that what failed is done by doing it again
    _hand_out(folder, authority / LIST)
    return found


def _unknown(authority: Path, whom: str) -> str:
    known = ", ".join(sorted({one.name for one in issued(authority) if not one.revoked}))
    return f"{authority} signed for no {whom!r} that is not revoked; it did for {known or 'nobody'}"


def _hand_out(folder: Path, file: Path) -> None:
    """Put a list into every node that is here, also if one of them does not take it."""
    failed: list[str] = []
    for kit in kits_here(folder):
        try:
            if kit.kind != "admin":
                install(kit, file)
        except (TriskelError, OSError) as error:
            failed.append(f"{kit.name} does not take it ({error})")
    if failed:
        raise JobError(
            f"revoked, and {file} says so, but {'; '.join(failed)}; mend that, then there: "
            f"`triskel federation deny KIT {file}`"
        )


def _keys(authority: Path) -> tuple["x509.Certificate", Any]:
    """Return the authority's certificate and key.

    Raises:
        JobError: They are not there.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if (authority / "rootCA.key").is_file():
            key = data_of(authority / "rootCA.key")
            paper = data_of(authority / "rootCA.pem")
        else:
            state = read_json(authority / "state" / "cert.json")
            key, paper = state["root_pri_key"].encode(), state["root_cert"].encode()
        return x509.load_pem_x509_certificate(paper), load_pem_private_key(key, password=None)
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"{authority} holds no authority that can sign: {error}") from error


def _sign(authority: Path, serials: Sequence[int]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    paper, key = _keys(authority)
    now, file = datetime.now(UTC), authority / LIST
    number = 1
    if file.exists():
        number = number_of(x509.load_pem_x509_crl(data_of(file))) + 1
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(paper.subject)
        .last_update(now - timedelta(minutes=5))
        .next_update(now + timedelta(days=LIST_DAYS))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in sorted(set(serials)):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(one.build())
    write_bytes(file, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def number_of(found: "x509.CertificateRevocationList") -> int:
    """Return a list's number; 0 where it has none."""
    from cryptography import x509

    try:
        extension = found.extensions.get_extension_for_class(x509.CRLNumber)
    except x509.ExtensionNotFound:
        return 0
    return extension.value.crl_number


def install(kit: Kit, file: Path) -> int:
    """Put a list into a node's kit; return its number.

    A list that cannot be read, which admits nobody, is replaced by any that the authority signed.

    Raises:
        JobError: The authority of the kit did not sign it, or the kit holds a newer one.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    authority = kit.path / "startup" / "rootCA.pem"
    found, held, number = read(file, authority), list_in(kit.path), 0
    with contextlib.suppress(JobError):
        number = number_of(read(held, authority)) if held.exists() else 0
    if number > number_of(found):
        raise JobError(f"{file} is older than the list that {kit.name} holds; ask for a newer one")
    write_bytes(held, found.public_bytes(Encoding.PEM))
    return number_of(found)
