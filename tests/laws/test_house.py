"""The house keeps its measure: short files, short functions, and few modules beside the folders."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "triskel"
FILES = sorted(SOURCE.rglob("*.py"))
LINES, FUNCTION, ROOT = 400, 60, 6


def long_functions(text: str) -> list[str]:
    """Return the functions above the measure, docstring and decorators' target included."""
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION
    ]


def test_a_function_that_is_too_long_is_seen() -> None:
    body = "    x = 1\n" * FUNCTION
    assert long_functions(f"def f():\n{body}") == [f"f: {FUNCTION + 1} lines"]
    assert long_functions(f"def f():\n{body[:-10]}") == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert long_functions(text) == []


def test_few_modules_lie_beside_the_folders() -> None:
    assert len([file for file in FILES if file.parent == SOURCE]) <= ROOT
