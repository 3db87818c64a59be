"""Names are signed for once, and what was signed can be taken back."""

import shutil
import ssl
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from triskel import cli
from triskel.errors import JobError
from triskel.federation import authority, kits
from triskel.federation.distributed import approve, ask, join, request_of
from triskel.federation.doorman import Guard
from triskel.federation.provision import Plan, add
from triskel.policy.revoked import Revoked, list_in, read, serials_in

ANNA = "anna@lab.ch"


def kit(folder: Path, name: str) -> kits.Kit:
    return next(one for one in kits.kits_in(folder) if one.name == name)


# --- names ------------------------------------------------------------------------------------


def test_every_certificate_is_in_the_book(central: Path, lead: Path) -> None:
    assert {one.name for one in authority.issued(central / "ca")} == {
        *("server", "bank", "clinic", ANNA),
    }
    for one in authority.issued(central / "ca"):
        paper = authority.certificate_of(kit(central, one.name))
        assert int(one.serial, 16) == paper.serial_number
    assert {one.name for one in authority.issued(lead / "ca")} == {"host.ch", ANNA}


def test_what_was_shown_is_what_is_signed_whatever_the_file_is_by_then(
    lead: Path, tmp_path: Path
) -> None:
    asked = request_of(ask(tmp_path / "one", "shop", "triskel"))
    ask(tmp_path / "two", "evil", "triskel").replace(asked.path)
    approve(lead, asked)
    assert [one.name for one in authority.issued(lead / "ca")][-1] == "shop"
    assert authority.issued(lead / "ca")[-1].key == asked.key


def test_an_approval_that_inflates_without_end_is_no_approval(tmp_path: Path) -> None:
    ask(tmp_path, "shop", "triskel")
    signed = tmp_path / "shop.signed.zip"
    with zipfile.ZipFile(signed, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("signed.json", bytes(8 << 20))
    with pytest.raises(JobError, match="is not what a lead signs"):
        join(tmp_path, signed, "SHA256:00")


@pytest.mark.parametrize("name", ["bank", "BANK", ANNA, "Anna@Lab.ch"])
def test_a_name_is_signed_for_once(name: str, lead: Path, tmp_path: Path) -> None:
    first = ask(tmp_path / "one", name, "triskel")
    if "@" not in name:
        approve(lead, request_of(first))
    second = ask(tmp_path / "two", name.swapcase() if name.isupper() else name, "triskel")
    with pytest.raises(JobError, match="a name is signed for once"):
        approve(lead, request_of(second))
    assert not (second.parent / f"{name}.signed.zip").exists()


@pytest.mark.parametrize("name", ["server", "Server", "localhost", "ca", "host-ch"])
def test_names_of_the_server_and_the_authority_are_nobodys(
    name: str, lead: Path, tmp_path: Path
) -> None:
    asked = ask(tmp_path / "one", name, "triskel")
    if name == "host-ch":
        approve(lead, request_of(asked))
        return
    with pytest.raises(JobError, match="is not a name for a site"):
        approve(lead, request_of(asked))


@pytest.mark.parametrize("sites", [("server",), ("LocalHost",), ("bank", "Bank"), ("ca",)])
def test_kits_made_centrally_have_no_such_names_either(sites: tuple[str, ...]) -> None:
    with pytest.raises(JobError, match="--site"):
        Plan(sites)


@pytest.mark.parametrize("site", ["bank", "Bank", "SERVER"])
def test_a_site_is_not_added_under_a_name_that_is_taken(site: str, central: Path) -> None:
    with pytest.raises(JobError, match=r"is there already|is not a name"):
        add(central, [site])


def test_a_certificate_is_valid_for_a_year(lead: Path, tmp_path: Path) -> None:
    signed = approve(lead, request_of(ask(tmp_path / "site", "shop", "triskel")))
    got = join(tmp_path / "site", signed.path, signed.fingerprint)
    left = authority.certificate_of(got).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=364) < left <= timedelta(days=366)
    assert authority.ending(got) == ""
    soon = datetime.now(UTC) + timedelta(days=350)
    assert authority.ending(got, soon).startswith("the certificate of shop ends in 1")
    assert "has ended" in authority.ending(got, soon + timedelta(days=50))


# --- lists ------------------------------------------------------------------------------------


def test_a_revoked_certificate_is_on_a_list_that_every_node_holds(central: Path) -> None:
    serial = authority.certificate_of(kit(central, "bank")).serial_number
    (one,) = authority.revoke(central, "Bank")
    assert int(one.serial, 16) == serial
    for name in ("server", "bank", "clinic"):
        place = kit(central, name).path
        assert Revoked(place).holds(serial)
        assert not Revoked(place).holds(serial + 1)
    with pytest.raises(JobError, match="signed for no 'bank' that is not revoked"):
        authority.revoke(central, "bank")


def test_one_certificate_is_revoked_by_its_number(central: Path) -> None:
    serial = authority.certificate_of(kit(central, ANNA)).serial_number
    authority.revoke(central, f"{serial:x}")
    assert [one.name for one in authority.issued(central / "ca") if one.revoked] == [ANNA]


def test_a_name_is_free_again_once_it_was_revoked(lead: Path, tmp_path: Path) -> None:
    approve(lead, request_of(ask(tmp_path / "one", "shop", "triskel")))
    authority.revoke(lead, "shop")
    approve(lead, request_of(ask(tmp_path / "two", "shop", "triskel")))
    assert [one.revoked for one in authority.issued(lead / "ca")][-2:] == [True, False]


