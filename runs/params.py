"""What every member of parameter exchange reaches and sends on real texts, beside the fp32 mean.

    silos          the demonstration's four silos (`runs/params-silos.toml`): every member
    banking77-0.5, banking77-0.1   four clients, labels by Dirichlet(alpha): the best of each family
    dolly          ten clients of different kinds of instructions, `causal`
    ranks          the silos, with clients of rank 4, 8, 16 and 32, beside everybody at rank 4

Per member a learning rate is chosen on validation texts of seed 0; test texts are read at that rate
only, over five seeds. Members hold the same texts, so each is paired with the mean text by text.

    python runs/params.py silos
    python runs/params.py banking77-0.5 --data FOLDER

goes on where it was stopped. `--share 1/2` and `--share 2/2` choose members' rates side by side,
`--seeds 0 1` and `--seeds 2 3 4` play seeds side by side; `--table` writes what is there to
`--results` and prints it.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from params_members import BEST, FAMILIES, RANKS, REFERENCE, SEED_RATES, SILO_OPTIONS, Member

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
from triskel.statistics.outcomes import Figure, Outcomes
from triskel.statistics.significance import difference, mean_of

HERE_ = Path(__file__).parent
MODE = "params"
RATES = (1e-3, 2e-3, 4e-3)
"""What a member's rates begin with; while the best is the first or the last, one more is tried."""
MOST_RATES = 6
DIVERGED = "diverged.txt"
"""In the folder of a run whose numbers were no longer finite: why."""
SEEDS = tuple(range(5))


@dataclass(frozen=True)
class Task:
    """Real texts, dealt to clients.

    Attributes:
        job: The file.
        settings: On top of it.
        files: Of the folder that `--data` names, by key.
        members: Which are played.
        reference: Beside whom the others are held.
    """

    job: str
    settings: tuple[str, ...] = ()
    files: Mapping[str, str] | None = None
    members: Mapping[str, Member] = field(default_factory=dict[str, Member])
    reference: str = REFERENCE


EVERY = {name: member for family in FAMILIES.values() for name, member in family.items()}
SOME = {name: EVERY[name] for name in BEST}
TASKS: Mapping[str, Task] = {
    "silos": Task("params-silos.toml", members=EVERY | SILO_OPTIONS),
    "ranks": Task("params-silos.toml", members=RANKS, reference=next(iter(RANKS))),
    **{
        f"banking77-{alpha}": Task(
            "params-banking77.toml",
            (f"clients.alpha={alpha}",),
            {"data.train": "train.csv", "data.test": "test.csv"},
            SOME,
        )
        for alpha in (0.5, 0.1)
    },
    "dolly": Task(
        "params-dolly.toml", (), {"data.train": ".", "data.test": "global_test.json"}, SOME
    ),
}


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


def play(
    job: Job, judge: Judge, place: Path, shared: Shared, engine: LocalEngine | None = None
) -> dict[str, Any] | None:
    """Return the result of a job, played unless it was; None where training diverged."""
    if (place / DIVERGED).exists():
        return None
    if (found := run_in(place)) is None:
        shutil.rmtree(place, ignore_errors=True)
        venue = replace(HERE, prepare=shared.prepare)
        request = Request(modes=(MODE,), baselines=(), strict=True, judge=judge)
        try:
            engine = engine or LocalEngine(job)
            found = run(job, request, place, engine, lambda _: None, venue)
        except TrainingError as error:
            print(f"  {error}", flush=True)
            place.mkdir(parents=True, exist_ok=True)
            (place / DIVERGED).write_text(f"{error}\n", encoding="utf-8")
            return None
    return dict(found)


def everybodys(result: Mapping[str, Any], figure: Figure = "loss") -> float:
    """Return what was reached on everybody's texts; rates are chosen by the loss."""
    return float(result["modes"][MODE]["rounds"][-1][figure])


