"""The headline: what the tests carry, in one sentence.

    ends        one mode:   "Params ends with F on everybody's texts" + base + alone
    none beats  no mode is above the base beyond chance: "No mode is shown to beat the base ..."
    level       the best is not told from those after it: "Params and split are level with F and F"
    first       the best is above every other mode:       "Split comes first with F"
    figures     nothing was tested: "Params F, logits F ...", in the order of the job

`base` is "above the base (F)", on everybody's texts; `alone` is "on own texts it is level with each
client alone (F against F)", where a client's own model counts, if it has one.
"""

from collections.abc import Mapping, Sequence

from triskel.core.formats import joined
from triskel.report.evidence import Standing, leaders, ranked, stands, tested
from triskel.report.names import NAMES, figure_of, named, quality, written
from triskel.report.result import ModeRun, Result

WHERE = "on everybody's texts"
WORDS: Mapping[Standing, str] = {"above": "above", "level": "level with", "below": "below"}
LOWER: Mapping[Standing, str] = {**WORDS, "above": "better than", "below": "worse than"}
"""The same where less is better."""
UNTESTED = "No per-text records, so nothing is said about differences."
UNFINISHED = "The run is not complete, so nothing is said about differences yet."
PARTLY = "Not every pair of modes has per-text records, so nothing is said about differences."


def headline(result: Result) -> str:
    """Return the first sentence, or nothing where no mode was scored."""
    order = ranked(result)
    if not order:
        return ""
    if result.summary is None or not tested(result, order):
        return _figures(result)
    if _none_beats_base(result, order):
        return _below_base(result, order)
    first = leaders(result, order)
    if len(order) == 1:
        text = f"{title(order[0])} ends with {_marks(result, order)} {WHERE}"
    elif len(first) == 1:
        text = f"{title(first[0])} comes first with {_marks(result, first)} {WHERE}"
    else:
        text = f"{capital(_names(first))} are level with {_marks(result, first)} {WHERE}"
    return f"{text}{_beside_base(result, first)}{beside_alone(result, first)}."


def untested(result: Result) -> str:
    """Return why nothing is said about differences: what tests say is written when a run ends."""
    asked, there = result.asked, {*result.baselines, *result.modes, *result.skipped}
    left = asked is not None and (
        not {*asked.modes, *asked.baselines} <= there
        or (asked.drop_share > 0 and not result.readings)
    )
    short = any(len(run.rounds) < run.planned for run in result.modes.values())
    return UNFINISHED if result.stopped or left or short else UNTESTED


def title(run: ModeRun) -> str:
    """Return a mode's name at the start of a sentence."""
    return capital(run.name)


def capital(text: str) -> str:
    """Return a sentence with its first letter large."""
    return text[:1].upper() + text[1:]


def words_of(result: Result) -> Mapping[Standing, str]:
    """Return how standings are said: above and below, or better and worse where less is better."""
    return LOWER if result.by_loss else WORDS


def placed(
    standings: Mapping[str, Standing], other: str, words: Mapping[Standing, str] = WORDS
) -> str:
    """Return rows beside another row, those that stand alike together.

    >>> placed({"params": "level", "logits": "below", "split": "level"}, "it")
    'params and split are level with it and logits is below it'
    """
    parts: list[str] = []
    for kind in ("above", "level", "below"):
        names = [name for name, standing in standings.items() if standing == kind]
        if names:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{joined(names)} {verb} {words[kind]} {other}")
    return joined(parts)


def beside_alone(result: Result, runs: Sequence[ModeRun]) -> str:
    """Return how modes stand beside each client alone, on own texts; empty where not tested."""
    told = standings(result, runs, "local", "own")
    if len(told) < len(runs):
        return ""
    alone = written(result, figure_of(result, result.baselines["local"], "own"))
    mine = joined([written(result, figure_of(result, run, "own")) for run in runs])
    return (
        f"; on own texts {_beside(told, NAMES['local'], words_of(result))} ({mine} against {alone})"
    )


def standings(
    result: Result, runs: Sequence[ModeRun], other: str, column: str
) -> dict[str, Standing]:
    """Return where modes stand beside a baseline, as far as it was tested."""
    if other not in result.baselines:
        return {}
    found: dict[str, Standing] = {}
    for run in runs:
        told = stands(result, run.name, other, column)
        if told is not None:
            found[run.name] = told
    return found


# --- Parts ------------------------------------------------------------------------------------


def _figures(result: Result) -> str:
    said = [
        f"{run.name} {written(result, value)}"
        for run in result.modes.values()
        if (value := figure_of(result, run, "everybody")) is not None
    ]
    why = untested(result) if result.summary is None else PARTLY
    return f"{capital(quality(result))} {WHERE}: {joined(said)}. {why}"


def _none_beats_base(result: Result, order: Sequence[ModeRun]) -> bool:
    told = standings(result, order, "base", "everybody")
    return len(told) == len(order) and "above" not in told.values()


def _below_base(result: Result, order: Sequence[ModeRun]) -> str:
    base = result.baselines["base"]
    floor = written(result, figure_of(result, base, "everybody"))
    told = standings(result, order, "base", "everybody")
    if len(order) == 1:
        only = order[0]
        kind = f"is {words_of(result)[told[only.name]]} it"
        text = (
            f"{title(only)} is not shown to beat the {named(base)}: {_marks(result, order)} "
            f"against {floor} {WHERE}, where it {kind}"
        )
    else:
        each = [f"{r.name} {written(result, figure_of(result, r, 'everybody'))}" for r in order]
        beside = f"; {placed(told, 'it', words_of(result))}"
        if len(set(told.values())) == 1:
            beside = f", {_all(order)}{words_of(result)[told[order[0].name]]} it"
        text = (
            f"No mode is shown to beat the {named(base)}, {quality(result)} {floor} {WHERE}: "
            f"{joined(each)}{beside}"
        )
    return f"{text}{beside_alone(result, order)}."


def _beside_base(result: Result, runs: Sequence[ModeRun]) -> str:
    told = standings(result, runs, "base", "everybody")
    if len(told) < len(runs):
        return ""
    floor = written(result, figure_of(result, result.baselines["base"], "everybody"))
    if len(set(told.values())) == 1:
        return f", {_all(runs)}{words_of(result)[told[runs[0].name]]} the base ({floor})"
    return f"; {placed(told, f'the base ({floor})', words_of(result))}"


def _beside(told: Mapping[str, Standing], other: str, words: Mapping[Standing, str]) -> str:
    """Return "both are above it", or who is where when they differ."""
    if len(set(told.values())) > 1:
        return placed(told, other, words)
    lead = {1: "it is", 2: "both are"}.get(len(told), "all are")
    return f"{lead} {words[next(iter(told.values()))]} {other}"


def _all(runs: Sequence[ModeRun]) -> str:
    return {1: "", 2: "both "}.get(len(runs), "all ")


def _names(runs: Sequence[ModeRun]) -> str:
    return joined([run.name for run in runs])


def _marks(result: Result, runs: Sequence[ModeRun]) -> str:
    values = joined([written(result, figure_of(result, run, "everybody")) for run in runs])
    return f"perplexity {values}" if result.by_loss else f"{values} accuracy"
