"""Where modes are found: built-in ones by this table, others by their packages' entry points.

A package offers a mode with

    [project.entry-points."triskel.modes"]
    sign = "own_mode:SPEC"

Nothing of it is imported before a job, a policy or a user names the mode, so a package that is
broken stops only who names it. A built-in name always means the built-in mode.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from triskel.code import source_sha256
from triskel.core.mode_spec import ModeSpec
from triskel.errors import PluginError

GROUP = "triskel.modes"
BUILT_IN: Mapping[str, str] = {
    "params": "triskel.modes.params.spec:SPEC",
    "logits": "triskel.modes.logits.spec:SPEC",
    "split": "triskel.modes.split.spec:SPEC",
}
"""The one place that names the built-in modes."""
NAMES: tuple[str, ...] = tuple(BUILT_IN)
DEFAULT = NAMES[0]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whose code a mode is.

    Attributes:
        package: The distribution that offers it; empty where it is not known.
        version: Of that distribution.
        sha256: Of the source of the module's folder, or of the module where it is one file.
    """

    package: str
    version: str
    sha256: str


def names() -> tuple[str, ...]:
    """Return every mode there is here, built-in ones first; nothing is imported."""
    return (*NAMES, *sorted(plugins()))


def built_in() -> tuple[ModeSpec[Any], ...]:
    """Return the modes that come with Triskel, in their order."""
    return tuple(spec(name) for name in NAMES)


@functools.cache
def plugins() -> Mapping[str, Sequence[EntryPoint]]:
    """Return where modes of other packages are, by name; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        if point.name not in BUILT_IN:
            found.setdefault(point.name, []).append(point)
    return found


@functools.cache
def spec(name: str) -> ModeSpec[Any]:
    """Return what a mode is, its package imported at the first call.

    Raises:
        PluginError: There is no such mode, several packages offer it, or its package is broken.
    """
    place = BUILT_IN.get(name)
    whose = f"mode {name!r}"
    if place is None:
        point = _point(name)
        place, whose = point.value, f"mode {name!r} of package {_package(point)}"
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute or "SPEC")
    except Exception as error:
        raise PluginError(
            f"{whose} cannot be loaded from {place}: {type(error).__name__}: {error}; mend or "
            "remove the package"
        ) from error
    if not isinstance(found, ModeSpec):
        raise PluginError(f"{whose}: {place} is no ModeSpec but {type(found).__name__}")
    if found.name != name:
        raise PluginError(f"{whose}: {place} calls itself {found.name!r}; both must be one name")
    return found


def origin(name: str) -> Origin | None:
    """Return whose code a mode of another package is, without importing it; None if built in.

    Raises:
        PluginError: There is no such mode, several packages offer it, or its source is not here.
    """
    if name in BUILT_IN:
        return None
    point = _point(name)
    dist = point.dist
    return Origin(
        package=_package(point),
        version=dist.version if dist is not None else "",
        sha256=_source_sha256(point.value.partition(":")[0].partition(".")[0], name),
    )


def forget() -> None:
    """Look again at what is installed."""
    for cached in (plugins, spec, _source_sha256):
        cached.cache_clear()


def _point(name: str) -> EntryPoint:
    points = plugins().get(name, ())
    if not points:
        raise PluginError(
            f"there is no mode {name!r} here; there are {', '.join(names())}. A mode of another "
            "package must be installed beside Triskel"
        )
    if len(points) > 1:
        whose = ", ".join(sorted(map(_package, points)))
        raise PluginError(
            f"mode {name!r} is offered by several packages ({whose}); remove all but one"
        )
    return points[0]


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


@functools.cache
def _source_sha256(module: str, name: str) -> str:
    """Return the SHA-256 of a top-level module's source."""
    loaded = sys.modules.get(module)
    found = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise PluginError(f"mode {name!r}: the source of module {module!r} is not here")
    file = Path(found.origin)
    return source_sha256(file.parent if found.submodule_search_locations else file)
