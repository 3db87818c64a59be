"""A site's call: a server whose certificate was revoked is not spoken to.

FLARE's client checks that the federation's authority signed the server's certificate, and nothing
else. Here it is held against the site's list as well, before a word is said, and a connection that
is there is closed when the list names it. It is for the scheme `tcp`, as the server's door is.
"""

import logging
import os
import ssl
from pathlib import Path
from typing import Any, ClassVar

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.drivers import tcp_driver
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection

from triskel.federation.doorman import KIT, Guard

LOGGER = logging.getLogger("triskel.caller")


class RevokedServerError(ConnectionError):
    """The server's certificate is on the list, or the list cannot be read."""


class Call(SocketConnection):
    """A connection to a server that the site's list does not name."""

    def __init__(self, sock: Any, connector: Any, secure: bool = False) -> None:  # noqa: ANN401, FBT001, FBT002 - FLARE's
        guard = Caller.guard
        if guard is not None and isinstance(sock, ssl.SSLSocket) and (why := guard.refuses(sock)):
            sock.close()
            LOGGER.warning("the server is not spoken to: %s", why)
            raise RevokedServerError(f"the server is not spoken to: {why}")
        super().__init__(sock, connector, secure)

    def read_loop(self) -> None:
        """Read until the connection ends; close and forget it then."""
        try:
            super().read_loop()
        finally:
            self.close()
            if Caller.guard is not None:
                Caller.guard.left(self.sock)


class Caller(FLComponent):
    """Puts the call in; a site's node and its jobs build it before they connect."""

    guard: ClassVar[Guard | None] = None

    def __init__(self) -> None:
        super().__init__()
        if (root := os.environ.get(KIT)) and Caller.guard is None:
            Caller.guard = Guard(Path(root))
            Caller.guard.watch()
        tcp_driver.SocketConnection = Call
