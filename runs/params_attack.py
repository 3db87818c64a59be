"""One client of ten sends what it likes: what robust rules and the mean end with on real texts.

    sign flip      ten times as far as it trained, the other way
    times 100      a hundred times as far as it trained
    noise          ten times as long as what it trained, and random
    crafted pair   factors no longer than twice its own, whose product is of one direction alone and
                   points the other way: long, though neither factor is

    python runs/params_attack.py

plays every rule without the attack and under each, seed after seed; it goes on where it was
stopped. Differences are of everybody's accuracy, text by text, from the same rule unattacked.
`--table` writes what is there to `--results`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from params import DIVERGED, Shared, everybodys, gap, outcomes, play
from torch import Tensor

from triskel.config.job import Job
from triskel.config.read import parse
from triskel.engines.local import LocalEngine
from triskel.statistics.outcomes import Outcomes
from triskel.statistics.significance import difference, mean_of
from triskel.training.worker import Worker
from triskel.types import ClientState, Message, Section, Talk

JOB = Path(__file__).with_name("params-attack.toml")
RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")
SEEDS = (0, 1, 2)
NEAR = 0.03
Tensors = Mapping[str, Tensor]


def moved(times: float) -> Callable[[Section, Section], dict[str, Tensor]]:
    """Return an attack that goes so many times as far as its training went."""
    return lambda was, is_: {
        n: was.tensors[n] + times * (t - was.tensors[n]) for n, t in is_.tensors.items()
    }


def noise(was: Section, is_: Section) -> dict[str, Tensor]:
    """Return a random change, ten times as long as the honest one."""
    drawn = torch.Generator().manual_seed(7)
    found = dict[str, Tensor]()
    for name, tensor in is_.tensors.items():
        by = torch.randn(tensor.shape, generator=drawn)
        far = (tensor - was.tensors[name]).norm()
        found[name] = was.tensors[name] + 10 * far * by / by.norm()
    return found


def crafted(was: Section, is_: Section) -> dict[str, Tensor]:
    """Return pairs whose product is all in the direction that the honest ones' goes least far from.

    What is no pair is the other way, no farther than it trained.
    """
    found = moved(-1.0)(was, is_)
    for name in is_.tensors:
        if ".lora_A." not in name:
            continue
        up = name.replace(".lora_A.", ".lora_B.")
        a, b = is_.tensors[name], is_.tensors[up]
        u, _, vt = torch.linalg.svd(b @ a, full_matrices=False)
        found[name], found[up] = torch.zeros_like(a), torch.zeros_like(b)
        found[name][0], found[up][:, 0] = 2 * a.norm() * vt[0], -2 * b.norm() * u[:, 0]
    return found


ATTACKS: Mapping[str, Callable[[Section, Section], dict[str, Tensor]]] = {
    "sign flip": moved(-10.0),
    "times 100": moved(100.0),
    "noise": noise,
    "crafted pair": crafted,
}


@dataclass(frozen=True)
class Attacked:
    """A mode of whose clients one attacks.

    Attributes:
        mode: As it is.
        attack: What becomes of the section of an update, by what the client had and trained.
        who: The attacker.
    """

    mode: Any
    attack: Callable[[Section, Section], dict[str, Tensor]]
    who: str

    def __getattr__(self, name: str) -> Any:
        """Return what the mode has."""
        return getattr(self.mode, name)

    def work(self, task: Message, worker: Worker, mine: ClientState) -> Talk:
        """Return a client's round."""
        update, kept = yield from self.mode.work(task, worker, mine)
        if worker.client != self.who:
            return update, kept
        sections = {
            n: replace(s, tensors=self.attack(task.sections[n], s)) if n in task.sections else s
            for n, s in update.sections.items()
        }
        return replace(update, sections=sections), kept


@dataclass(frozen=True)
class Engine(LocalEngine):
    """Plays rounds in which one client may attack.

    Attributes:
        attack: Of `ATTACKS`, or another word for none.
    """

    attack: str

    def round(self, mode: Any, state: Any, cohort: Any, **more: Any) -> Any:
        """Play one round."""
        if self.attack in ATTACKS:
            mode = Attacked(mode, ATTACKS[self.attack], max(cohort))
        return super().round(mode, state, cohort, **more)


def job_of(rule: str, seed: int) -> Job:
    """Return the job of one run."""
    words = (f'params.aggregate="{rule}"', f"seed={seed}")
    return parse(JOB.read_text(encoding="utf-8"), where="attack", overrides=words)


def place_of(out: Path, rule: str, attack: str, seed: int) -> Path:
    """Return a run's folder."""
    return out / rule / attack.replace(" ", "-") / f"seed-{seed}"


def right(out: Path, rule: str, attack: str) -> list[Outcomes]:
    """Return what runs of a rule got right, of the seeds that are there."""
    found = [outcomes(place_of(out, rule, attack, seed), "everybody") for seed in SEEDS]
    return [one for one in found if one is not None]


def summed(out: Path) -> dict[str, Any]:
    """Return figures of every rule and attack that was played with all seeds."""
    rows: dict[str, Any] = {}
    for rule in RULES:
        clean = right(out, rule, "none")
        if len(clean) < len(SEEDS):
            continue
        rows[rule] = {"clean": mean_of(clean, "accuracy").mean}
        for attack in ATTACKS:
            places = [place_of(out, rule, attack, seed) for seed in SEEDS]
            if broken := sum((place / DIVERGED).exists() for place in places):
                rows[rule][attack] = {"diverged": broken}
            elif len(under := right(out, rule, attack)) == len(SEEDS):
                gap = difference(under, clean, "accuracy")
                rows[rule][attack] = {"mean": gap.mean, "low": gap.low, "high": gap.high}
    return {"task": "attack", "near": NEAR, "seeds": list(SEEDS), "rows": rows}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return rows of a Markdown table."""
    yield f"| | clean | {' | '.join(ATTACKS)} |"
    yield "|---|" + "---:|" * (1 + len(ATTACKS))
    for rule, row in found["rows"].items():
        cells = [cell(row.get(attack, {})) for attack in ATTACKS]
        yield f"| `{rule}` | {row['clean']:.3f} | {' | '.join(cells)} |"


def cell(found: Mapping[str, float]) -> str:
    """Return how far a rule ended from where it ends without the attack."""
    if "diverged" in found:
        return f"diverged, {found['diverged']} of {len(SEEDS)}"
    return gap({"beside": found})


def main() -> int:
    """Play what is left, or tell what is there."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path("runs/params/attack"))
    options.add_argument("--results", type=Path, default=Path("benchmarks/results/params"))
    options.add_argument("--table", action="store_true", help="write what is there, and stop")
    chosen = options.parse_args()
    for seed in () if chosen.table else SEEDS:
        shared = Shared()
        for rule in RULES:
            for attack in ("none", *ATTACKS):
                job, place = job_of(rule, seed), place_of(chosen.out, rule, attack, seed)
                found = play(job, "test", place, shared, Engine(job, attack))
                told = "diverged" if found is None else f"{everybodys(found, 'accuracy'):.4f}"
                print(f"seed {seed}, {rule}, {attack}: {told}", flush=True)
    found = summed(chosen.out)
    chosen.results.mkdir(parents=True, exist_ok=True)
    file = chosen.results / "attack.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
