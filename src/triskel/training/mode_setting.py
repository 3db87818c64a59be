"""What an algorithm is built from: its options, how it trains, its model, the public set, a meter.

A mode never sees the job: what it needs of it is here, and nothing that belongs to others.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from triskel.aggregate.build import aggregate_of
from triskel.config.job import Job
from triskel.config.sections import Train
from triskel.config.wire import WAYS, Wire
from triskel.core.aggregate_spec import AggregateSpec
from triskel.core.choice import Chosen, name_of
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Options
from triskel.core.registry import AGGREGATES, MODES, imported
from triskel.errors import PluginError, RoundError
from triskel.model.meter import Meter
from triskel.model.shared import SharedModel
from triskel.training.changes import Changes, carried, kept_by_mode
from triskel.training.worker import Worker
from triskel.types import Aggregate, ClientId, ClientState, Examples, Message, Mode, Watch
from triskel.wire.adapters import adapter_sections

O = TypeVar("O", bound=Options)  # noqa: E741 - options


@dataclass(frozen=True, kw_only=True)
class ModeSetting(Generic[O]):
    """All that a mode is built from, at the server and at every site.

    Attributes:
        spec: Which mode.
        options: Its section of the job.
        each: That section as clients have it whose options differ.
        training: How clients train.
        rounds: How many rounds there are.
        seed: The job's seed, of all randomness.
        body: The server's model.
        meter: The server's account of compute.
        public: Returns the public set as the server's tokens.
        ranks: Of the factors of clients that have a lower rank than the server.
        models: Returns every client that is known here, with its model.
        watch: Told of the server's own training steps.
        wire: How messages travel; no mode looks at it.
        started: Whether the server's model begins from an adapter that clients may not have.
    """

    spec: ModeSpec[Any]
    options: O
    each: Mapping[ClientId, O] = field(default_factory=dict[ClientId, O])
    training: Train
    rounds: int
    seed: int
    ranks: Mapping[ClientId, int] = field(default_factory=dict[ClientId, int])
    body: SharedModel
    meter: Meter
    public: Callable[[], Examples]
    models: Callable[[], Iterable[tuple[ClientId, SharedModel]]]
    watch: Watch
    wire: Wire = field(default_factory=Wire)
    started: bool = False

    def of(self, client: ClientId) -> O:
        """Return the options as a client has them."""
        return self.each.get(client, self.options)

    @property
    def aggregate(self) -> Aggregate[Any]:
        """What makes one of many updates: the one that the options name, or the mean."""
        return aggregate_of(self._aggregate)

    @property
    def aggregate_spec(self) -> AggregateSpec:
        """What that is."""
        return AGGREGATES.spec(name_of(self._aggregate or AGGREGATES.default))

    @property
    def _aggregate(self) -> Chosen | None:
        key = self.spec.aggregate_key
        return cast("Chosen | None", getattr(self.options, key)) if key else None


def options_in(job: Job, spec: ModeSpec[O]) -> tuple[O, dict[ClientId, O]]:
    """Return a mode's options in a job, and those of clients that have others."""
    differ = [client for client, own in sorted(job.clients.each.items()) if own.of(spec)]
    return spec.of(job), {client: spec.of(job, client) for client in differ}


@runtime_checkable
class Algorithm(Protocol):
    """What `ModeSpec.algorithm` names; beside `build` it may have `unfit`, of the same setting.

    `unfit` returns why the mode cannot be played on these models and texts, or None.
    """

    def build(self, setting: ModeSetting[Any]) -> Mode[Any, Any, Worker]:
        """Return the mode."""
        ...


@runtime_checkable
class Trial(Protocol):
    """A mode that opens the test of a model otherwise than a round: more, or less, is sent."""

    def trial(self, state: Any, client: ClientId) -> Message:  # noqa: ANN401 - the mode's state
        """Return what opens the test of the last round's model at a client."""
        ...


def algorithm_of(spec: ModeSpec[Any]) -> Algorithm:
    """Import a mode's algorithm.

    Raises:
        PluginError: It is not where the spec says.
    """
    found = imported(spec.algorithm, f"the algorithm of mode {spec.name!r}")
    if not isinstance(found, Algorithm):
        raise PluginError(f"{spec.algorithm} of mode {spec.name!r} has no `build(setting)`")
    return found


def allowed(job: Job, mode: str, state: ClientState) -> ClientState:
    """Return what a client keeps of a round, where its mode says that clients keep something.

    Raises:
        RoundError: The mode's spec says that they keep nothing.
    """
    own = kept_by_mode(state)
    if (own.groups or own.facts) and not MODES.spec(mode).carries(job).client_state:
        raise RoundError(
            f"clients of mode {mode!r} keep something between rounds, and its spec says that they "
            "do not: set the trait client_state"
        )
    return state


def mode_of(setting: ModeSetting[Any]) -> Mode[Any, Any, Worker]:
    """Return the mode that a setting is of, with what its wire remembers where it does."""
    mode, names = (
        algorithm_of(setting.spec).build(setting),
        setting.spec.under(setting.options).changes,
    )
    if not any(carried(setting.wire, way, names) for way in WAYS):
        return mode
    body = setting.body
    sections = {} if setting.started else adapter_sections(body.initial, body.layout)
    initial = {name: section for name, section in sections.items() if name in names}
    return Changes(mode=mode, wire=setting.wire, sections=names, initial=initial)


def unfit(setting: ModeSetting[Any]) -> str | None:
    """Return why a mode cannot be played on these models and texts, or None if it can."""
    judge = getattr(algorithm_of(setting.spec), "unfit", None)
    return None if judge is None else cast("str | None", judge(setting))
