"""Nothing in the house names a mode or a task: whoever needs to know one reads the registry."""

import ast
from collections.abc import Iterator
from pathlib import Path

from triskel.core import registry

SOURCE = Path(registry.__file__).parent.parent
TABLE = Path(registry.__file__)
FAMILIES = {"modes": registry.MODES.ours, "tasks": registry.TASKS.ours}
NAMES = {name for names in FAMILIES.values() for name in names}
EXCEPTIONS: dict[str, str] = {
    "experiment/stages.py": "training alone and on all data is parameter exchange with one client",
}
"""Files that name a mode or a task, each with its reason; three at most."""


def named(tree: ast.AST) -> Iterator[str]:
    """Every mode and task that code names: as a string, as a job's attribute, or by an import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield str(node.value)
        if isinstance(node, ast.Attribute) and node.attr in NAMES and _is_job(node.value):
            yield node.attr
        modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
        for module in modules:
            for family, names in FAMILIES.items():
                for name in names:
                    if f"{module}.".startswith(f"triskel.{family}.{name}."):
                        yield name


def _is_job(node: ast.expr) -> bool:
    own = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return own.lower().endswith("job")


def test_no_code_but_a_modes_own_names_a_built_in_mode() -> None:
    found: dict[str, set[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE)
        own = place.parts[1] if place.parts[0] in FAMILIES and len(place.parts) > 2 else ""
        others = set(named(ast.parse(file.read_text(encoding="utf-8")))) - {own}
        if others and file != TABLE:
            found[place.as_posix()] = others
    assert found.keys() == EXCEPTIONS.keys(), found
    assert len(EXCEPTIONS) <= 3


def test_the_search_finds_each_way_to_name_a_mode() -> None:
    for text, names in (
        ('if mode == "logits": ...', ["logits"]),
        ("x = self.job.split.cut", ["split"]),
        ("x = job.params", ["params"]),
        ("from triskel.modes.params.mode import Params", ["params", "params"]),
        ("from triskel.modes import split", ["split"]),
        ("import triskel.modes.logits.spec", ["logits"]),
        ("from triskel.tasks.causal.spec import PLAIN", ["causal", "causal"]),
        ('if job.data.task == "classify": ...', ["classify"]),
        ('"a, b".split(",")', []),
        ("x = model(ids).logits", []),
    ):
        assert list(named(ast.parse(text))) == names, text
