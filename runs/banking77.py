"""The paper's comparison on BANKING77: what each framework reaches, sends and computes, by setting.

One axis is varied at a time around a centre, after the use case of arXiv:2501.04436: LoRA rank and
number of adapted blocks, size of the public set (logits), cut (split), number of clients and how
labels are spread. Top-k belongs to causal models, so its settings learn the same task as an answer:
text in, the words of the intent out.

Learning rates are chosen first, by `triskel sweep`, for every mode and baseline of its own: a fifth
of each client's training texts is held out to choose by, and test.csv is read for the winners only.
Then every setting is a `triskel compare` of one mode at its rate, on the same training texts:

    python runs/banking77.py --data FOLDER --tune
    python runs/banking77.py --data FOLDER

write `tuning.json` and one JSON file a setting under `--out`, whenever one is done, so the script
can be stopped and started again at will; `--share 1/2` and `--share 2/2` are two processes side
by side. `--table` prints what is there, and `--plot FILE` draws it.
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

from plotly.subplots import make_subplots

from triskel.compare import Request, run
from triskel.engines.local import LocalEngine
from triskel.errors import TriskelError
from triskel.grid import settings_of
from triskel.job import MODE_NAMES, load
from triskel.report.marks import COLOURS, LINES, MARKERS
from triskel.sweep import Sweep, sweep

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
    "clients.examples": 200,
    "clients.test_examples": 150,
    "train.epochs": 1,
    "train.batch": 16,
    "train.lr": 2e-3,
    "train.max_tokens": 48,
    "data.validation_share": 0.2,
    "logits.public": 200,
    "split.cut": [4, 28],
}
CAUSAL: Mapping[str, Any] = {
    **{k: v for k, v in CENTRE.items() if k != "data.text"},
    "data.task": "causal",
    "data.prompt": "text",
    "data.response": "category",
}
AXES: Mapping[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "adapter.rank": ((2, 8, 32), ("params", "split")),
    "adapter.blocks": (("all", "top:15", "top:5"), ("params", "logits", "split")),
    "logits.public": ((50, 200, 800), ("logits",)),
    "split.cut": (([1, 29], [4, 28], [10, 25]), ("split",)),
    "clients.count": ((2, 4, 8), ("params", "logits", "split")),
    "clients.partition": (("dirichlet", "iid"), ("params", "logits", "split")),
}
"""For each axis the values tried and the modes it concerns; the centre is among the values."""
TOP_K = (1, 8, 32)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNED = ("central", "local", *MODE_NAMES)


@dataclass(frozen=True)
class Setting:
    """One run: a centre with one key changed, in one mode or one baseline."""

    key: str
    value: Any
    what: str
    task: str = "classify"

    @property
    def name(self) -> str:
        """File name of the setting."""
        value = "-".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        task = "" if self.task == "classify" else f"{self.task}."
        return f"{task}{self.what}.{self.key}.{value}".replace(":", "_")


def settings() -> Iterator[Setting]:
    """Return all settings once: the centre first, then axis by axis, then the causal ones."""
    for what in ("base", *TUNED):
        yield Setting("centre", "", what)
    for key, (values, modes) in AXES.items():
        for value in values:
            if value != CENTRE[key]:
                for mode in modes:
                    yield Setting(key, value, mode)
    for what in ("base", "central", "params"):
        yield Setting("centre", "", what, "causal")
    for k in TOP_K:
        yield Setting("logits.top_k", k, "logits", "causal")


def tune(data: Path, out: Path, folder: Path, given: list[str]) -> Mapping[str, Any]:
    """Choose a learning rate for every mode and baseline at the centre."""
    centre = [*overrides(Setting("centre", "", ""), data, 0, {}), *given]
    lists = {pair.partition("=")[0]: pair for pair in centre}
    lists["train.lr"] = f"train.lr={','.join(map(str, RATES))}"
    job, tried = settings_of(None, list(lists.values()))
    asked = Sweep(job=job, settings=tried, baselines=("local", "central"))
    found = sweep(asked, folder, LocalEngine, said)
    write(out / "tuning.json", {**found, "job": nameless(found["job"])})
    return found


def best_rates(out: Path) -> Mapping[str, float]:
    """Return the learning rate that won for each mode and baseline."""
    found = json.loads((out / "tuning.json").read_text(encoding="utf-8"))
    rates = {one["name"]: one["set"]["train.lr"] for one in found["settings"]}
    return {row: rates[won["setting"]] for row, won in found["winners"].items()}


def nameless(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job without where the data lay; whose machine does not matter."""
    return {**job, "data": {**job["data"], "train": "train.csv", "test": "test.csv"}}


