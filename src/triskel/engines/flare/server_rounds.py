"""The server's half of a federation: rounds played with sites on the other end of a link.

A round is a play in which every client of the cohort has a part. One thread a client calls it
(`begin`, then `collect` until it is done); asks come in on the sites' own calls and wait on the
inbox; this thread alone runs the mode: it answers what is due, folds updates in the order of their
names, and closes. With `federation.order = "wave"` the order of everything that enters a sum is the
local engine's, so the adapters are too, bit by bit.

A client that is not heard of for `federation.patience_s`, sends what cannot be read, or says that
it failed, has no part in the rest of the round. The round closes with those left, if they are at
least the quorum; else the job stops there, and goes on from its last closed round when it is
submitted again. With `federation.buffer` rounds close with the first so many (`server_buffer`).
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from triskel.config.job import Job
from triskel.core import events
from triskel.engines.channel import Channel
from triskel.engines.flare.protocol import Peer, Spent, What
from triskel.engines.flare.server_buffer import Buffer
from triskel.engines.flare.server_inbox import Inbox
from triskel.engines.flare.server_play import Play, Take, sentence
from triskel.engines.fold import Fold
from triskel.engines.waves import groups_in_flight
from triskel.errors import JobError, MessageError, RoundError
from triskel.experiment.client_store import Store
from triskel.experiment.rounds import Scores, pooled
from triskel.model.shared import SharedModel
from triskel.numerics.metrics import Score
from triskel.policy.limits import quorum_of
from triskel.training.evaluate import score_of
from triskel.training.worker import Worker
from triskel.types import A, ClientId, ClientState, Event, Message, Mode, S, Tensors, Watch
from triskel.wire import show
from triskel.wire.adapters import adapter_sections
from triskel.wire.ledger import Ledger


def uncounted() -> tuple[int, int] | None:
    """Know nothing of what is below the calls."""
    return None


def nobody() -> str:
    """Let nothing stop the job."""
    return ""


def _untold(client: ClientId) -> int | None:
    """Know of nothing that a site said."""
    del client


def _quiet(event: Event) -> None:
    """Tell nobody."""


@dataclass
class RemoteEngine:
    """Plays rounds with sites.

    Attributes:
        job: Codecs, limits, waves, quorum and patience.
        peers: The way to each site.
        welcome: Asks a site that was away whether it is ready; returns why not, or nothing.
        stopped: Says why the job must stop, or nothing.
        stage: Name of the stage that is played; the sites make their own of it.
        absent: Sites that did not answer in their last play, and why.
        inbox: The open play, for the sites' calls.
        session: Part of every play's name, so that none is taken for one of a server before.
        crossed: Returns the bytes that came from sites and went to them so far, if it is known.
        examples: Returns how many training examples a site said it holds, if it is known.
        counted: The round of each site that counted last; it starts from what that one left.
        ledger: Of the last round, into which the test of what it left is booked too.
    """

    job: Job
    peers: Mapping[ClientId, Peer]
    welcome: Callable[[ClientId], str]
    stopped: Callable[[], str] = nobody
    stage: str = ""
    absent: dict[ClientId, str] = field(default_factory=dict[ClientId, str])
    inbox: Inbox | None = None
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    crossed: Callable[[], tuple[int, int] | None] = uncounted
    examples: Callable[[ClientId], int | None] = _untold
    counted: dict[ClientId, int] = field(default_factory=dict[ClientId, int])
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        """Have no work out."""
        self._buffer = Buffer(self)

    def box(self, play: str) -> Inbox | None:
        """Return where calls about a play go: to its own inbox, or to that of the last play."""
        return next((one for one in self._buffer.inboxes if one.play == play), self.inbox)

    def standing(self) -> dict[ClientId, dict[str, Any]]:
        """Return what each client is at, for whoever looks; nothing where no play is open."""
        found = dict[ClientId, dict[str, Any]]()
        for inbox in (*self._buffer.inboxes, self.inbox):
            if inbox is not None and not inbox.closed:
                found |= inbox.standing()
        return found

    # --- a round ------------------------------------------------------------------------------

    def round(  # noqa: PLR0913 - what a round is made of
        self,
        mode: Mode[S, A, Worker],
        state: S,
        cohort: Sequence[ClientId],
        *,
        worker: Callable[[ClientId], Worker],
        client_states: Mapping[ClientId, ClientState],
        keep: Callable[[ClientId, ClientState], None],
        ledger: Ledger,
        watch: Watch,
        gone: Collection[ClientId] = (),
        weights: Mapping[ClientId, int] | None = None,
    ) -> S:
        """Play one round and close it; workers and what clients keep are at the sites.

        Raises:
            JobError: Drop-outs were to be simulated.
            RoundError: Fewer than the quorum were left, or the job was stopped.
            TriskelError: Whatever stopped the server.
        """
        del worker, keep
        if isinstance(client_states, Store):
            self.counted = dict(client_states.counted)
        if gone:
            raise JobError(
                "clients.drop_share simulates drop-outs in one process; between organisations "
                "they happen by themselves: set it to 0"
            )
        self.ledger = ledger
        channel = Channel(self.job, ledger, watch)
        shares = Fold(self.job, mode, state, mode.zero(state), weights)
        folded = list[ClientId]()

        def fold(client: ClientId, update: Message, spent: Spent) -> None:
            self._as_told(client, update)
            shares.add(client, update)
            folded.append(client)
            ledger.computed(
                client, flops=spent.flops, peak_bytes=spent.peak_bytes, seconds=spent.seconds
            )

        before = self.crossed()
        if self.job.federation.buffer:
            left, round_ = self._buffer.played(mode, state, cohort, channel=channel, take=fold)
        else:
            state, left, round_ = self._played(
                "work", mode, state, cohort, channel=channel, take=fold
            )
        for client, why in sorted(left.items()):
            ledger.left_out(client, why)
            watch(events.warning(f"{client} is left out of this round: {why}"))
        if not folded:
            raise RoundError(f"no client finished the round: {sentence(left)}")
        if before is not None and (after := self.crossed()) is not None:
            ledger.crossed(up=after[0] - before[0], down=after[1] - before[1])
        total, share = shares.close()
        ledger.weighed(share)
        self.counted |= dict.fromkeys(folded, round_)
        return mode.close(state, total)

    def _played(  # noqa: PLR0913 - what a play is made of
        self,
        what: What,
        mode: Mode[S, A, Worker],
        state: S,
        clients: Sequence[ClientId],
        *,
        channel: Channel,
        take: Take,
        sections: Mapping[str, Any] | None = None,
    ) -> tuple[S, dict[ClientId, str], int]:
        """Let every client play its part, group after group.

        Returns:
            The state that is left, who was lost and why, and the round it was of.
        """
        least, gone, round_ = quorum_of(self.job, len(clients)), dict[ClientId, str](), 0
        for group in groups_in_flight(mode, sorted(clients), free=len(clients)):
            play = Play(
                self, what, mode, channel, take, may_go=len(clients) - least - len(gone),
                least=least, sections=sections,
            )  # fmt: skip
            state = play.run(state, group)
            gone |= play.gone
            round_ = play.round
        return state, gone, round_

    def _as_told(self, client: ClientId, update: Message) -> None:
        """Hold a site to what it said that it holds before the first round.

        Raises:
            MessageError: Its update speaks of another number of examples.
        """
        told, says = self.examples(client), update.facts.get("examples")
        if told is not None and says != told:
            raise MessageError(
                f"its update rests on {show(says)} examples, and it said that it holds {told}"
            )

    # --- what a state reaches -----------------------------------------------------------------

    def scores(
        self, mode: Mode[S, A, Worker], state: S, clients: Sequence[ClientId], body: SharedModel, *,
        student: Tensors | None = None,
    ) -> Scores:  # fmt: skip
        """Let every client test a state on its own test share; sums come back, never predictions.

        Args:
            mode: The algorithm.
            state: The server's state.
            clients: Who tests.
            body: The server's model.
            student: A model of the server's own that clients do not use; it is what the pooled
                figures are of, and each client's are of its own model.
        """
        each = self._tested("probe", mode, state, clients, body)
        if student is None:
            return pooled(each, body.classes)
        sections = adapter_sections(student, body.layout)
        both = self._tested("student", mode, state, clients, body, sections)
        return replace(pooled(each, body.classes), pooled=pooled(both, body.classes).pooled)

    def _tested(
        self,
        what: What,
        mode: Mode[S, A, Worker],
        state: S,
        clients: Sequence[ClientId],
        body: SharedModel,
        sections: Mapping[str, Any] | None = None,
    ) -> dict[ClientId, Score]:
        found: dict[ClientId, Score] = {}

        def take(client: ClientId, message: Message, spent: Spent) -> None:
            del spent
            found[client] = score_of(message, body.classes)

        channel = Channel(self.job, self.ledger, _quiet, scoring=True)
        self._played(what, mode, state, clients, channel=channel, take=take, sections=sections)
        if not found:
            raise RoundError("no client could test the round's model")
        return found
