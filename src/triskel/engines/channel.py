"""What lies between two sides in one process: a message becomes bytes, is read again and booked.

So sizes, rounding and refusals are those of a federation, and nothing slips past by reference.
"""

from dataclasses import dataclass

from triskel.codec import decode, travelling
from triskel.config.job import Job
from triskel.config.wire import Direction, Wire
from triskel.core import events
from triskel.errors import MessageError
from triskel.types import ClientId, Message, Watch
from triskel.wire import pack, unpack
from triskel.wire.alike import alike
from triskel.wire.ledger import Ledger

MB = 1_000_000


@dataclass
class Channel:
    """What one round sends, in both directions.

    What is sent to many clients alike is packed and read once, as long as nobody wrote into it.

    Attributes:
        job: Codecs and message limit.
        ledger: Books every message.
        watch: Told of every message.
        scoring: Whether all that is carried tests a model, the task that opens the test included.
    """

    job: Job
    ledger: Ledger
    watch: Watch
    scoring: bool = False
    _last: tuple[Message, int, Message, list[int]] | None = None

    def carry(self, message: Message, client: ClientId, direction: Direction) -> Message:
        """Return what arrives at the other side."""
        received, size = self._across(message, client, direction)
        self.book(message, size, client, direction)
        return received

    def pack(self, message: Message, client: ClientId, direction: Direction) -> bytes:
        """Return a message as it travels.

        Raises:
            MessageError: It cannot; the sentence names the client.
        """
        try:
            return pack(travelling(message, self.job.wire, direction))
        except MessageError as error:
            raise _placed(error, client, direction, message.kind) from error

    def read(self, data: bytes, client: ClientId, direction: Direction, kind: str = "") -> Message:
        """Return what travelled as the message it was, up to the codec's error.

        Args:
            data: What arrived.
            client: Who sent it, or to whom it was sent.
            direction: `up` is towards the server.
            kind: What it was sent as, for the sentence of an error.

        Raises:
            MessageError: The bytes are no message; the sentence names the client.
        """
        try:
            return arrived(data, self.job.wire, direction)
        except MessageError as error:
            raise _placed(error, client, direction, kind) from error

    def book(self, message: Message, size: int, client: ClientId, direction: Direction) -> None:
        """Enter a message into the ledger, and tell of it."""
        if self.scoring:
            self.ledger.scored(direction, message, size)
        else:
            self.ledger.sent(client, direction, message, size)
        kind, topic = message.kind, message.topic
        self.watch(events.message(client, direction, kind=kind, topic=topic, size=size))

    def _across(
        self, message: Message, client: ClientId, direction: Direction
    ) -> tuple[Message, int]:
        if direction == "down" and self._last is not None:
            sent, size, received, versions = self._last
            if alike(sent, message) and _versions(sent, received) == versions:
                return received, size
        data = self.pack(message, client, direction)
        received = self.read(data, client, direction, message.kind)
        if direction == "down":
            self._last = message, len(data), received, _versions(message, received)
        return received, len(data)


def arrived(data: bytes, wire: Wire, direction: Direction) -> Message:
    """Return the message in these bytes, codecs undone.

    Raises:
        MessageError: They are no message, or none that the job has travel this way.
    """
    most = int(wire.max_mb * MB)
    message = unpack(data, limit_bytes=most)
    return decode(message, changes=wire.has_changes(direction), limit_bytes=most)


def _placed(
    error: MessageError, client: ClientId, direction: Direction, kind: str = ""
) -> MessageError:
    way, what = "from" if direction == "up" else "to", f" ({kind})" if kind else ""
    return type(error)(f"message {way} client {client!r}{what}: {error}")


def _versions(*messages: Message) -> list[int]:
    """Return how often each tensor was written to."""
    return [
        x._version  # noqa: SLF001 - torch's own count
        for message in messages
        for section in message.sections.values()
        for x in section.tensors.values()
    ]
