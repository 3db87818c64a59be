"""`result.json`, read once and typed.

A run may be interrupted, a mode skipped, a baseline left out. Reading never invents a number and
never fails over a missing one; it refuses only what is not a result at all.
"""

from collections.abc import Iterable, Sequence

from triskel.errors import CheckpointError
from triskel.report.result import (
    Asked,
    Baseline,
    Cost,
    Holding,
    Json,
    ModeRun,
    Result,
    Round,
    Score,
    Traffic,
    inner,
    items,
    number,
)

SCHEMA = 1
MODES = ("params", "logits", "split")
BASELINES = ("base", "local", "central")


def read(raw: Json) -> Result:
    """Read a result.

    Raises:
        CheckpointError: This is not a result of a schema that this version can read.
    """
    schema = raw.get("schema")
    if schema != SCHEMA:
        raise CheckpointError(
            f"result.json has schema {schema!r}, this version of triskel reads {SCHEMA}; "
            "write the report with the version that made the run"
        )
    job, data = inner(raw, "job"), inner(raw, "data")
    planned = int(number(job, "rounds") or 0)
    modes = inner(raw, "modes")
    baselines = inner(raw, "baselines")
    stopped = raw.get("interrupted")
    return Result(
        version=str(raw.get("triskel", "")),
        job=job,
        environment=inner(raw, "environment"),
        classes=tuple(str(c) for c in items(data.get("classes"))),
        public=_whole(data, "public"),
        holdings={c: _holding(inner(inner(data, "clients"), c)) for c in inner(data, "clients")},
        baselines={n: _baseline(n, inner(baselines, n)) for n in BASELINES if n in baselines},
        skipped={str(n): str(why) for n, why in inner(raw, "skipped").items()},
        modes={n: _mode(n, inner(modes, n), planned) for n in MODES if n in modes},
        stopped=stopped if isinstance(stopped, str) else "interrupted" if stopped else "",
        asked=_asked(inner(raw, "request")),
    )


def _asked(raw: Json) -> Asked | None:
    modes = tuple(name for name in items(raw.get("modes")) if name in MODES)
    baselines = tuple(name for name in items(raw.get("baselines")) if name in BASELINES)
    if not modes:
        return None
    return Asked(modes=modes, baselines=baselines, strict=raw.get("strict") is True)


def _whole(raw: Json, key: str) -> int | None:
    value = number(raw, key)
    return None if value is None else int(value)


def _holding(raw: Json) -> Holding:
    labels = inner(raw, "labels")
    return Holding(
        train=_whole(raw, "train") or 0,
        test=_whole(raw, "test") or 0,
        labels={str(label): _whole(labels, label) or 0 for label in labels},
        words=number(raw, "words"),
    )


def _score(raw: Json) -> Score:
    accuracy, loss = number(raw, "accuracy"), number(raw, "loss")
    return Score(
        accuracy=number(raw, "token_accuracy") if accuracy is None else accuracy,
        macro_f1=number(raw, "macro_f1"),
        loss=loss,
        perplexity=number(raw, "perplexity"),
        examples=_whole(raw, "examples"),
    )


def _scores(raw: Json) -> dict[str, Score]:
    return {str(c): _score(inner(raw, c)) for c in raw}


def _baseline(name: str, raw: Json) -> Baseline:
    return Baseline(
        name=name,
        score=_score(raw),
        what=str(raw.get("what", "")),
        global_accuracy=number(raw, "global_accuracy"),
        per_client=_scores(inner(raw, "per_client")),
        seconds=_first(number(raw, "seconds"), number(inner(raw, "totals"), "seconds")),
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
        whole, many = _cost(together), _whole(together, "clients") or 0
    return Round(
        number=_whole(raw, "round") or place,
        score=_score(raw),
        per_client=_scores(inner(raw, "per_client")),
        costs=costs,
        each=_mean(whole, many),
        seconds=number(raw, "seconds"),
        absent={client: str(why) for client, why in inner(raw, "absent").items()},
    )


def _mode(name: str, raw: Json, planned: int) -> ModeRun:
    read_rounds = [_round(one, i) for i, one in enumerate(items(raw.get("rounds")), 1)]
    # a resumed run may hold a round twice: the later one counts
    rounds = tuple(
        sorted({one.number: one for one in read_rounds}.values(), key=lambda r: r.number)
    )
    totals = inner(raw, "totals")
    whole, members = _spent(items(raw.get("rounds")), rounds)
    closing = _score(inner(raw, "final"))
    seconds = [one.seconds for one in rounds if one.seconds is not None]
    return ModeRun(
        name=name,
        rounds=rounds,
        planned=planned or len(rounds),
        final=rounds[-1].score if closing == Score() and rounds else closing,
        each=_mean(whole, members),
        members=members or None,
        total=_stated(totals, whole or _cost({})),
        seconds=_first(number(totals, "seconds"), sum(seconds) if seconds else None),
        wire=_both_ways(totals, "wire_bytes"),
        scoring=_both_ways(inner(totals, "scoring"), "message_bytes"),
    )


def _both_ways(sums: Json, key: str) -> tuple[float, float] | None:
    up, down = (number(inner(sums, way), key) for way in ("up", "down"))
    return None if up is None or down is None else (up, down)


def _spent(raw: Sequence[Json], rounds: Sequence[Round]) -> tuple[Cost | None, int]:
    """Return what all clients spent in all rounds, and how many clients took part."""
    counted = {_whole(one, "round") or place: inner(one, "sum") for place, one in enumerate(raw, 1)}
    if any(counted.values()):
        whole = _sum(_cost(counted[one.number]) for one in rounds)
        return whole, max(_whole(one, "seen") or 0 for one in counted.values())
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
