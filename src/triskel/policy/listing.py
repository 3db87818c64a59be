"""Lines of an audit log, for people to read."""

from triskel.policy.chain import Entry


def line_of(entry: Entry) -> str:
    """Return an entry as one line; words that others chose are quoted and escaped."""
    what = entry.get("what")
    if what == "cut":
        return f"      the last line is cut off after {entry['bytes']} bytes, as a kill leaves it"
    rest = {"decided": _decided, "left": _left}.get(str(what), _other)(entry)
    return f"{entry['n']:>5} {_plain(entry['at'])} {rest}"


def _decided(entry: Entry) -> str:
    verdict = "allowed" if entry.get("allowed") is True else "refused"
    job, who = ascii(entry.get("job")), ascii(entry.get("by"))
    why = "".join(f"; {_plain(refusal)}" for refusal in _list(entry.get("refusals")))
    return f"{verdict} job {job} (mode {_plain(entry.get('mode'))}) of {who}{why}"


def _left(entry: Entry) -> str:
    sections = entry.get("sections")
    names = list(sections) if isinstance(sections, dict) else []
    parts = [_section(name, sections[name]) for name in names]  # type: ignore[index]
    topic = f" {_plain(entry['topic'])}" if entry.get("topic") else ""
    what = ", ".join(parts) or "no section"
    return (
        f"left    {_plain(entry.get('kind'))}{topic} of round {_plain(entry.get('round', '-'))}: "
        f"{what}; {_plain(entry.get('bytes'))} bytes, "
        f"SHA-256 {_plain(entry.get('message_sha256'))}"
    )


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
