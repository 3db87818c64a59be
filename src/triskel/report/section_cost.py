"""What it cost and what it took: the sections about cost, privacy, data and the job.

A section that has no numbers says so.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import tomli_w

from triskel.config.sections import is_name
from triskel.core import formats
from triskel.core.registry import MODES
from triskel.report.cells import rows
from triskel.report.codec_words import codecs
from triskel.report.data_split import shown_labels
from triskel.report.disclosure import guarded, left
from triskel.report.links import FORMULA, LINKS, wait_over
from triskel.report.markup import cell, figure, folded, scrolling, table, text
from triskel.report.reading import BASELINES
from triskel.report.result import Json, ModeRun, Result, inner
from triskel.report.sections import LIMIT, Drawn
from triskel.report.theme import tone


def costs(result: Result, drawn: Drawn) -> str:
    """Return compute, memory, and the time on stated links."""
    parts: list[str] = []
    for name, title, column in (
        ("compute", "Computation of one client, all rounds", "flops"),
        ("memory", "Peak memory of one client", "memory"),
    ):
        if name in drawn:
            shown = [
                f"{r.name} {r.cells[column].text}" for r in rows(result) if r.name in result.modes
            ]
            parts.append(figure(name, title, f"{title}: {', '.join(shown)}."))
    pair = f'<div class="pair">{"".join(parts)}</div>' if parts else ""
    return pair + _on_links(result, drawn)


def leaving(result: Result) -> str:
    """Return what left each client, what stayed, and what can still be learnt."""
    if not result.modes:
        return '<p class="note">Nothing left any client: no mode ran.</p>'
    parts = [_leaving_one(result, run) for run in result.modes.values()]
    return f'{"".join(parts)}<p class="note">{text(guarded(result.job))}</p>'


def data(result: Result, drawn: Drawn) -> str:
    """Return who holds which examples."""
    if not result.holdings:
        return '<p class="note">The result does not say who holds what.</p>'
    counts = shown_labels(result)
    order = sorted(result.holdings, key=lambda c: -result.holdings[c].train)
    names = list(result.holdings) if len(order) <= LIMIT else order[:LIMIT]
    columns = ["Client", "Training", "Test", "Words, mean"]
    cut = any(held.unread for held in result.holdings.values())
    columns += ["Tokens not read"] if cut else []
    columns += list(counts) if len(counts) > 1 else []
    body: list[list[str]] = []
    for client in names:
        held = result.holdings[client]
        words = formats.DASH if held.words is None else f"{held.words:.1f}"
        line = [client, f"{held.train:,}", f"{held.test:,}", words]
        line += [formats.percent(held.unread)] if cut else []
        body.append(line + ([f"{c[client]:,}" for c in counts.values()] if len(counts) > 1 else []))
    more = len(order) - len(names)
    note = f"The {LIMIT} largest; {more:,} more are in result.json. " if more else ""
    if result.public:
        note += f"Beside these, {result.public:,} public texts that everybody may see."
    if cut:
        longest = inner(result.job, "train").get("max_tokens")
        note += f" Of texts longer than train.max_tokens = {longest} the rest is not read."
    if len(result.seeds) > 1:
        note += f" Dealt so with seed {result.seeds[0]}; other seeds may deal otherwise."
    total = sum(held.train for held in result.holdings.values())
    alt = f"Training examples per client and label: {len(order)} clients, {total:,} examples."
    title = "Training examples by label" if len(counts) > 1 else "Training examples"
    drawing = figure("labels", title, alt) if "labels" in drawn else ""
    return (
        drawing
        + table("Examples of each client", columns, body)
        + f'<p class="note">{text(note)}</p>'
    )


def again(result: Result) -> str:
    """Return how to repeat the run, the job, and where it ran."""
    job = _without_none(result.job)
    seeds = list(result.asked.seeds if result.asked else result.seeds)
    if len(seeds) > 1:
        after = max(seeds) + 1
        same, other = _listed(seeds), _listed(range(after, after + len(seeds)))
    else:
        seed = int(job.get("seed", 0)) + 1 if isinstance(job.get("seed", 0), int) else 1
        same, other = "", f" --set seed={seed}"
    command = _command(result)
    steps = (
        f"# this run again\n{command}{same}\n\n"
        f"# the same question with other random choices\n{command}{other}"
    )
    env = [(str(k).replace("_", " "), _plain(k, v)) for k, v in result.environment.items()]
    where = table("Where it ran", ("What", "Value"), env).replace(
        "<table>", '<table class="environment">'
    )
    return (
        "<p>Save the job below as <code>job.toml</code>. On the same machine the same job gives "
        "the same scores (on a GPU up to rounding), bytes and FLOPs; times differ.</p>"
        f"<pre>{text(steps)}</pre>"
        f"{folded('The job', f'<pre>{text(tomli_w.dumps(job))}</pre>', 'job')}"
        f"{folded('Where it ran', where if env else '<p>Not recorded.</p>')}"
    )


def _command(result: Result) -> str:
    """Return the command that asks for the same modes and baselines."""
    asked, data_ = result.asked, inner(result.job, "data")
    if data_.get("source") == "clients" and is_name(str(data_.get("train", ""))):
        modes = asked.modes if asked else result.modes
        return " ".join(["triskel federation submit FOLDER job.toml", *_each("--mode", modes)])
    if asked is None:
        several = len(result.modes) + len(result.skipped) > 1 or bool(result.baselines)
        several |= len(result.seeds) > 1
        return f"triskel {'compare' if several else 'run'} job.toml"
    beside = ",".join(asked.baselines) or "none"
    if asked.strict and len(asked.modes) == 1:
        words = ["triskel run job.toml", *_each("--mode", asked.modes)]
        return " ".join(words + ([f"--baselines {beside}"] if asked.baselines else []))
    words = ["triskel compare job.toml"]
    words += [f"--modes {','.join(asked.modes) or 'none'}"] if asked.modes != MODES.ours else []
    words += [f"--baselines {beside}"] if asked.baselines != BASELINES else []
    return " ".join(words + ([f"--drop-outs {asked.drop_share:g}"] if asked.drop_share else []))


def _listed(seeds: Iterable[int]) -> str:
    return f" --seeds {','.join(map(str, seeds))}"


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [f"{option} {value}" for value in values]


# --- Parts ------------------------------------------------------------------------------------


def _on_links(result: Result, drawn: Drawn) -> str:
    if "links" not in drawn:
        return '<p class="note">Time on links needs compute time and bytes of every client.</p>'
    columns = ("Link", *result.modes)
    body: list[list[str]] = []
    partial = False
    for link in LINKS:
        waits = [wait_over(result, name, link) for name in result.modes]
        partial |= any(w is not None and w.delay is None for w in waits)
        times = [formats.duration(w.total if w else None) for w in waits]
        body.append([f"{link.name}: {link.terms}", *times])
    note = f"{FORMULA}. Stated links, measured bytes; a real network adds its own."
    if len(result.seeds) > 1:
        note += f" Means over {len(result.seeds)} seeds."
    if partial:
        note += " Messages were not counted, so delays are left out."
    alt = "; ".join(
        f"{line[0]}: {', '.join(f'{m} {t}' for m, t in zip(result.modes, line[1:], strict=True))}"
        for line in body
    )
    place = figure("links", "Time of all rounds on three links", f"Time on links. {alt}.", note)
    return place + table("Time of all rounds on three links", columns, body)


def _leaving_one(result: Result, run: ModeRun) -> str:
    job = result.job
    lines = "".join(
        f'<tr><th scope="row">{text(one.name)}</th><td class="words">{text(one.up_words)}</td>'
        f"{cell(formats.size(one.up), formats.exact(one.up))}"
        f'<td class="words">{text(one.down_words)}</td>'
        f"{cell(formats.size(one.down), formats.exact(one.down))}</tr>"
        if one.up or one.down or one.up is None
        else ""
        for one in left(run)
    )
    name = f"What crossed in {run.name}, per client"
    head = "".join(
        f'<th scope="col"{kind}>{column}</th>'
        for column, kind in (
            ("Section", ""),
            ("Leaves the client", ' class="words"'),
            ("Up", ""),
            ("Comes back", ' class="words"'),
            ("Down", ""),
        )
    )
    whole = scrolling(
        name,
        f'<table><caption class="unseen">{text(name)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table>",
    )
    told = codecs(job)
    note = f"Mean per client, all rounds, as 4-byte numbers before the codec ({told})."
    return (
        f'<div class="crossed" {tone(run.about)}><h3><span class="swatch"></span>{run.name}</h3>'
        f"{whole if lines else '<p>No traffic was recorded.</p>'}"
        '<div class="stays"><p><strong>Stays with the client:</strong> '
        f"{text(run.about.stays)}.</p>"
        f"<p><strong>What can still be learnt:</strong> {text(run.about.risk)}</p>"
        f"<p><small>{text(note)}</small></p></div></div>"
    )


def _plain(key: object, value: object) -> str:
    if str(key).endswith("_bytes") and isinstance(value, int | float):
        return formats.size(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _without_none(raw: Json) -> dict[str, Any]:
    kept_: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, Mapping):
            kept_[key] = _without_none(cast("Json", value))
        elif value is not None:
            kept_[key] = value
    return kept_
