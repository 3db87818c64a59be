"""A party that goes on gets a new certificate; what it allows and keeps stays, in both layouts."""

import gzip
import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from triskel import cli
from triskel.errors import FederationError, JobError
from triskel.federation import authority, kits, startup
from triskel.federation.distributed import approve, ask, join, request_of
from triskel.federation.pack import pack, unpack
from triskel.federation.provision import Plan, add, new
from triskel.federation.renewal import renew
from triskel.policy.revoked import Revoked, list_in

ANNA = "anna@lab.ch"
OWN = ("local/policy.toml", "triskel/audit.jsonl")


def kit(folder: Path, name: str) -> kits.Kit:
    return next(one for one in kits.kits_in(folder) if one.name == name)


def serial(one: kits.Kit) -> str:
    return f"{authority.certificate_of(one).serial_number:x}"


def owned(one: kits.Kit) -> dict[str, str]:
    """Write what a party has of its own, and return it."""
    for name in OWN:
        place = one.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f'site = "{name}"\n')
    return {name: (one.path / name).read_text() for name in OWN}


def keeps(one: kits.Kit, before: dict[str, str]) -> bool:
    return {name: (one.path / name).read_text() for name in OWN} == before


def fits(one: kits.Kit) -> bool:
    """Return whether a kit's key is that of its certificate, which its authority signed."""
    paper = authority.certificate_of(one)
    root = x509.load_pem_x509_certificate((one.path / "startup/rootCA.pem").read_bytes())
    paper.verify_directly_issued_by(root)
    name = "server.key" if one.kind == "server" else "client.key"
    key = serialization.load_pem_private_key((one.path / "startup" / name).read_bytes(), None)
    return authority.key_of(key.public_key()) == authority.key_of(paper.public_key())


# --- central ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bank", "server", ANNA])
def test_a_party_made_centrally_is_renewed_in_its_place(name: str, central: Path) -> None:
    one = kit(central, name)
    before, had, others = serial(one), owned(one), serial(kit(central, "clinic"))
    got = renew(central, name)
    assert (got.before, got.here) == (before, True)
    assert serial(got.kit) != before
    assert fits(got.kit)
    assert keeps(got.kit, had)
    assert serial(kit(central, "clinic")) == others
    assert len([x for x in authority.issued(central / "ca") if x.name == name]) == 2
    assert [line for line in authority.left_over(central) if f"revoke {central} {before}" in line]
    with pytest.raises(JobError, match="has 2 certificates already"):
        renew(central, name)
    authority.revoke(central, before)
    assert authority.left_over(central) == []
    assert not Revoked(kit(central, "clinic").path).holds(int(serial(got.kit), 16))
    assert Revoked(kit(central, "clinic").path).holds(int(before, 16))
    assert not list(got.kit.path.glob("startup.*"))


def test_a_kit_that_left_is_renewed_by_one_that_travels(central: Path, tmp_path: Path) -> None:
    one = kit(central, "bank")
    there = unpack(pack(one, tmp_path / "bank.kit"), tmp_path / "host")
    had, before = owned(there), serial(there)
    shutil.rmtree(one.path)
    got = renew(central, "bank")
    assert not got.here
    file = pack(got.kit, tmp_path / "again.kit")
    with pytest.raises(JobError, match="or give it the new certificate only with --renew"):
        unpack(file, tmp_path / "host")
    after = unpack(file, tmp_path / "host", renew=True)
    assert (after.path, serial(after) != before, fits(after)) == (there.path, True, True)
    assert keeps(after, had)


def test_sites_are_added_without_the_keys_of_those_that_left(central: Path) -> None:
    book = authority.issued(central / "ca")
    shutil.rmtree(kit(central, "bank").path)
    assert [one.name for one in add(central, ["shop"])] == ["shop"]
    assert not (central / "kits" / "bank").exists()
    assert authority.issued(central / "ca")[: len(book)] == book
    assert [one.name for one in authority.issued(central / "ca")[len(book) :]] == ["shop"]


def test_a_central_authority_outlives_the_certificates_it_signs(central: Path) -> None:
    root = x509.load_pem_x509_certificate((central / "kits/server/startup/rootCA.pem").read_bytes())
    left = root.not_valid_after_utc - datetime.now(UTC)
    assert left > timedelta(days=3000)
    assert authority.certificate_of(kit(central, "bank")).not_valid_after_utc < (
        datetime.now(UTC) + timedelta(days=366)
    )


# --- keys at the sites ------------------------------------------------------------------------


