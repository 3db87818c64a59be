"""The words every other module shares. Nothing here computes.

A federation is a server and clients that hand each other messages. A mode is both halves of one
algorithm; an engine is a driver of the mode's generators; a worker is what one client brings.
"""

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor

from triskel.core import events
from triskel.errors import RoundError

ClientId = str
Tensors = Mapping[str, Tensor]
"""Named tensors; the unit that is added, scaled, encoded and sent."""

Fact = bool | int | float | str | None | Sequence[int] | Sequence[float] | Sequence[str]
"""A control fact: a JSON scalar or a flat list of them."""

Facts = Mapping[str, Fact]

MessageKind = Literal["task", "ask", "answer", "update", "evaluate", "state"]
"""`task` opens a client's round and `update` closes it; `ask` and `answer` are the talk in
between; `evaluate` carries forward-only work; `state` is a checkpoint and never crosses."""

SectionKind = Literal[
    "dense", "lowrank", "sparse", "mask", "seeds", "knowledge", "activations", "labels", "counts"
]
"""What a section holds; `wire.SECTIONS` says which tensors each kind must have."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One typed part of a message.

    Attributes:
        kind: What the tensors mean.
        tensors: Named tensors, on the CPU.
        facts: What a reader needs beside them: the scale of low-rank factors, the lengths of
            ragged activations, the number of classes.
        codec: Names of the codecs applied so far, outermost last; empty as computed.
    """

    kind: SectionKind
    tensors: Tensors
    facts: Facts = field(default_factory=dict[str, Fact])
    codec: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one side hands the other: typed sections, plain facts, and nothing else.

    Attributes:
        kind: Which step of a round this is.
        topic: What an ask, its answer or an evaluation is about: `knowledge`, `forward`, ...
        sections: Typed parts by name.
        facts: Small numbers and words that are not tensors, such as `round` and `examples`.
    """

    kind: MessageKind
    topic: str = ""
    sections: Mapping[str, Section] = field(default_factory=dict[str, Section])
    facts: Facts = field(default_factory=dict[str, Fact])


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """What one client keeps between rounds, sitting out included.

    Attributes:
        groups: Named groups of tensors: its own adapter, control variates, error feedback.
        facts: Small numbers that belong to them.
    """

    groups: Mapping[str, Tensors] = field(default_factory=dict[str, Tensors])
    facts: Facts = field(default_factory=dict[str, Fact])


# --- A client's round is a conversation -------------------------------------------------------


@dataclass(frozen=True)
class Post:
    """Send an ask and go on at once; the engine sends back a ticket (an int).

    It is answered whether or not the answer is taken.
    """

    ask: Message


@dataclass(frozen=True)
class Take:
    """Wait for the answer to the ask that `ticket` stands for; once, and in any order."""

    ticket: int


@dataclass(frozen=True)
class Ask:
    """Send an ask and wait for its answer."""

    ask: Message


@runtime_checkable
class Work(Protocol):
    """A piece of one client's own computation, which whoever drives the talk runs.

    It is handed out rather than run by the client, so that an engine with many clients in one
    process can run several clients' pieces in one pass. An engine with one client runs it alone.
    """

    @property
    def kind(self) -> Hashable:
        """What it may run together with: pieces of equal kind; None where it only runs alone."""
        ...

    @property
    def size(self) -> int:
        """How much it is, in padded tokens."""
        ...

    def beside(self, others: "Sequence[Work]") -> bool:
        """Return whether running with these, of its kind, costs less than running apart."""
        ...

    def run(self, others: "Sequence[Work]" = ()) -> None:
        """Run this piece, and these of its kind; each keeps its own result."""
        ...


@dataclass(frozen=True)
class Local:
    """Compute a piece of the client's own work; nothing is sent."""

    work: Work


Step = Post | Take | Ask | Local
Reply = Message | int | None
Talk = Generator[Step, Reply, tuple[Message, ClientState]]
"""A client's round: it yields steps, is sent their replies, and returns its update and the
client's next state."""

AskStyle = Literal["barrier", "stream"]
"""`barrier`: answered once, when every live client has asked; `stream`: in waves."""


