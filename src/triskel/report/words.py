"""The conclusions, computed from the numbers and no stronger than they are.

A difference counts only when it exceeds what two scores on n test examples may differ by chance:
1.96 sqrt(2 p (1 - p) / n), the 95 % interval for two independent samples.
"""

import math
from collections.abc import Sequence

from triskel.report.markup import shortened
from triskel.report.result import Baseline, ModeRun, Result, final
from triskel.report.units import joined, percent, perplexity, plural, score, size

NAMES = {
    "base": "base",
    "local": "each client alone",
    "central": "centralised",
    "params": "params",
    "logits": "logits",
    "split": "split",
}
GLOSS = {
    "params": "adapter parameters travel",
    "logits": "predictions on public texts travel",
    "split": "activations at the cut travel",
}
MANY = 6
"""More clients than this are counted, not named."""
CLEAR = 1.5
"""A ratio of bytes worth a word."""
TWENTY = 20
"""From so many clients on, a 95 % line is crossed by chance."""
ROUND = 9.5
"""From here on a ratio needs no decimals."""


def named(run: Baseline | ModeRun) -> str:
    """Return how a row is called."""
    if run.name == "base" and isinstance(run, Baseline) and run.what:
        return f"base ({run.what})"
    return NAMES[run.name]


def margin(share: float, examples: int) -> float:
    """Return by how much two shares measured on so many examples each may differ by chance.

    >>> round(margin(0.65, 600), 3)
    0.054
    """
    return 1.96 * math.sqrt(2 * share * (1 - share) / examples) if examples else 1.0


def per_client_bytes(run: ModeRun, direction: str) -> float | None:
    """Return the mean over clients of what crossed in one direction, all rounds together."""
    if run.each is None:
        return None
    return (run.each.up if direction == "up" else run.each.down).message_bytes


def ranked(result: Result) -> list[ModeRun]:
    """Return the modes that have a score, best first."""
    runs = list(result.modes.values())
    if result.causal:
        scored = [run for run in runs if run.final.perplexity is not None]
        return sorted(scored, key=lambda run: run.final.perplexity or 0.0)
    scored = [run for run in runs if run.final.accuracy is not None]
    return sorted(scored, key=lambda run: -(run.final.accuracy or 0.0))


def share(result: Result, run: Baseline | ModeRun) -> float | None:
    """Return which share of the centralised accuracy is reached, or of its gain for `causal`.

    For `causal` it is (base loss - loss) / (base loss - centralised loss).
    """
    central, base = result.baselines.get("central"), result.baselines.get("base")
    if central is None:
        return None
    if not result.causal:
        whole, part = central.score.accuracy, final(run).accuracy
        return part / whole if part is not None and whole else None
    if base is None or base.score.loss is None or central.score.loss is None:
        return None
    gap, loss = base.score.loss - central.score.loss, final(run).loss
    return (base.score.loss - loss) / gap if loss is not None and gap > 0 else None


def verdict(result: Result) -> list[str]:
    """Return what the run shows: the first sentence is the headline."""
    order = ranked(result)
    if not order:
        return [*_nothing(result), *_unfinished(result)]
    lines = [_headline(result, order[0])]
    lines += [_other(result, order[0], run) for run in order[1:]]
    lines += _below_base(result, order)
    lines += _who_should_join(result, order[0])
    lines += _unfinished(result)
    lines += _absent(result)
    lines += _wire(result)
    lines += _skipped(result)
    lines.append(_caution(result, order))
    return lines


def skips(result: Result) -> list[str]:
    """Return the modes that did not run, with the reason."""
    return [f"{NAMES.get(mode, mode)}: {why}" for mode, why in result.skipped.items()]


# --- Sentences --------------------------------------------------------------------------------


def _reached(result: Result, run: Baseline | ModeRun) -> str:
    if result.causal:
        return f"perplexity {perplexity(final(run).perplexity)}"
    return f"{score(final(run).accuracy)} accuracy"


def _cost(run: ModeRun) -> str:
    up, down = per_client_bytes(run, "up"), per_client_bytes(run, "down")
    if up is None or down is None:
        return "with traffic not measured"
    return f"for {size(up)} up and {size(down)} down per client"


def _of_central(result: Result, run: ModeRun) -> str:
    part = share(result, run)
    central = result.baselines.get("central")
    if part is None or central is None:
        return ""
    if result.causal:
        return f", {percent(part)} of what centralised training gains over the base"
    return f", {percent(part)} of the centralised {score(central.score.accuracy)}"


def _headline(result: Result, best: ModeRun) -> str:
    lead = "comes first" if len(result.modes) > 1 else "ends"
    text = f"{_title(best)} {lead} with {_reached(result, best)}{_of_central(result, best)}"
    return f"{text}, {_cost(best)}."


def _other(result: Result, best: ModeRun, run: ModeRun) -> str:
    text = f"{_title(run)} reaches {_reached(result, run)}{_of_central(result, run)}, {_cost(run)}"
    mine, theirs = _bytes(run), _bytes(best)
    if mine and theirs:
        ratio = theirs / mine
        if ratio >= CLEAR:
            text += f", {_times(ratio)} fewer bytes than {best.name}"
        elif ratio <= 1 / CLEAR:
            text += f", {_times(1 / ratio)} more bytes than {best.name}"
    if _even(result, best, run):
        text += f"; the distance to {best.name} may be chance"
    return f"{text}."


