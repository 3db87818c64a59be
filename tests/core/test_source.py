"""Which code runs: a hash of all that Python can import, and of nothing else."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from triskel.core.source import source_sha256


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two modules."""
    folder = tmp_path / "pack"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    (folder / "inner" / "mode.py").write_text("y = 2\n", encoding="utf-8")
    (folder / "__pycache__").mkdir()
    (tmp_path / "other").mkdir()
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "inner" / "round").symlink_to(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "mode.py",
        "inner/other.py",
        "sourceless.pyc",
        f"inner/mode{EXTENSION_SUFFIXES[0]}",
        "__pycache__/n.py",
        "linked/m.py",
    ],
)
def test_whatever_python_can_import_changes_the_hash(package: Path, name: str) -> None:
    before = source_sha256(package)
    (package / name).write_bytes(b"z = 3\n")
    once = source_sha256(package)
    (package / name).write_bytes(b"z = 4\n")
    assert len({before, once, source_sha256(package)}) == 3


@pytest.mark.parametrize("name", ["notes.txt", "__pycache__/mode.cpython-311.pyc"])
def test_what_python_does_not_import_is_left_out(package: Path, name: str) -> None:
    before = source_sha256(package)
    (package / name).write_bytes(b"z = 3\n")
    (package / "folder.py").mkdir()
    assert source_sha256(package) == before


def test_the_hash_tells_where_a_module_lies(package: Path) -> None:
    before = source_sha256(package)
    (package / "inner" / "mode.py").rename(package / "mode.py")
    assert source_sha256(package) != before
