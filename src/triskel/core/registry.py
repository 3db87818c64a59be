"""Where modes, tasks, codecs and aggregates are found: ours by these tables, others by packages.

A package offers a mode with

    [project.entry-points."triskel.modes"]
    sign = "own_mode:SPEC"

a task in the group `triskel.tasks`, a codec in `triskel.codecs`, an aggregate in
`triskel.aggregates`. Nothing of it is imported before a job, a policy or a user names it, so a
package that is broken stops only who does. A built-in name always means the built-in thing.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from triskel.core.aggregate_spec import AggregateSpec
from triskel.core.codec_spec import CodecSpec
from triskel.core.mode_spec import ModeSpec
from triskel.core.source import source_sha256
from triskel.core.task_spec import TaskSpec
from triskel.errors import PluginError


@runtime_checkable
class Named(Protocol):
    """Whatever a registry keeps."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


S = TypeVar("S", bound=Named)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whose code it is.

    Attributes:
        package: The distribution that offers it; empty where it is not known.
        version: Of that distribution.
        sha256: Of the source of the module's folder, or of the module where it is one file.
    """

    package: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Registry(Generic[S]):
    """One family of things that are plugged in.

    Attributes:
        noun: What one of them is called.
        group: The group of entry points by which packages offer theirs.
        kind: What an entry point must lead to.
        places: Built-in ones: `package.module:attribute` by name, in their order.
        reserved: Names that would be taken for something else beside them.
    """

    noun: str
    group: str
    kind: type[Any]
    places: Mapping[str, str]
    reserved: frozenset[str] = frozenset()

    @property
    def ours(self) -> tuple[str, ...]:
        """The names of those that come with Triskel, in their order."""
        return tuple(self.places)

    @property
    def default(self) -> str:
        """The one that is meant where none is named."""
        return self.ours[0]

    def names(self) -> tuple[str, ...]:
        """Return every one there is here, built-in ones first; nothing is imported."""
        return (*self.ours, *sorted(_points(self.group).keys() - self.places.keys()))

    def key(self, name: str) -> str:
        """Return what one is called among those of every family: `mode sign`."""
        return f"{self.noun} {name}"

    def built_in(self) -> tuple[S, ...]:
        """Return those that come with Triskel, in their order."""
        return tuple(self.spec(name) for name in self.ours)

    def loaded(self) -> tuple[str, ...]:
        """Return the built-in ones, and those of other packages that were named here before.

        What a peer names must be among them: its word never imports anything.
        """
        return (*self.ours, *(name for group, name in _SPECS if group == self.group))

    def spec(self, name: str) -> S:
        """Return what one is, its package imported at the first call.

        Raises:
            PluginError: There is none of this name, several packages offer it, or its package is
                broken.
        """
        if (self.group, name) not in _SPECS:
            _SPECS[self.group, name] = _loaded(self, name)
        return cast("S", _SPECS[self.group, name])

    def origin(self, name: str) -> Origin | None:
        """Return whose code one of another package is, without importing it; None if built in.

        Raises:
            PluginError: There is none of this name, several packages offer it, or its source is
                not here.
        """
        if name in self.places:
            return None
        point = self.point(name)
        dist = point.dist
        return Origin(
            package=package_of(point),
            version=dist.version if dist is not None else "",
            sha256=_source_sha256(_top(point.value), f"{self.noun} {name!r}"),
        )

    def point(self, name: str) -> EntryPoint:
        """Return where one of another package is.

        Raises:
            PluginError: There is none of this name, several packages offer it, or the name means
                something else.
        """
        if name in self.reserved:
            raise PluginError(
                f"no {self.noun} of another package may be called {name!r}, which means something "
                "else in jobs, policies or runs; its package must rename it"
            )
        points = _points(self.group).get(name, ())
        if not points:
            raise PluginError(
                f"there is no {self.noun} {name!r} here; there are {', '.join(self.names())}. A "
                f"{self.noun} of another package must be installed beside Triskel"
            )
        if len(points) > 1:
            whose = ", ".join(sorted(map(package_of, points)))
            raise PluginError(
                f"{self.noun} {name!r} is offered by several packages ({whose}); remove all but one"
            )
        return points[0]


RESERVED = frozenset([
    "adapter", "base", "budget", "central", "clients", "codecs", "data", "datasets", "epochs",
    "evaluate", "federation", "flare", "floors", "hours", "leave", "limits", "local", "local_equal",
    "mode", "model", "models", "modes", "name", "plugins", "privacy", "rank", "rounds", "scores",
    "seed", "site", "submitters", "train", "wire",
])  # fmt: skip
"""Keys of jobs and policies and names of baselines: a mode's section and results stand beside."""

