"""Makes the environment of each peer, once, in a folder of its own outside the repository."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"  # the same everywhere, as it does most of the computing
MODEL = ["transformers>=5,<6", "peft>=0.17", "safetensors>=0.4.3", "numpy>=1.26"]
WANTED = {
    "transformers": [*MODEL, "accelerate>=1.1"],
    "flower": [*MODEL, "flwr[simulation]"],  # the latest that installs
    "flare": [*MODEL, "nvflare>=2.9,<2.10"],
}
SHOWN = ("torch", "transformers", "peft", "accelerate", "flwr", "ray", "nvflare", "triskel")


def python_of(name: str, cache: Path) -> Path:
    """Return a peer's Python; its environment is made at first use."""
    if name == "triskel":
        return Path(sys.executable)  # Triskel is what runs this
    folder = cache / name
    python, stamp = folder / "bin" / "python", folder / "complete.txt"
    wanted = hashlib.sha256(json.dumps([TORCH, WANTED[name]]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the environment {name} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH], check=True)  # first, so that no other build is chosen
        subprocess.run([*pip, TORCH, *WANTED[name]], check=True)
        stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the versions that matter, as an environment has them."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.name: d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    done = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))
