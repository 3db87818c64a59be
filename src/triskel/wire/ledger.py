"""What each client sent, received and computed in one round, as measured.

`payload_bytes` is what the mode wanted to send, every float counted as 4 bytes; `message_bytes` is
what `pack` returned after codecs. `wire_bytes` is what the engine put on a network, where it counts
that. What tests a model is booked apart, as `scoring`, and is in no other sum: how often a model is
tested is not the mode's doing.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from triskel.config.wire import WAYS, Direction
from triskel.core import result_parts
from triskel.core.result_parts import BothWays, RoundRow, Scoring, Spent, Sums, Totals, TotalWay
from triskel.types import ClientId, Message
from triskel.wire import payload_bytes

COLUMNS = (
    *(f"{way}.{what}" for way in ("up", "down") for what in ("payload_bytes", "message_bytes")),
    "up.messages",
    "down.messages",
    "flops",
    "peak_client_bytes",
    "compute_s",
)
"""Of the table of a round of many clients."""


@dataclass(slots=True)
class Way:
    """One direction of one client: running sums over messages."""

    payload_bytes: int = 0
    message_bytes: int = 0
    messages: int = 0
    sections: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, message: Message, message_bytes: int) -> None:
        """Add one message."""
        self.message_bytes += message_bytes
        self.messages += 1
        for name, section in message.sections.items():
            size = payload_bytes(section)
            self.payload_bytes += size
            self.sections[name] = self.sections.get(name, 0) + size

    def add(self, other: "Way") -> None:
        """Add what another way counted."""
        self.payload_bytes += other.payload_bytes
        self.message_bytes += other.message_bytes
        self.messages += other.messages
        for name, size in other.sections.items():
            self.sections[name] = self.sections.get(name, 0) + size

    def sums(self) -> Sums:
        """Return the sums as JSON values."""
        return {
            "payload_bytes": self.payload_bytes,
            "message_bytes": self.message_bytes,
            "messages": self.messages,
        }

    def row(self) -> result_parts.Way:
        """Return JSON values."""
        return {
            **self.sums(),
            "sections": {n: {"payload_bytes": b} for n, b in sorted(self.sections.items())},
        }


@dataclass(slots=True)
class Account:
    """One client in one round, or several added up."""

    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)
    flops: int = 0
    peak_client_bytes: int = 0
    compute_s: float = 0.0
    share: float | None = None
    staleness: int | None = None

    def add(self, other: "Account") -> None:
        """Add what another account says; memory is the larger of both."""
        self.up.add(other.up)
        self.down.add(other.down)
        self.flops += other.flops
        self.peak_client_bytes = max(self.peak_client_bytes, other.peak_client_bytes)
        self.compute_s += other.compute_s

    def row(self) -> Spent:
        """Return JSON values."""
        row: Spent = {
            "up": self.up.row(),
            "down": self.down.row(),
            "flops": self.flops,
            "peak_client_bytes": self.peak_client_bytes,
            "compute_s": self.compute_s,
        }
        if self.share is not None:
            row["share"] = self.share
        if self.staleness is not None:
            row["staleness"] = self.staleness
        return row


class Ledger:
    """All clients in one round."""

    def __init__(self) -> None:
        """Start empty."""
        self.accounts: dict[ClientId, Account] = defaultdict(Account)
        self.absent: dict[ClientId, str] = {}
        self.wire_bytes: BothWays | None = None
        self._scoring: dict[Direction, Way] = {way: Way() for way in WAYS}

    def sent(
        self, client: ClientId, direction: Direction, message: Message, message_bytes: int
    ) -> None:
        """Book one message.

        Args:
            client: Who sent or received it; the other end is the server.
            direction: `up` is towards the server.
            message: The message before codecs.
            message_bytes: Its size as packed, after codecs.
        """
        if message.kind == "evaluate":
            self.scored(direction, message, message_bytes)
            return
        account = self.accounts[client]
        (account.up if direction == "up" else account.down).count(message, message_bytes)

    def scored(self, direction: Direction, message: Message, message_bytes: int) -> None:
        """Book a message that is part of a test of a model, whatever its kind; as of `sent`."""
        self._scoring[direction].count(message, message_bytes)

    def computed(self, client: ClientId, *, flops: int, peak_bytes: int, seconds: float) -> None:
        """Book a client's compute."""
        account = self.accounts[client]
        account.flops += flops
        account.peak_client_bytes = max(account.peak_client_bytes, peak_bytes)
        account.compute_s += seconds

    def weighed(self, shares: Mapping[ClientId, float]) -> None:
        """Book the share that each client has in what the round ends with."""
        for client, share in shares.items():
            self.accounts[client].share = share

    def late(self, client: ClientId, rounds: int) -> None:
        """Book how many rounds ago the model was sent that a client's update began from."""
        self.accounts[client].staleness = rounds

    def crossed(self, *, up: int, down: int) -> None:
        """Book what the engine counted on the network, all clients together."""
        self.wire_bytes = {"up": up, "down": down}

    def left_out(self, client: ClientId, why: str) -> None:
        """Note that a client of the cohort has no part in the round's result."""
        self.absent[client] = why

    def rows(self) -> dict[ClientId, Spent]:
        """Return JSON values by client name."""
        return {client: self.accounts[client].row() for client in sorted(self.accounts)}

    @property
    def scoring(self) -> Scoring | None:
        """Sums over all that tested a model, all clients together; None where nothing crossed."""
        if not any(way.messages for way in self._scoring.values()):
            return None
        return {"up": self._scoring["up"].sums(), "down": self._scoring["down"].sums()}

    def total(self) -> Account:
        """Return the sums over all clients; memory is the largest of any."""
        found = Account()
        for account in self.accounts.values():
            found.add(account)
        return found

    def table(self) -> Iterator[str]:
        """Return the lines of a table with one line a client, the first naming its columns."""
        yield f"client,{','.join(COLUMNS)}\n"
        take = attrgetter(*COLUMNS)
        for client in sorted(self.accounts):
            name = client.replace('"', '""')
            yield f'"{name}",{",".join(map(str, take(self.accounts[client])))}\n'


