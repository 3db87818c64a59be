"""What a mode is to everybody but its server and its clients: a value, which imports no torch.

Job, policy, ledger, report, model card, export and engines read this and no mode by name. A mode of
another package is one more value (docs/tutorial.md); how it is found is `core.registry`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from triskel.core.options import Options

O = TypeVar("O", bound=Options)  # noqa: E741 - a mode's options

NAME = re.compile(r"[a-z][a-z0-9_]*")
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
MARKERS = ("circle", "diamond", "square", "cross", "x", "triangle-up", "star", "hexagon")
"""Marks of a mode in figures."""
WHOLE = "wire.whole"
"""Topic of what a client asks that does not hold what a change is the change of."""
Leaves = Literal["activations", "labels"]
"""Keys of a policy's `[leave]` that a mode can need."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a mode needs and can carry; contract tests hold the algorithm to each of them.

    Attributes:
        needs_public_data: There must be public texts.
        linear_in_updates: The next state is a linear function of the updates, so that a sum of
            them is enough (secure aggregation).
        needs_individual_updates: The server must see updates one by one.
        mixed_ranks: Clients may differ in adapter rank.
        one_body: Clients run the server's model; one whose rank is lower has its factors filled up.
        mixed_models: Clients may differ in model.
        personal_models: Clients end with models of their own, beside the server's or instead.
        client_state: Clients keep something between rounds; a mode that says no may keep nothing,
            and a client whose disk is new can go on.
        changes: Sections that every client is sent alike with its task and sends back trained, by
            the same names and shapes; either way they may travel as changes.
    """

    needs_public_data: bool = False
    linear_in_updates: bool = False
    needs_individual_updates: bool = False
    mixed_ranks: bool = False
    one_body: bool = False
    mixed_models: bool = False
    personal_models: bool = False
    client_state: bool = False
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What leaves a client under given options and what it can reveal, in words.

    Attributes:
        sections: By the name of a message's section: in words, what it is on its way up, and down.
        stays: What never leaves a client.
        risk: What can still be learnt, with the attacks by name.
        trained: For the model card: how an adapter of this mode came about.
        trained_own: The same of one client's own model, where there is one.
        privacy: For the model card: what left the clients.
        leaves: What a site's policy must let out by name, each with what the job is said to do.
    """

    sections: Mapping[str, tuple[str, str]]
    stays: str
    risk: str
    trained: str
    privacy: str
    trained_own: str = ""
    leaves: Mapping[Leaves, str] = field(default_factory=dict[Leaves, str])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the closed form of a client's payload needs; of what a mode has no use for, 0.

    Attributes:
        blocks: Trained numbers of each block, in their order.
        head: Trained numbers of the task head.
        tensors: In how many tensors these are.
        texts: Its training texts.
        tokens: Unpadded tokens of them.
        labels: Labels of them: one a text, or one a scored token.
        tests: Its test texts.
        tested: Unpadded tokens of them.
        width: Of the model's hidden states.
        classes: Of a `classify` task, else 0.
        vocabulary: Of the tokenizer, for `causal`.
        public: Public texts; for `causal`, their scored tokens.
    """

    blocks: Sequence[int] = ()
    head: int = 0
    tensors: int = 0
    texts: int = 0
    tokens: int = 0
    labels: int = 0
    tests: int = 0
    tested: int = 0
    width: int = 0
    classes: int = 0
    vocabulary: int = 0
    public: int = 0

    @property
    def adapter(self) -> int:
        """Trained numbers of all blocks."""
        return sum(self.blocks)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a client sends in a round.

    Attributes:
        floats: Numbers that travel as the job's codec has them.
        fixed_bytes: Bytes beside these that no codec narrows.
        tested_floats: Floats that testing a model takes.
        tested_bytes: Bytes that testing a model takes beside these and beside its scores.
    """

    floats: int = 0
    fixed_bytes: int = 0
    tested_floats: int = 0
    tested_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What training keeps until its backward passes, as far as it is the same for every mode.

    Attributes:
        batch: Texts of a batch.
        together: Texts of a pass in which clients' batches are joined, where they can be.
        blocks: Of the model.
        frozen: Blocks below the first that trains.
        clients: How many take part in a round.
        step: Bytes that one training step keeps.
        bytes_of: Bytes kept of so many texts that run through the whole model.
    """

    batch: int
    together: int
    blocks: int
    frozen: int
    clients: int
    step: int
    bytes_of: Callable[[int], int]


def _no_problem(_options: Any) -> Iterator[str]:  # noqa: ANN401 - any mode's
    yield from ()


def _no_refusal(
    _limits: Any,  # noqa: ANN401 - any mode's
    _options: Any,  # noqa: ANN401 - any mode's
    _blocks: int | None,
) -> Iterator[tuple[str, str, str]]:
    yield from ()


def _suited(_options: Any, _job: Any) -> str | None:  # noqa: ANN401 - any mode's
    return None


def _nothing(*_given: Any) -> float:  # noqa: ANN401 - any mode's
    return 0.0


def _none(_options: object) -> None:
    """Know of no reason."""


def _always(_options: Any) -> bool:  # noqa: ANN401 - any mode's
    return True


@dataclass(frozen=True, kw_only=True)
class ModeSpec(Generic[O]):
    """One federated algorithm.

    Attributes:
        name: Lower-case letters, digits and `_`: a section of the job, a word on the command line,
            the name of the entry point where it is of another package.
        gloss: In a few words, what travels.
        colour: In reports and on terminals, as `#rrggbb`.
        marker: In figures, one of `MARKERS`.
        options: The mode's section of the job; every field has a default and a description.
        algorithm: `package.module:Class`, imported when it is played. The class has
            `build(setting)`, which returns the mode, and may have `unfit(setting)`, which says why
            it cannot be played on these models and texts (`mode_setting.Algorithm`).
        disclosure: What leaves a client: of the options, and of what the model ends with (a head
            over `classes` or the `vocabulary`).
        payload: What a client sends in a round: of its options, its local epochs and its sizes.
        traits: What it needs and can carry.
        traits_of: The same under given options, where these decide it.
        client_keys: Options that may differ by client, as `clients.each.<client>.<mode>.<key>`.
        short_client_keys: Those that may stand right under `clients.each.<client>`.
        aggregate_key: The option that names an aggregate (`core.aggregate_spec`), if there is one.
        public_key: The option of a built-in mode that may say how many public texts there are, in
            the place of `data.public_count`, as jobs of early versions do.
        problems: What contradicts itself in options; each sentence begins with a key.
        unsuited: Why a job's other sections do not go with these options, or None.
        common: Whether the server ends with a model, under these options.
        tensors_travel: Whether a task brings clients the tensors that training starts from, under
            these options; else they have them already, as a function of the job.
        counts_back: Why a round depends on how many come after it, under these options, or None.
        bytes_kept: The most bytes kept for backward passes at once: of the options, everybody's
            first and then those of clients that have others, and of what all modes share.
        public_passes: How often a client runs each public text in a round, for estimates of time.
        limits: The mode's section of a site's policy.
        refusals: Why limits of a policy refuse a job: of limits, options and the model's number of
            blocks, None where it is not known. Each is a key of the section, what the job does, and
            what the site allows.
        grouping: Numbers that decide what is computed together, which a resumed run must share.
    """

    name: str
    gloss: str
    colour: str
    marker: str
    options: type[O]
    algorithm: str
    disclosure: Callable[[O, str], Disclosure]
    payload: Callable[[O, int, Sizes], Payload]
    traits: Traits = Traits()
    traits_of: Callable[[O], Traits] | None = None
    client_keys: tuple[str, ...] = ()
    short_client_keys: tuple[str, ...] = ()
    aggregate_key: str = ""
    public_key: str = ""
    problems: Callable[[O], Iterator[str]] = _no_problem
    unsuited: Callable[[O, Any], str | None] = _suited
    common: Callable[[O], bool] = _always
    tensors_travel: Callable[[O], bool] = _always
    counts_back: Callable[[O], str | None] = _none
    bytes_kept: Callable[[Sequence[O], Memory], float] = _nothing
    public_passes: Callable[[O], float] = _nothing
    limits: type[Options] | None = None
    refusals: Callable[[Any, O, int | None], Iterator[tuple[str, str, str]]] = _no_refusal
    grouping: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Refuse what nobody could name, show or read.

        Raises:
            ValueError: A name, a colour, a marker or a key is not what it must be.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a mode must match {NAME.pattern}, got {self.name!r}")
        if not COLOUR.fullmatch(self.colour):
            raise ValueError(f"mode {self.name}: colour must be #rrggbb, got {self.colour!r}")
        if self.marker not in MARKERS:
            raise ValueError(
                f"mode {self.name}: marker must be one of {', '.join(MARKERS)}, got {self.marker!r}"
            )
        named = {
            *self.client_keys,
            *self.short_client_keys,
            *filter(None, [self.public_key, self.aggregate_key]),
        }
        if strange := sorted(named - self.options.model_fields.keys()):
            raise ValueError(f"mode {self.name} has no option {strange[0]!r}")

    def under(self, options: O) -> Traits:
        """Return what the mode needs and can carry under options."""
        return self.traits if self.traits_of is None else self.traits_of(options)

    def carries(self, job: Any) -> Traits:  # noqa: ANN401 - a job, known above
        """Return what the mode needs and can carry as a job has it."""
        return self.under(self.of(job))

    def of(self, job: Any, client: str | None = None) -> O:  # noqa: ANN401 - a job, known above
        """Return this mode's section of a job, as one client has it where a client is named.

        Where the job has no such section, it is the default.
        """
        section = getattr(job, self.name, None)
        options = section if isinstance(section, self.options) else self.options()
        own = job.client(client).of(self) if client is not None else {}
        return options.model_copy(update=own) if own else options
