"""What did not run is named, line by line and branch by branch, whoever ran the rest."""

import ast
from pathlib import Path
from typing import Any

import covered  # pyright: ignore[reportMissingImports]
import pytest

pytest.importorskip("slipcover", reason="SlipCover is not installed")

CODE = """
def sign(x):
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0


def unused():
    assert_never(sign)
"""


def seen(folder: Path, *numbers: int) -> dict[str, Any]:
    """Run the code with probes in it; return what they saw of it."""
    place = folder / "code.py"
    place.write_text(CODE, encoding="utf-8")
    probes, space = covered.Probes(folder), dict[str, Any]()
    code = probes.put(compile(probes.marked(ast.parse(CODE)), str(place), "exec"))
    exec(code, space)  # noqa: S102 - our own
    assert [space["sign"](x) for x in numbers] == [(x > 0) - (x < 0) for x in numbers]
    found: dict[str, Any] = probes.probes.get_coverage()
    return found


def missing(found: dict[str, Any]) -> tuple[list[int], list[tuple[int, int]]]:
    (file,) = found["files"].values()
    return file["missing_lines"], [tuple(x) for x in file["missing_branches"]]


def test_lines_and_branches_that_did_not_run_are_named(tmp_path: Path) -> None:
    assert missing(seen(tmp_path, 1)) == ([5, 6, 7], [(3, 5), (5, 6), (5, 7)])
    assert missing(seen(tmp_path, 1, -1)) == ([7], [(5, 7)])
    assert missing(seen(tmp_path, 1, 0, -1)) == ([], []), "what is left out counts nowhere"


def test_what_several_workers_saw_is_added_up(tmp_path: Path) -> None:
    both = covered.Probes(tmp_path)
    for number in (1, -1):
        both.add(seen(tmp_path, number))
    assert missing(both.found) == ([7], [(5, 7)])
