"""Lines of an audit log, for people to read."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from triskel.policy.hash_chain import Entry

SET_BACK = timedelta(seconds=2)
"""How far a clock that keeps time by others may be set back."""


@dataclass
class Clock:
    """Follows the times of a log's lines.

    Attributes:
        findings: A sentence for each line that is from before the one above it.
    """

    findings: list[str] = field(default_factory=list[str])
    _latest: datetime | None = None

    def saw(self, entry: Entry) -> None:
        """Take a line's time up."""
        try:
            when = datetime.fromisoformat(str(entry["at"]))
            back = self._latest is not None and when < self._latest - SET_BACK
        except (KeyError, ValueError, TypeError):
            if "at" in entry:
                self.findings.append(f"line {_plain(entry.get('n'))} has no time that can be read")
            return
        if back:
            self.findings.append(
                f"line {_plain(entry.get('n'))}: time runs backwards, from {self._latest} to "
                f"{when}; a clock was set back, or the line was written at another time"
            )
        else:
            self._latest = when


def line_of(entry: Entry) -> str:
    """Return an entry as one line; words that others chose are quoted and escaped."""
    what = entry.get("what")
    if what == "cut":
        return f"      the last line is cut off after {entry['bytes']} bytes, as a kill leaves it"
    rest = _LINES.get(str(what), _other)(entry)
    run = f"{_plain(entry['run'])} " if entry.get("run") else ""  # older logs name none
    return f"{entry['n']:>5} {_plain(entry['at'])} {run}{rest}"


def _decided(entry: Entry) -> str:
    verdict = "allowed" if entry.get("allowed") is True else "refused"
    job, who = ascii(entry.get("job")), ascii(entry.get("by"))
    why = "".join(f"; {_plain(refusal)}" for refusal in _list(entry.get("refusals")))
    to = f", to {_plain(entry['to'])}" if entry.get("to") else ""
    return f"{verdict} job {job} (mode {_plain(entry.get('mode'))}{to}) of {who}{why}"


def _left(entry: Entry) -> str:
    sections = entry.get("sections")
    names = list(sections) if isinstance(sections, dict) else []
    parts = [_section(name, sections[name]) for name in names]  # type: ignore[index]
    topic = f" {_plain(entry['topic'])}" if entry.get("topic") else ""
    what = ", ".join(parts) or "no section"
    return (
        f"left    {_plain(entry.get('kind'))}{topic} of {_round(entry)}: "
        f"{what}; {_plain(entry.get('bytes'))} bytes, "
        f"SHA-256 {_plain(entry.get('message_sha256'))}"
    )


def _round(entry: Entry) -> str:
    stage = f"{_plain(entry['stage'])} " if entry.get("stage") else ""
    return f"{stage}round {_plain(entry.get('round', '-'))}"


def _told(entry: Entry) -> str:
    facts = entry.get("facts")
    shown = facts.items() if isinstance(facts, dict) else ()
    return f"told    {', '.join(f'{_plain(name)} {_plain(n)}' for name, n in shown) or 'nothing'}"


def _failed(entry: Entry) -> str:
    where = f" in {_round(entry)}" if entry.get("stage") else ""
    return f"failed  {_plain(entry.get('error'))}{where}; told: {_plain(entry.get('told'))}"


def _section(name: object, row: object) -> str:
    tensors = row.get("tensors") if isinstance(row, dict) else None
    shapes = tensors.items() if isinstance(tensors, dict) else ()
    kind = row.get("kind") if isinstance(row, dict) else None
    shown = " + ".join(f"{_plain(count)} of {_plain(shape)}" for shape, count in shapes)
    return f"{_plain(name)} ({_plain(kind)}: {shown})"


def _other(entry: Entry) -> str:
    if entry.get("what") == "torn":
        return f"torn    {_plain(entry.get('bytes'))} bytes of a line that was not finished"
    return f"{_plain(entry.get('what'))}"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _plain(value: object) -> str:
    """Return a value without control characters or line ends."""
    return ascii(value)[1:-1] if isinstance(value, str) else ascii(value)


_LINES = {"decided": _decided, "told": _told, "left": _left, "failed": _failed}
