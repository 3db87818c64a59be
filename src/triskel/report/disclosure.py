"""What left each client, in words: per mode and section, with the bytes that were measured.

The words are those of the modes' specs, which name published attacks, so that nobody mistakes "the
texts stay" for "nothing can be learnt". A section without words is shown by its name, not dropped.
"""

from dataclasses import dataclass

from triskel.core.formats import DASH
from triskel.report.result import About, Json, ModeRun, Traffic


@dataclass(frozen=True, kw_only=True)
class Left:
    """One section: its words and its mean payload bytes per client, all rounds together."""

    name: str
    up_words: str
    down_words: str
    up: float | None
    down: float | None


UNNAMED = "(not told apart)"


def left(run: ModeRun) -> list[Left]:
    """Return what crossed, section by section, largest first."""
    if run.each is None:
        return []
    ups, downs = run.each.up, run.each.down
    names = dict.fromkeys([*ups.sections, *downs.sections])
    if not names:
        return [
            Left(
                name=UNNAMED,
                up_words="everything this mode sends",
                down_words="everything this mode receives",
                up=ups.payload_bytes,
                down=downs.payload_bytes,
            )
        ]
    rows = [_row(name, ups, downs, run.about) for name in names]
    return sorted(rows, key=lambda row: -((row.up or 0.0) + (row.down or 0.0)))


def guarded(job: Json) -> str:
    """Return what the run did against these risks."""
    if "privacy" in job:
        return "This job has a [privacy] section; see it under The job for noise and masking."
    return (
        "This run added no noise and did not hide single clients' uploads from the server: it "
        "keeps texts where they are, it does not promise differential privacy."
    )


def _row(name: str, ups: Traffic, downs: Traffic, about: About) -> Left:
    close = (words for known, words in about.sections.items() if known in name.lower())
    words = about.sections.get(name) or next(close, ("data", "data"))
    up, down = ups.sections.get(name, 0.0), downs.sections.get(name, 0.0)
    return Left(
        name=name,
        up_words=words[0] if up else DASH,
        down_words=words[1] if down else DASH,
        up=up,
        down=down,
    )
