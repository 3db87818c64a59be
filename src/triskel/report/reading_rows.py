"""The rows of `result.json`, typed: scores of both columns, and what was spent on them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from triskel.core.mode_spec import COLOUR, MARKERS
from triskel.report.result import (
    About,
    Baseline,
    Cost,
    Holding,
    Json,
    ModeRun,
    Round,
    Score,
    Traffic,
    inner,
    items,
    number,
)

DIGITS = 12
"""Of a digest that are shown."""
LARGEST_LOG = 80.0
"""A loss above has no perplexity worth a number."""


def whole_number(raw: Json, key: str) -> int | None:
    """Return a number without its fraction, or None."""
    value = number(raw, key)
    return None if value is None else int(value)


def read_holding(raw: Json) -> Holding:
    """Return what a client holds."""
    labels = inner(raw, "labels")
    return Holding(
        train=whole_number(raw, "train") or 0,
        test=whole_number(raw, "test") or 0,
        labels={str(label): whole_number(labels, label) or 0 for label in labels},
        words=number(raw, "words"),
        unread=_unread(inner(raw, "lost")),
    )


def _unread(lost: Json) -> float | None:
    tokens, of = whole_number(lost, "tokens"), whole_number(lost, "of")
    return tokens / of if tokens is not None and of else None


def _score(raw: Json) -> Score:
    accuracy, loss = number(raw, "accuracy"), number(raw, "loss")
    return Score(
        accuracy=number(raw, "token_accuracy") if accuracy is None else accuracy,
        macro_f1=number(raw, "macro_f1"),
        loss=loss,
        perplexity=number(raw, "perplexity"),
        examples=whole_number(raw, "examples"),
    )


def _scores(raw: Json) -> dict[str, Score]:
    return {str(c): _score(inner(raw, c)) for c in raw}


def _pooled(each: Mapping[str, Score], *, causal: bool) -> Score | None:
    """Return clients' scores as one, over all their texts; None where texts were not counted."""
    counts = {client: one.examples for client, one in each.items() if one.examples}
    total = sum(counts.values())
    if not total:
        return None

    def mean(key: str) -> float | None:
        values = [(getattr(each[client], key), many) for client, many in counts.items()]
        known = [(value, many) for value, many in values if value is not None]
        return sum(v * n for v, n in known) / total if len(known) == len(values) else None

    loss = mean("loss")
    perplexity = math.exp(loss) if causal and loss is not None and loss < LARGEST_LOG else None
    return Score(accuracy=mean("accuracy"), loss=loss, perplexity=perplexity, examples=total)


def read_baseline(name: str, raw: Json) -> Baseline:
    """Return a baseline."""
    stated, each = _score(raw), _scores(inner(raw, "per_client"))
    alone = name.startswith("local")
    elsewhere = Score(accuracy=number(raw, "global_accuracy")) if alone else stated
    flops = number(raw, "client_flops")
    return Baseline(
        name=name,
        everybody=_score(inner(raw, "everybody")) if "everybody" in raw else elsewhere,
        own=_score(inner(raw, "own")) if "own" in raw else stated,
        what=str(raw.get("what") or raw.get("mode") or ""),
        per_client=each,
        seconds=_first(number(raw, "seconds"), number(inner(raw, "totals"), "seconds")),
        flops=flops / len(each) if flops is not None and each else None,
        kept=whole_number(raw, "kept"),
        start=_start(raw),
    )


def _traffic(raw: Json) -> Traffic:
    sections = inner(raw, "sections")
    return Traffic(
        payload_bytes=number(raw, "payload_bytes"),
        message_bytes=number(raw, "message_bytes"),
        messages=number(raw, "messages"),
        sections={str(s): number(inner(sections, s), "payload_bytes") or 0.0 for s in sections},
    )


def _cost(raw: Json) -> Cost:
    return Cost(
        up=_traffic(inner(raw, "up")),
        down=_traffic(inner(raw, "down")),
        flops=number(raw, "flops"),
        peak_bytes=number(raw, "peak_client_bytes"),
        compute_s=number(raw, "compute_s"),
    )


def _round(raw: Json, place: int) -> Round:
    together, clients = inner(raw, "sum"), inner(raw, "slowest" if "sum" in raw else "clients")
    costs = {str(c): _cost(inner(clients, c)) for c in clients}
    whole, many = _sum(costs.values()), len(costs)
    if together:
        whole, many = _cost(together), whole_number(together, "clients") or 0
    return Round(
        number=whole_number(raw, "round") or place,
        score=_score(inner(raw, "everybody") or raw),
        per_client=_scores(inner(raw, "per_client")),
        costs=costs,
        total=whole,
        each=_mean(whole, many),
        seconds=number(raw, "seconds"),
        absent={client: str(why) for client, why in inner(raw, "absent").items()},
    )


def read_about(raw: Json) -> About:
    """Return what a mode is; what cannot be shown is left out, whoever wrote it."""
    colour, marker, plain = raw.get("colour"), raw.get("marker"), About()
    words = {
        str(name): (str(both[0]), str(both[1]))
        for name, both in inner(raw, "sections").items()
        if len(items(both)) == 2  # noqa: PLR2004 - up and down
    }
    return About(
        gloss=str(raw.get("gloss", "")),
        colour=colour if isinstance(colour, str) and COLOUR.fullmatch(colour) else plain.colour,
        marker=marker if marker in MARKERS else plain.marker,
        common=raw.get("common") is not False,
        personal=raw.get("personal") is True,
        sections=words,
        stays=str(raw.get("stays") or plain.stays),
        risk=str(raw.get("risk") or plain.risk),
    )


