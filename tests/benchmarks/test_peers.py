import runpy
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


def loaded(name: str) -> ModuleType:
    spec = util.spec_from_file_location(f"peers_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]
tree = loaded("tree")
environments = loaded("environments")
HOLDS_64_MB = "import time; held = bytearray(b'x' * 64_000_000); time.sleep(60)"


def test_a_parent_is_found_behind_any_name() -> None:
    assert tree.parent_of("12 (a) b) S 7 12 12 0") == 7


def test_descendants_are_all_below_and_nobody_else() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 8: 7, 9: 8}
    assert tree.descendants(1, parents) == {2, 3, 4, 5}
    assert tree.descendants(4, parents) == set()


def test_memory_of_a_grandchild_is_counted() -> None:
    call = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS_64_MB!r}])"
    with tree.Sampler() as sampler:
        child = subprocess.Popen([sys.executable, "-c", call])
        deadline = time.monotonic() + patience(30)
        while sampler.peak_mb < 64 and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in tree.descendants(child.pid, tree.parents()):
            subprocess.run(["kill", str(pid)], check=True)
        child.wait(timeout=patience(30))
    assert sampler.peak_mb > 64
    assert sampler.most >= 2


def test_every_environment_pins_the_same_torch_and_names_no_host() -> None:
    assert environments.TORCH.startswith("torch==")
    wanted = [line for lines in environments.WANTED.values() for line in lines]
    assert not [line for line in wanted if line.startswith("torch") or "://" in line]
