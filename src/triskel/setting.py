"""What an algorithm is built from: the job's words for it, its model, the public set, a meter."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from triskel.config.job import Job
from triskel.core.mode_spec import ModeSpec
from triskel.core.registry import MODES, imported
from triskel.errors import PluginError, RoundError
from triskel.model.body import Body
from triskel.model.meter import Meter
from triskel.types import ClientId, ClientState, Examples, Mode, Watch
from triskel.worker import Worker


@dataclass(frozen=True, kw_only=True)
class ModeSetting:
    """All that a mode is built from, at the server and at every site.

    Attributes:
        job: The job.
        body: The server's model.
        meter: The server's account of compute.
        public: Returns the public set as the server's tokens.
        models: Returns every client that is known here, with its model.
        watch: Told of the server's own training steps.
    """

    job: Job
    body: Body
    meter: Meter
    public: Callable[[], Examples]
    models: Callable[[], Iterable[tuple[ClientId, Body]]]
    watch: Watch


@runtime_checkable
class Algorithm(Protocol):
    """What `ModeSpec.algorithm` names; beside `build` it may have `unfit`, of the same setting.

    `unfit` returns why the mode cannot be played on these models and texts, or None.
    """

    def build(self, setting: ModeSetting) -> Mode[Any, Any, Worker]:
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


def unfit(spec: ModeSpec[Any], setting: ModeSetting) -> str | None:
    """Return why a mode cannot be played on these models and texts, or None if it can."""
    judge = getattr(algorithm_of(spec), "unfit", None)
    return None if judge is None else cast("str | None", judge(setting))
