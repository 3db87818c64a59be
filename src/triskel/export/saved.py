"""Which adapters a run left in its folder, and which one of them is meant."""

from collections.abc import Mapping
from pathlib import Path

from triskel.config.job import Job
from triskel.config.sections import is_name
from triskel.errors import JobError
from triskel.export.manifest import MANIFEST

ADAPTERS = "adapters"


def saved(run: Path) -> dict[str, tuple[str, str | None]]:
    """Return what a run has saved: folder name to stage and, for a client's own model, client."""
    names = sorted(p.name for p in (run / ADAPTERS).glob("[!.]*") if (p / MANIFEST).is_file())
    parts = {name: name.partition("-") for name in names}  # no stage has a dash in its name
    return {name: (stage, owner if dash else None) for name, (stage, dash, owner) in parts.items()}


def choose(
    run: Path, job: Job, *, mode: str | None = None, client: str | None = None
) -> tuple[str, str]:
    """Return the stage that is meant and the name of its folder.

    Raises:
        JobError: There is no such adapter, or several; says what there is.
    """
    there = saved(run)
    able = {name: one for name, one in there.items() if mode in {None, one[0]}}
    fits: list[tuple[str, str]] = [
        (stage, name) for name, (stage, owner) in able.items() if owner == client
    ]
    if mode is None:
        fits = [one for one in fits if one[0] == job.mode] or fits
    if client is None and not fits:  # clients' own models only
        fits = [(stage, name) for name, (stage, _) in able.items()]
    if len(fits) == 1:
        return fits[0]
    asked = " ".join(
        [*([f"of mode {mode}"] if mode else []), *([f"of client {client}"] if client else [])]
    )
    what = "more than one adapter" if fits else "no adapter"
    way = ": name mode and, for a client's own model, client"
    if not fits and job.data.source == "clients" and is_name(job.data.train):
        way = "; in a federation, clients' own models stay at their sites"
    raise JobError(f"run {run} has {what} {asked}".rstrip() + f"; it has {_listed(there)}{way}")


def _listed(there: Mapping[str, tuple[str, str | None]]) -> str:
    shown = [
        stage if owner is None else f"{stage} of client {owner}" for stage, owner in there.values()
    ]
    return ", ".join(shown) or "none yet"
