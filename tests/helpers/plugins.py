"""Packages beside Triskel for tests: an example or another as pip installs it, in a folder."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triskel.core import registry

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("triskel")


def install(example: str | Path, work: Path) -> Path:
    """Install an example's package, or another, into a folder of its own, offline; return that."""
    source, target = work / "source", work / "site"
    shutil.copytree(ROOT / "examples" / example, source)
    words = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *words, str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def paths(*packages: Path) -> dict[str, str]:
    """Return an environment in which another process finds this source and these packages."""
    places = [ROOT / "src", *packages]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}


@contextmanager
def beside(package: Path, module: str) -> Iterator[None]:
    """Have a package installed in this process; afterwards nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package))
        patch.setenv("PYTHONPATH", paths(package)["PYTHONPATH"])
        registry.forget()
        try:
            yield
        finally:
            for name in [one for one in sys.modules if one.partition(".")[0] == module]:
                del sys.modules[name]
            patch.undo()
            importlib.invalidate_caches()
            registry.forget()
