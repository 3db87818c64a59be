"""The conclusions, computed from the numbers and no stronger than their tests.

The first is the headline; after it what every other mode reaches, training in one place, what
crossed, how clients differ, what did not go to plan, and what "level" means here.
"""

import math
from collections.abc import Sequence

from triskel.core.formats import joined, percent, plural, size
from triskel.report.evidence import Standing, leaders, ranked, stands, tested
from triskel.report.headline import (
    WHERE,
    beside_alone,
    headline,
    placed,
    standings,
    title,
    words_of,
)
from triskel.report.markup import shortened
from triskel.report.names import NAMES, figure_of, quality, written
from triskel.report.result import Baseline, ModeRun, Result, mark

MANY = 6
"""More clients than this are counted, not named."""
CLEAR = 1.5
"""A ratio of bytes worth a word."""
ALIKE = 1e-9
"""Figures closer than this differ by rounding."""
ROUND = 9.5
"""From here on a ratio needs no decimals."""


def verdict(result: Result) -> list[str]:
    """Return what the run shows: the first sentence is the headline."""
    first = headline(result)
    if not first:
        return [*_nothing(result), *_unfinished(result)]
    order = ranked(result)
    lines = [first]
    if result.summary is not None and tested(result, order):
        lines += _others(result, order)
        lines += _central(result, order)
        lines += _equal(result)
        lines += _clients(result)
    lines += _worst(result)
    lines += _traffic(result)
    lines += _unfinished(result)
    lines += _absent(result)
    lines += _wire(result)
    lines += [f"Not run: {text.rstrip('.')}." for text in skips(result)]
    lines.append(_caution(result))
    return lines


def skips(result: Result) -> list[str]:
    """Return the modes that did not run, with the reason."""
    return [f"{NAMES.get(mode, mode)}: {why}" for mode, why in result.skipped.items()]


def per_client_bytes(run: ModeRun, direction: str) -> float | None:
    """Return the mean over clients of what crossed in one direction, all rounds together."""
    if run.each is None:
        return None
    return (run.each.up if direction == "up" else run.each.down).message_bytes


def share(result: Result, run: Baseline | ModeRun) -> float | None:
    """Return which share of the centralised accuracy is reached on everybody's texts.

    For `causal` it is the share of the gain, (base loss - loss) / (base loss - centralised loss).
    """
    central, base = result.baselines.get("central"), result.baselines.get("base")
    if central is None:
        return None
    if not result.by_loss:
        whole, part = central.everybody.accuracy, run.everybody.accuracy
        return part / whole if part is not None and whole else None
    if base is None or base.everybody.loss is None or central.everybody.loss is None:
        return None
    gap, loss = base.everybody.loss - central.everybody.loss, run.everybody.loss
    return (base.everybody.loss - loss) / gap if loss is not None and gap > 0 else None


def better_off(result: Result, mode: str) -> tuple[int, int, int, int] | None:
    """Return how clients of a mode fare beside training alone, None where that was not tested.

    The four are: how many score higher, how many of these beyond chance, how many score lower
    beyond chance, and how many there are.
    """
    told = result.summary.clients.get(mode) if result.summary else None
    if not told:
        return None
    up = sum(gain > ALIKE for _, gain in told.values())
    kinds = [kind for kind, _ in told.values()]
    return up, kinds.count("gain"), kinds.count("lose"), len(told)


def worst_client(result: Result, run: Baseline | ModeRun) -> tuple[str, float] | None:
    """Return the client with the worst figure on its own texts, if it has any, and the figure."""
    values = {
        client: value
        for client, one in run.per_client.items()
        if (value := mark(result, one)) is not None
    }
    if not values:
        return None
    worst = (max if result.by_loss else min)(values, key=lambda client: values[client])
    return worst, values[worst]


# --- Sentences --------------------------------------------------------------------------------


def _others(result: Result, order: Sequence[ModeRun]) -> list[str]:
    """Say what the modes reach that the headline does not name."""
    first = leaders(result, order)
    told = standings(result, order, "base", "everybody")
    if len(told) == len(order) and "above" not in told.values():
        return []  # the headline named them all
    lines: list[str] = []
    for run in order:
        if run in first:
            continue
        reached = written(result, figure_of(result, run, "everybody"))
        beside: dict[str, Standing] = {}
        for one in first:
            kind = stands(result, run.name, one.name, "everybody")
            if kind is not None:
                beside[one.name] = kind
        text = f"{title(run)} reaches {quality(result)} {reached} {WHERE}"
        parts = [
            f"{words_of(result)[kind]} {joined([name for name, k in beside.items() if k == kind])}"
            for kind in dict.fromkeys(beside.values())
        ]
        if run.name in told:
            parts.append(f"{words_of(result)[told[run.name]]} the base")
        text += f", {joined(parts)}" if parts else ""
        lines.append(f"{text}{beside_alone(result, [run])}.")
    return lines


def _central(result: Result, order: Sequence[ModeRun]) -> list[str]:
    told = standings(result, order, "central", "everybody")
    if not told:
        return []
    reached = written(result, figure_of(result, result.baselines["central"], "everybody"))
    beside = placed(told, "it", words_of(result))
    return [f"Training in one place reaches {quality(result)} {reached}: {beside}."]


def _equal(result: Result) -> list[str]:
    """Say where the mode that computes most stands beside clients alone that compute as much."""
    alone = result.baselines.get("local_equal")
    run = result.modes.get(alone.what) if alone else None
    told = stands(result, run.name, "local_equal", "own") if run else None
    if alone is None or run is None or told is None:
        return []
    reached, mine = (written(result, figure_of(result, one, "own")) for one in (alone, run))
    text = (
        f"With the client FLOPs of {run.name}, each client alone reaches {quality(result)} "
        f"{reached} on own texts: {run.name} is {words_of(result)[told]} that, with {mine}."
    )
    return [text]