def _times(ratio: float) -> str:
    if ratio < ROUND:
        return f"{ratio:.1f} times"
    digits = 1 - math.floor(math.log10(ratio))  # two digits say enough
    return f"{round(ratio, min(digits, 0)):,.0f} times"


def _bytes(run: ModeRun) -> float | None:
    up, down = per_client_bytes(run, "up"), per_client_bytes(run, "down")
    return None if up is None or down is None else up + down


def _even(result: Result, best: ModeRun, run: ModeRun) -> bool:
    if result.causal or not result.tested:
        return False
    high, low = best.final.accuracy, run.final.accuracy
    return high is not None and low is not None and high - low < margin(high, result.tested)


def _below_base(result: Result, order: Sequence[ModeRun]) -> list[str]:
    base = result.baselines.get("base")
    if base is None:
        return []
    if result.causal:
        floor = base.score.perplexity
        under = [r for r in order if floor is not None and (r.final.perplexity or 0) >= floor]
        level = f"perplexity {perplexity(floor)}"
    else:
        floor = base.score.accuracy
        under = [r for r in order if floor is not None and (r.final.accuracy or 0) <= floor]
        level = f"accuracy {score(floor)}"
    if not under:
        return []
    names = joined([run.name for run in under])
    what = f" ({base.what})" if base.what else ""
    return [
        f"No better than the base{what}, {level}: {names}. Training this way did not help here."
    ]


def gains(result: Result, run: ModeRun) -> dict[str, tuple[float, float, int]]:
    """Return each client's own local accuracy, its accuracy in a mode, and its test examples."""
    local = result.baselines.get("local")
    if local is None:
        return {}
    found: dict[str, tuple[float, float, int]] = {}
    for client, after in run.per_client.items():
        alone = local.per_client[client].accuracy if client in local.per_client else None
        held = result.holdings.get(client)
        tested = after.examples or (held.test if held else 0)
        if alone is not None and after.accuracy is not None:
            found[client] = (alone, after.accuracy, tested)
    return found


def judged(result: Result, run: ModeRun) -> dict[str, list[str]]:
    """Return the clients that gain by joining a mode, those that lose, and those in between."""
    verdicts: dict[str, list[str]] = {"gain": [], "lose": [], "even": []}
    for client, (alone, joining, tested) in gains(result, run).items():
        # tokens of one text are not independent: for causal only the order is stated
        chance = 0.0 if result.causal else margin(max(alone, joining), tested)
        beyond = abs(joining - alone) > chance
        kind = "even" if not beyond else "gain" if joining > alone else "lose"
        verdicts[kind].append(client)
    return verdicts


def _who_should_join(result: Result, best: ModeRun) -> list[str]:
    verdicts = judged(result, best)
    total = sum(map(len, verdicts.values()))
    if not total:
        return []
    phrases = (
        ("gain", "better joined" if result.causal else "better joined, beyond chance"),
        ("lose", "better alone" if result.causal else "better alone, beyond chance"),
        ("even", "no difference" if result.causal else "no difference beyond chance"),
    )
    parts = [f"{text} for {_who(verdicts[k], total)}" for k, text in phrases if verdicts[k]]
    what = "token accuracy" if result.causal else "accuracy"
    text = f"Joining {best.name} against training alone, by {what} on the client's own test texts: "
    lines = [f"{text}{'; '.join(parts)}."]
    local = result.baselines["local"]
    if total >= TWENTY and not result.causal:
        by_chance = f"Of {total:,} clients about {total // 20:,} cross that line by chance alone."
        lines.append(by_chance)
    alone, elsewhere, after = local.score.accuracy, local.global_accuracy, best.final.accuracy
    if alone is not None and after is not None:
        lines.append(
            f"All test texts together: {score(alone)} alone, {score(after)} in {best.name}."
        )
    if elsewhere is not None:
        lines.append(f"On everybody's texts a client's own model scores {score(elsewhere)}.")
    return lines


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
            lines.append(f"{_title(run)} finished no round.")
        elif len(run.rounds) < run.planned:
            done = run.rounds[-1].number
            lines.append(
                f"{_title(run)} stopped after round {done} of {run.planned}; its numbers are "
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
                f"{_title(run)} did without {shortened(client)} in {which}; result.json says why."
            )
    return lines


def _wire(result: Result) -> list[str]:
    """Say what a network carried, where the engine counted it."""
    said = [
        f"{_title(run)} {size(run.wire[0])} up and {size(run.wire[1])} down"
        for run in result.modes.values()
        if run.wire is not None
    ]
    if not said:
        return []
    return [f"All clients together, the engine counted on the network: {'; '.join(said)}."]


def _skipped(result: Result) -> list[str]:
    return [f"Not run: {text.rstrip('.')}." for text in skips(result)]


def _nothing(result: Result) -> list[str]:
    if not result.modes:
        return ["No mode has a result in this folder.", *_skipped(result)]
    return ["No mode was evaluated, so nothing can be said about accuracy.", *_skipped(result)]


def _caution(result: Result, order: Sequence[ModeRun]) -> str:
    seed = result.job.get("seed")
    once = "One run" if seed is None else f"One run, seed {seed}"
    top = order[0].final.accuracy
    if result.causal or top is None or not result.tested:
        return f"{once}: repeat with other seeds before trusting small differences."
    return (
        f"{once}, {result.tested:,} test examples: differences below "
        f"{margin(top, result.tested):.2f} may be chance."
    )


def _title(run: ModeRun) -> str:
    return run.name.capitalize()
