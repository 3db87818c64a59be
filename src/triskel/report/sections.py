"""What came out: the sections of the page about accuracy, from the result to HTML.

A section that has no numbers says so.
"""

from collections.abc import Mapping

from triskel.core import formats
from triskel.report.cells import NOTHING, Column, Row, columns, notes, rows
from triskel.report.client_figure import BARS, DOTS, ENDS
from triskel.report.conclusions import verdict
from triskel.report.evidence import ranked
from triskel.report.markup import Figure, bound, cell, figure, folded, scrolling, table, text
from triskel.report.names import COLUMNS, NAMES, figure_of, named, quality, written
from triskel.report.result import Baseline, ModeRun, Result, Score, Span, mark
from triskel.report.theme import tone

LIMIT = 20
"""Up to how many clients a table names them one by one."""

SCORES = (
    "Everybody's texts: the common model on the {texts} of all clients; where clients have only "
    "models of their own, the mean over these. Own texts: each client's own model where it has "
    "one, else the common one, on the {texts} of that client; pooled over texts. Hover for "
    "intervals and exact numbers."
)
COSTS = (
    "Up and down are what one client sent and received on average, all rounds together, as packed "
    "messages. The server's work is all rounds together. Peak memory is the largest of any client. "
    "Time is that of the rounds as they ran: in one process with all clients in it, or between "
    "machines."
)

SIGNS: Mapping[str, str] = {"gain": " ▲", "lose": " ▼"}
Drawn = Mapping[str, Figure]


def found(result: Result) -> str:
    """Return the verdict and one card per mode."""
    first, *rest = verdict(result)
    points = "".join(f"<li>{bound(line)}</li>" for line in rest)
    by_name = {row.name: row for row in rows(result)}
    cards = [_card(result, by_name[name]) for name in result.modes]
    cards += [
        f'<div class="card off" {tone(result.about[name])}><h3>{text(name)}</h3>'
        f"<p>Not run: {text(why)}</p></div>"
        for name, why in result.skipped.items()
        if name not in NAMES
    ]
    return (
        f'<p class="lead">{bound(first)}</p><ul class="rest">{points}</ul>'
        f'<div class="cards">{"".join(cards)}</div>'
    )


def measured(result: Result) -> str:
    """Return the tables of scores and of costs, and each seed by itself."""
    every, body = columns(result), rows(result)
    scores = [one for one in every if one.part == "scores"]
    costs = [one for one in every if one.part == "costs"]
    said = " ".join([SCORES.format(texts=result.texts), *(f"{note}" for note in notes(result))])
    central = "central" in result.baselines
    place = " Centralised means all texts in one place, which is what a federation avoids."
    return (
        f"<h3>{quality(result).capitalize()}</h3>"
        f"{_metrics(f'{quality(result).capitalize()} of every row', scores, body, result)}"
        f'<p class="note">{bound(said)}{place if central else ""}</p>{_by_seed(result)}'
        "<h3>Communication and computation</h3>"
        f"{_metrics('Costs of every row', costs, body, result)}"
        f'<p class="note">{text(COSTS)}</p>'
    )


def training(result: Result, drawn: Drawn) -> str:
    """Return the score against rounds and against bytes."""
    what = quality(result)
    curve = [
        (
            run.name,
            str(one.number),
            written(result, mark(result, one.score)),
            *([_ends_of(result, one.band)] if result.seeds else []),
            formats.score(one.score.loss),
        )
        for run in result.modes.values()
        for one in run.rounds
    ]
    band = ("Interval over seeds",) if result.seeds else ()
    names = ("Mode", "Round", what.capitalize(), *band, "Loss")
    numbers = table(f"Score after each round: {what} and loss", names, curve)
    over = ""
    if len(result.seeds) > 1:
        many = len(result.seeds)
        over = f"Mean over {many} seeds; the band and the bars are its 95 % interval over seeds."
    places = [
        ("by-round", f"{what.capitalize()} after each round", _course(result)),
        ("by-bytes", f"{what.capitalize()} against bytes sent and received", _course(result)),
    ]
    parts = [figure(n, t, alt, over, numbers=numbers) for n, t, alt in places if n in drawn]
    if not parts:
        return '<p class="note">No round was evaluated.</p>'
    which = "The common model on everybody's texts, as in the first column above."
    return (
        f'<p class="note">{text(which)}</p>{_keys(result)}<div class="pair">{"".join(parts)}</div>'
    )


def clients(result: Result, drawn: Drawn) -> str:
    """Return each client's figure on its own texts, alone and in each mode."""
    if "per-client" not in drawn:
        return f'<p class="note">No {quality(result)} per client was measured.</p>'
    told = result.summary.clients if result.summary else {}
    names, hidden = _worth_naming(result)
    local = result.baselines.get("local")
    head = [
        "Client",
        result.texts.capitalize(),
        *([NAMES["local"]] if local else []),
        *result.modes,
    ]
    body: list[list[str]] = []
    for client in names:
        held = result.holdings.get(client)
        line = [client, f"{held.test:,}" if held else formats.DASH]
        for run in ([local] if local else []) + list(result.modes.values()):
            one = run.per_client.get(client)
            verdict_, _ = told.get(run.name, {}).get(client, ("even", 0.0))
            line.append(
                written(result, mark(result, one) if one else None) + SIGNS.get(verdict_, "")
            )
        body.append(line)
    note = f"Each client's own {result.texts}.{_spread_note(len(result.clients))}"
    for run in result.modes.values():
        if run.about.personal:
            note += (
                f" In {run.name} every client keeps a model of its own, and that model is scored."
            )
    kind = quality(result).capitalize()
    alt = f"{kind} per client, alone and in each mode. {' '.join(verdict(result)[:1])}"
    whole = table(f"{kind} of each client on its own texts", head, body)
    below = [hidden] if hidden else []
    if any(told.values()):
        figure_ = "loss" if result.by_loss else "accuracy"
        below.append(
            f"▲ better, ▼ worse than trained alone, by {figure_}, beyond chance after correction "
            "for the number of clients."
        )
    rest = f'<p class="note">{text(" ".join(below))}</p>' if below else ""
    return figure("per-client", f"{kind} per client", alt, note) + whole + rest


