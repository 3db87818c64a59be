"""What left each client, in words: per mode and section, with the bytes that were measured.

The risk sentences name published attacks, so that nobody mistakes "the texts stay" for "nothing can
be learnt". A section this page does not know is shown under its own name, not dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from triskel.report.result import Json, ModeRun, Traffic, inner
from triskel.report.units import DASH


@dataclass(frozen=True, kw_only=True)
class Left:
    """One section: its words and its mean payload bytes per client, all rounds together."""

    name: str
    up_words: str
    down_words: str
    up: float | None
    down: float | None


UNNAMED = "(not told apart)"

# the first fragment found in a section's name decides; (out of the client, into the client)
SECTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "grad",
        "gradients at the head's cut, one for every hidden vector that came down",
        "gradients at the first cut, so that the client's blocks can train",
    ),
    (
        "activ",
        "hidden vectors at the cut, one per token of each training text",
        "the trunk's output, for the head that stays with the client",
    ),
    (
        "hidden",
        "hidden vectors at the cut, one per token of each training text",
        "the trunk's output, for the head that stays with the client",
    ),
    ("label", "the labels of the training texts", "labels"),
    (
        "knowledge",
        "the client's predictions on the public texts",
        "the aggregated predictions on the public texts (the teacher)",
    ),
    (
        "predict",
        "the client's predictions on the public texts",
        "the aggregated predictions on the public texts (the teacher)",
    ),
    (
        "teacher",
        "the client's predictions on the public texts",
        "the aggregated predictions on the public texts (the teacher)",
    ),
    ("head", "the task head after local training", "the averaged task head"),
    ("adapter", "the adapter after local training, or its change", "the averaged adapter"),
)

KEPT: Mapping[str, str] = {
    "params": "the texts, their labels, every prediction and every hidden vector",
    "logits": "the texts, their labels, the client's adapter and head",
    "split private": "the texts as text, their labels, the task head's predictions",
    "split shared": "the texts as text",
}

RISK: Mapping[str, str] = {
    "params": (
        "Trained parameters are computed from the texts. Whoever sees one client's update can test "
        "whether a given text took part and can rebuild fragments of small batches (Zhu et al. "
        "2019; Balunović et al. 2022). The server sees each client's update on its own."
    ),
    "logits": (
        "Predictions on public texts say little about one text, but they show which labels a "
        "client holds and allow tests of membership (Shokri et al. 2017). The server chooses the "
        "public texts, so a hostile one can ask pointed questions."
    ),
    "split": (
        "Hidden vectors of a known model can be turned back into most of the words (Song and "
        "Raghunathan 2020), the more easily the earlier the cut. Treat split as sparing the "
        "client's machine, not as hiding its texts from the server."
    ),
}
LABEL_RISK = (
    "Labels stay, but the gradients that go up are shaped by them and can give them away (Li et "
    "al. 2021)."
)
SHARED_RISK = "The server sees every label of the training texts, as the job asked."
SHARED_RESPONSES = (
    "The server sees the responses of the training examples token by token, as the job asked: they "
    "are the labels of a causal task."
)


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
    rows = [_row(name, ups, downs) for name in names]
    return sorted(rows, key=lambda row: -((row.up or 0.0) + (row.down or 0.0)))


def kept(mode: str, job: Json) -> str:
    """Return what never leaves a client."""
    if mode == "split" and _labels(job) == "shared" and _causal(job):
        return "the prompts as text; the responses leave, as labels"
    return KEPT[f"split {_labels(job)}" if mode == "split" else mode]


def risk(mode: str, job: Json) -> str:
    """Return the risk that remains."""
    text = RISK[mode]
    if mode == "split":
        shared = SHARED_RESPONSES if _causal(job) else SHARED_RISK
        text += f" {shared if _labels(job) == 'shared' else LABEL_RISK}"
    return text


def guarded(job: Json) -> str:
    """Return what the run did against these risks."""
    if "privacy" in job:
        return "This job has a [privacy] section; see it under The job for noise and masking."
    return (
        "This run added no noise and did not hide single clients' uploads from the server: it "
        "keeps texts where they are, it does not promise differential privacy."
    )


def _causal(job: Json) -> bool:
    return inner(job, "data").get("task") == "causal"


def _labels(job: Json) -> str:
    return "shared" if inner(job, "split").get("labels") == "shared" else "private"


def _row(name: str, ups: Traffic, downs: Traffic) -> Left:
    lowered = name.lower()
    words = next((row[1:] for row in SECTIONS if row[0] in lowered), ("data", "data"))
    up, down = ups.sections.get(name, 0.0), downs.sections.get(name, 0.0)
    return Left(
        name=name,
        up_words=words[0] if up else DASH,
        down_words=words[1] if down else DASH,
        up=up,
        down=down,
    )
