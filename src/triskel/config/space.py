"""Settings drawn out of ranges and lists of values, in place of the product of lists.

    --set train.lr=log:1e-4..1e-2      a real number, its logarithm uniform
    --set adapter.dropout=0.0..0.2     a real number, uniform
    --set adapter.rank=log:2..32       both ends are whole numbers: so is what is drawn
    --set adapter.kind=lora,dora       one of these

Real numbers are rounded to three digits, so that they can be read and typed. All draws are a
function of the job's seed, and no two settings are alike.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from triskel.config.grid import Setting, lists_of, names_of, values_of
from triskel.config.job import Job
from triskel.config.ranges import Range, range_of
from triskel.config.read import load, parse, setting_of, to_toml
from triskel.errors import JobError

TRIES = 200
"""How many draws a setting gets to be another than those before it."""


class Sampler(StrEnum):
    """How settings are drawn: independently, or each where those before it did well."""

    RANDOM = "random"
    TPE = "tpe"


Space = Mapping[str, Range | tuple[str, ...]]
"""A range, or values as TOML, by key."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the settings of a sweep are drawn.

    Attributes:
        sampler: How.
        samples: How many.
        seed: What draws are a function of.
        space: What each key may be, as it was given.
        root: The folder that relative paths are relative to, if any.
    """

    sampler: Sampler
    samples: int
    seed: int
    space: Mapping[str, str]
    root: str = ""

    def ranges(self) -> Space:
        """Return what each key may be."""
        return {key: range_of(text) or tuple(values_of(text)) for key, text in self.space.items()}

    def draws(self) -> list[Mapping[str, str]]:
        """Return values by key of as many settings as are wanted, drawn independently.

        Raises:
            JobError: There are not so many.
        """
        space, found = self.ranges(), list[Mapping[str, str]]()
        source = random.Random(f"{self.seed}/settings")  # noqa: S311 - repeatable
        for _ in range(TRIES * self.samples):
            one = {
                key: kind.text(kind.at(source.random()))
                if isinstance(kind, Range)
                else kind[int(source.random() * len(kind))]
                for key, kind in space.items()
            }
            if one not in found:
                found.append(one)
            if len(found) == self.samples:
                return found
        raise JobError(
            f"--samples {self.samples} asks for more settings than the {len(found)} that were "
            "found in the given ranges and values; ask for fewer"
        )

    def setting(self, job: Job, drawn: Mapping[str, str], before: Sequence[Setting]) -> Setting:
        """Return a job with drawn values, as a setting with a name that none before it has.

        Raises:
            JobError: The job cannot run.
        """
        pairs = _pairs(drawn)
        values = _values(pairs)
        *_, name = names_of([*(dict(one.set) for one in before), values])
        root = Path(self.root) if self.root else None
        found = parse(to_toml(job), overrides=pairs, where=f"setting {name}", base=root)
        return Setting(name=name, set=values, job=found)


def sampled(
    path: Path | None, given: Sequence[str], samples: int, sampler: Sampler
) -> tuple[Job, tuple[Setting, ...], Sampling]:
    """Return a job, settings drawn independently, and how they are drawn.

    Keys with one value are part of the job, and of no name.

    Args:
        path: A job file; the demonstration if left out.
        given: `section.key=range` and `section.key=value,value` texts, one a key.
        samples: How many settings.
        sampler: How they are to be drawn; what is returned is drawn independently all the same.

    Raises:
        JobError: There is nothing to draw from, or a job cannot run.
    """
    fixed, space = list[str](), dict[str, str]()
    for name, pairs in lists_of(given).items():
        texts = [pair.partition("=")[2] for pair in pairs]
        if len(pairs) == 1 and range_of(texts[0]) is None:
            fixed += pairs
        elif len(texts) > 1 and any(map(range_of, texts)):
            raise JobError(f"--set {name}: give one range or a list of values, not both")
        else:
            space[name] = ",".join(texts)
    if not space:
        raise JobError(
            "there is nothing to draw from; give --set SECTION.KEY=LOW..HIGH or =VALUE,VALUE"
        )
    job = load(path, fixed)
    root = "" if path is None else str(path.resolve().parent)
    how = Sampling(sampler=sampler, samples=samples, seed=job.seed, space=space, root=root)
    for ends in _ends(how.ranges()):
        load(path, [*fixed, ends])
    draws = [_pairs(one) for one in how.draws()]
    sets = [_values(pairs) for pairs in draws]
    return (
        job,
        tuple(
            Setting(name=name, set=values, job=load(path, [*fixed, *pairs]))
            for name, values, pairs in zip(names_of(sets), sets, draws, strict=True)
        ),
        how,
    )


def _pairs(drawn: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in drawn.items()]


def _values(pairs: Sequence[str]) -> dict[str, object]:
    return {".".join(key): value for key, value in map(setting_of, pairs)}


def _ends(space: Space) -> Iterator[str]:
    for key, kind in space.items():
        if isinstance(kind, Range):
            yield from (f"{key}={kind.text(end)}" for end in (kind.low, kind.high))
