"""A net under moves of code: what every case of the restatements leaves, to the last bit.

    TRISKEL_NET=before.jsonl pytest tests/laws/test_restated.py -p no:randomly
    TRISKEL_NET=after.jsonl  pytest tests/laws/test_restated.py -p no:randomly
    python tests/net.py before.jsonl after.jsonl

Both on one machine, one before the move and one after it. Each line holds one case: the SHA-256 of
every file of an adapter, of every message in the order in which they were packed, of the losses of
all steps, and of what the result says beside times: scores, bytes, FLOPs. That a resumed run and
sites end alike is held by tests of their own (test_resume.py, test_sites.py).
"""

# ruff: noqa: T201 - it is a command

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMES = {"seconds", "compute_s"}
WORDS = {"about"}
"""What a result says of a mode in words."""


def asked_for() -> Path | None:
    """Return where this run of the tests is to be written down, if it is."""
    place = os.environ.get("TRISKEL_NET")
    return Path(place) if place else None


def note(
    place: Path,
    case: str,
    folder: Path,
    result: Mapping[str, Any],
    events: Sequence[Any],
    sent: Sequence[bytes],
) -> None:
    """Write down what a case left."""
    steps = [[e[k] for k in ("client", "round", "phase", "loss")] for e in events
             if e["event"] == "step"]  # fmt: skip
    files = sorted(p for p in (folder / "adapters").rglob("*.safetensors"))
    row = {
        "case": case,
        "adapters": {str(p.relative_to(folder)): digest(p.read_bytes()) for p in files},
        "messages": {"count": len(sent), "sha256": digest(b"".join(sent))},
        "steps": {"count": len(steps), "sha256": digest(steps)},
        "result": digest(timeless(result)),
        "bytes": [[c["up"]["message_bytes"], c["down"]["message_bytes"], c["flops"]]
                  for r in result["rounds"] for c in r["clients"].values()],
        "job": digest((folder / "job.toml").read_bytes()),
    }  # fmt: skip
    with place.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def digest(value: object) -> str:
    """Return the SHA-256 of bytes, or of a value as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def timeless(value: object) -> object:
    """Return a value without what a clock said."""
    if isinstance(value, Mapping):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES | WORDS}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


def read(place: str) -> dict[str, dict[str, Any]]:
    """Return what a run of the tests left, by case."""
    rows = [json.loads(line) for line in Path(place).read_text(encoding="utf-8").splitlines()]
    return {row.pop("case"): row for row in rows}


def main(before: str, after: str) -> int:
    """Print each difference and a count; return how many cases differ."""
    left, right = read(before), read(after)
    bad = 0
    for case in sorted({*left, *right}):
        one, other = left.get(case), right.get(case)
        if one is None or other is None:
            print(f"{case}: only {'before' if one else 'after'}")
        elif changed := [key for key in one if one[key] != other.get(key)]:
            print(f"{case}: {', '.join(changed)}")
        else:
            continue
        bad += 1
    print(f"{len(left)} cases before, {len(right)} after, {bad} differ")
    return bad


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