def untried(reached: Mapping[float, float], first: Sequence[float]) -> float | None:
    """Return the next rate to try: the first ones, then beyond the best while it is at an end.

    >>> untried({1e-3: 0.9, 2e-3: 0.8, 4e-3: 0.7}, RATES), untried({1: 3, 2: 1, 4: 2}, (1, 2, 4))
    (0.008, None)
    """
    if left := [rate for rate in first if rate not in reached]:
        return left[0]
    best = min(reached, key=lambda r: reached[r])
    if len(reached) < MOST_RATES and best in {min(reached), max(reached)}:
        return best * 2 if best == max(reached) else best / 2
    return None


@dataclass(frozen=True)
class Study:
    """One task in one folder of runs.

    Attributes:
        name: Of the task.
        out: Where runs lie.
        text: The job.
        settings: On top of it.
        task: What is played.
        results: The file of what was found out.
        told: Those settings that do not say where files lie.
    """

    name: str
    out: Path
    text: str
    settings: tuple[str, ...]
    task: Task
    results: Path
    told: tuple[str, ...] = ()

    @property
    def figure(self) -> Figure:
        """What is compared: whole answers have no accuracy."""
        return "loss" if 'task = "causal"' in self.text else "accuracy"

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
            if self.choice(name) is not None:
                continue
            seeds = name in FAMILIES["seeds"]
            key = "params.exchange.lr" if seeds else "train.lr"
            reached: dict[float, float] = {}
            while (rate := untried(reached, SEED_RATES if seeds else RATES)) is not None:
                job = self.job((*member, "data.validation_share=0.2"), (key, rate), SEEDS[0])
                found = play(job, "validation", self.place(name, f"rate-{rate}"), shared)
                reached[rate] = math.inf if found is None else everybodys(found)
            print(f"{name}: {reached}", flush=True)
            best = min(reached, key=lambda r: reached[r])
            told = {
                "key": key,
                "rate": best,
                "validation_loss": {
                    repr(r): loss for r, loss in sorted(reached.items()) if math.isfinite(loss)
                },
            }
            self.place(name, "rate.json").write_text(json.dumps(told), encoding="utf-8")

    @cached_property
    def known(self) -> dict[str, Any]:
        """What was found out before of the same job, wherever its runs lie; {}: nothing."""
        found: dict[str, Any] = {}
        if self.results.exists():
            found = json.loads(self.results.read_text(encoding="utf-8"))
        return found if (found.get("job"), found.get("settings")) == self.about else {}

    @property
    def about(self) -> tuple[str, list[str]]:
        """What rows of one file have in common."""
        return self.text, list(self.told)

    def choice(self, name: str) -> dict[str, Any] | None:
        """Return the rate that was chosen, and what it was chosen by."""
        file = self.place(name, "rate.json")
        if not file.exists():
            return self.known.get("rates", {}).get(name)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def rate(self, name: str) -> tuple[str, float] | None:
        """Return the rate that was chosen."""
        found = self.choice(name)
        return None if found is None else (found["key"], found["rate"])

    def played(self, shares: Mapping[str, Member], seeds: Sequence[int] = SEEDS) -> None:
        """Play every member at its rate, seed after seed."""
        for seed in seeds:
            shared = Shared()
            for name, member in shares.items():
                if (rate := self.rate(name)) is not None:
                    job = self.job(member, rate, seed)
                    found = play(job, "test", self.place(name, f"seed-{seed}"), shared)
                    told = "diverged" if found is None else f"{everybodys(found):.4f}"
                    print(f"seed {seed}, {name}: {told}", flush=True)


def outcomes(place: Path, column: str, client: str | None = None) -> Outcomes | None:
    """Return what a run got right text by text, on a client's texts or on all."""
    record = records.read(place, MODE)
    if record is None or not bool(record.columns[column].scored.any()):
        return None
    one, texts = record.columns[column], record.texts
    if client is not None:
        mine = record.of(client)
        one, texts = one.at(mine), texts[mine]
    return Outcomes(
        texts=texts.numpy(),
        right=one.right.numpy(),
        loss=one.loss.numpy(),
        scored=one.scored.double().numpy(),
    )


