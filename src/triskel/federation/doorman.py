"""The server's door: who shows no valid certificate is turned away and logged, and delays nobody.

FLARE's TCP server shakes hands where it accepts: a stranger who connects and says nothing keeps all
others out, and one whose certificate is refused leaves no trace. Here each handshake is made on the
connection's own thread, within seconds, and a refusal is a line of the log.
"""

import logging
import ssl
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.drivers import tcp_driver

LOGGER = logging.getLogger("triskel.door")
HANDSHAKE_S = 10.0
"""Seconds a stranger has to show a certificate."""


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
        super().finish_request(request, client_address)


class Doorman(FLComponent):
    """Puts the door in; a server builds it before it listens."""

    def __init__(self) -> None:
        super().__init__()
        tcp_driver.TcpStreamServer = Door
