"""The paper's comparison on BANKING77: what each framework reaches, sends and computes, by setting.

One axis is varied at a time around a centre, after the use case of arXiv:2501.04436: LoRA rank and
number of adapted blocks (params), size of the public set (logits), cut (split), number of clients
and how labels are spread (all three). One JSON file a setting, written when the setting is done, so
the script can be stopped and started again at will; `--table` prints what is there.

    python runs/banking77.py --data FOLDER --out benchmarks/results/banking77
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triskel.compare import Request, run
from triskel.engines.local import LocalEngine
from triskel.errors import TriskelError
from triskel.job import MODE_NAMES, load

CENTRE: Mapping[str, Any] = {
    "name": "banking77",
    "rounds": 3,
    "model.path": "smollm2-135m",
    "model.dtype": "bfloat16",
    "adapter.rank": 8,
    "adapter.alpha": 16,
    "adapter.blocks": "all",
    "data.task": "classify",
    "data.source": "csv",
    "data.text": "text",
    "data.label": "category",
    "clients.partition": "dirichlet",
    "clients.alpha": 0.5,
    "clients.count": 4,
    "clients.examples": 400,
    "clients.test_examples": 150,
    "train.epochs": 1,
    "train.batch": 16,
    "train.lr": 2e-3,
    "train.max_tokens": 48,
    "logits.public": 400,
    "split.cut": [4, 28],
}
AXES: Mapping[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "adapter.rank": ((2, 8, 32), ("params", "split")),
    "adapter.blocks": (("all", "top:15", "top:5"), ("params", "logits", "split")),
    "logits.public": ((100, 400, 1600), ("logits",)),
    "split.cut": (([1, 29], [4, 28], [10, 25]), ("split",)),
    "clients.count": ((2, 4, 8), ("params", "logits", "split")),
    "clients.partition": (("dirichlet", "iid"), ("params", "logits", "split")),
}
"""For each axis the values tried and the modes it concerns; the centre is among the values."""


@dataclass(frozen=True)
class Setting:
    """One run: the centre with one key changed, in one mode or one baseline."""

    key: str
    value: Any
    what: str

    @property
    def name(self) -> str:
        """File name of the setting."""
        value = "-".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        return f"{self.what}.{self.key}.{value}".replace(":", "_")


def settings() -> Iterator[Setting]:
    """Return all settings once: the centre first, then axis by axis."""
    for what in ("base", "central", "local", *MODE_NAMES):
        yield Setting("centre", "", what)
    for key, (values, modes) in AXES.items():
        for value in values:
            if value != CENTRE[key]:
                for mode in modes:
                    yield Setting(key, value, mode)


def overrides(setting: Setting, data: Path, seed: int) -> list[str]:
    """Return a setting as `--set` pairs; total examples stay equal when clients are counted."""
    job = {
        **CENTRE,
        "seed": seed,
        "data.train": str(data / "train.csv"),
        "data.test": str(data / "test.csv"),
    }
    if setting.key != "centre":
        job[setting.key] = setting.value
    if setting.key == "clients.count":
        for key in ("clients.examples", "clients.test_examples"):
            job[key] = CENTRE[key] * CENTRE["clients.count"] // setting.value
    return [f"{key}={json.dumps(value)}" for key, value in job.items()]


def play(setting: Setting, data: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """Run one setting, and return its row."""
    job = load(None, [*overrides(setting, data, seed), *extra])
    baseline = setting.what not in MODE_NAMES
    request = Request(
        modes=() if baseline else (setting.what,),  # type: ignore[arg-type]
        baselines=(setting.what,) if baseline else (),  # type: ignore[arg-type]
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run(job, request, Path(folder) / "run", LocalEngine(job), lambda _: None)
    found = result["baselines" if baseline else "modes"][setting.what]
    row: dict[str, Any] = {
        "what": setting.what,
        "key": setting.key,
        "value": setting.value,
        "seed": seed,
        "wall_s": round(time.perf_counter() - start, 1),
        "clients": {c: one["train"] for c, one in result["data"]["clients"].items()},
        "environment": result["environment"],
        "job": result["job"],
    }
    if baseline:
        return row | {k: v for k, v in found.items() if k not in {"rounds", "per_client"}}
    return row | {
        "final": found["final"],
        "totals": found["totals"],
        "by_round": [r["accuracy"] for r in found["rounds"]],
        "per_client": {c: one["accuracy"] for c, one in found["rounds"][-1]["per_client"].items()},
    }


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows that are there."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(out.glob("*.json"))]


def table(out: Path) -> None:
    """Print what is there as a Markdown table."""
    print("| setting | what | accuracy | macro-F1 | up a client | down a client | TFLOP a client |")
    print("|---|---|---|---|---|---|---|")
    for row in rows(out):
        where = "centre" if row["key"] == "centre" else f"{row['key']} = {row['value']}"
        final, totals, clients = row.get("final", row), row.get("totals"), len(row["clients"])
        line = [where, row["what"], f"{final['accuracy']:.3f}"]
        line.append(f"{final['macro_f1']:.3f}" if "macro_f1" in final else "")
        for way in ("up", "down"):
            size = totals[way]["message_bytes"] / clients / 1e6 if totals and "final" in row else 0
            line.append(f"{size:.3f} MB" if size else "")
        flops = totals["client_flops"] / clients / 1e12 if totals and "final" in row else 0
        line.append(f"{flops:.2f}" if flops else "")
        print(f"| {' | '.join(line)} |")


def main() -> int:
    """Run the settings that are not there yet."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="folder with train.csv and test.csv")
    options.add_argument("--out", type=Path, default=Path("benchmarks/results/banking77"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=0, help="start nothing after this long")
    options.add_argument("--set", action="append", default=[], help="section.key=value")
    options.add_argument("--table", action="store_true", help="print what is there, and stop")
    chosen = options.parse_args()
    if chosen.table:
        table(chosen.out)
        return 0
    if chosen.data is None or not (chosen.data / "train.csv").exists():
        print("name a folder that has train.csv and test.csv with --data", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for setting in settings():
        place = chosen.out / f"{setting.name}.seed-{chosen.seed}.json"
        late = chosen.minutes and time.perf_counter() - start > 60 * chosen.minutes
        if place.exists() or late:
            continue
        try:
            row = play(setting, chosen.data, chosen.seed, chosen.set)
        except TriskelError as error:
            print(f"{setting.name}: {error}", file=sys.stderr)
            return error.exit_code
        part = place.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        part.replace(place)
        accuracy = row.get("final", row)["accuracy"]
        print(f"{setting.name}: accuracy {accuracy:.3f}, {row['wall_s']} s", flush=True)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
