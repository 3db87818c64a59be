"""Certificates that the federation no longer stands for, as one party knows them.

The authority writes a list (an X.509 CRL, RFC 5280) and signs it; each node holds a copy beside its
policy and reads it anew when it changes. A list that cannot be read, or that the authority did not
sign, admits nobody: a node that is not sure does not serve.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from triskel.core.untrusted import data_of
from triskel.errors import JobError

if TYPE_CHECKING:
    from cryptography import x509

LIST = "revoked.pem"
MOST = 1 << 20


def list_in(root: Path) -> Path:
    """Return where a node's list is."""
    return root / "local" / LIST


def read(file: Path, authority: Path) -> "x509.CertificateRevocationList":
    """Return a list that the authority signed.

    Args:
        file: The list.
        authority: The authority's certificate.

    Raises:
        JobError: It cannot be read, or the authority did not sign it.
    """
    from cryptography import x509  # noqa: PLC0415 - comes with FLARE

    try:
        found = x509.load_pem_x509_crl(data_of(file, most=MOST))
        signer = x509.load_pem_x509_certificate(data_of(authority, most=MOST))
        valid = found.is_signature_valid(signer.public_key())  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, TypeError) as error:
        raise JobError(f"{file} is no list of revoked certificates: {error}") from error
    if not valid or found.issuer != signer.subject:
        raise JobError(f"{file} is not signed by the authority in {authority}")
    return found


def serials_in(found: "x509.CertificateRevocationList") -> frozenset[int]:
    """Return the numbers of the certificates on a list."""
    return frozenset(one.serial_number for one in found)


@dataclass
class Revoked:
    """A node's list, read again when the file changes.

    Attributes:
        root: The node's folder.
    """

    root: Path
    _seen: tuple[int, int, int] = (0, 0, 0)
    _serials: frozenset[int] = field(default_factory=frozenset[int])
    _damaged: str = ""

    def holds(self, serial: int) -> bool:
        """Return whether a certificate is on the list.

        Raises:
            JobError: The list cannot be read, so that nobody is known to be admitted.
        """
        serials = self.serials()
        return serial in serials

    def serials(self) -> Collection[int]:
        """Return the numbers on the list; none where there is no list.

        Raises:
            JobError: The list cannot be read.
        """
        file = list_in(self.root)
        try:
            about = file.lstat()
        except FileNotFoundError:
            self._seen, self._serials, self._damaged = (0, 0, 0), frozenset(), ""
            return self._serials
        now = (about.st_mtime_ns, about.st_size, about.st_ino)
        if now != self._seen:
            try:
                found = read(file, self.root / "startup" / "rootCA.pem")
                self._serials, self._damaged = serials_in(found), ""
            except JobError as error:
                self._damaged = str(error)
            self._seen = now
        if self._damaged:
            raise JobError(self._damaged)
        return self._serials
