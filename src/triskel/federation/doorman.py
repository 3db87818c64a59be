"""The server's door: who shows no valid certificate is turned away and logged, and delays nobody.

A certificate that was revoked is not valid either, and who came in with it before is shown out.

FLARE's TCP server shakes hands where it accepts: a stranger who connects and says nothing keeps all
others out, and one whose certificate is refused leaves no trace. Here each handshake is made on the
connection's own thread, within seconds, and a refusal is a line of the log.
"""

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.drivers import tcp_driver

from triskel.errors import JobError
from triskel.policy.revoked import Revoked

LOGGER = logging.getLogger("triskel.door")
KIT = "TRISKEL_KIT"
"""The variable that tells a node where its kit is."""
LOOK_S = 2.0
"""Seconds between looks at the list of revoked certificates."""
HANDSHAKE_S = 10.0
"""Seconds a stranger has to show a certificate."""


class Guard:
    """Knows who is in, and shows out whoever's certificate was revoked since.

    Args:
        root: The server's folder, which holds the list.
    """

    def __init__(self, root: Path) -> None:
        self._revoked, self._inside = Revoked(root), dict[int, tuple[int, ssl.SSLSocket]]()
        self._lock, self._told = threading.Lock(), ""

    def watch(self) -> None:
        """Look at the list for as long as the process lives."""
        threading.Thread(target=self._watch, name="triskel-guard", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Close the connections of certificates that are on the list."""
        try:
            serials = self._revoked.serials()
        except JobError as error:
            if str(error) != self._told:
                LOGGER.error("%s; nobody new is let in", error)  # noqa: TRY400 - one sentence
                self._told = str(error)
            return
        self._told = ""
        with self._lock:
            gone = [(serial, one) for serial, one in self._inside.values() if serial in serials]
        for serial, one in gone:
            LOGGER.warning("the connection of certificate %x was closed: it is revoked", serial)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            self.left(one)

    def refuses(self, request: ssl.SSLSocket) -> str:
        """Return why a peer is not let in, or nothing; who is let in is known from now on."""
        serial = int(str((request.getpeercert() or {}).get("serialNumber", "0")), 16)
        try:
            if self._revoked.holds(serial):
                return f"certificate {serial:x} is revoked"
        except JobError as error:
            return str(error)
        with self._lock:
            self._inside[id(request)] = (serial, request)
        return ""

    def left(self, request: ssl.SSLSocket) -> None:
        """Forget a peer that left."""
        with self._lock:
            self._inside.pop(id(request), None)


class Door(tcp_driver.TcpStreamServer):
    """Listens as FLARE's own does, and shakes hands behind the door."""

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection, and wait for nothing."""
        listening: Any = self.socket
        if self.ssl_context:
            listening.do_handshake_on_connect = False  # what accept() hands on
        return super().get_request()

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve a connection, on its own thread, once its certificate is found valid."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.settimeout(HANDSHAKE_S)
                request.do_handshake()
                request.settimeout(None)
            except OSError as error:
                why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
                if not isinstance(error, ssl.SSLEOFError):  # who only knocks is not worth a line
                    LOGGER.warning("a connection from %s was refused: %s", client_address[0], why)
                return
            if (guard := Doorman.guard) is not None:
                if why := guard.refuses(request):
                    LOGGER.warning("a connection from %s was refused: %s", client_address[0], why)
                    return
                try:
                    super().finish_request(request, client_address)
                finally:
                    guard.left(request)
                return
        super().finish_request(request, client_address)


class Doorman(FLComponent):
    """Puts the door in; a server builds it before it listens."""

    guard: ClassVar[Guard | None] = None

    def __init__(self) -> None:
        super().__init__()
        if (root := os.environ.get(KIT)) and Doorman.guard is None:
            Doorman.guard = Guard(Path(root))
            Doorman.guard.watch()
        tcp_driver.TcpStreamServer = Door
