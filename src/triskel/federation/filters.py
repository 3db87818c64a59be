"""Filters of FLARE's own, which a node may have and which do not see what Triskel sends.

FLARE applies the filters of `privacy.json` to tasks and results of its controllers. Triskel's sides
call each other (`nvflare.collab`), and no filter is asked. A site that relies on them must know.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from triskel.errors import JobError
from triskel.federation.kits import Kit, read_json
from triskel.policy.read import load

KINDS = ("task_data_filters", "task_result_filters")
FILES = ("privacy.json", "resources.json")


def unseen(kit: Kit) -> str | None:
    """Return why a node is not started as long as its policy does not say that it knows, or None.

    Raises:
        JobError: A file cannot be read.
        PolicyError: The policy cannot be read.
    """
    if kit.kind == "admin":
        return None
    found = [
        f"{name} ({place})"
        for name in FILES
        if (kit.local / name).is_file()
        for place in _filters(read_json(kit.local / name), "")
    ]
    if not found or load(kit.local / "policy.toml")[0].flare.filters_do_not_apply:
        return None
    return (
        f"{kit.local} has filters of FLARE's own in {', '.join(sorted(set(found)))}, and they do "
        "not see what Triskel sends; if that is known, say so in policy.toml: "
        "flare.filters_do_not_apply = true"
    )


def _filters(value: object, place: str) -> Iterator[str]:
    """Return where filters stand in a configuration."""
    if isinstance(value, Mapping):
        for name, inner in cast("Mapping[str, Any]", value).items():
            here = f"{place}.{name}" if place else str(name)
            if name in KINDS and inner:
                yield here
            elif name == "path" and _is_filter(inner):
                yield place
            else:
                yield from _filters(inner, here)
    elif isinstance(value, list):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from _filters(inner, f"{place}.{number}")


def _is_filter(path: object) -> bool:
    if not isinstance(path, str):
        return False
    module, _, kind = path.rpartition(".")
    return ".filters" in module.lower() or kind.lower().endswith("filter")


def refuse(kit: Kit) -> None:
    """Refuse a node whose filters would be taken to apply.

    Raises:
        JobError: It has such filters, or a file cannot be read.
    """
    why = unseen(kit)
    if why is not None:
        raise JobError(f"{kit.name} is not started: {why}")