def beside(study: Study, name: str, column: str, client: str | None = None) -> dict[str, Any]:
    """Return what a member reached on texts, and how far that is from the reference."""
    places = [[study.place(n, f"seed-{s}") for s in SEEDS] for n in (name, study.task.reference)]
    mine, theirs = [[outcomes(p, column, client) for p in ps] for ps in places]
    left, right = ([one for one in ones if one is not None] for ones in (mine, theirs))
    if len(left) < len(SEEDS):
        return {}
    one = mean_of(left, study.figure)
    row: dict[str, Any] = {"mean": one.mean, "low": one.low, "high": one.high}
    if len(right) == len(SEEDS) and name != study.task.reference:
        by = difference(left, right, study.figure)
        row["beside"] = {"mean": by.mean, "low": by.low, "high": by.high, "p": by.p}
    return row


def summed(study: Study) -> dict[str, Any]:
    """Return every member played with all seeds: figures, and bytes and FLOPs beside the mean's."""
    rows: dict[str, Any] = {}
    for name in study.task.members:
        found = [run_in(study.place(name, f"seed-{seed}")) for seed in SEEDS]
        runs: list[dict[str, Any]] = [dict(one["modes"][MODE]) for one in found if one is not None]
        if len(runs) < len(SEEDS):
            continue
        totals = [one["totals"] for one in runs]
        row: dict[str, Any] = {"rate": study.rate(name)}
        row["client_flops"] = sum(t["client_flops"] for t in totals) / len(totals)
        for way in ("up", "down"):
            row[way] = {
                k: sum(t[way][k] for t in totals) / len(totals)
                for k in ("payload_bytes", "message_bytes")
            }
        row |= {column: beside(study, name, column) for column in records.COLUMNS}
        clients = sorted(runs[0]["rounds"][-1]["clients"])
        row["clients"] = {c: beside(study, name, "own", c) for c in clients}
        rows[name] = row
    if (whole := rows.get(study.task.reference)) is not None:
        for row in rows.values():
            row["bytes"] = bytes_of(row) / bytes_of(whole)
            row["flops"] = row["client_flops"] / whole["client_flops"]
    rates = {n: one for n in study.task.members if (one := study.choice(n)) is not None}
    every = {**study.known.get("rows", {}), **rows}
    job, settings = study.about
    return {
        "task": study.name,
        "job": job,
        "figure": study.figure,
        "beside": study.task.reference,
        "settings": settings,
        "seeds": list(SEEDS),
        "rates": rates,
        "rows": {name: every[name] for name in study.task.members if name in every},
    }


def bytes_of(row: Mapping[str, Any]) -> float:
    """Return bytes of messages, up plus down."""
    return float(row["up"]["message_bytes"] + row["down"]["message_bytes"])


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return rows of a Markdown table."""
    figure, whom = found["figure"], found["beside"]
    yield f"| | {figure}, everybody's | beside {whom} | own texts | bytes | client FLOPs | rate |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, row in found["rows"].items():
        cells = [name, level(row["everybody"]), gap(row["everybody"]), level(row["own"])]
        cells += [f"{row[k]:.4f}" if k in row else "–" for k in ("bytes", "flops")]
        yield f"| {' | '.join(cells)} | {row['rate'][1]:g} |"


def level(one: Mapping[str, float]) -> str:
    """Return a figure with half its interval."""
    return f"{one['mean']:.3f} ±{(one['high'] - one['low']) / 2:.3f}" if one else "–"


def gap(one: Mapping[str, Any]) -> str:
    """Return a difference with its interval."""
    if not (by := one.get("beside")):
        return "–"
    return f"{by['mean']:+.3f} ({by['low']:+.3f} to {by['high']:+.3f})"


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
    options.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="some of them")
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
    file, every = chosen.results / f"{chosen.task}.json", task.members
    study = Study(chosen.task, chosen.out, text, settings, task, file, told)
    if not chosen.table:
        index, shares = map(int, chosen.share.split("/"))
        names = chosen.members.split(";") if chosen.members else list(every)
        some = {n: every[n] for n in names[index - 1 :: shares]}
        steps: Mapping[str, Callable[[Mapping[str, Member]], None]] = {
            "rates": study.tuned,
            "seeds": lambda shares: study.played(shares, chosen.seeds),
        }
        try:
            for what, step in steps.items():
                if chosen.only in {None, what}:
                    step(some)
        except TriskelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    found = summed(study)
    chosen.results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