def totals(rounds: Sequence[RoundRow]) -> Totals:
    """Return sums over rounds and clients; memory is the largest of any.

    Args:
        rounds: Rows with `seconds`, and either `clients` as `Ledger.rows` returns them or `sum`,
            the row of `Ledger.total`; `wire_bytes` is summed where every round has it, `scoring`
            over the rounds that have it.
    """
    rows = [row for one in rounds for row in costs(one)]
    up, down = (_summed([row[way] for row in rows]) for way in WAYS)
    crossed = [one["wire_bytes"] for one in rounds if "wire_bytes" in one]
    if rounds and len(crossed) == len(rounds):
        up["wire_bytes"] = sum(one["up"] for one in crossed)
        down["wire_bytes"] = sum(one["down"] for one in crossed)
    tested = [one["scoring"] for one in rounds if "scoring" in one]
    found: Totals = {
        "up": up,
        "down": down,
        "scoring": {
            "up": _summed([one["up"] for one in tested]),
            "down": _summed([one["down"] for one in tested]),
        },
        "client_flops": sum(row["flops"] for row in rows),
        "server_flops": sum(one["server"]["flops"] for one in rounds if "server" in one),
        "peak_client_bytes": max((row["peak_client_bytes"] for row in rows), default=0),
        "seconds": sum(one.get("seconds", 0.0) for one in rounds),
    }
    if not tested:
        found.pop("scoring")
    return found


def _summed(rows: Sequence[Sums]) -> TotalWay:
    """Return the sums of one direction."""
    return {
        "payload_bytes": sum(row["payload_bytes"] for row in rows),
        "message_bytes": sum(row["message_bytes"] for row in rows),
        "messages": sum(row.get("messages", 0) for row in rows),
    }


def costs(round_: RoundRow) -> list[Spent]:
    """Return what a round's figures add up from: the row of each client, or one of them all."""
    return [round_["sum"]] if "sum" in round_ else list(round_.get("clients", {}).values())
