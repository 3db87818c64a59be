"""The cells of every table: one row per baseline and mode, its scores and its costs.

Terminal, Markdown, page and model card take theirs from here, so that they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from triskel.core import formats
from triskel.report.conclusions import better_off, per_client_bytes, share, skips, worst_client
from triskel.report.headline import untested
from triskel.report.names import column_of, figure_of, named, quality, written
from triskel.report.result import Baseline, ModeRun, Result, inner, number


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its heading on two lines, whether it is of scores or costs, and where it stands."""

    key: str
    heading: str
    part: Literal["scores", "costs"]
    page_only: bool = False

    @property
    def title(self) -> str:
        """The heading on one line."""
        return self.heading.replace("\n", " ")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is shown, the exact value for whoever asks, and what a page has room for."""

    text: str
    exact: str = ""
    roomy: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One baseline or mode; its cells by the key of their column."""

    name: str
    title: str
    cells: Mapping[str, Cell]


NOTED = 0.01
"""A client of whose tokens more than this share is not read is named."""
NOTHING = Cell(text=formats.DASH)


def columns(result: Result) -> tuple[Column, ...]:
    """Return the columns after the name."""
    what = quality(result).capitalize()
    second = "Token\naccuracy" if result.by_loss else "Macro-F1"
    if _by_right_tokens(result):
        second = "Perplexity"
    gap = "Of the\ncentral gain" if result.by_loss else "Of\ncentral"
    scored = [
        Column(key="everybody", heading=f"{what},\neverybody's", part="scores"),
        Column(key="own", heading=f"{what},\nown texts", part="scores"),
        Column(key="worst", heading="Worst\nclient", part="scores"),
        Column(key="better", heading="Better\noff", part="scores"),
        Column(key="second", heading=second, part="scores", page_only=True),
        Column(key="share", heading=gap, part="scores", page_only=True),
    ]
    tested = [Column(key="scoring", heading="Scoring /\nclient", part="costs")]
    spent = [
        Column(key="up", heading="Up /\nclient", part="costs"),
        Column(key="down", heading="Down /\nclient", part="costs"),
        *(tested if any(run.scoring for run in result.modes.values()) else []),
        Column(key="flops", heading="GFLOPs /\nclient", part="costs"),
        Column(key="server", heading="GFLOPs,\nserver", part="costs"),
        Column(key="memory", heading="Peak\nmemory", part="costs"),
        Column(key="time", heading="Time", part="costs"),
    ]
    return (*scored, *spent)


def rows(result: Result) -> list[Row]:
    """Return the baselines, then the modes."""
    return [
        Row(name=run.name, title=named(run), cells={**_scores(result, run), **_costs(run)})
        for run in result.scored
    ]


def notes(result: Result) -> list[str]:
    """Return what a reader of the table must know, one sentence each."""
    found: list[str] = []
    if result.validation:
        found.append("All figures are on validation texts; test texts were not read.")
    found += [*_started(result), *_kept(result)]
    if result.summary is None:
        found.append(untested(result))
    elif result.summary.spans:
        over = f"{result.texts}, one seed"
        if len(result.seeds) > 1:
            over = f"seeds and {result.texts}, {len(result.seeds)} seeds"
        found.append(
            f"±: half of the {formats.percent(result.summary.level)} interval over {over}."
        )
    if any(better_off(result, name) for name in result.modes):
        found.append(
            "Better off: clients that do better on their own texts than trained alone; in brackets "
            "those beyond chance."
        )
    alone = result.baselines.get("local_equal")
    if alone is not None:
        found.append(
            "Alone at equal FLOPs: each client alone, in as many whole rounds as reach the client "
            f"FLOPs of {alone.what or 'the mode that computes most'}."
        )
    if any((held.unread or 0) > NOTED for held in result.holdings.values()):
        worst = max(result.holdings, key=lambda c: result.holdings[c].unread or 0)
        share = formats.percent(result.holdings[worst].unread)
        found.append(
            f"Texts are longer than train.max_tokens: {share} of {worst}'s tokens are not read."
        )
    in_place = result.modes and not any(run.scoring for run in result.modes.values())
    if in_place and inner(result.job, "data").get("source") != "clients":
        found.append("Scored in place: testing a model sends nothing here.")
    return found + [f"Not run: {text}." for text in skips(result)]


def _started(result: Result) -> list[str]:
    """Return which adapter each row started from, where there was one."""
    rows = [(named(run), run.start) for run in result.scored if run.start]
    if len({start for _, start in rows}) == 1:
        return [f"Started from {rows[0][1]}."]
    told = "; ".join(f"{name} from {start}" for name, start in rows)
    return [f"Started: {told}."] if told else []