def overrides(setting: Setting, data: Path, seed: int, rates: Mapping[str, float]) -> list[str]:
    """Return a setting as `--set` pairs; total examples stay equal when clients are counted."""
    centre = CENTRE if setting.task == "classify" else CAUSAL
    job = {
        **centre,
        "seed": seed,
        "data.train": str(data / "train.csv"),
        "data.test": str(data / "test.csv"),
    }
    job["train.lr"] = rates.get(setting.what, CENTRE["train.lr"])
    if setting.key != "centre":
        job[setting.key] = setting.value
    if setting.key == "clients.count":
        for key in ("clients.examples", "clients.test_examples"):
            job[key] = CENTRE[key] * CENTRE["clients.count"] // setting.value
    return [f"{key}={json.dumps(value)}" for key, value in job.items()]


def play(setting: Setting, pairs: list[str], seed: int) -> dict[str, Any]:
    """Run one setting, and return its row."""
    job = load(None, pairs)
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
        "task": setting.task,
        "key": setting.key,
        "value": setting.value,
        "seed": seed,
        "wall_s": round(time.perf_counter() - start, 1),
        "clients": {c: one["train"] for c, one in result["data"]["clients"].items()},
        "environment": result["environment"],
        "job": nameless(result["job"]),
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
    places = sorted(place for place in out.glob("*.json") if place.name != "tuning.json")
    return [json.loads(place.read_text(encoding="utf-8")) for place in places]


def table(out: Path) -> None:
    """Print what is there as a Markdown table."""
    print("| setting | what | accuracy | macro-F1 | up a client | down a client | TFLOP a client |")
    print("|---|---|---|---|---|---|---|")
    for row in rows(out):
        where = "centre" if row["key"] == "centre" else f"{row['key']} = {row['value']}"
        where = where if row["task"] == "classify" else f"{row['task']}, {where}"
        final, totals, clients = row.get("final", row), row.get("totals"), len(row["clients"])
        line = [where, row["what"], f"{final['accuracy']:.3f}"]
        line.append(f"{final['macro_f1']:.3f}" if "macro_f1" in final else "")
        for way in ("up", "down"):
            size = totals[way]["message_bytes"] / clients / 1e6 if totals and "final" in row else 0
            line.append(f"{size:.3f} MB" if size else "")
        flops = totals["client_flops"] / clients / 1e12 if totals and "final" in row else 0
        line.append(f"{flops:.2f}" if flops else "")
        print(f"| {' | '.join(line)} |")


