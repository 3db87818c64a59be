"""Does every job of a federation end as if nothing had happened, whatever is killed meanwhile?

A server and three sites on this machine, mutual TLS, a tiny model. Jobs run under `--supervise`,
all modes in turn, and `kill -9` hits at random moments, one thing or two: the process of a site's
job, a site's node with all its processes, the process of the server's job, the server's node. Nodes
are started again after a few seconds, as a service manager would. All sites take part in
every round (`federation.quorum = 1`), so every job must end with the adapter that one process ends
with, bit by bit.

    python benchmarks/faults.py --kills 50 --out benchmarks/results/faults.json
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import measure
from field import SITES, Field, same, started, tiny

from triskel.config.job import MODE_NAMES, ModeName

KINDS = ("site job", "site node", "server job", "server node")
ROUNDS, EACH = 24, 5
PATIENCE_S = 12
KEYS = {"rounds": str(ROUNDS), "federation.patience_s": str(PATIENCE_S)}


def told(there: Field, run: str) -> int:
    """Return how many rounds began so far, as the server's log of the run says."""
    log = there.kits / "server" / "triskel" / "runs" / run / "events.jsonl"
    try:
        return log.read_text(encoding="utf-8").count('"round_start"')
    except OSError:
        return 0


def kill(there: Field, kind: str, dice: random.Random) -> str:
    """Kill something, start again what is a node; return its name, or nothing if it was gone."""
    name = "server" if kind.startswith("server") else dice.choice(SITES["SITES"])
    found = there.everything(name) if kind.endswith("node") else there.workers(name)
    for number in found:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if kind.endswith("node"):
        time.sleep(dice.uniform(0.5, 4))
        there.command("start", "f", name)
    return name if found else ""


def supervised(
    there: Field, mode: ModeName, number: int, kinds: list[str], dice: random.Random
) -> dict[str, Any]:
    """Run one job to its end while things are killed; return what came of it."""
    out, start = f"out-{number}", time.perf_counter()
    words = ("--mode", mode, "--supervise", "--out", out, "--set", f"name=job-{number}")
    job = there.begin("submit", "f", str(there.job), *words)
    runs = there.kits / "server" / "triskel" / "runs"
    before, killed, seen = set(runs.iterdir()) if runs.is_dir() else set(), [], 0
    while job.poll() is None and kinds:
        new = [p.name for p in runs.glob("*/") if p not in before]
        now = told(there, new[0]) if new else 0
        if now <= seen:
            time.sleep(0.1)
            continue
        time.sleep(dice.uniform(0, 1.5))
        for _ in range(dice.choice((1, 2))):  # now and then two at once
            if job.poll() is None and kinds and (name := kill(there, kinds[0], dice)):
                killed += [{"what": kinds.pop(0), "who": name, "round": now}]
        seen = told(there, new[0])
    said, _ = job.communicate()
    place = there.home / out
    ended = not job.returncode and same(place, there.alone(mode), mode)
    row = {
        "mode": mode,
        "kills": killed,
        "restarts": said.count("submitted again"),
        "seconds": round(time.perf_counter() - start, 1),
        "exit": job.returncode,
        "bit_equal": ended,
    }
    if not ended:
        row["said"] = said[-2000:]
    print(json.dumps(row), flush=True)
    return row


def main() -> int:
    """Kill so many things, and say whether every job ended right."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--kills", type=int, default=50)
    chosen = options.parse_args()
    dice = random.Random(chosen.seed)  # noqa: S311 - dice, not secrets
    wanted = 3 if chosen.quick else chosen.kills
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="triskel-faults-") as home,
        started(tiny(Path(home), KEYS)) as there,
    ):
        for mode in MODE_NAMES:
            there.alone(mode)
        while (done := sum(len(row["kills"]) for row in rows)) < wanted:
            count = min(EACH, wanted - done)
            kinds = [KINDS[(done + i) % len(KINDS)] for i in range(count)]
            dice.shuffle(kinds)
            mode = MODE_NAMES[len(rows) % len(MODE_NAMES)]
            rows.append(supervised(there, mode, len(rows), kinds, dice))
            if chosen.out:
                found = figures(rows)
                measure.keep("faults", found, seed=chosen.seed, out=chosen.out, jobs=rows)
    print(json.dumps(figures(rows), indent=1))
    return 0 if all(row["bit_equal"] for row in rows) else 1


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fault table: a line for what was killed, and every job."""
    kinds = Counter(kill["what"] for row in rows for kill in row["kills"])
    modes = Counter(row["mode"] for row in rows for _ in row["kills"])
    return {
        "kills": sum(kinds.values()),
        "by_kind": dict(kinds),
        "by_mode": dict(modes),
        "jobs": len(rows),
        "bit_equal": sum(row["bit_equal"] for row in rows),
        "rounds": ROUNDS,
        "patience_s": PATIENCE_S,
    }


if __name__ == "__main__":
    sys.exit(main())
