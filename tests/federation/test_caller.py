"""A site does not speak to a server whose certificate was revoked, and stops where it does."""

# ruff: noqa: ANN401 - FLARE's connectors and sockets are untyped

import contextlib
import runpy
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.fuel.f3.drivers import tcp_driver
from nvflare.fuel.f3.drivers.connector_info import ConnectorInfo, Mode

from triskel.federation import authority, caller, kits
from triskel.federation.doorman import Guard
from triskel.federation.harden import harden, weakness
from triskel.policy.revoked import list_in

patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]


def kit(folder: Path, name: str) -> kits.Kit:
    return next(one for one in kits.kits_in(folder) if one.name == name)


@pytest.fixture
def server(central: Path) -> Iterator[int]:
    """Answers with the server's certificate, and says nothing; gives its port."""
    startup = kit(central, "server").path / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=startup / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    held: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()
        listening.settimeout(0.1)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = listening.accept()
                    plain.settimeout(10)
                    held.append(plain)
                    held[-1] = context.wrap_socket(plain, server_side=True)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        over.set()
        thread.join(20)
        for one in held:
            one.close()


def driver_of(kit_: kits.Kit, port: int, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return FLARE's own driver, as a site's node has it, and what it is to connect to."""
    patch.setattr(caller.Caller, "guard", Guard(kit_.path))
    patch.setattr(tcp_driver, "SocketConnection", caller.Call)
    startup = kit_.path / "startup"
    params = {
        "scheme": "stcp", "host": "127.0.0.1", "port": port, "secure": True,
        "ca_cert": str(startup / "rootCA.pem"), "client_cert": str(startup / "client.crt"),
        "client_key": str(startup / "client.key"),
    }  # fmt: skip
    driver = tcp_driver.TcpDriver()
    driver.register_conn_monitor(SimpleNamespace(state_change=lambda _connection: None))
    return driver, ConnectorInfo(
        "one", driver, params, Mode.ACTIVE, 0, 0, started=False, stopped=threading.Event()
    )


def answered(driver: Any, connector: Any) -> tuple[threading.Thread, list[Exception]]:
    failed: list[Exception] = []

    def connect() -> None:
        try:
            driver.connect(connector)
        except Exception as error:  # noqa: BLE001 - whatever FLARE would see
            failed.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    return thread, failed


def connected(driver: Any, thread: threading.Thread, failed: list[Exception]) -> None:
    """Wait until the server is spoken to."""
    guard, end = caller.Caller.guard, time.monotonic() + patience(30)
    assert guard is not None
    while not (guard._inside and driver.connections):
        assert thread.is_alive(), failed
        assert time.monotonic() < end
        time.sleep(0.02)
    thread.join(0.2)
    assert thread.is_alive(), failed


def test_a_revoked_server_is_left_and_not_spoken_to_again(
    central: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = kit(central, "bank")
    driver, connector = driver_of(bank, server, monkeypatch)
    thread, failed = answered(driver, connector)
    connected(driver, thread, failed)
    assert not failed
    authority.revoke(central, "server")
    guard = caller.Caller.guard
    assert guard is not None
    guard.look()
    thread.join(10)
    assert not thread.is_alive()
    assert not guard._inside, "what ended is forgotten"
    thread, failed = answered(driver, connector)
    thread.join(10)
    number = f"{authority.certificate_of(kit(central, 'server')).serial_number:x}"
    assert [str(one) for one in failed] == [
        f"the server is not spoken to: certificate {number} is revoked"
    ]


def test_another_certificate_on_the_list_keeps_nobody_from_the_server(
    central: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.revoke(central, "anna@lab.ch")
    driver, connector = driver_of(kit(central, "bank"), server, monkeypatch)
    thread, failed = answered(driver, connector)
    connected(driver, thread, failed)
    driver.shutdown()
    thread.join(10)
    assert not thread.is_alive()


def test_a_site_whose_list_cannot_be_read_speaks_to_nobody(
    central: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_in(kit(central, "bank").path).write_bytes(b"nonsense")
    thread, failed = answered(*driver_of(kit(central, "bank"), server, monkeypatch))
    thread.join(10)
    assert [type(one) for one in failed] == [caller.RevokedServerError]


def test_a_site_without_it_is_not_hardened(central: Path) -> None:
    bank, place = kit(central, "bank"), kit(central, "bank").local / "resources.json"
    assert weakness(bank) is None
    place.write_text(place.read_text().replace("triskel.federation.caller.Caller", "x.Y"))
    assert "see `caller`" in str(weakness(bank))
    harden(bank)
    assert weakness(bank) is None