def plot(out: Path, place: Path) -> None:
    """Draw accuracy against what a client sends and computes, every classify setting a mark."""
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03)
    there = [row for row in rows(out) if row["task"] == "classify"]
    for mode in MODE_NAMES:
        mine = [row for row in there if row["what"] == mode]
        names = ["centre" if r["key"] == "centre" else f"{r['key']} {r['value']}" for r in mine]
        reached = [row["final"]["accuracy"] for row in mine]
        sent = [r["totals"]["up"]["message_bytes"] / len(r["clients"]) / 1e6 for r in mine]
        spent = [r["totals"]["client_flops"] / len(r["clients"]) / 1e12 for r in mine]
        centres = [name == "centre" for name in names]
        marker = {
            "color": COLOURS[mode],
            "symbol": MARKERS[mode],
            "size": [15 if centre else 9 for centre in centres],
            "line": {"width": 1, "color": "white"},
        }
        for column, cost in ((1, sent), (2, spent)):
            figure.add_scatter(
                x=cost, y=reached, mode="markers", name=mode, marker=marker, text=names,
                legendgroup=mode, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    for row in there:
        if row["what"] in LINES and row["key"] == "centre":
            name = {"base": "majority", "local": "alone", "central": "centralised"}[row["what"]]
            figure.add_shape(
                type="line", xref="paper", x0=0, x1=1, y0=row["accuracy"], y1=row["accuracy"],
                line={"dash": LINES[row["what"]], "color": "#888", "width": 1},
            )  # fmt: skip
            figure.add_annotation(
                text=name, x=1, xref="paper", y=row["accuracy"], yshift=8, showarrow=False,
                xanchor="right",
            )  # fmt: skip
    figure.update_xaxes(type="log", title="MB up a client", row=1, col=1)
    figure.update_xaxes(type="log", title="TFLOP a client", row=1, col=2)
    figure.update_yaxes(title="accuracy", range=[0, 0.8], row=1, col=1)
    figure.update_layout(
        template="simple_white", width=1000, height=460,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": 1.08, "x": 0},
    )  # fmt: skip
    place.write_text(figure.to_html(config={"displayModeBar": False}), encoding="utf-8")


def main() -> int:
    """Run the settings that are not there yet."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="folder with train.csv and test.csv")
    options.add_argument("--out", type=Path, default=Path("benchmarks/results/banking77"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=0, help="start nothing after this long")
    options.add_argument("--only", default="", help="settings whose name begins so")
    options.add_argument("--share", default="1/1", help="i/n: every n-th setting, from the i-th")
    options.add_argument("--set", action="append", default=[], help="section.key=value")
    options.add_argument("--tune", action="store_true", help="choose learning rates")
    options.add_argument(
        "--folder", type=Path, default=Path("runs/banking77-tuning"), help="where --tune plays"
    )
    options.add_argument("--table", action="store_true", help="print what is there, and stop")
    options.add_argument("--plot", type=Path, help="draw what is there as an HTML page, and stop")
    chosen = options.parse_args()
    if chosen.table or chosen.plot:
        if chosen.table:
            table(chosen.out)
        if chosen.plot:
            plot(chosen.out, chosen.plot)
        return 0
    if chosen.data is None or not (chosen.data / "train.csv").exists():
        print("name a folder that has train.csv and test.csv with --data", file=sys.stderr)
        return 2
    try:
        if chosen.tune:
            tune(chosen.data, chosen.out, chosen.folder, chosen.set)
        else:
            fill(chosen)
    except TriskelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def fill(chosen: argparse.Namespace) -> None:
    """Play the settings that are not there yet."""
    index, shares = map(int, chosen.share.split("/"))
    queue = [one for one in settings() if one.name.startswith(chosen.only)]
    end = time.perf_counter() + 60 * (chosen.minutes or 1e9)
    rates = best_rates(chosen.out)
    for setting in queue[index - 1 :: shares]:
        place = chosen.out / f"{setting.name}.seed-{chosen.seed}.json"
        if place.exists() or time.perf_counter() > end:
            continue
        pairs = [*overrides(setting, chosen.data, chosen.seed, rates), *chosen.set]
        keep(place, play(setting, pairs, chosen.seed))


def said(event: Mapping[str, Any]) -> None:
    """Print which setting of the sweep begins, and what goes wrong."""
    if event["event"] in {"setting_start", "warning"}:
        print(event.get("setting") or event.get("text"), flush=True)


def keep(place: Path, row: Mapping[str, Any]) -> None:
    """Write a row, and say so."""
    write(place, row)
    accuracy = row.get("final", row).get("accuracy", float("nan"))
    print(f"{place.stem}: accuracy {accuracy:.3f}, {row['wall_s']} s", flush=True)


def write(place: Path, found: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(place)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
