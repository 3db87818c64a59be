"""What a run trained, applied: classes or answers for a file of rows, and a conversation."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from triskel.cli.options import Base, Run, Trained
from triskel.cli.output import Event, console_for
from triskel.cli.quick_import import loading
from triskel.cli.torch_import import settle_threads
from triskel.core import formats
from triskel.core.console import clean, echo
from triskel.errors import DataError

if TYPE_CHECKING:
    from triskel.data.files import Columns
    from triskel.data.rows import Rows
    from triskel.experiment.chat import Chat
    from triskel.experiment.predict import Prediction, Predictor

ANSWER = "prediction"
"""Column of what a model makes of a row."""
SHARE = "p_"
"""What stands before a class in the name of the column of its probability."""
MOST = 5
"""Classes whose probability is shown on a terminal."""
TEXT = 60
"""Characters of a text in a table, at most."""

Client = Annotated[
    str | None, typer.Option(help="This client's own model, where clients have one.")
]
NewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of an answer, at most.", show_default="128"),
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0, help="What tokens are drawn by; 0 takes the likeliest.", show_default="0"),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest tokens with this probability.", show_default="1"),
]
Seed = Annotated[int | None, typer.Option(help="What is drawn follows from it.", show_default="0")]
Type = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    typer.Option(
        help="What the model computes in.",
        show_default="the job's; float32 for text where that is auto",
    ),
]


# --- predict ----------------------------------------------------------------------------------


def predict(
    folder: Run,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Rows with the columns that the job reads, no labels; - is a row a line.",
            show_default=False,
        ),
    ],
    mode: Trained = None,
    client: Client = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table: .csv, .jsonl or .parquet."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows that run together.", show_default="8 answers, or classes by length"
        ),
    ] = None,
    dtype: Type = None,
    model: Base = None,
) -> None:
    """Tell the class of each row, or write an answer to it, with a model that a run trained."""
    from triskel.data.tables import writable

    if out is not None:
        writable(out, force=force)
    given = _given(file, folder)
    console = console_for(stderr=True)
    sampling = _sampling(max_new_tokens, temperature, top_p, seed)
    chosen = {"mode": mode, "client": client, "model": model, "dtype": dtype}
    ready = _ready(console, folder, chosen, sampling, batch)
    where = "standard input" if file == "-" else f"data file {file}"
    columns = ready.named(given) if isinstance(given, list) else given
    rows = ready.read(columns, where)
    if out is not None:
        _free(columns, ready.model.classes, where)
    of = formats.plural(len(rows), "row")
    console.print(f"{escape(ready.model.name)} on {of}", soft_wrap=True)
    began, each = time.monotonic(), _predicted(console, ready, rows, where, show=out is None)
    seconds = time.monotonic() - began
    if out is not None:
        from triskel.data.tables import write_table

        write_table(out, {**columns, **dict(_added(each, ready.model.classes))})
        echo(str(out))
    elif not ready.model.writes:
        console_for().print(_table(each, columns))
    _conclude(console, each, rows, seconds)


def _predicted(
    console: Console, ready: "Predictor", rows: "Rows", where: str, *, show: bool
) -> "list[Prediction]":
    """Return what the model makes of each row; show answers as they are there, or how many are."""
    found: dict[int, Prediction] = {}
    told = _piece if show and len(rows) == 1 else None
    made = ready.predict(rows, where, in_order=show, told=told)
    if show and ready.model.writes:
        for row, one in made:
            found[row] = one
            _show(row, one, streamed=told is not None)
    else:
        with console.status("") as status:
            for row, one in made:
                found[row] = one
                status.update(f"{len(found):,} of {formats.plural(len(rows), 'row')}")
    return [found[row] for row in range(len(rows))]


def _given(file: str, run: Path) -> "Columns | list[str]":
    """Return a file's columns, or the lines of plain text or of standard input.

    The file is written as those of the run's job are, as far as that says how.

    Raises:
        DataError: There are no rows, or they cannot be read.
    """
    if file != "-":
        from triskel.config.job import Job
        from triskel.config.read import load
        from triskel.data.reading import unlabelled

        job = run / "job.toml"
        return unlabelled(Path(file), load(job, imports=()) if job.is_file() else Job())
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start})") from None
    if not lines:
        raise DataError("standard input holds no rows")
    return lines


def _sampling(
    max_new_tokens: int | None, temperature: float | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """Return what was said of how text is written."""
    said = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    return {name: value for name, value in said.items() if value is not None}


def _ready(
    console: Console,
    folder: Path,
    chosen: Mapping[str, Any],
    sampling: Mapping[str, Any],
    batch: int | None = None,
) -> "Predictor":
    """Load the model that is meant, and say what it needs to be said."""
    settle_threads(console, folder)
    with console.status("loading torch and transformers"), loading():
        from triskel.experiment.predict import Predictor
        from triskel.experiment.trained import trained
        from triskel.model.generate import Sampling

    def watch(event: Event) -> None:
        mark = "[yellow]warning[/] " if event.get("event") == "warning" else ""
        console.print(f"{mark}{escape(str(event.get('text', '')))}", soft_wrap=True)

    how = Sampling(**sampling) if sampling else None
    with console.status("loading the model"):
        return Predictor(trained(folder, **chosen, watch=watch), sampling=how, batch=batch)


def _free(columns: "Columns", classes: Sequence[str], where: str) -> None:
    """Refuse a file whose columns are called as those that are added."""
    for name in (ANSWER, *(SHARE + one for one in classes)):
        if name in columns:
            raise DataError(f"{where} has a column {name!r}, which is to be written; rename it")


def _conclude(console: Console, each: "Sequence[Prediction]", rows: "Rows", seconds: float) -> None:
    """Say how much was read and written, how fast, and what of it was not."""
    from triskel.experiment.predict import left

    read, written = (sum(getattr(one, what) for one in each) for what in ("read", "written"))
    tokens = f"{read:,} tokens read" + (f", {written:,} written" if written else "")
    least = max(seconds, 1e-9)
    speed = (
        f"{written / least:,.0f} new tokens/s" if written else f"{len(each) / least:,.0f} rows/s"
    )
    took = formats.duration(seconds)
    console.print(f"{formats.plural(len(each), 'row')}, {tokens}, {took} ({speed})")
    for sentence in left(each, rows):
        console.print(f"[yellow]warning[/] {escape(sentence)}", soft_wrap=True)


def _added(
    each: "Sequence[Prediction]", classes: Sequence[str]
) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield the columns that are added to those of the file."""
    yield ANSWER, [one.answer for one in each]
    for name in classes:
        yield SHARE + name, [one.probabilities.get(name) for one in each]