def read_mode(name: str, raw: Json, planned: int, about: About) -> ModeRun:
    """Return a mode."""
    common = about.common
    read_rounds = [_round(one, i) for i, one in enumerate(items(raw.get("rounds")), 1)]
    # a resumed run may hold a round twice: the later one counts
    rounds = tuple(
        sorted({one.number: one for one in read_rounds}.values(), key=lambda r: r.number)
    )
    totals = inner(raw, "totals")
    whole, members = _spent(items(raw.get("rounds")), rounds)
    seconds = [one.seconds for one in rounds if one.seconds is not None]
    everybody, own = _ended(about, inner(raw, "final"), rounds)
    kept = whole_number(raw, "kept")
    if not common:  # what a round scored are clients' own models on their own texts
        ends = next((one for one in rounds if one.number == kept), rounds[-1] if rounds else None)
        rounds = tuple(replace(one, score=everybody if one is ends else Score()) for one in rounds)
    return ModeRun(
        name=name,
        rounds=rounds,
        planned=planned or len(rounds),
        everybody=everybody,
        own=own,
        each=_mean(whole, members),
        members=members or None,
        total=_stated(totals, whole or _cost({})),
        seconds=_first(number(totals, "seconds"), sum(seconds) if seconds else None),
        server_flops=number(totals, "server_flops"),
        wire=_both_ways(totals, "wire_bytes"),
        scoring=_both_ways(inner(totals, "scoring"), "message_bytes"),
        about=about,
        kept=kept,
        start=_start(raw),
    )


def _start(raw: Json) -> str:
    """Return what a stage started from, by name and the first digits of its digest."""
    told = inner(raw, "start")
    return f"{told.get('name')} (SHA-256 {str(told.get('sha256'))[:DIGITS]})" if told else ""


def _ended(about: About, final: Json, rounds: Sequence[Round]) -> tuple[Score, Score]:
    """Return both columns of a mode; for early results, what follows from the one they have.

    Where all clients use one model, pooled over own texts and over everybody's is the same.
    """
    stated = _score(final)
    if stated == Score() and rounds:
        stated = rounds[-1].score
    everybody = _score(inner(final, "everybody")) if "everybody" in final else stated
    if "own" in final:
        return everybody, _score(inner(final, "own"))
    common = about.common
    if not about.personal:
        return everybody, stated
    own = _pooled(rounds[-1].per_client, causal=stated.perplexity is not None) if rounds else None
    return (everybody if common else Score()), own or (Score() if common else stated)


def _both_ways(sums: Json, key: str) -> tuple[float, float] | None:
    up, down = (number(inner(sums, way), key) for way in ("up", "down"))
    return None if up is None or down is None else (up, down)


def _spent(raw: Sequence[Json], rounds: Sequence[Round]) -> tuple[Cost | None, int]:
    """Return what all clients spent in all rounds, and how many clients took part."""
    counted = {
        whole_number(one, "round") or place: inner(one, "sum") for place, one in enumerate(raw, 1)
    }
    if any(counted.values()):
        whole = _sum(_cost(counted[one.number]) for one in rounds)
        return whole, max(whole_number(one, "seen") or 0 for one in counted.values())
    whole = _sum(cost for one in rounds for cost in one.costs.values())
    return whole, len({client for one in rounds for client in one.costs})


def _sum(costs: Iterable[Cost]) -> Cost | None:
    whole: Cost | None = None
    for cost in costs:
        whole = cost if whole is None else _plus(whole, cost)
    return whole


def _mean(whole: Cost | None, many: int) -> Cost | None:
    """Return one of `many` equal parts; memory is the largest of any, and stays."""
    if whole is None or not many:
        return None

    def part(value: float | None) -> float | None:
        return None if value is None else value / many

    def way(traffic: Traffic) -> Traffic:
        return Traffic(
            payload_bytes=part(traffic.payload_bytes),
            message_bytes=part(traffic.message_bytes),
            messages=part(traffic.messages),
            sections={name: size / many for name, size in traffic.sections.items()},
        )

    return Cost(
        up=way(whole.up),
        down=way(whole.down),
        flops=part(whole.flops),
        peak_bytes=whole.peak_bytes,
        compute_s=part(whole.compute_s),
    )


def _stated(totals: Json, counted: Cost) -> Cost:
    up, down = _traffic(inner(totals, "up")), _traffic(inner(totals, "down"))
    return Cost(
        up=_over(up, counted.up),
        down=_over(down, counted.down),
        flops=_first(number(totals, "client_flops"), counted.flops),
        peak_bytes=_first(number(totals, "peak_client_bytes"), counted.peak_bytes),
        compute_s=counted.compute_s,
    )


def _over(stated: Traffic, counted: Traffic) -> Traffic:
    return Traffic(
        payload_bytes=_first(stated.payload_bytes, counted.payload_bytes),
        message_bytes=_first(stated.message_bytes, counted.message_bytes),
        messages=_first(stated.messages, counted.messages),
        sections=counted.sections,
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _add(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def _plus(left: Cost, right: Cost) -> Cost:
    peaks = [peak for peak in (left.peak_bytes, right.peak_bytes) if peak is not None]
    return Cost(
        up=_both(left.up, right.up),
        down=_both(left.down, right.down),
        flops=_add(left.flops, right.flops),
        peak_bytes=max(peaks) if peaks else None,
        compute_s=_add(left.compute_s, right.compute_s),
    )


def _both(left: Traffic, right: Traffic) -> Traffic:
    names = dict.fromkeys([*left.sections, *right.sections])
    return Traffic(
        payload_bytes=_add(left.payload_bytes, right.payload_bytes),
        message_bytes=_add(left.message_bytes, right.message_bytes),
        messages=_add(left.messages, right.messages),
        sections={n: left.sections.get(n, 0.0) + right.sections.get(n, 0.0) for n in names},
    )
