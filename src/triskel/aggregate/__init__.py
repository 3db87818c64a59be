"""Many updates into one: a fold over sections, and the server's step after it."""

from typing import Any

from triskel.core.registry import AGGREGATES, imported
from triskel.errors import PluginError
from triskel.types import Aggregate


def aggregate_of(name: str | None) -> Aggregate[Any]:
    """Return an aggregate by its name, the mean where none is named.

    Raises:
        PluginError: There is none of this name, or its package is broken.
    """
    spec = AGGREGATES.spec(name or AGGREGATES.default)
    found = imported(spec.algorithm, f"aggregate {spec.name!r}")()
    if not isinstance(found, Aggregate):
        raise PluginError(f"aggregate {spec.name!r}: {spec.algorithm} is no aggregate")
    return found