# --- Parts ------------------------------------------------------------------------------------


def _metrics(caption: str, kept: list[Column], body: list[Row], result: Result) -> str:
    lines: list[str] = []
    seen = ""
    for row in body:
        mode = result.modes.get(row.name)
        kind = "mode" if mode else "floor"
        first = " first" if mode and seen == "floor" else ""
        tinted = f" {tone(mode.about)}" if mode else ""
        seen = "mode" if row.name in result.modes else "floor"
        shown = [row.cells[one.key] for one in kept]
        cells = "".join(cell(one.roomy or one.text, one.exact) for one in shown)
        title = text(row.title)
        lines.append(f'<tr class="{kind}{first}"{tinted}><th scope="row">{title}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{text(one.title)}</th>' for one in kept)
    return scrolling(
        caption,
        f'<table><caption class="unseen">{text(caption)}</caption><thead><tr><th scope="col">Run'
        f"</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>",
    )


def _by_seed(result: Result) -> str:
    """Return every row's figures of each seed, on demand."""
    if len(result.runs) < 2:  # noqa: PLR2004 - one seed is the table above
        return ""
    head = ["Run", "Texts", *(f"seed {seed}" for seed in result.seeds)]
    body: list[list[str]] = []
    for run in result.scored:
        for column, words in COLUMNS.items():
            found = [{one.name: one for one in seed.scored}.get(run.name) for seed in result.runs]
            values = [
                figure_of(seed, one, column) if one else None
                for seed, one in zip(result.runs, found, strict=True)
            ]
            body.append([named(run), words, *(written(result, value) for value in values)])
    caption = f"{quality(result).capitalize()} of each seed"
    return folded(caption, table(caption, head, body), "numbers")


def _card(result: Result, row: Row) -> str:
    run = result.modes[row.name]
    titles = {one.key: one.title for one in columns(result)}
    beside = f"{quality(result)} on everybody's texts"
    own = row.cells["own"]
    facts = "".join(
        f'<dt>{text(name)}</dt><dd title="{text(one.exact)}">{text(one.roomy or one.text)}</dd>'
        for name, one in (
            ("On own texts", own),
            ("Better off than alone", row.cells["better"]),
            *((titles[key], row.cells[key]) for key in ("up", "down", "flops", "memory")),
        )
        if one != NOTHING
    )
    short = len(run.rounds) < run.planned
    state = f" · {len(run.rounds)} of {formats.plural(run.planned, 'round')}" if short else ""
    whole = row.cells["everybody"]
    value, _, half = whole.text.partition(" ±")
    return (
        f'<div class="card" {tone(run.about)}><h3>{text(row.name)}</h3>'
        f'<p class="gloss">{text(run.about.gloss + state)}</p>'
        f'<div class="big" title="{text(whole.exact)}">{text(value)}'
        f"{f'<small>± {text(half)}</small>' if half else ''}"
        f"<span>{text(beside)}</span></div><dl>{facts}</dl></div>"
    )


def _line(run: Baseline | ModeRun) -> str:
    """Return how a row's line looks in the key."""
    return tone(run.about) if isinstance(run, ModeRun) else f'class="{run.name}"'


def _keys(result: Result) -> str:
    """Return the key to both curves, with the score that each line ends at."""
    lines = "".join(
        f'<li {_line(run)}><span class="line"></span>{text(named(run))} '
        f"{written(result, figure_of(result, run, 'everybody'))}</li>"
        for run in result.scored
        if figure_of(result, run, "everybody") is not None
    )
    return f'<ul class="keys">{lines}</ul>'


def _ends_of(result: Result, band: Span | None) -> str:
    if band is None:
        return formats.DASH
    return f"{written(result, band.low)} to {written(result, band.high)}"


def _course(result: Result) -> str:
    ends = [
        f"{run.name} {written(result, mark(result, run.rounds[0].score))} to "
        f"{written(result, figure_of(result, run, 'everybody'))}"
        for run in result.modes.values()
        if run.rounds
    ]
    return f"First to last round: {'; '.join(ends)}."


def _spread_note(many: int) -> str:
    if many <= BARS:
        return ""
    if many <= DOTS:
        return " Every dot is a client; the box is the middle half."
    return (
        " The box is the middle half of the clients, and 5 % lie beyond each whisker; the dots "
        f"are the {ENDS} best and the {ENDS} worst."
    )


def _worth_naming(result: Result) -> tuple[list[str], str]:
    """Return the clients a table names, and what it says of the others."""
    names = list(result.clients)
    if len(names) <= LIMIT:
        return names, ""
    order = ranked(result)
    best: Mapping[str, Score] = order[0].per_client if order else {}
    scores = {
        c: one.accuracy for c, one in best.items() if one.accuracy is not None and one.examples != 0
    }
    if len(scores) <= LIMIT:
        return names[:LIMIT], f"The first {LIMIT} of {len(names)} clients; all are in result.json."
    half, first = LIMIT // 2, order[0].name
    ends = sorted(scores, key=lambda c: -scores[c])
    return [*ends[:half], *ends[-half:]], (
        f"The {half} clients with the highest accuracy in {first} and the {half} with the lowest, "
        f"of {len(names):,}; all are in result.json."
    )
