"""The one way out of a site: what leaves is in its log first, and within its policy's limit."""

from dataclasses import dataclass, field

from triskel.codec import travelling
from triskel.config.wire import Wire
from triskel.errors import LimitError
from triskel.policy.audit import Audit
from triskel.policy.budget import Spent
from triskel.policy.limits import MB
from triskel.policy.rules import Leave
from triskel.types import Message
from triskel.wire import pack, show

BY_NAME = ("activations", "labels")
"""Kinds of sections that only a policy which names them lets out."""


@dataclass
class Outbox:
    """Packs a site's messages as they leave, and counts them.

    Attributes:
        audit: The site's log.
        wire: How the job's messages travel.
        round_mb: Megabytes that the policy lets out in a round.
        leave: What the policy lets out by name, whatever the mode says of itself.
        spent: What all jobs together had of the site's datasets.
        sent: Bytes that left, by stage and round.
    """

    audit: Audit
    wire: Wire
    round_mb: float
    spent: Spent | None
    leave: Leave = field(default_factory=Leave)
    sent: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def leaving(self, message: Message, stage: str, round_: int) -> bytes:
        """Return a message as it leaves, its line in the log.

        Raises:
            LimitError: A section is of a kind that must stay, or more would leave than the policy
                allows in this round, or in all.
            AuditError: The log cannot be written.
        """
        for name, section in message.sections.items():
            if section.kind in BY_NAME and not getattr(self.leave, section.kind):
                raise LimitError(
                    f"leave.{section.kind}: section {show(name)} holds {section.kind}; this site "
                    "does not allow it"
                )
        encoded = travelling(message, self.wire, "up")
        data = pack(encoded)
        total = self.sent.get((stage, round_), 0) + len(data)
        most = round(self.round_mb * MB)
        if total > most:
            raise LimitError(
                f"limits.round_mb: {total:,} bytes would leave in round {round_}; this site does "
                "not allow it"
            )
        if self.spent is not None:
            self.spent.leaving(len(data))
        self.audit.left(encoded, data, stage=stage, round_=round_)
        self.sent[stage, round_] = total
        return data
