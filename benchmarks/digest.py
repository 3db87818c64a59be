"""How long does it take to know the rows of a run again, and what is said before a run begins?

`digest_s` is the time to digest a million rows of a dozen words with a label, which happens once
when a run begins, goes on or is evaluated; the bound is 3 s. `refusal_s` is a whole process that
runs a job whose model, column or file is not there, from its start to its exit.
"""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import measure

from triskel.data.digest import digest_of
from triskel.data.rows import Rows

ROWS = 1_000_000
WORDS = [f"word{number}" for number in range(5_000)]
WRONG = {"model": "model.path=./nowhere", "column": "data.text=txt", "file": "data.train=no.csv"}


def million(seed: int) -> Rows:
    """Return texts of a dozen words, each with one of three labels."""
    source = random.Random(seed)  # noqa: S311 - no secret
    texts = tuple(" ".join(source.choices(WORDS, k=12)) for _ in range(ROWS))
    return Rows(text=texts, label=tuple(source.choices("abc", k=ROWS)))


def refusal(folder: Path, setting: str) -> Callable[[], object]:
    """Return a run that is refused, as a call."""
    words = ["run", "job.toml", "--set", setting]
    script = f"import sys; sys.argv = ['triskel', *{words!r}]; from triskel.cli import main; main()"

    def work() -> None:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, capture_output=True, check=False
        )
        if done.returncode != 2:
            raise RuntimeError(done.stderr.decode())

    return work


def main() -> None:
    """Print and keep the figures."""
    options = measure.arguments(__doc__ or "")
    chosen = options.parse_args()
    rows, times = million(chosen.seed), 3 if chosen.quick else 9
    figures = {"digest_s": measure.in_turn({"": lambda: digest_of(rows)}, times=times)[""]}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.csv").write_text("text,label\na b,yes\nb c,no\n", encoding="utf-8")
        job = '[data]\nsource = "csv"\ntrain = "rows.csv"\ntext = "text"\nlabel = "label"\n'
        (folder / "job.toml").write_text(job, encoding="utf-8")
        works = {key: refusal(folder, setting) for key, setting in WRONG.items()}
        for key, seconds in measure.in_turn(works, times=times).items():
            figures[f"refusal_{key}_s"] = seconds
    measure.report("digest", figures, seed=chosen.seed, out=chosen.out, rows=ROWS)


if __name__ == "__main__":
    main()