MODES: Registry[ModeSpec[Any]] = Registry(
    noun="mode",
    group="triskel.modes",
    kind=ModeSpec,
    places={
        "params": "triskel.modes.params.spec:SPEC",
        "logits": "triskel.modes.logits.spec:SPEC",
        "split": "triskel.modes.split.spec:SPEC",
    },
    reserved=RESERVED,
)
AGGREGATES: Registry[AggregateSpec] = Registry(
    noun="aggregate",
    group="triskel.aggregates",
    kind=AggregateSpec,
    places={
        name: f"triskel.aggregate.spec:{name.upper()}"
        for name in (
            *("mean", "fedex", "flora", "flexlora", "raflora", "florist"),
            *("hetlora", "lora_fair", "fedsvd", "fednova"),
            *("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip"),
        )
    },
)
CODECS: Registry[CodecSpec] = Registry(
    noun="codec",
    group="triskel.codecs",
    kind=CodecSpec,
    places={
        name: f"triskel.core.codecs:{name.upper()}"
        for name in ("raw", "fp32", "bf16", "fp16", "int8", "int4", "topk", "sign")
    },
)
TASKS: Registry[TaskSpec] = Registry(
    noun="task",
    group="triskel.tasks",
    kind=TaskSpec,
    places={
        "classify": "triskel.tasks.classify.spec:SPEC",
        "causal": "triskel.tasks.causal.spec:SPEC",
    },
)

FAMILIES: tuple[Registry[Any], ...] = (MODES, TASKS, CODECS, AGGREGATES)


def forget() -> None:
    """Look again at what is installed."""
    _SPECS.clear()
    for cached in (_points, _source_sha256):
        cached.cache_clear()


def package_of(point: EntryPoint) -> str:
    """Return the distribution that offers an entry point; empty where it is not known."""
    return point.dist.name if point.dist is not None else ""


def imported(place: str, whose: str) -> Any:  # noqa: ANN401 - whatever is there
    """Import `package.module:attribute`.

    Raises:
        PluginError: It is not there, or cannot be imported; `whose` says what needs it.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise PluginError(
            f"{whose} cannot be loaded from {place}: {type(error).__name__}: {error}; mend or "
            "remove its package"
        ) from error


_SPECS: dict[tuple[str, str], Named] = {}


@functools.cache
def _points(group: str) -> Mapping[str, Sequence[EntryPoint]]:
    """Return where things of other packages are, by name; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _loaded(registry: Registry[Any], name: str) -> Named:
    place, whose = registry.places.get(name), f"{registry.noun} {name!r}"
    if place is None:
        point = registry.point(name)
        place, whose = point.value, f"{whose} of package {package_of(point)}"
    found = imported(place, whose)
    if not isinstance(found, registry.kind):
        wanted = registry.kind.__name__
        raise PluginError(f"{whose}: {place} is no {wanted} but {type(found).__name__}")
    spec = cast("Named", found)
    if spec.name != name:
        raise PluginError(f"{whose}: {place} calls itself {spec.name!r}; both must be one name")
    top, algorithm = _top(place), getattr(spec, "algorithm", place)
    if _top(algorithm) not in {top, "triskel"}:
        raise PluginError(
            f"{whose}: its algorithm {algorithm} is outside module {top!r}, whose source is what a "
            "policy pins; move it there"
        )
    return spec


def _top(place: str) -> str:
    """Return the top-level module of `package.module:attribute`."""
    return place.partition(":")[0].partition(".")[0]


@functools.cache
def _source_sha256(module: str, whose: str) -> str:
    """Return the SHA-256 of a top-level module's source."""
    loaded = sys.modules.get(module)
    found = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise PluginError(f"{whose}: the source of module {module!r} is not here")
    file = Path(found.origin)
    return source_sha256(file.parent if found.submodule_search_locations else file)
