"""Triskel: fine-tuning of language models on data that stays where it is, in three modes.

`compare`, `run` and `load` do what the commands do; `Job` is what is asked, `Result` what it came
to, and `Prediction` what a trained model makes of a text. `Mode` with `ModeSpec`, `Task`,
`Aggregate` and `Codec` are what a package of its own implements (docs/tutorial.md). Nothing is
imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from triskel.core.source import VERSION

if TYPE_CHECKING:
    from triskel.api import Result, compare, load, run
    from triskel.codec.protocol import Codec
    from triskel.config.job import Job
    from triskel.core.mode_spec import ModeSpec
    from triskel.data.batches import Task
    from triskel.experiment.predict import Prediction
    from triskel.types import Aggregate, Mode

__version__ = VERSION
__all__ = [
    "Aggregate",
    "Codec",
    "Job",
    "Mode",
    "ModeSpec",
    "Prediction",
    "Result",
    "Task",
    "compare",
    "load",
    "run",
]
_PLACES = {
    "Aggregate": "triskel.types",
    "Codec": "triskel.codec.protocol",
    "Job": "triskel.config.job",
    "Mode": "triskel.types",
    "ModeSpec": "triskel.core.mode_spec",
    "Prediction": "triskel.experiment.predict",
    "Result": "triskel.api",
    "Task": "triskel.data.batches",
    "compare": "triskel.api",
    "load": "triskel.api",
    "run": "triskel.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever it names
    """Import what a public name stands for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'triskel' has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