def test_a_list_grows_and_an_older_one_is_refused(central: Path, tmp_path: Path) -> None:
    authority.revoke(central, "bank")
    older = Path(shutil.copy(central / "ca" / "revoked.pem", tmp_path / "older.pem"))
    authority.revoke(central, ANNA)
    clinic = kit(central, "clinic")
    assert len(serials_in(read(list_in(clinic.path), clinic.path / "startup/rootCA.pem"))) == 2
    with pytest.raises(JobError, match="is older than the list that clinic holds"):
        authority.install(clinic, older)
    assert len(Revoked(clinic.path).serials()) == 2


def test_a_list_of_another_authority_is_refused(central: Path, lead: Path, tmp_path: Path) -> None:
    approve(lead, request_of(ask(tmp_path / "one", "shop", "triskel")))
    authority.revoke(lead, "shop")
    with pytest.raises(JobError, match="is not signed by the authority"):
        authority.install(kit(central, "clinic"), lead / "ca" / "revoked.pem")
    assert not list_in(kit(central, "clinic").path).exists()


def linked(file: Path) -> None:
    real = file.with_name("real.pem")
    file.rename(real)
    file.symlink_to(real)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [linked, cut, empty])
def test_a_list_that_cannot_be_read_admits_nobody(
    damage: Callable[[Path], None], central: Path
) -> None:
    authority.revoke(central, "bank")
    damage(list_in(kit(central, "clinic").path))
    for _ in range(2):
        with pytest.raises(JobError, match=r"no list of revoked|cannot be read"):
            Revoked(kit(central, "clinic").path).holds(5)


def test_a_damaged_list_is_replaced_by_a_whole_one(central: Path) -> None:
    authority.revoke(central, "bank")
    clinic = kit(central, "clinic")
    cut(list_in(clinic.path))
    assert authority.install(clinic, central / "ca" / "revoked.pem") == 1
    assert len(Revoked(clinic.path).serials()) == 1


def test_a_party_is_revoked_where_no_kit_is_left(central: Path) -> None:
    shutil.rmtree(central / "kits")
    assert [one.name for one in authority.revoke(central, "bank")] == ["bank"]
    assert (central / "ca" / "revoked.pem").is_file()


def test_a_node_that_cannot_take_the_list_keeps_it_from_nobody(central: Path) -> None:
    serial = authority.certificate_of(kit(central, ANNA)).serial_number
    (kit(central, "bank").path / "startup" / "rootCA.pem").unlink()
    with pytest.raises(JobError, match=r"revoked, and .* says so, but bank does not take it "):
        authority.revoke(central, ANNA)
    for name in ("server", "clinic"):
        assert Revoked(kit(central, name).path).holds(serial)


def test_a_list_that_cannot_be_signed_leaves_the_book_as_it_was(central: Path) -> None:
    (central / "ca" / "state" / "cert.json").unlink()
    with pytest.raises(JobError):
        authority.revoke(central, "bank")
    assert not [one for one in authority.issued(central / "ca") if one.revoked]


def test_the_commands_revoke_and_deny(central: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(kit(central, "clinic").path, tmp_path / "clinic"))
    got = CliRunner().invoke(cli.app, ["federation", "revoke", str(central), "bank", "--yes"])
    assert got.exit_code == 0, got.output
    assert "bank: certificate " in got.output
    file = str(central / "ca" / "revoked.pem")
    got = CliRunner().invoke(cli.app, ["federation", "deny", str(elsewhere), file])
    assert (got.exit_code, got.output.strip()) == (0, "clinic holds list 1 from now on")
    got = CliRunner().invoke(cli.app, ["federation", "revoke", str(central), "nobody", "--yes"])
    assert got.exit_code
    assert "signed for no 'nobody'" in got.output


# --- the door ---------------------------------------------------------------------------------


class Peer(ssl.SSLSocket):
    """A connection with a certificate."""

    def __init__(self, serial: int) -> None:
        self.serial, self.closed = serial, False

    def getpeercert(self, binary_form: bool = False) -> Any:  # type: ignore[override]  # noqa: ANN401, FBT001, FBT002
        del binary_form
        return {"serialNumber": f"{self.serial:X}"}

    def shutdown(self, how: int) -> None:
        del how
        self.closed = True

    def __del__(self) -> None:
        """Have nothing to close."""


def peer(serial: int) -> Any:  # noqa: ANN401 - stands in for a socket
    found = Peer.__new__(Peer)
    found.serial, found.closed = serial, False
    return found


def test_a_guard_shows_out_whoever_was_revoked_and_lets_them_in_no_more(central: Path) -> None:
    server = kit(central, "server").path
    serials = {
        n: authority.certificate_of(kit(central, n)).serial_number for n in ("bank", "clinic")
    }
    guard, inside = Guard(server), {name: peer(serial) for name, serial in serials.items()}
    assert [guard.refuses(one) for one in inside.values()] == ["", ""]
    guard.look()
    authority.revoke(central, "bank")
    guard.look()
    assert (inside["bank"].closed, inside["clinic"].closed) == (True, False)
    assert [serial for serial, _ in guard._inside.values()] == [serials["clinic"]]
    assert guard.refuses(peer(serials["bank"])) == f"certificate {serials['bank']:x} is revoked"
    assert guard.refuses(peer(serials["clinic"])) == ""
    list_in(server).write_bytes(b"nonsense")
    guard.look()
    assert not inside["clinic"].closed, "whoever is in stays, and nobody new is let in"
    assert "no list of revoked certificates" in guard.refuses(peer(serials["clinic"]))
    guard.left(inside["clinic"])
    assert SimpleNamespace(**vars(guard))._inside
