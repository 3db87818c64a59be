"""What every member of parameter exchange reaches and sends on real texts, beside the fp32 mean.

    silos          the demonstration's four silos (`runs/params-silos.toml`): every member
    banking77-0.5, banking77-0.1   four clients, labels by Dirichlet(alpha): the best of each family
    dolly          ten clients of different kinds of instructions, `causal`

Per member a learning rate is chosen on validation texts of seed 0; test texts are read at that rate
only, over five seeds. Members hold the same texts, so each is paired with the mean text by text.

    python runs/params.py silos
    python runs/params.py banking77-0.5 --data FOLDER

goes on where it was stopped. `--share 1/2` and `--share 2/2` play members side by side; `--table`
writes what is there to `--results` and prints it.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triskel.config.job import Job
from triskel.config.read import parse
from triskel.config.sections import Judge
from triskel.core.result_file import run_in
from triskel.engines.local import LocalEngine
from triskel.errors import TrainingError, TriskelError
from triskel.experiment import records
from triskel.experiment.compare import HERE, Request, run
from triskel.experiment.models import Loaded
from triskel.experiment.resources import LocalResources, prepare
from triskel.experiment.tokens import Tokens
from triskel.model.hidden_cache import HiddenCache
from triskel.statistics.outcomes import Outcomes
from triskel.statistics.significance import difference, mean_of

HERE_ = Path(__file__).parent
MODE, REFERENCE = "params", "mean"
Member = tuple[str, ...]
"""Settings of a job."""


def choice(key: str, name: str, **options: object) -> str:
    """Return the setting that chooses something by name, with options.

    >>> choice("params.local", "fedprox", strength=0.1)
    'params.local={name = "fedprox", strength = 0.1}'
    """
    inner = "".join(f", {k} = {json.dumps(v)}" for k, v in options.items())
    return f'{key}={{name = "{name}"{inner}}}' if inner else f'{key}="{name}"'


def small(up: str, down: str) -> Member:
    """Return the settings of codecs."""
    return (f"wire.up={up}", f"wire.down={down}")


CORE = ('params.trains="fedsb"',)
FAMILIES: Mapping[str, Mapping[str, Member]] = {
    "what trains": {
        REFERENCE: (),
        **{n: (f'params.trains="{n}"',) for n in ("ffa", "fedsa", "rolora", "fedsb")},
        "head": ('params.head="local"',),
    },
    "product space": {
        n: (choice("params.aggregate", n),)
        for n in ("fedex", "flora", "flexlora", "raflora", "florist", "hetlora", "lora_fair")
    }
    | {"fedsvd": ('params.trains="ffa"', 'params.aggregate="fedsvd"')},
    "clients": {
        "fedprox": (choice("params.local", "fedprox", strength=0.1),),
        "scaffold": ('params.local="scaffold"',),
        "fedadamw": ('params.local="fedadamw"',),
        "fednova": ('params.aggregate="fednova"',),
        "kept moments": ('params.moments="kept"',),
    },
    "server": {
        "fedavgm": ("params.server_momentum=0.5",),
        "diloco": (
            'params.moments="kept"', 'params.server_optimizer="nesterov"',
            "params.server_lr=0.7", "params.server_momentum=0.5",
        ),
        **{
            f"fed{n}": (
                f'params.server_optimizer="{n}"', "params.server_lr=0.01",
                f"params.server_momentum={0.0 if n == 'adagrad' else 0.9}",
            )
            for n in ("adam", "yogi", "adagrad")
        },
    },
    "models of their own": {
        "mr_mtl": (choice("params.local", "mr_mtl", strength=0.1),),
        "ditto": (choice("params.local", "ditto", strength=0.1),),
        "pfedme": (choice("params.local", "pfedme", strength=1.0, inner=2, rate=0.5),),
        "finetune": ('params.local="finetune"',),
    },
    "small": {
        "bf16": small('"bf16"', '"bf16"'),
        "int8": small('"int8"', '"int8"'),
        "int4": small('"int4"', '"int4"'),
        "sign": small('"sign"', '"sign"'),
        "topk 1/50": small('{name = "topk", share = 0.02}', '{name = "topk", share = 0.02}'),
        "topk 1/200": small('{name = "topk", share = 0.005}', '{name = "topk", share = 0.005}'),
        "fedsb, int4": (*CORE, *small('"int4"', '"int4"')),
    },
    "seeds": {
        n: (choice("params.exchange", n, steps=100),) for n in ("fedkseed", "fedmezo")
    },
    "robust": {
        n: (choice("params.aggregate", n),)
        for n in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")
    },
}  # fmt: skip
SILO_OPTIONS = {n: choice("params.aggregate", n, attackers=0) for n in ("krum", "multi_krum")}
"""Four silos are too few for Krum with an attacker."""
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
RATE_KEYS = {"fedkseed": ("params.exchange.lr", (5e-5, 1e-4, 2e-4)),
             "fedmezo": ("params.exchange.lr", (5e-5, 1e-4, 2e-4))}  # fmt: skip
SEEDS = tuple(range(5))


@dataclass(frozen=True)
class Task:
    """Real texts, dealt to clients.

    Attributes:
        job: The file.
        settings: On top of it.
        files: Of the folder that `--data` names, by key.
        members: Which are played; empty is all.
    """

    job: str
    settings: tuple[str, ...] = ()
    files: Mapping[str, str] | None = None
    members: tuple[str, ...] = ()


BEST = (
    REFERENCE, "fedsb", "fedex", "flexlora", "scaffold", "diloco", "mr_mtl", "int4", "sign",
    "topk 1/50", "fedsb, int4", "fedkseed", "median",
)  # fmt: skip
TASKS: Mapping[str, Task] = {
    "silos": Task("params-silos.toml"),
    **{
        f"banking77-{alpha}": Task(
            "params-banking77.toml",
            (f"clients.alpha={alpha}",),
            {"data.train": "train.csv", "data.test": "test.csv"},
            BEST,
        )
        for alpha in (0.5, 0.1)
    },
    "dolly": Task(
        "params-dolly.toml", (), {"data.train": ".", "data.test": "global_test.json"}, BEST
    ),
}


def members(task: Task) -> dict[str, Member]:
    """Return what is played, the mean first."""
    every = {n: m for family in FAMILIES.values() for n, m in family.items()}
    if not task.files:
        every |= {n: (one,) for n, one in SILO_OPTIONS.items()}
    return {n: every[n] for n in (task.members or every)}


class Shared:
    """Runs of one seed on one model: its hidden states below what trains are computed once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.loaded, self.cache = Loaded(), HiddenCache(4e9)

    def prepare(self, job: Job, *words: Any, **more: Any) -> LocalResources:
        """Return a job's resources."""
        found = prepare(job, *words, loaded=self.loaded, **more)
        memory = replace(found.memory, hidden=self.cache)
        models = replace(found.models, memory=memory)
        tokens = Tokens(job=job, federation=found.federation, models=models)
        return replace(found, memory=memory, models=models, tokens=tokens)


