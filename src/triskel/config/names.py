"""Names in a job: modes, tasks, codecs and aggregates, of Triskel's own or of other packages.

A name must be known here, unless what it stands for may not be imported. Then it is kept as it is,
and so is its section, which only the code that it names could type.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from triskel.core.choice import Chosen, name_of, options_of, settings_of
from triskel.core.options import Options, partial
from triskel.core.registry import MODES, Registry

IMPORTS = "imports"
"""What of other packages may be imported, in the context that a job is validated with."""


def kept(registry: Registry[Any], name: str, info: Any) -> bool:  # noqa: ANN401 - pydantic's
    """Return whether a name is of what may not be imported, so that it is kept as it is."""
    imports = (info.context or {}).get(IMPORTS)
    return imports is not None and name not in registry.ours and registry.key(name) not in imports


def known_name(
    registry: Registry[Any],
    value: str,
    info: Any,  # noqa: ANN401 - pydantic's
    place: str = "",
) -> str:
    """Return a name that there is here, or that may not be looked for.

    Raises:
        ValueError: There is none.
    """
    if value not in registry.names() and not kept(registry, value, info):
        raise ValueError(f"{place}must be one of {', '.join(registry.names())}, got {value!r}")
    return value


def known_choice(
    registry: Registry[Any],
    chosen: Chosen,
    info: Any,  # noqa: ANN401 - pydantic's
    place: str,
) -> Iterator[str]:
    """Yield what is wrong with what is set beside a name.

    Args:
        registry: Of what; its specs have `options`.
        chosen: The name, and what is set.
        info: What the job is validated with.
        place: The key that it stands at.

    Raises:
        ValueError: There is none of this name.
    """
    name = known_name(registry, name_of(chosen), info, f"{place} ")
    if kept(registry, name, info):
        return
    kind: type[Options] = registry.spec(name).options
    known = ", ".join(kind.model_fields) or "nothing"
    for key in sorted(settings_of(chosen).keys() - kind.model_fields.keys()):
        yield f"{place}.{key} is no option of {name}, which has {known}"
        return
    try:
        options_of(chosen, kind)
    except ValidationError as error:
        for one in error.errors():
            where = ".".join([place, *map(str, one["loc"])])
            yield f"{where}: {one['msg'].removeprefix('Value error, ')}, got {one['input']!r}"


def untyped(given: Mapping[str, Any], own: Collection[str], info: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return sections that are kept untyped."""
    apart = {k: v for k, v in given.items() if k not in own and isinstance(v, Mapping)}
    return {k: v for k, v in apart.items() if kept(MODES, k, info)}


def mode_section(name: str) -> type[Options] | None:
    """Return what a section of this name is, if a mode is called so."""
    return MODES.spec(name).options if name in MODES.names() else None


def client_section(name: str) -> type[Options] | None:
    """Return what a mode's section of one client is; None where nothing may differ."""
    if name not in MODES.names():
        return None
    spec = MODES.spec(name)
    return partial(spec.options, spec.client_keys) if spec.client_keys else None
