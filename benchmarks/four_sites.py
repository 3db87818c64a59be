"""What do four organisations on one machine reach with a real model, beside one process?

The four silos of the demonstration as four sites of a federation on NVIDIA FLARE with mutual TLS,
SmolLM2, all three modes; then the very same job file in one process. Accuracy, bytes, seconds of a
round, and which share of a site's round is waiting, which on one machine is waiting for the other
sites' computing too. So `split` is played once more with one site alone, between two processes and
in one: what it takes longer between them, over all of it, is the share of a step that is the way.

    python benchmarks/four_sites.py --out benchmarks/results/four-sites.json
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import measure
import torch
from field import SITES, Field, started

from triskel.config.job import MODE_NAMES
from triskel.config.read import load
from triskel.data.assets import folder
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.policy.model_hash import weights

MODEL = "smollm2-135m"
PUBLIC = 100
JOB = """
name = "four-sites"
rounds = {rounds}
[model]
path = "{model}"
[data]
source = "clients"
train = "reviews"
public = "headlines.csv"
text = "text"
label = "label"
classes = ["negative", "neutral", "positive"]
[clients]
examples = {examples}
test_examples = 100
[train]
lr = 2e-3
[logits]
public = {public}
[federation]
patience_s = 120
"""


Row = Mapping[str, str]


def silos(home: Path, *, rounds: int, examples: int) -> Field:
    """Make a federation in which every silo of the opinions is a site."""
    with (folder("opinions") / "opinions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held: dict[str, list[Row]] = {}
    for row in rows:
        held.setdefault(row["silo"], []).append(row)
    found = weights(folder(MODEL))
    if found is None:
        raise RuntimeError(f"asset {MODEL} holds no weights")
    there, each = Field(home, sorted(held)), PUBLIC // len(held)
    text = JOB.format(model=MODEL, rounds=rounds, examples=examples, public=PUBLIC)
    there.job.write_text(text, encoding="utf-8")
    save(there.kits / "headlines.csv", [row for name in there.names for row in held[name][:each]])
    for name in ("server", *there.names):
        rules = SITES["policy"](name, found.sha256, **{"limits.cohort": "1"})
        rules = rules.replace("news.csv", "headlines.csv")
        (there.kits / name / "local" / "policy.toml").write_text(rules)
    for name in there.names:
        save(there.kits / "reviews" / f"{name}.csv", held[name][each:])
        save(there.kits / name / "reviews.csv", held[name][each:])
    return there


def single(there: Field) -> dict[str, Any]:
    """Play `split` with the first site alone, in a federation and in one process."""
    name = there.names[0]
    between = there.submit(["split"], "single", "--site", name)
    home = there.home / "single-here"
    shutil.copytree(there.kits / "reviews", home / "reviews")
    for other in there.names[1:]:
        (home / "reviews" / f"{other}.csv").unlink()
    for file in ("headlines.csv", there.job.name):
        shutil.copy(there.kits / file, home / file)
    job, out = load(home / there.job.name), there.home / "single-alone"
    run(job, Request(modes=("split",), baselines=()), out, LocalEngine(job), lambda _: None)
    ways, alone = told(between)["split"], told(out)["split"]
    longer = 1 - sum(alone["round_s"][1:]) / sum(ways["round_s"][1:])
    return {"sites": ways, "one_process": alone, "way_share": longer}


def save(place: Path, rows: Sequence[Row]) -> None:
    """Write texts and labels."""
    place.parent.mkdir(exist_ok=True)
    with place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def told(out: Path) -> dict[str, Any]:
    """Return what a run says of each mode."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for mode, one in result["modes"].items():
        rows = one["rounds"]
        shares = [
            1 - client["compute_s"] / row["seconds"]
            for row in rows
            for client in row["clients"].values()
        ]
        found[mode] = {
            "accuracy": one["final"]["accuracy"],
            "up_mb": one["totals"]["up"]["message_bytes"] / 1e6,
            "down_mb": one["totals"]["down"]["message_bytes"] / 1e6,
            "round_s": [row["seconds"] for row in rows],
            "waiting_share": mean(shares),
            "messages": one["totals"]["up"]["messages"],
        }
    return found


def main() -> None:
    """Play the job twice, and write the JSON."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--examples", type=int, default=100)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the nodes: four sites share the processors
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="triskel-four-") as name:
        there = silos(Path(name), rounds=chosen.rounds, examples=chosen.examples)
        with started(there):
            between = told(there.submit(MODE_NAMES, "out"))
            alone = single(there)
        torch.set_num_threads(os.cpu_count() or 1)
        found = {"sites": between, "one_process": told(there.alone(*MODE_NAMES)), "one": alone}
    print(json.dumps(found, indent=1))
    if chosen.out:
        sizes = {"rounds": chosen.rounds, "examples": chosen.examples, "public": PUBLIC}
        measure.keep("four-sites", found, seed=0, out=chosen.out, **sizes)


if __name__ == "__main__":
    main()
