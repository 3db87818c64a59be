"""With one client, split learning is parameter exchange: the same steps, cut in three.

Everything here goes through the command line alone: a job file, a folder with a model, a table of
texts, `triskel run` and `triskel export`.
"""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "small.py")))
tiny = SimpleNamespace(**runpy.run_path(str(TESTS / "tiny.py")))
COMMAND = (sys.executable, "-c", "from triskel.cli import main; main()")
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


def triskel(here: Path, *words: str) -> None:
    done = subprocess.run([*COMMAND, *words], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_split_learning_with_one_client_is_parameter_exchange(tmp_path: Path) -> None:
    small.save_model(tmp_path / "model")
    small.save_rows(tmp_path / "rows.csv", 30)
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    found = {}
    for mode in ("params", "split"):
        triskel(tmp_path, "run", "job.toml", "--mode", mode, "--out", mode)
        triskel(tmp_path, "export", mode, f"{mode}-adapter")
        found[mode] = load_file(tmp_path / f"{mode}-adapter" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in found["params"].items())
    assert tiny.apart(found["split"], found["params"]) < 1e-9