# --- Data -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What did not fit within `train.max_tokens`.

    Attributes:
        texts: Texts that were cut or left out.
        tokens: Tokens that nobody reads.
        rows: Texts that were left out.
    """

    texts: int = 0
    tokens: int = 0
    rows: int = 0

    def __add__(self, other: "Lost") -> "Lost":
        """Return both together."""
        return Lost(
            texts=self.texts + other.texts,
            tokens=self.tokens + other.tokens,
            rows=self.rows + other.rows,
        )


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One party's tokenised examples; they never leave it whole.

    Attributes:
        ids: Token ids of each example, unpadded, int64, at least one token each.
        labels: Class index of each example, -1 where unknown; empty for `causal`.
        scored: For `causal`, which tokens are targets of the loss; never the first token.
            Empty for `classify`.
        whole: Tokens of each text before it was cut; empty where none was.
        lost: What did not fit.
        left: Which rows these are of, where some of them were left out; else empty.
    """

    ids: Sequence[Int[Tensor, " _tokens"]]
    labels: Sequence[int]
    scored: Sequence[Bool[Tensor, " _tokens"]] = ()
    whole: Sequence[int] = ()
    lost: Lost = Lost()
    left: Sequence[int] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples side by side, padded on the right.

    Attributes:
        ids: Token ids; padding is 0 and is never attended to by a real token.
        lengths: Real tokens of each row.
        rows: Row of each scored position. For `classify` one position a row: the pooled token.
        columns: Column of each scored position: the token whose hidden state predicts.
        targets: Class index or token id to be predicted there; -1 where unknown.
        examples: Whose rows these are, for caches of what is a function of the text alone.
        indices: Which of them, row by row.
    """

    ids: Int[Tensor, "batch tokens"]
    lengths: Int[Tensor, " batch"]
    rows: Int[Tensor, " scored"]
    columns: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    examples: Examples | None = None
    indices: Sequence[int] = ()


# --- A round ----------------------------------------------------------------------------------

Event = events.Event
Watch = events.Watch

S = TypeVar("S")
"""A mode's server state: a frozen dataclass of tensors and facts."""
A = TypeVar("A")
"""A running total of updates."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """One client's update as an aggregate sees it.

    Attributes:
        client: Whose.
        sections: As it sent them; pairs of low rank stay pairs, with the scale of their product.
        weight: How much it counts, such as the examples it rests on.
        steps: How many local steps it is of, where the aggregate asks for it; else 0.
    """

    client: ClientId
    sections: Mapping[str, Section]
    weight: float
    steps: int = 0


@runtime_checkable
class Aggregate(Protocol[A]):
    """A fold over updates, so that a round needs the memory of a few of them.

    `before` is what the server held when the round opened, in the same sections; side factors are
    among them where an earlier value made some.
    """

    def zero(self) -> A:
        """Return the total of no updates."""
        ...

    def add(self, total: A, update: ClientUpdate, before: Mapping[str, Section]) -> A:
        """Return the total with one client's update folded in; `total` itself may be used up.

        An update that is refused leaves `total` as it was.
        """
        ...

    def merge(self, left: A, right: A) -> A:
        """Return the total of both totals, of other clients each; both may be used up."""
        ...

    def value(self, total: A, before: Mapping[str, Section]) -> Mapping[str, Section]:
        """Return what the total amounts to, in the sections of `before`.

        Beside them it may have a section `side`: low-rank pairs, named as in
        `model.side_factors` and of the adapter's scale, that stay frozen and are added to those
        that train, in every model, until the next value. A section `side` of `before` is gone
        unless the value has it.
        """
        ...


@runtime_checkable
class ServerOptimizer(Protocol):
    """The server's step; what it remembers is flat named tensors, for checkpoints."""

    @property
    def takes_over(self) -> bool:
        """Whether the step ends with what the updates amount to, whatever was before.

        Side factors are for that alone: they are the rest of a sum of products.
        """
        return False

    def start(self) -> Tensors:
        """Return what is remembered before the first step."""
        ...

    def step(self, before: Tensors, mean: Tensors, moments: Tensors) -> tuple[Tensors, Tensors]:
        """Return the next tensors, and what is remembered.

        Args:
            before: What the server sent.
            mean: What the clients' updates amount to, by the same names.
            moments: What is remembered of earlier steps.
        """
        ...


W_contra = TypeVar("W_contra", contravariant=True)
"""What one client works with."""


@runtime_checkable
class Mode(Protocol[S, A, W_contra]):
    """One federated algorithm: both sides of it, in one file.

    A class that names `Mode` among its bases may leave out what has a default here: that of a mode
    whose clients ask nothing and end with the server's model.
    """

    @property
    def asks(self) -> Mapping[str, AskStyle]:
        """How each topic of ask is answered; empty when clients ask nothing."""
        return {}

    @property
    def in_flight(self) -> int:
        """How many clients that ask are in a round at once, which bounds memory; 0: all."""
        return 0

    @property
    def weighted(self) -> bool:
        """Whether updates count by their fact `examples`, which `clients.max_share` bounds."""
        return True

    def start(self) -> S:
        """Return the server's state before round 1."""
        ...

    def task(self, state: S, client: ClientId) -> Message:
        """Return what opens the client's round."""
        ...

    def work(self, task: Message, worker: W_contra, client_state: ClientState) -> Talk:
        """Do one client's round."""
        ...

    def answer(
        self, state: S, asks: Mapping[ClientId, Message]
    ) -> tuple[S, Mapping[ClientId, Message]]:
        """Answer the asks of one wave, and return the state they leave behind.

        Raises:
            RoundError: This mode has no questions.
        """
        del state
        raise RoundError(f"clients {sorted(asks)} asked, and this mode has no questions")

    def zero(self, state: S) -> A:
        """Return the total of no updates."""
        ...

    def add(self, state: S, total: A, client: ClientId, update: Message) -> A:
        """Fold one client's update in; refuse one that does not fit the open round."""
        ...

    def merge(self, state: S, left: A, right: A) -> A:
        """Return the total of both totals, of other clients each."""
        ...

    def close(self, state: S, total: A) -> S:
        """Turn the folded updates into the next state."""
        ...

    def probe(self, task: Message, worker: W_contra, client_state: ClientState) -> Talk:
        """Evaluate on the client's own test share, forward only."""
        ...

    def server_model(self, state: S) -> Tensors | None:
        """Return the adapter and head the server ends with, or None where it has no model."""
        ...

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return the client's own adapter and head, or None where it uses the server's."""
        del client_state
        return None