def play(job: Job, judge: Judge, place: Path, shared: Shared) -> dict[str, Any] | None:
    """Return the result of a job, played unless it was; None where training diverged."""
    if (found := run_in(place)) is None:
        shutil.rmtree(place, ignore_errors=True)
        venue = replace(HERE, prepare=shared.prepare)
        request = Request(modes=(MODE,), baselines=(), strict=True, judge=judge)
        try:
            found = run(job, request, place, LocalEngine(job), lambda _: None, venue)
        except TrainingError as error:
            print(f"  {error}", flush=True)
            return None
    return dict(found)


def everybodys(result: Mapping[str, Any]) -> float:
    """Return the loss on everybody's texts, by which rates are chosen."""
    return float(result["modes"][MODE]["rounds"][-1]["loss"])


@dataclass(frozen=True)
class Study:
    """One task in one folder of runs.

    Attributes:
        name: Of the task.
        out: Where runs lie.
        text: The job.
        settings: On top of it.
        told: Those of them that do not say where files lie.
    """

    name: str
    out: Path
    text: str
    settings: tuple[str, ...]
    told: tuple[str, ...] = ()

    def job(self, member: Member, rate: tuple[str, float], seed: int) -> Job:
        """Return the job of one run."""
        words = (*self.settings, *member, f"{rate[0]}={rate[1]}", f"seed={seed}")
        return parse(self.text, where=self.name, overrides=words)

    def place(self, member: str, what: str) -> Path:
        """Return a run's folder."""
        return self.out / self.name / member.replace(" ", "-").replace("/", "of") / what

    def tuned(self, shares: Mapping[str, Member]) -> None:
        """Choose every member's rate on validation texts."""
        shared = Shared()
        for name, member in shares.items():
            file = self.place(name, "rate.json")
            if file.exists():
                continue
            key, rates = RATE_KEYS.get(name, ("train.lr", RATES))
            reached: dict[str, float] = {}
            for rate in rates:
                job = self.job((*member, "data.validation_share=0.2"), (key, rate), SEEDS[0])
                found = play(job, "validation", self.place(name, f"rate-{rate}"), shared)
                if found is not None:
                    reached[repr(rate)] = everybodys(found)
            print(f"{name}: {reached}", flush=True)
            best = min(reached, key=lambda r: reached[r])
            told = {"key": key, "rate": float(best), "validation_loss": reached}
            file.write_text(json.dumps(told), encoding="utf-8")

    def rate(self, name: str) -> tuple[str, float] | None:
        """Return the rate that was chosen."""
        file = self.place(name, "rate.json")
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["key"], found["rate"]

    def played(self, shares: Mapping[str, Member]) -> None:
        """Play every member at its rate, seed after seed."""
        for seed in SEEDS:
            shared = Shared()
            for name, member in shares.items():
                if (rate := self.rate(name)) is not None:
                    job = self.job(member, rate, seed)
                    found = play(job, "test", self.place(name, f"seed-{seed}"), shared)
                    told = "diverged" if found is None else f"{everybodys(found):.4f}"
                    print(f"seed {seed}, {name}: {told}", flush=True)


