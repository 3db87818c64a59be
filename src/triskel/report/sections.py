"""What came out: the sections of the page about accuracy, from the result to HTML.

A section that has no numbers says so.
"""

from collections.abc import Mapping

from triskel.report import units
from triskel.report.figures import BARS, DOTS, ENDS
from triskel.report.markup import Figure, bound, cell, figure, scrolling, table, text
from triskel.report.result import ModeRun, Result, Score, final
from triskel.report.tables import Row, headings, rows
from triskel.report.words import GLOSS, NAMES, gains, judged, named, ranked, verdict

LIMIT = 20
"""Up to how many clients a table names them one by one."""

READING = (
    "Up and down are what one client sent and received on average, all rounds together, as packed "
    "messages; hover for exact numbers. Peak memory is the largest of any client. Time is that "
    "of the rounds as they ran: in one process with all clients in it, or between machines."
)

Drawn = Mapping[str, Figure]


def found(result: Result) -> str:
    """Return the verdict and one card per mode."""
    first, *rest = verdict(result)
    points = "".join(f"<li>{bound(line)}</li>" for line in rest)
    by_name = {row.name: row for row in rows(result)}
    cards = [_card(result, by_name[name]) for name in result.modes]
    cards += [
        f'<div class="card off {text(name)}"><h3>{text(name)}</h3><p>Not run: {text(why)}</p></div>'
        for name, why in result.skipped.items()
    ]
    return (
        f'<p class="lead">{bound(first)}</p><ul class="rest">{points}</ul>'
        f'<div class="cards">{"".join(cards)}</div>'
    )


