"""No code of a model's or of a dataset's is run: whatever loads one says that it must not."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "triskel"
FILES = sorted(SOURCE.rglob("*.py"))
LOADS = {"from_pretrained", "from_config", "get_config_dict", "pipeline", "load_dataset"}
CANNOT = {
    "triskel.data.reading:load_dataset": "datasets runs no scripts since version 4",
    "triskel.model.peft_folder:peft.PeftModel.from_pretrained": "a PEFT folder names no code",
}
"""Calls that take no such option."""


def calls(text: str) -> list[tuple[str, bool]]:
    """Return what is called that loads something, and whether it is told to run no code of it."""
    told: list[tuple[str, bool]] = []
    tree = ast.parse(text)
    tables = {  # options = {..., "trust_remote_code": False, ...}, handed over as **options
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Dict)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and _refuses(node.value)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in LOADS:
            says = any(
                (one.arg == "trust_remote_code" and _no(one.value))
                or (one.arg is None and isinstance(one.value, ast.Name) and one.value.id in tables)
                for one in node.keywords
            )
            told.append((name, says))
    return told


def _refuses(table: ast.Dict) -> bool:
    return any(
        isinstance(key, ast.Constant) and key.value == "trust_remote_code" and _no(value)
        for key, value in zip(table.keys, table.values, strict=True)
    )


def _no(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A.from_pretrained(x)", False),
        ("A.from_pretrained(x, trust_remote_code=True)", False),
        ("A.from_pretrained(x, trust_remote_code=False)", True),
        ("o = {'trust_remote_code': False}\nA.from_pretrained(x, **o)", True),
        ("o = {'trust_remote_code': True}\nA.from_pretrained(x, **o)", False),
        ("o: dict = {}\nA.from_pretrained(x, **o)", False),
    ],
)
def test_a_call_that_would_run_code_is_seen(text: str, says: bool) -> None:  # noqa: FBT001 - a case
    assert [one for _, one in calls(text)] == [says]


def test_everything_that_loads_says_that_no_code_is_run() -> None:
    found = {
        f"triskel.{'.'.join(file.relative_to(SOURCE).with_suffix('').parts)}:{name}": says
        for file in FILES
        for name, says in calls(file.read_text(encoding="utf-8"))
    }
    silent = {
        place.replace("datasets.load_dataset", "load_dataset")
        for place, says in found.items()
        if not says
    }
    assert silent == set(CANNOT)
    assert len(found) > len(CANNOT) + 4
