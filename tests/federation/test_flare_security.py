"""What strangers, submitters and participants may not do: refused, named, logged, and survived.

Each test is one row or several of the table in docs/federation-security.md. When all have run, the
same server still plays an honest job to its end.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from triskel.federation import authority, job_folder, job_watch, kits, nodes
from triskel.federation.provision import Plan, new

HERE = Path(__file__).parents[1]
flares = runpy.run_path(str(HERE / "helpers" / "flares.py"))
patience, until, SITES, ANNA = (flares[n] for n in ("patience", "until", "SITES", "ANNA"))
pytestmark = flares["MARKS"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("security") / "f"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "BLOB_MB", 8)
        with flares["federation"](folder, rounds="1") as found:
            server = nodes.alive(found.kit("server"))
            yield found
            assert nodes.alive(found.kit("server")) == server, "the server is the one of before"
            assert found.run("params", out=folder / "last") == ""
            assert json.loads((folder / "last" / "ended.json").read_text())["done"]
            of_sites = [str(found.kit(name).path).encode() for name in SITES]
            for file in found.kit("server").path.rglob("*"):
                inside = file.read_bytes() if file.is_file() else b""
                assert not [path for path in of_sites if path in inside], f"{file} has a site's log"


# --- Strangers: no part in the federation -------------------------------------------------------


def knock(there: Any, certificate: Path | None = None, key: Path | None = None) -> str:
    """Connect as TLS does; return what the stranger is told."""
    context = ssl.create_default_context(
        cafile=str(there.kit("bank").path / "startup" / "rootCA.pem")
    )
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    try:
        with socket.create_connection(("127.0.0.1", there.plan.port), patience(5)) as plain:
            plain.settimeout(patience(3))
            with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
                wrapped.sendall(bytes(64))
                return "let in" if wrapped.recv(1) else "closed"
    except TimeoutError:
        return "let in"
    except OSError as error:
        return str(error)


def signed_again(there: Any, startup: Path, place: Path, days: int) -> Path:
    """Sign another certificate for somebody's own key, that ends after so many days."""
    state = json.loads((there.folder / "ca" / "state" / "cert.json").read_text())
    mine = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
    key: Any = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(
        mine.issuer, mine.subject, mine.public_key(), x509.random_serial_number(),
        now - timedelta(days=9), now + timedelta(days=days), list(mine.extensions),
    )  # fmt: skip
    signed = built.sign(key, hashes.SHA256())
    place.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return place


def expired(there: Any, place: Path) -> Path:
    """Sign a certificate for a site's own key that ended yesterday."""
    return signed_again(there, there.kit("bank").path / "startup", place, -1)


def test_who_shows_no_valid_certificate_is_refused_and_named_in_the_servers_log(
    there: Any, tmp_path: Path
) -> None:
    startup = there.kit("bank").path / "startup"
    new(tmp_path / "g", Plan(("bank",), port=there.plan.port, admin=ANNA))
    foreign = tmp_path / "g" / "kits" / "bank"
    cases: dict[str, tuple[Path | None, Path | None]] = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": (None, None),
        "unable to get local issuer certificate": (
            foreign / "startup" / "client.crt", foreign / "startup" / "client.key",
        ),
        "certificate has expired": (expired(there, tmp_path / "old.crt"), startup / "client.key"),
    }  # fmt: skip
    for why, (certificate, key) in cases.items():
        before = there.log("server").count(why)
        told = knock(there, certificate, key)
        assert told != "let in"
        line = f"a connection from 127.0.0.1 was refused: {why}"
        until(lambda line=line: line in there.log("server"), line, 20)
        assert there.log("server").count(why) > before
    assert knock(there, startup / "client.crt", startup / "client.key") in {"let in", "closed"}


ASKS = """
import os, sys, threading, time
from pathlib import Path
from triskel.federation import kits
from triskel.federation.session import Session

kit, there, out = kits.admin_in(Path(sys.argv[1])), [], sys.stdout  # which a session redirects


def answered(what, patience_s):
    done = []
    hand = threading.Thread(target=lambda: done.append(what()), daemon=True)
    hand.start()
    hand.join(patience_s)  # FLARE may try for long to reach a server that hung up
    return done


def ask():
    try:
        there[:] = there or [Session(kit, limit)]
        return there[0].sites()
    except Exception:
        return []


limit = 60.0
print("in" if any(answered(ask, 90)) else "never in", file=out, flush=True)
sys.stdin.readline()
print("still in" if any(answered(ask, 8)) else "out", file=out, flush=True)
there.clear()
limit = 5.0
print("in again" if any(answered(ask, 8)) else "refused", file=out, flush=True)
os._exit(0)
"""