def _clients(result: Result) -> list[str]:
    """Say how many clients are better off than alone, and who is worse off beyond chance."""
    lines: list[str] = []
    for run in result.modes.values():
        told = better_off(result, run.name)
        if told is None or result.summary is None:
            continue
        up, sure, worse, total = told
        chance = "none of them beyond chance" if not sure else f"{sure:,} of them beyond chance"
        text = f"Own texts, {run.name} against alone: {up:,} of {plural(total, 'client')} better"
        text += f", {chance}" if up and sure < up else ", beyond chance" if up else ""
        if worse:
            losers = [c for c, (k, _) in result.summary.clients[run.name].items() if k == "lose"]
            text += f"; worse beyond chance: {_who(losers, total)}"
        lines.append(f"{text}.")
    return lines


def _worst(result: Result) -> list[str]:
    found = [(run.name, worst_client(result, run)) for run in result.modes.values()]
    said = [
        f"{name} {shortened(worst[0])} with {written(result, worst[1])}"
        for name, worst in found
        if worst is not None
    ]
    several = len(result.clients) > 1
    return [f"The client that does worst on its own texts: {'; '.join(said)}."] * (
        several and bool(said)
    )


def _traffic(result: Result) -> list[str]:
    """Say what a client sent and received, fewest bytes first."""
    sums: list[tuple[float, ModeRun]] = []
    for run in result.modes.values():
        up, down = per_client_bytes(run, "up"), per_client_bytes(run, "down")
        if up is not None and down is not None:
            sums.append((up + down, run))
    if not sums:
        return ["Traffic was not measured."]
    sums.sort(key=lambda pair: pair[0])
    least = sums[0][0]
    said: list[str] = []
    for total, run in sums:
        up, down = per_client_bytes(run, "up"), per_client_bytes(run, "down")
        more = total / least if least else 0.0
        times = f", {_times(more)} the bytes of {sums[0][1].name}" if more >= CLEAR else ""
        said.append(f"{run.name} {size(up)} up and {size(down)} down{times}")
    return [f"Per client, all rounds: {'; '.join(said)}."]


def _times(ratio: float) -> str:
    if ratio < ROUND:
        return f"{ratio:.1f} times"
    digits = 1 - math.floor(math.log10(ratio))  # two digits say enough
    return f"{round(ratio, min(digits, 0)):,.0f} times"


def _who(clients: list[str], total: int) -> str:
    if len(clients) == total:
        return f"all {plural(total, 'client')}" if total > 1 else shortened(clients[0])
    if len(clients) > MANY:
        return f"{len(clients):,} of {plural(total, 'client')}"
    return joined([shortened(client) for client in clients])


def _unfinished(result: Result) -> list[str]:
    lines = [f"The run is not complete: {result.stopped}."] if result.stopped else []
    for run in result.modes.values():
        if not run.rounds:
            lines.append(f"{title(run)} finished no round.")
        elif len(run.rounds) < run.planned:
            done = run.rounds[-1].number
            lines.append(
                f"{title(run)} stopped after round {done} of {run.planned}; its numbers are "
                "those of its last finished round."
            )
    return lines


def _absent(result: Result) -> list[str]:
    """Say who was missing in which rounds."""
    lines: list[str] = []
    for run in result.modes.values():
        missed: dict[str, list[str]] = {}
        for one in run.rounds:
            for client in one.absent:
                missed.setdefault(client, []).append(str(one.number))
        for client, rounds in sorted(missed.items())[:MANY]:
            which = f"round{'s' if len(rounds) > 1 else ''} {joined(rounds)}"
            lines.append(
                f"{title(run)} did without {shortened(client)} in {which}; result.json says why."
            )
    return lines


def _wire(result: Result) -> list[str]:
    """Say what a network carried, where the engine counted it."""
    said = [
        f"{title(run)} {size(run.wire[0])} up and {size(run.wire[1])} down"
        for run in result.modes.values()
        if run.wire is not None
    ]
    if not said:
        return []
    return [f"All clients together, the engine counted on the network: {'; '.join(said)}."]


def _nothing(result: Result) -> list[str]:
    not_run = [f"Not run: {text.rstrip('.')}." for text in skips(result)]
    if not result.modes:
        baselines = result.baselines and not result.stopped
        said = "Only baselines were run." if baselines else "No mode has a result in this folder."
        return [said, *not_run]
    return ["No mode was evaluated, so nothing can be said about accuracy.", *not_run]


def _caution(result: Result) -> str:
    """Say what the words above hold for."""
    texts = f", {result.tested:,} {result.texts}" if result.tested else ""
    seed, many = result.job.get("seed"), len(result.seeds)
    lead = f"One seed{f' ({seed})' if seed is not None else ''}{texts}"
    over, more = "texts", " Another seed may order them otherwise."
    if many > 1:
        lead, over, more = f"{many} seeds{f'{texts} each' if texts else ''}", "seeds and texts", ""
    if result.summary is None:
        return f"{lead}: another seed gives other figures." if more else f"{lead}."
    better, worse = (words_of(result)[one].removesuffix(" than") for one in ("above", "below"))
    return (
        f"{lead}: what is called {better} or {worse} is so beyond chance over {over}, at "
        f"{percent(result.summary.level)} for the comparisons of a column together; level is what "
        f"cannot be told apart.{more}"
    )