def test_a_site_that_keeps_its_key_is_renewed_with_a_new_one(lead: Path, tmp_path: Path) -> None:
    home = tmp_path / "site"
    first = approve(lead, request_of(ask(home, "shop", "triskel")))
    one = join(home, first.path, first.fingerprint)
    first.path.unlink(missing_ok=True)
    had, before = owned(one), serial(one)
    with pytest.raises(JobError, match="does not hold the key of 'shop'"):
        renew(lead, "shop")
    asked = ask(home, "shop", "triskel")
    with pytest.raises(JobError, match="a name is signed for once"):
        approve(lead, request_of(asked))
    signed = approve(lead, request_of(asked), renew=True)
    with pytest.raises(JobError, match="exists; remove it to join anew"):
        join(home, signed.path, signed.fingerprint)
    after = join(home, signed.path, signed.fingerprint, renew=True)
    assert (serial(after) != before, fits(after), keeps(after, had)) == (True, True, True)
    assert f"revoke {lead} {before}" in authority.left_over(lead)[0]


@pytest.mark.parametrize("name", ["server", ANNA])
def test_the_leads_own_parties_are_renewed_there(name: str, lead: Path) -> None:
    before = serial(kit(lead, name))
    got = renew(lead, name)
    assert (serial(got.kit) != before, fits(got.kit)) == (True, True)
    assert len(authority.left_over(lead)) == 1


def test_a_name_that_was_never_signed_for_is_not_renewed(lead: Path, tmp_path: Path) -> None:
    asked = ask(tmp_path / "site", "shop", "triskel")
    with pytest.raises(JobError, match="signed for no 'shop' that is not revoked"):
        approve(lead, request_of(asked), renew=True)
    approve(lead, request_of(asked))
    authority.revoke(lead, "shop")
    with pytest.raises(JobError, match="signed for no 'shop' that is not revoked"):
        approve(lead, request_of(ask(tmp_path / "again", "shop", "triskel")), renew=True)


@pytest.mark.parametrize("how", ["to renew", "after it was revoked"])
def test_a_key_is_signed_once_also_after_it_was_revoked(
    how: str, lead: Path, tmp_path: Path
) -> None:
    asked = ask(tmp_path / "site", "shop", "triskel")
    kept = Path(shutil.copy(asked, tmp_path / "kept.zip"))
    approve(lead, request_of(asked))
    if how != "to renew":
        authority.revoke(lead, "shop")
    with pytest.raises(JobError, match="was signed before, for 'shop'"):
        approve(lead, request_of(kept), renew=how == "to renew")
    assert not (tmp_path / "shop.signed.zip").exists()


# --- what is put into a kit -------------------------------------------------------------------


def test_a_node_that_runs_is_not_renewed(central: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "alive", lambda _kit: 7)
    before = len(authority.issued(central / "ca"))
    with pytest.raises(FederationError, match=r"bank runs; `triskel federation stop"):
        renew(central, "bank")
    with pytest.raises(FederationError, match=r"bank runs; `triskel federation stop"):
        startup.swap(kit(central, "bank"), kit(central, "bank").path)
    assert len(authority.issued(central / "ca")) == before


@pytest.mark.parametrize("whose", ["clinic", ANNA, "another federation", "nobody"])
def test_a_kit_takes_no_others_certificate(whose: str, central: Path, tmp_path: Path) -> None:
    one = kit(central, "bank")
    before = serial(one)
    if whose == "another federation":
        new(tmp_path / "g", Plan(("bank",), server="localhost", port=8002, admin=ANNA))
        fresh = tmp_path / "g" / "kits" / "bank"
    elif whose == "nobody":
        fresh = tmp_path / "empty"
        fresh.mkdir()
    else:
        fresh = kit(central, whose).path
    with pytest.raises(JobError, match=r"is the kit of bank, and what came|of another authority"):
        startup.swap(one, fresh)
    assert serial(kit(central, "bank")) == before


# --- the list, when something goes wrong --------------------------------------------------------


def test_a_party_is_revoked_where_no_kit_is_left(central: Path) -> None:
    shutil.rmtree(central / "kits")
    (central / "kits").mkdir()
    assert [one.name for one in authority.revoke(central, "bank")] == ["bank"]
    assert (central / "ca" / "revoked.pem").is_file()