def listed(there: Any, place: Path, name: str) -> str:
    """Write a certificate into the authority's book; return its number."""
    paper = x509.load_pem_x509_certificate(place.read_bytes())
    authority.note(there.folder / "ca", name, paper)
    return f"{paper.serial_number:x}"


def test_who_is_revoked_is_shown_out_of_a_running_server_within_ten_seconds(
    there: Any, tmp_path: Path
) -> None:
    """A site's connection is closed, and an administrator's; neither comes in again."""
    startup = there.kit("bank").path / "startup"
    paper = signed_again(there, startup, tmp_path / "bank.crt", 9)
    number = listed(there, paper, "bank of before")
    admin = Path(shutil.copytree(there.admin.path, tmp_path / "anna"))
    of_admin = signed_again(there, admin / "startup", tmp_path / "anna.crt", 9)
    shutil.copy(of_admin, admin / "startup" / "client.crt")
    admins = listed(there, of_admin, "anna of before")
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.load_cert_chain(paper, startup / "client.key")
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKS, str(admin)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asking.stdin is not None
    assert asking.stdout is not None
    with (
        asking,
        socket.create_connection(("127.0.0.1", there.plan.port), patience(5)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        assert asking.stdout.readline().strip() == "in"
        began = time.monotonic()
        for one in (number, admins):
            authority.revoke(there.folder, one)
        wrapped.settimeout(patience(10))
        while wrapped.recv(1 << 16):  # what FLARE says first, then the end
            pass
        assert time.monotonic() - began < patience(10)
        closed = f"the connection of certificate {admins} was closed: it is revoked"
        until(lambda: closed in there.log("server"), closed, 10)
        assert time.monotonic() - began < patience(10)
        assert knock(there, paper, startup / "client.key") != "let in"
        line = f"a connection from 127.0.0.1 was refused: certificate {number} is revoked"
        until(lambda: line in there.log("server"), line, 20)
        said, _ = asking.communicate("ask again\n", timeout=patience(60))
        assert said.split("\n")[:2] == ["out", "refused"]
    assert f"was refused: certificate {admins} is revoked" in there.log("server")
    with there.line() as line_:
        assert line_.session().sites() == sorted(SITES), "the others are there as before"


def test_a_node_of_another_federation_is_not_registered(there: Any, tmp_path: Path) -> None:
    new(tmp_path / "g", Plan(("mallory",), port=there.plan.port, admin=ANNA))
    foreign = kits.kit_at(tmp_path / "g" / "kits" / "mallory")
    assert foreign is not None
    try:
        since = time.time()
        there.begin(foreign)
        why = "a connection from 127.0.0.1 was refused: TLSV1_ALERT_UNKNOWN_CA"
        until(lambda: why in there.log("server"), why)
        assert nodes.waiting_for([foreign], since, 2) == [
            f"mallory has not reached the server at localhost:{there.plan.port}; it keeps trying"
        ]
        with there.line() as line:
            assert line.session().sites() == sorted(SITES)
    finally:
        nodes.stop([foreign])


def test_a_stranger_who_says_nothing_keeps_nobody_out(there: Any) -> None:
    startup = there.kit("bank").path / "startup"
    silent = [socket.create_connection(("127.0.0.1", there.plan.port)) for _ in range(5)]
    start = time.monotonic()
    assert knock(there, startup / "client.crt", startup / "client.key") in {"let in", "closed"}
    assert time.monotonic() - start < patience(8), "who has a certificate waits for none of them"
    ours = [f"127.0.0.1 was refused: {why}" for why in ("_ssl.c", "The handshake", "timed out")]
    until(lambda: any(why in there.log("server") for why in ours), "the end of their time", 20)
    for one in silent:
        one.settimeout(patience(5))
        assert one.recv(1) == b""
        one.close()


# --- Submitters: an administrator who sends what is no job --------------------------------------


def ends(line: Any, number: str) -> job_watch.End:
    return job_watch.wait(line, number, job_watch.Trail(), lambda _: None)


def fetched(line: Any, number: str, place: Path) -> str:
    """Return the server's log of a job that has ended."""
    found = Path(line.session()._inner.download_job_result(number, str(place)))
    return "\n".join(f.read_text(errors="replace") for f in sorted(found.rglob("log.txt")))


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "app" / "config" / f"config_fed_{name}.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def test_a_job_with_code_or_with_a_class_that_is_not_ours_does_not_run(
    there: Any, tmp_path: Path
) -> None:
    asked, mark = there.asked("params"), tmp_path / "was-here"
    own = job_folder.write(tmp_path / "code", asked, ("bank",))
    (own / "app" / "custom").mkdir()
    (own / "app" / "custom" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    touch = {"id": "t", "path": "subprocess.Popen", "args": {"args": ["touch", str(mark)]}}
    at_server = job_folder.write(tmp_path / "at-server", asked, ("bank",))
    changed(at_server, "server", lambda found: found["components"].insert(0, touch))
    at_site = job_folder.write(tmp_path / "at-site", asked, ("bank",))
    changed(at_site, "client", lambda found: found["components"].insert(0, touch))
    changed(at_site, "server", lambda f: f["workflows"][0]["args"].update(sync_task_timeout=5))
    sender = "nvflare.app_common.logging.job_log_streamer.JobLogStreamer"
    sends = job_folder.write(tmp_path / "sends", asked, ("clinic",))
    streams = {"id": "s", "path": sender, "args": {"target_parent_server": True}}
    changed(sends, "client", lambda found: found["components"].append(streams))
    changed(sends, "server", lambda f: f["workflows"][0]["args"].update(sync_task_timeout=5))
    with there.line() as line:
        sent = (own, at_server, at_site, sends)
        numbers = [line.session().submit(at, at.name) for at in sent]
        code, server, site, streaming = [ends(line, number) for number in numbers]
        servers_log = fetched(line, numbers[1], tmp_path / "log")
        result = fetched(line, numbers[2], tmp_path / "log2")
    assert code == job_watch.End("FINISHED:FAILED_TO_RUN", "server: BYOC not permitted")
    assert server.label == site.label == streaming.label == "FINISHED:EXECUTION_EXCEPTION"
    why = "component not authorized: Component 'subprocess.Popen' at config path 'components.#1'"
    assert f"{why} is not in allow_list" in servers_log
    assert f"{why} is not in allow_list" in there.log("bank")
    assert f"'{sender}' at config path 'components" in there.log("clinic")
    assert "failed to sync clients ['bank']" in result
    assert not mark.exists()


# --- Participants -------------------------------------------------------------------------------


@pytest.fixture
def otherwise(there: Any) -> Iterator[Callable[..., None]]:
    """Starts sites anew, each with a path of modules; at the end all are as before."""
    begun: set[str] = set()

    def again(**paths: Sequence[Path]) -> None:
        begun.update(paths)
        there.stop(*paths)
        since = time.time()
        for name, path in paths.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", ":".join(map(str, path)))
                there.begin(there.kit(name))
        chosen = [there.kit(name) for name in paths]
        assert not nodes.waiting_for(chosen, since, patience(60))

    yield again
    there.stop(*begun)
    there.start(*begun)


def test_a_site_of_another_version_or_whose_policy_says_no_ends_the_job_before_anything_is_read(
    there: Any, otherwise: Callable[..., None], tmp_path: Path
) -> None:
    source = HERE.parent / "src"
    for name in ("older", "patched"):
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    start = tmp_path / "older" / "triskel" / "core" / "source.py"
    start.write_text(start.read_text() + '\nVERSION = "0.0.9"\n')
    line = tmp_path / "patched" / "triskel" / "numerics" / "rng.py"
    line.write_text(line.read_text() + "\n# nothing else\n")
    otherwise(bank=[tmp_path / "older"], clinic=[tmp_path / "patched"])
    place = there.kit("shop").local / "policy.toml"
    allowed = place.read_text()
    place.write_text(allowed.replace('"params", ', ""))
    try:
        said = there.run("params", out=tmp_path / "out")
    finally:
        place.write_text(allowed)
    assert said == (
        "the job ended: bank: the site runs triskel 0.0.9 and this side 0.1.0; install the same "
        "release everywhere; clinic: the site runs other code under the same version 0.1.0; "
        "install the same release everywhere; shop: modes: the job runs in mode 'params'; this "
        "site does not allow it"
    )
    assert not (tmp_path / "out").exists()


NO_METHOD = "no method named '{}' or it is not collab"
OPEN = "params/0/work is not open; params/1/work"
NO_BYTES, NO_TEXT = "an ask is made of bytes, got dict", "play must be text, got 'list'"
NO_MESSAGE = "message from client 'shop': a message starts with b'TRSK', this one with b'\\x93NUM'"
LARGE = (
    "message from client 'shop': message has 3000000 bytes, the limit is 2000000; raise "
    "wire.max_mb or choose a smaller codec"
)
OTHER = "payload caller does not match authenticated origin"
ONLY = "only the server calls a site"
BLOB = " exceeds configured limit 8388608 (streaming_max_blob_size)"
REFUSED = {  # what the intruder tries: what it is told, and what the log says
    **{f"method {name}": (NO_METHOD.format(name),) * 2 for name in ("_board", "play", "__init__")},
    "forged name": (OTHER, OTHER),
    "another client": (ONLY, f"a call of shop was refused: {ONLY}"),
    "old play": (OPEN, f"a call of shop was turned away: {OPEN}"),
    "no bytes": (NO_BYTES, f"a call of shop was refused: {NO_BYTES}"),
    "no play": (NO_TEXT, f"a call of shop was refused: {NO_TEXT}"),
    "oversized": (BLOB, BLOB),
    "garbage": (NO_MESSAGE, f"a call of shop was turned away: {NO_MESSAGE}"),
    "large": (LARGE, f"a call of shop was turned away: {LARGE}"),
}


def intruding(there: Any, folder: Path, text: str) -> Path:
    """Write a job in which one site runs a class of its own."""
    asked = there.asked("params", text=text)
    made = job_folder.write(folder, asked, SITES)
    shutil.copytree(made / "app", made / "theirs")
    meta = json.loads((made / "meta.json").read_text())
    meta["deploy_map"] = {"app": ["server", "bank", "clinic"], "theirs": ["shop"]}
    (made / "meta.json").write_text(json.dumps(meta))
    file = made / "theirs" / "config" / "config_fed_client.json"
    file.write_text(file.read_text().replace("triskel.engines.flare.Client", "intruder.Client"))
    return made


def test_a_participant_that_abuses_its_place_gains_nothing_and_the_others_go_on(
    there: Any, otherwise: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = there.kit("shop")
    resources = shop.local / "resources.json"
    honest = resources.read_text()
    theirs = json.loads(honest)
    theirs["class_allow_list"].append("intruder.Client")
    resources.write_text(json.dumps(theirs))
    text = there.house.text.replace("rounds = 1", "rounds = 5")
    text = text.replace("[federation]", "[federation]\nquorum = 0.6") + "\n[wire]\nmax_mb = 2.0\n"
    made = intruding(there, tmp_path / "job", text)
    try:
        monkeypatch.setattr(nodes, "weakness", lambda _: None)  # it is the intruder's machine
        otherwise(shop=[HERE / "federation" / "hostile", HERE.parent / "src"])
        with there.line() as line:
            number = line.session().submit(made, made.name)
            assert ends(line, number).label == "FINISHED:COMPLETED"
            log = fetched(line, number, tmp_path / "log")
            ended = job_watch.fetch(line, number, tmp_path / "out")
    finally:
        resources.write_text(honest)
    assert ended == {"done": True, "refused": False}
    tried: Mapping[str, str] = json.loads((shop.own / "tried.json").read_text())
    assert tried.keys() == REFUSED.keys()
    for what, (told, logged) in REFUSED.items():
        assert told in tried[what], what
        assert logged in (there.log("bank") if what == "another client" else log), what
    rounds = flares["rounds_of"](tmp_path / "out", "params")
    assert [found.get("absent", {}) for found in rounds] == [
        {},
        {"shop": "message belongs to round 1, and round 2 is open"},
        {"shop": REFUSED["garbage"][0]},
        {"shop": REFUSED["large"][0]},
        {},
    ]
    lines = [line for line in log.splitlines() if '"event": "warning"' in line]
    warned = [json.loads(line[line.index("{") :]) for line in lines]
    assert [one["text"] for one in warned] == [
        f"shop is left out of this round: {found['absent']['shop']}" for found in rounds[1:4]
    ]
