"""Counts the cost of a model's pieces once a process, however many tests run the same model.

A run remembers in the cache folder what took long to count. Tests run the same few tiny models,
hundreds of times: here every count is remembered, by all that it depends on. What is tested of the
counting itself (`tests/model`) counts anew.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from triskel.model import flops, meter


def _about(body: Any) -> str:  # noqa: ANN401 - helpers are loaded by path
    config = body.blocks.config
    where = {"_name_or_path": ""}  # a model is the same wherever it lies
    sizes = {name: (tuple(one.shape), one.dtype) for name, one in body.initial.items()}
    way = (body.ends, body.dtype, body.device, body.classes, body.vocabulary, body.choice)
    told = config.to_dict() | where, getattr(config, "_attn_implementation", "")
    return repr((type(body), *told, body.adapter, body.layout, sizes, *way))


def _once(count: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[str, ...], Any] = {}

    @wraps(count)
    def counted(body: Any, *about: Any) -> Any:  # noqa: ANN401 - as the function
        key = _about(body), repr(about)
        if key not in known:
            known[key] = count(body, *about)
        return known[key]

    return counted


def install() -> None:
    """Have runs count each piece once."""
    meter.count = _once(flops.count)
    meter.saved_in = _once(flops.saved_in)


def anew(patch: Any) -> None:  # noqa: ANN401 - helpers are loaded by path
    """Have a test count as a run does."""
    patch.setattr(meter, "count", flops.count)
    patch.setattr(meter, "saved_in", flops.saved_in)