def _table(each: "Sequence[Prediction]", columns: "Columns") -> Table:
    """Return classes as a table, each with its row and the beginning of its text."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row", justify="right")
    table.add_column("class")
    table.add_column("probabilities")
    table.add_column(escape(next(iter(columns))), no_wrap=True, overflow="ellipsis")
    for row, (one, text) in enumerate(zip(each, next(iter(columns.values())), strict=True), 1):
        ranked = sorted(one.probabilities.items(), key=lambda pair: -pair[1])
        shares = ", ".join(f"{name} {share:.3f}" for name, share in ranked[:MOST])
        shown = " ".join(str(text)[:TEXT].split())
        more = ", …" if len(ranked) > MOST else ""
        answer = formats.DASH if one.answer is None else one.answer
        table.add_row(str(row), *(escape(cell) for cell in (answer, shares + more, shown)))
    return table


def _show(row: int, one: "Prediction", *, streamed: bool) -> None:
    """Print an answer; one that was streamed is there already."""
    if streamed and one.answer is not None:
        echo("")
        return
    echo(f"--- row {row + 1}\n{formats.DASH if one.answer is None else one.answer}")


def _piece(text: str) -> None:
    typer.echo(clean(text), nl=False)
    sys.stdout.flush()


# --- chat -------------------------------------------------------------------------------------


def chat(
    folder: Run,
    mode: Trained = None,
    client: Client = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    dtype: Type = None,
    model: Base = None,
) -> None:
    """Talk to a model that a run trained to write: each line is answered."""
    console = console_for(stderr=True)
    sampling = _sampling(max_new_tokens, temperature, top_p, seed)
    chosen = {"mode": mode, "client": client, "model": model, "dtype": dtype}
    ready = _ready(console, folder, chosen, sampling)
    from triskel.experiment.chat import Chat

    talk = Chat(ready)
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):
            import_module("readline")  # arrow keys, and lines that were typed before
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ctrl-C stops an answer, this ends all
        kept = "what was said is kept" if talk.remembers else "each line stands alone"
        console.print(
            f"{escape(ready.model.name)}: {kept}; /reset forgets, /exit or Ctrl-D ends, Ctrl-C "
            "stops an answer",
            soft_wrap=True,
        )
    for line in _lines(terminal=terminal):
        if line == "/exit":
            break
        if line == "/reset":
            talk.reset()
        elif line.strip():
            _reply(console, talk, line, terminal=terminal)


def _lines(*, terminal: bool) -> Iterator[str]:
    """Yield lines of standard input until it ends; on a terminal behind a mark."""
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            echo("")
            return
        except UnicodeDecodeError as error:
            raise DataError(f"standard input is not UTF-8 text (byte {error.start})") from None
        if not terminal and not line:
            return
        yield line.rstrip("\r\n")


def _reply(console: Console, talk: "Chat", line: str, *, terminal: bool) -> None:
    """Answer one line; on a terminal one that fails or is stopped does not end the talk."""
    try:
        made, gone = talk.answer(line, _piece)
    except KeyboardInterrupt:
        if not terminal:
            raise
        echo("")
        console.print("stopped; what was asked is forgotten")
        return
    echo("")
    if gone:
        turns = "oldest turn is" if gone == 1 else f"oldest {gone} turns are"
        console.print(f"the talk is longer than the model: its {turns} forgotten")
    if made.cut:
        what = f"its first {made.cut:,} tokens are not read"
        console.print(f"the line is longer than the model: {what}")
