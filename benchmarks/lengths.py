"""What do the jobs of the docs lose by `train.max_tokens`, share by share?

`texts` of `rows` are longer, `tokens` of `of` are not read, and `left_out` rows are not read at
all; clients' shares are summed. BANKING77 is read from a folder with its train.csv and test.csv.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure

from triskel.config.job import Job
from triskel.config.read import load
from triskel.data.assets import resolve
from triskel.data.batches import tokenise
from triskel.data.federate import federate
from triskel.experiment.lengths import lost_of
from triskel.model.peft_folder import tokenizer_in

ROOT = Path(__file__).parents[1]
CENTRE = ROOT / "runs" / "banking77.toml"
CAUSAL = ("data.task=causal", 'data.text=""', "data.prompt=text", "data.response=category")
"""BANKING77 as text, as `runs/banking77.py` varies it."""


def jobs(folder: Path | None) -> Iterator[tuple[str, Job]]:
    """Yield the jobs of the docs whose data are here, by name."""
    yield "demo", load(None)
    if folder is not None:
        files = {key: json.dumps(str(folder / f"{key}.csv")) for key in ("train", "test")}
        where = [f"data.{key}={path}" for key, path in files.items()]
        yield "banking77", load(CENTRE, where)
        yield "banking77_causal", load(CENTRE, [*where, *CAUSAL])


def lost(job: Job) -> dict[str, Any]:
    """Return what a job loses: of training, test and public texts."""
    federation = federate(job)
    tokenizer = tokenizer_in(resolve(job.model.path))
    held = federation.clients.values()
    shares = {
        "train": [one.train for one in held],
        "test": [one.test for one in held],
        "public": [federation.public],
    }
    found: dict[str, Any] = {"max_tokens": job.train.length, "overlong": job.train.overlong}
    for share, parts in shares.items():
        told = [
            lost_of(tokenise(rows, tokenizer, job=job, classes=federation.classes))
            for rows in parts
            if len(rows)
        ]
        sums = {key: sum(one[key] for one in told) for key in ("texts", "tokens", "of", "rows")}
        sums["left_out"] = sums.pop("rows")
        found[share] = {"rows": sum(map(len, parts)), **sums}
    return found


def main() -> None:
    """Print and keep the figures."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--banking77", type=Path, help="a folder with its train.csv and test.csv")
    chosen = options.parse_args()
    figures = {name: lost(job) for name, job in jobs(chosen.banking77)}
    print(json.dumps(figures, indent=1))
    if chosen.out:
        measure.keep("lengths", figures, seed=chosen.seed, out=chosen.out)


if __name__ == "__main__":
    main()
