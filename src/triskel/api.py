"""What `import triskel` gives: compare, run and load, and what a run came to.

    job = triskel.load("job.toml", ["rounds=5"])
    result = triskel.compare(job, modes=["params", "split"])
    result.frame()                      # a row for each baseline and mode
    model = result.model("params")      # the base with the trained adapter, as PEFT has it

These names stay, and so do the errors in `triskel.errors`; every other module may change.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, cast

from triskel.config import read as config
from triskel.config.job import MODE_NAMES, Job
from triskel.core.registry import MODES
from triskel.core.result_file import Result as Found
from triskel.core.result_file import RunResult, result_in
from triskel.core.result_parts import RoundRow
from triskel.core.run_folder import clear_refused, is_free, next_folder
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, TriskelError
from triskel.experiment.baselines import BASELINES
from triskel.experiment.compare import Request
from triskel.experiment.compare import resume as resume_run
from triskel.experiment.compare import run as run_once
from triskel.experiment.predict import Prediction, Predictor
from triskel.experiment.seeds import compare_seeds, resume_seeds, seeds_of
from triskel.experiment.trained import TrainedModel, trained
from triskel.export.adapters import model_of, tensors_of, tokenizer_of
from triskel.model.generate import Sampling
from triskel.report.cells import flops_each
from triskel.report.conclusions import per_client_bytes
from triskel.report.names import figure_of, quality
from triskel.report.reading import read
from triskel.report.result import ModeRun
from triskel.report.tables import markdown
from triskel.report.terminal import Live
from triskel.types import Tensors, Watch

Name = TypeVar("Name", bound=str)
FIGURES = (
    "everybody", "own", "up_bytes", "down_bytes", "client_flops", "server_flops", "peak_bytes",
    "seconds",
)  # fmt: skip
"""What is told of each row."""


def load(job: str | Path | None = None, settings: str | Sequence[str] = ()) -> Job:
    """Read a job file; without one, the demonstration's job.

    Args:
        job: A TOML file; relative paths inside it are relative to its folder.
        settings: `section.key=value`, or several of them, applied in order.

    Raises:
        JobError: The file is missing, is not TOML, or does not describe a job that can run.

    >>> load(settings=["rounds=2", "train.lr=1e-4"]).rounds
    2
    """
    given = [settings] if isinstance(settings, str) else settings
    return config.load(None if job is None else Path(job), given)


def compare(
    job: Job | str | Path,
    *,
    modes: str | Sequence[str] = MODE_NAMES,
    baselines: str | Sequence[str] = BASELINES,
    seeds: int | Iterable[SupportsIndex] | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> "Result":
    """Run baselines and modes on one model, data split and seed, and write a report.

    Args:
        job: A job, or the file that holds it.
        modes: Which modes, in order.
        baselines: Which baselines: `base`, `local`, `central`, `local_equal`.
        seeds: So many, from the job's own on, or these; None is the job's own, once.
        out: A new folder for the run; `runs/NAME-N` if left out.
        watch: Told what happens; shows progress if left out.

    Raises:
        TriskelError: The job cannot run, or a stage failed; what was finished stays on disk.
    """
    asked = job if isinstance(job, Job) else load(job)
    chosen = _named("mode", modes, MODES.names())
    beside = _named("baseline", baselines, BASELINES)
    if not chosen and not beside:
        raise JobError(
            f"nothing to run: name modes ({', '.join(MODES.names())}) or baselines "
            f"({', '.join(BASELINES)})"
        )
    request = Request(modes=chosen, baselines=beside)
    return _played(asked, request, out, _seeds(seeds, asked.seed), watch)


def run(
    job: Job | str | Path | None = None,
    *,
    mode: str | None = None,
    resume: str | Path | None = None,
    rounds: int | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> "Result":
    """Run one mode, or go on with a run that was stopped, or for more rounds.

    Args:
        job: A job, or the file that holds it.
        mode: Which mode; the job's own if left out.
        resume: The folder of a run, of `run` or `compare`, stopped or not; then nothing else but
            `rounds`.
        rounds: How many rounds a run that goes on shall have, where these are more than it has.
        out: A new folder for the run; `runs/NAME-N` if left out.
        watch: Told what happens; shows progress if left out.

    Raises:
        TriskelError: The job cannot run, or a stage failed; what was finished stays on disk.
    """
    if resume is not None:
        if any(one is not None for one in (job, mode, out)):
            raise JobError("resume goes on with the job as it was; leave out everything else")
        return _resumed(Path(resume), watch, rounds)
    if rounds is not None:
        raise JobError("rounds is for a run that goes on; a new one has those of its job")
    if job is None:
        raise JobError("give a job, or the folder of a run to resume")
    asked = job if isinstance(job, Job) else load(job)
    (name,) = _named("mode", mode or asked.mode, MODES.names())
    asked = asked.model_copy(update={"mode": name})
    request = Request(modes=(name,), baselines=(), strict=True)
    return _played(asked, request, out, None, watch)


class Result:
    """What a run came to: figures, adapters and models, out of its folder.

    Args:
        folder: A run's, or that of several seeds.

    Raises:
        CheckpointError: It holds no result, or one of another version, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the result."""
        self.folder = Path(folder)
        self.found: Found = result_in(self.folder)
        self._seen = read(cast("Mapping[str, Any]", self.found))
        self._asked: tuple[tuple[str | None, str | None], TrainedModel] | None = None

    @property
    def report(self) -> Path:
        """The page with all figures."""
        return self.folder / "report.html"

    @property
    def seeds(self) -> "list[Result]":
        """The run of each seed, where there are several."""
        places = [self.folder / f"seed-{seed}" for seed in seeds_of(self.folder) or ()]
        return [Result(place) for place in places if (place / "result.json").exists()]

    @property
    def figure(self) -> str:
        """What `everybody` and `own` are: accuracy, say, or perplexity."""
        return quality(self._seen)

    @property
    def figures(self) -> dict[str, dict[str, float | None]]:
        """What each baseline and mode reaches and costs, by name.

        `everybody` is of the common model on all test texts (of `local`, the clients' own models
        on them), `own` of each client's model on its own texts. `up_bytes`, `down_bytes` and
        `client_flops` are means over clients, all rounds together; `server_flops` is of all rounds,
        `peak_bytes` the most memory of any client, `seconds` how long it took here. With several
        seeds all are means over seeds. None: not counted, no cost of this row, or no finite number.
        """
        return {row.name: _numbers(self._seen, row) for row in self._seen.scored}

    def table(self) -> list[dict[str, Any]]:
        """Return the figures as rows."""
        return [{"row": name, **figures} for name, figures in self.figures.items()]

    def frame(self) -> Any:  # noqa: ANN401 - pandas comes with datasets
        """Return the figures as a `pandas.DataFrame`, a row for each baseline and mode.

        Raises:
            JobError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - slow, and of other packages
        except ImportError as error:
            raise JobError("frame() needs pandas: pip install pandas; table() does not") from error
        frame = pd.DataFrame(self.table(), columns=["row", *FIGURES]).set_index("row")
        return frame.astype(float)

    def rounds(self, mode: str) -> list[RoundRow]:
        """Return a mode's rounds as `result.json` has them.

        Raises:
            JobError: The run has no such mode, or is several seeds.
        """
        found = self._one("rounds")["modes"]
        if mode not in found:
            raise JobError(f"run {self.folder} has no mode {mode!r}; it has {', '.join(found)}")
        return found[mode]["rounds"]

    def adapter(self, mode: str | None = None, client: str | None = None) -> Tensors:
        """Return the trained tensors, named as in the base model.

        Args:
            mode: A mode, `central` or `local`; may be left out where there is one.
            client: This client's own model, where a mode leaves such.

        Raises:
            JobError: There is no such adapter, or several.
        """
        self._one("adapter")
        return tensors_of(self.folder, mode=mode, client=client)

    def model(self, mode: str | None = None, client: str | None = None) -> Any:  # noqa: ANN401 - PEFT's
        """Return the base model in float32 with the adapter on it: a `peft.PeftModel`.

        Its tokenizer is `tokenizer(mode, client)`.

        Raises:
            JobError: There is no such adapter, or several.
            ModelError: The base cannot be loaded.
        """
        self._one("model")
        return model_of(self.folder, mode=mode, client=client, say=_nobody)

    def tokenizer(self, mode: str | None = None, client: str | None = None) -> Any:  # noqa: ANN401 - of transformers
        """Return the tokenizer that goes with `model`."""
        self._one("tokenizer")
        return tokenizer_of(self.folder, mode=mode, client=client, say=_nobody)

    def predict(  # noqa: PLR0913 - how text is written, named one by one
        self,
        texts: Sequence[str] | Mapping[str, Sequence[object]],
        mode: str | None = None,
        client: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        batch: int | None = None,
    ) -> list[Prediction]:
        """Return the class of each text, or what the model writes behind it.

        The model that was asked last stays in memory.

        Args:
            texts: Texts, or columns by name where the job reads several.
            mode: A mode, `central` or `local`; may be left out where there is one.
            client: This client's own model, where a mode leaves such.
            max_new_tokens: Tokens that are written, at most; 128 if left out.
            temperature: What tokens are drawn by; 0, the default, takes the likeliest.
            top_p: Draw from the likeliest tokens that have this probability; 1 if left out.
            seed: What is drawn follows from it; 0 if left out.
            batch: Texts that run together.

        Raises:
            JobError: There is no such adapter, or several; or a model of classes is told how to
                write.
            DataError: A column is missing, or a row has no text or is too long.
            ModelError: The base cannot be loaded.
        """
        self._one("predict")
        asked = (mode, client)
        if self._asked is None or self._asked[0] != asked:
            model = trained(self.folder, mode=mode, client=client, watch=_nobody)
            self._asked = asked, model
        how = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
            "seed": seed,
        }  # fmt: skip
        said: dict[str, Any] = {name: value for name, value in how.items() if value is not None}
        ready = Predictor(self._asked[1], sampling=Sampling(**said) if said else None, batch=batch)
        columns = texts if isinstance(texts, Mapping) else ready.named(list(texts))
        rows = ready.read(columns, "the list of texts")
        found = dict(ready.predict(rows, "the list of texts"))
        return [found[row] for row in range(len(rows))]

    def _one(self, what: str) -> RunResult:
        """Return the one run of this folder; `what` needs one."""
        if self.found["schema"] != 1:
            raise JobError(f"{self.folder} holds several seeds; .seeds[0].{what}(...) is of one")
        return self.found

    def __repr__(self) -> str:
        """Return the table that a run ends with."""
        return f"{self.folder}\n\n{markdown(cast('Mapping[str, Any]', self.found))}"

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook."""
        return markdown(cast("Mapping[str, Any]", self.found))


def _played(
    job: Job,
    request: Request,
    out: str | Path | None,
    seeds: Sequence[int] | None,
    watch: Watch | None,
) -> Result:
    folder = next_folder(job.name) if out is None else Path(out)
    ours = is_free(folder)
    try:
        with _watched(watch) as told:
            if seeds is None:
                run_once(job, request, folder, LocalEngine(job), told)
            else:
                compare_seeds(job, request, seeds, folder, LocalEngine, told)
    except (KeyboardInterrupt, TriskelError) as stop:
        if not _said(stop, folder) and ours:
            clear_refused(folder)
        raise
    return Result(folder)


def _resumed(folder: Path, watch: Watch | None, rounds: int | None) -> Result:
    try:
        with _watched(watch) as told:
            again = resume_run if seeds_of(folder) is None else resume_seeds
            again(folder, LocalEngine, told, rounds=rounds)
    except (KeyboardInterrupt, TriskelError) as stop:
        _said(stop, folder)
        raise
    return Result(folder)


def _said(stop: BaseException, folder: Path) -> bool:
    """Say how a run goes on that was stopped; return whether it was stopped and not refused."""
    refused = isinstance(stop, TriskelError) and stop.exit_code == JobError.exit_code
    if not refused and folder.exists():
        way = f"triskel.run(resume={str(folder)!r}) goes on"
        stop.add_note(f"what was finished is in {folder}; {way}")
    return not refused


@contextmanager
def _watched(watch: Watch | None) -> Generator[Watch]:
    """Yield who is told what happens: somebody, or a display."""
    if watch is not None:
        yield watch
        return
    with Live() as live:
        yield live


def _named(what: str, given: str | Sequence[str], known: Sequence[Name]) -> tuple[Name, ...]:
    """Return names, each once, once all of them are known; one name may stand alone."""
    names = dict.fromkeys([given] if isinstance(given, str) else given)
    for name in names:
        if name not in known:
            raise JobError(f"there is no {what} {name!r} here; there are {', '.join(known)}")
    return tuple(cast("Iterable[Name]", names))


def _seeds(seeds: int | Iterable[SupportsIndex] | None, first: int) -> list[int] | None:
    """Return the seeds that are meant: so many from the job's own on, or these."""
    if seeds is None:
        return None
    if isinstance(seeds, int):
        return list(range(first, first + seeds))
    return [index(seed) for seed in seeds]


def _nobody(_told: object) -> None:
    """Tell nobody."""


def _numbers(seen: Any, row: Any) -> dict[str, float | None]:  # noqa: ANN401 - of a report
    """Return one row's figures and costs as numbers."""
    mode = row if isinstance(row, ModeRun) else None
    return {
        "everybody": figure_of(seen, row, "everybody"),
        "own": figure_of(seen, row, "own"),
        "up_bytes": per_client_bytes(mode, "up") if mode else None,
        "down_bytes": per_client_bytes(mode, "down") if mode else None,
        "client_flops": flops_each(row),
        "server_flops": mode.server_flops if mode else None,
        "peak_bytes": mode.total.peak_bytes if mode else None,
        "seconds": row.seconds,
    }
