"""The aggregate that a job names, imported when it is needed: specs load no torch."""

from typing import Any

from triskel.core.choice import Chosen, name_of, options_of
from triskel.core.options import Options
from triskel.core.registry import AGGREGATES, imported
from triskel.errors import PluginError
from triskel.types import Aggregate


def aggregate_of(chosen: Chosen | None) -> Aggregate[Any]:
    """Return the aggregate that is chosen, the mean where none is.

    Raises:
        PluginError: There is none of this name, or its package is broken.
    """
    chosen = chosen or AGGREGATES.default
    spec = AGGREGATES.spec(name_of(chosen))
    kind = imported(spec.algorithm, f"aggregate {spec.name!r}")
    found = kind() if spec.options is Options else kind(options_of(chosen, spec.options))
    if not isinstance(found, Aggregate):
        raise PluginError(f"aggregate {spec.name!r}: {spec.algorithm} is no aggregate")
    return found
