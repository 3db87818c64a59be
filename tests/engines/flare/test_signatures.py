"""Who signed a job is what its signatures say, on every side, and each submission is taken once."""

# ruff: noqa: ANN401 - jobs are JSON

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.lighter.utils import load_private_key_file, sign_folders

from triskel.config.read import parse
from triskel.engines import flare
from triskel.engines.flare.signatures import SEEN, admit_once, not_revoked, signer_of
from triskel.engines.flare.submission import owned
from triskel.errors import CheckpointError, JobError, MessageError
from triskel.federation import kits
from triskel.federation.authority import revoke
from triskel.federation.distributed import approve, ask, found, join, request_of
from triskel.federation.job_folder import request, write
from triskel.federation.provision import Plan

NOW = datetime.now(UTC)
JOB = parse(
    'rounds = 1\n[data]\nsource = "clients"\ntrain = "notes"\ntext = "t"\nlabel = "l"\n'
    'classes = ["no", "yes"]\n[logits]\npublic = 0\n'
)
SPEC = {"on": ["bank", "clinic"], "submission": "a" * 32, "at": NOW.isoformat()}


@pytest.fixture(scope="module")
def lead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation with two administrators, anna and eve."""
    folder = tmp_path_factory.mktemp("signed") / "f"
    _, print_ = found(folder, Plan(("bank",), server="localhost", port=8002, admin="anna@lab.ch"))
    approved = approve(folder, request_of(ask(folder, "eve@lab.ch", "triskel")))
    join(folder, approved.path, print_)
    return folder


@pytest.fixture
def sent(lead: Path, tmp_path: Path) -> Path:
    """A job folder, as it is sent, not signed."""
    del lead
    asked = request(JOB, ["params"], ["bank", "clinic"])
    return write(tmp_path / "job", asked, ["bank", "clinic"]) / "app"


def spec_in(app: Path) -> dict[str, Any]:
    config = json.loads((app / "config" / "config_fed_client.json").read_text())
    spec: dict[str, Any] = config["components"][0]["args"]["spec"]
    return spec


def sign(lead: Path, app: Path, who: str) -> None:
    kit = kits.admin_in(lead, who).path / "startup"
    sign_folders(str(app), load_private_key_file(str(kit / "client.key")), str(kit / "client.crt"))


def authority(lead: Path) -> Path:
    return lead / "ca" / "rootCA.pem"


@pytest.mark.parametrize("who", ["anna@lab.ch", "eve@lab.ch"])
def test_who_signed_is_who_submitted(who: str, lead: Path, sent: Path) -> None:
    sign(lead, sent, who)
    signer = signer_of(sent, authority(lead), spec_in(sent))
    assert signer.name == who
    assert signer.serial > 2**32


def edited(app: Path) -> None:
    file = app / "config" / "config_fed_client.json"
    file.write_text(file.read_text().replace("rounds = 1", "rounds = 9"))


def added(app: Path) -> None:
    (app / "config" / "more.json").write_text("{}")


def linked(app: Path) -> None:
    (app / "config" / "more.json").symlink_to("/etc/hostname")


def bare(app: Path) -> None:
    for file in app.rglob(".__nvfl*"):
        file.unlink()


@pytest.mark.parametrize("change", [edited, added, linked, bare])
def test_what_nobody_signed_is_not_taken(
    change: Callable[[Path], None], lead: Path, sent: Path
) -> None:
    spec = spec_in(sent)
    sign(lead, sent, "anna@lab.ch")
    change(sent)
    with pytest.raises(JobError, match=r"^is not signed by a member of this federation"):
        signer_of(sent, authority(lead), spec)


def test_a_signature_of_another_federation_is_none(lead: Path, sent: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    found(other, Plan(("bank",), server="localhost", port=8002, admin="anna@lab.ch"))
    sign(other, sent, "anna@lab.ch")
    with pytest.raises(JobError, match=r"^is not signed by a member"):
        signer_of(sent, authority(lead), spec_in(sent))


def test_two_signers_are_one_too_many(lead: Path, sent: Path) -> None:
    sign(lead, sent, "anna@lab.ch")
    sign(lead, sent / "config", "eve@lab.ch")
    with pytest.raises(JobError, match=r"^is signed by several"):
        signer_of(sent, authority(lead), spec_in(sent))


@pytest.mark.parametrize(
    ("key", "value"), [("job", "rounds = 9"), ("on", ["shop"]), ("submission", "b" * 32)]
)
def test_what_the_engine_was_handed_must_be_what_was_signed(
    key: str, value: Any, lead: Path, sent: Path
) -> None:
    """A server may build the classes with other arguments than the folder names."""
    sign(lead, sent, "anna@lab.ch")
    with pytest.raises(JobError, match=r"^is another one than the one that was signed"):
        signer_of(sent, authority(lead), spec_in(sent) | {key: value})


def test_a_submission_is_taken_once(tmp_path: Path, sent: Path) -> None:
    spec = spec_in(sent)
    admit_once(tmp_path, spec, "bank", NOW)
    again = shutil.copytree(sent, tmp_path / "copy")
    for one in (spec, spec_in(again), spec | {"at": (NOW - timedelta(hours=3)).isoformat()}):
        with pytest.raises(JobError, match=r"^was played before, and cannot be replayed"):
            admit_once(tmp_path, one, "bank", NOW + timedelta(days=1))
    admit_once(tmp_path, spec | {"submission": "c" * 32}, "bank", NOW)  # as a resumed run is


@pytest.mark.parametrize(
    ("when", "taken"),
    [(-15, False), (-13, True), (0, True), (1, False)],
)
def test_a_submission_has_its_time(when: int, taken: bool, tmp_path: Path) -> None:  # noqa: FBT001
    spec = SPEC | {"at": (NOW + timedelta(days=when)).isoformat()}
    if taken:
        admit_once(tmp_path, spec, "bank", NOW)
        return
    with pytest.raises(JobError, match=r"^was submitted too long ago, or under a clock"):
        admit_once(tmp_path, spec, "bank", NOW)


def test_what_was_taken_is_known_for_as_long_as_it_could_come_again(tmp_path: Path) -> None:
    admit_once(tmp_path, SPEC, "bank", NOW)
    admit_once(tmp_path, SPEC | {"submission": "b" * 32}, "bank", NOW + timedelta(days=13))
    assert len(json.loads((tmp_path / SEEN).read_text())) == 2
    late = NOW + timedelta(days=16)
    admit_once(tmp_path, SPEC | {"submission": "c", "at": late.isoformat()}, "bank", late)
    assert list(json.loads((tmp_path / SEEN).read_text())) == ["c"]


@pytest.mark.parametrize("on", [[], ["clinic"], None, "bank", {"bank": 1}])
def test_a_job_for_others_is_not_taken(on: Any, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^was not submitted to site 'bank'"):
        admit_once(tmp_path, SPEC | {"on": on}, "bank", NOW)


@pytest.mark.parametrize("at", ["", "yesterday", "2026-11-27T10:00:00", None, 3])
def test_a_submission_without_a_time_is_not_taken(at: Any, tmp_path: Path) -> None:
    with pytest.raises((JobError, MessageError), match=r"when it was submitted|must be text"):
        admit_once(tmp_path, SPEC | {"at": at}, "bank", NOW)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": "noon"}'])
def test_what_was_taken_must_be_readable(text: str, tmp_path: Path) -> None:
    (tmp_path / SEEN).write_text(text)
    with pytest.raises(CheckpointError, match="does not say what was submitted"):
        admit_once(tmp_path, SPEC, "bank", NOW)


def test_a_job_signed_with_a_revoked_certificate_is_not_taken(
    lead: Path, sent: Path, tmp_path: Path
) -> None:
    """Nor is one where the list cannot be read; where that lies is told to nobody."""
    folder = Path(shutil.copytree(lead, tmp_path / "lead"))
    node = next(one for one in kits.kits_in(folder) if one.kind == "server").path
    sign(lead, sent, "eve@lab.ch")
    signer = signer_of(sent, authority(lead), spec_in(sent))
    not_revoked(node, signer)
    revoke(folder, "anna@lab.ch")
    not_revoked(node, signer)
    revoke(folder, "eve@lab.ch")
    with pytest.raises(JobError, match=r"^is signed with a certificate that was revoked$"):
        not_revoked(node, signer)
    (node / "local" / "revoked.pem").write_bytes(b"damaged")
    with pytest.raises(JobError, match=r"certificate that may have been revoked$"):
        not_revoked(node, signer)


def test_each_side_verifies_takes_once_and_asks_the_list(
    lead: Path, sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `Server` and `Client` do with the folder that FLARE put in its place."""
    folder = Path(shutil.copytree(lead, tmp_path / "lead"))
    node = next(one for one in kits.kits_in(folder) if one.kind == "server").path
    workspace = SimpleNamespace(
        get_app_dir=lambda job: str(sent) if job == "7" else "",
        get_file_path_in_startup=lambda name: str(node / "startup" / name),
        get_root_dir=lambda: str(node),
    )
    there = SimpleNamespace(workspace=workspace, fl_ctx=SimpleNamespace(get_job_id=lambda: "7"))
    monkeypatch.setattr(flare, "collab", there)
    spec = spec_in(sent)
    assert flare._signed(spec) == (None, "is not signed by a member of this federation")
    sign(lead, sent, "eve@lab.ch")
    assert flare._signed(spec, "shop") == (None, "was not submitted to site 'shop'")
    assert flare._signed(spec, "bank") == ("eve@lab.ch", "")
    assert flare._signed(spec, "bank") == (None, "was played before, and cannot be replayed")
    revoke(folder, "eve@lab.ch")
    (node / "triskel" / SEEN).unlink()
    why = "is signed with a certificate that was revoked"
    assert flare._signed(spec, "bank") == (None, why)
    assert not (node / "triskel" / SEEN).exists()


def test_a_run_of_somebody_else_is_another_run() -> None:
    run = "0123456789ab"
    names = {owned(run, who) for who in ("anna@lab.ch", "eve@lab.ch", "Anna@lab.ch", "", "anna")}
    assert len(names) == 5
    assert all(name.startswith(f"{run}-") for name in names)
