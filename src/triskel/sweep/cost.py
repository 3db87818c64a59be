"""What a search cost, by rung and all together, and what the full grid would have cost.

Costs are those of closed rounds as the ledger has them, of settings that failed too; loading and
scoring are not among them. The full grid is arithmetic: a setting that stopped after k of R rounds
counts with what it spent, times what the settings that played all R rounds spent in them over what
they spent in the first k (later rounds may cost less, as hidden states are kept); one that failed
counts with what it spent.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from triskel.core.result_file import stage_in
from triskel.core.result_parts import RoundRow
from triskel.core.sweep_file import RowCost, RungCost, SearchCost, Spent, SweepRecord
from triskel.experiment.checkpoint import read
from triskel.experiment.folder import safe
from triskel.wire.ledger import costs

ALONE = "local"


def spent_in(place: Path, row: str, *, federated: bool, failed: bool) -> list[Spent]:
    """Return what each closed round of a row cost in a run folder.

    Args:
        place: The run.
        row: A baseline or a mode; of `local`, all clients together.
        federated: Whether messages travel; baselines have everything in one place.
        failed: Whether it failed in a round, so that the rounds before it are in checkpoints only.

    Raises:
        CheckpointError: What it left is damaged.
    """
    stages = place / "stages"
    found: list[Spent] = []
    for stage in sorted(stages.glob(f"{ALONE}-*")) if row == ALONE else [stages / safe(row)]:
        for number, one in enumerate(_rows(stage, failed=failed)):
            told = _round(one, federated=federated)
            if number < len(found):
                found[number] = added([found[number], told])
            else:
                found.append(told)
    return found


def _rows(stage: Path, *, failed: bool) -> Sequence[RoundRow]:
    done = stage_in(stage)
    rows = done["rounds"] if done else []
    saved = read(stage) if failed else None
    return max(rows, cast("list[RoundRow]", saved.rows) if saved else [], key=len)


def _round(row: RoundRow, *, federated: bool) -> Spent:
    spent = costs(row)
    return {
        "up_bytes": sum(one["up"]["message_bytes"] for one in spent) if federated else 0,
        "down_bytes": sum(one["down"]["message_bytes"] for one in spent) if federated else 0,
        "client_flops": sum(one["flops"] for one in spent),
        "server_flops": row["server"]["flops"] if "server" in row and federated else 0,
        "seconds": row.get("seconds", 0.0),
    }


def added(parts: Iterable[Spent]) -> Spent:
    """Return the sums."""
    total: Spent = {
        "up_bytes": 0, "down_bytes": 0, "client_flops": 0, "server_flops": 0, "seconds": 0.0,
    }  # fmt: skip
    for one in parts:
        total = {
            "up_bytes": total["up_bytes"] + one["up_bytes"],
            "down_bytes": total["down_bytes"] + one["down_bytes"],
            "client_flops": total["client_flops"] + one["client_flops"],
            "server_flops": total["server_flops"] + one["server_flops"],
            "seconds": total["seconds"] + one["seconds"],
        }
    return total


def grown(parts: Sequence[Spent], whole: Sequence[Sequence[Spent]], rounds: int) -> Spent:
    """Return what a setting would have spent in all rounds, whole numbers to the nearest.

    Args:
        parts: What it spent in its first rounds.
        whole: What settings that played all of them spent, round by round.
        rounds: How many there are.
    """
    own = cast("Mapping[str, float]", added(parts))
    if not parts or len(parts) >= rounds:
        return added(parts)
    begun = cast("Mapping[str, float]", added(one for each in whole for one in each[: len(parts)]))
    ended = cast("Mapping[str, float]", added(one for each in whole for one in each))
    found = {
        key: value * (ended[key] / begun[key] if begun[key] else rounds / len(parts))
        for key, value in own.items()
    }
    return cast("Spent", {k: v if k == "seconds" else round(v) for k, v in found.items()})


def cost_of(record: SweepRecord, rows: Sequence[str], rounds: int) -> SearchCost:
    """Return what a sweep cost; of one that was halved also by rung, and the full grid beside it.

    Args:
        record: The sweep.
        rows: Baselines and modes.
        rounds: Those of the job.
    """
    each = {row: _row(record, row, rounds) for row in rows}
    found: SearchCost = {"rows": each, "total": added(one["total"] for one in each.values())}
    grids = [one["grid"] for one in each.values() if "grid" in one]
    return {**found, "grid": added(grids)} if grids else found


def _row(record: SweepRecord, row: str, rounds: int) -> RowCost:
    each = {one["name"]: one.get("spent", {}).get(row, []) for one in record["settings"]}
    total = added(part for parts in each.values() for part in parts)
    if "halving" not in record["request"]:
        return {"total": total}
    failed = {
        one["name"] for one in record["settings"] if row in {**one["diverged"], **one["failed"]}
    }
    rungs, before = list[RungCost](), 0
    for rung in record.get("rungs", {}).get(row, []):
        inside = [part for name in rung["reached"] for part in each[name][before : rung["rounds"]]]
        rungs.append({"rounds": rung["rounds"], "settings": len(rung["reached"]), **added(inside)})
        before = rung["rounds"]
    whole = [parts for parts in each.values() if len(parts) == rounds]
    grid = added(
        added(parts) if name in failed else grown(parts, whole, rounds)
        for name, parts in each.items()
    )
    return {"rungs": rungs, "total": total, "grid": grid}