def outcomes(place: Path, column: str) -> Outcomes | None:
    """Return what a run got right text by text."""
    record = records.read(place, MODE)
    if record is None or not bool(record.columns[column].scored.any()):
        return None
    one = record.columns[column]
    return Outcomes(
        texts=record.texts.numpy(),
        right=one.right.numpy(),
        loss=one.loss.numpy(),
        scored=one.scored.double().numpy(),
    )


def summed(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """Return every member that was played with all seeds: figures, bytes, and beside the mean."""
    rows: dict[str, Any] = {}
    figure = "loss" if 'task = "causal"' in study.text else "accuracy"
    for name in names:
        places = [study.place(name, f"seed-{seed}") for seed in SEEDS]
        if any(run_in(place) is None for place in places):
            continue
        runs = [run_in(place) for place in places]
        row: dict[str, Any] = {"rate": study.rate(name)}
        for way in ("up", "down"):
            sent = [r["modes"][MODE]["totals"][way] for r in runs if r is not None]
            row[way] = {
                k: sum(s[k] for s in sent) / len(sent) for k in ("payload_bytes", "message_bytes")
            }
        row["client_flops"] = sum(r["modes"][MODE]["totals"]["flops"] for r in runs if r) / len(
            runs
        )
        for column in records.COLUMNS:
            mine = [one for p in places if (one := outcomes(p, column)) is not None]
            if len(mine) == len(places):
                one = mean_of(mine, figure)
                row[column] = {"mean": one.mean, "low": one.low, "high": one.high}
                other = [outcomes(study.place(REFERENCE, f"seed-{s}"), column) for s in SEEDS]
                theirs = [one for one in other if one is not None]
                if len(theirs) == len(places) and name != REFERENCE:
                    gap = difference(mine, theirs, figure)
                    row[column]["beside_mean"] = {
                        "mean": gap.mean,
                        "low": gap.low,
                        "high": gap.high,
                        "p": gap.p,
                    }
        rows[name] = row
    whole = rows.get(REFERENCE)
    for row in rows.values() if whole else ():
        row["bytes_of_mean"] = sum(row[w]["message_bytes"] for w in ("up", "down")) / sum(
            whole[w]["message_bytes"] for w in ("up", "down")
        )
    return {
        "task": study.name,
        "figure": figure,
        "settings": list(study.told),
        "seeds": list(SEEDS),
        "rows": rows,
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return rows of a Markdown table."""
    figure = found["figure"]
    yield f"| | {figure}, everybody's | beside the mean | own texts | bytes of the mean's | rate |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, row in found["rows"].items():
        cells = [name]
        for column in ("everybody", "own"):
            one = row.get(column)
            cells.append(
                "–" if one is None else f"{one['mean']:.3f} ±{(one['high'] - one['low']) / 2:.3f}"
            )
            if column == "everybody":
                gap = (one or {}).get("beside_mean")
                cells.append(
                    "–"
                    if gap is None
                    else f"{gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
                )
        cells += [f"{row['bytes_of_mean']:.4f}", f"{row['rate'][1]:g}"]
        yield "| " + " | ".join(cells) + " |"


def main() -> int:
    """Play what is left of a task, or tell what is there."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("task", choices=TASKS)
    options.add_argument("--data", type=Path, help="folder with the task's files")
    options.add_argument("--out", type=Path, default=Path("runs/params"), help="run folders")
    options.add_argument("--results", type=Path, default=Path("benchmarks/results/params"))
    options.add_argument("--share", default="1/1", help="i/n: every n-th member, from the i-th")
    options.add_argument("--set", action="append", default=[], help="a setting of every run")
    options.add_argument("--only", choices=("rates", "seeds"))
    options.add_argument("--members", help="some of them, by name, divided by ;")
    options.add_argument("--table", action="store_true", help="write what is there, and stop")
    chosen = options.parse_args()
    task = TASKS[chosen.task]
    settings = (*task.settings, *chosen.set)
    if task.files:
        if chosen.data is None:
            print(
                f"--data must name a folder with {', '.join(task.files.values())}", file=sys.stderr
            )
            return 2
        for key, name in task.files.items():
            settings += (f"{key}={json.dumps(str(chosen.data.resolve() / name))}",)
    text = (HERE_ / task.job).read_text(encoding="utf-8")
    told = tuple(one for one in (*task.settings, *chosen.set) if "path" not in one)
    study, every = Study(chosen.task, chosen.out, text, settings, told), members(task)
    if not chosen.table:
        index, shares = map(int, chosen.share.split("/"))
        names = chosen.members.split(";") if chosen.members else list(every)
        some = {n: every[n] for n in names[index - 1 :: shares]}
        steps: Mapping[str, Callable[[Mapping[str, Member]], None]] = {
            "rates": study.tuned,
            "seeds": study.played,
        }
        try:
            for what, step in steps.items():
                if chosen.only in {None, what}:
                    step(some)
        except TriskelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    found = summed(study, list(every))
    chosen.results.mkdir(parents=True, exist_ok=True)
    file = chosen.results / f"{chosen.task}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