def measured(result: Result) -> str:
    """Return the table of the three metrics."""
    body: list[str] = []
    seen = ""
    for row in rows(result):
        kind = f"mode {row.name}" if row.name in result.modes else "floor"
        first = " first" if kind != "floor" and seen == "floor" else ""
        seen = "mode" if row.name in result.modes else "floor"
        cells = "".join(cell(one.text, one.exact) for one in row.cells)
        body.append(f'<tr class="{kind}{first}"><th scope="row">{text(row.title)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in headings(result))
    name = "Accuracy, communication and computation of every baseline and mode"
    whole = scrolling(
        name,
        f'<table><caption class="unseen">{name}</caption><thead><tr><th scope="col">Run</th>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>",
    )
    return f'{whole}<p class="note">{text(_reading(result))}</p>'


def training(result: Result, drawn: Drawn) -> str:
    """Return the score against rounds and against bytes."""
    what = "perplexity" if result.causal else "accuracy"
    curve = [
        (run.name, str(one.number), *_marks(result, one.score))
        for run in result.modes.values()
        for one in run.rounds
    ]
    columns = ("Mode", "Round", "Perplexity" if result.causal else "Accuracy", "Loss")
    numbers = table(f"Score after each round: {what} and loss", columns, curve)
    places = [
        ("by-round", f"{what.capitalize()} after each round", _ends(result)),
        ("by-bytes", f"{what.capitalize()} against bytes sent and received", _ends(result)),
    ]
    parts = [figure(n, t, alt, numbers=numbers) for n, t, alt in places if n in drawn]
    if not parts:
        return '<p class="note">No round was evaluated.</p>'
    return f'{_keys(result)}<div class="pair">{"".join(parts)}</div>'


def clients(result: Result, drawn: Drawn) -> str:
    """Return each client's accuracy, alone and in each mode."""
    if "per-client" not in drawn:
        return '<p class="note">No accuracy per client was measured.</p>'
    order = ranked(result)
    best = order[0] if order else None
    verdicts = judged(result, best) if best else {}
    even = "the same" if result.causal else "within chance"
    words = {"gain": "gains", "lose": "loses", "even": even}
    said = {c: words[kind] for kind, names in verdicts.items() for c in names}
    names, hidden = _worth_naming(result, best)
    local = result.baselines.get("local")
    columns = ["Client", "Test texts", *([NAMES["local"]] if local else []), *result.modes]
    columns += [f"Joining {best.name}"] if said and best else []
    body: list[list[str]] = []
    for client in names:
        held = result.holdings.get(client)
        line = [client, f"{held.test:,}" if held else units.DASH]
        for run in ([local] if local else []) + list(result.modes.values()):
            one = run.per_client.get(client)
            line.append(units.score(one.accuracy if one else None))
        body.append(line + ([said.get(client, units.DASH)] if said else []))
    rest = "" if not hidden else f'<p class="note">{hidden}</p>'
    spread = (
        "" if len(result.clients) <= BARS else " Every dot is a client; the box is the middle half."
    )
    if len(result.clients) > DOTS:
        spread = (
            " The box is the middle half of the clients, and 5 % lie beyond each whisker; the dots "
            f"are the {ENDS} best and the {ENDS} worst."
        )
    note = f"Each client's own test texts.{spread}"
    if "logits" in result.modes:
        note += " In logits every client keeps a model of its own, and that model is scored."
    alt = f"Accuracy per client, alone and in each mode. {' '.join(verdict(result)[:1])}"
    whole = table("Accuracy of each client", columns, body)
    return figure("per-client", "Accuracy per client", alt, note) + whole + rest


# --- Parts ------------------------------------------------------------------------------------


def _card(result: Result, row: Row) -> str:
    run = result.modes[row.name]
    names = headings(result)
    part = row.cells[2].text
    beside = f" {names[0].lower()}"
    if part != units.DASH:
        beside += f" · {part} {names[2].lower()}"
    shown = [(names[i], row.cells[i]) for i in (3, 4, 6, 7)]
    facts = "".join(
        f'<dt>{text(name)}</dt><dd title="{text(one.exact)}">{text(one.text)}</dd>'
        for name, one in shown
    )
    short = len(run.rounds) < run.planned
    state = f" · {len(run.rounds)} of {units.plural(run.planned, 'round')}" if short else ""
    return (
        f'<div class="card {row.name}"><h3>{row.name}</h3>'
        f'<p class="gloss">{text(GLOSS[row.name] + state)}</p>'
        f'<div class="big">{text(row.cells[0].text)}<span>{text(beside)}</span></div>'
        f"<dl>{facts}</dl></div>"
    )


def _reading(result: Result) -> str:
    notes = [READING]
    if "central" in result.baselines:
        notes.append("Centralised means all texts in one place, which is what a federation avoids.")
    if "local" in result.baselines:
        notes.append("Each client alone is scored on its own test texts.")
    return " ".join(notes)


def _keys(result: Result) -> str:
    """Return the key to both curves, with the score that each line ends at."""
    items = "".join(
        f'<li class="{run.name}"><span class="line"></span>{text(named(run))} '
        f"{_marks(result, final(run))[0]}</li>"
        for run in result.scored
    )
    return f'<ul class="keys">{items}</ul>'


def _marks(result: Result, got: Score) -> tuple[str, str]:
    mark = units.perplexity(got.perplexity) if result.causal else units.score(got.accuracy)
    return mark, units.score(got.loss)


def _ends(result: Result) -> str:
    ends = [
        f"{run.name} {_marks(result, run.rounds[0].score)[0]} to {_marks(result, run.final)[0]}"
        for run in result.modes.values()
        if run.rounds
    ]
    return f"First to last round: {'; '.join(ends)}."


def _worth_naming(result: Result, best: ModeRun | None) -> tuple[list[str], str]:
    names = list(result.clients)
    if len(names) <= LIMIT:
        return names, ""
    change = (
        {c: after - alone for c, (alone, after, _) in gains(result, best).items()} if best else {}
    )
    half = LIMIT // 2
    if len(change) <= LIMIT:
        return names[:LIMIT], f"The first {LIMIT} of {len(names)} clients; all are in result.json."
    order = sorted(change, key=lambda c: -change[c])
    return [*order[:half], *order[-half:]], (
        f"The {half} clients that gain most and the {half} that gain least, of {len(names):,}; "
        "all are in result.json."
    )
