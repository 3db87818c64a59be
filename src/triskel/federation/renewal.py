"""New certificates for parties that go on, before the ones they have end.

A party that was made centrally, or whose key is here, is renewed here: `renew` makes key and
certificate, and puts them into its kit or makes one that travels. A site that keeps its key itself
asks again, as it did at first (`distributed`), and the lead signs with `approve --renew`. The older
certificate counts until it is revoked, since the new one must reach its party first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triskel.errors import JobError
from triskel.federation import distributed
from triskel.federation.authority import succeed
from triskel.federation.kits import Kit, kit_at, kits_here, read_json
from triskel.federation.provision import placed, remake
from triskel.federation.startup import idle, swap


@dataclass(frozen=True)
class Renewed:
    """What a renewal left.

    Attributes:
        kit: The new kit, or the one that was there.
        before: The number of the certificate that the new one follows.
        here: Whether the kit was there, and is in use from its next start on.
    """

    kit: Kit
    before: str
    here: bool


def renew(folder: Path, name: str) -> Renewed:
    """Make a new key and certificate for a party, where the authority is.

    Raises:
        JobError: There is no authority here, it did not sign for this name or did twice, or the
            party keeps its key elsewhere.
        FederationError: The party's node runs here, or FLARE refused.
    """
    there = next((kit for kit in kits_here(folder) if kit.name == name), None)
    if there is not None:
        idle(there)
    authority = folder / "ca"
    if (authority / "project.json").is_file():
        before = succeed(authority, name)

        def put(path: Path, target: Path) -> Kit:
            found = kit_at(target)
            return placed(path, target) if found is None else swap(found, path)

        (kit,) = remake(folder, name, put)
        return Renewed(kit, before.serial, there is not None)
    profile = authority / "profile.yml"
    if not profile.is_file():
        raise JobError(f"{folder} holds no authority; a party is renewed where it was admitted")
    if there is None or there.kind == "site":
        raise JobError(
            f"{folder} does not hold the key of {name!r}. There: `triskel federation request`, as "
            "at first; here: `triskel federation approve --renew`; there: `triskel federation join "
            "--renew`"
        )
    return _own(folder, there, read_json(profile))


def _own(folder: Path, kit: Kit, profile: Mapping[str, Any]) -> Renewed:
    """Renew the lead's own server or administrator where keys stay at the sites."""
    server = profile["server"]
    party = (
        distributed.server_party(str(server["host"]), int(server["fed_learn_port"]))
        if kit.kind == "server"
        else distributed.admin_party(kit.name)
    )
    before = succeed(folder / "ca", str(party["name"]))
    asked = distributed.request_of(distributed.ask_as(folder, str(profile["name"]), party))
    signed = distributed.sign(folder, asked, renew=True, ours=True)
    made = distributed.join(folder, signed.path, signed.fingerprint, renew=True)
    return Renewed(made, before.serial, here=True)
