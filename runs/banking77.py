"""The paper's comparison on BANKING77: what each framework reaches, sends and computes, by setting.

One key is varied at a time around `banking77.toml`, after the use case of arXiv:2501.04436. Every
command is `triskel`'s own, and printed before it is played:

    tuning      a sweep over learning rates; each mode and baseline has a rate of its own
    settings    a sweep a key and mode, at the mode's rate; figures are on validation texts
    centre      a comparison over five seeds, every row at its rate; figures are on test texts

    python runs/banking77.py FOLDER

goes on where it was stopped. `--share 1/2` and `--share 2/2` play the settings side by side.
`--table` prints what is there. Rows that train at different rates are played apart, and put
together again: they hold the same texts, so that their tests are paired as ever.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triskel.experiment.summary import amounts
from triskel.report.page import write_report

JOB = Path(__file__).with_suffix(".toml")
MODES = ("params", "logits", "split")
RATES = "train.lr=1e-3,2e-3,4e-3,8e-3"
SEEDS = 5
SCORES = ("accuracy", "macro_f1", "loss")
CAUSAL = ("data.task=causal", 'data.text=""', "data.prompt=text",
          "data.response=category")  # fmt: skip
VARIED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rank": (("adapter.rank=2,32",), ("params", "split")),
    "blocks": (("adapter.blocks=top:15,top:5",), MODES),
    "public": (("logits.public=50,800",), ("logits",)),
    "cut": (("split.cut=[1,29],[10,25]",), ("split",)),
    "clients-2": (("clients.count=2", "clients.examples=400", "clients.test_examples=300"), MODES),
    "clients-8": (("clients.count=8", "clients.examples=100", "clients.test_examples=75"), MODES),
    "labels": (("clients.partition=iid",), MODES),
    "causal": (CAUSAL, ("central", "params")),
    "causal-top-k": ((*CAUSAL, "logits.top_k=1,8,32"), ("logits",)),
}
"""What is varied, and in which rows; all clients together hold as many texts throughout."""


def triskel(command: str, *words: object) -> None:
    """Play a command, or what is left of it."""
    line = ["triskel", command, *map(str, words)]
    print("$", " ".join(line), flush=True)
    subprocess.run([Path(sys.executable).with_name(line[0]), *line[1:]], check=True)


def sweep(out: Path, name: str, sets: Sequence[str], rows: Sequence[str]) -> None:
    """Play a sweep of some rows, unless it is done."""
    modes = [row for row in rows if row in MODES]
    floors = [row for row in rows if row not in MODES]
    pairs = [word for one in sets for word in ("--set", one)]
    rows_ = ["--baselines", ",".join(floors) or "none", "--modes", ",".join(modes) or "none"]
    triskel("sweep", out / JOB.name, *pairs, *rows_, "--out", out / name)


def rates_of(out: Path) -> Mapping[str, float]:
    """Return the learning rate that won for each row."""
    found = read(out / "tuning" / "sweep.json")
    rates = {one["name"]: one["set"]["train.lr"] for one in found["settings"]}
    return {row: rates[won["setting"]] for row, won in found["winners"].items()}


def settings(out: Path, share: str) -> None:
    """Play every setting, each row at its rate."""
    index, shares = map(int, share.split("/"))
    rates = rates_of(out)
    tasks = [(name, sets, row) for name, (sets, rows) in VARIED.items() for row in rows]
    for name, sets, row in tasks[index - 1 :: shares]:
        rate = f"train.lr={rates[row]}"
        sweep(out, f"{name}/{row}", (*sets, rate), (row,))


def centre(out: Path) -> None:
    """Play five seeds, rows of one rate together, and put them into one result."""
    groups: dict[float, list[str]] = {}
    for row, rate in {"base": rates_of(out)["local"], **rates_of(out)}.items():
        groups.setdefault(rate, []).append(row)
    parts: list[Path] = []
    for rate, rows in groups.items():
        place = out / "centre" / f"lr-{rate}"
        parts.append(place)
        modes = [row for row in MODES if row in rows]
        floors = [row for row in rows if row not in MODES]
        if "local" in floors and "logits" in modes:  # the mode that computes most
            floors.append("local_equal")
        if (place / "result.json").exists():
            triskel("run", "--resume", place)
            continue
        words = ["--modes", ",".join(modes) or "none", "--baselines", ",".join(floors) or "none"]
        words += ["--set", f"train.lr={rate}", "--seeds", str(SEEDS), "--out", str(place)]
        triskel("compare", out / JOB.name, *words)
    together(out / "centre", parts, rates_of(out))


def together(place: Path, parts: Sequence[Path], rates: Mapping[str, float]) -> None:
    """Write one result of rows that were played apart, seed by seed."""
    results = [read(part / "result.json") for part in parts]
    runs: list[dict[str, Any]] = []
    for number, seed in enumerate(results[0]["seeds"]):
        alike = [found["runs"][number] for found in results]
        run = {**alike[0]}
        for kind, names in (("baselines", ("base", "local", "local_equal", "central")),
                            ("modes", MODES)):  # fmt: skip
            there = {name: one[kind][name] for one in alike for name in one[kind]}
            run[kind] = {name: there[name] for name in names if name in there}
        runs.append(run)
        kept = place / f"seed-{seed}" / "outcomes"
        kept.mkdir(parents=True, exist_ok=True)
        for part in parts:
            for file in (part / f"seed-{seed}" / "outcomes").iterdir():
                shutil.copyfile(file, kept / file.name)
    folders = [place / f"seed-{seed}" for seed in results[0]["seeds"]]
    whole = {**results[0], "runs": runs, "rates": dict(rates), **amounts(runs, folders)}
    (place / "result.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    write_report(place)


def read(file: Path) -> dict[str, Any]:
    """Return a JSON file."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def kept(out: Path, results: Path) -> None:
    """Copy what was found, without texts' places and single rounds, to where it is looked up."""
    results.mkdir(parents=True, exist_ok=True)
    for file in sorted(out.rglob("sweep.json")):
        found = nameless(read(file))
        name = "-".join(file.parent.relative_to(out).parts)
        (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if (out / "centre" / "result.json").exists():
        whole = read(out / "centre" / "result.json")
        for run in whole["runs"]:
            for row in run["modes"].values():
                rounds = [{key: one.get(key) for key in SCORES} for one in row.pop("rounds")]
                row["by_round"] = rounds
        whole["runs"] = [nameless(run) for run in whole["runs"]]
        text = json.dumps(nameless(whole), indent=1)
        (results / "centre.json").write_text(text + "\n", encoding="utf-8")


def nameless(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result without where the data lay; whose machine does not matter."""
    if "job" in found:
        found["job"]["data"] |= {"train": "train.csv", "test": "test.csv"}
    return found


def lines(results: Path) -> Iterator[str]:
    """Return every setting as a line of a Markdown table."""
    yield "| setting | row | accuracy, everybody's | own texts | MB a client | TFLOP a client |"
    yield "|---|---|---:|---:|---:|---:|"
    for file in sorted(results.glob("*.json")):
        if file.name == "centre.json":
            continue
        found = read(file)
        for one in found["settings"]:
            clients = one["set"].get("clients.count", found["job"]["clients"]["count"])
            for row, told in one["rows"].items():
                many = 1 if row == "central" else clients
                figures = [f"{told[c]['accuracy']:.3f}" for c in ("everybody", "own")]
                sent = f"{told['bytes'] / many / 1e6:.2f}" if "bytes" in told else ""
                spent = f"{told['client_flops'] / many / 1e12:.2f}"
                causal = "causal, " if found["job"]["data"]["task"] == "causal" else ""
                yield f"| {causal}{one['name']} | {row} | {' | '.join([*figures, sent, spent])} |"


def main() -> int:
    """Play what is left, or print what is there."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("data", type=Path, nargs="?", help="folder with train.csv and test.csv")
    options.add_argument("--out", type=Path, default=Path("runs/banking77"), help="run folders")
    options.add_argument("--results", type=Path, default=Path("benchmarks/results/banking77"))
    options.add_argument("--share", default="1/1", help="i/n: every n-th setting, from the i-th")
    options.add_argument("--only", choices=("tuning", "settings", "centre"))
    options.add_argument("--table", action="store_true", help="print what is there, and stop")
    chosen = options.parse_args()
    if chosen.table:
        with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
            print("\n".join(lines(chosen.results)), flush=True)
        return 0
    if chosen.data is None or not (chosen.data / "train.csv").exists():
        print("name a folder that has train.csv and test.csv", file=sys.stderr)
        return 2
    text = JOB.read_text(encoding="utf-8")
    for name in ("train.csv", "test.csv"):
        text = text.replace(f'"{name}"', json.dumps(str(chosen.data.resolve() / name)))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / JOB.name).write_text(text, encoding="utf-8")
    try:
        if chosen.only in {None, "tuning"}:
            sweep(chosen.out, "tuning", [RATES], ("local", "central", *MODES))
        if chosen.only in {None, "settings"}:
            settings(chosen.out, chosen.share)
        if chosen.only in {None, "centre"}:
            centre(chosen.out)
    except subprocess.CalledProcessError as error:  # it has said why
        return int(error.returncode)
    finally:
        kept(chosen.out, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