def _kept(result: Result) -> list[str]:
    """Return which round each row ends with, where the best on validation texts is kept."""
    if inner(result.job, "train").get("keep") != "best":
        return []
    text = "Kept: the round that is best on validation texts"
    if len(result.seeds) > 1:
        return [f"{text}, of each row and seed its own."]
    rounds = int(number(result.job, "rounds") or 0)
    told = "; ".join(f"{named(r)} {r.kept} of {rounds}" for r in result.scored if r.kept)
    return [f"{text}{': ' if told else ''}{told}."]


def flops_each(run: Baseline | ModeRun) -> float | None:
    """Return the mean FLOPs of a client, all rounds together."""
    if isinstance(run, Baseline):
        return run.flops
    return run.each.flops if run.each else None


def _by_right_tokens(result: Result) -> bool:
    """Return whether rows of a task over the vocabulary are ranked by how many tokens are right."""
    return result.head == "vocabulary" and result.figure == "accuracy"


# --- Parts ------------------------------------------------------------------------------------


def _scores(result: Result, run: Baseline | ModeRun) -> dict[str, Cell]:
    score = run.everybody
    second = score.accuracy if result.by_loss else score.macro_f1
    shown = formats.score(second)
    if _by_right_tokens(result):
        second, shown = score.perplexity, formats.perplexity(score.perplexity)
    part = NOTHING if run.name == "base" else Cell(text=formats.percent(share(result, run)))
    return {
        "everybody": _scored(result, run, "everybody"),
        "own": _scored(result, run, "own"),
        "worst": _worst(result, run),
        "better": _better(result, run.name),
        "second": _exact(shown, second),
        "share": part,
    }


def _scored(result: Result, run: Baseline | ModeRun, column: str) -> Cell:
    value = figure_of(result, run, column)
    text = written(result, value)
    spans = result.summary.spans.get(run.name, {}) if result.summary else {}
    span, exact = spans.get(column), "not measured" if value is None else f"{value:,.6g}"
    loss = column_of(run, column).loss
    more = "" if loss is None else f"; loss {loss:.4g}"
    if span is None or value is None:
        return Cell(text=text, exact=exact + more)
    ends = f"{written(result, span.low)} to {written(result, span.high)}"
    return Cell(
        text=f"{text} ±{written(result, span.half)}",
        exact=f"{exact}, interval {ends}{more}",
        roomy=f"{text} ± {written(result, span.half)}",
    )


def _worst(result: Result, run: Baseline | ModeRun) -> Cell:
    found = worst_client(result, run)
    if found is None:
        return NOTHING
    client, value = found
    text = written(result, value)
    return Cell(text=text, exact=f"{client}: {value:,.6g}")


def _better(result: Result, name: str) -> Cell:
    told = better_off(result, name)
    if told is None:
        return NOTHING
    up, sure, worse, total = told
    exact = (
        f"{up:,} of {total:,} clients do better than alone, {sure:,} of them beyond chance; "
        f"{worse:,} do worse beyond chance"
    )
    return Cell(
        text=f"{up:,}/{total:,} ({sure:,})", exact=exact, roomy=f"{up:,} of {total:,} ({sure:,})"
    )


def _costs(run: Baseline | ModeRun) -> dict[str, Cell]:
    flops = flops_each(run)
    spent = {
        "flops": _exact(formats.gflops(flops), flops),
        "time": _exact(formats.duration(run.seconds), run.seconds),
    }
    if isinstance(run, Baseline):
        keys = ("up", "down", "scoring", "server", "memory")
        return dict.fromkeys(keys, NOTHING) | spent
    both = sum(run.scoring) if run.scoring else None
    each = both / run.members if both is not None and run.members else both
    return {
        "up": _bytes(per_client_bytes(run, "up")),
        "down": _bytes(per_client_bytes(run, "down")),
        "scoring": Cell(
            text=formats.size(each), exact=f"{formats.exact(both)}, all clients together"
        ),
        "server": _exact(formats.gflops(run.server_flops), run.server_flops),
        "memory": _bytes(run.total.peak_bytes),
        **spent,
    }


def _bytes(count: float | None) -> Cell:
    return Cell(text=formats.size(count), exact=formats.exact(count))


def _exact(text: str, value: float | None) -> Cell:
    return Cell(text=text, exact="not measured" if value is None else f"{value:,.6g}")
