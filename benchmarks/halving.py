"""Does successive halving find what the full grid finds, and for which part of its cost?

The demo's four silos and model (`--model` names another), six learning rates, four rounds,
`params`: the full grid, then the same rates halved (`--halving 2`: six settings to round 1, three
to round 2, one to round 4). For each seed

    bytes, client_flops, seconds    halving's over the grid's, of closed rounds
    arithmetic_bytes, ..._flops     the full grid as halving's page counts it, over the grid's
    same_choice                     1 where both choose the same rate
    apart                           how many doublings lie between the two rates
    validation_lost, test_lost      the accuracy of the grid's choice minus that of halving's

`by_hand` says what other rungs would have chosen: as a rung is the beginning of the whole run, the
full grid's figures by round tell. `share` are rounds played over those of the grid.
`--work DIR` keeps the runs, and goes on where it was stopped.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure

from triskel.config.grid import settings_of
from triskel.engines.local import LocalEngine
from triskel.sweep import Sweep, sweep
from triskel.sweep.halving import going_on, halving_of

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
ROUNDS, ETA = 4, 2
OTHERS = ((2, 1), (2, 2), (2, 3), (3, 1), (3, 2))
"""ETA and rounds of the first rung."""
EXAMPLES, QUICK = 100, 12
"""Training texts of a client, of which 0.3 are held out to choose by."""


def job(model: str, seed: int, examples: int) -> list[str]:
    """Return what is asked of the sweep, as on the command line."""
    return [
        f"model.path={model}",
        f"train.lr={','.join(map(str, RATES))}",
        f"rounds={ROUNDS}",
        f"seed={seed}",
        f"clients.examples={examples}",
        f"clients.test_examples={examples}",
        "data.validation_share=0.3",
        "train.epochs=1",
    ]


def played(folder: Path, asked_: Sequence[str], *, halved: bool) -> Mapping[str, Any]:
    """Play a sweep, or go on with it, and return what `sweep.json` holds."""
    base, settings = settings_of(None, asked_)
    rungs = halving_of(ETA, None, settings=len(settings), rounds=ROUNDS) if halved else None
    asked = Sweep(job=base, settings=settings, modes=("params",), halving=rungs)
    found: Any = sweep(asked, folder, LocalEngine, _said)
    return found


def _said(event: Mapping[str, Any]) -> None:
    if event["event"] in {"setting_start", "round_end"}:
        told = (event.get(key, "") for key in ("setting", "stage", "round", "accuracy"))
        print(event["event"], *told, flush=True)


def figures_of(grid: Mapping[str, Any], halved: Mapping[str, Any]) -> dict[str, float]:
    """Return what one seed says."""
    whole, part = grid["cost"]["total"], halved["cost"]["total"]
    counted = halved["cost"]["grid"]
    won = [one["winners"]["params"] for one in (grid, halved)]
    rates = [float(one["setting"].partition("=")[2]) for one in won]
    lost = {
        kind: won[0][kind]["everybody"]["accuracy"] - won[1][kind]["everybody"]["accuracy"]
        for kind in ("validation", "test")
    }
    return {
        "bytes": _bytes(part) / _bytes(whole),
        "client_flops": part["client_flops"] / whole["client_flops"],
        "seconds": part["seconds"] / whole["seconds"],
        "arithmetic_bytes": _bytes(counted) / _bytes(whole),
        "arithmetic_flops": counted["client_flops"] / whole["client_flops"],
        "same_choice": float(rates[0] == rates[1]),
        "apart": abs(math.log2(rates[0] / rates[1])),
        "validation_lost": lost["validation"],
        "test_lost": lost["test"],
    }


def _bytes(spent: Mapping[str, Any]) -> float:
    return float(spent["up_bytes"] + spent["down_bytes"])


def by_hand(folder: Path, eta: int, first: int) -> dict[str, Any]:
    """Halve the rates of a full grid by what each reached after each round."""
    rows = {
        place.parent.name: json.loads(place.read_text(encoding="utf-8"))["modes"]["params"][
            "rounds"
        ]
        for place in folder.glob("*/result.json")
    }
    names = sorted(rows, key=lambda name: float(name.partition("=")[2]))
    settings, before, spent = len(names), 0, 0
    for rounds in halving_of(eta, first, settings=len(names), rounds=ROUNDS).rungs:
        now = rounds if len(names) > 1 else ROUNDS
        spent, before = spent + len(names) * (now - before), now
        reached = {name: rows[name][now - 1]["accuracy"] for name in names}
        names = going_on(reached, eta if now < ROUNDS else len(names), "accuracy")
    (won,) = names
    told = {"eta": eta, "first": first, "share": spent / (settings * ROUNDS), "setting": won}
    return {**told, "validation": rows[won][-1]["accuracy"]}


def search_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sweep found, rate by rate."""
    reached = {
        one["name"]: one["rows"]["params"]["everybody"]["accuracy"]
        for one in record["settings"]
        if "params" in one["rows"]
    }
    return {"reached": reached, "winners": record["winners"], "cost": record["cost"]["total"]} | (
        {"rungs": record["rungs"]["params"]} if "rungs" in record else {}
    )


def main() -> None:
    """Print and keep the figures."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--seeds", type=int, default=3, help="so many, from --seed on")
    options.add_argument("--work", type=Path, help="a folder for the runs")
    options.add_argument("--model", default="smollm2-135m", help="an asset, or a local folder")
    chosen = options.parse_args()
    seeds: Sequence[int] = range(chosen.seed, chosen.seed + (1 if chosen.quick else chosen.seeds))
    examples = QUICK if chosen.quick else EXAMPLES
    figures, searches = dict[str, list[float]](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as room:
        work = chosen.work or Path(room)
        for seed in seeds:
            both = [
                played(
                    work / f"{name}-{seed}",
                    job(chosen.model, seed, examples),
                    halved=name == "halving",
                )
                for name in ("grid", "halving")
            ]
            rungs = [by_hand(work / f"grid-{seed}", *how) for how in OTHERS]
            for name, value in figures_of(*both).items():
                figures.setdefault(name, []).append(value)
            told = dict(zip(("grid", "halving"), map(search_of, both), strict=True))
            searches[f"seed {seed}"] = {**told, "by_hand": rungs}
    model = Path(chosen.model).name
    setup = {
        "model": model, "rates": RATES, "rounds": ROUNDS, "eta": ETA, "examples": examples
    }  # fmt: skip
    measure.report(
        "halving", figures, seed=chosen.seed, out=chosen.out, setup=setup, searches=searches
    )


if __name__ == "__main__":
    main()
