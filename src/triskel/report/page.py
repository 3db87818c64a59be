"""The page: one HTML file that holds everything it shows and asks no network for anything.

A content security policy in the page forbids every request, so a browser enforces what a test
checks. Style and script stand beside this file; plotly.js comes from the installed plotly.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from triskel.config.sections import called
from triskel.core import formats
from triskel.core.crash import during
from triskel.core.result_file import NAME, result_in
from triskel.core.untrusted import json_in
from triskel.report import section_cost, sections
from triskel.report.comparisons import readings_section
from triskel.report.figures import draw
from triskel.report.markup import Figure, script_json, text
from triskel.report.reading import read
from triskel.report.result import Result, inner, items

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)
ARM = "M16 16C16 9 21 5 26 8.5C29.5 11 28 16.5 24 16"
MARK = "".join(
    f'<path d="{ARM}" transform="rotate({turn} 16 16)" fill="none" stroke="{colour}" '
    'stroke-width="3.4" stroke-linecap="round"/>'
    for turn, colour in ((0, "#0072B2"), (120, "#E69F00"), (240, "#009E73"))
)


@during("while writing the report")
def write_report(folder: Path) -> Path:
    """Write `report.html` beside the `result.json` of a run folder, whole or not at all.

    Raises:
        CheckpointError: There is no result in the folder, or it cannot be read.
    """
    asked = _asked(folder)
    known = {"request": asked, **result_in(folder)}
    missing = _missing(asked, known)
    if missing:
        known = {"interrupted": f"no result for {formats.joined(missing)}", **known}
    target = folder / "report.html"
    write_whole(target, render(known))
    return target


def render(result: Mapping[str, Any]) -> str:
    """Return the page for a result.

    Raises:
        CheckpointError: This is not a result that this version can read.
    """
    seen = read(result)
    drawn = draw(seen)
    parts = (
        ("found", "Result", "What came out", sections.found(seen)),
        ("measured", "Metrics", "Scores and costs", sections.measured(seen)),
        ("training", "Learning", "Learning curves", sections.training(seen, drawn)),
        ("readings", "Readings", "At a budget, to a target, in trouble", readings_section(seen)),
        ("clients", "Clients", "Who should join", sections.clients(seen, drawn)),
        ("costs", "Cost", "Computation and time", section_cost.costs(seen, drawn)),
        ("leaving", "Privacy", "What left each client", section_cost.leaving(seen)),
        ("data", "Data", "Who holds what", section_cost.data(seen, drawn)),
        ("again", "Job", "The job, and how to run it again", section_cost.again(seen)),
    )
    name = str(seen.job.get("name") or "run")
    source = f"Triskel {seen.version} from {NAME}"
    return document(parts, drawn, kind="report", name=name, facts=_facts(seen), source=source)


def document(
    parts: Sequence[tuple[str, str, str, str]],
    drawn: Mapping[str, Figure],
    *,
    kind: str,
    name: str,
    facts: Sequence[str],
    source: str,
) -> str:
    """Return a whole page.

    Args:
        parts: Its sections: id, short title, title, and what is inside, as HTML.
        drawn: Figures by the id of their place.
        kind: What the page is.
        name: What it is about.
        facts: What is said below the name.
        source: What it was written by and from.
    """
    body = "".join(
        f'<section id="{place}" aria-labelledby="{place}-title"><h2 id="{place}-title">{title}</h2>'
        f"{inside}</section>"
        for place, _, title, inside in parts
    )
    links = "".join(f'<a href="#{place}">{short}</a>' for place, short, _, _ in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(name)} · Triskel</title>'
        f"<style>{_beside('page.css')}</style></head><body>{_header(kind, name, facts)}"
        f'<nav aria-label="Sections"><div>{links}</div></nav><main>'
        "<noscript><p>The figures need JavaScript; the tables hold the same numbers.</p></noscript>"
        f"{body}</main><footer>Written by {text(source)}. This page "
        "holds everything it shows and loads nothing.</footer>"
        f'<script type="application/json" id="figures">{script_json(drawn)}</script>'
        f"<script>{_plotly()}</script><script>{_beside('page.js')}</script></body></html>\n"
    )


def _asked(folder: Path) -> Mapping[str, Any]:
    """Return what the run folder's request says, which results did not hold at first."""
    try:
        asked: object = json_in(folder / "request.json")
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", asked) if isinstance(asked, dict) else {}


def _missing(asked: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Return the modes that a request names and the result, or a seed of it, lacks."""
    runs = [one for one in items(result.get("runs")) if isinstance(one, Mapping)]
    told = [{*inner(one, "modes"), *inner(one, "skipped")} for one in runs or [result]]
    return [str(m) for m in items(asked.get("modes")) if any(m not in one for one in told)]


def _header(kind: str, name: str, facts: Sequence[str]) -> str:
    listed = "".join(f"<li>{text(fact)}</li>" for fact in facts)
    return (
        f'<header><div><div class="brand"><svg viewBox="0 0 32 32" aria-hidden="true">{MARK}</svg>'
        f'Triskel {kind}</div><h1>{text(name)}</h1><ul class="facts">{listed}</ul></div></header>'
    )


def _facts(result: Result) -> list[str]:
    job = result.job
    model, adapter, data = inner(job, "model"), inner(job, "adapter"), inner(job, "data")
    facts = [called(str(model["path"]))] if model.get("path") else []
    if adapter.get("kind"):
        rank = f" rank {adapter['rank']}" if adapter.get("rank") else ""
        facts.append(f"{adapter['kind']}{rank}")
    if data.get("task"):
        many = len(result.classes)
        facts.append(f"{data['task']}, {many} classes" if many else str(data["task"]))
    if result.clients:
        facts.append(formats.plural(len(result.clients), "client"))
    if result.holdings:
        train = sum(held.train for held in result.holdings.values())
        test = sum(held.test for held in result.holdings.values())
        facts.append(f"{train:,} training and {test:,} {result.texts}")
    if isinstance(job.get("rounds"), int):
        facts.append(formats.plural(job["rounds"], "round"))
    if result.seeds:
        facts.append(formats.plural(len(result.seeds), "seed"))
    elif job.get("seed") is not None:
        facts.append(f"seed {job['seed']}")
    return facts


def _plotly() -> str:
    script = files("plotly").joinpath("package_data", "plotly.min.js")
    return script.read_text(encoding="utf-8")


def _beside(name: str) -> str:
    return files("triskel.report").joinpath(name).read_text(encoding="utf-8")


def write_whole(target: Path, page: str) -> None:
    """Write a page whole or not at all."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