def test_what_could_not_be_signed_is_not_taken_for_revoked(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JobError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(authority, "write_bytes", full)
        with pytest.raises(JobError, match="full"):
            authority.revoke(central, "bank")
    assert [one.name for one in authority.revoke(central, "bank")] == ["bank"]
    assert Revoked(kit(central, "clinic").path).holds(int(serial(kit(central, "bank")), 16))


def test_a_damaged_list_is_mended_by_one_that_the_authority_signed(central: Path) -> None:
    authority.revoke(central, ANNA)
    held = list_in(kit(central, "bank").path)
    held.write_bytes(b"nonsense")
    authority.revoke(central, "clinic")
    assert len(Revoked(kit(central, "bank").path).serials()) == 2


def test_a_node_that_takes_no_list_keeps_it_from_no_other(central: Path) -> None:
    bank, number = kit(central, "bank"), int(serial(kit(central, "clinic")), 16)
    (bank.path / "startup" / "rootCA.pem").write_text("nonsense")
    with pytest.raises(
        JobError, match=r"revoked, and .* says so, but bank does not take it .*federation deny"
    ):
        authority.revoke(central, "clinic")
    assert Revoked(kit(central, "server").path).holds(number)
    assert Revoked(kit(central, "clinic").path).holds(number)


def test_a_federation_without_a_book_knows_whom_it_signed_for(central: Path) -> None:
    (central / "ca" / "issued.json").unlink()
    assert {one.name for one in authority.issued(central / "ca")} == {
        *("server", "bank", "clinic", ANNA),
    }
    assert [one.name for one in authority.revoke(central, "bank")] == ["bank"]
    assert Revoked(kit(central, "server").path).holds(int(serial(kit(central, "bank")), 16))


# --- what is said -----------------------------------------------------------------------------


def short(one: kits.Kit, folder: Path, days: int) -> None:
    """Give a kit a certificate that ends after so many days."""
    state = json.loads((folder / "ca" / "state" / "cert.json").read_text())
    key: Any = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    mine, now = authority.certificate_of(one), datetime.now(UTC)
    built = x509.CertificateBuilder(
        mine.issuer, mine.subject, mine.public_key(), x509.random_serial_number(),
        now - timedelta(days=9), now + timedelta(days=days, hours=1), list(mine.extensions),
    )  # fmt: skip
    signed = built.sign(key, hashes.SHA256())
    place = one.path / "startup" / "client.crt"
    place.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(("days", "said"), [(29, "ends in 29 days"), (-1, "has ended"), (31, "")])
def test_status_says_that_a_certificate_ends(days: int, said: str, central: Path) -> None:
    short(kit(central, "bank"), central, days)
    shutil.rmtree(kit(central, ANNA).path)  # nobody asks a server
    got = CliRunner().invoke(cli.app, ["federation", "status", str(central)])
    assert got.exit_code == 0, got.output
    assert ("the certificate of bank" in got.output) == bool(said)
    assert said in got.output


def test_status_is_told_also_where_a_book_or_a_certificate_cannot_be_read(central: Path) -> None:
    (central / "ca" / "issued.json").write_text("{")
    (kit(central, "bank").path / "startup" / "client.crt").write_text("nonsense")
    shutil.rmtree(kit(central, ANNA).path)  # nobody asks a server
    got = CliRunner().invoke(cli.app, ["federation", "status", str(central)])
    assert got.exit_code == 0, got.output
    said = got.output.replace("\n", "")
    assert "client.crt is no certificate" in said
    assert "issued.json does not say whom was signed for" in said
    assert "clinic" in said


def test_the_command_renews_and_says_what_to_revoke(central: Path) -> None:
    before = serial(kit(central, "bank"))
    got = CliRunner().invoke(cli.app, ["federation", "renew", str(central), "bank"])
    assert got.exit_code == 0, got.output
    assert f"triskel federation revoke {central} {before}" in got.output.replace("\n", "")
    got = CliRunner().invoke(cli.app, ["federation", "renew", str(central), "nobody"])
    assert got.exit_code
    assert "signed for no 'nobody'" in got.output


# --- packed kits, once more -------------------------------------------------------------------


def header(kind: bytes, name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


HEADS: dict[str, Callable[[], bytes]] = {
    "headers about headers": lambda: gzipped(_nested(5_000)),
    "a header of half a gigabyte": lambda: gzipped(header(b"x", "h", 512 << 20) + bytes(256 << 20)),
    "a name of half a gigabyte": lambda: gzipped(header(b"L", "h", 512 << 20) + bytes(256 << 20)),
    "a name that steers a terminal": lambda: _entry("bank/startup/x\r\x1b[2Kall is well"),
    "a folder that steers a terminal": lambda: _entry("bank\x1b[2K/startup/x"),
    "two archives": lambda: gzipped(bytes(1024)) + gzipped(bytes(1024)),
}


def _nested(times: int) -> bytes:
    line = b"9 path=a\n"
    block = header(b"x", "h", len(line)) + line.ljust(512, b"\0")
    return block * times


def _entry(name: str) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        packed.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.mark.parametrize("name", HEADS)
def test_an_archive_that_means_to_fill_memory_or_a_terminal_is_refused(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "evil.kit"
    file.write_bytes(HEADS[name]())
    tracemalloc.start()
    with pytest.raises(JobError, match=r"no packed kit|holds no kit"):
        unpack(file, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    assert list((tmp_path / "out").glob("*")) == []


def test_a_folder_that_kits_are_put_into_opens_for_its_owner_alone(
    central: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        unpack(pack(kit(central, "bank"), tmp_path / "bank.kit"), tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [(tmp_path / x).stat().st_mode & 0o077 for x in ("a", "a/b", "a/b/bank")] == [0, 0, 0]
