"""With one client, split learning is parameter exchange: the same steps, cut in three.

Everything here goes through the command line alone: a job file, a folder with a model, a table of
texts, `triskel run` and `triskel export`, each in a process of its own.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
tiny = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "tiny.py")))
COMMANDS = """
import json, os, sys
from triskel.cli import main
import triskel.experiment.compare, triskel.export.adapters  # once, before any fork

for words in json.load(sys.stdin):
    if not (child := os.fork()):
        sys.argv[1:] = words
        sys.exit(main())
    if os.waitpid(child, 0)[1]:
        sys.exit("failed: triskel " + " ".join(words))
"""
JOB = """
rounds = 1
[model]
path = "model"
dtype = "float64"
device = "cpu"
[adapter]
rank = 2
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
[data]
source = "csv"
train = "rows.csv"
text = "text"
label = "label"
[clients]
count = 1
[train]
epochs = 3
batch = 4
lr = 5e-3
max_tokens = 12
[logits]
public = 0
[wire]
up = "raw"
down = "raw"
"""


def triskel(here: Path, *commands: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=here, input=json.dumps(commands), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_split_learning_with_one_client_is_parameter_exchange(tmp_path: Path) -> None:
    small.save_model(tmp_path / "model")
    small.save_rows(tmp_path / "rows.csv", 30)
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    modes = ("params", "split")
    runs = [("run", "job.toml", "--mode", mode, "--out", mode) for mode in modes]
    triskel(tmp_path, *runs, *(("export", mode, f"{mode}-adapter") for mode in modes))
    found = {m: load_file(tmp_path / f"{m}-adapter" / "adapter_model.safetensors") for m in modes}
    assert any("lora_B" in name and tensor.any() for name, tensor in found["params"].items())
    assert tiny.apart(found["split"], found["params"]) < 1e-9
