"""From the names in a job to the places of this machine: models and datasets.

A job that comes from outside names things; only the machine's own policy says where they are, so no
path of a job is ever opened. A site decides on a job with the weights that its names have here.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triskel.config.job import Job
from triskel.core.dialect import Dialect
from triskel.core.registry import AGGREGATES, CODECS, MODES, TASKS, Origin, Registry
from triskel.data.assets import resolve
from triskel.data.reading import Dataset
from triskel.errors import DataError, JobError, PluginError
from triskel.policy.decide import decide
from triskel.policy.draws import files_of, key_of
from triskel.policy.foreign import aggregate_in, decide_mode
from triskel.policy.model_hash import Seals, Weights
from triskel.policy.refusal import Circumstances, Refusal
from triskel.policy.rules import Policy
from triskel.wire import show

LOGGER = logging.getLogger("triskel.policy")
MODELS = "models"
"""Folder beside the policy with models that jobs may name: a folder, or a link to one, for each."""
ADAPTERS = "adapters"
"""Folder beside a server's policy with adapters that jobs may start from, a folder each."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def models_of(job: Job, client: str) -> list[str]:
    """Return the names of the models that a client of a job loads: its own, and the server's."""
    own = job.client(client).model or job.model.path
    return list(dict.fromkeys([own, job.model.path]))


def model_folder(name: str, policy: Path) -> Path | None:
    """Return where a model is on this machine, or None where it is not.

    Args:
        name: A folder beside the policy, an asset that was fetched, or a hub id.
        policy: The policy file.

    Raises:
        JobError: It is a path, not a name.
    """
    if not NAME.fullmatch(name):
        raise JobError(
            f"model.path {name!r} is no name; between organisations a job names models, and each "
            f"has them in {MODELS}/ beside its policy, or fetched as an asset"
        )
    beside = policy.parent / MODELS / name
    if beside.is_dir():
        return beside
    try:
        found = Path(resolve(name))
    except DataError:
        return None
    return found if found.is_absolute() else _in_hub_cache(name)


def adapter_folder(name: str, policy: Path) -> Path:
    """Return where an adapter is that a job starts from: a folder beside the server's policy.

    Raises:
        JobError: It is a path, not a name, or there is no such folder.
    """
    folder = policy.parent / ADAPTERS / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise JobError(
            f"adapter.start {show(name)} is no adapter of this server; it has those in {ADAPTERS}/ "
            "beside its policy"
        )
    return folder


def _in_hub_cache(name: str) -> Path | None:
    """Return the folder of a hub model that was downloaded before; nothing is fetched."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    if "/" not in name:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None


def weights_of(name: str, policy: Path, seals: Seals | None = None) -> Weights | None:
    """Return what a model is on this machine, or None where it is not there.

    Args:
        name: What a job calls it.
        policy: The policy file.
        seals: What keeps in mind what was hashed, for when it is loaded.
    """
    folder = model_folder(name, policy)
    return None if folder is None else (seals or Seals()).close(folder)


def decided(
    policy: Policy,
    file: Path,
    job: Job,
    client: str,
    circumstances: Circumstances,
    seals: Seals | None = None,
) -> list[Refusal]:
    """Return every reason why a job may not run at a site, with the models that are here.

    Args:
        policy: The site's policy.
        file: Where it lies; models are looked for beside it.
        job: The job.
        client: What the job calls the site.
        circumstances: All but the model, which is filled in for each that the site would load.
        seals: What keeps in mind what was hashed, for when it is loaded.
    """
    found: list[Refusal] = []
    for name in models_of(job, client):
        try:
            model = weights_of(name, file, seals)
        except JobError:
            asks = f"names a model by {show(name)}, which is no name"
            only = "opens models by their names only"
            found.append(Refusal(key="models", asks=asks, allows=only))
            continue
        except DataError as error:  # what is in the folder is the site's own affair
            asks, why = f"runs model {show(name)}", f"does not load it: {error}"
            found.append(Refusal(key="models", asks=asks, allows=why))
            continue
        known = model is not None and model.sha256 in policy.models.values()
        here = replace(
            circumstances,
            model=name,
            model_sha256=model.sha256 if model else None,
            blocks=model.blocks if model and known else None,  # of others nothing is told
            **origins_of(job),
        )
        found += decide(policy, job, here)
    return list(dict.fromkeys([*found, *_overlapping(policy, job)]))


def origin_of(registry: Registry[Any], name: str) -> Origin | None:
    """Return whose code a mode or task of another package is here, without importing it."""
    try:
        return registry.origin(name)
    except PluginError as error:
        LOGGER.warning("%s", error)
        return None


def origins_of(job: Job) -> dict[str, Any]:
    """Return what circumstances say of whose code a job names."""
    strange = set(job.wire.names) - set(CODECS.ours)
    return {
        "plugin": origin_of(MODES, job.mode),
        "task": origin_of(TASKS, job.data.task),
        "aggregate": origin_of(AGGREGATES, named) if (named := aggregate_in(job)) else None,
        "codecs": {name: origin_of(CODECS, name) for name in strange},
    }


def importable(policy: Policy) -> set[str]:
    """Return what of other packages the policy allows, as it is here, by `Registry.key`.

    A pin of a task says nothing of a mode of the same name.
    """
    found = {
        MODES.key(mode)
        for mode in set(policy.modes) - set(MODES.ours)
        if not decide_mode(policy, mode, origin_of(MODES, mode))
    }
    for family in (TASKS, CODECS, AGGREGATES):
        here = policy.plugins.keys() & set(family.names()) - set(family.ours)
        found |= {
            family.key(name)
            for name in here
            if not policy.plugins[name].against(origin_of(family, name))
        }
    return found


def _overlapping(policy: Policy, job: Job) -> list[Refusal]:
    """Return why a job may not be tested on what it trains on, by whatever names."""
    data = job.data
    mine = files_of(policy, [data.train])
    if not data.test or not any(key_of(path, mine) in mine for path in _paths(policy, data.test)):
        return []
    asks = f"is tested on dataset {show(data.test)}, which it trains on as {show(data.train)}"
    return [Refusal(key="datasets", asks=asks, allows="keeps the two apart")]


def _paths(policy: Policy, name: str) -> tuple[str, ...]:
    return policy.datasets[name].paths if name in policy.datasets else ()


def placed(job: Job, policy: Path, client: str | None = None) -> Job:
    """Return a job whose models are folders of this machine.

    Args:
        job: The job.
        policy: The policy file.
        client: Whose own model is wanted too; those of others stay names.

    Raises:
        JobError: A model is not here, or is no name.
    """

    def find(name: str) -> str:
        folder = model_folder(name, policy)
        if folder is None:
            raise JobError(f"model {name!r} is not on this machine")
        return str(folder.resolve())

    each = dict(job.clients.each)
    if client in each and (own := each[client]).model is not None:
        each[client] = own.model_copy(update={"model": find(own.model)})
    return job.model_copy(
        update={
            "model": job.model.model_copy(update={"path": find(job.model.path)}),
            "clients": job.clients.model_copy(update={"each": each}),
        }
    )


def datasets(policy: Policy) -> Mapping[str, Dataset]:
    """Return where named datasets are, as the policy says."""
    return {
        name: Dataset(
            paths=[Path(p) for p in one.paths],
            columns=one.columns,
            dialect=Dialect(one.delimiter, one.encoding, one.header),
        )
        for name, one in policy.datasets.items()
    }
