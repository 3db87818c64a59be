"""How rows are called, and how a row's figure is said in a sentence."""

from collections.abc import Mapping

from triskel.core.formats import perplexity, score
from triskel.report.result import Baseline, ModeRun, Result, Score, mark

NAMES: Mapping[str, str] = {
    "base": "base",
    "local": "each client alone",
    "local_equal": "alone at equal FLOPs",
    "central": "centralised",
}
COLUMNS: Mapping[str, str] = {"everybody": "everybody's texts", "own": "own texts"}


def named(run: Baseline | ModeRun) -> str:
    """Return how a row is called."""
    if run.name == "base" and isinstance(run, Baseline) and run.what:
        return f"base ({run.what})"
    return NAMES.get(run.name, run.name)


def column_of(run: Baseline | ModeRun, column: str) -> Score:
    """Return a row's score on `everybody`'s texts or on clients' `own`."""
    return run.everybody if column == "everybody" else run.own


def figure_of(result: Result, run: Baseline | ModeRun, column: str) -> float | None:
    """Return a row's figure that ranks, on one column: that of the summary, where it has one."""
    spans = result.summary.spans.get(run.name, {}) if result.summary else {}
    return spans[column].mean if column in spans else mark(result, column_of(run, column))


def written(result: Result, value: float | None) -> str:
    """Return the figure that ranks, as it is written everywhere."""
    return perplexity(value) if result.by_loss else score(value)


def quality(result: Result) -> str:
    """Return what the figure that ranks is called."""
    return "perplexity" if result.by_loss else "accuracy"
