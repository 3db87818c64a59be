"""What can be learnt of single texts from the scores that a site gives to whoever may ask?

An attacker chooses jobs (caps, seeds, names of a dataset, submissions, models) and gets a score for
each, through a site's own code: floors, draws, rounding and budget. It must say which of 200 texts
is at the site; 199 are not. Any model may be asked about any text: losses are drawn at random by
model and text, and the attacker knows them all, which is more than a real one can arrange.

    known     what sites did before: rows drawn by the job's seed, no floors, exact scores
    caps      pairs of jobs whose caps differ by one, under the strict policy
    seeds     the same with another seed in each job, other batch sizes, two submitters, two names
    again     the same, each run submitted again and again, so that the number of jobs binds less
    shares    pairs of jobs whose test shares differ a little
    all       every score that the budget gives, of as many models, on all test rows
"""

import hashlib
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import NormalDist

import measure
import numpy as np

from triskel.config.job import Job
from triskel.config.read import parse
from triskel.data.federate import federate_own
from triskel.data.sources import Dataset
from triskel.errors import LimitError
from triskel.numerics.metrics import Score
from triskel.policy.budget import Spent
from triskel.policy.decide import decide
from triskel.policy.draws import Draws, key_of
from triskel.policy.limits import asked_of
from triskel.policy.read import parse as policy_of
from triskel.policy.refusal import Circumstances
from triskel.policy.rounding import rounded_score
from triskel.policy.rules import Policy

CANDIDATES, ROWS = 200, 400
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULES = """
modes = ["params"]
submitters = ["anna@lab.example", "eve@lab.example"]
models.tiny = "{sha256}"
{more}
[datasets.notes]
paths = ["{place}"]
columns = {{ text = "text", label = "label" }}
[datasets.alias]
paths = ["{place}"]
columns = {{ text = "text", label = "label" }}
"""
OPEN = "\n".join(
    [f"floors.{what} = 1" for what in ("train", "test")]
    + [f"scores.{what}_step = 0.0" for what in ("loss", "share")]
    + [f"budget.{what}{day} = 1000000" for what in ("jobs", "rounds", "scores")
       for day in ("", "_day")]
)  # fmt: skip
"""What sites did before: no floors, exact scores, no budget."""
SHA256 = "0" * 64


def loss(model: int, text: str) -> float:
    """Return what a text costs a model: between 0 and 3 nats, by chance."""
    digest = hashlib.sha256(f"{model}/{text}".encode()).digest()
    return 3.0 * int.from_bytes(digest[:6], "little") / 2**48


@dataclass
class Site:
    """A site with rows of its own.

    Attributes:
        folder: Where it keeps what it keeps.
        policy: What it allows.
        known: Whether rows are drawn by the job's seed.
        now: The time; the attacker waits for another day where that helps.
        asked: How many scores it gave.
    """

    folder: Path
    policy: Policy
    known: bool = False
    now: datetime = START
    asked: int = 0

    def score(self, job: Job, model: int, submitter: str, run: str) -> float | None:
        """Return the mean loss of a model on the job's test rows, as it leaves; None if refused."""
        here = Circumstances(
            now=self.now, submitter=submitter, model_sha256=SHA256, blocks=2, clients=3,
            round_bytes=0,
        )  # fmt: skip
        place = self.policy.datasets[job.data.train].paths[0]
        files = [key_of(place)]
        spent = Spent(self.folder, files, self.policy.budget, run, lambda: self.now)
        if decide(self.policy, job, here) or spent.short(asked_of([job])):
            return None
        try:
            spent.job()
            texts = self.texts(job, place, Draws(self.folder, files))
            if len(texts) < self.policy.floors.test:
                return None
            spent.take("rounds")
            spent.take("scores")
        except LimitError:
            return None
        self.asked += 1
        total = math.fsum(loss(model, text) for text in texts)
        whole = Score(confusion=None, loss_sum=total, correct=0, count=len(texts), classes=2)
        return rounded_score(whole, self.policy.scores).loss

    def texts(self, job: Job, place: str, draws: Draws) -> list[str]:
        """Return the test rows of a job."""
        columns = {"text": "text", "label": "label"}
        named = {job.data.train: Dataset(paths=[Path(place)], columns=columns)}
        by = (lambda *_question: job.seed) if self.known else draws.seed
        found = federate_own(job, "bank", named, by).clients["bank"].test
        return list(found.text)


def job(
    cap: int = 0, *, seed: int = 0, share: float = 0.4, name: str = "notes", **keys: int
) -> Job:
    """Return a job as an attacker may ask for it."""
    more = "".join(f"{key.replace('_', '.', 1)} = {value}\n" for key, value in keys.items())
    return parse(
        f"seed = {seed}\nrounds = 1\nclients.test_examples = {cap}\n{more}"
        f'[data]\nsource = "clients"\ntrain = "{name}"\ntext = "text"\nlabel = "label"\n'
        f'classes = ["no", "yes"]\ntest_share = {share}\n'
    )


