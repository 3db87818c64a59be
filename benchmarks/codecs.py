"""What do codecs cost and lose on real updates?

The demonstration's `params` is played, and what clients sent and were sent is kept. Each codec then
carries the same tensors: bytes of a packed message as a share of fp32's (`of_fp32`), and what is
lost, as a share of the norm of the change: of one message (`error`), and of the sum over all rounds
with and without feedback (`owed`, `lost`). What is left of the score: docs/params-study.md.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import measure
from torch import Tensor

from triskel.codec import decode, encode
from triskel.codec.change import change, difference, numbers_of
from triskel.config.job import Job
from triskel.config.read import load
from triskel.core.choice import Choice, Chosen
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import prepare
from triskel.training.mode_setting import mode_of
from triskel.types import Message, Section
from triskel.wire import pack
from triskel.wire.ledger import Ledger

VALUES: tuple[str, ...] = ("fp32", "bf16", "int8", "int4")
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"name": "bf16", "change": True},
    {"name": "int8", "change": True},
    {"name": "int4", "change": True},
    {"name": "topk", "share": 0.1},
    {"name": "topk", "share": 0.05},
    {"name": "topk", "share": 0.02},
    {"name": "topk", "share": 0.01},
    {"name": "sign"},
)


def quiet(event: Mapping[str, Any]) -> None:
    """Tell nobody."""
    del event


def title(chosen: Any) -> str:
    """Return how a figure calls a codec."""
    if isinstance(chosen, str):
        return chosen
    share = f"_{100 * chosen['share']:g}" if "share" in chosen else ""
    return f"{chosen['name']}{share}_change"


def demo(rounds: int, seed: int, **wire: Any) -> Job:
    """Return the demonstration's job with other rounds, codecs and seed."""
    job = load(None, [f"rounds={rounds}", f"seed={seed}", "evaluate.every=0"])
    return Job.model_validate({**job.model_dump(), "wire": wire})


def played(job: Job) -> list[tuple[Section, list[Section]]]:
    """Return of each round the adapter that clients were sent, and those they sent back."""
    resources = prepare(job, quiet)
    mode: Any = mode_of(resources.setting("params", quiet))
    engine, state = LocalEngine(job), mode.start()
    found: list[tuple[Section, list[Section]]] = []
    add, came = type(mode).add, list[Section]()

    def noted(self: Any, state: Any, total: Any, client: str, update: Message) -> Any:
        came.append(update.sections["adapter"])
        return add(self, state, total, client, update)

    type(mode).add = noted
    try:
        for _ in range(job.rounds):
            came.clear()
            sent = mode.task(state, "anybody").sections["adapter"]
            state = engine.round(
                mode, state, resources.active(), worker=lambda c: resources.worker(c, quiet),
                client_states={}, keep=lambda _c, _s: None, ledger=Ledger(), watch=quiet,
            )  # fmt: skip
            found.append((sent, list(came)))
    finally:
        type(mode).add = add
    return found


def travelled(section: Section, chosen: Chosen) -> tuple[int, Section]:
    """Return the bytes of a message with this section, and what arrives."""
    coded = encode(Message(kind="update", sections={"adapter": section}), chosen)
    return len(pack(coded)), decode(coded, changes=True).sections["adapter"]


def norm(x: Tensor) -> float:
    """Return the length of a vector."""
    return float(x.double().norm())


def of_values(rounds: Sequence[tuple[Section, list[Section]]], name: str) -> dict[str, float]:
    """Return what a codec of values takes, and loses of the change that is in them."""
    sizes, errors = list[float](), list[float]()
    for sent, updates in rounds:
        for update in updates:
            size, there = travelled(update, name)
            sizes.append(size)
            lost = norm(difference(there.tensors, update.tensors))
            errors.append(lost / norm(difference(update.tensors, sent.tensors)))
    return {"bytes": fmean(sizes), "error": fmean(errors)}


def of_changes(
    rounds: Sequence[tuple[Section, list[Section]]], told: Mapping[str, Any]
) -> dict[str, float]:
    """Return what a codec of changes takes and loses, at once and in the sum over rounds."""
    chosen = Choice.model_validate(told)
    sizes, errors, owed, lost = list[float](), list[float](), list[float](), list[float]()
    for client in range(len(rounds[0][1])):
        rest: Any = 0
        whole: Any = 0
        plain: Any = 0
        for sent, updates in rounds:
            reference = sent.tensors
            moved = difference(updates[client].tensors, reference)
            alone = change(updates[client], reference, moved)
            _, there = travelled(alone, chosen)
            arrives = numbers_of("adapter", there, reference)
            errors.append(norm(moved - arrives) / norm(moved))
            whole, plain = whole + moved, plain + (moved - arrives)
            size, there = travelled(change(updates[client], reference, moved + rest), chosen)
            sizes.append(size)
            rest = moved + rest - numbers_of("adapter", there, reference)
        owed.append(norm(rest) / norm(whole))
        lost.append(norm(plain) / norm(whole))
    return {
        "bytes": fmean(sizes), "error": fmean(errors), "owed": fmean(owed), "lost": fmean(lost),
    }  # fmt: skip


def messages(rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Return figures of every codec on the same tensors."""
    real = played(demo(rounds, seed))
    found = {name: of_values(real, name) for name in VALUES}
    found |= {title(told): of_changes(real, told) for told in CHANGES}
    return {
        name: {**row, "of_fp32": row["bytes"] / found["fp32"]["bytes"]}
        for name, row in found.items()
    }


def main() -> None:
    """Print and keep the figures."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--rounds", type=int, default=10)
    chosen = options.parse_args()
    rounds = 3 if chosen.quick else chosen.rounds
    figures = messages(rounds, chosen.seed)
    print(json.dumps(figures, indent=1))
    if chosen.out:
        measure.keep("codecs", figures, seed=chosen.seed, out=chosen.out, rounds=rounds)


if __name__ == "__main__":
    main()
