"""What many clients spent in a round, told together: the sum, and who was slowest on each link."""

from triskel.core.result_parts import Spent, SpentTogether
from triskel.report.links import LINKS, Link
from triskel.report.links import seconds as on_link
from triskel.types import ClientId
from triskel.wire.ledger import Account, Ledger


def crowd(ledger: Ledger, seen: int) -> tuple[SpentTogether, dict[ClientId, Spent]]:
    """Return what many clients spent in a round: together, and the slowest on each link."""
    accounts = ledger.accounts
    slowest = {max(sorted(accounts), key=lambda c: _waited(accounts[c], link)) for link in LINKS}
    together: SpentTogether = {**ledger.total().row(), "clients": len(accounts), "seen": seen}
    return together, {client: accounts[client].row() for client in sorted(slowest)}


def _waited(account: Account, link: Link) -> float:
    up, down = account.up, account.down
    return on_link(
        link,
        compute_s=account.compute_s,
        up=up.message_bytes,
        down=down.message_bytes,
        messages=up.messages + down.messages,
    )
