"""A PEFT folder that training starts from, whoever wrote it, as the tensors of a body.

What its options say was looked at before (`export.start`); here its tensors are held against those
of the model that is to train: the modules, the blocks, the head.
"""

import re
from collections.abc import Collection
from pathlib import Path

from triskel.errors import JobError, ModelError
from triskel.model.peft_folder import hold_projections, tensors_in
from triskel.model.peft_options import of_body
from triskel.model.shared import SharedModel
from triskel.numerics.tensors import wide
from triskel.types import Tensors

MODULE = re.compile(r"(.+?\.\d+\..+?)\.(?:(?:lora|ia3|hada|lokr|vera_lambda)_.*|\w+)")
"""The name of a tensor in a block, and the module that it is beside or in."""
SHOWN = 6


def start_in(folder: Path, body: SharedModel, name: str) -> Tensors:
    """Return the tensors of a PEFT folder, as a body would train them.

    Args:
        folder: Where it is.
        body: The model, with the adapter that the job asks for.
        name: What errors call the folder.

    Raises:
        JobError: They are not those that the job trains; says what differs, and what to do.
    """
    where = f"adapter.start {name}"
    try:
        found = of_body(tensors_in(folder), body)
        hold_projections(folder, body, where="its folder")
    except ModelError as error:
        raise JobError(f"{where} cannot be read: {error}") from error
    if found.keys() != body.initial.keys():
        raise JobError(f"{where} {_other(found, body)}")
    for key, wanted in body.initial.items():
        tensor = found[key]
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise JobError(f"{where} holds {key} in {kind}, and what trains is floats")
        if tensor.shape != wanted.shape:
            what = "head has other classes" if key in body.layout.head else "base is another model"
            raise JobError(
                f"{where} holds {key} of shape {list(tensor.shape)}, and the job trains one of "
                f"shape {list(wanted.shape)}: its {what}, so it cannot start this job"
            )
    return {key: found[key].to(wide(body.dtype)).contiguous() for key in body.initial}


def _other(found: Tensors, body: SharedModel) -> str:
    """Return how the tensors that there are differ from those that a body trains."""
    theirs, ours = _modules(found), _modules(body.initial)
    blocks, mine = _blocks(theirs), _blocks(ours)
    kinds, own = _kinds(theirs), _kinds(ours)
    if kinds != own:
        listed = ", ".join(f'"{kind}"' for kind in sorted(kinds))
        return (
            f"adapts {_listed(kinds)}, and the job {_listed(own)}; "
            f"--set 'adapter.targets=[{listed}]' takes it as it is"
        )
    if blocks != mine:
        span = f"{min(blocks)}-{max(blocks)}" if blocks else ""
        whole = blocks and blocks == set(range(min(blocks), max(blocks) + 1))
        way = f"; --set adapter.blocks={span} takes it as it is" if whole else ""
        return f"sits in blocks {_listed(blocks)}, and the job's adapter in {_listed(mine)}{way}"
    strange, missing = sorted(found.keys() - body.initial), sorted(body.initial.keys() - found)
    if strange:
        return f"holds {strange[0]!r}, which this job does not train; it cannot start this job"
    return f"lacks {missing[0]!r}, which this job trains; it cannot start this job"


def _modules(tensors: Collection[str]) -> set[str]:
    """Return the modules that an adapter is in."""
    return {found[1] for name in tensors if (found := MODULE.fullmatch(name))}


def _blocks(modules: Collection[str]) -> set[int]:
    return {int(found[1]) for name in modules if (found := re.search(r"\.(\d+)\.", name))}


def _kinds(modules: Collection[str]) -> set[str]:
    """Return the modules of a block, by name."""
    return {re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in modules}


def _listed(names: Collection[object]) -> str:
    shown = [str(name) for name in sorted(names, key=lambda one: (str(type(one)), one))]  # type: ignore[type-var]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "") or "nothing"
