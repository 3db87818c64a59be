"""What an algorithm is built from: its options, how it trains, its model, the public set, a meter.

A mode never sees the job: what it needs of it is here, and nothing that belongs to others.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from triskel.aggregate.build import aggregate_of
from triskel.config.job import Job
from triskel.config.sections import Train
from triskel.core.choice import Chosen
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Options
from triskel.core.registry import MODES, imported
from triskel.errors import PluginError, RoundError
from triskel.model.meter import Meter
from triskel.model.shared import SharedModel
from triskel.training.worker import Worker
from triskel.types import Aggregate, ClientId, ClientState, Examples, Mode, Watch

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
        models: Returns every client that is known here, with its model.
        watch: Told of the server's own training steps.
    """

    spec: ModeSpec[Any]
    options: O
    each: Mapping[ClientId, O] = field(default_factory=dict[ClientId, O])
    training: Train
    rounds: int
    seed: int
    body: SharedModel
    meter: Meter
    public: Callable[[], Examples]
    models: Callable[[], Iterable[tuple[ClientId, SharedModel]]]
    watch: Watch

    def of(self, client: ClientId) -> O:
        """Return the options as a client has them."""
        return self.each.get(client, self.options)

    @property
    def aggregate(self) -> Aggregate[Any]:
        """What makes one of many updates: the one that the options name, or the mean."""
        key = self.spec.aggregate_key
        return aggregate_of(cast("Chosen | None", getattr(self.options, key)) if key else None)


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


def algorithm_of(spec: ModeSpec[Any]) -> Algorithm:
    """Import a mode's algorithm.

    Raises:
        PluginError: It is not where the spec says.
    """
    found = imported(spec.algorithm, f"the algorithm of mode {spec.name!r}")
    if not isinstance(found, Algorithm):
        raise PluginError(f"{spec.algorithm} of mode {spec.name!r} has no `build(setting)`")
    return found


def allowed(mode: str, state: ClientState) -> ClientState:
    """Return what a client keeps of a round, where its mode says that clients keep something.

    Raises:
        RoundError: The mode's spec says that they keep nothing.
    """
    if (state.groups or state.facts) and not MODES.spec(mode).traits.client_state:
        raise RoundError(
            f"clients of mode {mode!r} keep something between rounds, and its spec says that they "
            "do not: set the trait client_state"
        )
    return state


def mode_of(setting: ModeSetting[Any]) -> Mode[Any, Any, Worker]:
    """Return the mode that a setting is of."""
    return algorithm_of(setting.spec).build(setting)


def unfit(setting: ModeSetting[Any]) -> str | None:
    """Return why a mode cannot be played on these models and texts, or None if it can."""
    judge = getattr(algorithm_of(setting.spec), "unfit", None)
    return None if judge is None else cast("str | None", judge(setting))