def made(folder: Path, dice: random.Random, *, known: bool) -> tuple[Site, list[str], str]:
    """Return a site, 200 candidates, and which of them is among its test rows."""
    mine = [f"row {dice.getrandbits(64):x}" for _ in range(ROWS)]
    place = folder / "notes.csv"
    lines = [f"{text},{'yes' if i % 2 else 'no'}" for i, text in enumerate(mine)]
    place.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    rules = RULES.format(sha256=SHA256, place=place, more=OPEN if known else "")
    policy = policy_of(rules)
    site = Site(folder, policy, known)
    draws = Draws(folder, [key_of(str(place))])
    # the row that a cap of 61 adds to one of 60; where nobody knows the draw, any test row
    few, more = (set(site.texts(job(n), str(place), draws)) for n in (60, 61))
    member = dice.choice(sorted(more - few))
    pool = [member, *(f"row {dice.getrandbits(64):x}" for _ in range(CANDIDATES - 1))]
    dice.shuffle(pool)
    return site, pool, member


Strategy = Callable[[Site, list[str], random.Random], str]


def pairs(
    site: Site, pool: list[str], dice: random.Random, change: Callable[[int], Job], times: int = 1
) -> str:
    """Ask for pairs of jobs that differ by one row, and look for the text that explains it.

    A run has a number of its own, and is submitted so many times.
    """
    misfit = np.zeros(len(pool))
    for turn in range(1000):
        model, found = dice.getrandbits(32), list[float]()
        for cap in (60, 61):
            who = ("anna@lab.example", "eve@lab.example")[turn % 2]
            run = f"{turn // times}-{cap}"
            told = site.score(change(cap), model, who, run)
            if told is None:
                site.now += timedelta(days=1)
                told = site.score(change(cap), model, who, run)
            if told is None:
                return pool[int(misfit.argmin())]
            found.append(told)
        extra = 61 * found[1] - 60 * found[0]
        misfit += [(loss(model, text) - extra) ** 2 for text in pool]
        if site.known:
            break
    return pool[int(misfit.argmin())]


def caps(site: Site, pool: list[str], dice: random.Random) -> str:
    """Change the cap alone."""
    return pairs(site, pool, dice, job)


def seeds(site: Site, pool: list[str], dice: random.Random, times: int = 1) -> str:
    """Change whatever else can be changed too."""

    def change(cap: int) -> Job:
        name = dice.choice(("notes", "alias"))
        return job(cap, seed=dice.randrange(9), name=name, train_batch=dice.randrange(1, 33))

    return pairs(site, pool, dice, change, times)


def again(site: Site, pool: list[str], dice: random.Random) -> str:
    """Submit each run many times."""
    return seeds(site, pool, dice, 8)


def shares(site: Site, pool: list[str], dice: random.Random) -> str:
    """Change the share that is held out."""
    return pairs(site, pool, dice, lambda cap: job(share=cap / ROWS))


def every(site: Site, pool: list[str], dice: random.Random) -> str:
    """Ask about all test rows with as many models as the budget has, and look what goes along."""
    fits, turn, tries = np.zeros(len(pool)), 0, 0
    while tries < 2:
        model = dice.getrandbits(32)
        told = site.score(job(), model, "anna@lab.example", f"{turn // 20}")
        if told is None:
            site.now, tries = site.now + timedelta(days=1), tries + 1
            continue
        turn, tries = turn + 1, 0
        fits += [(loss(model, text) - 1.5) * (told - 1.5) for text in pool]
    return pool[int(fits.argmax())]


STRATEGIES: dict[str, Strategy] = {
    "known": caps, "caps": caps, "seeds": seeds, "again": again, "shares": shares, "all": every,
}  # fmt: skip


def right(name: str, tries: int, seed: int) -> tuple[int, int]:
    """Return how often a strategy is right, and how many scores the last try was given."""
    found, asked = 0, 0
    for turn in range(tries):
        dice = random.Random(f"{seed}/{name}/{turn}")  # noqa: S311 - texts and models
        with tempfile.TemporaryDirectory() as folder:
            site, pool, member = made(Path(folder), dice, known=name == "known")
            found += STRATEGIES[name](site, pool, dice) == member
            asked = site.asked
    return found, asked


def allowed(scores: int, rows: int) -> float:
    """Return how often the best of 200 is right, whose sum stands out by as much as it can.

    A score is the mean of `rows` losses, one of them the text's, so a sum over independent models
    stands out by sqrt(scores / rows) standard deviations.
    """
    ahead, normal = math.sqrt(scores / rows), NormalDist()
    grid = np.linspace(-8, 12, 4001)
    density = np.exp(-((grid - ahead) ** 2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([normal.cdf(x) for x in grid]) ** (CANDIDATES - 1)
    return float(np.trapezoid(density * below, grid))


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    chosen = options.parse_args()
    tries = 10 if chosen.quick else 50
    found: dict[str, dict[str, float]] = {}
    for name in STRATEGIES:
        many = 4 * tries if name == "all" else tries  # the one that is right now and then
        hits, asked = right(name, many, chosen.seed)
        rows = round(0.4 * ROWS) if name in {"all", "shares"} else 60
        bound = 1.0 if name == "known" else allowed(asked, rows)
        found[name] = {"right": hits / many, "tries": many, "scores": asked, "allowed": bound}
        print(f"{name:8} {found[name]}")
    if chosen.out is not None:
        measure.keep("differencing", found, seed=chosen.seed, out=chosen.out)


if __name__ == "__main__":
    main()
